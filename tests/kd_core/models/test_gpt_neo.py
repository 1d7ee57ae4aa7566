"""GPT-Neo over (prompt, response) pairs against the stock model on each row's tokens, values and gradients, float64."""

from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kd_core.losses.rewards import RewardSettings
from kd_core.metrics.excess_error import Reader, prefix_kl
from kd_core.models.gpt_neo import Memory, decode, encode
from kd_core.models.gpt_neo_steps import StepDecoder
from kd_core.models.policy import head_of, shift_right, start_tokens
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.mixed_sampling import sample_mixed
from kd_core.rollout.responses import Responses, mask_through_eos
from kd_core.rollout.sampling import SamplingSettings, draw, greedy, mixed_seed, sample
from kd_core.rollout.scoring import judge
from kd_core.train.batches import BatchSettings, Sources, updates
from kd_core.train.divergence import ReverseKLSettings, Transfer, train_divergence
from kd_core.train.state import OptimizerSettings, TrainState
from tests.kd_core.windows.test_gpt_neo import exact_attention, tiny_gpt_neo

__all__ = ["exact_attention"]

EOS = 1  # and padding: a mask made of `!= pad` would lose every end
PROMPTS = [[3, 4, 5, 6, 7, 8], [9, 1], [1], [4, 4, 4, 2, 1]]  # an end of sequence may stand in a prompt as well
RESPONSES = [[5, 6, 1], [7, 8, 9, 10, 11, 1], [1], [12, 13]]  # the last is cut off


def tiny(ends: float = 0.0, **more: Any) -> Any:
    """A tiny GPT-Neo whose logit of the end of sequence is raised by `ends`."""
    model = tiny_gpt_neo(**more)
    row_D = model.lm_head.weight[EOS].detach()
    model.transformer.ln_f.bias.data += ends * row_D / row_D.square().sum()
    model.config.eos_token_id = model.config.pad_token_id = EOS
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = EOS
    return model


def padded(rows: list[list[int]], width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    width = width or max(map(len, rows))
    ids = torch.tensor([row + [EOS] * (width - len(row)) for row in rows])
    return ids, torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]


def ours(model: Any, prompts: list[list[int]] = PROMPTS, responses: list[list[int]] = RESPONSES) -> torch.Tensor:
    """(M, V) logits that predict each token of the responses, row by row."""
    memory = encode(model, *padded(prompts))
    target, mask = padded(responses)
    hidden, _ = decode(model, memory, shift_right(target, start_tokens(model, memory)), mask)
    return head_of(model).logits(hidden)


def stock(model: Any, prompts: list[list[int]] = PROMPTS, responses: list[list[int]] = RESPONSES) -> torch.Tensor:
    """The same by the stock model, one row at a time: there is no padding that could leak."""
    parts = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(torch.tensor([prompt + response])).logits[0]
        parts.append(logits[len(prompt) - 1 : -1])
    return torch.cat(parts)


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("window", [256, 4])
def test_logits_and_gradients_equal_the_stock_model(layers: int, window: int) -> None:
    model = tiny(layers=layers, window=window)
    here, there = ours(model), stock(model)
    torch.testing.assert_close(here, there, atol=1e-10, rtol=1e-10)
    direction = torch.randn(here.shape, dtype=here.dtype, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((here * direction).sum(), parameters)
    expected = torch.autograd.grad((there * direction).sum(), parameters)
    torch.testing.assert_close(gradients, expected, atol=1e-9, rtol=1e-9)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients), "a gradient that vanishes was compared"


@pytest.mark.usefixtures("exact_attention")
def test_the_window_counts_in_each_rows_own_positions() -> None:
    # were the gap between a short prompt and its response counted, the window of 4 would end elsewhere
    model, prompts = tiny(layers=2, window=4), [[3] * 18, [4, 5, 6]]
    responses = [[7, 8], [9, 10, 11, 12, 13, 14]]
    torch.testing.assert_close(ours(model, prompts, responses), stock(model, prompts, responses))


