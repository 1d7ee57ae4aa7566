"""Metrics that are one sum over outputs divided by another: means, shares, rates.

Shape legend: N outputs, S samples, K = 2 columns: numerator, denominator.
"""

import numpy as np
from numpy.typing import ArrayLike

from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.intervals import Floats


def quotient(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where there is nothing below. Shapes: any two of one shape -> the same."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def ratio(metric: str, unit: str, above_N: ArrayLike, below_N: ArrayLike, undefined: str, note: str = "") -> Measure:
    """sum(above) / sum(below), undefined where there is nothing below. Shapes: (N,), (N,)."""

    def score(sums_SK: Floats) -> Floats:
        return quotient(sums_SK[:, 0], sums_SK[:, 1])

    columns_NK = np.stack([np.asarray(above_N, dtype=np.float64), np.asarray(below_N, dtype=np.float64)], axis=1)
    return Measure(metric=metric, unit=unit, columns_NK=columns_NK, score=score, undefined=undefined, note=note)


def mean(metric: str, unit: str, value_N: ArrayLike, note: str = "") -> Measure:
    """The mean over outputs. Shape: (N,)."""
    return ratio(metric, unit, value_N, np.ones_like(value_N, dtype=np.float64), "there are no outputs", note)
