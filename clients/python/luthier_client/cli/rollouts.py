"""`luthier rollouts` and `luthier feedback`."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from luthier.v1.model_pb2 import Recording
from luthier.v1.rollout_pb2 import Rollout, RolloutEvent, RolloutRule, RolloutSide
from luthier_client import names
from luthier_client.cli import output
from luthier_client.cli.session import Session, WrongUse, command

rollouts = typer.Typer(help="A version tried beside an alias's own, by a share of its calls.", no_args_is_help=True)

Which = Annotated[
    str, typer.Argument(metavar="ROLLOUT|MODEL[@ALIAS]", help="Its id, or an alias for the newest of it.")
]

_MODES = {"off": Recording.MODE_OFF, "predictions": Recording.MODE_PREDICTIONS, "inputs": Recording.MODE_INPUTS}


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(rollouts, name="rollouts")
    command(app, "feedback")(feedback)


@command(rollouts, "start")
def start(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]")],
    candidate: Annotated[
        int | None, typer.Argument(help="Number of the version to try; left out: shadows alone.")
    ] = None,
    percent: Annotated[float, typer.Option(help="Share of the calls that it answers.")] = 0.0,
    shadow: Annotated[
        list[int] | None, typer.Option(help="Number of a version that predicts without being heard.")
    ] = None,
    record: Annotated[
        str, typer.Option(help="What is kept meanwhile: off, predictions or inputs. [as the alias]")
    ] = "",
    sample: Annotated[float | None, typer.Option(help="Share of the calls that is kept. [all]")] = None,
    automatic: Annotated[bool, typer.Option("--automatic/--manual", help="Whether feedback decides.")] = True,
    error_probability: Annotated[float, typer.Option(help="Most probability of a wrong decision by feedback.")] = 0.05,
    tolerance: Annotated[float, typer.Option(help="How much worse a version may be and yet be promoted.")] = 0.0,
    first_look: Annotated[int, typer.Option(help="Callers with feedback that each side needs at first.")] = 50,
    max_error_rate: Annotated[float, typer.Option(help="How much more of its calls than others' may fail.")] = 0.01,
) -> None:
    """Try a version beside the one that an alias names."""
    rule = RolloutRule(
        automatic=automatic,
        error_probability=error_probability,
        tolerance=tolerance,
        first_look=first_look,
        max_error_rate=max_error_rate,
    )
    started = session.client.start_rollout(
        model, candidate, percent=percent, shadows=shadow or (), rule=rule, recording=recording(record, sample)
    )
    session.show(session.document(started), *described(started))


@command(rollouts, "list")
def list_rollouts(session: Session, model: str = "") -> None:
    """List rollouts, newest first."""
    found = list(session.client.list_rollouts(model))
    session.show(
        [session.document(rollout) for rollout in found],
        output.table(
            "rollout",
            "alias",
            "from",
            "to",
            "percent",
            "state",
            "started",
            rows=[
                (
                    output.last(rollout.name),
                    alias(rollout),
                    output.short(rollout.stable),
                    output.short(rollout.candidate) if rollout.candidate else "",
                    rollout.percent,
                    state(rollout),
                    output.moment(rollout.create_time),
                )
                for rollout in found
            ],
        ),
    )


@command(rollouts, "show")
def show(session: Session, rollout: Which) -> None:
    """Show both sides of a rollout, each metric with its 95 % interval."""
    found = session.client.get_rollout(named(session, rollout))
    session.show(session.document(found), *described(found))


@command(rollouts, "watch")
def watch(session: Session, rollout: Which) -> None:
    """Watch a rollout until it is over, and print its events."""
    name = named(session, rollout)
    seen = []
    for event in session.client.watch_rollout(name):
        seen.append(event)
        kind = RolloutEvent.Kind.Name(event.kind).removeprefix("KIND_").replace("_", " ").lower()
        session.note(f"{output.moment(event.time)} {kind}: {event.message}")
    found = session.client.get_rollout(name)
    session.show([session.document(event) for event in seen], *described(found))


@command(rollouts, "update")
def update(
    session: Session,
    rollout: Which,
    percent: Annotated[float | None, typer.Option(help="Share of the calls from now on.")] = None,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Have the alias's version answer all calls for a while.")
    ] = None,
) -> None:
    """Change the share of the calls, pause, or go on."""
    changed = session.client.update_rollout(named(session, rollout), percent=percent, paused=paused)
    session.show(session.document(changed), *described(changed))


@command(rollouts, "promote")
def promote(session: Session, rollout: Which, reason: str = "") -> None:
    """End a rollout with the alias at the version that was tried."""
    _stop(session, rollout, True, reason)


@command(rollouts, "roll-back")
def roll_back(session: Session, rollout: Which, reason: str = "") -> None:
    """End a rollout with the alias where it is."""
    _stop(session, rollout, False, reason)


def feedback(
    session: Session,
    model: str,
    prediction: Annotated[
        str, typer.Argument(metavar="PREDICTION_ID", help="As the answer to the prediction gave it.")
    ],
    labels: Annotated[
        list[str], typer.Argument(metavar="LABEL...", help="JSON of the task's example, without inputs.")
    ],
    index: Annotated[int, typer.Option(help="Which of the call's predictions, from 0.")] = 0,
) -> None:
    """Say what was true for a prediction."""
    try:
        examples: list[dict[str, Any]] = [json.loads(label) for label in labels]
    except json.JSONDecodeError as error:
        raise WrongUse(f"a label is no JSON: {error}") from error
    recorded = session.client.record_feedback(model, prediction, examples, index=index)
    said = "replaced other feedback" if recorded.replaced else "recorded"
    session.show(session.document(recorded), f"{said}: {output.short(recorded.model_version)}, {recorded.value:g}")


def named(session: Session, rollout: str) -> str:
    """The rollout of an id, or the newest of an alias; a bare model stands for its alias `production`."""
    if re.fullmatch("(rollouts/)?[0-9a-f]{32}", rollout):
        return rollout
    model = rollout if "@" in rollout else f"{rollout}@{names.PRODUCTION}"
    for found in session.client.list_rollouts(model):
        if alias(found) == model:
            return found.name
    raise WrongUse(f"{model} has no rollout")


def recording(mode: str, sample: float | None) -> Recording | None:
    """What is to be kept; None where neither is said."""
    if mode and mode not in _MODES:
        raise WrongUse(f"--record is one of {', '.join(_MODES)}, not {mode}")
    return (
        Recording(mode=_MODES[mode] if mode else Recording.MODE_UNSPECIFIED, sample=sample)
        if mode or sample is not None
        else None
    )


def described(rollout: Rollout) -> list[RenderableType]:
    """A rollout: where it stands, both sides, and how they compare."""
    facts = {
        "rollout": output.last(rollout.name),
        "alias": alias(rollout),
        "state": state(rollout),
        "why": rollout.reason,
        "percent": rollout.percent,
        "started": output.moment(rollout.create_time),
    }
    against = rollout.comparison
    if rollout.HasField("comparison"):
        facts["better by"] = (
            f"{output.number(against.difference)}, between {output.number(against.lower)} and "
            f"{output.number(against.upper)} with {against.confidence:.2%} confidence"
        )
        facts["looks"] = f"{against.looks}; the next at {against.next_look} callers with feedback a side"
    sides = output.table(
        "side",
        "version",
        "calls",
        "errors",
        "ms",
        "feedback",
        "callers",
        rollout.sides[0].metric if rollout.sides else "metric",
        "95 %",
        rows=[
            (
                RolloutSide.Role.Name(side.role).removeprefix("ROLE_").lower(),
                output.short(side.model_version),
                side.calls,
                side.errors,
                side.mean_latency_s * 1000,
                side.labels,
                side.callers,
                side.value if side.HasField("value") else "",
                f"{output.number(side.lower)} to {output.number(side.upper)}" if side.HasField("value") else "",
            )
            for side in rollout.sides
        ],
    )
    return [output.facts(facts), *([sides] if rollout.sides else [])]


def alias(rollout: Rollout) -> str:
    """`beer@production`."""
    _, model, _, name = rollout.alias.split("/")
    return f"{model}@{name}"


def state(rollout: Rollout) -> str:
    """`running` and the like."""
    return Rollout.State.Name(rollout.state).removeprefix("STATE_").replace("_", " ").lower()


def _stop(session: Session, rollout: str, promote: bool, reason: str) -> None:
    ended = session.client.stop_rollout(named(session, rollout), promote=promote, reason=reason)
    session.show(session.document(ended), *described(session.client.get_rollout(ended.name)))
