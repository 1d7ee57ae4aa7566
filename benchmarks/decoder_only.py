"""Decoder-only models: sample, score and learn at SmolLM2-135M's shape, against stock `generate` and full logits.

Random weights; 32 prompts of uneven length (log-normal, as what people write is), padded on the left for stock
transformers; responses end about once in 16 tokens (by a bias on the end's logit), or run to the limit. Stock attention
is sdpa and its cache the default; its passes make all logits, as `model(…)` does, or those of responses alone
(`logits_to_keep`).
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LogitsProcessor

from benchmarks.common import in_turn, line
from kd_core.losses.lm_head import token_scores, weighted_nll
from kd_core.models.policy import Layout, Memory, encode, head_of, step_decoder, step_head, target_states
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, draw, sample

REPEATS = 3  # of seconds each
ROWS, LIMIT, END_EVERY = 32, 32, 16
SHORTEST, MEDIAN, LONGEST, SPREAD = 8, 40, 160, 0.6  # prompts' tokens; spread: of the length's logarithm
CHECKED = 6  # rows whose values are compared
PAD, BEGIN, END = 0, 1, 2
NEVER = 10**30
SMOLLM2_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2_048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """A model, and prompts padded on the right."""

    model: Any
    prompt_BS: Tensor
    mask_BS: Tensor

    @classmethod
    def of(cls, **shape: Any) -> "Case":
        """Random weights and words."""
        torch.manual_seed(0)
        config = LlamaConfig(eos_token_id=END, pad_token_id=PAD, bos_token_id=BEGIN, **shape)
        model: Any = AutoModelForCausalLM.from_config(config).eval()
        model.lm_head.bias = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=False)
        length_B = prompt_lengths(ROWS)
        mask_BS = torch.arange(int(length_B.max())) < length_B[:, None]
        return cls(model, torch.randint(3, config.vocab_size, mask_BS.shape) * mask_BS, mask_BS)

    def to(self, dtype: torch.dtype, rows: int = ROWS) -> "Case":
        """A copy of the model, and some of the prompts."""
        return Case(copy.deepcopy(self.model).to(dtype), self.prompt_BS[:rows], self.mask_BS[:rows])

    def end_every(self, num_tokens: float) -> None:
        """From now on an end is about one token in so many."""
        self.model.lm_head.bias.data[END] = math.log(self.model.config.vocab_size / num_tokens)

    def padded_left(self) -> tuple[Tensor, Tensor]:
        """The prompts and their mask as `generate` wants them."""
        order = self.mask_BS.long().argsort(dim=1, stable=True)  # padding first, then tokens in their order
        return self.prompt_BS.gather(1, order), self.mask_BS.gather(1, order).long()


def prompt_lengths(rows: int, generator: torch.Generator | None = None) -> Tensor:
    """(B,) uneven, as what people write is."""
    return (MEDIAN * (SPREAD * torch.randn(rows, generator=generator)).exp()).long().clamp(SHORTEST, LONGEST)


def run() -> Iterator[dict[str, Any]]:
    """SmolLM2-135M's shape."""
    yield from measure(Case.of(**SMOLLM2_135M))


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """Ours against stock, after a check in float64 that tokens, scores and gradients are the same.

    Last, our own steps in bfloat16, all rows to the end, against those in float32.
    """
    check(case.to(torch.float64, CHECKED))
    half, lengths = case.to(torch.bfloat16), case.mask_BS.sum(dim=1)
    sizes = {"rows": ROWS, "prompt_lengths": [int(lengths.min()), int(lengths.max())], "max_new_tokens": LIMIT}
    sizes |= {"padded_share": round(1 - float(case.mask_BS.float().mean()), 2)}
    sizes |= {"parameters": case.model.num_parameters(), "vocabulary": case.model.config.vocab_size}
    samples = (case, "float32", NEVER), (half, "bfloat16", END_EVERY), (case, "float32", END_EVERY)
    for each, precision, every in samples:
        each.end_every(every)
        response = our_sample(each)
        sizes |= {"precision": precision, "mean_length": round(float(response.mask_BT.sum() / ROWS), 1)}
        what = "sample, all to the limit" if every == NEVER else "sample"
        yield timed(partial(our_sample, each), partial(stock_sample, each), sizes | {"what": what})
    for kept, logits in ((0, "all"), (LIMIT + 1, "of responses")):
        for what, ours, stock in (("score", our_scores, stock_scores), ("learn", our_gradient, stock_gradient)):
            more = {"what": what, "stock_logits": logits}
            yield timed(partial(ours, case, response), partial(stock, case, response, kept), sizes | more)
    steps = [partial(our_steps, each, response, prompts_of(each)) for each in (half, case)]
    yield timed(*steps, sizes | {"what": "our steps in bfloat16 against float32", "precision": "bfloat16"})


def timed(ours: Callable[[], object], reference: Callable[[], object], sizes: dict[str, Any]) -> dict[str, Any]:
    """One line."""
    return line("decoder_only", *in_turn(ours, reference, REPEATS), "s/batch", **sizes)


