"""`luthier predict`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from rich.console import RenderableType
from rich.text import Text

from luthier.v1.task_pb2 import TaskMethod
from luthier_client import requests
from luthier_client.cli import batch, output
from luthier_client.cli.session import Session, WrongUse, command
from luthier_client.schema import descriptor_of

MAX_INPUT = 48


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    command(app, "predict")(predict)


def predict(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS|/VERSION]")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INPUT]...", help="JSON of the task's instance message, or its one text as it is."),
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A file for the instance's one bytes field.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method of the task's service. [its first]")] = "",
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Where to write: the picture of a single prediction, or the JSON lines of --lines and --dataset.",
        ),
    ] = None,
    lines: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="A file, or standard input, with an input on each line.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Predict for a part of a data set, NAME or NAME/VERSION, as an operation.")
    ] = None,
    key: Annotated[str, typer.Option(help="Whom the call is for: it stays with one side of a rollout.")] = "",
    ids: Annotated[bool, typer.Option("--ids", help="Say which version answered, and the id for feedback.")] = False,
    split: Annotated[str, typer.Option(help="That part: train, validation or test.")] = "test",
) -> None:
    """Predict with a served model."""
    client = session.client
    if bool(inputs or file) + bool(lines) + bool(dataset) > 1:
        raise WrongUse("give inputs, --lines or --dataset, one of them")
    if dataset:
        batch.predict_dataset(session, model, dataset, split, output_file)
        return
    chosen = requests.find_method(client.get_task(client.get_model(model).task), method)
    instance = descriptor_of(client.schema.message_class(chosen.instance_type))
    if lines:

        def parse(line: str) -> Message:
            return client.schema.parse(chosen.instance_type, fields_of(instance, chosen, line), "instance")

        batch.predict_lines(session, model, lines, parse, output_file)
        return
    instances = [fields_of(instance, chosen, text) for text in inputs or []]
    instances += [{field_for(instance, FieldDescriptor.TYPE_BYTES, chosen): encoded(path)} for path in file or []]
    if not instances:
        raise WrongUse(f"give at least one input: {example(instance)}")
    if output_file:
        if len(instances) != 1:
            raise WrongUse(f"--output takes one input; there are {len(instances)}")
        rendered = client.render(model, instances[0], method=chosen.method)
        output_file.write_bytes(rendered.picture)
        session.note(f"{output_file}: {rendered.media_type}")
        predictions = [rendered.prediction]
        named = {"model_version": rendered.model_version, "prediction_id": rendered.prediction_id}
    else:
        predictions = found = client.predict(model, instances, method=chosen.method, key=key)
        named = {"model_version": found.model_version, "prediction_id": found.prediction_id}
    documents = [session.document(prediction) for prediction in predictions]
    shown_inputs = [shown(given) for given in inputs or []] + [f.name for f in file or []]
    session.show(
        {**named, "predictions": documents} if ids else documents,
        *readable(shown_inputs, documents),
        *([output.facts(named)] if ids else []),
    )


def fields_of(instance: Descriptor, method: TaskMethod, text: str) -> dict[str, Any]:
    """The fields of an instance: a JSON object's, or the one text field with the input as it is."""
    if not text.lstrip().startswith("{"):
        return {field_for(instance, FieldDescriptor.TYPE_STRING, method): text}
    try:
        fields: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise WrongUse(f"{text} is not JSON: {error}") from error
    return fields


def field_for(instance: Descriptor, kind: int, method: TaskMethod) -> str:
    """The one field of a type that an instance has; raises WrongUse with what to write instead."""
    names = [field.name for field in instance.fields if field.type == kind and not field.is_repeated]
    if len(names) != 1:
        what = "text" if kind == FieldDescriptor.TYPE_STRING else "bytes"
        raise WrongUse(f"{method.method} has {len(names)} {what} fields, so write JSON: {example(instance)}")
    return str(names[0])


def example(instance: Descriptor) -> str:
    """What an instance looks like as JSON."""
    message = GetMessageClass(instance)()
    fields = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return f"'{json.dumps(fields)}'"


def encoded(path: Path) -> str:
    """A file as protobuf's JSON has bytes."""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def shown(text: str) -> str:
    """An input, short enough for a cell."""
    return text if len(text) <= MAX_INPUT else f"{text[: MAX_INPUT - 1]}…"


def readable(inputs: list[str], predictions: list[dict[str, Any]]) -> list[RenderableType]:
    """One table of all predictions, or their JSON where they do not fit into rows."""
    rows = [
        {"input": "" if index else input, **row}
        for input, prediction in zip(inputs, predictions, strict=True)
        for index, row in enumerate(table_rows(prediction))
    ]
    if not all(table_rows(prediction) for prediction in predictions):
        return [Text(json.dumps(prediction, ensure_ascii=False)) for prediction in predictions]
    columns = [
        name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) for row in rows)
    ]
    drawn: list[RenderableType] = [
        output.table(*columns, rows=[[row.get(name, "") for name in columns] for row in rows])
    ]
    return drawn + [
        Text(f"{input}: {name.replace('_', ' ')} {', '.join(value)}")
        for input, prediction in zip(inputs, predictions, strict=True)
        for name, value in prediction.items()
        if isinstance(value, list) and value and all(isinstance(element, str) for element in value)
    ]


def table_rows(prediction: dict[str, Any]) -> list[dict[str, Any]]:
    """A prediction as rows: its longest list of flat messages, or its own plain fields where that says no more."""
    plain = {name: value for name, value in prediction.items() if is_plain(value)}
    lists = [value for value in prediction.values() if isinstance(value, list) and all(map(is_flat, value))]
    longest: list[dict[str, Any]] = max(lists, key=len, default=[])
    return [plain] if plain and len(longest) <= 1 else longest


def is_plain(value: Any) -> bool:
    """Whether a value fits into a cell."""
    return not isinstance(value, list | dict)


def is_flat(value: Any) -> bool:
    """Whether a value is a message of plain fields."""
    return isinstance(value, dict) and all(map(is_plain, value.values()))
