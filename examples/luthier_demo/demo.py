"""The tour: data in, two fine-tunes, what they are worth, predictions, and the exported bundles."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from rich.console import Console

from luthier.v1.dataset_pb2 import DatasetVersion, Split
from luthier.v1.model_pb2 import ModelVersion
from luthier_client import Client, LuthierClientError, Operation
from luthier_client.cli import output
from luthier_client.cli.progress import LiveBars, Log

if TYPE_CHECKING:
    from luthier_demo.server import Server

R = TypeVar("R", bound=Message)

REVIEWS = Path(__file__).with_name("beer_reviews.csv")
"""500 reviews of craft beers: review, sentiment."""

NEW_REVIEWS = (
    "I took one sip, called my brother and told him that this is the best beer in the whole wide world!",
    "An ordinary lager in a nice way. Decent price, good with a sandwich.",
    "Wonderful aroma of peach, but the body is thin and the finish far too bitter.",
    "Flat, sour, and the bartender said that it was supposed to be like that. Never again.",
)
READER = "r0017"
SIMILAR_TO = "The Salt Gate"
HISTORY = ("Perihelion", "Airlock Nine", "Scrap Star")

NEEDED = ("grpc_health", "implicit", "numpy", "onnxruntime", "torch")
"""Packages without which nothing here works."""


def run(*, exit_after: bool, home: Path | None = None) -> int:
    """Runs the tour and returns an exit status: 0, 1 where something failed, 2 where packages are missing.

    A server is started on a free port of 127.0.0.1 with its state in `home`, or in a temporary folder, and is ended
    with the demo. At the end it is left to play with until Ctrl-C, unless `exit_after` is set or standard output is no
    terminal.
    """
    console = Console(highlight=False)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        console.print(f"luthier demo needs {', '.join(missing)}: pip install 'luthier\\[train]'")
        return 2
    from luthier_demo.server import ServerFailed, serve

    try:
        with _orderly_end(), _folder(home) as folder, serve(folder) as server, Client(server.address) as client:
            console.print(f"[bold]Luthier[/] serves at {server.address}; everything it keeps is in {folder}.")
            Tour(console, client, folder).go()
            if not exit_after and sys.stdout.isatty():
                _leave_up(console, server)
    except KeyboardInterrupt:
        console.print("Interrupted; the server is stopped.")
        return 128 + signal.SIGINT
    except (LuthierClientError, ServerFailed, OSError) as error:
        output.print_error(console, "its own address", error)
        return 1
    return 0


class Tour:
    """What a user does with Luthier, through the public client alone."""

    def __init__(self, console: Console, client: Client, folder: Path) -> None:
        self._console = console
        self._client = client
        self._folder = folder

    def go(self) -> None:
        """Goes the whole way."""
        started = time.monotonic()
        self._upload()
        beer = self._tune("beer", "text-classification", "beer-reviews", epochs=6)
        untuned = self._tune("beer-untuned", "text-classification", "beer-reviews", epochs=0)
        books = self._tune("books", "recommendation", "bookshop")
        popular = self._tune("books-popular", "recommendation", "bookshop", algorithm="popularity")

        self._step("What the fine-tunes are worth, on examples that they never saw")
        self._compare("beer reviews", ("accuracy", "f1_macro", "precision_macro", "recall_macro"), beer, untuned)
        self._compare("bookshop", ("ndcg_at_10", "recall_at_10", "precision_at_10", "map_at_10"), books, popular)
        self._classify(beer)
        self._recommend(books)
        self._export(beer, books)
        self._console.print(f"\nDone in {time.monotonic() - started:.0f} s.")

    def _upload(self) -> None:
        """Makes both data sets."""
        from luthier_demo import bookshop

        self._step("Two data sets")
        split = Split(method="hash", fractions=[0.7, 0.1, 0.2])
        columns = {"text": "review", "label": "sentiment"}
        reviews = self._client.create_dataset(
            "beer-reviews", REVIEWS, task="text-classification", columns=columns, split=split
        )
        self._describe(self._follow(reviews))

        purchases, books = bookshop.write(self._folder)
        columns = {"user": "reader", "item": "book", "weight": "copies"}
        split = Split(method="per-user", fractions=[0.25])
        bought = self._client.create_dataset(
            "bookshop", {"": purchases, "titles": books}, task="recommendation", columns=columns, split=split
        )
        self._describe(self._follow(bought))

    def _tune(self, model: str, task: str, dataset: str, **config: Any) -> ModelVersion:
        settings = "".join(f" --set {name}={value}" for name, value in config.items())
        self._step(f"luthier tune {model} --task {task} --dataset {dataset}{settings}")
        return self._follow(self._client.fine_tune(model, task=task, dataset=dataset, config=config))

    def _compare(self, title: str, metrics: Sequence[str], *versions: ModelVersion) -> None:
        """Prints metrics of versions side by side."""
        rows = [[metric, *(version.metrics[metric] for version in versions)] for metric in metrics]
        names = (output.short(version.name) for version in versions)
        self._table("metric on test", *names, rows=rows, title=title)

    def _classify(self, beer: ModelVersion) -> None:
        self._step("Predictions: reviews")
        predictions = self._client.predict(output.short(beer.name), [{"text": text} for text in NEW_REVIEWS])
        rows = [(p.label, p.score, text) for p, text in zip(predictions, NEW_REVIEWS, strict=True)]
        self._table("sentiment", "probability", "review", rows=rows)

    def _recommend(self, books: ModelVersion) -> None:
        from luthier_demo import bookshop

        self._step("Predictions: books")
        model, ids = output.short(books.name), {book.title: book.id for book in bookshop.read_catalogue()}
        history = [ids[title] for title in HISTORY]
        known, unknown = self._client.predict(model, [{"user": READER, "k": 5}, {"history": history, "k": 5}])
        [similar] = self._client.predict(model, [{"item": ids[SIMILAR_TO], "k": 5}], method="SimilarItems")
        self._titles(f"for reader {READER}", known)
        self._titles(f"for a stranger who read {', '.join(HISTORY)}", unknown)
        self._titles(f"like {SIMILAR_TO}", similar)

    def _export(self, *versions: ModelVersion) -> None:
        """Downloads bundles and opens them with nothing but onnxruntime."""
        import onnxruntime as ort

        self._step("Exported bundles, and what onnxruntime says of their models")
        for version in versions:
            name = output.short(version.name)
            folder = self._client.download_version(version.name, self._folder / "exports" / name.replace("/", "-"))
            session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
            self._say(f"\n{name} in {folder}")
            self._table("file", "size", rows=_sizes(folder))
            self._say(f"takes {_signature(session.get_inputs())}")
            self._say(f"gives {_signature(session.get_outputs())}")

    def _step(self, title: str) -> None:
        self._console.print(f"\n[bold cyan]▸ {title}[/]", soft_wrap=True)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _table(self, *columns: str, rows: Sequence[Sequence[object]], title: str = "") -> None:
        self._console.print()
        self._console.print(output.table(*columns, rows=rows, title=title))

    def _describe(self, version: DatasetVersion) -> None:
        parts = ", ".join(f"{version.num_examples[part]:,} {part}" for part in ("train", "validation", "test"))
        self._say(f"{output.short(version.name)}: {parts} examples")

    def _titles(self, title: str, prediction: Any) -> None:
        rows = [(item.title, item.score) for item in prediction.items]
        self._table("book", "score", rows=rows, title=title)

    def _follow(self, operation: Operation[R]) -> R:
        """Shows an operation's progress, and returns its response."""
        if not self._console.is_terminal:
            return operation.result(on_event=Log(self._console).show)
        with LiveBars(self._console) as bars:
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


