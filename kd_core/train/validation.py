"""What the student writes for validation inputs, in the teacher's eyes, and whether it still has something to say.

Shape legend: B rows, S source positions, T target positions, M real tokens.

Sampled outputs are drawn from the student's whole distribution with the same random numbers every time, whatever
top_k, top_p and temperature a method samples with, so that curves of different methods and settings compare.

Where labels stand for the teacher there is nobody to judge: what the student writes is counted all the same, and its
own cross-entropy on the data set's outputs is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from kd_core.losses.agreement import agreement
from kd_core.losses.rewards import RewardSettings
from kd_core.metrics.variety import equal_to_another, repeated_ngrams
from kd_core.models.backends.remote import RemoteModel, remote_scores
from kd_core.models.policy import Memory, Model, encode_rows, head_of, padded_rows, target_states
from kd_core.rollout.responses import Responses
from kd_core.rollout.sampling import SamplingSettings, greedy, sample
from kd_core.rollout.scoring import judge
from kd_core.train.batches import Sources
from kd_core.train.best import remember
from kd_core.train.budget import Budget
from kd_core.train.passes import teacher_states
from kd_core.train.ranks import ALONE, Ranks
from kd_core.train.state import TrainState
from kd_core.train.supervised import Pairs, cross_entropy

BATCH_ROWS = 64


@dataclass(frozen=True)
class Validation:
    """The first rows of the validation set, and how they are looked at."""

    teacher: Model | None
    sources: Sources
    settings: Budget
    reward: RewardSettings = field(default_factory=RewardSettings)
    num_tokens: int | None = None
    ranks: Ranks = ALONE  # who look at it together, a batch each

    def look(self, state: TrainState) -> dict[str, float]:
        """What the log has of the validation set; the weights are remembered if they are to be kept.

        The start's variety is what `min_variety` is a share of: the first look is at step 0.
        """
        values = self.measure(state.model, with_text=state.step == 0)
        if self.settings.keep == "last":
            return values
        by_reward = self.settings.keep == "reward"
        score = -values["validation_sampled_reward"] if by_reward else values["validation_reverse_kl"]
        variety = values["validation_distinct_2"]
        start = state.best.get("start_variety", torch.tensor(variety, dtype=torch.float64))
        allowed = variety >= self.settings.min_variety * float(start)
        values["validation_best"] = float(remember(state, score if allowed else float("inf")))
        state.best["start_variety"] = start
        return values

    @torch.no_grad()
    def measure(self, student: Model, *, with_text: bool) -> dict[str, float]:
        """Numbers of greedy outputs (`validation_…`) and of plain samples (`validation_sampled_…`), by name.

        Each of the two: reward per token (LLMR Eq. 1; truncated outputs are bootstrapped, not dropped), length in
        tokens, shares of outputs that were cut off and that another equals, of bigrams that are distinct, and of
        4-grams that are repetitions. Of the samples: the teacher's log-probability and entropy, both KLs and the
        overlap of the likeliest tokens; `with_text` the first two of the data set's own outputs: `validation_text_…`.
        Nats per token, and shares from 0 to 1. Of a teacher behind a server there is its log-probability, and no more.
        Without a teacher, in place of its view and of rewards: the student's own `validation_loss`, nats per token of
        the data set's outputs.
        """
        rows = min(self.settings.validation_rows, len(self.sources.student))
        batches = enumerate(torch.arange(rows).split(BATCH_ROWS))
        found = self.ranks.map(lambda batch: self._look_at(student, *batch, with_text=with_text), batches)
        greedily, sampled, text = map(Tally.joined, zip(*found, strict=True))
        named = {"validation_": greedily.of_outputs(), "validation_sampled_": sampled.of_outputs()}
        named |= {"validation_": named["validation_"] | sampled.per_token(), "validation_text_": text.per_token()}
        if self.teacher is None and self.sources.text is not None:
            named["validation_"]["loss"] = cross_entropy(
                student, Pairs(self.sources.student, self.sources.text), rows, self.ranks
            )
        return {prefix + name: value for prefix, values in named.items() for name, value in values.items()}

    def _look_at(
        self, student: Model, number: int, index: Tensor, *, with_text: bool
    ) -> tuple["Tally", "Tally", "Tally"]:
        """A batch's greedy outputs, samples and text."""
        limit, num_tokens = self.settings.sampling.max_new_tokens, self.num_tokens
        greedily, sampled, text = Tally(), Tally(), Tally()
        memory = encode_rows(student, self.sources.student, index)
        generator = torch.Generator(student.device).manual_seed(number)
        drawn = sample(student, memory, SamplingSettings(max_new_tokens=limit), generator, num_tokens=num_tokens)
        written = greedy(student, memory, limit, num_tokens=num_tokens)
        for tally, responses in ((greedily, written), (sampled, drawn)):
            tally.add(responses)
        if self.teacher is None:
            return greedily, sampled, text
        prompts = encode_rows(self.teacher, self.sources.teacher, index)
        for tally, responses in ((greedily, written), (sampled, drawn)):
            self._judge(tally, prompts, responses)
        self._compare(sampled, prompts, drawn, student, memory)
        if with_text and self.sources.text is not None:
            self._compare(text, prompts, self._text(index))
        return greedily, sampled, text

    def _judge(self, tally: "Tally", prompts: Memory, responses: Responses) -> None:
        kept = replace(self.reward, truncated="bootstrap")
        judged = judge(self.teacher, prompts, responses, kept, num_tokens=self.num_tokens)
        tally.reward = (tally.reward or 0.0) + float(judged.reward_BT.sum())

    def _compare(
        self,
        tally: "Tally",
        prompts: Memory,
        responses: Responses,
        student: Model | None = None,
        memory: Memory | None = None,
    ) -> None:
        tally.tokens += int(responses.mask_BT.sum())
        if isinstance(self.teacher, RemoteModel):
            log_prob_BU, _ = remote_scores(self.teacher, prompts, responses.tokens_BT, responses.mask_BT)
            tally.sums["log_prob"] = tally.sums.get("log_prob", 0.0) + float(log_prob_BU.sum())
            return
        seen = teacher_states(self.teacher, prompts, responses, self.num_tokens)
        target_M = responses.tokens_BT[responses.mask_BT]
        states = None
        if student is not None and memory is not None:
            hidden_MD, _ = target_states(student, memory, responses.tokens_BT, responses.mask_BT)
            states = hidden_MD, head_of(student, self.num_tokens)
        found = agreement(seen, target_M, states)
        for name, x_M in found.by_name().items():
            tally.sums[name] = tally.sums.get(name, 0.0) + float(x_M.sum())

    def _text(self, index: Tensor) -> Responses:
        assert self.sources.text is not None  # the caller asks
        tokens_BT, mask_BT = padded_rows(self.teacher, self.sources.text, index)
        return Responses(tokens_BT, mask_BT, torch.zeros_like(mask_BT[:, 0]))


