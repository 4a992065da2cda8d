"""The tree of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier_client import server
from luthier_client.cli import (
    access,
    bases,
    catalogue,
    datasets,
    drift,
    evaluate,
    health,
    models,
    operations,
    predict,
    rollouts,
    tune,
)
from luthier_client.cli.session import (
    AddressOption,
    CaOption,
    CertOption,
    Globals,
    JsonOption,
    KeyOption,
    TokenOption,
)

app = typer.Typer(
    help="Fine-tune pretrained models on your data, prove them, and serve them: one gRPC server and its command line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    address: AddressOption = None,
    json: JsonOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token: TokenOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Notes the options given before the command."""
    ctx.obj = Globals(address, json, {"ca": ca, "cert": cert, "key": key, "token": token})
    if version:
        import importlib.metadata  # It takes longer than most commands.

        print(importlib.metadata.version("luthier"))
        raise typer.Exit


def _program(name: str, help: str) -> None:
    """A command that hands over to a program of the server's distribution, which has its own --help."""

    def hand_over(ctx: typer.Context) -> None:
        raise typer.Exit(server.become(name, ctx.args))

    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help=f"{help} `luthier {name} --help` lists its options.", context_settings=passed_on)(hand_over)


_program("serve", "Start a server.")
_program("worker", "Take up a server's operations, on this machine or another.")
_program("backup", "Write a home into one file.")
_program("restore", "Make a home of a backup.")


@app.command()
def demo(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", help="Tasks to show. [text-classification recommendation]"),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Show all tasks.")] = False,
    exit: Annotated[bool, typer.Option("--exit", help="Stop the server at the end instead of leaving it up.")] = False,
    home: Annotated[Path | None, typer.Option(help="Folder to keep everything in. [a temporary one]")] = None,
) -> None:
    """Start a server and take small data sets the whole way: tune, evaluate, predict, export."""
    import luthier_demo

    chosen = list(luthier_demo.STOPS) if all else tasks or luthier_demo.FIRST
    raise typer.Exit(luthier_demo.run(chosen, exit_after=exit, home=home))


health.add_to(app)
catalogue.add_to(app)
bases.add_to(app)
datasets.add_to(app)
tune.add_to(app)
drift.add_to(app)
operations.add_to(app)
evaluate.add_to(app)
models.add_to(app)
predict.add_to(app)
access.add_to(app)
rollouts.add_to(app)
