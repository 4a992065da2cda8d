"""A plugin whose hook takes what the specification does not give; pluggy leaves it half-registered."""

from luthier.hookspecs import hookimpl


@hookimpl
def luthier_tasks(settings):
    return []
