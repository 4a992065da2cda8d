"""What becomes of rollouts: their figures, and the rule by which they are promoted or rolled back.

A candidate is promoted when the whole interval of its advantage, at a look's confidence, is above minus the tolerance,
and rolled back when it is below 0; see `luthier.comparison` for both. It is rolled back at once when it fails a call by
an error of its own or cannot be loaded, and when more of its calls fail than of the other side's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from luthier import comparison, feedback, names
from luthier.comparison import Estimate, Labelled
from luthier.errors import LuthierError, NotFound
from luthier.journal import Journal
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.rollouts import Rollouts, Split, versions_of
from luthier.task import Task
from luthier.v1 import rollout_pb2 as pb

log = structlog.get_logger()

LOOK_S = 0.5
"""Seconds between looks at whether a rollout has what its rule needs."""
COUNTED = 100
"""Calls of the candidate before their errors are held against it."""
MOST = 10_000
"""Labels of a side, the newest, that figures are made of; of a task that scores them together a tenth."""
_KNOWN = 32


@dataclass(frozen=True)
class Figures:
    """What the labels of a rollout say."""

    sides: Mapping[str, Estimate]
    """By version, of those that have labels."""
    comparison: pb.RolloutComparison | None


class Judge:
    """Looks at rollouts under way, on a thread of its own. Several servers may: each decision is taken once."""

    def __init__(
        self,
        rollouts: Rollouts,
        journal: Journal,
        registry: Registry,
        plugins: Plugins,
        splits: Callable[[], Sequence[Split]],
        broken: Mapping[str, str],
        woken: threading.Event,
    ) -> None:
        """`splits` gives the rollouts under way; `broken`, by rollout, why its candidate is to go, and `woken` is set
        when there is a new one."""
        self._rollouts = rollouts
        self._journal = journal
        self._registry = registry
        self._plugins = plugins
        self._splits = splits
        self._broken = broken
        self._woken = woken
        self._stopped = False
        self._known: dict[str, tuple[object, Figures]] = {}
        """By rollout, figures and the labels that they were made of."""
        self._judged: dict[str, int] = {}
        """By rollout, how much feedback this process had been told when it found too few labels for a look."""
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, after the look under way."""
        self._stopped = True
        self._woken.set()
        self._thread.join()

    def with_figures(self, id: str) -> pb.Rollout:
        """A rollout with its sides and what they come to; raises NotFound."""
        rollout = self._rollouts.get(id)
        self._journal.flush()
        task = self._task(rollout)
        calls, counts, figures = self._journal.calls(id), self._journal.num_labels(id), self.figures(rollout, task)
        for version, role in versions_of(rollout):
            asked, errors, seconds = calls.get(version, (0, 0, 0.0))
            labels, callers = counts.get(version, (0, 0))
            side = rollout.sides.add(
                role=role,
                model_version=version,
                calls=asked,
                errors=errors,
                mean_latency_s=seconds / asked if asked else 0.0,
                labels=labels,
                callers=callers,
                metric=task.primary_metric,
            )
            if found := figures.sides.get(version):
                side.value, side.lower, side.upper = found.value, found.lower, found.upper
        if figures.comparison is not None:
            rollout.comparison.CopyFrom(figures.comparison)
        return rollout

    def figures(self, rollout: pb.Rollout, task: Task) -> Figures:
        """What the labels of a rollout say at present, at the confidence of its next look."""
        id = rollout.name.rpartition("/")[2]
        looks, next_look = self._rollouts.looks(id)
        most = MOST if task.averages else MOST // 10
        sides = {version: self._journal.labelled(id, version, most) for version, _ in versions_of(rollout)}
        seen = looks, {v: [(one.id, one.index, one.value) for one in rows] for v, rows in sides.items()}
        known = self._known.get(id)
        if known is None or known[0] != seen:
            if len(self._known) > _KNOWN:
                self._known.clear()
            ready = {version: feedback.labelled(task, rows) for version, rows in sides.items() if rows}
            self._known[id] = known = (seen, _figures(rollout, task, ready, looks, next_look))
        return known[1]

    def look(self, split: Split) -> None:
        """Decides about one rollout, where there is something to decide by."""
        id = split.rollout
        if why := self._broken.get(id) or (split.broken and f"it cannot be loaded: {split.broken.message}"):
            self._told(self._rollouts.roll_back(id, why))
            return
        rollout = self._rollouts.get(id)
        if rollout.state != pb.Rollout.STATE_RUNNING or not rollout.candidate:
            return
        if why := _fails(rollout, self._journal.calls(id)):
            self._told(self._rollouts.roll_back(id, why))
            return
        if not rollout.rule.automatic:
            return
        # Each process counts labels when it was told one: whoever took the last that is needed finds it so.
        told = self._journal.told
        if self._judged.get(id) == told:
            return
        looks, next_look = self._rollouts.looks(id)
        callers = {version: count for version, (_, count) in self._journal.num_labels(id).items()}
        fewest = min(callers.get(rollout.stable, 0), callers.get(rollout.candidate, 0))
        if fewest < next_look:
            self._judged[id] = told
            return
        task = self._task(rollout)
        found = self.figures(rollout, task).comparison
        if found is None:
            return
        taken = pb.RolloutComparison()
        taken.CopyFrom(found)
        taken.looks, taken.next_look = looks + 1, 2 * fewest
        what = (
            f"look {looks + 1}, at {fewest} callers with labels a side or more: {task.primary_metric} is "
            f"{abs(taken.difference):.4f} {'better' if taken.difference >= 0 else 'worse'}, an advantage between "
            f"{taken.lower:.4f} and {taken.upper:.4f} with {taken.confidence:.2%} confidence"
        )
        if taken.lower > -rollout.rule.tolerance:
            self._told(self._rollouts.promote(id, what, taken, looks + 1))
        elif taken.upper < 0:
            self._told(self._rollouts.roll_back(id, what, taken, looks + 1))
        else:
            self._rollouts.undecided(id, what, taken, looks + 1)

    def _run(self) -> None:
        while not self._stopped:
            for split in self._splits():
                try:
                    self.look(split)
                except NotFound:
                    pass  # It was deleted with its model.
                except sa.exc.OperationalError as error:
                    log.warning("database unreachable", error=type(error.orig).__name__)
                except LuthierError as error:
                    log.warning("rollout not judged", rollout=split.rollout, why=error.message)
                except Exception as error:
                    log.error("rollout not judged", rollout=split.rollout, exc_info=error)
            self._woken.wait(LOOK_S)
            if not self._stopped:
                self._woken.clear()

    def _task(self, rollout: pb.Rollout) -> Task:
        model, _ = names.parse("models/{model}/versions/{number}", rollout.stable)
        return self._plugins.task(self._registry.model(model).task)

    def _told(self, rollout: pb.Rollout) -> None:
        state = pb.Rollout.State.Name(rollout.state).removeprefix("STATE_").lower()
        log.info("rollout decided", rollout=rollout.name, alias=rollout.alias, state=state, why=rollout.reason)


