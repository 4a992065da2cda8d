"""What every stop of the demo does with Luthier, through the public client alone, and shows on the way."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message
from rich.console import Console

from luthier.v1.dataset_pb2 import Split
from luthier.v1.model_pb2 import ModelVersion
from luthier_client import Client, Operation
from luthier_client.cli import output
from luthier_client.cli.progress import LiveBars, Log
from luthier_client.requests import Files

R = TypeVar("R", bound=Message)


class Tour:
    """A client, a folder to work in and a console to speak on."""

    def __init__(self, console: Console, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.console = console
        self.tuned: list[ModelVersion] = []
        """The versions to show the exports of."""

    def step(self, title: str) -> None:
        """Begins a chapter."""
        self.console.print(f"\n[bold cyan]▸ {title}[/]", soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        self.console.print(text, markup=False, soft_wrap=True)

    def table(self, *columns: str, rows: Sequence[Sequence[object]], title: str = "") -> None:
        """Prints a table."""
        self.console.print()
        self.console.print(output.table(*columns, rows=rows, title=title))

    def create(
        self, name: str, files: Files, task: str, columns: Mapping[str, str] | None = None, split: Split | None = None
    ) -> None:
        """Makes a data set and says what is in it."""
        version = self.follow(self.client.create_dataset(name, files, task=task, columns=columns, split=split))
        parts = ", ".join(f"{version.num_examples[part]:,} {part}" for part in ("train", "validation", "test"))
        self.say(f"{output.short(version.name)}: {parts} examples")

    def tune(self, model: str, task: str, dataset: str, base: str = "", **config: Any) -> ModelVersion:
        """Fine-tunes, with the command that does the same in the title."""
        settings = "".join(f" --set {name}={str(value).lower()}" for name, value in config.items())
        on = f" --base {base}" if base else ""
        self.step(f"luthier tune {model} --task {task} --dataset {dataset}{on}{settings}")
        return self.follow(self.client.fine_tune(model, task=task, dataset=dataset, base=base, config=config))

    def compare(self, title: str, metrics: Sequence[str], *versions: ModelVersion) -> None:
        """Prints metrics of versions side by side; the first one's export is shown at the end."""
        rows = [[metric, *(version.metrics[metric] for version in versions)] for metric in metrics]
        names = (output.short(version.name) for version in versions)
        self.step("What the fine-tune is worth, on examples that it never saw")
        self.table("metric on test", *names, rows=rows, title=title)
        self.tuned.append(versions[0])

    def picture(self, version: ModelVersion, seen: Path | str, name: str) -> Any:
        """Has the prediction for a photograph or a text drawn into the folder, and returns it."""
        path, model = self.folder / name, output.short(version.name)
        said = f"--file {seen}" if isinstance(seen, Path) else f"'{seen}'"
        self.step(f"luthier predict {model.partition('/')[0]} {said} --output {path}")
        # As JSON has bytes.
        instance = {"image": base64.b64encode(seen.read_bytes()).decode()} if isinstance(seen, Path) else {"text": seen}
        rendered = self.client.render(model, instance)
        path.write_bytes(rendered.picture)
        return rendered.prediction

    def exports(self) -> None:
        """Downloads the bundles and opens them with nothing but onnxruntime."""
        import onnxruntime as ort

        self.step("Exported bundles, and what onnxruntime says of their models")
        for version in self.tuned:
            name = output.short(version.name)
            folder = self.client.download_version(version.name, self.folder / "exports" / name.replace("/", "-"))
            session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
            self.say(f"\n{name} in {folder}")
            self.table("file", "size", rows=_sizes(folder))
            self.say(f"takes {_signature(session.get_inputs())}")
            self.say(f"gives {_signature(session.get_outputs())}")

    def follow(self, operation: Operation[R]) -> R:
        """Shows an operation's progress, and returns its response."""
        if not self.console.is_terminal:
            return operation.result(on_event=Log(self.console).show)
        with LiveBars(self.console) as bars:
            return operation.result(on_event=bars.show)


def _sizes(folder: Path) -> list[tuple[str, str]]:
    return [
        (path.relative_to(folder).as_posix(), output.size(path.stat().st_size))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _signature(nodes: Sequence[Any]) -> str:
    """Inputs or outputs of an ONNX graph by name and shape."""
    return ", ".join(f"{node.name} {node.type.removeprefix('tensor')} {node.shape}" for node in nodes)
