"""Help, defaults and bounds of config fields, read from the options in their .proto."""

from __future__ import annotations

from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from luthier.errors import InvalidArgument
from luthier.v1 import options_pb2, task_pb2

_TYPES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_STRING: "string",
}


def of(message: type[Message]) -> list[FieldDescriptor]:
    """The fields of a message, in the order of its .proto."""
    # The type stubs know a second class of descriptors, of one implementation; it has the same interface.
    return cast("list[FieldDescriptor]", list(message.DESCRIPTOR.fields))


def help_of(field: FieldDescriptor) -> options_pb2.FieldHelp:
    """The `(luthier.v1.field)` option of a field, empty where it has none."""
    help: options_pb2.FieldHelp = field.GetOptions().Extensions[options_pb2.field]
    return help


def describe(message: type[Message]) -> list[task_pb2.TaskField]:
    """What GetTask says of the fields of a config or example message."""
    described = []
    for field in of(message):
        help = help_of(field)
        named = field.enum_type or field.message_type
        kind = named.full_name if named else _TYPES[field.type]
        entry = task_pb2.TaskField(
            field=field.name,
            type=f"repeated {kind}" if field.is_repeated else kind,
            help=help.help,
            default=help.default,
            required=help.required,
            choices=[v.name for v in field.enum_type.values if v.number] if field.enum_type else (),
        )
        if help.HasField("min"):
            entry.min = help.min
        if help.HasField("max"):
            entry.max = help.max
        described.append(entry)
    return described


def resolve(config: Message) -> None:
    """Fills the unset fields of a config with their defaults and checks all bounds.

    Raises InvalidArgument with an entry `config.field` for each field out of bounds.
    """
    violations = {}
    for field in of(type(config)):
        help = help_of(field)
        if field.has_presence and not field.message_type and not config.HasField(field.name):
            setattr(config, field.name, _parse(field, help.default))
        if field.is_repeated or field.message_type:
            continue
        value = getattr(config, field.name)
        if field.enum_type:
            if value not in field.enum_type.values_by_number:
                violations[f"config.{field.name}"] = f"{value} is not a value of {field.enum_type.name}"
        elif isinstance(value, int | float):
            if value != value or (help.HasField("min") and value < help.min):
                violations[f"config.{field.name}"] = f"{value:g} is below the smallest value, {help.min:g}"
            elif help.HasField("max") and value > help.max:
                violations[f"config.{field.name}"] = f"{value:g} is above the largest value, {help.max:g}"
    if violations:
        raise InvalidArgument(violations)


def _parse(field: FieldDescriptor, text: str) -> Any:
    """The value that a default in an option stands for."""
    if field.enum_type:
        return field.enum_type.values_by_name[text].number if text else 0
    if not text:
        return field.default_value
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return text == "true"
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return float(text)
        case FieldDescriptor.CPPTYPE_STRING:
            return text
        case _:
            return int(text)
