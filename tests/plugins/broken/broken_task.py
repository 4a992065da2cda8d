"""A plugin that brings something that is no task."""

from luthier.hookspecs import hookimpl


@hookimpl
def luthier_tasks():
    return ["acme-regression"]
