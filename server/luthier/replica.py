"""`python -m luthier.replica`: one more server process on the port of the one that started it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading


def main() -> int:
    """Serves until SIGTERM, or until standard input ends, since then the process that held it has gone.

    The settings are its first line: they hold passwords, and anybody may read a process's arguments.
    """
    gc.disable()
    from luthier import app, logs
    from luthier.settings import Settings

    logs.configure()
    settings = Settings.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    return app.run(settings, shares_port=True)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
