"""A plugin that brings a task id that is there already, and one that is not."""

from acme_regression import RegressionTask

from luthier.hookspecs import hookimpl


class Task(RegressionTask):
    id = "a-task-of-its-own"


@hookimpl
def luthier_tasks():
    return [Task(), RegressionTask()]
