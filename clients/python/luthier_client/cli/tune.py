"""`luthier tune`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.v1.model_pb2 import ModelVersion
from luthier.v1.task_pb2 import Task, TaskField
from luthier_client.cli import output
from luthier_client.cli.catalogue import fields
from luthier_client.cli.datasets import pairs
from luthier_client.cli.models import described
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse, command


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    command(app, "tune")(tune)


def tune(
    session: Session,
    model: str,
    task: Annotated[str, typer.Option(help="Id of the task, as in `luthier tasks list`.")],
    dataset: Annotated[str, typer.Option(help="Data set, or one of its versions as NAME/VERSION.")],
    base: Annotated[
        str, typer.Option(help="Base, or a model version as MODEL/VERSION. [the task's first suggestion]")
    ] = "",
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting, as in `luthier tasks show`. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, data, settings and machine: same weights.")] = 0,
    tolerance: Annotated[
        float | None, typer.Option(help="How much of its metric the exported model may lose. [0.005]")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Serve 8-bit weights, smaller and quicker, where they predict as well.")
    ] = False,
    int8_tolerance: Annotated[
        float | None, typer.Option(help="How much of its metric int8 may lose to be served; implies --int8. [0.01]")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the operation's name and do not wait.")] = False,
) -> None:
    """Fine-tune a base on a data set, prove the result, and publish it as the next version of a model."""
    operation = session.client.fine_tune(
        model,
        task=task,
        dataset=dataset,
        base=base,
        config=settings(session, session.client.get_task(task), set or []),
        seed=seed,
        parity_tolerance=tolerance,
        int8=int8,
        int8_tolerance=int8_tolerance,
    )
    if detach:
        session.show({"operation": operation.name}, f"{operation.name}\nluthier operations watch {operation.name}")
        return
    version = follow(session, operation)
    session.show(summary(session, version), *described(version))


def settings(session: Session, task: Task, texts: list[str]) -> dict[str, Any]:
    """The values of `--set` options by the types of the task's fields; raises WrongUse after listing those."""
    known = {field.field: field for field in task.config_fields}
    given = pairs(texts, "--set")
    if unknown := sorted(given.keys() - known.keys()):
        session.err.print(fields(f"Settings of {output.last(task.name)}", task.config_fields))
        raise WrongUse(f"{output.last(task.name)} has no setting {', '.join(unknown)}")
    return {name: setting(known[name], text) for name, text in given.items()}


def setting(field: TaskField, text: str) -> Any:
    """A value as protobuf's JSON wants it, which takes numbers and enums as text but no flags and no lists."""
    if field.type.startswith("repeated "):
        element = TaskField(field=field.field, type=field.type.removeprefix("repeated "))
        return [setting(element, part) for part in text.split(",")]
    if field.type == "bool":
        if text.lower() not in ("true", "false"):
            raise WrongUse(f"--set {field.field}={text}: true or false")
        return text.lower() == "true"
    return text


def summary(session: Session, version: ModelVersion) -> dict[str, Any]:
    """What `--json` prints."""
    document = session.document(version)
    return {
        "model": "/".join(version.name.split("/")[:2]),
        "model_version": version.name,
        **{
            key: document[key]
            for key in ("metrics", "parity", "variants", "training", "config", "base", "dataset_version", "seed")
            if key in document
        },
    }
