"""Measures what Luthier's defaults reach on real data, and writes docs/quality.json and docs/quality.md.

    python tools/quality [CASE …] [--seeds 3] [--check]

Each run is recorded in docs/quality.json, with the machine that it was made on, and is not made again: what was ended
goes on where it was, on another machine too. To measure something again, take its runs out of that file. What the runs
predict is kept in `build/quality`. The whole takes hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from bootstrap import interval
from cases import CASES
from page import page
from runs import Run, Workshop, machine, planned

ROOT = Path(__file__).parent.parent.parent
SHARED = Path(os.environ.get("LUTHIER_REALDATA", ROOT.parent / "shared"))
RECORD = ROOT / "docs" / "quality.json"
PAGE = RECORD.with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case.id for case in CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="only see that the page shows what is recorded")
    arguments = parser.parse_args()
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    if arguments.check:
        is_that = PAGE.read_text(encoding="utf-8") == page(record)
        raise SystemExit(None if is_that else f"{PAGE} does not show what {RECORD} records")
    workshop = Workshop(ROOT / "build" / "quality", SHARED)
    chosen = [case for case in CASES if not arguments.cases or case.id in arguments.cases]
    for run in planned(chosen, arguments.seeds):
        if run.name not in record["runs"] or wanted(workshop, record, run):
            made = workshop.make(run)
            print(run.name, f"{made['training_s']:.0f} s", made["metrics"], flush=True)
            record["runs"][run.name] = {"machine": machine(), **made}
            compare(workshop, record, run)
            write(record)
    write(record)


def wanted(workshop: Workshop, record: dict[str, Any], run: Run) -> bool:
    """Whether an interval is still to be made, for which the run's predictions are missing here."""
    return run in chain(*run.compared()) and run.case.id not in record["better_by"] and not workshop.predicted(run)


def compare(workshop: Workshop, record: dict[str, Any], run: Run) -> None:
    """Records by how much the tuned model of the run's case is better, once both sides have predicted every fold."""
    tuned, other = run.compared()
    if run not in chain(tuned, other):
        return
    # An interval of a run that was made again would be that of the former one.
    record["better_by"].pop(run.case.id, None)
    if all(map(workshop.predicted, chain(tuned, other))):
        task, metric = workshop.task(run.case), run.case.peers[0].metric
        examples = pa.concat_tables([workshop.test(run.case, one.fold) for one in tuned])
        sides = [list(chain.from_iterable(map(workshop.predictions, side))) for side in (tuned, other)]
        record["better_by"][run.case.id] = interval(task, metric, examples, *sides, record["resamples"])


def write(record: dict[str, Any]) -> None:
    record["runs"] = dict(sorted(record["runs"].items()))
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
