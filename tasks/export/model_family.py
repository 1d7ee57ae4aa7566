"""How a student is described and used once it is exported: an encoder–decoder, or a causal model."""

from dataclasses import dataclass, replace

from kd_core.models.files import OWN, ModelKind, check_config, read_config
from tasks.store.artifacts import Artifact


@dataclass(frozen=True)
class Family:
    """What the card of a model says of its kind. `usage` leaves {cut} and {decoding} open."""

    auto_class: str
    pipeline_tag: str
    tag: str
    description: str
    usage: str


SEQ2SEQ_USAGE = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

directory = "."  # the one that holds this file
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForSeq2SeqLM.from_pretrained(directory)
inputs = tokenizer(["hello , how are you ?"], return_tensors="pt"{cut})
outputs = model.generate(**inputs, {decoding})
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))"""

CAUSAL_USAGE = """from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # the one that holds this file
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
prompt = "hello , how are you ?" + tokenizer.eos_token  # the end of sequence stands between input and output
inputs = tokenizer([prompt], add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")
outputs = model.generate(**inputs, {decoding})
print(tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

FAMILIES: dict[ModelKind, Family] = {
    "seq2seq": Family(
        auto_class="AutoModelForSeq2SeqLM",
        pipeline_tag="text2text-generation",
        tag="t5",
        description="A sequence-to-sequence model of the T5 family",
        usage=SEQ2SEQ_USAGE,
    ),
    "causal": Family(
        auto_class="AutoModelForCausalLM",
        pipeline_tag="text-generation",
        tag="gpt_neo",
        description="A causal language model (GPT-Neo)",
        usage=CAUSAL_USAGE,
    ),
}


def family_of(student: Artifact) -> Family:
    """The family of the model that a stage has made."""
    family = FAMILIES[check_config(student.path / "model")]
    name = str(read_config(student.path / "model")["model_type"])
    if name in OWN:
        return family
    what = "A sequence-to-sequence model" if family.auto_class == "AutoModelForSeq2SeqLM" else "A causal language model"
    return replace(family, tag=name, description=f"{what} ({name})")
