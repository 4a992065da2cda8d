"""A plugin with a task id that no resource name can hold."""

from acme_regression import RegressionTask

from luthier.hookspecs import hookimpl


class Task(RegressionTask):
    id = "Acme/Regression"


@hookimpl
def luthier_tasks():
    return [Task()]
