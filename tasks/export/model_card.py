"""The card of an exported student, in the form of the Hugging Face hub: what it is, and what is known of how well it
does. Nothing is said that the store does not know.

The settings are those in the stages' manifests: they name local files and models by their content, so no path of the
machine gets out.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tasks.export.markdown import escape, fenced, table
from tasks.export.model_family import Family, family_of
from tasks.formatting import DASH, count, plain, short
from tasks.store.artifacts import Artifact, Manifest, Store
from tasks.store.runs import RunRecord
from tasks.systems import METHODS, SYSTEMS

MACHINE = ("cpus", "threads", "device")  # of all that a manifest may hold, what tells nothing of its owner
ABSENT = "Not known: this stage is no longer in the store."

AFTER_SEQKD = "the student first learned the teacher's own outputs (SeqKD), then"
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
    "seqkd": "SeqKD: the student learned the outputs that the teacher wrote for the training inputs.",
    "llmr": (
        "LLMR: the student first learned the teacher's own outputs (SeqKD), then wrote for itself and was rewarded, "
        "token by token, by what the teacher's logits say of it (policy gradient)."
    ),
    "pre_distill": "SeqKD: the student learned the outputs that the teacher wrote for the training inputs.",
}

LICENCE = (
    "These weights derive from the teacher's outputs and logits and from the training data: the licences and terms of "
    "both apply to them. Under which licence they may be passed on is not stated here; whoever publishes them has to "
    "find out and say so."
)


def model_card(store: Store, record: RunRecord, student: Artifact) -> str:
    """README.md for the student of a run: YAML front matter, then Markdown."""
    found = {each.stage: store.artifact(each.stage, each.key) for each in record.stages}
    manifests = {stage: manifest for stage, each in found.items() if (manifest := read_manifest(each)) is not None}
    kind = settings_of(manifests, student.stage, "settings").get("kind", student.stage)
    method, family = METHODS[kind], family_of(student)
    sections = {
        "What it is": _what(record, manifests, method, family),
        "Data": _data(record, manifests.get("prepare")),
        "Teacher": _teacher(record, manifests),
        "Method and settings": f"{METHOD_TEXT[kind]}\n\n{settings_text(manifests)}",
        "Metrics": metrics_text(found.get("evaluate"), manifests.get("evaluate"), _own_system(store, record, student)),
        "How to use": _usage(manifests, family),
        "How it was made": making_text(record, manifests, student),
        "Licence": LICENCE,
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    front = yaml.safe_dump(_front_matter(manifests, method, family), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n# {escape(record.name)}: a student distilled by {method}\n\n{body}\n"


def read_manifest(artifact: Artifact) -> Manifest | None:
    """An artifact's manifest, if it is there."""
    try:
        return artifact.manifest()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # gone since: the card says less


def settings_of(manifests: Mapping[str, Manifest], stage: str, name: str) -> dict[str, Any]:
    """A setting of a stage as its key has it."""
    manifest = manifests.get(stage)
    return (manifest.key_record["settings"].get(name) or {}) if manifest else {}


def _front_matter(manifests: Mapping[str, Manifest], method: str, family: Family) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": family.pipeline_tag}
    start = settings_of(manifests, "pre_distill", "student")
    if "hub" in start:
        front |= {"base_model": start["hub"]}
    dataset = settings_of(manifests, "prepare", "dataset")
    if dataset.get("source") == "hub" and "/" in str(dataset.get("name")):  # a local one is named by its hash
        front |= {"datasets": [dataset["name"]]}
    return front | {"tags": [family.tag, "distillation", "knowledge-distillation", method.lower().replace(" ", "-")]}


def _what(record: RunRecord, manifests: Mapping[str, Manifest], method: str, family: Family) -> str:
    trained = manifests.get("pre_distill")
    size = f" of {count(trained.stats['parameters'])} parameters" if trained and "parameters" in trained.stats else ""
    start = settings_of(manifests, "pre_distill", "student")
    origin = f", from {model_text(start, record, 'student')}" if start else ""
    return f"{family.description}{size}, trained by {method}{origin}."


def model_text(settings: Mapping[str, Any], record: RunRecord, role: str) -> str:
    """A model as its identity names it, a local one with the last part of the path that the run was given."""
    if "hub" in settings:
        revision = settings.get("revision")
        return f"{escape(settings['hub'])} ({escape(f'revision {revision}') if revision else 'revision not pinned'})"
    if "content" in settings:
        directory = Path(str((record.parameters.get(role) or {}).get("name") or "")).name
        called = f" ({escape(directory)})" if directory else ""
        return f"a local model{called} whose files hash to {escape(str(settings['content'])[:16])} (SHA-256)"
    shape = ", ".join(f"{name} {value}" for name, value in settings.get("shape", {}).items())
    return f"a random start ({escape(shape)})"


def _data(record: RunRecord, manifest: Manifest | None) -> str:
    if manifest is None:
        return ABSENT
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


def _teacher(record: RunRecord, manifests: Mapping[str, Manifest]) -> str:
    manifest = manifests.get("teacher")
    if manifest is None:
        return ABSENT
    settings, loss = manifest.key_record["settings"]["settings"], manifest.stats.get("validation_loss")
    fitted = (
        f" Fitted on the training references, to {short(loss)} nats a token on validation." if loss is not None else ""
    )
    score = manifests.get("score")
    prompt = f"\n\nIt reads:\n\n{fenced(score.key_record['settings']['prompt'])}" if score else ""
    described = f"The teacher is {model_text(settings, record, 'teacher')}.{fitted}{prompt}"
    return f"{described}\n\nThe student reads the source alone."


