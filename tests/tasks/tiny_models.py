"""Model directories as T5, T5 v1.1, T0 and GPT-Neo ship them, a few kilobytes each: safetensors and tokenizer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, T5Config, T5ForConditionalGeneration

from kd_core.models.shapes import GPTNeoShape, build_gpt_neo

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
    model = build_gpt_neo(GPTNeoShape(hidden_size=16, num_heads=2), 320, seed, eos_id=tokenizer.eos_token_id)
    model.config.pad_token_id = None  # as the published ones
    model.save_pretrained(directory)
    return directory
