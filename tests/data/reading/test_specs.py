"""DatasetSettings: what is refused, and what its identity sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from data.reading.content import path_hash
from data.reading.packaged import PACKAGED, Packaged
from data.reading.specs import DatasetSettings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"source": "web"},
            "source must be one of chitchat, cmudict, aclsum, dailydialog, opensubtitles, files, hub, got 'web'",
        ),
        ({"source": "files"}, "needs path"),
        ({"source": "files", "path": "a.csv", "train": "b.csv"}, "not both"),
        ({"source": "hub"}, "needs name"),
        ({"validation_share": 0.0}, r"validation_share must be in \(0, 1\), got 0.0"),
        ({"test_share": 1.5}, r"test_share must be in \(0, 1\), got 1.5"),
        ({"validation_share": 0.5, "test_share": 0.5}, "must be below 1, got 0.5 \\+ 0.5"),
        ({"context_turns": 0}, "context_turns must be at least 1, got 0"),
        ({"max_test": 0}, "max_test must be at least 1, got 0"),
        ({"turn_separator": "\n"}, r"turn_separator must hold no white space but single spaces, got '\\n'"),
        ({"path": "a.csv"}, "path is not read for source 'chitchat', got 'a.csv'"),
        ({"source_column": "context"}, "source_column is not read for source 'chitchat'"),
        ({"source": "files", "path": "a.csv", "revision": "main"}, "revision is not read for source 'files'"),
        ({"source": "files", "path": "a.csv", "context_turns": 2}, "context_turns is not read for source 'files'"),
        ({"source": "dailydialog"}, "a data set of source 'dailydialog' needs path, the directory of the raw corpus"),
        ({"source": "opensubtitles"}, "a data set of source 'opensubtitles' needs path"),
        ({"source": "opensubtitles", "path": "a", "max_overlap": 1.1}, r"max_overlap must be in \[0, 1\], got 1.1"),
        ({"source": "opensubtitles", "path": "a", "min_overlap": -0.1}, r"min_overlap must be in \[0, 1\], got -0.1"),
        ({"source": "opensubtitles", "path": "a", "heldout_items": 0}, "heldout_items must be at least 1, got 0"),
        (
            {"source": "dailydialog", "path": "a", "min_overlap": 0.1},
            "min_overlap is not read for source 'dailydialog'",
        ),
        ({"source": "dailydialog", "path": "a", "test_share": 0.1}, "test_share is not read for source 'dailydialog'"),
        (
            {"source": "dailydialog", "path": "a", "turns_column": "t"},
            "turns_column is not read for .*dailydialog', got",
        ),
        ({"source": "cmudict", "context_turns": 2}, "context_turns is not read for source 'cmudict'"),
        ({"max_overlap": 0.5}, "max_overlap is not read for source 'chitchat'"),
        (
            {"source": "files", "path": "a.jsonl", "turns_column": "turns", "target_column": "t"},
            "target_column is not read for source 'files' with turns_column",
        ),
    ],
)
def test_a_mistake_is_refused_on_construction(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetSettings(**fields)  # type: ignore[arg-type]


def test_the_parameter_check_of_the_flow_refuses_unknown_names_and_values() -> None:
    adapter = TypeAdapter(DatasetSettings)
    assert adapter.validate_python({"max_test": 5}) == DatasetSettings(max_test=5)
    with pytest.raises(ValidationError, match="max_tset"):
        adapter.validate_python({"max_tset": 5})
    with pytest.raises(ValidationError, match="max_test must be at least 1"):
        adapter.validate_python({"max_test": 0})


def test_identity_sees_content_and_not_where_it_lies(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv", "other.csv"):
        (tmp_path / name).write_text("source,target\na,b\n")
    (tmp_path / "other.csv").write_text("source,target\na,c\n")

    def identity(name: str, **fields: object) -> dict[str, object]:
        return DatasetSettings(source="files", path=str(tmp_path / name), **fields).identity()  # type: ignore[arg-type]

    assert identity("one.csv") == identity("two.csv")
    assert identity("one.csv") != identity("other.csv")
    assert identity("one.csv") != identity("one.csv", max_target_words=3)
    before = identity("one.csv")
    (tmp_path / "one.csv").write_text("source,target\na,B\n")  # the same size: only the content tells
    assert identity("one.csv") != before


def test_identity_of_an_absent_file_names_it() -> None:
    settings = DatasetSettings(source="files", path="no/such.csv")
    with pytest.raises(FileNotFoundError, match=r"no/such\.csv"):
        settings.identity()


def test_identity_of_a_hub_data_set_is_its_id_and_revision() -> None:
    first = DatasetSettings(source="hub", name="someone/pairs", revision="abc").identity()
    assert (first["name"], first["revision"]) == ("someone/pairs", "abc")
    assert first != DatasetSettings(source="hub", name="someone/pairs", revision="abd").identity()


def test_a_directory_is_its_files_and_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("x")
    hashes = [path_hash(folder)]
    (folder / ".cache").write_text("not data")
    assert path_hash(folder) == hashes[0]
    (folder / "b").write_text("x")
    hashes.append(path_hash(folder))
    (folder / "b").rename(folder / "c")
    hashes.append(path_hash(folder))
    (folder / "c").write_text("yy")
    hashes.append(path_hash(folder))
    assert len(set(hashes)) == 4
    assert DatasetSettings(source="hub", name=str(folder)).identity()["name"] == hashes[-1]


def test_the_packages_version_is_part_of_chitchats_identity() -> None:
    pytest.importorskip("chitchat_dataset", reason="chitchat-dataset is an optional dependency")
    assert DatasetSettings().identity()["package"] == "0.9.0"


def test_an_absent_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Packaged(package="chitchat-dataset-that-is-not-here", unit="dialogues")
    monkeypatch.setitem(PACKAGED, "chitchat", absent)
    with pytest.raises(ValueError, match=r"not installed\npip install chitchat-dataset-that-is-not-here"):
        DatasetSettings().identity()
