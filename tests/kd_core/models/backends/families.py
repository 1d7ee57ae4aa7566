"""Tiny models of many families, saved with a tokenizer and loaded by path: float64 where the stock model can be, random
in every weight. As a program, the table of docs/methods/causal.md: how far each is from stock transformers.

    python -m tests.kd_core.models.backends.families
"""

import copy
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from kd_core.losses.divergence_head import Divergence, TeacherStates, divergence_loss
from kd_core.losses.divergences import reverse_kl
from kd_core.losses.lm_head import weighted_nll
from kd_core.models.loading import load_model, load_tokenizer
from kd_core.models.policy import backend_of, decode, encode, head_of, shift_right, start_tokens
from kd_core.rollout.sampling import greedy

VOCABULARY = 61
PROMPTS, RESPONSES = (5, 1, 9), (4, 6, 2)
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = SIZES | HEADS | {"num_key_value_heads": 2, "head_dim": 8}
WINDOWED = GROUPED | {"num_hidden_layers": 3, "sliding_window": 4}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "forced_eos_token_id": None,
    "vocab_size": VOCABULARY,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}


@dataclass(frozen=True)
class Family:
    """One model type, and what is asked of it."""

    backend: str
    sizes: dict[str, Any] = field(default_factory=dict)
    within: float = 1e-9  # of the stock logits; gradients within ten times that
    dtype: torch.dtype = torch.float64


# Gemma, Cohere, GPT-J and T5 compute angles, norms or softmax in float32, whatever the weights are (mT5, whose head is
# not scaled, has the largest logits); test_t5.py and test_gpt_neo.py compare to 1e-10
FAMILIES = {
    "llama": Family("packed", GROUPED),
    "qwen2": Family("packed", GROUPED),
    "qwen3": Family("packed", GROUPED),
    "mistral": Family("packed", WINDOWED),
    "gemma": Family("packed", GROUPED, within=1e-6),
    "gemma2": Family("packed", WINDOWED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}, within=1e-6),
    "gemma3_text": Family("packed", WINDOWED | {"query_pre_attn_scalar": 8, "sliding_window_pattern": 2}, within=1e-6),
    "phi": Family("packed", SIZES | HEADS),
    "phi3": Family("packed", WINDOWED),
    "olmo2": Family("packed", GROUPED),
    "smollm3": Family("packed", GROUPED),
    "gpt_neox": Family("packed", SIZES | HEADS),
    "opt": Family("packed", SIZES | HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": Family("packed", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "granite": Family("packed", GROUPED | {"logits_scaling": 3.0}),
    "cohere": Family("packed", GROUPED | {"logit_scale": 0.25}, within=1e-6),
    "gpt_neo": Family(
        "gpt_neo",
        {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        | {"window_size": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 64},
        within=1e-6,
    ),
    "falcon": Family(
        "padded", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "alibi": False} | HEADS
    ),
    "bloom": Family(
        "padded", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, 1e-4, torch.float32
    ),
    "gptj": Family(
        "padded",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64},
        within=1e-6,
    ),
    "bart": Family("padded", BART),
    "pegasus": Family("padded", BART),
    "marian": Family("padded", BART),
    "mbart": Family("padded", BART),
    "t5": Family("t5", T5 | {"vocab_size": VOCABULARY}, within=1e-6),
    "mt5": Family("t5", T5 | {"vocab_size": VOCABULARY, "tie_word_embeddings": False}, within=1e-4),
    "umt5": Family("padded", T5 | {"vocab_size": VOCABULARY}, within=1e-6),
}


def tiny(name: str, layers: int = 2) -> Any:
    """A model of the caller's own: what a test does to it, no other sees. layers: an even number, where not 2."""
    return copy.deepcopy(_made(name, layers))


