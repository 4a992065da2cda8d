"""`python -m luthier`: the server, and with `worker` before the flags a process that only does operations.

`luthier serve` and `luthier worker` run them too.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Reads settings and serves, or works. Exit status 2 for settings that do not hold."""
    # Nothing that an import makes is garbage, and looking for it takes an eighth of the start.
    gc.disable()
    from pydantic import ValidationError

    from luthier import logs, settings

    works = sys.argv[1:2] == ["worker"]
    program, kind = ("worker", settings.WorkerSettings) if works else ("serve", settings.Settings)
    logs.configure()
    try:
        chosen = settings.from_flags(kind, sys.argv[1 + works :])
    except ValidationError as error:
        for problem in error.errors():
            field = "-".join(map(str, problem["loc"])).replace("_", "-")
            print(f"luthier {program}: {'--' + field + ': ' if field else ''}{problem['msg']}", file=sys.stderr)
        return 2
    from luthier.database import NewerDatabase

    try:
        if works:
            from luthier import workshop

            return workshop.run(chosen)
        from luthier import app

        return app.run(chosen)
    except NewerDatabase as error:
        print(f"luthier {program}: {error}; start that release, or restore a backup", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
