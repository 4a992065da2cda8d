"""`luthier evaluate` and `luthier evaluations`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.table import Table

from luthier.v1.evaluation_pb2 import ClassScores, ConfusionMatrix, Evaluation
from luthier_client.cli import output
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse, command

evaluations = typer.Typer(help="What evaluations found, as long as they are kept.", no_args_is_help=True)

MAX_CLASSES = 20
MAX_CONFUSIONS = 10

Report: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", dir_okay=False, help="Where to write the report: an HTML page with curves and examples."
    ),
]
"""An option."""


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    command(app, "evaluate")(evaluate)
    app.add_typer(evaluations, name="evaluations")


def evaluate(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS|/VERSION]")],
    dataset: Annotated[str, typer.Option(help="Data set, or one of its versions as NAME/VERSION.")],
    split: Annotated[str, typer.Option(help="Part to score on: train, validation or test.")] = "test",
    report: Report = None,
) -> None:
    """Score a served model on a part of a data set."""
    check_report(report)
    evaluation = follow(session, session.client.evaluate(model, dataset=dataset, split=split))
    session.show(session.document(evaluation), *described(evaluation))
    save_report(session, evaluation, report)


@command(evaluations, "list")
def list_evaluations(
    session: Session,
    model: Annotated[str, typer.Option(help="Only those of a model, or of one of its versions as MODEL/VERSION.")] = "",
    dataset: Annotated[str, typer.Option(help="Only those on a data set, NAME or NAME/VERSION.")] = "",
) -> None:
    """List evaluations, newest first."""
    found = list(session.client.list_evaluations(model, dataset))
    session.show(
        [session.document(evaluation) for evaluation in found],
        output.table(
            "evaluation",
            "model",
            "data set",
            "part",
            "metrics",
            "made",
            rows=[
                (
                    output.last(evaluation.name),
                    output.short(evaluation.model_version),
                    output.short(evaluation.dataset_version),
                    evaluation.split,
                    dict(sorted(evaluation.metrics.items())),
                    output.moment(evaluation.create_time),
                )
                for evaluation in found
            ],
        ),
    )


@command(evaluations, "show")
def show(session: Session, evaluation: str, report: Report = None) -> None:
    """Show what an evaluation found, and save its report."""
    check_report(report)
    found = session.client.get_evaluation(evaluation)
    session.show(session.document(found), *described(found))
    save_report(session, found, report)


def check_report(report: Path | None) -> None:
    """Raises WrongUse where a report could not be written, before anything else is done."""
    if report and not report.absolute().parent.is_dir():
        raise WrongUse(f"--report {report}: there is no folder {report.parent}")


def save_report(session: Session, evaluation: Evaluation, report: Path | None) -> None:
    """Downloads a report to a file, where one is named."""
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
