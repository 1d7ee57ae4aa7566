"""A flip, a truncation or a deletion in every kind of file of a store: no wrong number, never stuck, always named."""

from pathlib import Path

import pytest

from tests.e2e.damage import HOWS, fill, rounds, wrong


def test_damage_anywhere_is_named_and_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("DISTILL_HOME", str(home))
    truth = fill(home, tmp_path / "model")
    every = rounds(home, HOWS)
    assert len({kind for kind, *_ in every}) > 30
    failed, skipped = {}, []
    # each kind in one way here, all ways over the kinds; `make soak` does all of them
    for number in range(0, len(every), len(HOWS)):
        kind, path, how, first = every[number + number // len(HOWS) % len(HOWS)]
        if not path.is_file():  # a record or report of a run of before
            skipped.append(kind)
            continue
        problems = list(wrong(home, tmp_path / "model", truth, path, how, first=first))
        if problems:
            failed[f"{how} {kind}, {first} first"] = problems
    assert failed == {}
    assert len(skipped) <= 2
