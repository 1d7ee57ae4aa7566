"""The rows of results.duckdb that come from run records and manifests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.store.artifacts import Manifest, Store
from tasks.store.runs import RunRecord, utc_time


def run_row(run: RunRecord) -> dict[str, Any]:
    seconds, dataset = None, run.dataset or run.parameters.get("dataset")
    if run.finished:
        seconds = (utc_time(run.finished) - utc_time(run.started)).total_seconds()
    return {
        "run": run.run_id,
        "name": run.name,
        "method": (run.parameters.get("method") or {}).get("kind"),
        "dataset": dataset_name(dataset) if dataset else None,
        "seed": _bigint(run.parameters.get("seed")),
        "state": run.status,
        "started": utc_time(run.started),
        "finished": utc_time(run.finished) if run.finished else None,
        "seconds": seconds,
        "error": run.error,
        "parameters": json.dumps(run.parameters, ensure_ascii=False),
    }


def dataset_name(dataset: dict[str, Any]) -> str:
    """What a data set is called in the results: its hub name, the folder of its files, or the package."""
    if dataset.get("source") == "hub":
        return str(dataset.get("name")).rstrip("/").rpartition("/")[2]
    path = dataset.get("path") or dataset.get("train")
    if dataset.get("source") in ("files", "file") and path:
        return Path(path).stem if dataset.get("path") else Path(path).absolute().parent.name
    return str(dataset.get("source"))


def stage_rows(store: Store, run: RunRecord, manifests: dict[Path, Manifest]) -> Iterator[dict[str, Any]]:
    for position, stage in enumerate(run.stages):
        path = store.artifact(stage.stage, stage.key).path
        row = vars(stage) | {"run": run.run_id, "position": position, "path": str(path)}
        manifest = manifests.get(path)
        if manifest is not None:  # gc may have removed it
            row |= {
                "build_seconds": manifest.seconds,
                "tokens_per_second": manifest.stats.get("tokens_per_second"),
                "bytes": sum(file.bytes for file in manifest.files.values()),
                "built": utc_time(manifest.created),
                "stats": json.dumps(manifest.stats, ensure_ascii=False),
                "machine": json.dumps(manifest.machine, ensure_ascii=False),
                "versions": json.dumps(manifest.versions, ensure_ascii=False),
            }
        yield row


def lineage_rows(manifests: dict[Path, Manifest]) -> list[dict[str, Any]]:
    stage_of = {manifest.key: manifest.stage for manifest in manifests.values()}
    return [
        {"stage": each.stage, "key": each.key, "input": name, "input_stage": stage_of.get(key), "input_key": key}
        for each in manifests.values()
        for name, key in each.key_record["inputs"].items()
    ]


def _bigint(value: Any) -> int | None:
    """An integer that fits SQL's BIGINT, else None."""
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None
