"""A gRPC server in this process, for tests of what a client does when a server misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc


@contextmanager
def serving(*register: Callable[[grpc.Server], object]) -> Iterator[str]:
    """Serves what the functions register, and gives the address."""
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        for add in register:
            add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
