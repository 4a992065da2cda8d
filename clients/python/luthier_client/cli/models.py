"""`luthier models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from luthier.v1.model_pb2 import ModelVersion
from luthier_client import names
from luthier_client.cli import output, rollouts
from luthier_client.cli.session import Session, WrongUse, command

models = typer.Typer(help="Models, their versions and aliases.", no_args_is_help=True)
alias = typer.Typer(help="The names that say which version answers.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    models.add_typer(alias, name="alias")
    app.add_typer(models, name="models")


@command(models, "list")
def list_models(session: Session, task: str = "") -> None:
    """List the models."""
    found = list(session.client.list_models(task))
    session.show(
        [session.document(model) for model in found],
        output.table(
            "model",
            "task",
            "newest version",
            "aliases",
            "made",
            rows=[
                (
                    output.last(model.name),
                    model.task,
                    output.short(model.latest_version.name),
                    [f"{output.last(a.name)} → {output.last(a.model_version)}" for a in model.aliases],
                    output.moment(model.create_time),
                )
                for model in found
            ],
        ),
    )


@command(models, "show")
def show(session: Session, model: str) -> None:
    """Show the version that MODEL, MODEL@ALIAS or MODEL/VERSION stands for."""
    version = session.client.get_model_version(model)
    session.show(session.document(version), *described(version))


@command(models, "versions")
def versions(session: Session, model: str) -> None:
    """List the versions of a model, newest first."""
    found = list(session.client.list_model_versions(model))
    session.show(
        [session.document(version) for version in found],
        output.table(
            "version",
            "base",
            "data set",
            "metrics on test",
            "servable",
            "made",
            rows=[
                (
                    output.short(version.name),
                    output.short(version.base),
                    output.short(version.dataset_version),
                    dict(sorted(version.metrics.items())),
                    version.servable,
                    output.moment(version.create_time),
                )
                for version in found
            ],
        ),
    )


@command(alias, "set")
def set_alias(
    session: Session,
    model: str,
    name: str,
    version: int,
    record: Annotated[
        str, typer.Option(help="What is kept of its calls: off, predictions or inputs. [as before]")
    ] = "",
    sample: Annotated[float | None, typer.Option(help="Share of the calls that is kept. [all]")] = None,
) -> None:
    """Point an alias at a version: promote, or roll back."""
    if sample is not None and not record:
        raise WrongUse("--sample goes with --record")
    changed = session.client.set_alias(model, name, version, rollouts.recording(record, sample))
    session.show(session.document(changed), f"{model}@{name} → {output.short(changed.model_version)}")


@command(alias, "delete")
def delete_alias(session: Session, model: str, name: str) -> None:
    """Remove an alias."""
    session.client.delete_alias(model, name)
    session.show({"deleted": names.alias(model, name)}, f"deleted {model}@{name}")


@command(models, "delete")
def delete(session: Session, model: str) -> None:
    """Delete a model with its versions and aliases, or one version as MODEL/VERSION."""
    resource = names.model(model)
    if "/versions/" in resource:
        session.client.delete_model_version(model)
    else:
        session.client.delete_model(model)
    session.show({"deleted": resource}, f"deleted {model}")


@command(models, "download")
def download(
    session: Session,
    model: str,
    output_folder: Annotated[Path, typer.Option("--output", file_okay=False, help="Folder to write the bundle into.")],
) -> None:
    """Download the ONNX bundle of a version, each file checked by SHA-256."""
    version = session.client.get_model_version(model)
    session.client.download_version(version.name, output_folder)
    session.show(
        {"model_version": version.name, "directory": str(output_folder), "files": [f.path for f in version.files]},
        f"{output.short(version.name)} is in {output_folder}",
        output.files(version.files),
    )


def described(version: ModelVersion) -> list[Table]:
    """A version: where it comes from, and how good it is."""
    return [
        output.facts(
            {
                "version": output.short(version.name),
                "task": version.task,
                "base": output.short(version.base),
                "data set": f"{output.short(version.dataset_version)} ({version.dataset_digest[:16]})",
                "seed": version.seed,
                "parity": parity(version),
                "training": dict(sorted(version.training.items())),
                "servable": version.servable,
                "made": output.moment(version.create_time),
            }
        ),
        output.table("metric on test", "value", rows=sorted(version.metrics.items())),
        *([variants(version)] if len(version.variants) > 1 else []),
        *([together(version)] if version.serving.timings else []),
        *([divided(version)] if version.serving.thread_timings else []),
    ]


def variants(version: ModelVersion) -> Table:
    """What was made at export, side by side. One that could not be made has no figures."""
    return output.table(
        "variant",
        "size",
        "ms, one thread",
        version.parity.metric,
        "served",
        "note",
        rows=[
            (
                variant.name,
                *(
                    (output.size(variant.size_bytes), variant.latency_ms, variant.metric)
                    if variant.size_bytes
                    else ("", "", "")
                ),
                variant.served,
                variant.note,
            )
            for variant in version.variants
        ],
    )


def together(version: ModelVersion) -> Table:
    """How long several instances take at once, and how many calls that wait are computed so."""
    best = version.serving.most_rows
    return output.table(
        "instances at once",
        "ms, one thread",
        "ms each",
        "chosen",
        rows=[(t.rows, t.milliseconds, t.milliseconds / t.rows, t.rows == best) for t in version.serving.timings],
    )


def divided(version: ModelVersion) -> Table:
    """How quick a call is on several threads, alone and with a caller for each core, and on how many it is computed."""
    return output.table(
        "threads of a call",
        "ms, alone",
        "calls/s, all cores",
        "chosen",
        rows=[
            (t.threads, t.alone_milliseconds, t.per_second, t.threads == version.serving.threads)
            for t in version.serving.thread_timings
        ],
    )


def parity(version: ModelVersion) -> str:
    """What the export cost."""
    found = version.parity
    if not found.metric:
        return ""
    return (
        f"{found.metric} {output.number(found.served)} served, {output.number(found.source)} in training, "
        f"on {found.num_examples:,} examples"
    )