@dataclass
class Tally:
    """What is counted in a batch, or summed up over several."""

    outputs: list[list[int]] = field(default_factory=list)
    reward: float | None = None  # None: nobody has judged
    truncated: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence["Tally"]) -> "Tally":
        """All of some batches, in their order."""
        whole = cls()
        for part in parts:
            whole.outputs += part.outputs
            if part.reward is not None:
                whole.reward = (whole.reward or 0.0) + part.reward
            whole.truncated += part.truncated
            whole.tokens += part.tokens
            for name, total in part.sums.items():
                whole.sums[name] = whole.sums.get(name, 0.0) + total
        return whole

    def add(self, responses: Responses) -> None:
        """Take in what the student has written."""
        self.truncated += int(responses.truncated_B.sum())
        lengths = responses.mask_BT.sum(dim=1).tolist()
        self.outputs += [ids[:n] for ids, n in zip(responses.tokens_BT.tolist(), lengths, strict=True)]

    def of_outputs(self) -> dict[str, float]:
        """See `Validation.measure`."""
        tokens = sum(map(len, self.outputs))
        return ({} if self.reward is None else {"reward": self.reward / tokens}) | {
            "length": tokens / len(self.outputs),
            "truncated": self.truncated / len(self.outputs),
            **variety(self.outputs),
        }

    def per_token(self) -> dict[str, float]:
        """See `Validation.measure`."""
        return {name: total / self.tokens for name, total in self.sums.items()}


def variety(outputs: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of outputs that another equals, of bigrams that are distinct, and of 4-grams that are repetitions."""
    bigrams = [pair for each in outputs for pair in pairwise(each)]
    counts = [repeated_ngrams(each) for each in outputs]
    repeated, fourgrams = sum(count for count, _ in counts), sum(count for _, count in counts)
    return {
        "equal": sum(equal_to_another(outputs)) / len(outputs),
        "distinct_2": len(set(bigrams)) / max(len(bigrams), 1),
        "repetition": repeated / max(fourgrams, 1),
    }
