"""Documents for language models: whole, disjoint, the same every time."""

from pathlib import Path

import pytest

from data.reading import content
from data.reading.texts import TextSettings, load_texts


def test_papers_are_cut_into_two_disjoint_parts_of_whole_papers() -> None:
    found = load_texts(TextSettings(transfer_words=90_000))
    assert len(found.transfer) + len(found.pretraining) == 250
    assert not set(found.transfer) & set(found.pretraining)
    words = [len(paper.split()) for paper in found.transfer]
    assert sum(words[:-1]) < 90_000 <= sum(words)
    assert all("\n\n" not in paper and "  " not in paper for paper in found.transfer)


def test_the_seed_draws_the_papers_and_nothing_else_does() -> None:
    first, again, other = (load_texts(TextSettings(transfer_words=9_000), seed) for seed in (0, 0, 1))
    assert first == again
    assert first.transfer != other.transfer
    assert sorted(first.transfer + first.pretraining) == sorted(other.transfer + other.pretraining)


def test_a_file_is_one_document_with_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("  Once\tupon a time\r\n\n\nthere was cafe\u0301. \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("more", encoding="utf-8")
    settings = TextSettings(source="file", path=str(tmp_path / "a.txt"))
    assert load_texts(settings).transfer == ["Once upon a time\nthere was caf\u00e9."]
    assert load_texts(settings).pretraining == []
    both = TextSettings(source="file", path=str(tmp_path / "a.txt"), pretraining_path=str(tmp_path / "b.txt"))
    assert load_texts(both).pretraining == ["more"]


def test_identity_is_the_content_and_not_the_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    a, b = (TextSettings(source="file", path=str(tmp_path / name)).identity() for name in "ab")
    assert a == b
    (tmp_path / "b").write_text("other")
    assert TextSettings(source="file", path=str(tmp_path / "b")).identity() != a
    assert TextSettings().identity()["package"] == "0.1.2"


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 and more")
    with pytest.raises(ValueError, match=r"empty.txt has no text in it"):
        load_texts(TextSettings(source="file", path=str(tmp_path / "empty.txt")))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text: .* at byte 3"):
        load_texts(TextSettings(source="file", path=str(tmp_path / "latin.txt")))
    with pytest.raises(FileNotFoundError, match=r"no such file: nowhere\.txt"):
        load_texts(TextSettings(source="file", path="nowhere.txt"))
    with pytest.raises(ValueError, match="transfer_words 9,000,000 leaves no paper to pre-train on"):
        load_texts(TextSettings(transfer_words=9_000_000))
    monkeypatch.setattr(content.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the package aclsum is not installed\npip install aclsum==0\.1\.2"):
        load_texts(TextSettings())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "web"}, "source must be papers or file, got 'web'"),
        ({"source": "file"}, "a text of source 'file' needs path"),
        ({"path": "x"}, "path and pretraining_path are of source 'file'"),
        ({"transfer_words": 0}, "transfer_words must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TextSettings(**settings)  # type: ignore[arg-type]
