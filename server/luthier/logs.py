"""Logs as JSON lines on standard error, and errors that nobody foresaw."""

from __future__ import annotations

import logging
import sys
import threading
import uuid
from typing import Any

import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from structlog.typing import EventDict, WrappedLogger

from luthier.errors import DOMAIN
from luthier.redaction import redact
from luthier.telemetry import calls

log = structlog.get_logger()


def configure(**always: object) -> None:
    """Sends structlog's events and warnings of libraries to standard error, one JSON object a line.

    Each line of a call has its request id, and all have what is `always` to be there.
    """

    def named(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        call = calls.current.get()
        return {**event, **always} if call is None else {**event, **always, "request_id": call.request_id}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            _without_secrets,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Through()])
    sys.excepthook = _end
    threading.excepthook = lambda ended: _end(ended.exc_type, ended.exc_value or ended.exc_type(), None)


def _without_secrets(_logger: WrappedLogger, _method: str, line: Any) -> str:
    return redact(line)


def _end(kind: type[BaseException], error: BaseException, _trace: object) -> None:
    """Logs what nobody caught; Python itself would print it as it is, secrets included."""
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    log.critical("ended by an error", error_id=uuid.uuid4().hex[:12], exc_info=error)


class _Through(logging.Handler):
    """Passes on what libraries log by Python's own means."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs a record."""
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def unexpected(error: BaseException, doing: str) -> status_pb2.Status:
    """Logs an error with its trace under a fresh id, and returns the status that names the id and nothing else."""
    id = uuid.uuid4().hex[:12]
    log.error("unexpected error", error_id=id, doing=doing, exc_info=error)
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error {id}; the server's log explains it")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": id}))
    return status
