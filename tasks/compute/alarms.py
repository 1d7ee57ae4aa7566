"""What a look at the validation set gives away of a student that collapses, said when it is first seen.

Each sign is measured against the student's own start, or against the data set's texts: what is odd for one task is
ordinary for another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kd_core.train.state import StepMetrics

Values = Mapping[str, float]
SAME = 0.3  # share of outputs that another equals
REPEATED = 0.2  # share of 4-grams that are repetitions
VARIETY = 0.5  # of the start's distinct bigrams
CUT_OFF = 0.5  # share of outputs
SHORTER, LONGER = 0.6, 1.6  # times the start's length
AGREEMENT = 0.1  # of overlap lost
LOST = 1.5  # times the teacher's entropy on the data set's texts


@dataclass
class Alarms:
    """Tells of each sign of collapse once in a training; one that is resumed tells again, for its own record."""

    warn: Callable[[str], None]
    start: Values | None = None
    told: set[str] = field(default_factory=set)

    def look(self, row: StepMetrics) -> None:
        """Take in a row of the log; one without a look at the validation set says nothing."""
        if "validation_equal" not in row.values:
            return
        if self.start is None:
            self.start = row.values
        for sign, said in signs(row.values, self.start).items():
            if sign not in self.told:
                self.told.add(sign)
                self.warn(f"after update {row.step}: {said}" if row.step else f"before any update: {said}")


def limit(share: float, before: float) -> float:
    """What a share may rise to: twice the start's or, from a start that is half way there, half of what was left."""
    return max(share, min(2 * before, (1 + before) / 2))


def signs(now: Values, start: Values) -> dict[str, str]:
    """The signs of collapse in a look, each by its name and in words."""

    def of(name: str) -> tuple[float, float]:
        return now[f"validation_{name}"], start[f"validation_{name}"]

    found = {}
    for kind, outputs in (("", "greedy outputs"), ("sampled_", "sampled outputs")):
        equal, before = of(kind + "equal")
        if equal > limit(SAME, before):
            found[kind + "equal"] = f"{equal:.0%} of the {outputs} are equal to another ({before:.0%} at the start)"
        distinct, before = of(kind + "distinct_2")
        if distinct < VARIETY * before:
            found[kind + "distinct_2"] = f"distinct bigrams of {outputs} fell from {before:.0%} to {distinct:.0%}"
        repeated, before = of(kind + "repetition")
        if repeated > limit(REPEATED, before):
            found[kind + "repetition"] = f"{outputs} repeat {repeated:.0%} of their 4-grams ({before:.0%} at the start)"
        cut, before = of(kind + "truncated")
        if cut > limit(CUT_OFF, before):
            found[kind + "truncated"] = f"{cut:.0%} of the {outputs} hit the length limit ({before:.0%} at the start)"
        length, before = of(kind + "length")
        if not SHORTER * before <= length <= LONGER * before:
            found[kind + "length"] = f"{outputs} went from {before:.1f} to {length:.1f} tokens"
    if "validation_overlap" in start:  # not of a teacher behind a server, nor where labels stand for it
        overlap, before = of("overlap")
        if overlap < before - AGREEMENT:
            found["overlap"] = (
                f"teacher and student share {overlap:.0%} of the likeliest tokens ({before:.0%} at the start)"
            )
    text = start.get("validation_text_teacher_entropy")
    if text is not None and now["validation_teacher_entropy"] > LOST * text:
        found["lost"] = (
            f"the teacher is lost on the student's words: its entropy is {now['validation_teacher_entropy']:.2f} nats "
            f"there, and {text:.2f} on the data set's"
        )
    return found
