"""The card of a student that was distilled on pairs of texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_core.models.prompts import PLACEHOLDER, Chat, Prompt, Prompts
from tasks.export import card
from tasks.export.markdown import escape, fenced, table
from tasks.export.model_family import Family, family_of
from tasks.export.usage import usage
from tasks.formatting import count, short
from tasks.store.artifacts import Artifact, Manifest, Store
from tasks.store.runs import RunRecord
from tasks.systems import METHODS

AFTER_SEQKD = "the student first learned the teacher's own outputs (SeqKD), then"
SEQKD = "SeqKD: the student learned the outputs that the teacher wrote for the training inputs."
METHOD_TEXT = {
    "forward_kl": f"Forward KL: {AFTER_SEQKD} the teacher's distribution at every token of these.",
    "reverse_kl": f"Reverse KL: {AFTER_SEQKD} wrote for itself, and its distribution at every token was drawn to its "
    "teacher's by KL(student || teacher).",
    "js": f"Jensen-Shannon: {AFTER_SEQKD} was drawn to the mixture of both distributions, on the teacher's outputs and "
    "on its own.",
    "gkd": f"GKD: {AFTER_SEQKD} was drawn to its teacher's distributions by the generalised Jensen-Shannon divergence, "
    "in part on what it wrote itself.",
    "minillm": f"MiniLLM: {AFTER_SEQKD} wrote for itself, mixed with its teacher, and followed the policy gradient of "
    "the reverse KL of whole outputs.",
    "seqkd": SEQKD,
    "llmr": f"LLMR: {AFTER_SEQKD} wrote for itself and was rewarded, token by token, by what the teacher's logits say "
    "of it (policy gradient).",
    "pre_distill": SEQKD,
}


def pairs_card(store: Store, record: RunRecord, student: Artifact, directory: Path) -> str:
    """README.md for the student of a run, exported to `directory`: YAML front matter, then Markdown."""
    found = {each.stage: store.artifact(each.stage, each.key) for each in record.stages}
    manifests = {stage: manifest for stage, each in found.items() if (manifest := card.read_manifest(each)) is not None}
    kind = card.settings_of(manifests, student.stage, "settings").get("kind", student.stage)
    method, family, own = METHODS[kind], family_of(directory), _own_system(store, record, student)
    sections = {
        "What it is": _what(record, manifests, method, family),
        "Data": _data(record, manifests.get("prepare")),
        "Teacher": _teacher(record, manifests, family),
        "Method and settings": f"{METHOD_TEXT[kind]}\n\n{card.settings_text(manifests)}",
        "Metrics": card.metrics_text(found.get("evaluate"), manifests.get("evaluate"), own),
        "How to use": _usage(manifests, family, directory),
        "How it was made": card.making_text(store, record, manifests, student),
    }
    return card.written_card(record, method, family, _front_matter(manifests), sections)


def _front_matter(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Hub names of the student's start and of the data; a key knows local ones by their hash alone."""
    front = {}
    start = card.settings_of(manifests, "pre_distill", "student")
    dataset = card.settings_of(manifests, "prepare", "dataset")
    if "from" in start:
        start = card.settings_of(manifests, "teacher", "settings")
    if "hub" in start:
        front["base_model"] = start["hub"]
    if dataset.get("source") == "hub" and "/" in str(dataset.get("name")):
        front["datasets"] = [dataset["name"]]
    return front


def _what(record: RunRecord, manifests: Mapping[str, Manifest], method: str, family: Family) -> str:
    trained = manifests.get("pre_distill")
    size = f" of {count(trained.stats['parameters'])} parameters" if trained and "parameters" in trained.stats else ""
    start = card.settings_of(manifests, "pre_distill", "student")
    origin = f", from {card.model_text(start, record, 'student')}" if start else ""
    if start.get("lora"):
        origin += f". What was trained is a LoRA adapter of rank {start['lora']['rank']}, merged into the weights here"
    pruned = f"\n\n{card.pruning_text(manifests['prune'])}" if "prune" in manifests else ""
    return f"{family.description}{size}, trained by {method}{origin}.{pruned}"


