"""`python -m luthier.replica`: one more server process on the port of the one that started it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading


def main() -> int:
    """Serves until SIGTERM, or until standard input ends, since then the process that held it has gone."""
    gc.disable()
    from luthier import app, logs
    from luthier.settings import taken

    logs.configure()
    threading.Thread(target=_end_with_input, daemon=True).start()
    return app.run(taken(), shares_port=True)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
