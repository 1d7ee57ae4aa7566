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
    """The signs of collapse in a look, each by its name and in words; none where start and now read the same."""
    found: dict[str, str] = {}

    def tell(sign: str, odd: Callable[[float, float], bool], form: str, words: str, against: str | None = None) -> None:
        value, before = now[f"validation_{sign}"], start[f"validation_{against or sign}"]
        said, said_before = f"{value:{form}}", f"{before:{form}}"
        if odd(value, before) and said != said_before:  # 0.4 % that become 0.1 % are no news
            found[sign] = words.format(now=said, before=said_before)

    for kind, outputs in (("", "greedy outputs"), ("sampled_", "sampled outputs")):
        tell(
            f"{kind}equal",
            lambda equal, before: equal > limit(SAME, before),
            ".0%",
            f"{{now}} of the {outputs} are equal to another ({{before}} at the start)",
        )
        tell(
            f"{kind}distinct_2",
            lambda distinct, before: distinct < VARIETY * before,
            ".0%",
            f"distinct bigrams of {outputs} fell from {{before}} to {{now}}",
        )
        tell(
            f"{kind}repetition",
            lambda repeated, before: repeated > limit(REPEATED, before),
            ".0%",
            f"{outputs} repeat {{now}} of their 4-grams ({{before}} at the start)",
        )
        tell(
            f"{kind}truncated",
            lambda cut, before: cut > limit(CUT_OFF, before),
            ".0%",
            f"{{now}} of the {outputs} hit the length limit ({{before}} at the start)",
        )
        tell(
            f"{kind}length",
            lambda length, before: not SHORTER * before <= length <= LONGER * before,
            ".1f",
            f"{outputs} went from {{before}} to {{now}} tokens",
        )
    if "validation_overlap" in start:  # not of a teacher behind a server, nor where labels stand for it
        tell(
            "overlap",
            lambda overlap, before: overlap < before - AGREEMENT,
            ".0%",
            "teacher and student share {now} of the likeliest tokens ({before} at the start)",
        )
    if "validation_text_teacher_entropy" in start:
        tell(
            "teacher_entropy",
            lambda entropy, text: entropy > LOST * text,
            "z.2f",
            "the teacher is lost on the student's words: its entropy is {now} nats there, "
            "and {before} on the data set's",
            against="text_teacher_entropy",
        )
    return found
