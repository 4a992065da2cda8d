"""Requests of strangers: built from what a server's reflection says of its methods, and damaged as bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

EVIL = [
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "models/../../etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data",
    "url:http://169.254.169.254/latest",
    "hub:a/../../b@main",
    "package:luthier-evil==1.0:folder",
    "simplecache::file:///etc/passwd",
    "zip://*::s3://bucket/x",
    "s3://bucket/key#fragment",
    "a#b",
    "a::b",
    "con",
    "nul\0byte",
    "'; DROP TABLE models; --",
    "{{7*7}}${7*7}%s%n",
    "\u202e\ufeff\ud7ff\U0010ffff",
    "-rf",
    " ",
    "",
    "a" * 5000,
]
"""What names and texts must not be able to do harm with."""

_INTEGERS = (0, 1, 2, 3, 7, 100, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DEEPEST = 4


@dataclass(frozen=True)
class Method:
    """A method of a running server."""

    path: str
    """`/package.Service/Method`."""
    request: type[Message]
    streams_in: bool
    streams_out: bool


def methods_of(channel: grpc.Channel) -> list[Method]:
    """All methods that reflection lists."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    return [
        Method(
            f"/{service}/{method.name}",
            GetMessageClass(method.input_type),
            method.client_streaming,
            method.server_streaming,
        )
        for service in sorted(database.get_services())
        for method in pool.FindServiceByName(service).methods
    ]


class Builder:
    """Makes messages of any kind, as good as a stranger can who knows some names."""

    def __init__(
        self,
        random: Random,
        words: Mapping[str, Sequence[str]],
        blobs: Sequence[bytes] = (b"",),
        packed: Sequence[type[Message]] = (),
        good: float = 0.7,
    ) -> None:
        """`words` are good values by `Message.field`, `package.field` or `field`, whichever is there first; `blobs` are
        values of fields of bytes, and `packed` is what an Any may hold. `good` is the share of texts that are good."""
        self._random = random
        self._words = words
        self._blobs = blobs
        self._packed = packed
        self._good = good

    def build(self, kind: type[Message], depth: int = 0) -> Message:
        """A message with most of its fields set."""
        message = kind()
        if kind.DESCRIPTOR.full_name == "google.protobuf.Any" and self._packed:
            inner = self.build(self._random.choice(self._packed), depth + 1)
            message.type_url = f"type.googleapis.com/{inner.DESCRIPTOR.full_name}"  # type: ignore[attr-defined]
            message.value = inner.SerializeToString()  # type: ignore[attr-defined]
            return message
        for field in kind.DESCRIPTOR.fields:
            if self._random.random() < (0.8 if depth == 0 else 0.5):
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: Any, depth: int) -> None:
        if field.message_type is not None:
            if depth >= _DEEPEST:
                return
            if field.message_type.GetOptions().map_entry:
                self._fill_map(message, field, depth)
            elif field.is_repeated:
                for _ in range(self._random.choice((1, 1, 2, 3))):
                    getattr(message, field.name).append(self.build(_class_of(field.message_type), depth + 1))
            else:
                getattr(message, field.name).CopyFrom(self.build(_class_of(field.message_type), depth + 1))
        elif field.is_repeated:
            getattr(message, field.name).extend(self._value(field) for _ in range(self._random.choice((1, 2, 3, 8))))
        else:
            setattr(message, field.name, self._value(field))

    def _fill_map(self, message: Message, field: Any, depth: int) -> None:
        entry = field.message_type.fields_by_name
        key = self._value(entry["key"])
        if entry["value"].message_type is not None:
            getattr(message, field.name)[key].CopyFrom(self.build(_class_of(entry["value"].message_type), depth + 1))
        else:
            getattr(message, field.name)[key] = self._value(entry["value"])

    def _value(self, field: Any) -> Any:
        random = self._random
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return random.choice(self._blobs)
            case FieldDescriptor.CPPTYPE_STRING:
                of = field.containing_type
                names = (f"{of.name}.{field.name}", f"{of.file.package}.{field.name}", field.name)
                known = next((self._words[name] for name in names if name in self._words), ())
                return random.choice(known if known and random.random() < self._good else EVIL)
            case FieldDescriptor.CPPTYPE_BOOL:
                return random.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM:
                return random.choice([*(value.number for value in field.enum_type.values), 99])
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                return random.choice(_FLOATS) if random.random() < 0.5 else random.random()
            case kind:
                low, high = _BOUNDS[kind]
                # Small numbers are the good ones.
                value = random.randrange(8) if random.random() < 0.6 else random.choice(_INTEGERS)
                return min(max(value, low), high)


