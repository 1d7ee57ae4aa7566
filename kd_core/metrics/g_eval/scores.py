"""G-Eval as measures: scores of continuations, normalised by those of the true ones, with shared resamples.

    normalised_g_eval(system_scores, true_scores) + g_eval_shares(verdicts)     # -> kd_core.metrics.bootstrap

Shape legend: N windows, S samples, K columns.
"""

from collections.abc import Sequence

import numpy as np

from kd_core.metrics.bootstrap import Measure, MetricValue
from kd_core.metrics.g_eval.reply import Verdict
from kd_core.metrics.ratios import ratio

METRICS = {
    "g_eval": "[0, 1]",
    "g_eval_true": "[0, 1]",
    "g_eval_normalised": "%",
    "g_eval_refused": "%",
    "g_eval_unparsed": "%",
}


def normalised_g_eval(system_scores: Sequence[float | None], true_scores: Sequence[float | None]) -> list[Measure]:
    """`g_eval`, `g_eval_true` and `g_eval_normalised`, over the windows where both continuations have a score.

    system_scores, true_scores: per window, in [0, 1], of the system's continuation and of the true one; None where it
    was not asked for, refused or not parsed. Normalised: 100 * sum of the system's / sum of the true ones, in %.
    Raises ValueError if the lengths differ or a score is outside [0, 1].
    Source: DaD-DAgger paper, section 6.3: the average score normalised by that of the true continuation.
    """
    if len(system_scores) != len(true_scores):
        raise ValueError(f"there are {len(system_scores)} scores of the system for {len(true_scores)} true ones")
    pairs = [
        (ours, true) if ours is not None and true is not None else None
        for ours, true in zip(system_scores, true_scores, strict=True)
    ]
    ours_N, true_N = (np.array([pair[side] if pair else 0.0 for pair in pairs]) for side in (0, 1))
    for values in (ours_N, true_N):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"a score must be in [0, 1], got {values[~((values >= 0) & (values <= 1))][0]}")
    both_N = np.array([pair is not None for pair in pairs], dtype=np.float64)
    note = f"over the {int(both_N.sum())} of {len(pairs)} windows where both continuations have a score"
    none = "no window has a score of both the continuation and the true one"
    worst = none if not both_N.any() else "every true continuation has the lowest score"
    return [
        ratio("g_eval", METRICS["g_eval"], ours_N, both_N, none, note),
        ratio("g_eval_true", METRICS["g_eval_true"], true_N, both_N, none, note),
        ratio("g_eval_normalised", METRICS["g_eval_normalised"], 100 * ours_N, true_N, worst, note),
    ]


def g_eval_shares(verdicts: Sequence[Verdict | None]) -> list[Measure]:
    """`g_eval_refused` and `g_eval_unparsed`: shares of a system's judged windows without a score. None = not asked."""
    asked_N = np.array([verdict is not None for verdict in verdicts], dtype=np.float64)
    num_weighted = sum(verdict is not None and verdict.outcome == "weighted" for verdict in verdicts)
    note = f"{int(asked_N.sum())} judged, {num_weighted} of them weighted by token probabilities"
    shares = {
        outcome: np.array([100.0 * (verdict is not None and verdict.outcome == outcome) for verdict in verdicts])
        for outcome in ("refused", "unparsed")
    }
    return [
        ratio(f"g_eval_{outcome}", "%", share_N, asked_N, "no window was judged", note)
        for outcome, share_N in shares.items()
    ]


def no_g_eval(reason: str, num_outputs: int) -> list[MetricValue]:
    """Every metric of G-Eval as absent, for the reason given."""
    return [
        MetricValue(metric=metric, value=None, low=None, high=None, n=num_outputs, unit=unit, note=reason)
        for metric, unit in METRICS.items()
    ]


def windows_to_judge(num_windows: int, most: int) -> list[int]:
    """At most `most` of `num_windows` windows, evenly spread: neighbours overlap, and the first are one scene."""
    number = min(num_windows, most)
    return [i * num_windows // number for i in range(number)]
