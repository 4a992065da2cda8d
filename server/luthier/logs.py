"""Logs as JSON lines on standard error, and errors that nobody foresaw."""

from __future__ import annotations

import logging
import sys
import uuid

import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2

from luthier.errors import DOMAIN

log = structlog.get_logger()


def configure() -> None:
    """Sends structlog's events to standard error, one JSON object a line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def unexpected(error: BaseException, doing: str) -> status_pb2.Status:
    """Logs an error with its trace under a fresh id, and returns the status that names the id and nothing else."""
    id = uuid.uuid4().hex[:12]
    log.error("unexpected error", error_id=id, doing=doing, exc_info=error)
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error {id}; the server's log explains it")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": id}))
    return status