@cache
def _made(name: str, layers: int) -> Any:
    family = FAMILIES[name]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = family.sizes
    if layers != 2:
        sizes = sizes | {key: layers for key in sizes if key == "n_layer" or key.endswith("layers")}
    if name == "gpt_neo":
        sizes = sizes | {"attention_types": [[["global", "local"], layers // 2]]}
    config = AutoConfig.for_model(name, **(special | sizes))
    auto = AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto, config.decoder_start_token_id = AutoModelForSeq2SeqLM, 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).to(family.dtype).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        if "final_logits_bias" in dict(model.named_buffers()):
            model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        write_tokenizer(Path(folder))
        dtype: Any = str(family.dtype).removeprefix("torch.")
        return load_model(folder, dtype=dtype, tokenizer=load_tokenizer(folder))


def write_tokenizer(directory: Path) -> None:
    """A word for each row of the embedding."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words = special | {f"w{number}": number for number in range(len(special), VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(directory)


def ragged(lengths: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Right-padded random words with their mask."""
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def stock_logits(model: Any, prompt: Tensor, response: Tensor) -> Tensor:
    """What predicts each token of a response, by the stock model on one row. Shapes: (S,), (T,) -> (T, V)."""
    if model.config.is_encoder_decoder:
        inputs = torch.cat([response.new_tensor([model.config.decoder_start_token_id]), response[:-1]])
        out = model(input_ids=prompt[None], decoder_input_ids=inputs[None], use_cache=False)
        return out.logits[0]  # type: ignore[no-any-return]
    whole = torch.cat([prompt, response])[None]
    out = model(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False)
    return out.logits[0, len(prompt) - 1 : -1]  # type: ignore[no-any-return]


def stock_rows(model: Any, prompts: tuple[Tensor, Tensor], responses: tuple[Tensor, Tensor]) -> Tensor:
    """The same of all rows, one after another: (M, V)."""
    rows = zip(*prompts, *responses, strict=True)
    return torch.cat([stock_logits(model, ids[there], words[real]) for ids, there, words, real in rows])


def states(model: Any, prompts: tuple[Tensor, Tensor], responses: tuple[Tensor, Tensor]) -> Tensor:
    """Our states that predict each token of the responses: (M, D)."""
    memory = encode(model, *prompts)
    hidden, _ = decode(model, memory, shift_right(responses[0], start_tokens(model, memory)), responses[1])
    return hidden


Pair = tuple[Tensor, Tensor]  # ours, stock


def logits(name: str) -> Pair:
    """Of uneven rows together, and of each alone."""
    model, prompts, responses = tiny(name), ragged(PROMPTS, 1), ragged(RESPONSES, 2)
    with torch.no_grad():
        return head_of(model).logits(states(model, prompts, responses)), stock_rows(model, prompts, responses)


def policy_gradient(name: str) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Of a likelihood whose tokens have weights of their own, and its value."""
    model, prompts, responses = tiny(name), ragged(PROMPTS, 3), ragged(RESPONSES, 4)
    target = responses[0][responses[1]]
    weight = torch.randn(len(target), generator=torch.Generator().manual_seed(5)).to(FAMILIES[name].dtype)
    ours = weighted_nll(states(model, prompts, responses), head_of(model), target, weight)
    picked = stock_rows(model, prompts, responses).log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)
    return _gradients(model, ours, -(weight * picked).sum())


def divergence_gradient(name: str) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Of the reverse KL to another distribution at every token, and its value."""
    model, prompts, responses = tiny(name), ragged(PROMPTS, 13), ragged(RESPONSES, 14)
    head = head_of(model)
    hidden, stock = states(model, prompts, responses), stock_rows(model, prompts, responses)
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(15)).to(hidden.dtype)
    teacher = TeacherStates((hidden + noise).detach(), head.detach())
    share = torch.full((len(hidden),), 1 / len(hidden), dtype=hidden.dtype)
    ours, _ = divergence_loss(hidden, head, teacher, share, Divergence("reverse_kl"))
    theirs = reverse_kl(teacher.head.logits(teacher.hidden_ME)[None], stock[None]).mean()
    return _gradients(model, ours, theirs)


def _gradients(model: Any, ours: Tensor, stock: Tensor) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    both = (torch.autograd.grad(x, list(named.values()), allow_unused=True) for x in (ours, stock))
    return {
        "": (ours.detach(), stock.detach().to(ours.dtype)),
        **dict(zip(named, zip(*both, strict=True), strict=True)),
    }


def greedy_rows(name: str) -> tuple[list[list[int]], list[list[int]]]:
    """What is written after uneven prompts together, and what `generate` writes after each alone."""
    model, prompts = tiny(name), ragged(PROMPTS, 9)
    with torch.no_grad():
        ours = greedy(model, encode(model, *prompts), 6)
        stock = [generated(model, ids[there], max_new_tokens=6) for ids, there in zip(*prompts, strict=True)]
    return [row[real].tolist() for row, real in zip(ours.tokens_BT, ours.mask_BT, strict=True)], stock


def generated(model: Any, prompt: Tensor, **settings: Any) -> list[int]:
    """What stock `generate` writes after one prompt."""
    ones = torch.ones_like(prompt[None])
    out = model.generate(prompt[None], attention_mask=ones, do_sample=False, pad_token_id=0, **settings)[0]
    tokens: list[int] = out[1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
    return tokens


def largest(pairs: dict[str, tuple[Tensor | None, Tensor | None]]) -> float:
    """The largest difference between ours and theirs."""
    return max(float((a - b).abs().max()) for a, b in pairs.values() if a is not None and b is not None)


def main() -> None:
    """Print the table."""
    print("| family | backend | dtype | logits | policy gradient | divergence gradient | greedy text |")
    print("|---|---|---|---|---|---|---|")
    for name, family in FAMILIES.items():
        ours, stock = greedy_rows(name)
        differences = largest({"": logits(name)}), largest(policy_gradient(name)), largest(divergence_gradient(name))
        dtype = str(family.dtype).removeprefix("torch.")
        cells = [name, backend_of(tiny(name)).name, dtype, *(f"{x:.0e}" for x in differences)]
        print(f"| {' | '.join(cells)} | {'equal' if ours == stock else 'DIFFERENT'} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
