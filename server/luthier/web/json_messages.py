"""Messages as protobuf's JSON, and what is wrong with JSON that is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from luthier.errors import InvalidArgument
from luthier.web.failures import Failure

MOST_DEPTH = 64
"""Of messages within messages."""
_SHOWN = 300
"""Characters of what is wrong that are repeated; it may quote the value."""

_AT = re.compile(r' at "?([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)"?[.\n]*')
_NO_FIELD = re.compile(r'has no field named "(.*?)" at "(.*?)"', re.DOTALL)
_WITHIN = re.compile(r"Failed to parse (\w+) field: ")


def parse(kind: type[Message], pool: DescriptorPool, text: bytes) -> bytes:
    """A message of a type, written as JSON, in the wire format; raises Failure that names the field."""
    message = kind()
    if text[:1] != b"{" and not text.lstrip().startswith(b"{"):
        raise Failure.of(InvalidArgument({"body": "is no JSON object"}))
    try:
        json_format.Parse(text, message, descriptor_pool=pool, max_recursion_depth=MOST_DEPTH)
        return message.SerializeToString()
    except json_format.ParseError as error:
        raise Failure.of(InvalidArgument(_violation(str(error), _Finder(kind, pool, text)))) from None
    except (RecursionError, ValueError) as error:
        # Lists within lists, and integers of thousands of digits, stop Python's own reader.
        raise Failure.of(InvalidArgument({"body": f"is no JSON that can be read: {error}"[:_SHOWN]})) from None


def write(kind: type[Message], pool: DescriptorPool, message: bytes) -> bytes:
    """A message in the wire format as JSON."""
    found = json_format.MessageToDict(kind.FromString(message), descriptor_pool=pool)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def check(kind: type[Message], message: bytes) -> bytes:
    """A message that came in the wire format."""
    try:
        kind.FromString(message)
    except DecodeError:
        raise Failure.of(InvalidArgument({"body": f"is no {kind.DESCRIPTOR.full_name}"})) from None
    return message


class _Finder:
    """Finds which element of a list is wrong: of some mistakes protobuf's parser says only in which fields they are."""

    def __init__(self, kind: type[Message], pool: DescriptorPool, text: bytes) -> None:
        self._kind = kind
        self._pool = pool
        self._text = text

    def place(self, names: list[str]) -> str:
        """The path of the field whose parents and self have these names."""
        value: Any = json.loads(self._text) if names else None
        message: Any = self._kind.DESCRIPTOR
        found = []
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
            field = {known.json_name: known for known in message.fields}.get(name) if message else None
            field = field or (message.fields_by_name.get(name) if message else None)
            message = field.message_type if field else None
            if message is not None and isinstance(value, list):
                index, value = next(self._wrong(message, value), (0, None))
                name = f"{name}[{index}]"
            found.append(name)
        return ".".join(found)

    def _wrong(self, kind: Any, values: list[Any]) -> Iterator[tuple[int, Any]]:
        for index, value in enumerate(values):
            try:
                json_format.ParseDict(value, GetMessageClass(kind)(), descriptor_pool=self._pool)
            except Exception:
                # Whatever the parser raises, it is this one that it cannot read.
                yield index, value


def _violation(said: str, finder: _Finder) -> dict[str, str]:
    """The field and what is wrong with it, from the words of protobuf's parser.

    It says them as `Failed to parse a field: Failed to parse b field: WHY at Message.a[0].b..`.
    """
    within = _WITHIN.findall(said)
    why = _WITHIN.sub("", said)
    if why.startswith("Failed to load JSON: "):
        return {"body": f"is no JSON: {why.removeprefix('Failed to load JSON: ').rstrip('.')}"[:_SHOWN]}
    if unknown := _NO_FIELD.search(why):
        name, parent = unknown.groups()
        return {_path(f"{parent}.{name[:_SHOWN]}"): "there is no such field"}
    places = _AT.findall(why)
    field = (_path(places[-1]) if places else "") or finder.place(within) or "body"
    return {field: _AT.sub("", why).rstrip(".\n")[:_SHOWN]}


def _path(place: str) -> str:
    """A place without the message's name in front."""
    return place.partition(".")[2]
