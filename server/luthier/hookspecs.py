"""The hooks that a plugin may implement.

A plugin is a module or object named by an entry point in the group `luthier`. Mark an implementation with `hookimpl`.
"""

from collections.abc import Iterable

import pluggy

from luthier.task import Task

hookspec = pluggy.HookspecMarker("luthier")
hookimpl = pluggy.HookimplMarker("luthier")


@hookspec
def luthier_tasks() -> Iterable[Task]:
    """Returns the tasks that the plugin brings.

    Called once in each process, right after the plugin was imported. It runs in the serving process too, so neither it
    nor the plugin's module may import a training framework. Where two plugins bring the same task id, the one from
    Luthier's own distribution wins, then the first by the names of the distributions; the other is reported.
    """
    raise AssertionError("a specification is never called")
