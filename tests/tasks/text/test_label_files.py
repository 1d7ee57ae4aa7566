"""Labels on disk: what is read back is what was written, and it takes no more room than is promised."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kd_core.losses.head import Head
from kd_core.losses.soft_targets import HiddenLabels, SampledLabels, TopKLabels
from kd_core.windows.teacher_labels import LabelKind, LabelSettings, make_labels
from tasks.text.label_files import open_labels, write_labels

M, E, V = 1200, 16, 50_257
MOST = {"topk": 120, "sampled": 40}  # bytes a token


def made(kind: LabelKind, sharpness: float, tokens: int = V, rows: int = M) -> tuple[object, Head]:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn((tokens, E), generator=generator))
    hidden = sharpness * torch.randn((rows, E), generator=generator)
    settings = LabelSettings(kind=kind)
    return make_labels(hidden, head, settings, torch.rand((rows, settings.draws), generator=generator)), head


def place(rows: int) -> pa.Table:
    return pa.table({"position": pa.array(range(rows), pa.int32())})


@pytest.mark.parametrize("sharpness", [0.02, 0.5, 1.5])  # nearly uniform, flat, sharp
@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_a_token_takes_no_more_than_promised_at_gpt_neos_vocabulary(
    tmp_path: Path, kind: LabelKind, sharpness: float
) -> None:
    labels, _ = made(kind, sharpness)
    write_labels(tmp_path / "labels.parquet", labels, place(M), V)  # type: ignore[arg-type]
    assert (tmp_path / "labels.parquet").stat().st_size / M <= MOST[kind]


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden"])
def test_what_is_read_is_what_was_written_across_files(tmp_path: Path, kind: LabelKind) -> None:
    labels, head = made(kind, 1.0, tokens=300, rows=90)
    index = torch.arange(90)
    files = []
    for number, part in enumerate(index.split(40)):
        files.append(tmp_path / f"{number}.parquet")
        write_labels(files[-1], labels.of(part), place(len(part)), 300)  # type: ignore[attr-defined]
    found = open_labels(files, tmp_path / "scratch", "x", head)
    assert type(found) is type(labels)
    for rows in (slice(0, 90), slice(35, 45)):
        expected = labels.probabilities(rows, 300)  # type: ignore[attr-defined]
        assert torch.equal(found.probabilities(rows, 300), expected)
    chosen = torch.tensor([88, 3, 41])
    expected = labels.of(chosen).probabilities(slice(0, 3), 300)  # type: ignore[attr-defined]
    assert torch.equal(found.of(chosen).probabilities(slice(0, 3), 300), expected)


def test_labels_of_one_kind_follow_one_another() -> None:
    for kind, expected in (("topk", TopKLabels), ("sampled", SampledLabels), ("hidden", HiddenLabels)):
        labels, _ = made(kind, 1.0, tokens=50, rows=9)  # type: ignore[arg-type]
        assert isinstance(labels, expected)
        joined = labels.of(torch.arange(4)).followed_by(labels.of(torch.arange(4, 9)))
        assert torch.equal(joined.probabilities(slice(0, 9), 50), labels.probabilities(slice(0, 9), 50))


def test_parquet_has_the_tokens_for_sql(tmp_path: Path) -> None:
    labels, _ = made("topk", 1.0, tokens=300, rows=5)
    write_labels(tmp_path / "labels.parquet", labels, place(5), 300)  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.column_names == ["position", "token_ids", "log_probs", "tail_log_prob"]
    assert len(table["token_ids"][0].as_py()) == 25


def test_hidden_states_without_their_head_and_no_labels_at_all_are_refused(tmp_path: Path) -> None:
    labels, _ = made("hidden", 1.0, tokens=300, rows=5)
    write_labels(tmp_path / "labels.parquet", labels, place(5), 300)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need the teacher's head"):
        open_labels([tmp_path / "labels.parquet"], tmp_path, "x", None)
    with pytest.raises(ValueError, match="there are no labels among 0 files"):
        open_labels([], tmp_path, "x", None)
