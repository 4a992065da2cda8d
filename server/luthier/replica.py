"""`python -m luthier.replica`: one more server process on the port of the one that started it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading


def main() -> int:
    """Serves until SIGTERM, or until standard input ends, since then the process that held it has gone.

    Its first lines are the settings and, with TLS, the certificate: arguments can be read by every user of a machine.
    """
    gc.disable()
    from luthier import app, logs
    from luthier.certificates import Shown
    from luthier.settings import Settings

    logs.configure()
    settings = Settings.model_validate_json(_line_of_input())
    shown = Shown.from_json(_line_of_input().decode()) if settings.tls_certificate else None
    threading.Thread(target=_end_with_input, daemon=True).start()
    return app.run(settings, shares_port=True, shown=shown)


# Python's own object of standard input has a lock that a thread which waits for the end holds at the process's end.


def _line_of_input() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (more := os.read(0, 1)):
        line += more
    return line


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