def _data(record: RunRecord, manifest: Manifest | None) -> str:
    if manifest is None:
        return card.ABSENT
    dataset, stats = manifest.key_record["settings"]["dataset"], manifest.stats
    named = [dataset.get("name"), dataset.get("config_name"), dataset.get("revision"), dataset.get("package")]
    if dataset["source"] == "files":  # in the manifest by their content, here by what they were called
        given = record.parameters.get("dataset") or {}
        named = [Path(given[field]).name for field in ("path", "train", "validation", "test") if given.get(field)]
    source = ", ".join(escape(each) for each in (dataset["source"], *named) if each)
    rows = [
        [split, *(count(stats.get(f"{split}_{unit}")) for unit in ("pairs", "dialogues"))]
        for split in ("train", "validation", "test")
    ]
    lowered = " All texts were lower-cased." if dataset.get("lowercase") else ""
    return f"Source: {source}.{lowered}\n\n{table(['split', 'pairs', 'dialogues'], rows)}"


def _teacher(record: RunRecord, manifests: Mapping[str, Manifest], family: Family) -> str:
    manifest = manifests.get("teacher")
    if manifest is None:
        return card.ABSENT
    settings, loss = manifest.key_record["settings"]["settings"], manifest.stats.get("validation_loss")
    fitted = (
        f" Fitted on the training references, to {short(loss)} nats a token on validation." if loss is not None else ""
    )
    described = f"The teacher is {card.model_text(settings, record, 'teacher')}.{fitted}"
    prompts = _prompts(manifests)
    if prompts is None:
        return described
    student = _student_reads(prompts, family)
    if student in (PLACEHOLDER, prompts.teacher):
        reads = " the source alone." if student == PLACEHOLDER else " the same."
    else:
        reads = f":\n\n{_shown(student)}"
    return f"{described}\n\nIt reads:\n\n{_shown(prompts.teacher)}\n\nThe student reads{reads}"


def _student_reads(prompts: Prompts, family: Family) -> Prompt:
    return prompts.of_student(is_encoder_decoder=family.auto_class == "AutoModelForSeq2SeqLM")


def _prompts(manifests: Mapping[str, Manifest]) -> Prompts | None:
    """What teacher and student read, as the stage that taught the student first has it in its key."""
    told = card.settings_of(manifests, "pre_distill", "prompt")
    if not told:
        return None
    both = told if isinstance(told, dict) and "teacher" in told else {"teacher": told}
    return Prompts(*(Chat(**each) if isinstance(each, dict) else each for each in both.values()))


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return fenced(prompt)
    said = [f"{message['role']}: {message['content']}" for message in prompt.messages()]
    options = [f"({name}: {value})" for name, value in prompt.options.items()]
    return f"A chat, by its own template:\n\n{fenced(chr(10).join([*said, *options]))}"


def _own_system(store: Store, record: RunRecord, student: Artifact) -> str:
    """What the evaluation calls these weights: the system whose outputs they wrote."""
    for each in record.stages:
        if each.stage == "decode":
            manifest = card.read_manifest(store.artifact(each.stage, each.key))
            if manifest is not None and manifest.key_record["inputs"]["writer"] == student.key:
                return each.label
    return ""


def _usage(manifests: Mapping[str, Manifest], family: Family, directory: Path) -> str:
    settings = card.settings_of(manifests, "decode", "settings")
    decoding = settings.get("decoding", {})
    chosen = {
        name: decoding[name] for name in ("max_new_tokens", "num_beams", "no_repeat_ngram_size") if decoding.get(name)
    }
    limit = settings.get("max_source_tokens")
    cut = f", truncation=True, max_length={int(limit)}" if limit else ""
    arguments = ", ".join(f"{name}={int(value)}" for name, value in (chosen or {"max_new_tokens": 64}).items())
    reads = _student_reads(_prompts(manifests) or Prompts(PLACEHOLDER), family)
    return fenced(usage(directory, family.auto_class, reads, cut, arguments), "python")
