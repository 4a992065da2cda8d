"""Measures what Luthier's defaults reach on real data, and writes docs/quality.json and docs/quality.md.

    python tools/quality [CASE …] [--seeds 3] [--no-training]

Each training runs once and is kept in `build/quality`: a run that was ended goes on where it was. The whole takes some
hours on two cores. Cases of which nothing was measured yet are left out of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from bootstrap import interval
from cases import CASES, Case
from page import page
from runs import OTHER, TIMED, TUNED, Run, Workshop

ROOT = Path(__file__).parent.parent.parent
SHARED = Path(os.environ.get("LUTHIER_REALDATA", ROOT.parent / "shared"))
RESAMPLES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case.id for case in CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-training", action="store_true", help="write the page from what there is")
    arguments = parser.parse_args()
    workshop = Workshop(ROOT / "build" / "quality", SHARED)
    chosen = [case for case in CASES if not arguments.cases or case.id in arguments.cases]
    if not arguments.no_training:
        for run in planned(chosen, arguments.seeds):
            if workshop.record(run) is None:
                record = workshop.make(run)
                print(run.name, f"{record['total_s']:.0f} s", record["metrics"], flush=True)
    target = ROOT / "docs" / "quality.json"
    record = {
        "resamples": RESAMPLES,
        "machine": machine(),
        "cases": [found for case in CASES if (found := summary(workshop, case))],
    }
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    target.with_suffix(".md").write_text(page(record), encoding="utf-8")


def planned(cases: Iterable[Case], seeds: int) -> Iterable[Run]:
    """The runs in the order of their worth: one seed of each case, timings, what it is compared with, more seeds."""
    cases = list(cases)
    timed = (Run(case, TIMED, 0) for case in cases if case.base)

    def runs(start: str, seed: int) -> Iterable[Run]:
        return (Run(case, start, seed, fold) for case in cases for fold in range(case.folds))

    return chain(runs(TUNED, 0), timed, runs(OTHER, 0), *(runs(TUNED, seed) for seed in range(1, seeds)))


def summary(workshop: Workshop, case: Case) -> dict[str, Any] | None:
    """What is to be shown of a case; None where its first seed is not whole."""
    tuned = [found for seed in range(10) if (found := pooled(workshop, case, TUNED, seed))]
    if not tuned:
        return None
    other = pooled(workshop, case, OTHER, 0)
    timed = workshop.record(Run(case, TIMED, 0)) or {}
    task = workshop.task(case)
    metrics: list[dict[str, Any]] = []
    for peer in case.peers:
        shown: dict[str, Any] = {"name": peer.metric, "by_hand": peer.reached, "limit": peer.limit}
        shown["tuned"] = [one["metrics"][peer.metric] for one in tuned]
        if other:
            shown["other"] = other["metrics"][peer.metric]
            if peer is case.peers[0]:
                shown["better_by"] = compared(workshop, case, peer.metric)
        metrics.append(shown)
    first = tuned[0]
    found = {
        "id": case.id,
        "note": case.note,
        "task": case.task,
        "base": case.base,
        "metrics": metrics,
        "primary": task.primary_metric,
        **{key: first[key] for key in ("training_s", "source", "served", "predictions", "changed")},
        **{key: timed[key] for key in ("eager_ms", "onnx_ms") if key in timed},
    }
    if "int8" in first:
        times = {key: value for key, value in timed.get("int8", {}).items() if key.endswith("_ms")}
        found["int8"] = first["int8"] | times
    return found


def pooled(workshop: Workshop, case: Case, start: str, seed: int) -> dict[str, Any] | None:
    """The records of all folds as one: metrics over all their predictions, counts added, the rest of the first."""
    runs = [Run(case, start, seed, fold) for fold in range(case.folds)]
    records = [workshop.record(run) for run in runs]
    if not all(records):
        return None
    kept = [record for record in records if record]
    found = dict(kept[0])
    task = workshop.task(case)
    for key in ("predictions", "changed"):
        found[key] = sum(record[key] for record in kept)
    for key in ("training_s", "source"):
        found[key] = sum(record[key] for record in kept) / len(kept)
    if case.folds > 1:
        examples, predictions = whole(workshop, runs)
        found["metrics"] = dict(task.score(examples, predictions).metrics)
    found["served"] = sum(record["metrics"][task.primary_metric] for record in kept) / len(kept)
    if "metric" in found.get("int8", {}):
        found["int8"] = found["int8"] | {"float_metric": kept[0]["metrics"][case.peers[0].metric]}
    return found


def whole(workshop: Workshop, runs: list[Run]) -> tuple[pa.Table, list[Any]]:
    """Test examples and predictions of all folds."""
    examples = pa.concat_tables([workshop.test(run.case, run.fold) for run in runs])
    return examples, [prediction for run in runs for prediction in workshop.predictions(run)]


def compared(workshop: Workshop, case: Case, metric: str) -> list[float]:
    """By how much the tuned model is better, computed once for the same runs."""
    path = workshop.directory / "runs" / f"{case.id}-interval-{RESAMPLES}.json"
    runs = {start: [Run(case, start, 0, fold) for fold in range(case.folds)] for start in (TUNED, OTHER)}
    made = max(workshop.path(run).stat().st_mtime for run in chain(*runs.values()))
    if not path.exists() or path.stat().st_mtime < made:
        (examples, tuned), (_, other) = whole(workshop, runs[TUNED]), whole(workshop, runs[OTHER])
        found = interval(workshop.task(case), metric, examples, tuned, other, RESAMPLES)
        path.write_text(json.dumps(found), encoding="utf-8")
    return list(json.loads(path.read_text(encoding="utf-8")))


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "onnxruntime"))
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{len(os.sched_getaffinity(0))} cores of an {model}, Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    main()