def settings_text(manifests: Mapping[str, Manifest]) -> str:
    """Every stage's settings, as JSON."""
    settings = {stage: manifest.key_record["settings"] for stage, manifest in manifests.items()}
    return fenced(json.dumps(settings, indent=2, ensure_ascii=False), "json")


def _own_system(store: Store, record: RunRecord, student: Artifact) -> str:
    """What the evaluation calls these weights: the system whose outputs they wrote."""
    for each in record.stages:
        if each.stage == "decode":
            manifest = read_manifest(store.artifact(each.stage, each.key))
            if manifest is not None and manifest.key_record["inputs"]["writer"] == student.key:
                return each.label
    return ""


def metrics_text(artifact: Artifact | None, manifest: Manifest | None, own: str) -> str:
    """All systems with their intervals, then what the student gained on the others, and what a stage warned of."""
    if artifact is None or manifest is None:
        return "Not evaluated." if artifact is None else ABSENT
    rows = pq.read_table(artifact.path / "metrics.parquet").to_pylist()
    counts = sorted({row["n"] for row in rows})
    head = (
        f"On the {escape(rows[0]['split'])} split, n = {' or '.join(map(count, counts))} outputs; in brackets the "
        "95 % interval of a bootstrap over outputs. All systems decode alike. These weights are the column "
        f"{_system(own)}."
    )
    systems = list(dict.fromkeys(row["system"] for row in rows))
    text = [head, _grid(rows, "system", systems, [_system(each) for each in systems])]
    differences = pq.read_table(artifact.path / "differences.parquet").to_pylist()
    differences = [row for row in differences if row["system"] == own]
    if differences:
        others = list(dict.fromkeys(row["baseline"] for row in reversed(differences)))
        headers = [f"minus {_system(each)}{', the start' if each == 'pre_distilled' else ''}" for each in others]
        text += ["Paired differences of these weights, on the same resamples:"]
        text += [_grid(differences, "baseline", others, headers, sign=True)]
    notes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault((row["metric"], row["note"]), []).append(_system(row["system"]))
    lines = [f"- {escape(metric)} ({', '.join(of)}): {escape(note)}" for (metric, note), of in notes.items()]
    return "\n\n".join([*text, *(["\n".join(lines)] if lines else [])])


def _grid(
    rows: Sequence[dict[str, Any]], column: str, systems: Sequence[str], headers: Sequence[str], sign: bool = False
) -> str:
    """A row per metric, a column per system: `value [low, high]`."""
    found = {(row["metric"], row[column]): row for row in rows}
    units = {row["metric"]: row["unit"] for row in rows}
    lines = [
        [
            escape(f"{metric} ({unit})" if unit else metric),
            *(_value(found.get((metric, each)), sign) for each in systems),
        ]
        for metric, unit in units.items()
    ]
    return table(["metric", *headers], lines)


def _value(row: Mapping[str, Any] | None, sign: bool) -> str:
    if row is None or row["value"] is None:
        return DASH
    value, low, high = (plain(short(row[name], sign=sign)) for name in ("value", "low", "high"))
    return value if row["low"] is None or row["high"] is None else f"{value} \\[{low}, {high}\\]"


def _usage(manifests: Mapping[str, Manifest], family: Family) -> str:
    settings = settings_of(manifests, "decode", "settings")
    decoding = settings.get("decoding", {})
    chosen = {
        name: decoding[name] for name in ("max_new_tokens", "num_beams", "no_repeat_ngram_size") if decoding.get(name)
    }
    limit = settings.get("max_source_tokens")
    cut = f", truncation=True, max_length={int(limit)}" if limit else ""
    arguments = ", ".join(f"{name}={int(value)}" for name, value in (chosen or {"max_new_tokens": 64}).items())
    return fenced(family.usage.format(cut=cut, decoding=arguments), "python")


def making_text(record: RunRecord, manifests: Mapping[str, Manifest], student: Artifact) -> str:
    """Stages, versions, machine, warnings."""
    made = manifests[student.stage]
    system = str(made.machine.get("platform", "")).split("-")[0]  # the kernel's full name may be its owner's choice
    parts = [f"{name} {made.machine[name]}" for name in MACHINE if made.machine.get(name) is not None]
    machine = ", ".join([system, *parts] if system else parts)
    versions = ", ".join(f"{name} {number}" for name, number in made.versions.items())
    rows = [
        [each.stage, f"`{each.key}`", _seconds(manifests.get(each.stage)), escape(each.outcome)]
        for each in record.stages
    ]
    warnings = [text for manifest in manifests.values() for text in manifest.stats.get("warnings", [])]
    text = [
        f"Run {escape(record.run_id)}, by distill-llm {version('distill-llm')}.",
        table(["stage", "key", "seconds to build", "in this run"], rows),
        f"Versions: {escape(versions)}.",
        f"Machine: {escape(machine)}.",
    ]
    if warnings:
        text += ["Warnings while it was made:", "\n".join(f"- {escape(text)}" for text in warnings)]
    return "\n\n".join(text)


def _system(name: str) -> str:
    return SYSTEMS.get(name, escape(name))


def _seconds(manifest: Manifest | None) -> str:
    return DASH if manifest is None else f"{manifest.seconds:.1f}"
