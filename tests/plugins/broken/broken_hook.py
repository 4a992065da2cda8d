"""A plugin whose hook raises."""

from luthier.hookspecs import hookimpl


@hookimpl
def luthier_tasks():
    raise OSError("the licence server does not answer")
