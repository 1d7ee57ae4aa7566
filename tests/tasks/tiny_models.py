"""Model directories as T5, T5 v1.1, T0, GPT-Neo, Llama and BART ship them: a few kilobytes of safetensors each."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2TokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from kd_core.models.shapes import GPTNeoShape, build_gpt_neo

GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
NUM_SENTINELS = 100  # <extra_id_0> …, which T5 adds to its SentencePiece model
_SENTENCE = "the a cat dog bird sat ran sang on under over mat tree roof said hello good morning how are you today"
WORDS = _SENTENCE.split()
TEXTS = [f"{WORDS[i % 21]} {WORDS[i * 5 % 21]} {WORDS[i * 3 % 19]} {WORDS[i * 2 % 17]} {i}" for i in range(300)]


def write_spiece(directory: Path, texts: list[str] = TEXTS, pieces: int = 60) -> int:
    """A trained spiece.model with the config file that T5's repositories hold; returns the tokenizer's length."""
    directory.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=pieces,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": NUM_SENTINELS}
    record = special | {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)]}
    (directory / "tokenizer_config.json").write_text(json.dumps(record | {"model_max_length": 512}))
    return pieces + NUM_SENTINELS


def write_t5(directory: Path, *, own_head: bool, vocab_size: int = 192, seed: int = 0) -> Any:
    """Weights of a tiny T5 (tied head, ReLU) or T5 v1.1 (a head of its own, gated GELU); returns the model."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu" if own_head else "relu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        tie_word_embeddings=not own_head,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config).eval()
        if own_head:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(vocab_size, 16))
    model.save_pretrained(directory)
    # the published files say it in these words; what transformers 5 writes itself it could be expected to read
    content = json.loads((directory / "config.json").read_text())
    del content["scale_decoder_outputs"]
    (directory / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": not own_head}))
    return model


def write_model(directory: Path, *, own_head: bool, seed: int = 0) -> Path:
    """Weights and tokenizer; the embeddings are padded beyond the tokenizer, as T5's are."""
    write_spiece(directory)
    write_t5(directory, own_head=own_head, seed=seed)
    return directory


def write_causal(directory: Path, *, seed: int = 0) -> Path:
    """A tiny GPT-Neo with a byte-level tokenizer: it appends no end of sequence, and neither knows any padding."""
    tokenizer = write_byte_level(directory)
    model = build_gpt_neo(GPTNeoShape(hidden_size=16, num_heads=2), 320, seed, eos_id=tokenizer.eos_token_id)
    model.config.pad_token_id = None  # as the published ones
    model.save_pretrained(directory)
    return directory


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if brief %}Shortly: {% endif %}{% endif %}"
)


def write_chat(directory: Path, *, seed: int = 0, vocab_size: int = 320) -> Path:
    """A tiny Llama that chats: a template with a begin of its own; a turn ends in another token than a text does."""
    write_llama(directory, seed=seed, vocab_size=vocab_size)
    tokenizer = GPT2TokenizerFast.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    path = directory / "generation_config.json"
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    record = json.loads(path.read_text()) | {"eos_token_id": [tokenizer.eos_token_id, turn_end]}
    path.write_text(json.dumps(record))
    return directory


def write_llama(directory: Path, *, seed: int = 0, vocab_size: int = 320, layers: int = 2) -> Path:
    """A tiny Llama with grouped keys and a byte-level tokenizer; it names two ends of sequence and no padding."""
    end = write_byte_level(directory).eos_token_id
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=end,
        eos_token_id=[end, 5],
    )
    _save(LlamaForCausalLM, config, directory, seed)
    return directory


def write_gguf(path: Path, directory: Path, architecture: str = "llama") -> Path:
    """A tiny Llama's directory as llama.cpp's converter has it: rotary rows in another order, tokenizer inside."""
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(directory),
        json.loads((directory / "tokenizer.json").read_text()),
    )
    config, bpe = model.config, tokenizer["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    end = tokens.index("<|endoftext|>")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    padding = [f"[PAD{row}]" for row in range(len(tokens), config.vocab_size)]
    writer.add_token_list(tokens + padding)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens] + [5] * len(padding))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", weight.numpy())
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", weight.numpy())
        elif name == "lm_head.weight":
            writer.add_tensor("output.weight", weight.numpy())
        else:
            number, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            if part in heads:
                weight = weight.view(heads[part], 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{number}.{GGUF_PARTS[part]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_bart(directory: Path, *, seed: int = 0) -> Path:
    """A tiny BART with a byte-level tokenizer; its targets start with the end of sequence."""
    end = write_byte_level(directory).eos_token_id
    config = BartConfig(
        vocab_size=320,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=128,
        dropout=0.0,
        pad_token_id=end,
        eos_token_id=end,
        bos_token_id=end,
        decoder_start_token_id=end,
        forced_eos_token_id=None,
    )
    _save(BartForConditionalGeneration, config, directory, seed)
    return directory


def _save(made: Any, config: Any, directory: Path, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made(config).eval().save_pretrained(directory)


def write_byte_level(directory: Path) -> Any:
    """A tokenizer like GPT-2's, saved; returns it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    tokenizer = GPT2TokenizerFast(tokenizer_object=trained, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    tokenizer.save_pretrained(directory)
    return tokenizer
