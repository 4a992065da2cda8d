"""`luthier tokens` and `luthier audit`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from luthier.v1.access_pb2 import Role, Token
from luthier_client.cli import output
from luthier_client.cli.session import Session, WrongUse, command

tokens = typer.Typer(help="Static tokens of a server that asks for them; for administrators.", no_args_is_help=True)

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(tokens, name="tokens")
    command(app, "audit")(audit)


@command(tokens, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Whom the token makes its bearer, such as shop-backend.")],
    role: Annotated[Literal["viewer", "caller", "tuner", "admin"], typer.Option(help="What the bearer may do.")],
    model: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Models that it is for, such as 'shop-*'. [all]")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Data sets that it is for. [all]")
    ] = None,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it lasts: 90d, 12h, 30m. [for good]")] = "",
) -> None:
    """Make a token, and print it this once."""
    made = session.client.create_token(
        name,
        role=Role.Value(f"ROLE_{role.upper()}"),
        models=model or (),
        datasets=dataset or (),
        expire_time=datetime.now(UTC) + span(expires, "--expires") if expires else None,
    )
    session.note(f"{made.token.name} for {name}; the server keeps no copy of what follows")
    session.show(session.document(made), made.secret)


@command(tokens, "list")
def list_tokens(session: Session) -> None:
    """List tokens, newest first."""
    found = list(session.client.list_tokens())
    session.show(
        [session.document(token) for token in found],
        output.table(
            "token",
            "principal",
            "role",
            "models",
            "data sets",
            "state",
            "last used",
            rows=[
                (
                    output.last(token.name),
                    token.principal,
                    Role.Name(token.role).removeprefix("ROLE_").lower(),
                    list(token.models),
                    list(token.datasets),
                    state(token, datetime.now(UTC)),
                    output.moment(token.last_use_time),
                )
                for token in found
            ],
        ),
    )


@command(tokens, "revoke")
def revoke(session: Session, token: str) -> None:
    """End a token."""
    revoked = session.client.revoke_token(token)
    session.show(session.document(revoked), f"{revoked.name} of {revoked.principal} is no longer valid")


def audit(
    session: Session,
    principal: Annotated[str, typer.Option(help="Only those of a principal.")] = "",
    method: Annotated[str, typer.Option(help="Only those of a method, such as SetAlias.")] = "",
    resource: Annotated[str, typer.Option(help="Only those about a resource, such as models/beer.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="Only the newest: 7d, 12h, 30m. [all]")] = "",
) -> None:
    """List calls that changed something, or were to, newest first; for administrators."""
    found = list(
        session.client.list_audit_entries(
            principal=principal,
            method=method,
            resource=resource,
            start_time=datetime.now(UTC) - span(since, "--since") if since else None,
        )
    )
    session.show(
        [session.document(entry) for entry in found],
        output.table(
            "time",
            "principal",
            "method",
            "resource",
            "code",
            "request",
            "from",
            rows=[
                (
                    output.moment(entry.time),
                    entry.principal or "(nobody knows)",
                    output.last(entry.method),
                    entry.resource,
                    entry.code,
                    entry.request_id,
                    entry.peer,
                )
                for entry in found
            ],
        ),
    )


def span(text: str, option: str) -> timedelta:
    """`90d` as a time."""
    if not (match := re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)):
        raise WrongUse(f"{option} {text}: a number of minutes, hours or days, such as 30m, 12h or 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def state(token: Token, now: datetime) -> str:
    """`valid until 2030-01-31 12:00:00` and the like."""
    if token.HasField("revoke_time"):
        return f"revoked {output.moment(token.revoke_time)}"
    if not token.HasField("expire_time"):
        return "valid"
    over = token.expire_time.ToDatetime(UTC) <= now
    return f"{'expired' if over else 'valid until'} {output.moment(token.expire_time)}"
