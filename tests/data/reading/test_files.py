"""Reading CSV, JSONL and Parquet: the same rows from each, and errors that name file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.reading import files
from data.reading.columns import Columns
from data.reading.dialogues import ONE_TURN, RawRow
from data.reading.files import read_rows

PAIRS = Columns(source="s", target="t", dialogue="d", turns=None, context_turns=1, turn_separator=" ")
TURNS = Columns(source="", target="", dialogue=None, turns="turns", context_turns=1, turn_separator=" ")
NO_DIALOGUE = Columns(source="s", target="t", dialogue=None, turns=None, context_turns=1, turn_separator=" ")


def read(path: Path, columns: Columns = PAIRS) -> list[RawRow]:
    return list(read_rows(path, columns, lambda done: None))


def write(folder: Path, suffix: str, rows: list[tuple[str, str, str]]) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("other", "t", "s", "d"), *(("x", t, s, d) for s, t, d in rows)])
    elif suffix == ".jsonl":
        lines = (json.dumps({"t": t, "other": 1, "d": d, "s": s}) + "\n" for s, t, d in rows)
        path.write_text("".join(lines), encoding="utf-8")
    else:
        columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in ((1, "t"), (0, "s"), (2, "d"))}
        pq.write_table(pa.table({**columns, "other": [1.5] * len(rows)}), path)
    return path


# quotes, separators and line ends inside fields; words that other readers take for nulls or numbers
FIELD = st.one_of(st.text(alphabet='ab",\n\r\t {}[]é\u2028', max_size=6), st.sampled_from(["NA", "null", "1e5", "#x"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=6))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, rows: list[tuple[str, str, str]]) -> None:
    assert read(write(tmp_path, suffix, rows)) == [(d, s, t, None) for s, t, d in rows]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_progress_only_grows_and_ends_at_the_size(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_ROWS", 7)
    path = write(tmp_path, suffix, [(f"source {i}", f"target {i}", "d") for i in range(50)])
    seen: list[int] = []
    assert len(list(read_rows(path, PAIRS, seen.append))) == 50
    assert seen == sorted(seen)
    assert seen[-1] == path.stat().st_size
    assert len(seen) > 3


def test_a_record_without_dialogue_is_one_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet", [("a", "b", ""), ("c", "e", "")])
    assert read(path, NO_DIALOGUE) == [("1", "a", "b", None), ("2", "c", "e", None)]


def test_csv_of_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "excel.CSV"
    path.write_bytes(b'\xef\xbb\xbfs,t\r\n"two\r\nlines","say ""hi"""\r\n\r\nnext,row\r\n')
    # the third record starts in line 5 (line 2 and 3 hold the first, 4 is blank)
    assert read(path, NO_DIALOGUE) == [("2", "two\r\nlines", 'say "hi"', None), ("5", "next", "row", None)]


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv", [("word " * 100_000, "t", "d")])
    assert len(read(path)[0][1]) == 500_000


