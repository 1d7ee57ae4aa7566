"""What can be seen to be wrong with named models, before anything expensive starts.

The student is first loaded after the teacher has written all its outputs: hours in which a truncated file or a foreign
tokenizer would go unnoticed. Nothing is downloaded, and where no model is named nothing is even imported.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_core.models.files import (
    OWN,
    ModelKind,
    check_config,
    check_model_files,
    check_safetensors,
    has_tokenizer,
    is_gguf,
    read_config,
    tensor_shapes,
)

if TYPE_CHECKING:
    from kd_core.models.loading import ModelSettings
    from kd_core.models.prompts import Prompt
    from tasks.compute.start import StartSettings
    from tasks.pairs.student import StudentSettings


TIED = {
    "seq2seq": {"shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"},
    "causal": {"transformer.wte.weight", "lm_head.weight"},
}
SLOW = "a {} is run by its own forward pass, on padded rows: right"
POSITIONS = ("max_position_embeddings", "n_positions")  # what a config calls the number of them
WANTED = {"seq2seq": "an encoder–decoder (T5, BART, …)", "causal": "a causal language model (GPT-Neo, Llama, …)"}


def check_models(teacher: ModelSettings, student: ModelSettings, wanted: ModelKind | None = None) -> list[str]:
    """Named models that are on this machine are whole, of the wanted kind, and read the same tokens.

    wanted: None where either kind will do, the same for both. A hub id is checked as far as it lies in the cache
    already. Returns remarks: where a model's files contradict each other, and what is believed (`special_ids`).
    Raises ValueError, with what to do in a second line.
    """
    roles = (("teacher", teacher), ("student", student))
    for role, each in roles:
        if wanted is not None and each.shape is not None and each.shape.kind != wanted:
            raise ValueError(f"{role}.shape describes another kind of model\nthis method needs {WANTED[wanted]}")
    found = {role: _check(role, each, wanted) for role, each in roles if each.name}
    kinds = {role: _kind(each, found.get(role)) for role, each in roles}
    if None not in kinds.values() and kinds["teacher"] != kinds["student"]:
        what = " and ".join(f"the {role} is {WANTED[kind]}" for role, kind in kinds.items() if kind is not None)
        raise ValueError(f"{what}\nname or describe two models of one kind")
    readers = {role: each for role, each in found.items() if each is not None and has_tokenizer(each)}
    directories = {role: each for role, each in readers.items() if not is_gguf(each)}
    remarks = [remark for role, each in directories.items() for remark in _check_special_ids(role, each)]
    if len(set(readers.values())) == 2:
        from kd_core.models.loading import check_same_tokenizer, load_tokenizer

        check_same_tokenizer(*map(load_tokenizer, readers.values()))
    return remarks


def check_chat(role: str, settings: ModelSettings, reads: Prompt | None) -> None:
    """A chat can be written by the template of a model that is on this machine. Raises ValueError if it cannot."""
    if reads is None or isinstance(reads, str) or settings.name is None:
        return
    from kd_core.models.loading import load_tokenizer
    from kd_core.models.prompts import rendered

    found = _where(settings)
    if found is None or not has_tokenizer(found):
        return
    try:
        rendered(load_tokenizer(found), reads)
    except ValueError as error:
        raise ValueError(f"{role}.chat: {error}") from None


def check_adapter(teacher: ModelSettings, student: StudentSettings) -> list[str]:
    """A student's model has the matrices that are to be adapted, as far as it is on this machine.

    Returns remarks. Raises ValueError naming the matrices that there are.
    """
    origin = teacher if student.from_ is not None else student
    if student.lora is None or origin.name is None:  # a teacher that is fitted is looked at when it is there
        return []
    directory = _where(origin)
    if directory is None or is_gguf(directory):
        return []
    from kd_core.models.backends.lora import targeted

    model = _described(directory, check_config(directory))
    try:
        targeted(model, student.lora)
    except ValueError as error:
        raise ValueError(f"student.{error}") from None
    family = model.config.model_type
    return (
        [f"student.lora: {SLOW.format(f'{family} with an adapter')}, but slower than without"] if family in OWN else []
    )


def check_positions(role: str, settings: ModelSettings, tokens: int, lower: str) -> None:
    """A causal model has a position for every token that it is given at once.

    Raises ValueError if it has not; `lower` names the settings that the number comes from.
    """
    positions = positions_of(settings)
    if positions is not None and tokens > positions:
        raise ValueError(
            f"{role} has {positions} positions, and is given {tokens} tokens at once\n"
            f"lower {lower}, or take a model with more positions"
        )


def positions_of(settings: ModelSettings) -> int | None:
    """The positions of a model; None for one that counts none (T5 and its family, some others), or is not here yet."""
    if settings.shape is not None:
        return getattr(settings.shape, "max_position_embeddings", None)
    found = None if settings.name is None else _where(settings)  # behind a server: it says so itself
    if found is None:
        return None
    config = read_config(found)
    # T5's n_positions limits nothing
    names = POSITIONS if check_config(found) == "causal" else POSITIONS[:1]
    return next((int(config[name]) for name in names if config.get(name) is not None), None)


def check_pruning(teacher: ModelSettings, student: StartSettings) -> None:
    """The layers that the student keeps are there, as far as the teacher is. Raises ValueError if they are not."""
    from kd_core.models.pruning import check_layers, num_layers

    if student.layers is None:
        return
    if teacher.shape is not None:
        config, kind = vars(teacher.shape), teacher.shape.kind
    elif (found := _where(teacher)) is not None:
        config, kind = read_config(found), check_config(found)
    else:
        return
    check_layers(student.layers, num_layers(config | {"is_encoder_decoder": kind == "seq2seq"})[1])


def described(settings: ModelSettings) -> Any | None:
    """A named model without its weights; None for one that is not on this machine, or in llama.cpp's format."""
    found = None if settings.name is None else _where(settings)
    return None if found is None or is_gguf(found) else _described(found, check_config(found))


