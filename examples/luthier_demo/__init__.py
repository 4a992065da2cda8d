"""A tour of Luthier on data made for it: `luthier demo`."""

from luthier_demo.demo import run
from luthier_demo.stops import FIRST, STOPS

__all__ = ["FIRST", "STOPS", "run"]
