"""`python -m luthier [PROGRAM]`: the server, or another program that works on its home and database.

`luthier serve` and the commands of the other programs' names run them too.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.settings import Settings


def main() -> int:
    """Reads settings and runs the program. Exit status 2 for settings that do not hold, 1 where it fails."""
    # Nothing that an import makes is garbage, and looking for it takes an eighth of the start.
    gc.disable()
    # Before it is loaded: whoever scans ports would fill the log with its lines about handshakes that failed.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from pydantic import ValidationError

    from luthier import logs, settings

    program, flags = ("serve", sys.argv[1:])
    if flags and flags[0] in settings.OF_PROGRAMS:
        program, *flags = flags
    logs.configure()
    try:
        chosen = settings.from_flags(program, flags)
    except ValidationError as error:
        for problem in error.errors():
            field = "-".join(map(str, problem["loc"])).replace("_", "-")
            said = problem["msg"].removeprefix("Value error, ")
            print(f"luthier {program}: {'--' + field + ': ' if field else ''}{said}", file=sys.stderr)
        return 2

    import sqlalchemy as sa

    from luthier.database import NewerDatabase
    from luthier.errors import FailedPrecondition
    from luthier.redaction import redact

    redact.learn(chosen.database_url)
    try:
        return _run(program, chosen)
    except NewerDatabase as error:
        print(f"luthier {program}: {error}; start that release, or restore a backup", file=sys.stderr)
        return 1
    except FailedPrecondition as error:
        print(f"luthier {program}: {error.message}", file=sys.stderr)
        return 1
    except sa.exc.OperationalError as error:
        why = redact(str(error.orig)).strip().partition("\n")[0]
        print(f"luthier {program}: the database does not let this server in: {why}", file=sys.stderr)
        return 1
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError):
        print(f"luthier {program}: --database-url: it is no URL of SQLAlchemy's", file=sys.stderr)
        return 1


def _run(program: str, chosen: Settings) -> int:
    # Each is imported only where it runs: a server should be up at once.
    match program:
        case "worker":
            from luthier import workshop

            return workshop.run(chosen)
        case "backup" | "restore":
            from luthier import backup

            return backup.run(program, chosen)
        case _:
            from luthier import app

            return app.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
