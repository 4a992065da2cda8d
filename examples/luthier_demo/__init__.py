"""A tour of Luthier on data made for it: `luthier demo`."""

from luthier_demo.demo import run

__all__ = ["run"]
