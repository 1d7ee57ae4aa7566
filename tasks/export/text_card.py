"""The card of a student that was distilled on running text."""

from collections.abc import Mapping
from pathlib import Path

from tasks.export import card
from tasks.export.markdown import escape, fenced, table
from tasks.export.model_family import Family, family_of
from tasks.formatting import count, short
from tasks.store.artifacts import Artifact, Manifest, Store
from tasks.store.runs import RunRecord
from tasks.systems import METHODS_ON_TEXT

USAGE = """from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # the one that holds this file
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
inputs = tokenizer(["The night was dark and"], add_special_tokens=False, return_tensors="pt")
outputs = model.generate(input_ids=inputs["input_ids"], do_sample=True, max_new_tokens={horizon})
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))"""


def text_card(store: Store, record: RunRecord, student: Artifact, directory: Path) -> str:
    """README.md for the last round's student, exported to `directory`: YAML front matter, then Markdown."""
    found = {each.name: store.artifact(each.stage, each.key) for each in record.stages}
    manifests = {name: manifest for name, each in found.items() if (manifest := card.read_manifest(each)) is not None}
    last = next(name for name, each in reversed(found.items()) if each == student)
    manifests[student.stage] = manifests[last]
    kind = str((record.parameters.get("method") or {}).get("kind", "dad_dagger"))
    method = METHODS_ON_TEXT[kind]
    sections = {
        "What it is": _what(record, manifests, method, family_of(directory)),
        "Data": _data(manifests.get("tokens")),
        "Teacher": _teacher(record, manifests),
        "Method and settings": card.settings_text(manifests),
        "Metrics": card.metrics_text(found.get("evaluate"), manifests.get("evaluate"), kind),
        "How to use": fenced(USAGE.format(horizon=40), "python"),
        "How it was made": card.making_text(store, record, manifests, student),
    }
    return card.written_card(record, method, family_of(directory), {}, sections)


def _what(record: RunRecord, manifests: Mapping[str, Manifest], method: str, family: Family) -> str:
    start = card.settings_of(manifests, "language_model[student]", "settings")
    origin = f", from {card.model_text(start, record, 'student')}" if start else ""
    rounds = (record.parameters.get("method") or {}).get("rounds", 3)
    pruned = f"\n\n{card.pruning_text(manifests['prune'])}" if "prune" in manifests else ""
    return f"{family.description}, trained by {method} in {rounds} rounds on running text{origin}.{pruned}"


def _data(manifest: Manifest | None) -> str:
    if manifest is None:
        return card.ABSENT
    source = escape(str(manifest.key_record["settings"]["dataset"]["source"]))
    rows = [
        [split, count(manifest.stats.get(f"{split}_tokens"))]
        for split in ("train", "validation", "test", "pretraining")
    ]
    return f"Source: {source}.\n\n{table(['part', 'tokens'], rows)}"


def _teacher(record: RunRecord, manifests: Mapping[str, Manifest]) -> str:
    settings = card.settings_of(manifests, "language_model[teacher]", "settings")
    if not settings:
        return card.ABSENT
    tuned = manifests.get("fine_tune")
    after = (
        f" Fine-tuned on the text, to {short(tuned.stats['validation_loss'])} nats a token on validation."
        if tuned
        else ""
    )
    return f"The teacher is {card.model_text(settings, record, 'teacher')}.{after}"
