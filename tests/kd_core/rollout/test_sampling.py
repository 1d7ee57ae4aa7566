from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kd_core.models.policy import decode, encode, head_of, shift_right
from kd_core.rollout.sampling import SamplingSettings, draw, first_above, greedy, reshape_logits, sample

Make = Callable[..., Any]
SOURCE = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [4, 4, 4, 0, 0], [9, 3, 2, 1, 0]])
SOURCE_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.usefixtures("exact_layer_norm")
def test_greedy_writes_what_stock_generate_writes(make_t5: Make) -> None:
    ends = []
    for seed in range(8):
        model = make_t5(seed=seed)
        with torch.no_grad():
            ours = greedy(model, encode(model, SOURCE, SOURCE_MASK), 9)
        stock = model.generate(input_ids=SOURCE, attention_mask=SOURCE_MASK.long(), max_new_tokens=9, do_sample=False)
        stock = F.pad(stock[:, 1:], (0, 9 - (stock.shape[1] - 1)))
        mine = F.pad(ours.tokens_BT, (0, 9 - ours.tokens_BT.shape[1]))
        assert torch.equal(mine * F.pad(ours.mask_BT, (0, 9 - ours.mask_BT.shape[1])), stock), seed
        ends += (~ours.truncated_B).tolist()
    assert any(ends), "no output ended: the case that matters was not tested"
    assert not all(ends), "no output was cut off: the case that matters was not tested"


def test_draws_follow_the_distribution() -> None:
    # 40,000 draws of 5 tokens: a chi-squared statistic with 4 degrees of freedom exceeds 23.5 once in 10,000 seeds
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    token, log_prob = draw(
        logits.expand(40_000, 5), torch.rand(40_000, generator=rng(), dtype=torch.float64), SamplingSettings()
    )
    expected = logits.softmax(0) * 40_000
    statistic = ((torch.bincount(token, minlength=5) - expected) ** 2 / expected).sum()
    assert statistic < 23.5
    torch.testing.assert_close(log_prob, logits.log_softmax(0)[token])


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 300, 1000])
def test_a_draw_is_the_first_token_whose_cumulative_probability_exceeds_the_number(vocab_size: int) -> None:
    logits = 3 * torch.randn((500, vocab_size), generator=rng(), dtype=torch.float64)
    uniform = torch.rand(500, generator=rng(1), dtype=torch.float64)
    token, log_prob = draw(logits, uniform, SamplingSettings())
    for row in range(500):
        cumulative = logits[row].softmax(0).cumsum(0)
        assert token[row] == int((cumulative <= uniform[row]).sum().clamp(max=vocab_size - 1))
    torch.testing.assert_close(log_prob, logits.log_softmax(1).gather(1, token[:, None]).squeeze(1))


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        # probabilities .5 .3 .15 .05 in the order of token 2, 0, 3, 1
        (SamplingSettings(top_k=2), {2: 0.5 / 0.8, 0: 0.3 / 0.8}),
        (SamplingSettings(top_p=0.79), {2: 0.5 / 0.8, 0: 0.3 / 0.8}),  # the smallest set that reaches .79
        (SamplingSettings(top_p=0.81), {2: 0.5 / 0.95, 0: 0.3 / 0.95, 3: 0.15 / 0.95}),
        (SamplingSettings(top_k=3, top_p=0.6), {2: 0.5 / 0.8, 0: 0.3 / 0.8}),  # within the top 3: .526, .842
    ],
)
def test_the_stored_log_probability_is_that_of_the_reshaped_distribution(
    settings: SamplingSettings, allowed: dict[int, float]
) -> None:
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]], dtype=torch.float64).log()
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    token, log_prob = draw(logits.expand(1000, 4), uniform, settings)
    assert set(token.tolist()) == set(allowed)
    for name, probability in allowed.items():
        assert (token == name).double().mean().item() == pytest.approx(probability, abs=2e-3)
        torch.testing.assert_close(log_prob[token == name].exp(), torch.full_like(log_prob[token == name], probability))


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[1.0, 3.0]])
    assert reshape_logits(logits, SamplingSettings(temperature=2.0))[0].tolist() == [[0.5, 1.5]]


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
@pytest.mark.parametrize(("vocab_size", "impossible"), [(7, 1), (256, 1), (400, 130), (384, 130)])
def test_the_ends_of_the_unit_interval_fall_on_tokens(uniform: float, vocab_size: int, impossible: int) -> None:
    logits = torch.full((1, vocab_size), -3.0)
    logits[0, :impossible] = logits[0, -impossible:] = float("-inf")  # never drawn, not even at the ends
    token, log_prob = draw(logits, torch.tensor([uniform]), SamplingSettings())
    assert impossible <= token.item() < vocab_size - impossible
    assert log_prob.isfinite().all()


def on_borders(logits_1V: torch.Tensor) -> torch.Tensor:
    """Uniform numbers on the borders of 128 tokens, as float32 has them, and their two neighbours."""
    weight = (logits_1V - logits_1V.amax()).exp()[0]
    whole = len(weight) // 128 * 128
    sums = torch.stack([*weight[:whole].view(-1, 128).sum(1), weight[whole:].sum()])
    border = (sums.cumsum(0) / sums.sum())[:-1]
    below, above = torch.nextafter(border, torch.zeros(())), torch.nextafter(border, torch.ones(()))
    return torch.cat([below, border, above]).clamp(max=1 - 2**-24)


