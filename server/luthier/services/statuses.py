"""Statuses that fit into what gRPC carries behind a call: 8 kB of metadata, or the caller sees none of it."""

from __future__ import annotations

from google.rpc import error_details_pb2, status_pb2

MOST_MESSAGE_BYTES = 1500
"""Of the message as it is sent, where each byte beyond ASCII takes three, and once more within the details."""
MOST_DETAILS_BYTES = 2500
"""Of the details, which are sent in base64."""
_MOST_TEXT = 300
"""Characters of a single text within the details."""


def fitting(status: status_pb2.Status) -> status_pb2.Status:
    """The same, or where it is too long the beginning of its texts and as many of its violations as there is room for.

    Texts repeat what a caller sent, and a call may have a thousand bad instances.
    """
    if len(status.message) * 12 <= MOST_MESSAGE_BYTES and status.ByteSize() <= MOST_DETAILS_BYTES:
        return status
    message = _cut(status.message)
    fitted = status_pb2.Status(code=status.code, message=message)
    room = MOST_DETAILS_BYTES
    for packed in status.details:
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(bad):
            fitted.details.add().Pack(_few(bad, room - 500))
        elif packed.ByteSize() <= room:
            fitted.details.append(packed)
        else:
            continue
        room -= fitted.details[-1].ByteSize()
    return fitted


def _cut(text: str) -> str:
    """The text, or as much of it from its beginning as may be sent."""
    sent = 0
    for end, character in enumerate(text):
        # As gRPC writes it: what is not plain ASCII as % and two digits for each byte.
        sent += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if sent > MOST_MESSAGE_BYTES:
            return f"{text[:end]}…"
    return text


def _few(bad: error_details_pb2.BadRequest, room: int) -> error_details_pb2.BadRequest:
    """The first violations, with the beginnings of their texts, and how many more there are."""
    few = error_details_pb2.BadRequest()
    for index, violation in enumerate(bad.field_violations):
        short = error_details_pb2.BadRequest.FieldViolation(
            field=violation.field[:_MOST_TEXT], description=violation.description[:_MOST_TEXT]
        )
        room -= short.ByteSize() + 4
        if room < 0:
            few.field_violations.add(field="…", description=f"and {len(bad.field_violations) - index} more")
            break
        few.field_violations.append(short)
    return few