def _where(settings: ModelSettings) -> Path | None:
    """The directory, or .gguf file, of a named model; None if it is not on this machine."""
    return settings.path or _cached(settings)


def is_encoder_decoder(settings: ModelSettings) -> bool:
    """Whether a model that is here reads sources by an encoder."""
    return _kind(settings, None if settings.name is None else _where(settings)) == "seq2seq"


def _kind(settings: ModelSettings, found: Path | None) -> ModelKind | None:
    """The kind of a model; None for one that is not on this machine."""
    if settings.shape is not None:
        return settings.shape.kind
    return None if found is None else check_config(found)


def _check(role: str, settings: ModelSettings, wanted: ModelKind | None) -> Path | None:
    """Check the files of a model and return their directory; None if they are not on this machine."""
    try:
        if settings.path is not None:
            kind = check_model_files(settings.path)
            _check_kind(settings.path, kind, wanted)
            if not is_gguf(settings.path):
                _check_complete(settings.path, kind)
            return settings.path.resolve()
        snapshot = _cached(settings)
        if snapshot is not None:
            _check_kind(snapshot, check_config(snapshot), wanted)
            for path in sorted(snapshot.glob("*.safetensors")):  # the rest is still to be downloaded
                check_safetensors(path)
        return snapshot
    except ValueError as error:
        raise ValueError(f"{role}.name: {error}") from None


def _check_special_ids(role: str, directory: Path) -> list[str]:
    """Remarks on config, generation config, tokenizer and embedding, compared. Raises ValueError as they do."""
    stats = (path.stat() for path in sorted(directory.iterdir()))
    try:
        remarks = _remarks(directory, tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))
    except ValueError as error:
        raise ValueError(f"{role}.name: {error}") from None
    return [f"{role}.name: {remark}" for remark in remarks]


@cache
def _remarks(directory: Path, _unchanged: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    """Cached, as all cells of a comparison ask and a large vocabulary takes seconds to read."""
    from kd_core.models.loading import read_configs, read_tokenizer
    from kd_core.models.policy import PADDED, candidates
    from kd_core.models.special_ids import special_ids

    config, generation = read_configs(directory)
    remarks = special_ids(config, generation, read_tokenizer(directory), str(directory)).remarks
    if config.model_type in OWN:
        return remarks
    if candidates(_described(directory, check_config(directory)))[0] is not PADDED:
        return remarks
    return (*remarks, f"{directory}: {SLOW.format(config.model_type)}, but slower than most families")


def _check_kind(directory: Path, kind: ModelKind, wanted: ModelKind | None) -> None:
    if wanted is not None and kind != wanted:
        raise ValueError(f"{directory / 'config.json'} describes another kind of model\nuse {WANTED[wanted]}")


def _check_complete(directory: Path, kind: ModelKind) -> None:
    """The weights are those that config.json describes, told by names and sizes; no weight is read."""
    model = _described(directory, kind)
    there = tensor_shapes(directory)
    tied = TIED[kind]
    if there.keys() & tied:  # one of them stands for those that are left out
        there = dict.fromkeys(tied, there[min(there.keys() & tied)]) | there
    for name, weight in model.state_dict().items():
        if name not in there and model.config.model_type not in OWN:
            continue  # published under another name, or tied: found out when it is loaded
        if there.get(name) != list(weight.shape):
            actual = "is missing" if name not in there else f"has the size {there[name]}, not {list(weight.shape)}"
            raise ValueError(
                f"{directory} does not hold the model that its config.json describes: {name} {actual}\n"
                "copy or download both again"
            )


def _described(directory: Path, kind: ModelKind) -> Any:
    """The model that config.json describes, without weights."""
    import torch
    from transformers import AutoConfig

    from kd_core.models.loading import auto_model

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            return auto_model(kind).from_config(config)
    except Exception as error:  # whatever a nonsensical value leads to, from a type error to a negative size
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{directory / 'config.json'} describes no model: {reason[:200]}\ncopy or download it again"
        ) from None


def _cached(settings: ModelSettings) -> Path | None:
    """The snapshot of a hub id in the cache, or None. No network."""
    from huggingface_hub import try_to_load_from_cache

    assert settings.name is not None  # a hub id is a name
    config = try_to_load_from_cache(settings.name, "config.json", revision=settings.revision)
    return Path(config).parent if isinstance(config, str) else None
