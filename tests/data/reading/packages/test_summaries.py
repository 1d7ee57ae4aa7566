"""ACLSum: marked sentences and their summary, each paper in one split, and the package's code never imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data.reading import content
from data.reading.packages import summaries
from data.reading.packages.summaries import OTHER_ASPECT, marked_sentences, untokenised
from data.reading.specs import DatasetSettings
from data.sources import load


def test_the_rows_of_a_paper() -> None:
    none = {"abstract": [0, 0], "introduction": [0], "conclusion": []}
    paper = {
        "id": "P1",
        "sentences": {"abstract": ["We parse ( fast ) .", "It works ."], "introduction": ["Parsers are slow ."]},
        "highlights": {
            "challenge": none | {"introduction": [1]},
            "approach": none | {"abstract": [1, 0]},
            "outcome": none | {"abstract": [1, 1], "introduction": [1]},
        },
        "summary": {"challenge": "Slow parsers .", "approach": "They parse fast.", "outcome": "It works."},
    }
    assert list(marked_sentences(paper)) == [
        ("P1", "Parsers are slow.", "Slow parsers.", None),
        ("P1", "We parse (fast).", "They parse fast.", None),
        ("P1", "We parse (fast). It works.", "It works.", None),
        ("P1", "Parsers are slow.", "It works.", OTHER_ASPECT),
    ]


def test_sentences_as_people_write_them() -> None:
    assert untokenised("The model 's QE ( see [ 3 ] ) , 10 % better , doesn 't fail .") == (
        "The model's QE (see [3]), 10% better, doesn 't fail."
    )


def test_the_papers_of_the_package() -> None:
    if not content.util.find_spec("aclsum"):
        pytest.skip("aclsum is an optional dependency, for data only")
    corpus = load(DatasetSettings(source="aclsum", max_source_words=64, test_share=0.15))
    assert "aclsum" not in sys.modules
    papers = {split: set(table["dialogue"].to_pylist()) for split, table in corpus.splits().items()}
    assert sum(len(each) for each in papers.values()) == len(set().union(*papers.values())) <= 250
    assert len(corpus.train) > 700
    assert len(corpus.test) > 100
    assert max(len(source.split()) for source in corpus.test["source"].to_pylist()) <= 64


def test_an_absent_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(content.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"aclsum is not installed\npip install aclsum==0.1.2"):
        summaries.summary_rows()
