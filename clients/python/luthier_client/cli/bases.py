"""`luthier bases`: what fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from luthier.v1.base_pb2 import Base, Preprocessing
from luthier_client.cli import output
from luthier_client.cli.datasets import existing, pairs
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse, command

bases = typer.Typer(help="The pretrained models that fine-tuning starts from.", no_args_is_help=True)

SHOWN = 5
"""Names of tensors that a list shows."""


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(bases, name="bases")


@command(bases, "list")
def list_bases(session: Session, task: str = "") -> None:
    """List the catalogue of bases."""
    found = list(session.client.list_bases(task))
    session.show(
        [session.document(base) for base in found],
        output.table(
            "base",
            "title",
            "tasks",
            "parameters",
            "input",
            "licence",
            "pulled",
            rows=[
                (
                    output.last(base.name),
                    base.title,
                    list(base.tasks),
                    base.num_parameters,
                    base.input,
                    base.license,
                    base.pulled,
                )
                for base in found
            ],
        ),
    )


@command(bases, "show")
def show_base(session: Session, base: str) -> None:
    """Show a base: what it is, where it comes from and its files."""
    show(session, session.client.get_base(base))


@command(bases, "pull")
def pull_base(session: Session, base: str) -> None:
    """Have the server fetch the files of a base."""
    pulled = follow(session, session.client.pull_base(base))
    session.show(session.document(pulled), f"{output.last(pulled.name)} is there: {len(pulled.files)} files")


@command(bases, "import")
def import_base(
    session: Session,
    name: str,
    architecture: Annotated[
        str, typer.Option(help="A model of timm or torchvision, or the class of a Hugging Face encoder.")
    ],
    weights: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="A safetensors file, or one of torch.save with tensors only."),
    ],
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A further file, such as config.json=PATH. Repeatable."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task that it suits. Repeatable. [all it can]")] = None,
    title: Annotated[str, typer.Option(help="A title for people.")] = "",
    license: Annotated[str, typer.Option(help="SPDX identifier of the licence of the weights.")] = "",
    language: Annotated[
        list[str] | None, typer.Option(help="ISO 639-1 code of a language that it reads; `*`: a hundred. Repeatable.")
    ] = None,
    input_size: Annotated[
        int, typer.Option(min=0, help="Side in pixels of the images that it was trained on. [as its architecture]")
    ] = 0,
    mean: Annotated[
        str, typer.Option(metavar="R,G,B", help="Mean of each channel, between 0 and 1. [as its architecture]")
    ] = "",
    std: Annotated[
        str, typer.Option(metavar="R,G,B", help="Deviation of each channel, between 0 and 1. [as its architecture]")
    ] = "",
) -> None:
    """Make a base of a checkpoint of your own, and show what of it matched."""
    files = {path: existing(Path(text)) for path, text in pairs(file or [], "--file").items()}
    session.note(f"uploading {', '.join(path.name for path in (weights, *files.values()))}")
    operation = session.client.import_base(
        name,
        architecture=architecture,
        weights=weights,
        files=files,
        tasks=task or [],
        title=title,
        license=license,
        languages=language or [],
        preprocessing=Preprocessing(
            height=input_size, width=input_size, mean=channels(mean, "--mean"), std=channels(std, "--std")
        ),
    )
    show(session, follow(session, operation))


@command(bases, "delete")
def delete_base(session: Session, base: str) -> None:
    """Delete a base that was imported."""
    session.client.delete_base(base)
    session.show({}, f"{base} is deleted")


@command(bases, "suggest")
def suggest(
    session: Session,
    task: Annotated[str, typer.Option(help="Id of the task, as in `luthier tasks list`.")],
    dataset: Annotated[str, typer.Option(help="The data set to be tuned on.")] = "",
    max_latency_ms: Annotated[float, typer.Option(min=0, help="Most milliseconds of a prediction, by estimate.")] = 0.0,
    max_size_mb: Annotated[float, typer.Option(min=0, help="Most megabytes of weights in 32 bits.")] = 0.0,
    language: Annotated[str, typer.Option(help="ISO 639-1 code of the language of the texts.")] = "",
    greyscale: Annotated[bool, typer.Option("--greyscale", help="The images are grey.")] = False,
    size: Annotated[int, typer.Option(min=0, help="Side of the images in pixels, or tokens of a text.")] = 0,
) -> None:
    """Rank the bases for a task, your data and a budget; speeds are estimates."""
    found = session.client.suggest_bases(
        task,
        dataset=dataset,
        max_latency_ms=max_latency_ms,
        max_size_mb=max_size_mb,
        language=language,
        greyscale=greyscale,
        size=size,
    )
    session.show(
        session.document(found),
        output.table(
            "base",
            "about ms",
            "MB",
            "why",
            rows=[
                (
                    output.last(suggestion.base.name),
                    round(suggestion.latency_ms, 1),
                    round(suggestion.base.weights_bytes / 1e6, 1),
                    "; ".join(suggestion.reasons),
                )
                for suggestion in found.suggestions
            ],
        ),
        *(
            [output.table("left out", "why", rows=[(output.last(r.base), r.reason) for r in found.rejections])]
            if found.rejections
            else []
        ),
    )


def show(session: Session, base: Base) -> None:
    """A base, and of an imported one what matched."""
    preprocessing, report = base.preprocessing, base.import_report
    session.show(
        session.document(base),
        output.facts(
            {
                "base": output.last(base.name),
                "title": base.title,
                "tasks": list(base.tasks),
                "architecture": f"{base.architecture} of {base.library}",
                "parameters": base.num_parameters,
                "GMAC": base.gmacs or "",
                "input": base.input,
                "mean": [output.number(value) for value in preprocessing.mean],
                "deviation": [output.number(value) for value in preprocessing.std],
                "classes": preprocessing.num_classes or "",
                "languages": list(base.languages),
                "published": f"{base.published.metric} {base.published.value:.3g} ({base.published.source})"
                if base.HasField("published")
                else "",
                "licence": base.license,
                "sources": list(base.sources),
                "pulled": base.pulled,
                "tensors matched": report.matched or "",
                "tensors dropped": some(report.dropped),
                "tensors missing": some(report.missing),
                "tensors unused": some(report.unexpected),
                "stored as": list(report.dtypes),
                "names of": f"torchvision's {report.twin}" if report.twin else "",
                "prefix taken off": report.prefix,
            }
        ),
        output.files(base.files),
    )


def some(names: Sequence[str]) -> str:
    """How many names, and the first of them."""
    more = ", …" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}" if names else ""


def channels(text: str, option: str) -> list[float]:
    """Three numbers behind commas, or none."""
    try:
        values = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        values = [0.0]
    if len(values) not in (0, 3):
        raise WrongUse(f"{option} takes three numbers, such as 0.485,0.456,0.406")
    return values
