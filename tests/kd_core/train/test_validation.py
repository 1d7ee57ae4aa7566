"""What a look at the validation set says, against stock logits and by hand; the weights that are kept by it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from kd_core.losses.rewards import RewardSettings
from kd_core.models.policy import encode_rows
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings, greedy, sample
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.divergence import ReverseKLSettings, Transfer, train_divergence
from kd_core.train.llmr import LLMRSettings, train_llmr
from kd_core.train.minillm import MiniLLMSettings, train_minillm
from kd_core.train.state import OptimizerSettings, StepMetrics, TrainState
from kd_core.train.validation import Validation, variety

Make = Callable[..., Any]
ROWS = TokenRows.of([[3, 4, 1], [5, 1], [6, 7, 8, 1], [9, 2, 1]])
TEXT = TokenRows.of([[4, 4, 1], [2, 1], [7, 1], [8, 9, 3, 1]])
SOURCES = Sources(ROWS, ROWS, TEXT)


def settings(**more: Any) -> LLMRSettings:
    given = {
        "steps": 12,
        "validate_every": 1,
        "validation_rows": 4,
        "sampling": SamplingSettings(max_new_tokens=5),
        "reward": RewardSettings(baseline="value", truncated="bootstrap", reward_scale=1.0),
        "batch": BatchSettings(micro_batches=1),
        "optimizer": OptimizerSettings(learning_rate=3e-2),
    }
    return LLMRSettings(**(given | more))


def test_the_numbers_of_samples_and_of_texts_are_those_of_stock_logits(make_t5: Make) -> None:
    student, teacher = make_t5(seed=4), make_t5(seed=5)
    with torch.no_grad():
        memory = encode_rows(student, ROWS, torch.arange(4))
        drawn = sample(student, memory, SamplingSettings(max_new_tokens=5), torch.Generator().manual_seed(0))
        source, mask = ROWS.batch(torch.arange(4), 0, torch.device("cpu"))
        inputs = torch.cat([torch.zeros(4, 1, dtype=torch.long), drawn.tokens_BT[:, :-1]], dim=1)
        p, q = (
            Categorical(logits=m(input_ids=source, attention_mask=mask.long(), decoder_input_ids=inputs).logits)
            for m in (teacher, student)
        )
        texts, text_mask = TEXT.batch(torch.arange(4), 0, torch.device("cpu"))
        inputs = torch.cat([torch.zeros(4, 1, dtype=torch.long), texts[:, :-1]], dim=1)
        of_text = Categorical(
            logits=teacher(input_ids=source, attention_mask=mask.long(), decoder_input_ids=inputs).logits
        )
    real = drawn.mask_BT
    found = Validation(teacher, SOURCES, settings()).measure(student, with_text=True)
    assert found["validation_reverse_kl"] == pytest.approx(float(kl_divergence(q, p)[real].mean()), rel=1e-5)
    assert found["validation_forward_kl"] == pytest.approx(float(kl_divergence(p, q)[real].mean()), rel=1e-5)
    assert found["validation_teacher_entropy"] == pytest.approx(float(p.entropy()[real].mean()), rel=1e-5)
    assert found["validation_log_prob"] == pytest.approx(float(p.log_prob(drawn.tokens_BT)[real].mean()), rel=1e-5)
    assert found["validation_text_teacher_entropy"] == pytest.approx(
        float(of_text.entropy()[text_mask].mean()), rel=1e-5
    )
    assert found["validation_text_log_prob"] == pytest.approx(
        float(of_text.log_prob(texts)[text_mask].mean()), rel=1e-5
    )
    assert found["validation_sampled_length"] == float(real.sum()) / 4
    assert found["validation_sampled_truncated"] == float(drawn.truncated_B.sum()) / 4
    assert found["validation_length"] == float(greedy(student, memory, 5).mask_BT.sum()) / 4
    assert found["validation_overlap"] == 1.0, "all 11 tokens are among the 16 likeliest"


def test_a_student_that_is_its_teacher_agrees_with_it(make_t5: Make) -> None:
    model = make_t5(seed=4)
    found = Validation(model, SOURCES, settings()).measure(model, with_text=False)
    assert found["validation_reverse_kl"] == pytest.approx(0, abs=1e-12)
    assert found["validation_forward_kl"] == pytest.approx(0, abs=1e-12)
    assert "validation_text_log_prob" not in found


def test_without_a_teacher_what_the_student_writes_is_counted_and_texts_are_its_own_to_judge(make_t5: Make) -> None:
    student = make_t5(seed=4)
    known = Validation(make_t5(seed=5), SOURCES, settings()).measure(student, with_text=True)
    found = Validation(None, SOURCES, settings()).measure(student, with_text=True)
    loss = found.pop("validation_loss")
    assert found == {name: value for name, value in known.items() if name in found}
    counted = {"length", "truncated", "equal", "distinct_2", "repetition"}
    assert found.keys() == {f"validation_{kind}{name}" for kind in ("", "sampled_") for name in counted}
    source, mask = ROWS.batch(torch.arange(4), 0, torch.device("cpu"))
    texts, text_mask = TEXT.batch(torch.arange(4), 0, torch.device("cpu"))
    labels = texts.masked_fill(~text_mask, -100)
    with torch.no_grad():
        stock = student(input_ids=source, attention_mask=mask.long(), labels=labels, use_cache=False).loss
    assert loss == pytest.approx(float(stock), rel=1e-5)


def test_variety_by_hand() -> None:
    assert variety([[1, 2, 3], [1, 2, 3], [1, 2]]) == {"equal": 2 / 3, "distinct_2": 2 / 5, "repetition": 0.0}
    assert variety([[7] * 6, []]) == {"equal": 0.0, "distinct_2": 1 / 5, "repetition": 2 / 3}


def train(make_t5: Make, chosen: Any) -> tuple[list[StepMetrics], Any]:
    state, teacher = TrainState.start(make_t5(seed=4), chosen.optimizer), make_t5(seed=5)
    match chosen:
        case LLMRSettings():
            log = train_llmr(state, teacher, SOURCES, SOURCES, chosen, 0)
        case MiniLLMSettings():
            log = train_minillm(state, teacher, SOURCES, SOURCES, chosen, 0)
        case _:
            log = train_divergence(state, teacher, Transfer(SOURCES, None), SOURCES, chosen, 0)
    return list(log), state.model


def settings_of(loop: str, **more: Any) -> Any:
    """The same budget for every loop that keeps its best weights."""
    if loop == "llmr":
        return settings(**more)
    given = {name: getattr(settings(), name) for name in ("steps", "validate_every", "validation_rows", "sampling")}
    given |= {"batch": BatchSettings(micro_batches=1), "optimizer": OptimizerSettings(learning_rate=1.0)} | more
    return MiniLLMSettings(**given) if loop == "minillm" else ReverseKLSettings(**given)


every_loop = pytest.mark.parametrize("loop", ["llmr", "minillm", "divergence"])


@every_loop
@pytest.mark.parametrize(("keep", "name", "sign"), [("reward", "sampled_reward", -1), ("reverse_kl", "reverse_kl", 1)])
def test_the_best_weights_are_kept(make_t5: Make, loop: str, keep: Any, name: str, sign: int) -> None:
    log, model = train(make_t5, settings_of(loop, keep=keep, min_variety=0.0))
    scores = [sign * row.values[f"validation_{name}"] for row in log]
    assert [row.step for row in log] == list(range(13))
    assert min(scores) < scores[-1], "the last is the best: nothing was tested"
    found = Validation(make_t5(seed=5), SOURCES, settings()).measure(model, with_text=False)
    assert sign * found[f"validation_{name}"] == pytest.approx(min(scores))
    best = [row.step for row in log if row.values["validation_best"]]
    assert best[0] == 0
    assert scores[best[-1]] == min(scores)


@every_loop
def test_training_ends_when_nothing_better_comes(make_t5: Make, loop: str) -> None:
    whole, _ = train(make_t5, settings_of(loop, keep="reverse_kl", min_variety=0.0))
    log, _ = train(make_t5, settings_of(loop, keep="reverse_kl", min_variety=0.0, patience=2))
    assert len(log) < len(whole)
    assert log == whole[: len(log)]
    assert [row.values["validation_best"] for row in log[-3:]] == [1.0, 0.0, 0.0]


def test_weights_that_have_lost_their_variety_are_not_kept(make_t5: Make) -> None:
    chosen = settings(keep="reward", min_variety=1.0)
    log, _ = train(make_t5, chosen)
    start = log[0].values["validation_distinct_2"]
    below = [row for row in log if row.values["validation_distinct_2"] < start]
    assert below, "none has lost any: nothing was tested"
    assert not any(row.values["validation_best"] for row in below)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": "best"}, "keep must be last, reward or reverse_kl, got 'best'"),
        ({"min_variety": 1.5, "keep": "reward"}, r"min_variety must be in \[0, 1\]"),
        ({"patience": -1, "keep": "reward"}, "patience must be 0"),
        ({"patience": 3}, "patience is of weights that are kept, and keep is last"),
        ({"min_variety": 0.5}, "min_variety is of weights that are kept, and keep is last"),
        (
            {"patience": 3, "keep": "reward", "validate_every": 0},
            "patience counts validations, and validate_every is 0",
        ),
        ({"start_kl": -1.0}, "start_kl must be 0"),
        ({"reverse_kl": -0.1}, "reverse_kl must be 0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings(**wrong)
