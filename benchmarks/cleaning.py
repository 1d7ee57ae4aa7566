"""The overlap search at the papers' sizes, on text whose words are as frequent as Zipf has them.

Every number is a fresh process's, from texts to findings (generating the text is not timed): the types of each item,
every item's partner, the greedy rule. The reference compares all pairs of sets in Python; it is run on a slice and
ours on the same slice, after a check that both find the same.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.common import line
from benchmarks.memory import MIB, resident_peak
from data.cleaning.overlap import best_partners, type_sets
from data.cleaning.pairs import tokens
from data.cleaning.wen import decide
from data.cleaning.wen_rules import DAILYDIALOG, OPENSUBTITLES

SIZES = {  # items, lines of each, words of a line, words of the language
    "dialogues": (13_000, 8, 14, 30_000),
    "movies": (10_000, 1_500, 7, 300_000),
}
RULES = {"dialogues": DAILYDIALOG, "movies": OPENSUBTITLES}
SLICES = {"dialogues": 1_000, "movies": 200}


def run() -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of the whole, then seconds of a slice against all pairs."""
    for what, (items, lines, words, _) in SIZES.items():
        sizes = {"what": what, "lines": lines, "words_a_line": words}
        part = measured(what, SLICES[what], "both")
        yield line("cleaning", part["ours"], part["reference"], "s", items=SLICES[what], **sizes)
        whole = measured(what, items, "ours")
        pairs = (items / SLICES[what]) ** 2 * part["reference"]
        extrapolated = {"reference_is": "the slice's seconds, times the pairs"}
        yield line("cleaning", whole["ours"], pairs, "s", items=items, **sizes, **extrapolated)
        yield {**line("cleaning", whole["mib"], 4096, "MiB", items=items, **sizes), "reference_is": "the target"}


def measured(what: str, items: int, who: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cleaning", what, str(items), who], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def texts(what: str, items: int, seed: int = 0) -> Iterator[list[str]]:
    """Items of Zipf-distributed words, each with a preference for 300 rarer words of its own, as topics are."""
    _, lines, words, vocabulary = SIZES[what]
    rng = np.random.default_rng(seed)
    names = np.array([f"w{number}" for number in range(vocabulary)])
    steps = np.cumsum(1 / np.arange(1, vocabulary + 1))
    for _ in range(items):
        drawn = np.searchsorted(steps, rng.random(lines * words) * steps[-1])
        topic = rng.random(len(drawn)) < 0.1
        drawn[topic] = rng.integers(100, vocabulary, 300)[rng.integers(0, 300, topic.sum())]
        yield [" ".join(row) + " ." for row in names[drawn].reshape(lines, words).tolist()]


def ours(items: Iterator[list[str]], what: str) -> tuple[Any, Any]:
    """Every item's partner and score, and what is kept."""
    best = best_partners(type_sets(items, RULES[what].vocabulary))
    return best, decide(best, RULES[what]).kept


def reference(items: list[list[str]], vocabulary: int | None) -> list[float]:
    """Highest scores by comparing every pair of sets."""
    found = [[token for text in texts for token in tokens(text)] for texts in items]
    counter = Counter(token for each in found for token in each)
    words = {word for word, _ in counter.most_common(vocabulary)}
    types = [words.intersection(each) for each in found]
    return [
        max((2 * len(a & b) / (len(a) + len(b)) for j, b in enumerate(types) if j != i), default=0.0)
        for i, a in enumerate(types)
    ]


class _Untimed:
    """An iterator that keeps the seconds that its items took to come about."""

    def __init__(self, items: Iterator[list[str]]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            begun = time.perf_counter()
            item = next(self.items, None)
            self.seconds += time.perf_counter() - begun
            if item is None:
                return
            yield item


def main(what: str, items: int, who: str) -> dict[str, float]:
    """Measure in this process."""
    source = _Untimed(texts(what, items))
    begun = time.perf_counter()
    best, _ = ours(iter(source), what)
    found = {"ours": time.perf_counter() - begun - source.seconds, "mib": resident_peak() / MIB}
    if who == "both":
        sample = list(texts(what, items))
        begun = time.perf_counter()
        slow = reference(sample, RULES[what].vocabulary)
        found["reference"] = time.perf_counter() - begun
        assert slow == best.score.tolist()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
