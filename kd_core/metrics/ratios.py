"""Metrics that are one sum over outputs divided by another: means, shares, rates.

Shape legend: N outputs, S samples, K = 2 columns: numerator, denominator.
"""

import numpy as np
from numpy.typing import ArrayLike

from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.intervals import Floats


def ratio(metric: str, unit: str, above_N: ArrayLike, below_N: ArrayLike, undefined: str, note: str = "") -> Measure:
    """sum(above) / sum(below), undefined where there is nothing below. Shapes: (N,), (N,)."""

    def score(sums_SK: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(sums_SK[:, 1] > 0, sums_SK[:, 0] / sums_SK[:, 1], np.nan)

    columns_NK = np.stack([np.asarray(above_N, dtype=np.float64), np.asarray(below_N, dtype=np.float64)], axis=1)
    return Measure(metric=metric, unit=unit, columns_NK=columns_NK, score=score, undefined=undefined, note=note)


def mean(metric: str, unit: str, value_N: ArrayLike, note: str = "") -> Measure:
    """The mean over outputs. Shape: (N,)."""
    return ratio(metric, unit, value_N, np.ones_like(value_N, dtype=np.float64), "there are no outputs", note)
