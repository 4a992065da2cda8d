"""`luthier tasks` and `luthier plugins`: what a server can do."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich.table import Table

from luthier.v1.task_pb2 import TaskField
from luthier_client.cli import output
from luthier_client.cli.session import Session, command
from luthier_client.schema import enum_prefix

tasks = typer.Typer(help="The kinds of work that models can be tuned for.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(tasks, name="tasks")
    command(app, "plugins")(plugins)


@command(tasks, "list")
def list_tasks(session: Session) -> None:
    """List the tasks."""
    found = list(session.client.list_tasks())
    session.show(
        [session.document(task) for task in found],
        output.table(
            "task",
            "title",
            "methods",
            "metric",
            "plugin",
            rows=[
                (
                    output.last(task.name),
                    task.title,
                    [method.method for method in task.methods],
                    task.primary_metric,
                    f"{task.distribution} {task.distribution_version}",
                )
                for task in found
            ],
        ),
    )
    for failure in session.client.list_failed_plugins():
        session.note(f"{failure.plugin} could not be loaded: {failure.reason}")


@command(tasks, "show")
def show_task(session: Session, task: str) -> None:
    """Show a task: its settings, the columns of its data, its methods."""
    found = session.client.get_task(task)
    session.show(
        session.document(found),
        output.facts(
            {
                "task": output.last(found.name),
                "title": found.title,
                "description": found.description,
                "service": found.service,
                "methods": [method.method for method in found.methods],
                "bases": list(found.bases),
                "formats": list(found.formats),
                "further files": list(found.extra_files),
                "splits": list(found.splits),
                "judged by": found.primary_metric + (" (smaller is better)" if found.lower_is_better else ""),
                "plugin": f"{found.distribution} {found.distribution_version}",
            }
        ),
        fields("Columns of a data set", found.columns),
        *([fields("How to read files (--option)", found.read_options)] if found.read_options else []),
        fields("Settings of a fine-tune (--set)", found.config_fields),
    )


def fields(title: str, described: Iterable[TaskField]) -> Table:
    """Fields with their types, defaults and help."""
    return output.table(
        "name",
        "type",
        "default",
        "what it does",
        title=title,
        rows=[
            (
                field.field,
                [short_choice(field, choice) for choice in field.choices] or field.type,
                "required" if field.required else short_choice(field, field.default),
                field.help,
            )
            for field in described
        ],
    )


def short_choice(field: TaskField, value: str) -> str:
    """A value as `--set` takes it: of an enum, `ease` for `ALGORITHM_EASE`."""
    return value.removeprefix(enum_prefix(field.type)).lower() if field.choices else value


def plugins(session: Session) -> None:
    """List the plugins of the server, with those that could not be loaded and why."""
    found = list(session.client.list_tasks())
    failed = session.client.list_failed_plugins()
    document = {
        "plugins": [
            {"distribution": task.distribution, "version": task.distribution_version, "task": output.last(task.name)}
            for task in found
        ],
        "failed": [session.document(failure) for failure in failed],
    }
    session.show(
        document,
        output.table(
            "distribution", "version", "task", rows=[tuple(plugin.values()) for plugin in document["plugins"]]
        ),
        *([output.table("failed plugin", "why", rows=[(f.plugin, f.reason) for f in failed])] if failed else []),
    )
