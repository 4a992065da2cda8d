"""`luthier operations`."""

from __future__ import annotations

from typing import Any

import typer

from luthier.v1.operation_pb2 import OperationMetadata
from luthier_client.cli import output
from luthier_client.cli.progress import follow, pace
from luthier_client.cli.session import Session, command
from luthier_client.operation import Operation

operations = typer.Typer(help="Long-running work: watch it, hold it, end it.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(operations, name="operations")


@command(operations, "list")
def list_operations(session: Session) -> None:
    """List operations, newest first."""
    found = list(session.client.list_operations())
    session.show(
        [session.document(operation.proto) for operation in found],
        output.table(
            "operation",
            "kind",
            "target",
            "state",
            "progress",
            "asked for",
            rows=[
                (
                    output.last(operation.name),
                    kind(operation.metadata),
                    operation.metadata.target,
                    state(operation.metadata),
                    progress(operation.metadata),
                    output.moment(operation.metadata.create_time),
                )
                for operation in found
            ],
        ),
    )


@command(operations, "show")
def show(session: Session, operation: str) -> None:
    """Show where an operation stands."""
    found: Operation[Any] = session.client.get_operation(operation)
    metadata = found.metadata
    session.show(
        session.document(found.proto),
        output.facts(
            {
                "operation": found.name,
                "kind": kind(metadata),
                "target": metadata.target,
                "state": state(metadata),
                "attempt": metadata.attempt,
                "progress": progress(metadata),
                "asked for": output.moment(metadata.create_time),
                "changed": output.moment(metadata.update_time),
                "error": found.proto.error.message,
            }
        ),
    )


@command(operations, "watch")
def watch(session: Session, operation: str) -> None:
    """Watch an operation until it has ended, and print its response."""
    response = follow(session, session.client.get_operation(operation))
    session.show(session.document(response), f"{response.name} is ready")


@command(operations, "cancel")
def cancel(session: Session, operation: str) -> None:
    """Ask an operation to end."""
    session.client.cancel_operation(operation)
    session.show({"cancelling": operation}, f"asked {operation} to end")


@command(operations, "pause")
def pause(session: Session, operation: str) -> None:
    """Hold an operation; a training saves where it stands first."""
    paused = session.client.pause_operation(operation)
    session.show(session.document(paused.proto), f"asked {operation} to pause; luthier operations resume {operation}")


@command(operations, "resume")
def resume(session: Session, operation: str) -> None:
    """Put an operation that is held back into the queue."""
    resumed = session.client.resume_operation(operation)
    session.show(session.document(resumed.proto), f"{operation} goes on")


@command(operations, "delete")
def delete(session: Session, operation: str) -> None:
    """Forget an operation that has ended, with what only it keeps."""
    session.client.delete_operation(operation)
    session.show({"deleted": operation}, f"deleted {operation}")


def kind(metadata: OperationMetadata) -> str:
    """`fine-tune` and the like."""
    return OperationMetadata.Kind.Name(metadata.kind).removeprefix("KIND_").replace("_", "-").lower()


def state(metadata: OperationMetadata) -> str:
    """`running` and the like."""
    return OperationMetadata.State.Name(metadata.state).removeprefix("STATE_").lower()


def progress(metadata: OperationMetadata) -> str:
    """The stage, how far it is, and how fast it goes on."""
    step = metadata.progress
    steps = f"{step.step}/{step.total}" if step.total else ""
    rate = pace(step) if metadata.state == OperationMetadata.STATE_RUNNING else ""
    return " ".join(part for part in (step.stage, steps, rate) if part)
