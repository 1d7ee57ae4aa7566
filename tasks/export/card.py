"""What the card of every exported student has, in the form of the Hugging Face hub. Nothing is said that the store does
not know.

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
from tasks.export.model_family import Family
from tasks.formatting import DASH, count, plain, short
from tasks.store.artifacts import Artifact, Manifest, Store
from tasks.store.runs import RunRecord
from tasks.systems import SYSTEMS

MACHINE = ("cpus", "threads", "device")  # of all that a manifest may hold, what tells nothing of its owner
ABSENT = "Not known: this stage is no longer in the store."
CHOSEN = {
    "even": "evenly spread",
    "middle": "all but the middle",
    "influence": "those of most block influence: 1 - the mean cosine of what a layer reads and writes",
}
LICENCE = (
    "These weights derive from the teacher's outputs and logits and from the training data: the licences and terms of "
    "both apply to them. Under which licence they may be passed on is not stated here; whoever publishes them has to "
    "find out and say so."
)


def written_card(
    record: RunRecord, method: str, family: Family, front: Mapping[str, Any], sections: dict[str, str]
) -> str:
    """README.md: YAML front matter (`front`, and what all cards have), then a section under each heading."""
    tags = [family.tag, "distillation", "knowledge-distillation", method.lower().replace(" ", "-")]
    matter = {"library_name": "transformers", "pipeline_tag": family.pipeline_tag, **front, "tags": tags}
    header = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in (sections | {"Licence": LICENCE}).items())
    return f"---\n{header}---\n\n# {escape(record.name)}: a student distilled by {method}\n\n{body}\n"


def read_manifest(artifact: Artifact) -> Manifest | None:
    """An artifact's manifest, if it is there."""
    try:
        return artifact.manifest()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # gone since: the card says less


def settings_of(manifests: Mapping[str, Manifest], stage: str, name: str) -> dict[str, Any]:
    """A setting in the key record of a stage; {} where stage or setting is missing."""
    manifest = manifests.get(stage)
    return (manifest.key_record["settings"].get(name) or {}) if manifest else {}


def model_text(settings: Mapping[str, Any], record: RunRecord, role: str) -> str:
    """A model in words: hub id and revision; a local one's hash and last part of its path; its shape; its teacher."""
    if "from" in settings:
        return "its teacher's own weights"
    if "hub" in settings:
        revision = settings.get("revision")
        return f"{escape(settings['hub'])} ({escape(f'revision {revision}') if revision else 'revision not pinned'})"
    if "served" in settings:
        return f"{escape(settings['served'])}, behind a server"
    if "content" in settings:
        directory = Path(str((record.parameters.get(role) or {}).get("name") or "")).name
        called = f" ({escape(directory)})" if directory else ""
        return f"a local model{called} whose files hash to {escape(str(settings['content'])[:16])} (SHA-256)"
    shape = ", ".join(f"{name} {value}" for name, value in settings.get("shape", {}).items())
    return f"a random start ({escape(shape)})"


def settings_text(manifests: Mapping[str, Manifest]) -> str:
    """Every stage's settings, as JSON."""
    settings = {stage: manifest.key_record["settings"] for stage, manifest in manifests.items()}
    return fenced(json.dumps(settings, indent=2, ensure_ascii=False), "json")


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


def making_text(store: Store, record: RunRecord, manifests: Mapping[str, Manifest], student: Artifact) -> str:
    """Stages, versions, machine, warnings."""
    made = manifests[student.stage]
    system = str(made.machine.get("platform", "")).split("-")[0]  # the kernel's full name may be its owner's choice
    parts = [f"{name} {made.machine[name]}" for name in MACHINE if made.machine.get(name) is not None]
    machine = ", ".join([system, *parts] if system else parts)
    versions = ", ".join(f"{name} {number}" for name, number in made.versions.items())
    rows = [
        [f"`{each.name}`", f"`{each.key}`", _seconds(store.artifact(each.stage, each.key)), escape(each.outcome)]
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


def _seconds(artifact: Artifact) -> str:
    manifest = read_manifest(artifact)
    return DASH if manifest is None else f"{manifest.seconds:.1f}"


def pruning_text(manifest: Manifest) -> str:
    """Which of the teacher's layers it was made of, and how they were chosen."""
    settings, stats = manifest.key_record["settings"], manifest.stats
    kept, total = stats["kept_layers"], stats["teacher_layers"]
    named = isinstance(settings["layers"], list)
    how = "named one by one" if named else CHOSEN[settings["choose"]]
    text = (
        f"Before any training it was cut out of its teacher: {len(kept)} of the {total} layers that write "
        f"({', '.join(map(str, kept))}, counted from 0; {how}), and everything else as it was."
    )
    influence = stats.get("block_influence")
    if influence is None:
        return text
    rows = [[str(number), short(value), "kept" if number in kept else "cut"] for number, value in enumerate(influence)]
    sample = f"{count(stats['calibration_rows'])} training pairs, {count(stats['calibration_tokens'])} tokens"
    return f"{text}\n\nInfluence on {sample}:\n\n{table(['layer', 'block influence', ''], rows)}"
