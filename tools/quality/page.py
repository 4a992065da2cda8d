"""`docs/quality.md`, made from `docs/quality.json`: what was measured once is shown as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import CASES, Case
from jinja2 import Environment, StrictUndefined
from runs import OTHER, TIMED, TUNED, Run

TEMPLATE = Path(__file__).with_name("page.md.j2")
SEEDS = range(10)
Record = dict[str, Any]


def page(record: Record) -> str:
    """The page for what was recorded; cases whose first seed is not whole are left out."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    shown = {
        "resamples": record["resamples"],
        "machines": _machines(record["runs"]),
        "cases": [found for case in CASES if (found := _shown(case, record))],
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(shown)


def _shown(case: Case, record: Record) -> Record | None:
    """What is to be shown of a case."""
    runs = record["runs"]
    tuned = [found for seed in SEEDS if (found := _folds(case, TUNED, seed, runs))]
    if not tuned:
        return None
    other = _folds(case, OTHER, 0, runs)
    timed = runs.get(Run(case, TIMED, 0).name, {})
    metrics: list[Record] = []
    for peer in case.peers:
        shown: Record = {"name": peer.metric, "by_hand": peer.reached}
        shown["tuned"] = [_mean(folds, peer.metric) for folds in tuned]
        if other:
            shown["other"] = _mean(other, peer.metric)
            if peer is case.peers[0] and case.id in record["better_by"]:
                shown["better_by"] = record["better_by"][case.id]
        metrics.append(shown)
    every = [run for folds in tuned for run in folds]
    found = {
        "id": case.id,
        "note": case.note,
        "task": case.task,
        "base": case.base,
        "metrics": metrics,
        "primary": every[0]["primary"],
        "training_s": sum(run["training_s"] for run in every) / len(every),
        "parity": max(abs(run["source"] - run["served"]) for run in every),
        "predictions": sum(run["predictions"] for run in every),
        "changed": sum(run["changed"] for run in every),
        **{key: timed[key] for key in ("eager_ms", "onnx_ms") if key in timed},
    }
    first = every[0]
    if "metric" in first.get("int8", {}):
        times = {key: value for key, value in timed.get("int8", {}).items() if key.endswith("_ms")}
        found["int8"] = first["int8"] | {"float_metric": first["metrics"][case.peers[0].metric]} | times
    return found


def _machines(runs: Record) -> dict[str, str]:
    """What was measured on each machine."""
    found: dict[str, dict[str, set[str]]] = {}
    for case in CASES:
        for name, run in runs.items():
            if name.startswith(f"{case.id}-"):
                kind = "timings" if f"-{TIMED}-" in name else "trainings"
                found.setdefault(run["machine"], {}).setdefault(kind, set()).add(case.id)
    said = {
        machine: "; ".join(f"{kind} of {', '.join(sorted(ids))}" for kind, ids in sorted(kinds.items()))
        for machine, kinds in found.items()
    }
    return dict(sorted(said.items()))


def _folds(case: Case, start: str, seed: int, runs: Record) -> list[Record]:
    """The records of all folds; none where one is missing."""
    found = [runs.get(Run(case, start, seed, fold).name) for fold in range(case.folds)]
    return [run for run in found if run] if all(found) else []


def _mean(folds: Sequence[Record], metric: str) -> float:
    """Over all examples of all folds, of a metric that is a mean over them, as accuracy is."""
    return sum(fold["metrics"][metric] * fold["predictions"] for fold in folds) / sum(f["predictions"] for f in folds)
