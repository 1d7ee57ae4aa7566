"""Models at published shapes with random weights, uneven prompts and responses; what a pass is, by us and by stock.

Shape legend: B rows, S prompt positions, T response positions, L = S + T, M real response tokens, V vocabulary.

Stock transformers are taken at their best: sdpa, padding on the left for decoder-only models, logits of responses
alone (`logits_to_keep`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference_divergence import of_logits
from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.losses.head import full_precision
from kd_core.losses.lm_head import token_scores, weighted_nll
from kd_core.models.backends.graphs import in_graphs
from kd_core.models.policy import encode, head_of, shift_right, target_states
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, sample

PAD, BEGIN, END, FIRST_WORD = 0, 1, 2, 3
SPREAD = 0.6  # of the logarithm of a prompt's length, as what people write has it
BETA = 0.5


@dataclass(frozen=True)
class Lengths:
    """Rows of a batch, the median and the longest prompt, and the longest response; the shortest is half as long."""

    rows: int
    median: int
    prompt: int
    response: int


@dataclass(frozen=True)
class Case:
    """A teacher and a student of one shape, prompts padded on the right, and responses that somebody wrote."""

    teacher: Any
    student: Any
    prompt_BS: Tensor
    prompt_mask_BS: Tensor
    tokens_BT: Tensor
    mask_BT: Tensor

    @classmethod
    def of(cls, config: Any, lengths: Lengths, device: torch.device, dtype: torch.dtype) -> "Case":
        """Random weights and words, made on the device; the end of sequence is among no words."""
        generator = torch.Generator().manual_seed(0)
        spread_B = (SPREAD * torch.randn(lengths.rows, generator=generator)).exp()
        prompt_B = (lengths.median * spread_B).long().clamp(2, lengths.prompt)
        half = lengths.response // 2
        response_B = torch.randint(half, lengths.response + 1, (lengths.rows,), generator=generator)
        rows = []
        for length_B in (prompt_B, response_B):
            mask = torch.arange(int(length_B.max())) < length_B[:, None]
            ids = torch.randint(FIRST_WORD, config.vocab_size, mask.shape, generator=generator)
            rows += [ids.where(mask, PAD).to(device), mask.to(device)]
        return cls(*(built(config, seed, device, dtype) for seed in (0, 1)), *rows)

    @property
    def is_causal(self) -> bool:
        """Decoder-only; else an encoder reads the prompt."""
        return not self.student.config.is_encoder_decoder

    def num_tokens(self, *, sampled: bool = False) -> int:
        """Of the responses; of those that are sampled, which run to the limit as nothing ends them but chance."""
        return self.tokens_BT.numel() if sampled else int(self.mask_BT.sum())

    def flops(self, *, sampled: bool = False, backward: bool = False, passes: int = 1) -> float:
        """Of the weights' products over real tokens: 2 a weight and token, and twice that on the way back.

        Of several passes one learns. Attention's own products are not counted.
        """
        prompt, response = int(self.prompt_mask_BS.sum()), self.num_tokens(sampled=sampled)
        model = self.student
        head = model.get_output_embeddings().weight.numel()
        if self.is_causal:
            once = 2 * (_weights(model.get_decoder()) * (prompt + response) + head * response)
        else:
            stacks = (model.get_encoder(), prompt), (model.get_decoder(), response)
            once = 2 * (sum(_weights(stack) * tokens for stack, tokens in stacks) + head * response)
        return once * (passes + 2 * backward)


def _weights(stack: Any) -> int:
    """Weights of a stack without its embeddings."""
    embeddings = {id(m.weight) for m in stack.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(p.numel() for p in stack.parameters() if id(p) not in embeddings)


def configs() -> dict[str, Any]:
    """Published shapes, the most important first."""
    from transformers import LlamaConfig, Qwen2Config, T5Config

    ids = {"eos_token_id": END, "pad_token_id": PAD}
    of_llama = {**ids, "bos_token_id": BEGIN, "max_position_embeddings": 4096, "tie_word_embeddings": True}
    smollm2 = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        **of_llama,
    )
    t5 = T5Config(
        vocab_size=32_128,
        d_model=768,
        d_kv=64,
        d_ff=3_072,
        num_layers=12,
        num_heads=12,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        **ids,
    )
    qwen = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        **of_llama,
    )
    llama = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        **of_llama,
    )
    return {"SmolLM2-135M": smollm2, "T5-base": t5, "Qwen2.5-0.5B": qwen, "Llama-3.2-1B": llama}


def small_configs() -> dict[str, Any]:
    """One of each kind, of a few thousand weights."""
    from transformers import LlamaConfig, T5Config

    ids = {"vocab_size": 50, "eos_token_id": END, "pad_token_id": PAD}
    llama = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=BEGIN,
        **ids,
    )
    t5 = T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0, decoder_start_token_id=PAD, **ids
    )
    return {"small Llama": llama, "small T5": t5}


def built(config: Any, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    with device:
        return kind.from_config(config, dtype=dtype).eval()


@torch.no_grad()
def our_sample(case: Case) -> Rollout:
    """A response to each prompt, as long as the case's or shorter."""
    memory: Any = encode(case.student, case.prompt_BS, case.prompt_mask_BS)
    settings = SamplingSettings(max_new_tokens=case.tokens_BT.shape[1])
    return sample(case.student, memory, settings, torch.Generator().manual_seed(0))