def test_the_gradient_flows_through_the_prompt_and_stops_in_a_detached_memory() -> None:
    model = tiny(layers=2)
    target, mask = padded(RESPONSES)

    def prompt_gradient(memory: Memory) -> torch.Tensor:
        hidden, _ = decode(model, memory, shift_right(target, memory.last_B), mask)
        (gradient,) = torch.autograd.grad(hidden.square().sum(), [model.transformer.wte.weight])
        return gradient[3]  # token 3 stands in a prompt alone

    memory = encode(model, *padded(PROMPTS))
    assert prompt_gradient(memory).abs().max() > 1e-3
    assert (prompt_gradient(memory.detach()) == 0).all()


def test_padding_never_changes_a_result() -> None:
    model = tiny(layers=3, window=5)
    with torch.no_grad():
        whole = ours(model)
        start = 0
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            row = ours(model, [prompt], [response])
            torch.testing.assert_close(whole[start : start + len(row)], row, atol=1e-12, rtol=1e-12)
            start += len(row)
        other_fill = torch.where(padded(PROMPTS)[1], padded(PROMPTS)[0], 17)
        target, mask = padded(RESPONSES)
        memory = encode(model, other_fill, padded(PROMPTS)[1])
        filled, _ = decode(model, memory, shift_right(torch.where(mask, target, 18), memory.last_B), mask)
    assert torch.equal(head_of(model).logits(filled), whole)


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("window", [256, 4])
@pytest.mark.parametrize("prompts", [PROMPTS, [[3, 4, 5], [9, 8, 1], [6, 6, 6], [2, 1, 1]], [[1], [2], [3], [4]]])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_steps_equal_the_teacher_forced_pass(prompts: list[list[int]], window: int, num_beams: int) -> None:
    model = tiny(layers=3, window=window)
    tokens = torch.randint(0, 11, (4 * num_beams, 6), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        memory = encode(model, *padded(prompts))
        inputs = shift_right(tokens, memory.last_B.repeat_interleave(num_beams))
        decoder = StepDecoder(model, memory, 6, num_beams)
        steps = torch.stack([decoder.step(inputs[:, t]) for t in range(6)], dim=1)
        for beam in range(num_beams):
            rows = torch.arange(4) * num_beams + beam
            whole, _ = decode(model, memory, inputs[rows], torch.ones(4, 6, dtype=torch.bool))
            torch.testing.assert_close(steps[rows].flatten(0, 1), whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("window", [256, 4])
def test_dropping_and_reordering_rows_keeps_their_history(window: int) -> None:
    model = tiny(layers=2, window=window)
    tokens = torch.randint(2, 11, (8, 4), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        memory = encode(model, *padded(PROMPTS))
        plain, moved = (StepDecoder(model, memory, 5, num_beams=2) for _ in range(2))
        for t in range(3):
            plain.step(tokens[:, t])
            moved.step(tokens[:, t])
        moved.reorder(torch.tensor([1, 0, 2, 3, 5, 4, 6, 6]))
        moved.keep(torch.tensor([0, 2, 3]))
        rows = torch.tensor([1, 0, 5, 4, 6, 6])
        expected = plain.step(tokens[:, 3])[rows]
        torch.testing.assert_close(moved.step(tokens[rows, 3]), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("exact_attention")
def test_greedy_writes_what_stock_generate_writes() -> None:
    ends = []
    for seed in range(8):
        model = tiny(layers=2, window=6, seed=seed)
        with torch.no_grad():
            written = greedy(model, encode(model, *padded(PROMPTS)), 9)
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)
            mine = written.tokens_BT[row][written.mask_BT[row]]
            assert mine.tolist() == out[0, len(prompt) :].tolist(), (seed, row)
        ends += (~written.truncated_B).tolist()
    assert any(ends), "no output ended: the case that matters was not tested"
    assert not all(ends), "no output was cut off: the case that matters was not tested"


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("length_penalty", [1.0, 0.6])
def test_beam_hypotheses_equal_stock_generate(length_penalty: float) -> None:
    # without the ban on repeats: of a causal model, stock `generate` bans what stands in the prompt as well
    settings = BeamSettings(num_beams=4, max_new_tokens=7, no_repeat_ngram_size=0, length_penalty=length_penalty)
    lengths = set()
    for seed in range(4):
        model = tiny(layers=2, seed=seed, ends=2.0)
        with torch.no_grad():
            found = beam_search(model, encode(model, *padded(PROMPTS)), settings)
        mask = mask_through_eos(found.tokens_BT, EOS)
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([prompt])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=7,
                num_beams=4,
                do_sample=False,
                early_stopping=False,
                length_penalty=length_penalty,
            )
            assert found.tokens_BT[row][mask[row]].tolist() == out[0, len(prompt) :].tolist(), (seed, row)
        lengths |= set(mask.sum(1).tolist())
    assert len(lengths) > 1, "all hypotheses were of one length: the penalty was not tested"


def test_samples_do_not_depend_on_which_other_rows_have_ended() -> None:
    model, settings = tiny(layers=2, window=4, ends=2.0), SamplingSettings(max_new_tokens=9)
    with torch.no_grad():
        together = sample(model, encode(model, *padded(PROMPTS)), settings, torch.Generator().manual_seed(5))
    assert together.mask_BT.sum(1).unique().numel() > 1
    uniform = torch.rand((4, 9), generator=torch.Generator().manual_seed(5))
    for row, prompt in enumerate(PROMPTS):
        written: list[int] = []
        for t in range(int(together.mask_BT[row].sum())):
            with torch.no_grad():
                logits = ours(model, [prompt], [[*written, 0]])[-1:]
            token, log_prob = draw(logits, uniform[row, t : t + 1], settings)
            torch.testing.assert_close(together.log_prob_BT[row, t], log_prob[0], atol=1e-9, rtol=1e-9)
            written.append(int(token))
        assert written == together.tokens_BT[row][together.mask_BT[row]].tolist()


@pytest.mark.usefixtures("exact_attention")
def test_rewards_equal_those_of_the_stock_logits() -> None:
    # Eq. 2 and 3 with the value max, uncentred, the last row bootstrapped: a slow loop over stock logits
    teacher = tiny(layers=2)
    tokens, mask = padded(RESPONSES)
    cut = torch.tensor([False, False, False, True])
    settings = RewardSettings(centre=False, truncated="bootstrap")
    judged = judge(teacher, encode(teacher, *padded(PROMPTS)), Responses(tokens, mask, cut), settings)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            logits = teacher(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 :]
        for t, token in enumerate(response):
            after = logits[t + 1].max() if token != EOS else torch.zeros((), dtype=logits.dtype)
            torch.testing.assert_close(judged.reward_BT[row, t], logits[t, token] - after, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("exact_attention")
def test_the_kl_after_every_prefix_is_that_of_the_stock_logits() -> None:
    # the teacher reads another prompt than the student; nothing is added after an output's end
    teacher, student = tiny(layers=3, seed=2), tiny(layers=2, seed=1)
    prompted = [[20, *prompt, 21] for prompt in PROMPTS]
    tokens, mask = padded(RESPONSES)
    found = prefix_kl(Reader(teacher, *padded(prompted)), Reader(student, *padded(PROMPTS)), tokens, mask)
    with torch.no_grad():
        log_p, log_q = (stock(m, each).log_softmax(1) for m, each in ((teacher, prompted), (student, PROMPTS)))
    expected = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(found[mask], expected, atol=1e-9, rtol=1e-9)
    assert (found[~mask] == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    model = tiny(layers=2)  # of 32 positions
    memory = encode(model, *padded([[3] * 30, [3, 4]]))
    inputs, mask = padded([[5, 6, 7], [5]])
    decode(model, memory, inputs, mask)
    with pytest.raises(ValueError, match=r"of 33 tokens together are longer than the model's 32 positions\nlower"):
        decode(model, memory, F.pad(inputs, (0, 1)), F.pad(mask, (0, 1), value=True))
    with pytest.raises(ValueError, match=r"of 33 tokens together"):
        StepDecoder(model, memory, 4)
    with pytest.raises(ValueError, match="at least one token of prompt in every row, got an empty prompt"):
        encode(model, *padded([[], [3]]))


@pytest.mark.usefixtures("exact_attention")
def test_a_mixture_is_that_of_both_models_each_after_its_own_prompt() -> None:
    # the teacher's prompt is another one and ends in another token: its first step must read that one
    student, teacher, mix = tiny(layers=2, ends=2.0, seed=1), tiny(layers=3, ends=2.0, seed=2), 0.3
    prompted = [[20, *prompt, 21] for prompt in PROMPTS]
    with torch.no_grad():
        memories = encode(student, *padded(PROMPTS)), encode(teacher, *padded(prompted))
        settings, rng = SamplingSettings(max_new_tokens=6), torch.Generator().manual_seed(4)
        rollout = sample_mixed(student, memories[0], teacher, memories[1], mix, settings, rng)
    assert rollout.mask_BT.sum(1).unique().numel() > 1
    for row, tokens in enumerate(rollout.tokens_BT):
        written = tokens[rollout.mask_BT[row]]
        with torch.no_grad():
            q, p = (
                stock(model, [prompts[row]], [written.tolist()]).softmax(1)
                for model, prompts in ((student, PROMPTS), (teacher, prompted))
            )
        mixture = (mix * p + (1 - mix) * q).gather(1, written[:, None]).squeeze(1).log()
        torch.testing.assert_close(rollout.log_prob_BT[row][rollout.mask_BT[row]], mixture, atol=1e-9, rtol=1e-9)


@pytest.mark.usefixtures("exact_attention")
def test_an_update_by_divergence_follows_the_stock_gradient() -> None:
    # reverse KL on the student's samples: with plain full logits, on the samples that the loop draws from its seed
    student, teacher = tiny(layers=2, ends=2.0, seed=1), tiny(layers=3, ends=2.0, seed=2)
    prompted = [[20, *prompt, 21] for prompt in PROMPTS]
    sources = Sources(TokenRows.of(PROMPTS), TokenRows.of(prompted))
    settings = ReverseKLSettings(
        steps=9,
        validate_every=0,
        sampling=SamplingSettings(max_new_tokens=6),
        batch=BatchSettings(micro_batches=1),
        optimizer=OptimizerSettings(max_grad_norm=0.0),
    )
    (rows,) = next(updates(sources.student.lengths.numpy(), settings.batch, seed=3))
    prompts = [PROMPTS[row] for row in rows]
    with torch.no_grad():
        memory = encode(student, *padded(prompts))
        drawn = sample(student, memory, settings.sampling, torch.Generator().manual_seed(mixed_seed(3, 0, 0)))
    responses = [tokens[mask].tolist() for tokens, mask in zip(drawn.tokens_BT, drawn.mask_BT, strict=True)]
    log_q = stock(student, prompts, responses).log_softmax(1)
    with torch.no_grad():
        log_p = stock(teacher, [prompted[row] for row in rows], responses).log_softmax(1)
    divergence = (log_q.exp() * (log_q - log_p)).sum(1).mean()
    gradients = torch.autograd.grad(divergence, list(student.parameters()))
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()

    state = TrainState.start(student, settings.optimizer)
    _, first = islice(train_divergence(state, teacher, Transfer(sources, None), sources, settings, seed=3), 2)
    assert first.values["tokens"] == sum(map(len, responses))
    assert first.values["loss"] == pytest.approx(float(divergence.detach()), rel=1e-9)
    assert first.values["grad_norm"] == pytest.approx(float(norm), rel=1e-9)
