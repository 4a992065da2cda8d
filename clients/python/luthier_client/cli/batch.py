"""`luthier predict` where there are many inputs: lines of a file or of standard input, or a part of a data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import IO

from google.protobuf.message import Message

from luthier_client import transfer
from luthier_client.cli import output
from luthier_client.cli.progress import follow
from luthier_client.cli.session import Session, WrongUse
from luthier_client.errors import InvalidArgument

BATCH = 64
"""Lines in a message: enough that the server works at full speed, few enough that a bad line is told soon."""


def predict_dataset(session: Session, model: str, dataset: str, split: str, target: Path | None) -> None:
    """Predicts for a part of a data set as an operation, and downloads what came of it where a file is named."""
    if target and not target.absolute().parent.is_dir():
        raise WrongUse(f"--output {target}: there is no folder {target.parent}")
    made = follow(session, session.client.batch_predict(model, dataset=dataset, split=split))
    facts = {
        "predictions": made.num_predictions,
        "model": output.short(made.model_version),
        "data set": f"{output.short(made.dataset_version)}, {made.split}",
        "operation": output.short(made.name),
    }
    session.show(session.document(made), output.facts(facts))
    if target:
        session.client.download_predictions(made.name, target)
        session.note(f"the predictions are in {target}")


def predict_lines(
    session: Session, model: str, source: str, parse: Callable[[str], Message], target: Path | None
) -> None:
    """Predicts for each line, in order, and writes a line of JSON for each to a file or standard output.

    `source` is a file, or `-` for standard input. What is written is whole: a file is replaced at the end.
    """
    with (
        nullcontext(sys.stdin) if source == "-" else Path(source).open(encoding="utf-8") as lines,
        nullcontext(sys.stdout.buffer) if target is None else transfer.whole(target) as file,
    ):
        for batch in _batches(lines, source, parse):
            for prediction in session.client.predict(model, batch):
                file.write(json.dumps(session.document(prediction), ensure_ascii=False).encode() + b"\n")
            file.flush()


def _batches(lines: IO[str], source: str, parse: Callable[[str], Message]) -> Iterator[list[Message]]:
    """Instances in batches; empty lines are left out."""
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())
    while batch := [_instance(parse, source, number, line) for number, line in islice(numbered, BATCH)]:
        yield batch


def _instance(parse: Callable[[str], Message], source: str, number: int, line: str) -> Message:
    try:
        return parse(line)
    except (WrongUse, InvalidArgument) as error:
        where = "standard input" if source == "-" else source
        raise WrongUse(f"{where}, line {number}: {error}") from error
