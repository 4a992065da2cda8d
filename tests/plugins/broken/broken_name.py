"""A plugin with a misspelt hook."""

from luthier.hookspecs import hookimpl


@hookimpl
def luthier_task():
    return []
