"""Messages as plain values, for `json.dumps` and for tables."""

from __future__ import annotations

import base64
import math
from typing import Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from luthier_client.errors import NotFound
from luthier_client.schema import Schema, descriptor_of


def document(message: Message, schema: Schema) -> dict[str, Any]:
    """A message as a dictionary with the field names of its proto.

    Unlike protobuf's own JSON it has every field that has no presence, 64-bit numbers as numbers, and null for a number
    that is not finite. An Any is resolved; where the server no longer has its type, only `@type` is left.
    """
    return {
        field.name: _value(field, getattr(message, field.name), schema)
        for field in descriptor_of(message).fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value(field: FieldDescriptor, value: Any, schema: Schema) -> Any:
    if not field.is_repeated:
        return _single(field, value, schema)
    if field.message_type and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _single(of, value[key], schema) for key in sorted(value)}
    return [_single(field, element, schema) for element in value]


def _single(field: FieldDescriptor, value: Any, schema: Schema) -> Any:
    if isinstance(value, AnyMessage):
        return _resolved(value, schema)
    if field.message_type:
        well_known = field.message_type.file.package == "google.protobuf"
        return json_format.MessageToDict(value) if well_known else document(value, schema)
    if field.enum_type:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return _number(value, single=field.type == FieldDescriptor.TYPE_FLOAT)
    return value


def _resolved(packed: AnyMessage, schema: Schema) -> dict[str, Any]:
    head = {"@type": packed.TypeName()}
    try:
        return head | document(schema.unpack(packed), schema)
    except NotFound:
        return head


def _number(value: float, *, single: bool) -> float | None:
    """A finite number without the digits that a 32-bit float does not hold."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.7g}") if single else value
