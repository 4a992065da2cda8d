"""Watching an operation from a terminal, a log or a script."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import typer
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from luthier.v1.operation_pb2 import OperationEvent, OperationMetadata
from luthier.v1.operation_pb2 import Progress as Step
from luthier_client.cli.output import number
from luthier_client.cli.session import Session
from luthier_client.operation import Operation

R = TypeVar("R", bound=Message)

INTERRUPTED = 130


def follow(session: Session, operation: Operation[R]) -> R:
    """Shows what happens until the operation has ended, and returns its response.

    Ctrl-C leaves the operation running and exits.
    """
    try:
        if session.err.is_terminal:
            with LiveBars(session.err) as bars:
                return operation.result(on_event=bars.show)
        if session.json:
            return operation.result()
        return operation.result(on_event=Log(session.err).show)
    except KeyboardInterrupt:
        session.err.print(
            f"Detached; {operation.name} goes on. To see or end it:\n"
            f"  luthier operations watch {operation.name}\n  luthier operations cancel {operation.name}"
        )
        raise typer.Exit(INTERRUPTED) from None


class LiveBars:
    """A bar for each stage, with throughput, remaining time and the newest metrics. A context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[rate]}[/]"),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self._stages: dict[str, TaskID] = {}
        self._stage = ""
        self._metrics: dict[str, float] = {}

    def __enter__(self) -> LiveBars:
        self._progress.start()
        self._enter("waiting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._complete()
        self._progress.stop()

    def show(self, event: OperationEvent) -> None:
        """Takes the next event in."""
        match event.WhichOneof("event"):
            case "state" if event.state == OperationMetadata.STATE_RUNNING:
                self._enter("starting")
            case "state" if event.state == OperationMetadata.STATE_PAUSED:
                self._enter("paused")
            case "progress":
                self._step(event.progress)
            case "metrics":
                self._metrics.update(event.metrics.values)
                self._progress.update(self._stages[self._stage], metrics=measured(self._metrics))
            case "message":
                self._progress.console.print(escape(event.message), style="dim")

    def _step(self, step: Step) -> None:
        if step.stage != self._stage:
            self._enter(step.stage)
        self._progress.update(
            self._stages[self._stage],
            completed=step.step,
            total=step.total or None,
            steps=f"{step.step:,}/{step.total:,}" if step.total > 1 else "",
            rate=pace(step),
        )

    def _enter(self, stage: str) -> None:
        """Completes the stage before and begins, or goes on with, another."""
        self._complete()
        self._stage = stage
        self._metrics.clear()
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(escape(stage), total=None, steps="", rate="", metrics="")

    def _complete(self) -> None:
        if self._stage in self._stages:
            id = self._stages[self._stage]
            task = self._progress.tasks[self._progress.task_ids.index(id)]
            total = task.total or max(task.completed, 1)
            self._progress.update(id, total=total, completed=total, rate="")


class Log:
    """A line when a stage begins and for what is measured, where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""

    def show(self, event: OperationEvent) -> None:
        """Takes the next event in."""
        match event.WhichOneof("event"):
            case "progress" if event.progress.stage != self._stage:
                self._stage = event.progress.stage
                self._line(self._stage)
            case "metrics":
                self._line(f"step {event.metrics.step}: {measured(dict(event.metrics.values))}")
            case "message":
                self._line(event.message)

    def _line(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def measured(values: dict[str, float]) -> str:
    """Metrics in a line."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def pace(step: Step) -> str:
    """Throughput and remaining time, as far as they are known."""
    rate = f"{number(step.examples_per_s)}/s" if step.examples_per_s else ""
    left = f"{timedelta(seconds=round(step.remaining_s))} left" if step.remaining_s else ""
    return "  ".join(part for part in (rate, left) if part)
