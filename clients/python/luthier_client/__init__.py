"""The Python client of Luthier: `Client` for threads, `AsyncClient` for asyncio, and the exceptions of `errors`.

The names are imported when first used, so that `luthier serve` hands over to the server without loading the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier_client.async_client import AsyncClient
    from luthier_client.client import Client
    from luthier_client.errors import LuthierClientError
    from luthier_client.operation import AsyncOperation, Operation
    from luthier_client.requests import Predictions

__all__ = ["AsyncClient", "AsyncOperation", "Client", "LuthierClientError", "Operation", "Predictions"]

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncOperation": "operation",
    "Client": "client",
    "LuthierClientError": "errors",
    "Operation": "operation",
    "Predictions": "requests",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