@torch.no_grad()
def prompts_of(case: Case) -> Memory:
    """What the prompts leave behind."""
    return encode(case.model, case.prompt_BS, case.mask_BS)


def our_sample(case: Case) -> Rollout:
    """A response to each prompt."""
    settings = SamplingSettings(max_new_tokens=LIMIT)
    return sample(case.model, prompts_of(case), settings, torch.Generator().manual_seed(0))


def stock_sample(case: Case, *processors: LogitsProcessor) -> Tensor:
    """The same by `generate`: (B, T)."""
    ids, mask = case.padded_left()
    chosen = {"do_sample": True, "top_k": 0, "max_new_tokens": LIMIT, "logits_processor": list(processors)}
    out: Tensor = case.model.generate(ids, attention_mask=mask, **chosen)
    return out[:, ids.shape[1] :]


@torch.no_grad()
def our_steps(case: Case, response: Rollout, memory: Memory) -> None:
    """The logits of every token of all responses, a token at a time: what sampling does after the prompts."""
    decoder, head = step_decoder(case.model, memory, LIMIT), step_head(case.model)
    for token_B in response.tokens_BT.unbind(dim=1):
        head.logits(decoder.step(token_B))


def our_states(case: Case, response: Rollout) -> tuple[Tensor, Layout]:
    """What predicts the tokens of responses."""
    memory: Any = encode(case.model, case.prompt_BS, case.mask_BS)
    return target_states(case.model, memory, response.tokens_BT, response.mask_BT)


def stock_logits(case: Case, response: Rollout, kept: int) -> Tensor:
    """The same by the stock model, of real tokens: (M, V). kept: of how many positions it makes logits; 0: of all."""
    ids_BS, mask_BS = case.padded_left()
    ids_BL, mask_BL = torch.cat([ids_BS, response.tokens_BT], dim=1), torch.cat([mask_BS, response.mask_BT], dim=1)
    position_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    out = case.model(ids_BL, mask_BL, position_BL, use_cache=False, logits_to_keep=kept)
    length = response.tokens_BT.shape[1]
    logits: Tensor = out.logits[:, -length - 1 : -1][response.mask_BT]
    return logits


@torch.no_grad()
def our_scores(case: Case, response: Rollout) -> tuple[Tensor, Tensor]:
    """The logit of each token, and the largest beside it: twice (M,)."""
    hidden_MD, layout = our_states(case, response)
    scores = token_scores(hidden_MD, head_of(case.model), layout.pack(response.tokens_BT), "max")
    return scores.logit_M, scores.value_M


@torch.no_grad()
def stock_scores(case: Case, response: Rollout, kept: int = 0) -> tuple[Tensor, Tensor]:
    """The same from full logits."""
    logits_MV, target_M = stock_logits(case, response, kept), response.tokens_BT[response.mask_BT]
    return logits_MV.gather(1, target_M[:, None]).squeeze(1), logits_MV.amax(dim=1)


def our_gradient(case: Case, response: Rollout) -> list[Tensor]:
    """Of the responses' mean negative log-likelihood."""
    hidden_MD, layout = our_states(case, response)
    target_M = layout.pack(response.tokens_BT)
    weight_M = hidden_MD.new_full(target_M.shape, 1 / len(target_M))
    loss = weighted_nll(hidden_MD, head_of(case.model), target_M, weight_M)
    return gradient(case, loss)


def stock_gradient(case: Case, response: Rollout, kept: int = 0) -> list[Tensor]:
    """The same from full logits."""
    target_M = response.tokens_BT[response.mask_BT]
    return gradient(case, F.cross_entropy(stock_logits(case, response, kept), target_M))


def gradient(case: Case, loss: Tensor) -> list[Tensor]:
    """In every weight."""
    return list(torch.autograd.grad(loss, [p for p in case.model.parameters() if p.requires_grad]))


class SameNumbers(LogitsProcessor):
    """Makes `generate` draw by the uniform numbers that our samples are drawn by: one token is left to choose from."""

    def __init__(self) -> None:
        self.uniform_TB = iter(torch.rand((CHECKED, LIMIT), generator=torch.Generator().manual_seed(0)).T)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_B, _ = draw(scores, next(self.uniform_TB), SamplingSettings())
        return torch.full_like(scores, -math.inf).scatter_(1, token_B[:, None], 0.0)


def check(case: Case) -> None:
    """Raise AssertionError unless tokens, scores and gradients are the stock model's, by all its logits or some."""
    case.end_every(END_EVERY)
    ours, stock = our_sample(case), stock_sample(case, SameNumbers())
    stock = F.pad(stock, (0, ours.tokens_BT.shape[1] - stock.shape[1]))
    assert torch.equal(ours.tokens_BT * ours.mask_BT, stock * ours.mask_BT), "tokens differ"
    for kept in (0, LIMIT + 1):
        for mine, theirs in zip(our_scores(case, ours), stock_scores(case, ours, kept), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
        for mine, theirs in zip(our_gradient(case, ours), stock_gradient(case, ours, kept), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
