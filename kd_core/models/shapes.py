"""Small models described by their shape, made here with random weights: T5 (encoder–decoder) and GPT-Neo (causal)."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch

from kd_core.models.files import ModelKind


@dataclass(frozen=True, kw_only=True)
class T5Shape:
    """A small T5, described: trained here from its random start. The vocabulary is the tokenizer's."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    kind: ClassVar[ModelKind] = "seq2seq"

    d_model: int = 128
    d_kv: int = 32
    d_ff: int = 512
    num_layers: int = 2
    num_decoder_layers: int = 2
    num_heads: int = 4
    feed_forward: Literal["relu", "gated-gelu"] = "relu"

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass(frozen=True, kw_only=True)
class GPTNeoShape:
    """A small GPT-Neo, described: trained here from its random start. The vocabulary is the tokenizer's.

    Raises ValueError for sizes that do not fit each other.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    kind: ClassVar[ModelKind] = "causal"

    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    max_position_embeddings: int = 256  # the longest context, in tokens
    window_size: int = 256  # of the local attention that every second layer has

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )


Shape = T5Shape | GPTNeoShape


def build_model(shape: Shape, vocab_size: int, seed: int, *, eos_id: int = 1) -> Any:
    """A model with random weights drawn from `seed`; the global random state is left as it was.

    No dropout: small and under-fitted.
    """
    return (
        build_t5(shape, vocab_size, seed, eos_id=eos_id)
        if isinstance(shape, T5Shape)
        else build_gpt_neo(shape, vocab_size, seed, eos_id=eos_id)
    )


def build_t5(shape: T5Shape, vocab_size: int, seed: int, *, eos_id: int = 1) -> Any:
    """See `build_model`."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.num_layers,
        num_decoder_layers=shape.num_decoder_layers,
        num_heads=shape.num_heads,
        feed_forward_proj=shape.feed_forward,
        dropout_rate=0.0,
        eos_token_id=eos_id,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config).eval()


def build_gpt_neo(shape: GPTNeoShape, vocab_size: int, seed: int, *, eos_id: int = 1) -> Any:
    """See `build_model`. Global and local attention alternate, as in the published models."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        max_position_embeddings=shape.max_position_embeddings,
        window_size=shape.window_size,
        attention_types=[[["global", "local"], shape.num_layers // 2], [["global"], shape.num_layers % 2]],
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoForCausalLM(config).eval()


def _check_sizes(shape: Shape) -> None:
    for each in fields(shape):
        value = getattr(shape, each.name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{each.name} must be at least 1, got {value}")
