"""`python -m luthier`: the server. `luthier serve` runs it too."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Reads settings and serves. Exit status 2 for settings that do not hold."""
    # Nothing that an import makes is garbage, and looking for it takes an eighth of the start.
    gc.disable()
    from pydantic import ValidationError

    from luthier import app, logs, settings

    logs.configure()
    try:
        chosen = settings.from_flags(sys.argv[1:])
    except ValidationError as error:
        for problem in error.errors():
            field = "-".join(map(str, problem["loc"])).replace("_", "-")
            print(f"luthier serve: {'--' + field + ': ' if field else ''}{problem['msg']}", file=sys.stderr)
        return 2
    return app.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
