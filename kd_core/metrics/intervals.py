"""The 95 % interval of resampled values, and what becomes of resamples that have none.

A resample may leave a metric undefined (no 4-gram was drawn), and a formula that approximates may leave the range of
what it stands for (the first-order Dist of few outputs: 410 %). Both are resamples without a value, and one rule holds
for them: the interval's ends are what they would be wherever those values lay, that is, each of them counts as lying
below the lower end and above the upper one. Where these are more than the 2.5 % beyond an end, there is no interval.
The note says in how many. [ours]

Shape legend: R resamples.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Range = tuple[float, float]

LEVEL = 0.95
ROUNDING = 1e-6  # sums and exponentials of perfect outputs end at 100.00000000000004
ANY: Range = (-math.inf, math.inf)
PERCENT: Range = (0.0, 100.0)
POSITIVE: Range = (0.0, math.inf)

# by the beginning of a metric's name, of which the longest counts
RANGES: dict[str, Range] = {
    "bleu": PERCENT,
    "sacrebleu": PERCENT,
    "rouge": PERCENT,
    "distinct": PERCENT,
    "per": POSITIVE,  # edits / tokens of the reference: above 100 % where outputs are much too long
    "wer": PERCENT,
    "length": POSITIVE,
    "truncated": PERCENT,
    "reward": ANY,
    "gain": ANY,
    "log_prob": (-math.inf, 0.0),
    "teacher_entropy": POSITIVE,
    "reverse_kl": POSITIVE,
    "forward_kl": POSITIVE,
    "overlap": PERCENT,
    "equal": PERCENT,
    "repetition": PERCENT,
    "cross_entropy": POSITIVE,
    "perplexity": (1.0, math.inf),
    "free_running_ce": POSITIVE,
    "left_text": PERCENT,
    "g_eval": (0.0, 1.0),
    "g_eval_normalised": POSITIVE,
    "g_eval_refused": PERCENT,
    "g_eval_unparsed": PERCENT,
    "excess_error": (-100.0, math.inf),
}


def range_of(metric: str) -> Range:
    """The lowest and the highest value that a metric can have; a metric that is not known here may have any."""
    names = [name for name in RANGES if metric == name or metric.startswith(f"{name}_")]
    return RANGES[max(names, key=len)] if names else ANY


def difference_range(metric: str) -> Range:
    """What one value of a metric minus another can be."""
    lowest, highest = range_of(metric)
    return lowest - highest, highest - lowest


def outside(value_R: Floats, allowed: Range) -> NDArray[np.bool_]:
    """Which values are not finite or not in the range, rounding left out; undefined ones (NaN) are not among them."""
    lowest, highest = allowed
    inside_R = np.isfinite(value_R) & (value_R >= lowest - ROUNDING) & (value_R <= highest + ROUNDING)
    return ~inside_R & ~np.isnan(value_R)


def interval(value_R: Floats, allowed: Range) -> tuple[float | None, float | None, str]:
    """The percentile interval, None where there is none, and a remark. The rule for resamples without a value is above.

    value_R: (R,), NaN where undefined; none means no interval, and nothing to remark.
    """
    if not len(value_R):
        return None, None, ""
    undefined_R, outside_R = np.isnan(value_R), outside(value_R, allowed)
    without_R, tail = undefined_R | outside_R, (1 - LEVEL) / 2
    if not without_R.any():
        low, high = np.quantile(value_R, [tail, 1 - tail])
        return float(low), float(high), ""
    reasons = {
        "undefined": int(undefined_R.sum()),
        f"outside {allowed[0]:g} to {allowed[1]:g}": int(outside_R.sum()),
    }
    why = " and ".join(f"{reason} in {number}" for reason, number in reasons.items() if number)
    if without_R.sum() > math.floor(tail * (len(value_R) - 1)):
        return None, None, f"no interval: {why} of {len(value_R)} resamples"
    known_R = value_R[~without_R]
    low = np.quantile(np.where(without_R, known_R.min(), value_R), tail)
    high = np.quantile(np.where(without_R, known_R.max(), value_R), 1 - tail)
    return float(low), float(high), f"{why} of {len(value_R)} resamples, counted as beyond both ends of the interval"