def _figures(rollout: pb.Rollout, task: Task, ready: Mapping[str, Labelled], looks: int, next_look: int) -> Figures:
    sides = {version: comparison.estimate(side) for version, side in ready.items() if version not in _both(rollout)}
    stable, candidate = ready.get(rollout.stable), ready.get(rollout.candidate)
    if stable is None or candidate is None:
        alone = {rollout.stable: stable, rollout.candidate: candidate}
        sides |= {version: comparison.estimate(side) for version, side in alone.items() if side is not None}
        return Figures(sides, None)
    found = comparison.estimates(stable, candidate)
    sides |= {rollout.stable: found[0], rollout.candidate: found[1]}
    alpha = comparison.spent(rollout.rule.error_probability, looks + 1)
    against = comparison.difference(*found, alpha=alpha, lower_is_better=task.lower_is_better)
    return Figures(
        sides,
        pb.RolloutComparison(
            difference=against.value,
            lower=against.lower,
            upper=against.upper,
            confidence=against.confidence,
            looks=looks,
            next_look=next_look,
        ),
    )


def _both(rollout: pb.Rollout) -> tuple[str, str]:
    return rollout.stable, rollout.candidate


def _fails(rollout: pb.Rollout, calls: Mapping[str, tuple[int, int, float]]) -> str:
    """Why a candidate's errors are too many; empty where they are not."""
    count, errors, _ = calls.get(rollout.candidate, (0, 0, 0.0))
    others, others_errors, _ = calls.get(rollout.stable, (0, 0, 0.0))
    if count < COUNTED:
        return ""
    rate, usual = errors / count, others_errors / others if others else 0.0
    if rate - usual <= rollout.rule.max_error_rate:
        return ""
    return (
        f"{errors} of its {count} calls failed, {rate:.2%}, and {usual:.2%} of the other side's; more than "
        f"{rollout.rule.max_error_rate:.2%} apart"
    )
