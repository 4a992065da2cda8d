"""`python -m luthier.web ORDERS`: answers HTTP until SIGTERM, or until the server that started it has gone."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from luthier import logs
from luthier.certificates import Certificates, Files
from luthier.web.application import application
from luthier.web.listener import Listener
from luthier.web.orders import Orders
from luthier.web.upstream import Upstream


def main() -> int:
    """Serves."""
    # uvicorn sends itself the signals again that ended it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    logs.configure(process="http")
    # What strangers send that is no HTTP is their mistake, and would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    orders = Orders.read(sys.argv[1])
    threading.Thread(target=_end_with_input, args=(orders.directory,), daemon=True).start()
    asyncio.run(_serve(orders))
    return 0


async def _serve(orders: Orders) -> None:
    services = FileDescriptorSet.FromString(Path(orders.descriptors).read_bytes())
    upstream = Upstream(orders.upstream, services, orders.max_request_bytes)
    certificates = _certificates(orders)
    context = certificates.context() if certificates else None
    app = application(upstream, orders.max_request_bytes, orders.origins)
    listener = _Announcing(app, socket.socket(fileno=orders.socket), context, orders.drain_s)
    gc.freeze()
    if certificates:
        certificates.start()
    await listener.serve()
    if certificates:
        certificates.stop()
    await upstream.close()


class _Announcing(Listener):
    """Says on standard output that it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets)
        print("listening", flush=True)


def _certificates(orders: Orders) -> Certificates | None:
    if not orders.certificate:
        return None
    client_ca = Path(orders.client_ca) if orders.client_ca else None
    return Certificates(Files(Path(orders.certificate), Path(orders.key), client_ca))


def _end_with_input(directory: str) -> None:
    """Waits for the end of standard input, which comes when the server has gone, however it ended."""
    # Not by Python's own file, whose lock would stop the end of the process.
    while os.read(0, 4096):
        pass
    shutil.rmtree(directory, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