def test_nulls_are_empty_texts_and_integers_name_dialogues(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"s": null, "t": "b", "d": 7}\n\n')
    assert read(path) == [("7", "", "b", None)]
    table = pa.table({"s": pa.array([None], pa.null()), "t": pa.array(["b"]).dictionary_encode(), "d": [7]})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == [("7", "", "b", None)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_of_turns(tmp_path: Path, suffix: str) -> None:
    turns = [["a", "b", "c"], ["alone"], []]
    path = tmp_path / f"turns{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps({"turns": one}) + "\n" for one in turns))
    else:
        pq.write_table(pa.table({"turns": pa.array(turns, pa.list_(pa.string()))}), path)
    assert read(path, TURNS) == [
        ("1", "a", "b", None),
        ("1", "b", "c", None),
        ("2", "alone", "", ONE_TURN),
        ("3", "", "", ONE_TURN),
    ]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", b"", PAIRS, "{path} is empty: not even a header"),
        ("a.csv", b"s,u,v\n1,2,3\n", PAIRS, "{path} has no column 't', 'd'; it has 's', 'u', 'v'\nname its columns"),
        ("a.csv", b"s,t,d,s\n", PAIRS, "{path} has 2 columns named 's'"),
        ("a.csv", b's,t,d\n1,"2\n2",3\n1,2\n', PAIRS, "{path}:4: 2 fields, but the header has 3"),
        ("a.csv", b's,t,d\n1,2,3\n"open,2,3\n1,2,3\n', PAIRS, "{path}:3: malformed CSV: unexpected end of data"),
        ("a.csv", b's,t,d\n"1"2,2,3\n', PAIRS, "{path}:2: malformed CSV: ',' expected after '\"'"),
        ("a.csv", b"s,t,d\n1,2,3\ncaf\xe9,2,3\n", PAIRS, "{path}:3: not UTF-8: invalid continuation byte 0xe9"),
        ("a.csv", b"turns\n[]\n", TURNS, "{path}: a CSV cell holds no list, so turns_column needs"),
        ("a.jsonl", b'{"s": "1", "t": "2", "d": "3"}\n{"s": \n', PAIRS, "{path}:2: malformed JSON: Expecting value"),
        ("a.jsonl", b"[1]\n", PAIRS, "{path}:1: a JSON list, not an object"),
        ("a.jsonl", b'{"s": "1", "d": "3"}\n', PAIRS, "{path}:1 has no column 't'; it has 's', 'd'"),
        ("a.jsonl", b'{"s": 1, "t": "2", "d": "3"}\n', PAIRS, "{path}:1: column 's' holds int, not text"),
        ("a.jsonl", b'{"s": "1", "t": "2", "d": null}\n', PAIRS, "{path}:1: column 'd' holds NoneType, not a dialogue"),
        ("a.jsonl", b'\n{"s": "\xe9"}\n', PAIRS, "{path}:2: not UTF-8"),
        ("a.jsonl", b'{"s": "\\uD800", "t": "2", "d": "3"}\n', PAIRS, "{path}:1: malformed JSON: .*surrogates"),
        ("a.jsonl", b'{"turns": "a"}\n', TURNS, "{path}:1: column 'turns' holds str, not a list of text"),
        ("a.jsonl", b'{"turns": ["a", 2]}\n', TURNS, "{path}:1: column 'turns' holds int, not text"),
        ("a.parquet", b"PAR1 and then nothing", PAIRS, "{path}: not a readable Parquet file: "),
        ("a.tsv", b"s\tt\n", PAIRS, "{path} must end in .csv, .jsonl, .parquet, got '.tsv'"),
        ("a", b"s,t\n", PAIRS, "{path} must end in .csv, .jsonl, .parquet, got 'no extension'"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, columns: Columns, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the texts have metacharacters: compared below
        read(path, columns)
    start, _, end = message.format(path=path).partition(".*")
    assert str(caught.value).startswith(start)
    assert end in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_an_absent_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent"):
        read(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("column", "kind"), [(pa.array([1.5]), "double"), (pa.array([["a"]]), "list<"), (pa.array([b"a"]), "binary")]
)
def test_a_parquet_column_that_is_no_text(tmp_path: Path, column: Any, kind: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"s": column, "t": ["b"], "d": ["c"]}), path)
    with pytest.raises(ValueError, match=f"column 's' of .* holds {kind}.*, not text\nwrite its values as text"):
        read(path)
    pq.write_table(pa.table({"turns": ["text"]}), path)
    with pytest.raises(ValueError, match=r"column 'turns' of .* holds string, not lists of text\nwrite each dialogue"):
        read(path, TURNS)


def test_damage_inside_a_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path, ".parquet", [(f"{i:x}" * 50, "t", "d") for i in range(1000)])
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged Parquet file after row 0: "):
        read(path)
