"""Broken plugins, from tests/plugins/broken, beside one that works: each is reported by name, the rest go on."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from luthier import plugins
from luthier.errors import NotFound

BROKEN = {
    "broken_import": "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
    "broken_exit": "SystemExit: 3",
    "broken_name": "PluginValidationError: unknown hook 'luthier_task' in plugin",
    "broken_signature": "PluginValidationError: Plugin 'broken_signature' for hook 'luthier_tasks'",
    "broken_hook": "OSError: the licence server does not answer",
    "broken_task": "TypeError: luthier_tasks gave 'acme-regression', which is not a luthier.task.Task",
    "broken_service": "TypeError: luthier.v1.TaskService.ListTasks: the request needs the fields",
    "broken_id": "ValueError: 'Acme/Regression' is not a task id",
    "broken_nothing": "ValueError: it implements no hook",
    "duplicate": "ValueError: it brings a task that is there already: acme-regression of another plugin",
    "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
}


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "plugins" / "broken")


def point(module: str, name: str = "") -> EntryPoint:
    return EntryPoint(name or module, module, plugins.GROUP)


GOOD = point("acme_regression")


@pytest.mark.parametrize("module", BROKEN)
def test_a_broken_plugin_is_reported_and_the_rest_work(module: str) -> None:
    found = plugins.load([point(module), GOOD])
    assert found.tasks.keys() == {"acme-regression"}
    (failure,) = found.failures
    assert failure.plugin == module
    assert failure.reason.startswith(BROKEN[module])
    assert "\n" not in failure.reason


def test_all_broken_ones_together_are_each_reported_once() -> None:
    found = plugins.load([*map(point, BROKEN), GOOD])
    assert {failure.plugin: failure.reason.split(":")[0] for failure in found.failures} == {
        module: reason.split(":")[0] for module, reason in BROKEN.items()
    }
    assert found.tasks.keys() == {"acme-regression"}


def test_nothing_of_a_broken_plugin_stays_registered() -> None:
    found = plugins.load([*map(point, BROKEN), GOOD])
    assert [name for name, _ in found.manager.list_name_plugin()] == ["acme_regression"]
    ((task,),) = found.manager.hook.luthier_tasks()
    assert task is not None
    found.manager.check_pending()


def test_a_plugin_that_brings_a_duplicate_brings_nothing() -> None:
    assert "a-task-of-its-own" not in plugins.load([GOOD, point("duplicate")]).tasks


def test_of_two_with_one_task_the_first_by_name_wins() -> None:
    found = plugins.load([point("duplicate", "zebra"), point("acme_regression", "aardvark")])
    assert found.manager.has_plugin("aardvark")
    assert [failure.plugin for failure in found.failures] == ["zebra"]


def test_each_load_has_a_manager_of_its_own() -> None:
    one, other = plugins.load([GOOD]), plugins.load([GOOD])
    assert one.manager is not other.manager
    assert one.tasks.keys() == other.tasks.keys()


def test_without_plugins_nothing_fails() -> None:
    found = plugins.load([])
    assert not found.tasks
    assert not found.failures


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"tasks/poetry was not found; there are acme-regression"):
        plugins.load([GOOD]).task("poetry")


def test_built_in_tasks_come_as_a_strangers_do() -> None:
    """The environment's own entry points: the built-in tasks win their ids, and say which distribution they are of."""
    found = plugins.load()
    assert not found.failures
    assert found.loaded["text-classification"].distribution == "luthier"
    assert found.loaded["recommendation"].distribution == "luthier"
    assert found.loaded["acme-regression"].distribution == "acme-regression"
