"""What every command has: the server's address, `--json`, and one way for errors to become exit statuses."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from rich.console import Console, RenderableType

from luthier_client.cli import output
from luthier_client.client import Client
from luthier_client.documents import document
from luthier_client.errors import InvalidArgument, LuthierClientError, OperationFailed

FAILED = 1
WRONG_USE = 2

ADDRESS_VARIABLE = "LUTHIER_ADDRESS"
DEFAULT_ADDRESS = "127.0.0.1:50051"

AddressOption = Annotated[
    str | None, typer.Option("--address", help=f"The server's host:port. [${ADDRESS_VARIABLE}, or {DEFAULT_ADDRESS}]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]

_CREDENTIALS = {
    "ca": ("--tls-ca", "LUTHIER_CA", "PEM file of the authority that signed the server's certificate."),
    "cert": ("--tls-cert", "LUTHIER_CERT", "PEM file of a certificate of your own, for a server that wants one."),
    "key": ("--tls-key", "LUTHIER_KEY", "PEM file of its key."),
    "token": ("--token", "LUTHIER_TOKEN", "Says who you are. The variable is seen by fewer."),
}
"""What a connection may take, by the names of the client: option, variable, help."""


def _credential(name: str, *, hidden: bool) -> Any:
    option, variable, help = _CREDENTIALS[name]
    return Annotated[str | None, typer.Option(option, help=f"{help} [${variable}]", hidden=hidden)]


CaOption, CertOption, KeyOption, TokenOption = (_credential(name, hidden=False) for name in _CREDENTIALS)


class WrongUse(Exception):
    """A command line that cannot be meant; the message says what would do."""


@dataclass(frozen=True)
class Globals:
    """The options given before the command."""

    address: str | None = None
    json: bool = False
    credentials: Mapping[str, str | None] = field(default_factory=dict)
    """By their names in the client."""


class Session:
    """One command's connection, and where it prints: results to stdout, everything else to stderr."""

    def __init__(self, address: str, credentials: Mapping[str, Any], *, json: bool) -> None:
        """Raises WrongUse for credentials that cannot be used, OSError where a file of them cannot be read."""
        self.address = address
        self.json = json
        try:
            self.client = Client(address, **credentials)
        except ValueError as error:
            raise WrongUse(str(error)) from error
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)

    def show(self, data: Any, *readable: RenderableType) -> None:
        """Prints the result: `data` as JSON, or else what is for people."""
        if self.json:
            json.dump(data, sys.stdout, ensure_ascii=False, indent=2)
            sys.stdout.write("\n")
        else:
            for index, part in enumerate(readable):
                if index:
                    self.out.print()
                self.out.print(part)

    def note(self, text: str) -> None:
        """Says something to people on the side."""
        if not self.json:
            self.err.print(text, style="dim")

    def document(self, message: Message) -> dict[str, Any]:
        """A message as plain values."""
        return document(message, self.client.schema)


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function as a command. It gets a Session first, and the command the options `--address` and `--json`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, ctx: typer.Context, address: str | None, json: bool, **arguments: Any) -> None:
            given: Globals = ctx.obj or Globals()
            # The variable comes last: an option before the command counts for more than the environment.
            chosen = address or given.address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
            credentials = {
                name: arguments.pop(f"own_{name}") or given.credentials.get(name) or os.environ.get(variable) or ""
                for name, (_, variable, _) in _CREDENTIALS.items()
            }
            try:
                session = Session(
                    chosen, {name: value for name, value in credentials.items() if value}, json=json or given.json
                )
                with session.client:
                    function(session, **arguments)
            except BrokenPipeError:
                # Whoever read the output has enough; typer ends quietly.
                raise
            except (LuthierClientError, WrongUse, OSError) as error:
                output.print_error(Console(stderr=True, highlight=False), chosen, error)
                raise typer.Exit(status_of(error)) from error

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        # Said once, before the command, they would fill each command's help.
        hidden = {f"own_{name}": _credential(name, hidden=True) for name in _CREDENTIALS}
        added = {"ctx": typer.Context, "address": AddressOption, "json": JsonOption, **hidden}
        defaults: Mapping[str, Any] = {"ctx": inspect.Parameter.empty, "json": False}
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [parameter.replace(kind=keyword) for parameter in own] + [
            inspect.Parameter(name, keyword, default=defaults.get(name), annotation=annotation)
            for name, annotation in added.items()
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(run)
        return function

    return register


def status_of(error: Exception) -> int:
    """The exit status for an error: 2 where the command line was wrong, 1 where something failed."""
    wrong_use = isinstance(error, WrongUse | InvalidArgument | FileNotFoundError) and not isinstance(
        error, OperationFailed
    )
    return WRONG_USE if wrong_use else FAILED
