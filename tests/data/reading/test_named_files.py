"""Files that are not what they seem: each said in one line, with what to do in the next."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.reading import files
from data.reading.columns import Columns
from data.reading.corpora import movie_files
from data.reading.dailydialog import read_dailydialog
from data.reading.dialogues import RawRow
from data.reading.files import read_rows
from data.reading.specs import DatasetSettings
from data.reading.subtitles import read_movie
from data.reading.texts import TextSettings, load_texts
from data.sources import load

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
PAIRS = Columns(source="s", target="t", dialogue=None, turns=None, context_turns=1, turn_separator=" ")
TURNS = Columns(source="", target="", dialogue=None, turns="turns", context_turns=1, turn_separator=" ")


def rows(path: Path, columns: Columns = PAIRS) -> list[RawRow]:
    return list(read_rows(path, columns, lambda done: None))


def text(path: Path) -> object:
    return load_texts(TextSettings(source="file", path=str(path)))


def identity(path: Path) -> object:
    return DatasetSettings(source="files", path=str(path)).identity()


def said(read: Callable[[Path], object], path: Path) -> list[str]:
    with pytest.raises((ValueError, OSError)) as caught:
        read(path)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("read", [rows, text, identity])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.txt"])
def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path: Path, read: Callable[[Path], object], name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    assert said(read, tmp_path / name) == [
        f"{tmp_path / name} is a Git LFS pointer, not the file itself",
        "fetch it: git lfs pull",
    ]


def test_so_it_is_in_the_directory_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(POINTER)
    settings = DatasetSettings(source="hub", name=str(tmp_path))
    first, second = said(lambda path: load(settings), tmp_path)
    assert first == f"{tmp_path / 'train.parquet'} is a Git LFS pointer, not the file itself"
    assert second == "fetch it: git lfs pull"


def test_so_it_is_in_a_raw_corpus(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"dialogues_{split}.txt").write_bytes(POINTER)
    assert "dialogues_train.txt is a Git LFS pointer" in said(read_dailydialog, tmp_path)[0]
    for name in ("1.txt", "1.xml", "1.xml.gz"):
        (tmp_path / name).write_bytes(POINTER)
        assert said(read_movie, tmp_path / name) == ["a Git LFS pointer, not the file itself; fetch it: git lfs pull"]


@pytest.mark.parametrize("read", [rows, text, identity])
def test_what_is_no_plain_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    assert said(read, tmp_path / "folder.csv")[0] == f"{tmp_path / 'folder.csv'} is a directory, not a file"
    assert said(read, tmp_path / "pipe.csv")[0] == f"{tmp_path / 'pipe.csv'} is no plain file (a pipe, a device)"
    gone = f"a link to {tmp_path / 'gone.csv'}, which is not there"
    assert said(read, tmp_path / "link.csv")[0] == f"no such file: {tmp_path / 'link.csv'}, {gone}"


def test_a_directory_is_no_movie(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "1.txt").write_text("a\nb\n")
    assert list(movie_files(tmp_path, 5)) == ["1"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
@pytest.mark.parametrize(
    ("encoding", "why"),
    [
        ("utf-16", "it begins with the byte order mark of UTF-16"),
        ("utf-32", "it begins with the byte order mark of UTF-32"),
        ("utf-16-le", "it has NUL bytes, the first at byte 1: UTF-16, or no text"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, suffix: str, encoding: str, why: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes('s,t\n{"s": "a", "t": "b"}\n'.encode(encoding))
    first, second = said(text if suffix == ".txt" else rows, path)
    assert first == f"{path}: not UTF-8: {why}"
    assert second.startswith(f"convert the file to UTF-8, for example: iconv -f UTF-{'32' if '32' in why else '16'} ")


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.csv", b"s,t\nyes,no\ncaf\xe9,2\n", "{path}:3: not UTF-8: invalid continuation byte 0xe9 at byte 14"),
        ("a.jsonl", b'\n{"s": "\xe9"}\n', "{path}:2: not UTF-8: invalid continuation byte 0xe9 at byte 8"),
        ("a.txt", b"one\ncaf\xe9 and", "{path} is not UTF-8 text: invalid continuation byte at byte 7, line 2"),
        ("a.txt", b"one\nt" + b"wo" * 20 + b"\0", "{path} is no text: it has a NUL at byte 45"),
        ("a.txt", b"", "{path} has no text in it"),
    ],
)
def test_a_byte_that_is_no_text_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, first: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    lines = said(text if name == "a.txt" else rows, path)
    assert lines[0] == first.format(path=path)
    assert len(lines) == 2


def test_movies_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("a b\nc d\n".encode("utf-16-le"))
    assert said(read_movie, tmp_path / "1.txt") == [
        "not UTF-8: it has NUL bytes, the first at byte 1: UTF-16, or no text"
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_an_empty_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    assert str(path) in " ".join(said(lambda path: load(DatasetSettings(source="files", path=str(path))), path))
    path.write_bytes(b"source,target\n" if suffix == ".csv" else b"\n")
    _, second = said(lambda path: load(DatasetSettings(source="files", path=str(path))), path)
    assert second == f"{path} has none: give more data"


def test_what_the_system_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"s": ["a"], "t": ["b"]}), path)

    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files.pq, "ParquetFile", refuse)
    with pytest.raises(PermissionError):
        rows(path)
    monkeypatch.undo()
    monkeypatch.setattr(files.pq.ParquetFile, "iter_batches", lambda *_, **__: iter(refuse, None))
    with pytest.raises(PermissionError):
        rows(path)
    monkeypatch.setattr(files.pq.ParquetFile, "iter_batches", lambda *_, **__: iter(lambda: damaged(), None))
    with pytest.raises(ValueError, match="damaged Parquet file after row 0: Unexpected end of stream"):
        rows(path)


def damaged() -> object:
    raise OSError("Unexpected end of stream")  # as Arrow says it: no number


WORDS = ["a", "b", "a"]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", [*TEXT_TYPES, pa.dictionary(pa.uint8(), pa.large_string())], ids=str)
def test_every_arrow_type_of_text_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"s": pa.array(WORDS, kind), "t": pa.array(WORDS, kind)}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(str(i), word, word, None) for i, word in enumerate(WORDS, start=1)]


def test_so_are_dictionaries_of_views_and_of_dictionaries(tmp_path: Path) -> None:
    columns = Columns(source="s", target="s", dialogue=None, turns=None, context_turns=1, turn_separator=" ")
    inner = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["x", "y"], pa.string_view()))
    for values in (inner, pa.DictionaryArray.from_arrays(pa.array([1, 0]), inner)):
        columns.check_types(pa.schema([("s", values.type)]), "here")
    columns_of_turns = Columns(source="", target="", dialogue=None, turns="s", context_turns=1, turn_separator=" ")
    columns_of_turns.check_types(pa.schema([("s", pa.list_(inner.type))]), "here")


@pytest.mark.parametrize("text_type", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda t: pa.list_(t, 2)])
def test_every_arrow_list_of_text_is_a_list_of_text(
    tmp_path: Path, make: Callable[[pa.DataType], pa.DataType], text_type: pa.DataType
) -> None:
    pq.write_table(pa.table({"turns": pa.array([["a", "b"], ["c", "d"]], make(text_type))}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", TURNS) == [("1", "a", "b", None), ("2", "c", "d", None)]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_the_same_through_a_directory_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    words = [f"word {i}" for i in range(30)]
    pq.write_table(pa.table({"source": pa.array(words, kind), "target": pa.array(words, kind)}), tmp_path / "a.parquet")
    corpus = load(DatasetSettings(source="hub", name=str(tmp_path), validation_share=0.1, test_share=0.1))
    assert sorted(word for table in corpus.splits().values() for word in table["source"].to_pylist()) == sorted(words)


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.bool_(), pa.date32(), pa.binary()], ids=str)
def test_numbers_and_bytes_are_no_text(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"s": pa.array([None], kind), "t": ["b"]}), tmp_path / "a.parquet")
    assert "column 's' of" in said(rows, tmp_path / "a.parquet")[0]


def test_a_gzipped_csv_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"s,t\na,b\n" * 100))
    assert "not UTF-8" in said(rows, tmp_path / "a.csv")[0]
