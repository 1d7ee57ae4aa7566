"""Family by family: logits, likelihoods and their gradients, samples, greedy and beam search are the stock model's.

The oracle reads each row alone, without padding; ours reads uneven prompts and responses at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kd_core.losses.lm_head import weighted_nll
from kd_core.models.policy import backend_of, decode, encode, head_of, shift_right, start_tokens, step_decoder
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.sampling import SamplingSettings, draw, greedy, sample
from tests.kd_core.models.backends.families import (
    FAMILIES,
    PROMPTS,
    RESPONSES,
    Family,
    divergence_gradient,
    generated,
    logits,
    policy_gradient,
    ragged,
    states,
    stock_logits,
    stock_rows,
    tiny,
)

every_family = pytest.mark.parametrize("name", FAMILIES)


def of(name: str) -> tuple[Any, Family]:
    return tiny(name), FAMILIES[name]


@contextmanager
def ending_in(model: Any, token: int | list[int]) -> Iterator[None]:
    """A model that ends in a token that it writes, or in any of several, and in no other."""
    before = model.config.eos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = token
    yield
    model.config.eos_token_id = model.generation_config.eos_token_id = before


@every_family
def test_it_runs_on_the_fastest_backend_that_serves_it(name: str) -> None:
    model, family = of(name)
    assert backend_of(model).name == family.backend


@every_family
def test_logits_are_the_stock_models(name: str) -> None:
    within = FAMILIES[name].within
    torch.testing.assert_close(*logits(name), atol=within, rtol=within)


@every_family
def test_a_batch_may_be_without_a_token_that_counts(name: str) -> None:
    """As where all rollouts of a micro-batch were cut off, and are dropped: nothing is learnt from it."""
    model, (tokens, mask) = tiny(name), ragged(RESPONSES, 2)
    hidden = states(model, ragged(PROMPTS, 1), (tokens, torch.zeros_like(mask)))
    loss = weighted_nll(hidden, head_of(model), tokens[:0, 0], hidden.new_zeros(0))
    wanted = [x for x in model.parameters() if x.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    assert len(hidden) == float(loss.detach()) == 0
    assert all(x is None or not x.any() for x in found)


@every_family
@pytest.mark.parametrize("gradients", [policy_gradient, divergence_gradient])
def test_losses_have_the_stock_models_gradients(name: str, gradients: Callable[[str], dict[str, Any]]) -> None:
    within, found = 10 * FAMILIES[name].within, gradients(name)
    for key, (ours, stock) in found.items():
        assert (ours is None) == (stock is None), key
        torch.testing.assert_close(ours, stock, atol=within, rtol=within, msg=key)
    assert sum(bool(ours.abs().max() > 1e-4) for ours, _ in found.values() if ours is not None) > len(found) / 2


@every_family
def test_samples_are_those_of_a_slow_loop_with_the_same_numbers(name: str) -> None:
    model, family = of(name)
    prompts, settings = ragged(PROMPTS, 6), SamplingSettings(max_new_tokens=5)
    with torch.no_grad():
        whole = sample(model, encode(model, *prompts), settings, torch.Generator().manual_seed(8))
        end = int(whole.tokens_BT[0, 2])  # the first row ends at its third token, others go on
        uniform = torch.rand((3, 5), generator=torch.Generator().manual_seed(8))
        with ending_in(model, end):
            ours = sample(model, encode(model, *prompts), settings, torch.Generator().manual_seed(8))
        for row, (ids, there) in enumerate(zip(*prompts, strict=True)):
            written = torch.empty(0, dtype=torch.long)
            for t in range(5):
                last = stock_logits(model, ids[there], torch.cat([written, written.new_zeros(1)]))[-1:]
                token, log_prob = draw(last, uniform[row, t : t + 1], settings)
                torch.testing.assert_close(
                    ours.log_prob_BT[row, t], log_prob[0].to(ours.log_prob_BT.dtype), atol=family.within, rtol=1e-5
                )
                written = torch.cat([written, token])
                if int(token) == end:
                    break
            assert written.tolist() == ours.tokens_BT[row][ours.mask_BT[row]].tolist()
    assert ours.mask_BT.sum(dim=1).unique().numel() > 1


@every_family
def test_greedy_writes_what_generate_writes(name: str) -> None:
    model, _ = of(name)
    prompts = ragged(PROMPTS, 9)
    with torch.no_grad():
        end = int(greedy(model, encode(model, *prompts), 6).tokens_BT[2, 3])
        with ending_in(model, end):
            ours = greedy(model, encode(model, *prompts), 6)
            for row, (ids, there) in enumerate(zip(*prompts, strict=True)):
                stock = generated(model, ids[there], max_new_tokens=6)
                assert ours.tokens_BT[row][ours.mask_BT[row]].tolist() == stock
    assert not ours.truncated_B.all()


@every_family
def test_beams_are_those_of_generate(name: str) -> None:
    model, _ = of(name)
    prompts, settings = ragged(PROMPTS, 10), BeamSettings(num_beams=3, max_new_tokens=5, no_repeat_ngram_size=0)
    with torch.no_grad():
        end = int(greedy(model, encode(model, *prompts), 5).tokens_BT[0, 2])
        with ending_in(model, end):
            found = beam_search(model, encode(model, *prompts), settings)
            for row, (ids, there) in enumerate(zip(*prompts, strict=True)):
                stock = generated(model, ids[there], max_new_tokens=5, num_beams=3, early_stopping=False)
                assert found.tokens_BT[row, : len(stock)].tolist() == stock


@pytest.mark.parametrize("name", ["llama", "bart", "t5"])
def test_what_is_written_ends_where_generate_ends_it_at_any_of_several_ends(name: str) -> None:
    model, prompts = tiny(name), ragged(PROMPTS, 10)
    settings = BeamSettings(num_beams=3, max_new_tokens=6, no_repeat_ngram_size=0)
    with torch.no_grad():
        free = greedy(model, encode(model, *prompts), 6).tokens_BT
        ends = [int(free[0, 3]), int(free[1, 2]), int(free[2, 1]), *range(40, 52)]  # many: few beams go on
        with ending_in(model, ends):
            ours = greedy(model, encode(model, *prompts), 6)
            found = beam_search(model, encode(model, *prompts), settings)
            for row, (ids, there) in enumerate(zip(*prompts, strict=True)):
                assert ours.tokens_BT[row][ours.mask_BT[row]].tolist() == generated(model, ids[there], max_new_tokens=6)
                stock = generated(model, ids[there], max_new_tokens=6, num_beams=3, early_stopping=False)
                assert found.tokens_BT[row, : len(stock)].tolist() == stock
    assert not ours.truncated_B.any()


@every_family
def test_rows_that_are_dropped_and_reordered_keep_their_history(name: str) -> None:
    model, family = of(name)
    prompts, tokens = ragged(PROMPTS, 7), torch.randint(3, 61, (6, 4), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain, moved = (step_decoder(model, encode(model, *prompts), 4, num_beams=2) for _ in range(2))
        for t in range(3):
            plain.step(tokens[:, t])
            moved.step(tokens[:, t])
        moved.reorder(torch.tensor([1, 0, 2, 3, 5, 5]))
        moved.keep(torch.tensor([0, 2]))
        rows = torch.tensor([1, 0, 5, 5])
        expected = plain.step(tokens[:, 3])[rows]
        torch.testing.assert_close(moved.step(tokens[rows, 3]), expected, atol=family.within, rtol=family.within)


@every_family
def test_a_prompt_that_is_read_once_serves_several_rows(name: str) -> None:
    """States and gradients are those of reading it for each row anew."""
    model, family = of(name)
    prompts, responses = ragged((5, 2), 13), ragged((4, 2, 1, 3), 14)
    found = []
    for together in (True, False):
        if together:
            memory = encode(model, *prompts).repeated(2)
        else:
            memory = encode(model, *(x.repeat_interleave(2, dim=0) for x in prompts))
        hidden, _ = decode(model, memory, shift_right(responses[0], start_tokens(model, memory)), responses[1])
        model.zero_grad()
        hidden.square().sum().backward()
        found.append((hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    (one, gradients), (other, others) = found
    torch.testing.assert_close(one, other, rtol=family.within, atol=family.within)
    assert gradients.keys() == others.keys()
    for each, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[each], rtol=1e-4, atol=max(1e-5, family.within))


@every_family
def test_prompts_of_one_token_alone(name: str) -> None:
    model, family = of(name)
    prompts, responses = ragged((1, 1), 11), ragged((3, 2), 12)
    with torch.no_grad():
        hidden = states(model, prompts, responses)
        stock = stock_rows(model, prompts, responses)
        torch.testing.assert_close(head_of(model).logits(hidden), stock, atol=family.within, rtol=family.within)
        memory = encode(model, *prompts)
        steps, inputs = step_decoder(model, memory, 3), shift_right(responses[0], start_tokens(model, memory))
        stepped = torch.stack([steps.step(token) for token in inputs.unbind(dim=1)], dim=1)
        torch.testing.assert_close(stepped[responses[1]], hidden, atol=family.within, rtol=family.within)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.backend == "packed"])
def test_a_packed_model_is_left_as_it_was(name: str) -> None:
    model, _ = of(name)
    before = model.config._attn_implementation
    with torch.no_grad():
        encode(model, *ragged(PROMPTS, 8))
    assert model.config._attn_implementation == before != "distill_rows"
    assert "distill" not in str(model.config.to_dict())


@every_family
def test_rows_that_are_dropped_again_and_again_go_on_as_they_would_alone(name: str) -> None:
    model, family = of(name)
    prompts, responses = ragged((5, 1, 9, 3, 2, 7), 13), ragged((5,) * 6, 14)
    with torch.no_grad():
        memory = encode(model, *prompts)
        inputs = shift_right(responses[0], start_tokens(model, memory))
        hidden, layout = decode(model, memory, inputs, responses[1])
        expected, steps, rows = layout.pad(hidden), step_decoder(model, memory, 5), torch.arange(6)
        for t, going_on in enumerate(([0, 2, 3, 4, 5], [1, 2, 4], [0, 2], [0], [0])):
            written = steps.step(inputs[rows, t])
            torch.testing.assert_close(written, expected[rows, t], atol=family.within, rtol=family.within)
            steps.keep(torch.tensor(going_on))
            rows = rows[going_on]
