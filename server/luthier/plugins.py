"""Finding and loading plugins, one at a time, so that a broken one harms nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import pluggy

from luthier import hookspecs
from luthier.errors import NotFound
from luthier.task import Task

GROUP = "luthier"
_TASK_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be loaded, and why."""

    plugin: str
    reason: str


@dataclass(frozen=True)
class LoadedTask:
    """A task and where it came from."""

    task: Task
    distribution: str
    version: str


@dataclass(frozen=True)
class Plugins:
    """What was found."""

    manager: pluggy.PluginManager
    loaded: Mapping[str, LoadedTask]
    failures: tuple[Failure, ...]

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks by id."""
        return {id: loaded.task for id, loaded in self.loaded.items()}

    def task(self, id: str) -> Task:
        """Returns a task, or raises NotFound naming those there are."""
        if id not in self.loaded:
            raise NotFound(f"tasks/{id}", f"there are {', '.join(sorted(self.loaded)) or 'none'}")
        return self.loaded[id].task


def load(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Loads every plugin of the environment, or those given."""
    manager = pluggy.PluginManager("luthier")
    manager.add_hookspecs(hookspecs)
    loaded: dict[str, LoadedTask] = {}
    failures: list[Failure] = []
    for point in sorted(entry_points(group=GROUP) if points is None else points, key=_order):
        distribution, version = _origin(point)
        name = f"{point.name} ({distribution})" if distribution else point.name
        try:
            tasks = _register(manager, name, point.load())
            fresh = {_checked(task).id: LoadedTask(task, distribution, version) for task in tasks}
            if twice := sorted(fresh.keys() & loaded.keys()):
                others = ", ".join(f"{id} of {loaded[id].distribution or 'another plugin'}" for id in twice)
                raise ValueError(f"it brings a task that is there already: {others}")
        # A plugin is a stranger's code: whatever it raises, sys.exit included, is recorded, and the rest go on.
        except (Exception, SystemExit) as error:
            if manager.has_plugin(name):
                manager.unregister(name=name)
            failures.append(Failure(name, f"{type(error).__name__}: {error}".splitlines()[0]))
        else:
            loaded |= fresh
    return Plugins(manager, dict(sorted(loaded.items())), tuple(failures))


def _register(manager: pluggy.PluginManager, name: str, plugin: object) -> list[Task]:
    """Registers a plugin, refuses misspelt hooks and returns its tasks."""
    manager.register(plugin, name)
    # pluggy reports an unknown hook only for all plugins together; this one is the newest, so it is to blame.
    manager.check_pending()
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise ValueError("it implements no hook")
    others = [other for other in manager.get_plugins() if other is not plugin]
    found = manager.subset_hook_caller("luthier_tasks", others)()
    return [task for tasks in found for task in tasks]


def _checked(task: Task) -> Task:
    """Refuses a task that could not be served."""
    if not isinstance(task, Task):
        raise TypeError(f"luthier_tasks gave {task!r}, which is not a luthier.task.Task")
    if not _TASK_ID.fullmatch(task.id):
        raise ValueError(f"{task.id!r} is not a task id: small letters, digits and `-`, a letter first")
    if not task.methods:
        raise ValueError(f"{task.service.full_name} has no unary method")
    return task


def _order(point: EntryPoint) -> tuple[bool, str, str]:
    distribution, _ = _origin(point)
    return (distribution != "luthier", distribution, point.name)


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("", "")
