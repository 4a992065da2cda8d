"""`luthier health`: whether a server serves, for people and for what watches containers."""

from __future__ import annotations

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from luthier_client.cli.session import FAILED, Session, command
from luthier_client.errors import translated

_PATIENCE_S = 3.0


def add_to(app: typer.Typer) -> None:
    """Adds the command to the program."""
    command(app, "health")(health)


def health(session: Session) -> None:
    """Ask whether the server serves; exit with 0 if it does."""
    stub = health_pb2_grpc.HealthStub(session.client.channel)
    with translated():
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    session.show({"status": status}, status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(FAILED)
