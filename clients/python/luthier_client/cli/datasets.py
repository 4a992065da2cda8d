"""`luthier datasets`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict

from luthier.v1 import dataset_pb2
from luthier.v1.dataset_pb2 import DatasetVersion, Split
from luthier_client.cli import output, statistics
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse, command
from luthier_client.cli.statistics import PARTS

datasets = typer.Typer(help="Data sets: named series of immutable versions.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(datasets, name="datasets")


class Strictness(StrEnum):
    """What becomes of problems in data, as in the API's enum."""

    USUAL = "usual"
    STRICT = "strict"
    LENIENT = "lenient"


@command(datasets, "create")
def create(
    session: Session,
    name: str,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", exists=True, help="Files or folders to be split.")
    ] = None,
    task: Annotated[str, typer.Option(help="Id of the task, as in `luthier tasks list`.")] = ...,  # type: ignore[assignment]
    train: Annotated[Path | None, typer.Option(exists=True, help="File or folder of the training part.")] = None,
    validation: Annotated[Path | None, typer.Option(exists=True, help="File or folder of the validation part.")] = None,
    test: Annotated[Path | None, typer.Option(exists=True, help="File or folder of the test part.")] = None,
    titles: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="File of titles of items.")] = None,
    file: Annotated[list[str] | None, typer.Option(metavar="ROLE=PATH", help="A file of another role.")] = None,
    format: Annotated[str, typer.Option(help="Format of the files. [by their endings]")] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Column of the file for a field of the example. Repeatable."),
    ] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The files begin with data; columns go by number from 0.")
    ] = False,
    split: Annotated[
        str, typer.Option(metavar="METHOD:FRACTIONS", help="How to split, as `hash:0.8,0.1,0.1` or `per-user:0.25`.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="How to read the files, as `luthier tasks show` lists. Repeatable."),
    ] = None,
    strictness: Annotated[
        Strictness,
        typer.Option(help="`strict` refuses what is only odd too, `lenient` leaves bad rows and images out."),
    ] = Strictness.USUAL,
) -> None:
    """Upload files and make them the next version of a data set."""
    files: dict[str, list[Path]] = {"": paths or []}
    for role, path in (("train", train), ("validation", validation), ("test", test), ("titles", titles)):
        if path:
            files[role] = [path]
    for role, text in pairs(file or [], "--file").items():
        files[role] = [existing(Path(text))]
    if not any(files.values()):
        raise WrongUse("name at least one file: as PATH, or with --train, --validation, --test")
    session.note(f"uploading {', '.join(path.name for group in files.values() for path in group)}")
    operation = session.client.create_dataset(
        name,
        files,
        task=task,
        format=format,
        columns=pairs(column or [], "--column"),
        no_header=no_header,
        split=parse_split(split, seed),
        options=pairs(option or [], "--option"),
        strictness=dataset_pb2.Strictness.Value(f"STRICTNESS_{strictness.name}"),
    )
    show_version(session, follow(session, operation))


@command(datasets, "list")
def list_datasets(session: Session, task: str = "") -> None:
    """List the data sets."""
    found = list(session.client.list_datasets(task))
    session.show(
        [session.document(dataset) for dataset in found],
        output.table(
            "data set",
            "task",
            "newest version",
            *PARTS,
            "made",
            rows=[
                (
                    output.last(dataset.name),
                    dataset.task,
                    output.short(dataset.latest_version.name),
                    *(dataset.latest_version.num_examples.get(part, 0) for part in PARTS),
                    output.moment(dataset.latest_version.create_time),
                )
                for dataset in found
            ],
        ),
    )


@command(datasets, "show")
def show(session: Session, name: str) -> None:
    """Show a data set's newest version, or one as NAME/VERSION."""
    client = session.client
    version = client.get_dataset_version(name) if is_version(name) else client.get_dataset(name).latest_version
    show_version(session, version)


@command(datasets, "versions")
def versions(session: Session, name: str) -> None:
    """List the versions of a data set, newest first."""
    found = list(session.client.list_dataset_versions(name))
    session.show(
        [session.document(version) for version in found],
        output.table(
            "version",
            *PARTS,
            "split",
            "warnings",
            "made",
            rows=[
                (
                    output.short(version.name),
                    *(version.num_examples.get(part, 0) for part in PARTS),
                    split_text(version.split),
                    len(version.warnings),
                    output.moment(version.create_time),
                )
                for version in found
            ],
        ),
    )


@command(datasets, "delete")
def delete(session: Session, name: str) -> None:
    """Delete a data set with all its versions. Models keep what they learnt from it."""
    session.client.delete_dataset(name)
    session.show({"deleted": name}, f"deleted {name}")


def show_version(session: Session, version: DatasetVersion) -> None:
    """Prints a version: counts, statistics, warnings."""
    found = MessageToDict(version.statistics)
    session.show(
        session.document(version),
        output.facts(
            {
                "data set": output.short(version.name),
                "task": version.task,
                **{part: version.num_examples[part] for part in PARTS if part in version.num_examples},
                "split": split_text(version.split),
                "size": output.size(version.size_bytes),
                "digest": version.digest[:16],
                **statistics.values(found),
            }
        ),
        *statistics.tables(found),
        *([output.problems(version.warnings, "Warnings")] if version.warnings else []),
    )


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a dictionary; raises WrongUse."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise WrongUse(f"{option} {text}: write NAME=VALUE")
        found[name] = value
    return found


def existing(path: Path) -> Path:
    """A path to a file that is there; raises WrongUse."""
    if not path.is_file():
        raise WrongUse(f"{path} is not a file")
    return path


def parse_split(text: str, seed: int) -> Split | None:
    """The split that `hash:0.8,0.1,0.1` stands for; None leaves the choice to the server."""
    if not text and not seed:
        return None
    method, _, fractions = text.partition(":")
    try:
        return Split(method=method, fractions=[float(share) for share in fractions.split(",") if share], seed=seed)
    except ValueError as error:
        raise WrongUse(f"--split {text}: write numbers behind the colon, as in hash:0.8,0.1,0.1") from error


def split_text(split: Split) -> str:
    """A split as `--split` takes it, with its seed."""
    fractions = ",".join(f"{share:g}" for share in split.fractions)
    return f"{split.method}{':' if fractions else ''}{fractions}, seed {split.seed}" if split.method else ""


def is_version(name: str) -> bool:
    """Whether a name is that of a version: `banking/2` or in full."""
    return "/" in name.removeprefix("datasets/")