def _leave_up(console: Console, server: Server) -> None:
    """Says what to try, and waits for Ctrl-C; raises ServerFailed where the server ends before."""
    console.print(*_invitation(server.address), sep="\n")
    with suppress(KeyboardInterrupt):
        server.wait()


def _invitation(address: str) -> list[str]:
    return [
        f"\nThe server stays up at [bold]{address}[/] until Ctrl-C. In another terminal:\n",
        f"  export LUTHIER_ADDRESS={address}",
        "  luthier models list",
        "  luthier predict beer 'Smells like a bakery, tastes like rain.'",
        f"""  luthier predict books '{{"user": "{READER}", "k": 3}}'""",
        "  luthier evaluate beer --dataset beer-reviews",
        "  luthier tune beer --task text-classification --dataset beer-reviews --seed 1",
        "  luthier models versions beer\n",
    ]


@contextmanager
def _folder(home: Path | None) -> Iterator[Path]:
    """The folder given, made where it is missing, or a temporary one."""
    if home is None:
        with tempfile.TemporaryDirectory(prefix="luthier-demo-") as folder:
            yield Path(folder)
    else:
        home.mkdir(parents=True, exist_ok=True)
        yield home.absolute()


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Has SIGTERM unwind the stack as Ctrl-C does, so that the server is ended too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
