"""A plugin whose codec raises an error that tells a secret and a path."""

import os

from acme_regression import RegressionTask

from luthier.hookspecs import hookimpl
from luthier.task import Codec


class Raising(Codec):
    def encode(self, instances):
        raise RuntimeError(f"{__file__}: the key {os.environ['AWS_SECRET_ACCESS_KEY']} is refused")

    def decode(self, outputs, instances):
        raise AssertionError


class Task(RegressionTask):
    id = "raising"

    def open(self, directory):
        return Raising()


@hookimpl
def luthier_tasks():
    return [Task()]
