"""The messages of tasks, found by server reflection, so that a client needs no stubs of the tasks it calls."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool, json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from luthier_client.errors import InvalidArgument, NotFound, translated


class Schema:
    """Message classes of one server by their full names. Thread-safe.

    A class whose stub this program has imported is that stub's, so that what comes back is an instance of it; any other
    is fetched once over the channel.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        # The pool asks the server while it looks something up, and two look-ups must not cross.
        self._lock = threading.Lock()
        self._classes: dict[str, type[Message]] = {}

    def knows(self, full_name: str) -> bool:
        """Whether the class of a message can be had without asking the server."""
        return full_name in self._classes

    def message_class(self, full_name: str) -> type[Message]:
        """The class of a message; raises NotFound where the server has none of that name."""
        if full_name not in self._classes:
            with self._lock, translated():
                self._classes[full_name] = self._find(full_name)
        return self._classes[full_name]

    def parse(self, full_name: str, values: Mapping[str, Any], where: str) -> Message:
        """Makes a message from values as in protobuf's JSON; enums may be given short, `ease` for `ALGORITHM_EASE`, and
        bytes as they are.

        Raises InvalidArgument, with `where` (such as `config` or `instances[0]`) for the path of what is wrong.
        """
        message = self.message_class(full_name)()
        descriptor = descriptor_of(message)
        known = {name for field in descriptor.fields for name in (field.name, field.json_name)}
        if unknown := [name for name in values if name not in known]:
            why = f"no such field; there are {', '.join(field.name for field in descriptor.fields)}"
            raise InvalidArgument(f"{where}: {why}", violations={f"{where}.{name}": why for name in unknown})
        try:
            json_format.ParseDict(_spell_out(descriptor, values), message)
        except json_format.ParseError as error:
            raise InvalidArgument(f"{where}: {error}", violations={where: str(error)}) from error
        return message

    def pack(self, message: Message | Mapping[str, Any], full_name: str, where: str) -> AnyMessage:
        """A message as Any: one that is made already, or one to be made by `parse`."""
        packed = AnyMessage()
        packed.Pack(message if isinstance(message, Message) else self.parse(full_name, message, where))
        return packed

    def unpack(self, packed: AnyMessage) -> Message:
        """The message in an Any; raises NotFound where the server does not know its type."""
        message = self.message_class(packed.TypeName())()
        packed.Unpack(message)
        return message

    def _find(self, full_name: str) -> type[Message]:
        for pool in (descriptor_pool.Default(), self._pool):
            try:
                return GetMessageClass(pool.FindMessageTypeByName(full_name))
            except KeyError:
                continue
        raise NotFound(f"the server has no message {full_name}")


def descriptor_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message. Stubs of protobuf tell its two implementations apart; their interface is one."""
    return cast(Descriptor, message.DESCRIPTOR)


def enum_prefix(full_name: str) -> str:
    """What the values of an enum begin with by protobuf's style guide: `ALGORITHM_` for `Algorithm`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", full_name.rpartition(".")[2]).upper() + "_"


def enum_name(enum: EnumDescriptor, text: str) -> str:
    """The name of an enum's value that is given in full or without its prefix, in any case."""
    prefixed = enum_prefix(enum.full_name) + text.upper()
    return prefixed if prefixed in enum.values_by_name else text.upper()


def _spell_out(descriptor: Descriptor, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as protobuf's JSON has them: the enums among them in full, bytes in base64."""
    enums = {field.name: field.enum_type for field in descriptor.fields if field.enum_type}
    return {
        name: enum_name(enums[name], value) if name in enums and isinstance(value, str) else _json(value)
        for name, value in values.items()
    }


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {name: _json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(one) for one in value]
    return value
