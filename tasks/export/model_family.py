"""How a student is described once it is exported: an encoder–decoder, or a causal model."""

from dataclasses import dataclass, replace
from pathlib import Path

from kd_core.models.files import OWN, ModelKind, check_config, read_config


@dataclass(frozen=True)
class Family:
    """What the card of a model says of its kind."""

    auto_class: str
    pipeline_tag: str
    tag: str
    description: str


FAMILIES: dict[ModelKind, Family] = {
    "seq2seq": Family(
        auto_class="AutoModelForSeq2SeqLM",
        pipeline_tag="text2text-generation",
        tag="t5",
        description="A sequence-to-sequence model of the T5 family",
    ),
    "causal": Family(
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        tag="gpt_neo",
        description="A causal language model (GPT-Neo)",
    ),
}


def family_of(directory: Path) -> Family:
    """The family of a model."""
    family = FAMILIES[check_config(directory)]
    name = str(read_config(directory)["model_type"])
    if name in OWN:
        return family
    what = "A sequence-to-sequence model" if family.auto_class == "AutoModelForSeq2SeqLM" else "A causal language model"
    return replace(family, tag=name, description=f"{what} ({name})")
