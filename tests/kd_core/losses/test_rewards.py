"""LLMR's equations, in float64, against loops written from the paper."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_core.losses.head import Head
from kd_core.losses.lm_head import token_scores
from kd_core.losses.rewards import RewardSettings, induced_reward, reward_to_go, scale_and_clip, subtract_baseline
from kd_core.rollout.scoring import state_value

B, T, V = 5, 6, 7
LENGTHS = torch.tensor([6, 3, 1, 4, 6])  # rows 0 and 4 fill the limit; row 4 has no end of sequence
MASK = torch.arange(T)[None] < LENGTHS[:, None]
TRUNCATED = torch.tensor([False, False, False, False, True])
KINDS = ["max", "softmax", "logsumexp"]


def scored(kind: str, *, centre: bool, shift: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """q-values and values of random logits (B, T+1, V) through the production path; the head is the identity."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn((B, T + 1, V), generator=rng, dtype=torch.float64) * 3
    tokens = torch.randint(0, V, (B, T + 1), generator=rng)
    if shift is not None:
        logits = logits + shift[:, :, None]
    chosen = RewardSettings(value=kind, centre=centre)  # type: ignore[arg-type]
    flat, head = logits.flatten(0, 1), torch.eye(V, dtype=torch.float64)
    scores = token_scores(flat, Head(head), tokens.flatten(), chosen.value)
    q_value = scores.logit_M - scores.mean_M if centre else scores.logit_M
    q_value, value = q_value.view(B, T + 1), state_value(scores, chosen).view(B, T + 1)
    return {
        "logits": logits,
        "tokens": tokens[:, :T],
        "q_value": q_value[:, :T] * MASK,
        "value": value[:, :T] * MASK,
        "last": torch.where(TRUNCATED, value[:, T], 0.0),
    }


