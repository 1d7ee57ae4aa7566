"""Cross-entropy, perplexity and free-running cross-entropy, as measures for the bootstrap.

Shape legend: W windows, B starts, T steps, N blocks of text.

Windows overlap and neighbours resemble each other: what is resampled are blocks of consecutive text, not windows.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kd_core.metrics.bootstrap import Measure
from kd_core.metrics.intervals import Floats
from kd_core.metrics.ratios import quotient


def block_numbers(positions: NDArray[np.int64], block: int, first: int) -> NDArray[np.int64]:
    """The block of text that each position lies in, counted from `first`. Shapes: (W,) -> (W,)."""
    numbers: NDArray[np.int64] = (positions - first) // block
    return numbers


def cross_entropy(nll_W: Floats, block_W: NDArray[np.int64], num_blocks: int) -> list[Measure]:
    """`cross_entropy` in nats a token, in bits, and `perplexity` = e to the nats = 2 to the bits.

    Shapes: (W,) -log q of the true token after exact windows, (W,) block numbers.
    """
    columns_N2 = _sums(nll_W[:, None], block_W, num_blocks)
    return [
        _measure("cross_entropy", "nats/token", columns_N2, _mean),
        _measure("cross_entropy_bits", "bits/token", columns_N2, lambda sums: _mean(sums) / np.log(2)),
        _measure("perplexity", "", columns_N2, lambda sums: np.exp(_mean(sums))),
    ]


def free_running(
    nll_BT: Floats, left_BT: NDArray[np.bool_], block_B: NDArray[np.int64], num_blocks: int
) -> list[Measure]:
    """`free_running_ce`, its steps, and how often the system left the text.

    Shapes: (B, T) -log q of the true token while the system runs free, (B, T) whether it wrote another, (B,). Source:
    DaD-DAgger section 6.2: the mean over T steps from every start.
    """
    sums_NX = _sums(nll_BT, block_B, num_blocks)
    left_NX = _sums(100 * left_BT.astype(np.float64), block_B, num_blocks)
    num_steps = nll_BT.shape[1]
    whole = [
        _measure("free_running_ce", "nats/token", _all_steps(sums_NX, num_steps), _mean),
        _measure("left_text", "%", _all_steps(left_NX, num_steps), _mean),
    ]
    return whole + [
        _measure(f"{name}_{step}", unit, columns[:, [step, -1]], _mean)
        for name, unit, columns in (("free_running_ce_step", "nats/token", sums_NX), ("left_text_step", "%", left_NX))
        for step in range(num_steps)
    ]


def in_blocks(measure: Measure, block_W: NDArray[np.int64], num_blocks: int) -> Measure:
    """A measure over windows as one over blocks of text: what its windows add, summed. Shapes: (W,) block numbers."""
    return replace(measure, columns_NK=_sums(measure.columns_NK, block_W, num_blocks)[:, :-1])


def _sums(value_WT: Floats, block_W: NDArray[np.int64], num_blocks: int) -> Floats:
    """What each block adds: the sum of every column, and the number of rows. Shapes: (W, T) -> (N, T + 1)."""
    columns = [np.bincount(block_W, weights=column, minlength=num_blocks) for column in value_WT.T]
    return np.stack([*columns, np.bincount(block_W, minlength=num_blocks)], axis=1).astype(np.float64)


def _all_steps(sums_NX: Floats, num_steps: int) -> Floats:
    return np.stack([sums_NX[:, :-1].sum(axis=1), num_steps * sums_NX[:, -1]], axis=1)


def _mean(sums_S2: Floats) -> Floats:
    return quotient(sums_S2[:, 0], sums_S2[:, 1])


def _measure(metric: str, unit: str, columns_N2: Floats, score: Callable[[Floats], Floats]) -> Measure:
    return Measure(
        metric=metric,
        unit=unit,
        columns_NK=columns_N2,
        score=score,
        undefined="there are no windows",
        note="resampled in blocks of text",
    )
