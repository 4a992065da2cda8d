"""A plugin whose service lacks the fields that the server fills."""

from acme_regression import RegressionTask

from luthier.hookspecs import hookimpl
from luthier.v1 import task_pb2


class Task(RegressionTask):
    id = "unserved"
    service = task_pb2.DESCRIPTOR.services_by_name["TaskService"]


@hookimpl
def luthier_tasks():
    return [Task()]