def our_sample_by_graphs(case: Case) -> Rollout:
    """The same by CUDA graphs."""
    with in_graphs(case.student):
        return our_sample(case)


def stock_sample(case: Case, student: Any | None = None, processors: list[Any] | None = None) -> Tensor:
    """The same by `generate`: (B, T)."""
    ids, mask = padded(case)
    out: Tensor = (student or case.student).generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=case.tokens_BT.shape[1],
        logits_processor=processors or [],
    )
    return out[:, ids.shape[1] if case.is_causal else 1 :]


def padded(case: Case) -> tuple[Tensor, Tensor]:
    """Prompts and mask as stock transformers want them."""
    if not case.is_causal:
        return case.prompt_BS, case.prompt_mask_BS.long()
    order = case.prompt_mask_BS.long().argsort(dim=1, stable=True)  # padding first, then tokens in their order
    return case.prompt_BS.gather(1, order), case.prompt_mask_BS.gather(1, order).long()


def our_states(model: Any, case: Case) -> TeacherStates:
    """What predicts the responses' tokens, and the head."""
    memory = encode(model, case.prompt_BS, case.prompt_mask_BS)
    hidden_MD, _ = target_states(model, memory, case.tokens_BT, case.mask_BT)
    return TeacherStates(hidden_MD, head_of(model))


def stock_logits(model: Any, case: Case) -> Tensor:
    """The stock model's logits for the responses' tokens. Shapes: -> (M, V)."""
    ids_BS, mask_BS = padded(case)
    if not case.is_causal:
        inputs_BT = shift_right(case.tokens_BT, model.config.decoder_start_token_id)
        out = model(input_ids=ids_BS, attention_mask=mask_BS, decoder_input_ids=inputs_BT, use_cache=False)
        return masked(out.logits, case.mask_BT)
    ids_BL, mask_BL = torch.cat([ids_BS, case.tokens_BT], dim=1), torch.cat([mask_BS, case.mask_BT], dim=1)
    position_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    length = case.tokens_BT.shape[1]
    out = model(ids_BL, mask_BL, position_BL, use_cache=False, logits_to_keep=length + 1)
    return masked(out.logits[:, :-1], case.mask_BT)


def masked(x_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T, V) -> (M, V)."""
    return x_BTV[mask_BT]


@torch.no_grad()
def our_scores(case: Case) -> tuple[Tensor, Tensor]:
    """The teacher's logit of each token, and its largest: twice (M,)."""
    seen = our_states(case.teacher, case)
    scores = token_scores(seen.hidden_ME, seen.head, case.tokens_BT[case.mask_BT], "max")
    return scores.logit_M, scores.value_M


@torch.no_grad()
def stock_scores(case: Case) -> tuple[Tensor, Tensor]:
    """The same from all logits."""
    logits_MV = stock_logits(case.teacher, case)
    return logits_MV.gather(1, case.tokens_BT[case.mask_BT][:, None]).squeeze(1), logits_MV.amax(dim=1)


def our_policy_gradient(case: Case) -> list[Tensor]:
    """Of the student's mean negative log-likelihood of the tokens, in every weight."""
    seen, target_M = our_states(case.student, case), case.tokens_BT[case.mask_BT]
    weight_M = full_precision(seen.hidden_ME.new_full(target_M.shape, 1 / len(target_M)))
    return _gradient(case, weighted_nll(seen.hidden_ME, seen.head, target_M, weight_M))


def stock_policy_gradient(case: Case) -> list[Tensor]:
    """The same from all logits."""
    loss = F.cross_entropy(full_precision(stock_logits(case.student, case)), case.tokens_BT[case.mask_BT])
    return _gradient(case, loss)


def our_divergence(case: Case) -> list[Tensor]:
    """The gradient of the mean JS between teacher and student, in every weight of the student."""
    with torch.no_grad():
        seen = our_states(case.teacher, case)
    mine = our_states(case.student, case)
    weight_M = full_precision(mine.hidden_ME.new_full((len(mine.hidden_ME),), 1 / len(mine.hidden_ME)))
    return _gradient(case, divergence_loss(mine.hidden_ME, mine.head, seen, weight_M, Divergence("js", BETA))[0])


def stock_divergence(case: Case) -> list[Tensor]:
    """The same from all logits of both."""
    with torch.no_grad():
        log_p_MV = F.log_softmax(full_precision(stock_logits(case.teacher, case)), dim=-1)
    log_q_MV = F.log_softmax(full_precision(stock_logits(case.student, case)), dim=-1)
    return _gradient(case, of_logits(log_p_MV, log_q_MV, "js", BETA).mean())


def _gradient(case: Case, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(case.student.parameters())))