@pytest.mark.parametrize("vocab_size", [200, 1000, 5000])
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_a_number_on_a_blocks_border_never_falls_on_a_token_of_weight_0(vocab_size: int, spread: float) -> None:
    for seed in range(20):
        logits = spread * torch.randn((1, vocab_size), generator=rng(seed))
        logits[:, ::128] = logits[:, 127::128] = float("-inf")  # the first and last of each block are impossible
        uniform = on_borders(logits)
        token, log_prob = draw(logits.expand(len(uniform), -1), uniform, SamplingSettings())
        assert log_prob.isfinite().all()
        ends = logits[0].double().softmax(0).cumsum(0)  # the exact inverse: u lies in [F(k - 1), F(k))
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        assert (uniform >= starts[token] - 1e-6).all()  # 8 roundings of float32
        assert (uniform < ends[token] + 1e-6).all()


def test_sums_that_rise_where_the_weight_is_0_are_not_believed() -> None:
    # a scan in parallel adds in another order at each place: its sums may differ by a rounding where nothing was added
    weight = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0]], dtype=torch.float64)
    sums = torch.tensor([[1e-9, 0.5, 0.5 + 1e-9, 0.75, 1.0, 1.0 + 1e-9]], dtype=torch.float64)
    numbers = torch.tensor([[-1e-12, 0.0, 5e-10, 0.5, 0.5 + 5e-10, 0.75, 1.0, 1.0 + 5e-10]], dtype=torch.float64)
    assert first_above(weight, sums, numbers)[0].tolist() == [[1, 1, 1, 3, 3, 4, 4, 4]]


@pytest.mark.parametrize("vocab_size", [7, 128, 300, 5000])
@pytest.mark.parametrize("settings", [SamplingSettings(), SamplingSettings(top_k=5), SamplingSettings(top_p=0.8)])
def test_away_from_the_borders_a_draw_in_float32_is_the_exact_inverse(
    vocab_size: int, settings: SamplingSettings
) -> None:
    logits = 3 * torch.randn((2000, vocab_size), generator=rng(2))
    uniform = torch.rand(2000, generator=rng(3))
    token, _ = draw(logits, uniform, settings)
    exact, ids = reshape_logits(logits, settings)
    ends = exact.double().softmax(1).cumsum(1)
    column = (ends <= uniform[:, None].double()).sum(1, keepdim=True)
    expected = (column if ids is None else ids.gather(1, column)).squeeze(1)
    near = ((ends - uniform[:, None].double()).abs() < 1e-6).any(1)  # 8 roundings of float32
    assert near.double().mean() < 0.05
    assert torch.equal(token[~near], expected[~near])


@pytest.mark.usefixtures("exact_layer_norm")
def test_rollout_log_probabilities_are_the_models_own(make_t5: Make) -> None:
    model = make_t5()
    memory = encode(model, SOURCE, SOURCE_MASK)
    rollout = sample(model, memory, SamplingSettings(max_new_tokens=6), rng())
    with torch.no_grad():
        hidden, layout = decode(model, memory, shift_right(rollout.tokens_BT, 0), rollout.mask_BT)
    log_q = F.log_softmax(head_of(model).logits(hidden), dim=1)
    chosen = log_q.gather(1, layout.pack(rollout.tokens_BT)[:, None]).squeeze(1)
    torch.testing.assert_close(layout.pack(rollout.log_prob_BT), chosen, atol=1e-9, rtol=1e-9)
    assert (rollout.log_prob_BT[~rollout.mask_BT] == 0).all()


def test_a_row_does_not_depend_on_which_others_have_ended(make_t5: Make) -> None:
    model = make_t5(sharpness=0.3)
    with torch.no_grad():
        memory = encode(model, SOURCE, SOURCE_MASK)
    settings = SamplingSettings(max_new_tokens=12)
    together = sample(model, memory, settings, rng(5))
    assert 0 < together.truncated_B.sum() < 4 or together.mask_BT.sum(1).unique().numel() > 1
    uniform = torch.rand((4, 12), generator=rng(5))
    for row in range(4):
        token, history = 0, []
        for t in range(int(together.mask_BT[row].sum())):
            history.append(token)
            with torch.no_grad():
                inputs = torch.tensor([history])
                alone = encode(model, SOURCE[row : row + 1], SOURCE_MASK[row : row + 1])
                hidden, _ = decode(model, alone, inputs, torch.ones_like(inputs, dtype=torch.bool))
            token = int(draw(head_of(model).logits(hidden[-1:]), uniform[row, t : t + 1], settings)[0])
            assert token == together.tokens_BT[row, t]


def test_padding_rows_of_the_embedding_are_never_written(make_t5: Make) -> None:
    model = make_t5(vocab_size=16)
    with torch.no_grad():
        model.lm_head.weight[11:] *= 30
        memory = encode(model, SOURCE, SOURCE_MASK)
    rollout = sample(model, memory, SamplingSettings(max_new_tokens=20), rng(), num_tokens=11)
    assert rollout.tokens_BT.max() < 11


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("max_new_tokens", -1)]
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        SamplingSettings(**{field: value})
