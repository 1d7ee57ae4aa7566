"""Labels on disk: what is read back is what was written, and it takes no more room than is promised."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kd_core.losses.head import Head
from kd_core.losses.soft_targets import BucketLabels, HiddenLabels, SampledLabels, TopKLabels
from kd_core.rollout.teacher_labels import LabelKind, LabelSettings, make_labels
from tasks.labels.files import head_writer, open_labels, read_head, widened, write_labels

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


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden", "bucket"])
def test_what_is_read_is_what_was_written_across_files(tmp_path: Path, kind: str) -> None:
    labels, head = made("topk" if kind == "bucket" else kind, 1.0, tokens=300, rows=90)  # type: ignore[arg-type]
    if kind == "bucket":
        assert isinstance(labels, TopKLabels)
        labels = BucketLabels(labels.ids_MK, labels.log_prob_MK)
    index = torch.arange(90)
    files = []
    for number, part in enumerate(index.split(40)):
        files.append(tmp_path / f"{number}.parquet")
        write_labels(files[-1], labels.of(part), place(len(part)), 300)  # type: ignore[attr-defined]
    found = open_labels(files, tmp_path / "scratch", "x", head)
    assert type(found) is type(labels)
    log_q = torch.randn((90, 300), generator=torch.Generator().manual_seed(1)).log_softmax(1)  # a student's
    for rows in (slice(0, 90), slice(35, 45)):
        expected = labels.probabilities(rows, log_q[rows])  # type: ignore[attr-defined]
        assert torch.equal(found.probabilities(rows, log_q[rows]), expected)
    chosen = torch.tensor([88, 3, 41])
    expected = labels.of(chosen).probabilities(slice(0, 3), log_q[:3])  # type: ignore[attr-defined]
    assert torch.equal(found.of(chosen).probabilities(slice(0, 3), log_q[:3]), expected)


def test_ranks_read_what_the_first_has_put_there(tmp_path: Path) -> None:
    labels, head = made("topk", 1.0, tokens=300, rows=50)
    write_labels(tmp_path / "labels.parquet", labels, place(50), 300)  # type: ignore[arg-type]
    first = open_labels([tmp_path / "labels.parquet"], tmp_path / "scratch", "x", head)
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()}
    other = open_labels([tmp_path / "labels.parquet"], tmp_path / "scratch", "x", head, fill=False)
    assert isinstance(first, TopKLabels)
    assert isinstance(other, TopKLabels)
    assert torch.equal(other.ids_MK[:], first.ids_MK[:])
    assert torch.equal(other.log_prob_MK[:], first.log_prob_MK[:])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()} == stored


def test_labels_of_one_kind_follow_one_another() -> None:
    for kind, expected in (("topk", TopKLabels), ("sampled", SampledLabels), ("hidden", HiddenLabels)):
        labels, _ = made(kind, 1.0, tokens=50, rows=9)  # type: ignore[arg-type]
        assert isinstance(labels, expected)
        joined = labels.of(torch.arange(4)).followed_by(labels.of(torch.arange(4, 9)))
        assert torch.equal(*(each.probabilities(slice(0, 9), torch.empty(0, 50)) for each in (joined, labels)))


def test_rows_are_read_in_any_order_and_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    labels, head = made("topk", 1.0, tokens=300, rows=50)
    write_labels(tmp_path / "labels.parquet", labels, place(50), 300)  # type: ignore[arg-type]
    found = open_labels([tmp_path / "labels.parquet"], tmp_path / "scratch", "x", head)
    assert isinstance(found, TopKLabels)
    assert isinstance(labels, TopKLabels)
    for rows in ([7, 8, 9, 3, 3, 4, 49, 0, 1], [49], [2, 2, 2], list(range(50)), []):
        index = torch.tensor(rows, dtype=torch.long)
        assert torch.equal(found.ids_MK[index], labels.ids_MK[index])
    stored = tmp_path / "scratch" / "x-token_ids"
    stored.write_bytes(stored.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x-token_ids is shorter than it was\nrun again"):
        found.of(torch.tensor([49]))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_that_float16_cannot_hold_are_read_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    small = torch.randn((4000, 32), generator=torch.Generator().manual_seed(0))
    states = [small.half(), (1e5 * small).to(dtype)]
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for path, part in zip(files, states, strict=True):
        write_labels(path, HiddenLabels(part, Head(torch.zeros(9, 32))), place(4000), 9)
    assert [widened([path]) for path in files] == [False, True]
    found = open_labels(files, tmp_path / "scratch", "x", Head(torch.zeros(9, 32)))
    assert isinstance(found, HiddenLabels)
    assert torch.equal(found.hidden_ME[:], torch.cat([each.float() for each in states]))
    if dtype == torch.bfloat16:  # the lower half of a float32 is zeros then
        assert files[1].stat().st_size < 1.1 * files[0].stat().st_size


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_is_read_back_as_it_was(tmp_path: Path, bias: bool, softcap: float | None) -> None:
    weight = torch.randn((7, 5), generator=torch.Generator().manual_seed(0)).bfloat16()
    head = Head(weight[:6], torch.arange(6.0).bfloat16() if bias else None, 0.1, softcap)
    head_writer(head)(tmp_path / "head")
    found = read_head(tmp_path / "head", torch.device("cpu"))
    assert found.weight_VD.dtype == torch.bfloat16
    hidden = torch.randn((3, 5), generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(found.logits(hidden), head.logits(hidden))
    assert (found.scale, found.softcap) == (0.1, softcap)
