"""The numbers in Wen et al.'s cleaning (2022) of DailyDialog and of OpenSubtitles."""

from __future__ import annotations

from dataclasses import dataclass

SPLIT_SEED = 0  # the authors': the published splits are one draw, so a run's seed does not change them


@dataclass(frozen=True, kw_only=True)
class WenRules:
    """Thresholds of the Dice score, and how many items (dialogues, movies) each split gets; None = no limit."""

    max_overlap: float
    min_overlap: float | None
    vocabulary: int | None  # words that the score is about: the most frequent ones
    heldout_items: int  # in test, and as many in validation
    train_items: int | None


DAILYDIALOG = WenRules(max_overlap=0.75, min_overlap=None, vocabulary=None, heldout_items=1000, train_items=None)
OPENSUBTITLES = WenRules(max_overlap=0.80, min_overlap=0.20, vocabulary=10_000, heldout_items=1500, train_items=1500)
