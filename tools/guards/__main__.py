"""Breaks guards one by one, each in a copy of the server, and shows that the test of it fails then.

    make guards [ARGS="publish lease"]
    python tools/guards --check

Arguments are words of which a guard's name must have one. Exits with 1 where a test passes although its guard is
broken, or where the code that is to be broken has changed, which is all that --check looks at. Tests of state run on
SQLite here, but for those of PostgreSQL alone.
"""

from __future__ import annotations

import sys
import time

import access
import deploy
import durability
import front
import harm
import rollouts
import serving
from guard import verdict_on

GUARDS = [
    *harm.GUARDS,
    *access.GUARDS,
    *front.GUARDS,
    *rollouts.GUARDS,
    *durability.GUARDS,
    *serving.GUARDS,
    *deploy.GUARDS,
]


def main() -> int:
    words = sys.argv[1:]
    if words == ["--check"]:
        missing = [problem for guard in GUARDS if (problem := guard.problem())]
        for problem in missing:
            print(problem)
        return int(bool(missing))
    wrong = 0
    for guard in GUARDS:
        if not words or any(word in guard.name for word in words):
            started = time.monotonic()
            verdict = verdict_on(guard)
            wrong += not verdict.startswith("fails")
            print(f"{guard.name}\n    broken, its test {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
