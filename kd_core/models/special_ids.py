"""Which tokens end a text, pad a row and start a decoder, where a model's files do not agree.

config.json, generation_config.json, the tokenizer and the embedding are written by different hands: somebody adds an
end token to the tokenizer and forgets config.json. What is only odd is decided here and said in a remark; what cannot
work is a ValueError of two lines. The rules [ours]:

- End of sequence: the tokenizer's, since it ends the rows that are learnt from; where it names none, config.json's,
  then generation_config.json's. Where one of these names several (Llama 3, Gemma, Qwen), what is written ends at any.
- Decoder start (encoder–decoders): config.json's, then generation_config.json's, then the padding, as all T5s have it.
- Padding: any token that is no word will do, since masks say where a row ends; config.json's, else the end of sequence.
- Every token of the tokenizer has a row in the embedding. (More rows than tokens are padding, and common.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Model = Any  # transformers ships no types
Tokenizer = Any
Named = int | list[int] | None  # as a config has it


@dataclass(frozen=True)
class SpecialIds:
    """What is believed of a model, and the remarks where its files say different things."""

    ends: tuple[int, ...]  # any of them ends a text; the first is what rows that are learnt from end in
    pad: int
    decoder_start: int | None  # None: a causal model has none
    remarks: tuple[str, ...] = ()

    @property
    def as_config(self) -> int | list[int]:
        """The ends as a config has them."""
        return self.ends[0] if len(self.ends) == 1 else list(self.ends)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs for the tokenizer's ids, which may have holes."""
    ids: list[int] = [*tokenizer.get_vocab().values()]
    return 1 + max(ids)


def special_ids(config: Any, generation: Mapping[str, Any], tokenizer: Tokenizer | None, where: str) -> SpecialIds:
    """Weigh what the files of one model say against each other; `where` names it in remarks and errors.

    config: as transformers reads it, with its defaults. generation: what generation_config.json holds. tokenizer: None
    where there is none to compare with. Raises ValueError for what cannot work.
    """
    rows = int(config.vocab_size)
    if tokenizer is not None and vocabulary_size(tokenizer) > rows:
        size = vocabulary_size(tokenizer)
        raise ValueError(
            f"{where}: the tokenizer has {size} tokens, and the embedding rows for {rows}: {size - rows} have none\n"
            "resize the embedding (resize_token_embeddings) and save both again, or take the model's own tokenizer"
        )
    ends, remarks = _ends(config, generation, tokenizer, where)
    end = ends[0]
    pad = config.pad_token_id
    if pad is None or (tokenizer is not None and pad not in ends and pad not in tokenizer.all_special_ids):
        if pad is not None:
            remarks.append(f"{where}: config.json pads with {_shown(pad, tokenizer)}, a word; the end is taken instead")
        pad = end
    start = None
    if config.is_encoder_decoder:
        start, said = _decoder_start(config, generation, tokenizer, where)
        remarks += said
    for name, number in (*(("end of sequence", each) for each in ends), ("decoder start token", start)):
        if number is not None and not 0 <= number < rows:
            raise ValueError(f"{where}: its {name} is {number}, and the embedding has {rows} rows\ncorrect config.json")
    if tokenizer is not None:
        remarks += _frame(tokenizer, end, where)
    return SpecialIds(ends, pad, start, tuple(remarks))


def settle(model: Model, tokenizer: Tokenizer | None, where: str) -> None:
    """Make a loaded model's configs say what is believed of it. Raises ValueError as `special_ids` does."""
    config, generation = model.config, model.generation_config
    believed = special_ids(config, generation.to_dict(), tokenizer, where)
    config.eos_token_id, config.pad_token_id = believed.as_config, believed.pad
    if believed.decoder_start is not None:
        config.decoder_start_token_id = believed.decoder_start
    if believed.remarks:  # what is saved later must not contradict itself again
        generation.eos_token_id, generation.pad_token_id = believed.as_config, believed.pad
        generation.decoder_start_token_id = believed.decoder_start


