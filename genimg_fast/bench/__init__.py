"""Benchmarks: the cases of this package, and the user's own, timed against all others that compute the same."""

from genimg_fast.bench.case import Case, Step
from genimg_fast.bench.gate import WrongResultError
from genimg_fast.bench.own import Comparison, compare
from genimg_fast.bench.results import Result, Row, load
from genimg_fast.bench.statistics import Ratio

__all__ = ["Case", "Comparison", "Ratio", "Result", "Row", "Step", "WrongResultError", "compare", "load"]
