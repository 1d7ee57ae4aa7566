"""Benchmarks compare like with like: the checks before the clocks. Nothing here is timed."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import (
    common,
    dad_dagger,
    decoder_only,
    demo,
    divergence,
    evaluation,
    labels,
    llmr_update,
    memory,
    reference_llmr,
    scoring,
)
from benchmarks.reference_dad_dagger import roll_out
from kd_core.metrics.rouge import rouge
from kd_core.models.shapes import T5Shape, build_t5
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings, draw


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> demo.Bench:
    """Random models: their outputs run to the limit, so truncation is checked too."""
    monkeypatch.setattr(common, "REPEATS", 1)
    shape = T5Shape(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    teacher, student = (build_t5(shape, 40, seed) for seed in (0, 1))
    sources = TokenRows.of([[3 + (i * j) % 37 for j in range(1 + i % 7)] for i in range(llmr_update.ROWS)])
    return demo.Bench(teacher, student, sources, 8)


def test_an_update_is_the_same_as_the_reference_before_it_is_timed(tiny: demo.Bench) -> None:
    lines = list(llmr_update.measure(tiny))
    assert [line["sizes"]["what"] for line in lines] == ["sample, score, learn", "sample", "score", "policy gradient"]
    for line in lines:
        assert line["ratio"] == pytest.approx(line["reference"] / line["ours"], rel=0.01)


def test_an_update_that_differs_is_refused(tiny: demo.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmr_update.reference_llmr, "loss", lambda *arguments: torch.zeros((), requires_grad=True))
    with pytest.raises((AssertionError, RuntimeError, AttributeError)):
        list(llmr_update.measure(tiny))


@pytest.mark.parametrize("side", [-1e-10, 1e-10])
def test_the_reference_draws_from_the_models_own_precision(side: float) -> None:
    # numbers a hair below and above the borders of the exact distribution: float32 has both on the border
    shape = T5Shape(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    student = build_t5(shape, 1000, 0).double()
    source, mask = torch.tensor([[5, 6, 7]]).expand(64, -1), torch.ones(64, 3, dtype=torch.bool)
    with reference_llmr.exact_layer_norm(), torch.no_grad():
        start = torch.zeros((64, 1), dtype=torch.long)
        logits = student(input_ids=source, decoder_input_ids=start).logits[:, -1]
        border = torch.arange(100, 900, 800 // 64)[:64]
        uniform = logits.softmax(1).cumsum(1)[0, border] + side
        stock = reference_llmr.sample(student, source, mask, uniform[:, None])[:, 0]
        expected = border if side < 0 else border + 1
        assert stock.tolist() == expected.tolist()
        assert draw(logits, uniform, SamplingSettings())[0].tolist() == expected.tolist()
    assert not student._forward_hooks


def test_scores_are_the_same_as_from_full_logits_before_they_are_timed(tiny: demo.Bench) -> None:
    lines = list(scoring.measure(tiny))
    assert [line["sizes"]["value"] for line in lines] == ["max", "max", "softmax", "softmax", "logsumexp", "logsumexp"]


@pytest.mark.parametrize("who", ["ours", "reference"])
@pytest.mark.parametrize("what", ["scoring", "policy gradient"])
def test_the_passes_whose_memory_is_measured_run(who: str, what: str) -> None:
    memory.one_pass(who, what, 50, 3, 2)


def test_an_unknown_benchmark_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["nonsense"]) == 2
    said = capsys.readouterr().err
    for name in ("llmr_update", "memory", "scoring", "store_overhead", "import_time"):
        assert name in said


def test_a_benchmark_that_fails_says_so_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[dict[str, int]]:
        yield {"first": 1}
        raise AssertionError("tokens differ")

    modules = {"benchmarks.llmr_update": broken, "benchmarks.memory": lambda: iter([{"second": 2}])}
    monkeypatch.setattr(bench.importlib, "import_module", lambda name: SimpleNamespace(run=modules[name]))
    assert bench.main(["llmr_update", "memory"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == ['{"first": 1}', '{"second": 2}']
    assert "llmr_update failed: tokens differ" in said.err
    assert said.err.splitlines()[-2] == "failed: llmr_update"
    assert bench.main(["memory"]) == 0


def tiny_case() -> dad_dagger.Case:
    shape = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}
    text = torch.randint(0, 40, (60,), generator=torch.Generator().manual_seed(0))
    return dad_dagger.Case(dad_dagger.gpt_neo(0, **shape), dad_dagger.gpt_neo(1, **shape), text, context=8)


def test_algorithm_1_has_the_losses_of_the_literal_version() -> None:
    lines = list(dad_dagger.measure(tiny_case()))
    assert [line["unit"] for line in lines] == ["s", "TFLOP", "of the matrix rate"] * 2
    assert lines[1]["sizes"]["updates"] == 4 * (2 + 3 + 4)  # 52 true windows, then 3 trajectories of 9 more, twice
    exact, rounded = (line["sizes"] for line in lines[::3])
    assert exact["losses_apart"] < 1e-5 < rounded["losses_apart"]
    assert lines[1]["ours"] == lines[4]["ours"], "the same products, whoever multiplies, are counted"
    assert rounded["free_running_ce"] == pytest.approx(exact["free_running_ce"], abs=0.01)


def test_losses_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dad_dagger.LOSSES_WITHIN, "bfloat16", 1e-6)
    with pytest.raises(AssertionError, match="with trunks in bfloat16"):
        list(dad_dagger.measure(tiny_case()))


def test_losses_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dad_dagger.literal

    def broken(*arguments: Any) -> tuple[list[float], int]:
        losses, otherwise = right(*arguments)
        return [*losses[:-1], math.nan], otherwise

    monkeypatch.setattr(dad_dagger, "literal", broken)
    with pytest.raises(AssertionError, match="losses differ by up to nan"):
        list(dad_dagger.measure(tiny_case()))


def test_only_a_number_on_a_border_may_be_drawn_otherwise() -> None:
    # whatever it reads, its probabilities are .5 .25 .25: borders at .5 and .75
    class Student:
        def __call__(self, ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.tensor([0.5, 0.25, 0.25]).log().expand(*ids.shape, 3))

    context, uniform = torch.zeros((1, 4), dtype=torch.long), torch.tensor([[0.5, 0.7, 0.9]])
    windows, otherwise = roll_out(Student(), context, uniform, torch.tensor([[1, 1]]))
    assert ([each[0, -1].item() for each in windows], otherwise) == ([1, 1], 0)
    windows, otherwise = roll_out(Student(), context, uniform, torch.tensor([[0, 1]]))
    assert ([each[0, -1].item() for each in windows], otherwise) == ([0, 1], 1), (
        "on the border, and ours is gone on with"
    )
    for wrong in ([[1, 2]], [[1, 0]], [[2, 1]]):
        with pytest.raises(AssertionError, match="from its place in the cumulative distribution"):
            roll_out(Student(), context, uniform, torch.tensor(wrong))


def test_an_evaluation_has_rouge_scores_numbers_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "RESAMPLES", 3)
    texts = [f"the {word} sat on the mat {word}" for word in ("cat", "dog", "cow", "hen", "fox")] * 4
    timed = evaluation.measure("replies", texts, texts[::-1])
    assert (timed["sizes"]["outputs"], timed["sizes"]["words"], timed["unit"]) == (20, 7, "CPU s")
    monkeypatch.setattr(evaluation, "rouge", lambda p, r: rouge([each[4:] for each in p], r))
    with pytest.raises(AssertionError):
        evaluation.measure("replies", texts, texts[::-1])


def test_a_divergence_pass_has_the_loss_and_gradient_of_full_logits_before_it_is_timed() -> None:
    shape = T5Shape(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    case = divergence.Case.of((shape, shape), 50, 5, 6)
    assert [line["sizes"]["what"] for line in divergence.measure(case)] == ["forward_kl", "reverse_kl", "js"]


def tiny_llama(monkeypatch: pytest.MonkeyPatch) -> decoder_only.Case:
    sizes = {"REPEATS": 1, "ROWS": 6, "CHECKED": 5, "SHORTEST": 1, "MEDIAN": 4, "LIMIT": 6, "END_EVERY": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(decoder_only, name, value)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return decoder_only.Case.of(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, **heads)


def test_decoder_only_models_have_the_stock_ones_tokens_scores_and_gradients_before_they_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [line["sizes"] for line in decoder_only.measure(tiny_llama(monkeypatch))]
    whats = ["sample, all to the limit", "sample", "sample", "score", "learn", "score", "learn"]
    assert [line["what"] for line in lines] == [*whats, "our steps in bfloat16 against float32"]
    assert lines[0]["mean_length"] == 6 > lines[1]["mean_length"]


@pytest.mark.parametrize("part", ["our_sample", "our_scores", "our_gradient"])
def test_decoder_only_models_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    case, real = tiny_llama(monkeypatch), getattr(decoder_only, part)
    other = decoder_only.Case(case.model, case.prompt_BS.roll(1, dims=0), case.mask_BS.roll(1, dims=0))
    monkeypatch.setattr(decoder_only, part, lambda case, *more: real(other.to(torch.float64, 5), *more))
    with pytest.raises(AssertionError):
        decoder_only.check(case.to(torch.float64, 5))


@pytest.mark.parametrize("name", labels.KINDS)
def test_labels_off_the_disk_teach_what_they_were_before_they_are_timed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sizes = {"VOCABULARY": 60, "WIDTH": 12, "STUDENT": 8, "TOKENS": 40, "BATCH": 16}
    for size, value in sizes.items():
        monkeypatch.setattr(labels, size, value)
    monkeypatch.setattr(common, "REPEATS", 1)
    assert [line["unit"] for line in labels.measure(name)] == ["bytes a token", "ms"]


@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled"])
def test_every_label_is_read_once_where_memory_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(labels, "SHARD", 30)
    assert labels.stream(kind, 100, tmp_path) == 100
