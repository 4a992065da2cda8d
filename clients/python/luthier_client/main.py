"""The command `luthier`."""

from __future__ import annotations

import sys

from luthier_client import server


def main() -> None:
    """Runs the command line of this process and exits with its status."""
    if sys.argv[1:2] == ["serve"]:
        # Before anything else is imported: a server should be up at once.
        sys.exit(server.serve(sys.argv[2:]))
    from luthier_client.cli.app import app

    app(prog_name="luthier")


if __name__ == "__main__":
    main()