def slow_gain(data: dict[str, torch.Tensor], kind: str, *, centre: bool) -> torch.Tensor:
    """Eq. 2 to 4 word for word, row by row."""
    gain = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        end = int(LENGTHS[b])

        def q_values(t: int, b: int = b) -> torch.Tensor:
            f = data["logits"][b, t]
            return f - f.mean() if centre else f

        def state(t: int, b: int = b, end: int = end) -> float:
            if t == end and not TRUNCATED[b]:
                return 0.0  # after the end of sequence there is no state
            q = q_values(t)
            if kind == "max":
                return float(q.max())
            if kind == "logsumexp":
                return float(q.exp().sum().log())
            return float((data["logits"][b, t].softmax(0) * q).sum())

        rewards = [float(q_values(t)[data["tokens"][b, t]]) - state(t + 1) for t in range(end)]
        for t in range(end):
            gain[b, t] = sum(rewards[t:])
    return gain


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gain_equals_the_loop(kind: str, centre: bool) -> None:
    data = scored(kind, centre=centre)
    gain = reward_to_go(induced_reward(data["q_value"], data["value"], MASK, data["last"]), MASK)
    torch.testing.assert_close(gain, slow_gain(data, kind, centre=centre), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gain_identity(kind: str, centre: bool) -> None:
    """G_t = V(s_t) + sum_{i >= t} [q_val(y_i) - V(s_i)]; less the bootstrapped value of a truncated row."""
    data = scored(kind, centre=centre)
    gain = reward_to_go(induced_reward(data["q_value"], data["value"], MASK, data["last"]), MASK)
    identity = (data["value"] + reward_to_go(data["q_value"] - data["value"], MASK) - data["last"][:, None]) * MASK
    torch.testing.assert_close(gain, identity, atol=1e-12, rtol=1e-12)


def test_logsumexp_gain_is_the_teachers_log_probability() -> None:
    """G_0 - V(s_0) = log p(y|x) for ended outputs."""
    data = scored("logsumexp", centre=False)
    gain = reward_to_go(induced_reward(data["q_value"], data["value"], MASK, data["last"]), MASK)
    for b in range(B):
        if TRUNCATED[b]:
            continue
        log_p = data["logits"][b].log_softmax(1)
        total = sum(log_p[t, data["tokens"][b, t]] for t in range(int(LENGTHS[b])))
        torch.testing.assert_close(gain[b, 0] - data["value"][b, 0], total, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_centred_rewards_do_not_see_a_shift_of_the_logits(kind: str) -> None:
    """A constant per state added to all logits changes no probability, and no centred q-value, value or reward."""
    shift = torch.randn((B, T + 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, shifted = scored(kind, centre=True), scored(kind, centre=True, shift=shift)
    for name in ("q_value", "value", "last"):
        torch.testing.assert_close(plain[name], shifted[name], atol=1e-12, rtol=1e-12)
    raw = scored(kind, centre=False, shift=shift)
    assert not torch.allclose(raw["q_value"], scored(kind, centre=False)["q_value"])


@pytest.mark.parametrize("kind", KINDS)
def test_advantage_over_the_value_baseline_does_not_see_it_either(kind: str) -> None:
    shift = torch.randn((B, T + 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift[:, T] = 0.0  # the bootstrapped last value is a state of its own
    both = []
    for data in (scored(kind, centre=False), scored(kind, centre=False, shift=shift)):
        gain = reward_to_go(induced_reward(data["q_value"], data["value"], MASK, data["last"]), MASK)
        both.append(subtract_baseline(gain, data["value"], MASK, "value"))
    torch.testing.assert_close(both[0], both[1], atol=1e-12, rtol=1e-12)


def test_end_of_sequence_by_hand() -> None:
    """q = (2, 5), V = (3, 4), ended: R_0 = 2 - V(s_1) = -2, R_1 = q(EOS) = 5; G = (3, 5)."""
    q, v, mask = torch.tensor([[2.0, 5.0]]), torch.tensor([[3.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool)
    reward = induced_reward(q, v, mask, torch.zeros(1))
    assert reward.tolist() == [[-2.0, 5.0]]
    assert reward_to_go(reward, mask).tolist() == [[3.0, 5.0]]


def test_truncation_by_hand() -> None:
    """The same, cut off, with V(s_2) = 1.5: R_1 = 5 - 1.5."""
    q, v, mask = torch.tensor([[2.0, 5.0]]), torch.tensor([[3.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert induced_reward(q, v, mask, torch.tensor([1.5])).tolist() == [[-2.0, 3.5]]


def test_padding_by_hand() -> None:
    """What stands behind the end reaches no reward: not its q-value, not its value."""
    mask = torch.tensor([[True, True, False]])
    q, v = torch.tensor([[2.0, 5.0, 99.0]]), torch.tensor([[3.0, 4.0, 77.0]])
    assert induced_reward(q, v, mask, torch.zeros(1)).tolist() == [[-2.0, 5.0, 0.0]]


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=30)
def test_padding_never_changes_a_gain(length: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    q, v = (torch.randn((1, length), generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(1, length, dtype=torch.bool)
    short = reward_to_go(induced_reward(q, v, mask, torch.zeros(1)), mask)
    pad = torch.full((1, 2), 1e6, dtype=torch.float64)
    longer = torch.cat([mask, torch.zeros(1, 2, dtype=torch.bool)], 1)
    padded = induced_reward(torch.cat([q, pad], 1), torch.cat([v, pad], 1), longer, torch.zeros(1))
    torch.testing.assert_close(reward_to_go(padded, longer)[:, :length], short, atol=1e-9, rtol=1e-9)


def test_leave_one_out_by_hand() -> None:
    """Sources 0, 0, 1, 1, 1 with start gains 1, 3 | 2, 4, 9: baselines 3, 1 | 6.5, 5.5, 3."""
    gain, mask = torch.tensor([[1.0], [3.0], [2.0], [4.0], [9.0]]), torch.ones(5, 1, dtype=torch.bool)
    less = subtract_baseline(gain, gain, mask, "leave_one_out", torch.tensor([0, 0, 1, 1, 1]))
    assert less.flatten().tolist() == [-2.0, 2.0, -4.5, -1.5, 6.0]
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        subtract_baseline(gain, gain, mask, "leave_one_out", torch.arange(5))


def test_a_dropped_rollout_is_in_nobodys_baseline() -> None:
    """Start gains 6, dropped, 2 | 5, dropped, dropped | dropped, dropped: baselines 2, -, 6 | none | none.

    The baseline of a rollout is the mean of G_0 over the others that count: a dropped one is no gain of 0. The second
    source keeps one rollout, for which there is no baseline: its gain stays G_t at every token.
    """
    gain = torch.tensor(
        [[6.0, 1.0], [0.0, 0.0], [2.0, 3.0], [5.0, 4.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    )
    mask = torch.tensor([[1, 1], [0, 0], [1, 1], [1, 1], [0, 0], [0, 0], [0, 0], [0, 0]]).bool()
    less = subtract_baseline(gain, gain, mask, "leave_one_out", torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]))
    assert less.tolist() == [[4, -1], [0, 0], [-4, -3], [5, 4], [0, 0], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("kind", ["batch_mean", "leave_one_out"])
def test_dropping_a_rollout_is_as_if_it_had_not_been_drawn(kind: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    gain = torch.randn((6, 4), generator=rng, dtype=torch.float64)
    mask, group = torch.ones(6, 4, dtype=torch.bool), torch.tensor([0, 0, 0, 1, 1, 1])
    mask[[1, 5]] = False
    kept = torch.tensor([0, 2, 3, 4])
    among_all = subtract_baseline(gain * mask, gain, mask, kind, group)
    alone = subtract_baseline(gain[kept], gain[kept], mask[kept], kind, group[kept])
    torch.testing.assert_close(among_all[kept], alone, atol=1e-12, rtol=1e-12)


def test_scale_then_clip() -> None:
    gain = torch.tensor([[-300.0, 50.0, 120.0]])
    assert scale_and_clip(gain, RewardSettings()).tolist() == [[-1.0, 0.5, 1.0]]
    assert scale_and_clip(gain, RewardSettings(reward_clip=0.0, reward_scale=10.0)).tolist() == [[-30.0, 5.0, 12.0]]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        induced_reward(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2).bool(), torch.zeros(1))
    with pytest.raises(ValueError, match="one shape"):
        reward_to_go(torch.zeros(1, 2), torch.ones(1, 3).bool())


@pytest.mark.parametrize(
    "wrong",
    [{"value": "min"}, {"baseline": "best"}, {"truncated": "keep"}, {"reward_scale": 0.0}, {"reward_clip": -1.0}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value!r}"):
        RewardSettings(**wrong)
