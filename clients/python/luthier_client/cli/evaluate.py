"""`luthier evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from luthier.v1.evaluation_pb2 import ClassScores, ConfusionMatrix, Evaluation
from luthier_client.cli import output
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse, command

MAX_CLASSES = 20
MAX_CONFUSIONS = 10


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    command(app, "evaluate")(evaluate)


def evaluate(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS|/VERSION]")],
    dataset: Annotated[str, typer.Option(help="Data set, or one of its versions as NAME/VERSION.")],
    split: Annotated[str, typer.Option(help="Part to score on: train, validation or test.")] = "test",
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Where to write the report: an HTML page with curves and examples."
        ),
    ] = None,
) -> None:
    """Score a served model on a part of a data set."""
    if report and not report.absolute().parent.is_dir():
        raise WrongUse(f"--report {report}: there is no folder {report.parent}")
    evaluation = follow(session, session.client.evaluate(model, dataset=dataset, split=split))
    session.show(session.document(evaluation), *described(evaluation))
    if report:
        session.client.download_report(evaluation.name, report)
        session.note(f"the report is in {report}")


def described(evaluation: Evaluation) -> list[Table]:
    """Metrics, the classes that do worst, and what is taken for what."""
    tables = [
        output.facts(
            {
                "model": output.short(evaluation.model_version),
                "data set": f"{output.short(evaluation.dataset_version)}, {evaluation.split}",
                "examples": evaluation.num_examples,
            }
        ),
        output.table("metric", "value", rows=sorted(evaluation.metrics.items())),
    ]
    if evaluation.per_class:
        tables.append(classes(list(evaluation.per_class)))
    if confused := confusions(evaluation.confusion_matrix):
        tables.append(output.table("is", "taken for", "times", title="Confusions", rows=confused[:MAX_CONFUSIONS]))
    return tables


def classes(scores: list[ClassScores]) -> Table:
    """The scores of classes, worst F1 first (or by the first metric where there is no F1)."""
    metrics = sorted({name for score in scores for name in score.metrics})
    key = "f1" if "f1" in metrics else metrics[0]
    ranked = sorted(scores, key=lambda score: (score.metrics[key], score.label))[:MAX_CLASSES]
    more = len(scores) - len(ranked)
    return output.table(
        "class",
        "examples",
        *metrics,
        title="Classes, worst first" + (f" ({more} better ones not shown)" if more else ""),
        rows=[(score.label, score.support, *(score.metrics[name] for name in metrics)) for score in ranked],
    )


def confusions(matrix: ConfusionMatrix) -> list[tuple[str, str, int]]:
    """(true class, predicted class, count) of what was confused, most often first."""
    labels = matrix.labels
    found = [
        (labels[index // len(labels)], labels[index % len(labels)], count)
        for index, count in enumerate(matrix.counts)
        if count and index // len(labels) != index % len(labels)
    ]
    return sorted(found, key=lambda confusion: (-confusion[2], confusion[:2]))