def also_ends(model: Model, ends: Sequence[int]) -> None:
    """Let what a student writes end where its teacher's texts do: a base model does not know the end of a turn."""
    own = model.config.eos_token_id
    own = own if isinstance(own, list) else [own]
    if set(ends) <= set(own):
        return
    both = list(dict.fromkeys([*own, *ends]))
    model.config.eos_token_id = model.generation_config.eos_token_id = both


def settle_tokenizer(tokenizer: Tokenizer, config: Any, generation: Mapping[str, Any], where: str) -> None:
    """Tell a tokenizer without an end of sequence the one that its model names."""
    if tokenizer.eos_token_id is None:
        end = special_ids(config, generation, tokenizer, where).ends[0]
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def _ends(
    config: Any, generation: Mapping[str, Any], tokenizer: Tokenizer | None, where: str
) -> tuple[tuple[int, ...], list[str]]:
    own = None if tokenizer is None else tokenizer.eos_token_id
    said = {"config.json": config.eos_token_id, "generation_config.json": generation.get("eos_token_id")}
    named = {file: _as_list(ids) for file, ids in said.items()}
    candidates = named["config.json"] or named["generation_config.json"]
    if own is None and not candidates:
        raise ValueError(
            f"{where} names no end of sequence, neither in config.json nor in its tokenizer\n"
            "set eos_token_id in config.json, or eos_token in tokenizer_config.json"
        )
    end = candidates[0] if own is None else own
    if own is None and tokenizer is not None and tokenizer.convert_ids_to_tokens(end) is None:
        raise ValueError(
            f"{where}: the end of sequence {end} of config.json is no token of its tokenizer, which names none\n"
            "set eos_token in tokenizer_config.json"
        )
    several = [number for ids in named.values() if len(ids) > 1 for number in ids]
    odd = [f"{file} names {said[file]}" for file, ids in named.items() if ids and end not in ids]
    if not named["config.json"]:
        odd.append("config.json names none")
    if tokenizer is not None and own is None:
        odd.append("the tokenizer names none")
    whose = "the tokenizer's" if own is not None else "that of the model"
    what = f"{where}: as the end of sequence {' and '.join(odd)}; {_shown(end, tokenizer)}, {whose}, is taken"
    return tuple(dict.fromkeys([end, *several])), [what] if odd else []


def _decoder_start(
    config: Any, generation: Mapping[str, Any], tokenizer: Tokenizer | None, where: str
) -> tuple[int, list[str]]:
    start = getattr(config, "decoder_start_token_id", None)
    if start is not None:
        return start, []
    for number, whose in (
        (generation.get("decoder_start_token_id"), "generation_config.json's"),
        (config.pad_token_id, "the padding, as T5s have it,"),
    ):
        if number is not None:
            what = f"{where}: config.json names no decoder start token; {whose} {_shown(number, tokenizer)} is taken"
            return number, [what]
    raise ValueError(
        f"{where}: config.json names neither a decoder start token nor a padding\nset decoder_start_token_id in it"
    )


def _frame(tokenizer: Tokenizer, end: int, where: str) -> list[str]:
    """What the tokenizer adds to a text of its own accord; an end of sequence is expected."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    if whole in (bare, [*bare, end]):
        return []
    added = " ".join(_shown(number, tokenizer) for number in tokenizer("")["input_ids"])
    return [f"{where}: the tokenizer adds {added} to every text; sources are read with it, targets without"]


def _as_list(named: Named) -> list[int]:
    if named is None:
        return []
    return list(named) if isinstance(named, list | tuple) else [named]


def _shown(number: int, tokenizer: Tokenizer | None) -> str:
    token = None if tokenizer is None else tokenizer.convert_ids_to_tokens(number)
    return str(number) if token is None else f"{number} ({token})"
