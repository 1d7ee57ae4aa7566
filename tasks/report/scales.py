"""Axes: round tick values, and the place of a value in pixels."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from tasks.formatting import fixed

MARGIN = 0.06  # of the range of the values, left free at both ends


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] to [start, end] in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value is, to a tenth of a pixel."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def fitted(values: Iterable[float | None], start: float, end: float, *, margin: float = MARGIN) -> Scale:
    """A scale that holds all values with some room. Values that are None or not finite are passed over."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    all_alike = high - low <= 1e-12 * max(abs(low), abs(high))
    room = (abs(low) * 0.1 or 1.0) if all_alike else (high - low) * margin
    return Scale(low - room, high + room, start, end)


def ticks(low: float, high: float, number: int = 5, *, whole: bool = False) -> list[float]:
    """About `number` round values (1, 2 or 5 times a power of ten apart) within [low, high]; `whole`: only integers."""
    step = _round_step((high - low) / number)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """All with as many decimals as their distance needs."""
    distance = min((b - a for a, b in pairwise(values)), default=abs(values[0]) if values else 1.0)
    digits = max(0, -math.floor(math.log10(distance) + 1e-9)) if distance > 0 else 0
    return [fixed(value, digits) for value in values]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= rough * 0.999), 10.0 * power)