def _class_of(descriptor: Descriptor) -> type[Message]:
    return GetMessageClass(descriptor)


# Damage. What is done to the fields leaves bytes that can mostly be parsed; what is done to the bytes does not.

Field = tuple[int, int, bytes | int]
"""Number, wire type, and the value: an integer of a varint, else the bytes."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def mutate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The same with one to three things changed; `others` are messages to take parts from."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        fields = split(data)
        if fields is None or not fields or random.random() < 0.12:
            data = random.choice(_OF_BYTES)(random, data)
        else:
            data = join(random.choice(_OF_FIELDS)(random, list(fields), others, 0))
    return data


def split(data: bytes) -> list[Field] | None:
    """The fields of a message on the wire; None where the bytes are none."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if at < 0 or not number:
            return None
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            if at < 0:
                return None
            fields.append((number, kind, value))
            continue
        if kind == _LENGTH:
            length, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            return None
        if at < 0 or at + length > len(data):
            return None
        fields.append((number, kind, data[at : at + length]))
        at += length
    return fields


def join(fields: Sequence[Field]) -> bytes:
    """The bytes of fields."""
    parts = []
    for number, kind, value in fields:
        parts.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_varint(value))
        else:
            if kind == _LENGTH:
                parts.append(_varint(len(value)))
            parts.append(value)
    return b"".join(parts)


def nested(number: int, levels: int) -> bytes:
    """A field within itself, so deep."""
    data = b""
    for _ in range(levels):
        data = _varint(number << 3 | _LENGTH) + _varint(len(data)) + data
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number and where it ends; -1 where it does not."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & 2**64 - 1, at
    return 0, -1


def _twice(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    fields.insert(random.randrange(len(fields) + 1), random.choice(fields))
    return fields


def _without(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    fields.pop(random.randrange(len(fields)))
    return fields


def _shuffled(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    random.shuffle(fields)
    return fields


def _many(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    one = random.choice(fields)
    size = len(one[2]) if isinstance(one[2], bytes) else 1
    return fields + [one] * min(300, 20_000 // (size + 1))


def _unknown(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    number = random.choice((15, 1000, 19_000, 2**29 - 1))
    kind = random.choice((_VARINT, _FIXED64, _LENGTH, _FIXED32))
    sizes = {_FIXED64: 8, _FIXED32: 4, _LENGTH: random.randrange(40)}
    value = 2**64 - 1 if kind == _VARINT else random.randbytes(sizes[kind])
    return [*fields, (number, kind, value)]


def _renumbered(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    at = random.randrange(len(fields))
    fields[at] = (random.randrange(1, 16), *fields[at][1:])
    return fields


def _spliced(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    return fields + (split(random.choice(others)) or [])[:3]


def _deep(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    number = random.choice(fields)[0]
    return [*fields, (number, _LENGTH, nested(number, random.choice((20, 99, 101, 500))))]


def _changed(random: Random, fields: list[Field], others: Sequence[bytes], depth: int) -> list[Field]:
    """The value of a field: of a message within, one of its fields."""
    at = random.randrange(len(fields))
    number, kind, value = fields[at]
    new: bytes | int
    if isinstance(value, int):
        new = random.choice((0, 1, value + 1, value ^ 1 << random.randrange(64), *(n % 2**64 for n in _INTEGERS)))
    elif kind != _LENGTH:
        new = random.choice((b"\0", b"\xff", bytes([random.randrange(256)]))) * len(value)
    else:
        within = split(value)
        if within and depth < 5 and random.random() < 0.8:
            new = join(random.choice(_OF_FIELDS)(random, within, others, depth + 1))
        elif random.random() < 0.75:
            new = random.choice(EVIL).encode()
        else:
            new = random.choice(_OF_BYTES)(random, value)
    fields[at] = (number, kind, new % 2**64 if isinstance(new, int) else new)
    return fields


_OF_FIELDS: Sequence[Callable[[Random, list[Field], Sequence[bytes], int], list[Field]]] = (
    *[_changed] * 6, _twice, _without, _shuffled, _many, _unknown, _renumbered, _spliced, _deep,
)  # fmt: skip


def _flipped(random: Random, data: bytes) -> bytes:
    if not data:
        return b"\x80"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _stuffed(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.randrange(1, 12)) + data[at:]


def _replaced(random: Random, data: bytes) -> bytes:
    return random.randbytes(random.randrange(64))


_OF_BYTES: Sequence[Callable[[Random, bytes], bytes]] = (_flipped, _flipped, _cut, _stuffed, _replaced)
