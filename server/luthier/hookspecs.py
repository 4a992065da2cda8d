"""The hooks that a plugin may implement.

A plugin is a module or object named by an entry point in the group `luthier`. Mark an implementation with `hookimpl`.
"""

from collections.abc import Iterable

import pluggy

from luthier.access.principal import Credentials, Principal
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


@hookspec(firstresult=True)
def luthier_authenticate(credentials: Credentials) -> Principal | None:
    """Returns who calls, or None for those whom the plugin does not know.

    Called by a server with `--tokens`, for each call but those that ask whether the server is up, and again for each
    message of a stream. It runs in the thread of the call, so it is to answer from memory. A plugin's answer comes
    before tokens of any kind; where it is None, the next plugin is asked, and then the server itself. Of several
    plugins the one that was loaded last is asked first, unless another is marked with `hookimpl(tryfirst=True)`. An
    Unauthenticated that it raises ends the call; so does any other exception, as INTERNAL. The policy file bounds its
    principals as all others.
    """
    raise AssertionError("a specification is never called")
