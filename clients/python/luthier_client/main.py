"""The command `luthier`."""

from __future__ import annotations

import os
import sys

from luthier_client import server


def main() -> None:
    """Runs the command line of this process and exits with its status."""
    if sys.argv[1:2] and sys.argv[1] in server.PROGRAMS:
        # Before anything else is imported: a server should be up at once.
        sys.exit(server.become(sys.argv[1], sys.argv[2:]))
    # What gRPC says of a handshake that failed is said again, readably, by the command.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from luthier_client.cli.app import app

    try:
        app(prog_name="luthier")
    finally:
        _flush()


def _flush() -> None:
    """Writes what is left, or drops it where nobody reads any more, before the interpreter tries and complains."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
