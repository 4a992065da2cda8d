"""`luthier drift` and `luthier retune`: how a model does since it answers, and tuning it on what turned out true."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from luthier.v1.monitoring_pb2 import Calibration, Drift, FeatureDrift, LiveScore
from luthier_client.cli import output
from luthier_client.cli.models import described as described_version
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse, command
from luthier_client.cli.tune import settings, summary

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_BINS = 16
_SHARES = 3
_VERDICTS = {
    Drift.VERDICT_TOO_FEW: "too few predictions to tell",
    Drift.VERDICT_STEADY: "steady",
    Drift.VERDICT_ALARM: "DRIFT",
}


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    command(app, "drift")(drift)
    command(app, "retune")(retune)


def drift(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS|/VERSION]")],
    window: Annotated[str, typer.Option(help="How far back to look: 90s, 30m, 6h, 1d, 2w.")] = "1d",
    history: Annotated[
        bool, typer.Option("--history", help="What the server found by itself, window by window, instead.")
    ] = False,
) -> None:
    """Compare a model's live predictions with those of the test part that it was published with."""
    if history:
        found = list(session.client.list_drift_windows(model))
        session.show([session.document(one) for one in found], windows(found))
        return
    one = session.client.get_drift(model, window=span(window, "--window"))
    session.show(session.document(one), *described(one))


def retune(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS|/VERSION]")],
    since: Annotated[str, typer.Option(help="Predictions of the last 6h, 7d, 2w. [since its publication]")] = "",
    dataset: Annotated[str, typer.Option(help="Data set that gets a version. [MODEL-feedback]")] = "",
    feedback_only: Annotated[
        bool, typer.Option("--feedback-only", help="Leave out the examples that it was tuned on.")
    ] = False,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting other than its own. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, data, settings and machine: same weights.")] = 0,
    tolerance: Annotated[
        float | None, typer.Option(help="How much of its metric the exported model may lose. [0.005]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Serve 8-bit weights where they predict as well.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the operation's name and do not wait.")] = False,
) -> None:
    """Tune a model further on its live predictions whose labels came back, and publish it as its next version."""
    task = session.client.get_task(session.client.get_model(model).task)
    operation = session.client.fine_tune_from_feedback(
        model,
        dataset_id=dataset,
        since=datetime.now(UTC) - span(since, "--since") if since else None,
        feedback_only=feedback_only,
        config=settings(session, task, set) if set else None,
        seed=seed,
        parity_tolerance=tolerance,
        int8=int8,
    )
    if detach:
        session.show({"operation": operation.name}, f"{operation.name}\nluthier operations watch {operation.name}")
        return
    version = follow(session, operation)
    session.show(summary(session, version), *described_version(version))


def span(text: str, option: str) -> timedelta:
    """A length of time such as `6h`; raises WrongUse."""
    if match := _SPAN.fullmatch(text):
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    raise WrongUse(f"{option} {text}: a number with s, m, h, d or w behind it, such as 6h")


def described(found: Drift) -> list[Table]:
    """The verdict, each feature with what was and what is, and the scores by feedback."""
    tables = [
        output.facts(
            {
                "model": output.short(found.model_version),
                "window": f"{output.moment(found.start_time)} to {output.moment(found.end_time)}",
                "predictions": found.num_predictions,
                "verdict": _VERDICTS.get(found.verdict, "unknown"),
            }
        )
    ]
    if found.features:
        tables.append(features(found.features))
    if found.HasField("live"):
        tables.append(live(found.live))
    if found.HasField("calibration"):
        tables.append(calibration(found.calibration))
    return tables


def features(found: Sequence[FeatureDrift]) -> Table:
    """One row a feature: those that moved come first."""
    return output.table(
        "feature",
        "moved",
        "by",
        "p",
        "at publication",
        "now",
        rows=[
            (
                one.name,
                "yes" if one.alarm else "",
                f"{one.statistic} {one.value:.2f}",
                f"{one.p_value:.2g}",
                *((shares(one, "reference"), shares(one, "window")) if one.shares else histograms(one)),
            )
            for one in found
        ],
    )


def histograms(one: FeatureDrift) -> tuple[str, str]:
    """The profile's numbers and the window's, drawn over the same range, each with its median."""
    both = [*one.reference_deciles, *one.window_deciles]
    if not both:
        return "", ""
    low, high = min(both), max(both)
    return tuple(  # type: ignore[return-value]
        f"{histogram(deciles, low, high)} {output.number(deciles[5])}"
        for deciles in (one.reference_deciles, one.window_deciles)
    )


def histogram(deciles: Sequence[float], low: float, high: float) -> str:
    """A line of blocks: how much lies where between `low` and `high`, by the eleven deciles."""
    width = (high - low) / _BINS or 1.0
    cumulated = [_below(deciles, low + width * edge) for edge in range(_BINS + 1)]
    cumulated[-1] = 1.0
    masses = [after - before for before, after in itertools.pairwise(cumulated)]
    top = max(masses) or 1.0
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, -int(-mass / top * (len(_BLOCKS) - 1) // 1))] for mass in masses)


def _below(deciles: Sequence[float], value: float) -> float:
    """The share of values below one, by the line through the deciles."""
    place = bisect.bisect_left(deciles, value)
    if place == 0:
        return 0.0
    if place == len(deciles):
        return 1.0
    step = deciles[place] - deciles[place - 1]
    part = (value - deciles[place - 1]) / step if step else 0.0
    return (place - 1 + part) / (len(deciles) - 1)


def shares(one: FeatureDrift, side: str) -> str:
    """The categories whose shares differ most, with those of one side."""
    apart = sorted(one.shares, key=lambda share: -abs(share.reference - share.window))[:_SHARES]
    return ", ".join(f"{share.category} {getattr(share, side):.0%}" for share in apart)


def live(score: LiveScore) -> Table:
    """The metric by feedback beside that of the publication."""
    return output.facts(
        {
            f"{score.metric} by {score.num_labels:,} labels": f"{output.number(score.value)} "
            f"({output.number(score.low)} to {output.number(score.high)})",
            "at publication": score.published,
            "fell": "yes" if score.worse else "",
        }
    )


def calibration(found: Calibration) -> Table:
    """Confidence against accuracy, bin by bin."""
    return output.table(
        "confidence",
        "right",
        "predictions",
        title=f"Calibration: {found.expected_error:.1%} apart",
        rows=[(f"{one.confidence:.0%}", f"{one.accuracy:.0%} {_bar(one.accuracy)}", one.count) for one in found.bins],
    )


def windows(found: Sequence[Drift]) -> Table:
    """One row a window."""
    return output.table(
        "until",
        "predictions",
        "verdict",
        "moved",
        "score",
        rows=[
            (
                output.moment(one.end_time),
                one.num_predictions,
                _VERDICTS.get(one.verdict, "unknown"),
                [feature.name for feature in one.features],
                f"{one.live.metric} {output.number(one.live.value)}" if one.HasField("live") else "",
            )
            for one in found
        ],
    )


def _bar(share: float) -> str:
    return "█" * round(share * 10)
