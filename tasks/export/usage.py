"""Code that lets an exported student write, given what it was taught to read."""

from pathlib import Path

from kd_core.models.loading import Tokenizer, load_tokenizer
from kd_core.models.prompts import PLACEHOLDER, Chat, Prompt, apply_prompt

EXAMPLE = "hello , how are you ?"
CODE = """from transformers import {auto_class}, AutoTokenizer

directory = "."  # the one that holds this file
tokenizer = AutoTokenizer.from_pretrained(directory)
model = {auto_class}.from_pretrained(directory)
{inputs}
outputs = model.generate(**inputs, {decoding})
print(tokenizer.batch_decode({written}, skip_special_tokens=True))"""


def usage(model: Path, auto_class: str, reads: Prompt, cut: str, decoding: str) -> str:
    """Python that loads the model from its own folder and has it answer an example.

    cut, decoding: arguments of the tokenizer (", truncation=…") and of `generate`, as they stand in code.
    """
    if auto_class == "AutoModelForSeq2SeqLM":
        return CODE.format(
            auto_class=auto_class,
            inputs=_encoder_inputs(reads, cut),
            decoding=decoding,
            written="outputs",
        )
    return CODE.format(
        auto_class=auto_class,
        inputs=_causal_inputs(reads, load_tokenizer(model)),
        decoding=decoding,
        written='outputs[:, inputs["input_ids"].shape[1] :]',
    )


def _encoder_inputs(reads: Prompt, cut: str) -> str:
    if isinstance(reads, Chat):
        return _chat_inputs(reads)
    return f'inputs = tokenizer([{_quoted(apply_prompt(reads, [EXAMPLE])[0])}], return_tensors="pt"{cut})'


def _causal_inputs(reads: Prompt, tokenizer: Tokenizer) -> str:
    if isinstance(reads, Chat):
        return _chat_inputs(reads)
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    prompt = f"tokenizer.bos_token + {_quoted(apply_prompt(reads, [EXAMPLE])[0])}"
    prompt = prompt if begins else prompt.removeprefix("tokenizer.bos_token + ")
    if reads.endswith(PLACEHOLDER):
        prompt += " + tokenizer.eos_token  # the end of sequence stands between input and output"
    return (
        f"prompt = {prompt}\n"
        'inputs = tokenizer([prompt], add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")'
    )


def _chat_inputs(reads: Chat) -> str:
    options = "".join(f", {name}={value!r}" for name, value in reads.options.items())
    return (
        f"messages = {reads.messages(EXAMPLE)!r}\n"
        "inputs = tokenizer.apply_chat_template(\n"
        f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{options}\n'
        ")"
    )


def _quoted(text: str) -> str:
    """A text as Python has it, in double quotes where that is as readable."""
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)
