"""results.duckdb: every relation, with the right rows, whatever happens to runs, artifacts and builders meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from kd_core.metrics.bootstrap import Measured, MetricValue
from tasks.catalog import database as catalog
from tasks.catalog.database import DATABASE, PUBLISHED, build_catalog, query, relations
from tasks.catalog.relations import TABLES, VIEWS
from tasks.compare import Cell
from tasks.compute.measured import write_measured
from tasks.store import maintenance
from tasks.store.artifacts import Artifact, Store
from tasks.store.files import file_hash, read_json, write_json
from tasks.store.runs import RunRecord, process_start, scan_runs
from tasks.store.stage import Build, open_run, stage
from tests.tasks import fake_texts
from tests.tasks.fake_runs import REFERENCES, WRITTEN, Filled, measured, run_stages

STORAGE_VERSION_1_2 = 65  # the number that DuckDB writes at the start of a file for v1.2.0
RUNS = 7  # of the filled store
PREDICTIONS = 3 * 3 * len(REFERENCES) + 9 * 4 * 3  # of 3 systems in 3 runs of LLMR, and of 4 in 9 of running text


def rows(store: Store, sql: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = query(store, sql).to_pylist()
    return answer


def values(store: Store, sql: str) -> list[Any]:
    """The first column."""
    return [next(iter(row.values())) for row in rows(store, sql)]


def count(store: Store, relation: str, where: str = "true") -> int:
    number: int = values(store, f"select count(*) from {relation} where {where}")[0]
    return number


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def own(filled: Filled, store: Store) -> Filled:
    """A copy of the filled store, to be spoilt."""
    shutil.copytree(filled.store.root, store.root, dirs_exist_ok=True)
    made = {
        run: {stage: store.artifact(artifact.stage, artifact.key) for stage, artifact in each.items()}
        for run, each in filled.artifacts.items()
    }
    return replace(filled, store=store, artifacts=made)


@stage
def evaluate(build: Build, systems: list[str]) -> None:
    """Of running text: a perplexity of each system."""
    measured = {
        name: Measured(
            metrics=[MetricValue(metric="perplexity", value=9.0 + i, low=None, high=None, n=5, unit="")],
            samples={"perplexity": np.array([9.0 + i])},
        )
        for i, name in enumerate(systems)
    }
    write_measured(build.dir, "test", measured)


# --- what is there


def counts(store: Store) -> dict[str, int]:
    """The number of rows of every relation."""
    return rows(store, "select " + ", ".join(f"(select count(*) from {name}) as {name}" for name in relations()))[0]


def test_every_relation_exists_in_an_empty_store(store: Store) -> None:
    from_the_paper = {"published": published_rows(), "paper_vs_ours": published_rows()}
    assert counts(store) == dict.fromkeys(relations(), 0) | from_the_paper


def test_every_relation_has_its_rows_in_a_full_store(filled: Filled) -> None:
    found = counts(filled.store)
    # 2 teachers with 1 input, 2 scores with 2, 4 pre_distills with 3, 3 llmrs with 3, 3 evaluations with 4,
    # 3 exposures with 3
    lineage = 2 * 1 + 2 * 2 + 4 * 3 + 3 * 3 + 3 * 4 + 3 * 3
    # running text: 5 aggregations with 1 input, 9 evaluations with 2, 1 comparison with 8
    lineage += 5 * 1 + 9 * 2 + 1 * 8
    # of LLMR 3 systems and 3 pairs of them in 3 evaluations; of running text 4 and 6, with 5 metrics, in 9
    of_evaluations = {"metrics": 3 * 3 * 23 + 9 * 4 * 5, "differences": 3 * 3 * 23 + 9 * 6 * 5}
    of_evaluations |= {"predictions": PREDICTIONS, "free_running": 9 * 4 * 4}
    # 2 methods at 2 values, and 2 references; each method against those and the one before it
    of_comparisons = {"comparison_cells": 8, "comparison": (2 * 2 + 2) * 5, "comparison_differences": 2 * (2 + 3) * 5}
    # 4 of a run in two rounds, one less where nothing is aggregated, in 4 cells of each, and 1 that compares them
    stages = {"stages": (3 * 7 + 4 + 1) + 4 + 4 * (4 + 3) + 1}
    expected = {"runs": RUNS, "lineage": lineage, "left_out": 0} | stages | of_evaluations | of_comparisons
    assert {name: found[name] for name in expected} == expected
    assert [name for name, n in found.items() if not n] == ["left_out"]


def test_nothing_is_there_that_relations_does_not_name(filled: Filled) -> None:
    assert sorted(values(filled.store, "show tables")) == sorted(relations())


def test_a_relation_has_the_same_columns_empty_and_full(filled: Filled, store: Store) -> None:
    columns = "select table_name, column_name, data_type from information_schema.columns"
    shape = f"{columns} order by table_name, ordinal_position"
    assert rows(store, shape) == rows(filled.store, shape)


def test_runs_says_how_each_ended(filled: Filled) -> None:
    found = {row.pop("run"): row for row in rows(filled.store, "select run, state, error, seed, method from runs")}
    error = "llmr: loss is nan at step 3"
    assert found == {
        filled.first: {"state": "completed", "error": None, "seed": 0, "method": "llmr"},
        filled.second: {"state": "completed", "error": None, "seed": 1, "method": "llmr"},
        filled.paper: {"state": "completed", "error": None, "seed": 0, "method": "llmr"},
        filled.failed: {"state": "failed", "error": error, "seed": 2, "method": "llmr"},
        filled.crashed: {"state": "crashed", "error": None, "seed": 3, "method": "llmr"},
        filled.text: {"state": "completed", "error": None, "seed": 0, "method": "dad_dagger"},
        filled.grid: {"state": "completed", "error": None, "seed": None, "method": None},
    }


def test_runs_has_names_times_and_parameters(filled: Filled) -> None:
    paper = rows(filled.store, f"from runs where run = '{filled.paper}'")[0]
    assert (paper["name"], paper["dataset"]) == ("llmr-dailydialog", "cleaned_dd")
    assert paper["seconds"] == pytest.approx((paper["finished"] - paper["started"]).total_seconds())
    assert json.loads(paper["parameters"])["dataset"]["source"] == "files"
    crashed = rows(filled.store, f"from runs where run = '{filled.crashed}'")[0]
    assert (crashed["finished"], crashed["seconds"], crashed["dataset"]) == (None, None, "chitchat")


def test_a_run_without_a_data_set_has_none(store: Store) -> None:
    RunRecord.start("bare", {}).save(store)
    assert rows(store, "select dataset, method, seed from runs") == [{"dataset": None, "method": None, "seed": None}]


def test_stages_says_what_was_built_and_what_it_cost(filled: Filled) -> None:
    names = ["prepare", "teacher", "score", "pre_distill", "llmr", "evaluate", "exposure"]
    of_run = "select stage, outcome from stages where run = '{}' order by position"
    assert rows(filled.store, of_run.format(filled.first)) == [{"stage": s, "outcome": "built"} for s in names]
    outcomes = ["hit"] * 3 + ["built"] * 4
    assert values(filled.store, f"select outcome from ({of_run.format(filled.second)})") == outcomes
    assert values(filled.store, f"select stage from ({of_run.format(filled.failed)})") == names[:4]
    assert values(filled.store, f"select stage from ({of_run.format(filled.crashed)})") == names[:1]
    score = rows(filled.store, f"from stages where run = '{filled.second}' and stage = 'score'")[0]
    artifact = filled.artifacts[filled.first]["score"]
    assert (score["path"], score["key"]) == (str(artifact.path), artifact.key)
    assert score["bytes"] == sum(path.stat().st_size for path in artifact.path.glob("*.parquet"))
    assert score["tokens_per_second"] == 600.0
    assert score["build_seconds"] == pytest.approx(artifact.manifest().seconds)
    assert json.loads(score["stats"])["tokens"] == 12


def test_a_build_says_why(filled: Filled) -> None:
    why = f"select why from stages where stage = 'pre_distill' and run = '{filled.second}'"
    assert values(filled.store, why) == ["setting: seed 0 → 1"]


def test_lineage_leads_from_a_result_to_the_data(filled: Filled) -> None:
    made = filled.artifacts[filled.second]
    of_evaluate = f"select input, input_stage, input_key from lineage where key = '{made['evaluate'].key}' order by all"
    assert [tuple(row.values()) for row in rows(filled.store, of_evaluate)] == [
        ("corpus", "prepare", made["prepare"].key),
        ("students.llmr", "llmr", made["llmr"].key),
        ("students.pre_distilled", "pre_distill", made["pre_distill"].key),
        ("teacher", "teacher", made["teacher"].key),
    ]


def test_metrics_stand_in_the_order_of_runs_cells_and_systems_though_nobody_asks_for_one(filled: Filled) -> None:
    found = rows(filled.store, "select run, cell, method from metrics")
    listed = list(dict.fromkeys((row["run"], row["cell"], row["method"]) for row in found))
    places = "select run, cell, min(position) as place from stages where stage = 'evaluate' group by all"
    in_order = f"select run, cell from ({places}) join runs using (run) order by started, run, place"
    expected = [(row["run"], row["cell"]) for row in rows(filled.store, in_order)]
    assert list(dict.fromkeys(each[:2] for each in listed)) == expected
    for place in expected:
        assert [method for *where, method in listed if tuple(where) == place][:2] in (
            ["teacher", "student"],
            ["teacher", "pre_distilled"],
        )


def test_metrics_and_differences_are_those_of_the_evaluation(filled: Filled) -> None:
    columns = "metric, value, low, high, n, unit, note"
    for system in WRITTEN:
        found = rows(
            filled.store, f"select {columns} from metrics where run = '{filled.first}' and method = '{system}'"
        )
        assert found == [vars(value) for value in measured(system).metrics]
    assert count(filled.store, "metrics", "name like 'llmr%'") == 3 * 3 * len(measured("llmr").metrics)
    pairs = f"select distinct method, baseline from differences where run = '{filled.first}' order by all"
    assert [tuple(row.values()) for row in rows(filled.store, pairs)] == [
        ("llmr", "pre_distilled"),
        ("llmr", "teacher"),
        ("pre_distilled", "teacher"),
    ]
    assert values(filled.store, "select distinct seed from metrics where name like 'llmr%' order by 1") == [0, 1]


def test_predictions_are_every_output_of_every_system(filled: Filled) -> None:
    sql = f"select prediction, reference from predictions where run = '{filled.paper}' and method = 'llmr' order by id"
    assert values(filled.store, sql) == WRITTEN["llmr"][0]
    assert values(filled.store, f"select reference from ({sql})") == REFERENCES
    assert count(filled.store, "predictions", "run like 'llmr%'") == 3 * 3 * len(REFERENCES)


def test_runs_that_share_an_artifact_each_have_its_rows(filled: Filled) -> None:
    per_run = "select run, count(*) as n from {} group by run"
    completed = {filled.first, filled.second, filled.paper}
    for relation, number, runs in (
        ("dropped", 3, completed | {filled.failed, filled.crashed}),
        ("teacher_scores", 4, completed | {filled.failed}),
    ):
        found = {row["run"]: row["n"] for row in rows(filled.store, per_run.format(relation))}
        assert found == dict.fromkeys(runs, number)
    # what differs by seed does not leak from one run to the other
    last = "select value from training_log where metric = 'validation_reward' and run = '{}'"
    assert values(filled.store, last.format(filled.first)) == [0.7]
    assert values(filled.store, last.format(filled.second)) == [1.7]


def test_the_log_has_the_stages_that_train(filled: Filled) -> None:
    stages = f"select distinct stage from training_log where run = '{filled.first}' order by 1"
    assert values(filled.store, stages) == ["llmr", "pre_distill", "teacher"]
    assert values(filled.store, f"select distinct step from training_log where run = '{filled.first}' order by 1") == [
        1,
        2,
        3,
    ]


def test_rollouts_are_token_by_token(filled: Filled) -> None:
    sql = f"select token, reward, gain from rollouts where run = '{filled.first}' order by position"
    assert [tuple(row.values()) for row in rows(filled.store, sql)] == [
        ("▁hello", 0.5, 2.5),
        ("▁there", -1.0, 2.0),
        ("</s>", 3.0, 3.0),
    ]


def test_a_run_that_takes_an_artifact_twice_has_its_rows_once(own: Filled) -> None:
    path = own.store.root / "runs" / f"{own.first}.json"
    record = read_json(path)
    record["stages"].append(record["stages"][0] | {"outcome": "hit"})
    write_json(path, record)
    assert count(own.store, "stages", f"run = '{own.first}'") == 8
    assert count(own.store, "dropped", f"run = '{own.first}'") == 3


def test_published_results_are_unique_and_met_by_ours(filled: Filled) -> None:
    assert count(filled.store, "published") == published_rows()
    identity = "paper, place, row, dataset, metric, alpha"
    assert values(filled.store, f"select {identity} from published group by all having count(*) > 1") == []
    ours = f"select row, difference, our_value, paper_value, run from paper_vs_ours where run = '{filled.paper}'"
    found = {row["row"]: row for row in rows(filled.store, f"{ours} and metric = 'bleu_2' order by all")}
    assert sorted(found) == ["LLMR", "Prompting teacher"]
    bleu_2 = next(value.value for value in measured("llmr").metrics if value.metric == "bleu_2")
    assert found["LLMR"]["our_value"] == bleu_2
    assert found["LLMR"]["difference"] == pytest.approx(bleu_2 - 7.00)
    assert count(filled.store, "paper_vs_ours", "run is null and our_value is not null") == 0


def test_all_numbers_of_both_papers_are_there(filled: Filled) -> None:
    counted = "select paper, place, count(*) as n from published group by all order by all"
    assert [tuple(row.values()) for row in rows(filled.store, counted)] == [
        ("DaD-DAgger", "Table 2", 2 * 5 * 5),  # algorithms, data sets, alphas
        ("DaD-DAgger", "Table 3", 2 * 5 * 5),
        ("DaD-DAgger", "Table 4", 2 * 5 * 5),
        ("DaD-DAgger", "Table 5", 2 * 5 * 3),  # models, data sets, metrics
        ("LLMR", "Table 1", 7 * 7),  # methods, metrics over the data sets
        ("LLMR", "Table 2", 5 * 6),
    ]
    asoif = "paper = 'DaD-DAgger' and our_dataset = 'asoif'"
    best = f"select value from published where {asoif} and our_method = 'dad_dagger' and alpha = 0.75 order by metric"
    assert values(filled.store, best) == [8.81, 45.2, 13.93]
    start = f"select value from published where {asoif} and our_method = 'student' order by metric"
    assert values(filled.store, start) == [9.79, 33.8, 17.75]


@pytest.mark.parametrize(
    ("method", "alpha", "shown"),
    [
        ("dad_dagger", 0.75, [("DaD-Dagger", 0.75)]),
        ("next_token", 0.5, [("Next-token prediction", 0.5)]),
        ("dad", None, [("DaD-Dagger", 1.0)]),
        ("imitkd", None, [("DaD-Dagger", 0.0)]),
        ("dad_dagger", 0.6, []),
    ],
)
def test_running_text_stands_beside_the_paper_at_its_own_alpha(
    store: Store, method: str, alpha: float | None, shown: list[tuple[str, float]]
) -> None:
    parameters = {
        "dataset": {"source": "file", "path": "corpora/asoif.txt"},
        "method": {"kind": method} | ({} if alpha is None else {"alpha": alpha}),
        "seed": 0,
    }
    with open_run(store, name="text", parameters=parameters):
        evaluate(systems=["teacher", "student", method])
    found = rows(store, "select row, alpha, our_value from paper_vs_ours where our_value is not null order by row")
    places = [(row["row"], row["alpha"], row["our_value"]) for row in found]
    models = [("Fine-tuned Teacher", None, 9), ("Pre-trained Student", None, 10)]
    assert places == sorted([*models, *((row, at, 11) for row, at in shown)])


def test_a_cell_of_a_sweep_stands_beside_the_paper_at_the_alpha_it_was_swept_to(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_texts, "TEXT", {"source": "file", "path": "corpora/asoif.txt"})
    fake_texts.run_grid(store)
    ours = "from paper_vs_ours where our_value is not null and alpha is not null and metric = 'perplexity'"
    found = rows(store, f"select row, alpha, cell, seed, our_value {ours}")
    assert sorted((row["row"], row["alpha"], row["seed"]) for row in found) == [
        (row, alpha, seed) for row in ("DaD-Dagger", "Next-token prediction") for alpha in (0.0, 1.0) for seed in (0, 1)
    ]
    assert all(f"method.alpha={row['alpha']:g}, seed={row['seed']}" in row["cell"] for row in found)


@pytest.mark.parametrize(
    ("settings", "variant", "alpha"), [({}, {"method.alpha": 0.25}, 0.25), ({"method.alpha": 0.75}, {}, 0.75)]
)
def test_a_cell_has_the_alpha_of_its_variant_or_of_all_cells(
    store: Store, settings: dict[str, float], variant: dict[str, float], alpha: float
) -> None:
    parameters = {"run": "dad-dagger-asoif", "variants": {"ours": variant}, "settings": settings}
    with open_run(store, name="compare/some", parameters=parameters) as run:
        run.record.dataset = {"source": "file", "path": "corpora/asoif.txt"}
        with run.serving("ours, seed=3"):
            result = fake_texts._run_method("dad_dagger", alpha, 3)
        cell = Cell(name="ours, seed=3", variant="ours", seed=3)
        fake_texts.compare(results={cell.name: result}, cells=(cell,), x_name=None)
    ours = "from paper_vs_ours where our_value is not null and row = 'DaD-Dagger'"
    assert set(values(store, f"select distinct alpha {ours}")) == {alpha}
    assert set(values(store, f"select distinct seed {ours}")) == {3}


def published_rows() -> int:
    return len(PUBLISHED.read_text(encoding="utf-8").strip().splitlines()) - 1


# --- the file


def test_other_clients_can_open_the_file(own: Filled) -> None:
    path = build_catalog(own.store)
    assert int.from_bytes(path.read_bytes()[12:20], "little") == STORAGE_VERSION_1_2
    with duckdb.connect(str(path), read_only=True) as connection:
        of_llmr = connection.sql("select count(*) from predictions where run like 'llmr%'")
        assert of_llmr.fetchall() == [(3 * 3 * len(REFERENCES),)]
        tags = connection.sql("select tags from duckdb_databases() where database_name = 'results'").fetchall()
    assert tags[0][0]["storage_version"].startswith("v1.2.0")


def test_nothing_but_the_file_is_left_in_the_root(own: Filled) -> None:
    build_catalog(own.store)
    assert [path.name for path in own.store.root.iterdir() if DATABASE in path.name] == [DATABASE]


def test_a_path_with_a_quote_spaces_and_a_bracket(tmp_path: Path, filled: Filled) -> None:
    assert "it's a [quoted] path" in str(filled.store.root)
    odd = Store(tmp_path / 'it\'s; * [x] "här" %s {0}')
    run_stages(odd)
    assert count(odd, "predictions") == 3 * len(REFERENCES)
    assert count(odd, "metrics") > 0


def test_a_store_that_has_moved_is_read_where_it_is(own: Filled, tmp_path: Path) -> None:
    build_catalog(own.store)
    moved = Store(own.store.root.rename(tmp_path / "elsewhere"))
    assert count(moved, "predictions", "run like 'llmr%'") == 3 * 3 * len(REFERENCES)


@pytest.mark.parametrize("content", [b"", b"no database at all", b"\0" * 20_000])
def test_a_broken_file_is_made_anew(own: Filled, content: bytes) -> None:
    (own.store.root / DATABASE).write_bytes(content)
    assert count(own.store, "runs") == RUNS


def test_a_log_left_by_a_writer_is_not_replayed_into_the_new_file(own: Filled) -> None:
    path = build_catalog(own.store)
    path.with_name(f"{DATABASE}.wal").write_bytes(b"of another file")
    build_catalog(own.store)
    assert count(own.store, "runs") == RUNS
    assert not path.with_name(f"{DATABASE}.wal").exists()


# --- what happens meanwhile


def test_a_second_query_builds_nothing(own: Filled) -> None:
    before = build_catalog(own.store).stat().st_ino
    assert count(own.store, "runs") == RUNS
    assert (own.store.root / DATABASE).stat().st_ino == before


def test_a_run_is_in_the_next_answer(own: Filled) -> None:
    build_catalog(own.store)
    run = run_stages(own.store, seed=7)
    assert count(own.store, "metrics", f"run = '{run.run_id}'") > 0


def test_a_run_recorded_while_the_results_are_built_is_in_the_next_answer(
    own: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_runs
    late = RunRecord.start("late", {})

    def scan_then_save(store: Store) -> tuple[list[RunRecord], list[str]]:
        found = scan(store)
        late.save(store)
        return found

    monkeypatch.setattr(catalog, "scan_runs", scan_then_save)
    build_catalog(own.store)
    monkeypatch.undo()
    os.utime(own.store.root / "runs" / f"{late.run_id}.json", (0, 0))  # whatever the clock says
    assert count(own.store, "runs", f"run = '{late.run_id}'") == 1


def test_a_run_that_is_killed_is_crashed_in_the_next_answer(own: Filled) -> None:
    record = RunRecord.start("killed", {})
    with subprocess.Popen(["sleep", "60"]) as process:
        record.pid, record.process_started = process.pid, process_start(process.pid)
        record.save(own.store)
        state = "select state from runs where name = 'killed'"
        assert values(own.store, state) == ["running"]
        process.kill()
    assert values(own.store, state) == ["crashed"]


def test_what_gc_deletes_is_gone_and_the_rest_stays(own: Filled) -> None:
    build_catalog(own.store)
    last = own.artifacts[own.second]["evaluate"]
    delete(own.store, last, own.artifacts[own.paper]["llmr"])
    found = counts(own.store)
    assert [name for name, n in found.items() if not n] == ["left_out"]
    assert count(own.store, "predictions", f"run = '{own.second}'") == 0
    assert count(own.store, "predictions", "run like 'llmr%'") == 2 * 3 * len(REFERENCES)
    assert count(own.store, "rollouts", f"run = '{own.paper}'") == 0
    assert rows(own.store, f"select bytes, path from stages where key = '{last.key}'") == [
        {"bytes": None, "path": str(last.path)}
    ]


def left_out(store: Store) -> list[str]:
    with catalog.questions(store) as ask:
        return catalog.left_out(ask)


def delete(store: Store, *artifacts: Artifact) -> None:
    garbage = [maintenance.Garbage(each.stage, each.path, 0, each, store.used(each)) for each in artifacts]
    assert maintenance.delete(store, garbage) == (len(garbage), 0)


def test_all_of_it_deleted_leaves_the_runs(own: Filled) -> None:
    build_catalog(own.store)
    delete(own.store, *own.store.artifacts())
    found = counts(own.store)
    assert [found[relation] for relation in ("runs", *TABLES, *VIEWS, "lineage")] == [RUNS] + [0] * (
        len(TABLES) + len(VIEWS) + 1
    )


def test_a_damaged_artifact_is_left_out(own: Filled) -> None:
    made = own.artifacts[own.first]
    truncate(made["evaluate"], "predictions.parquet")
    (made["llmr"].path / "rollouts.parquet").unlink()
    (own.artifacts[own.second]["evaluate"].path / "manifest.json").write_text("{")
    build_catalog(own.store)
    assert values(own.store, "select distinct run from predictions where run like 'llmr%'") == [own.paper]
    assert values(own.store, "select distinct run from metrics where run like 'llmr%'") == [own.paper]
    assert set(values(own.store, "select distinct run from rollouts")) == {own.second, own.paper}


def test_a_column_that_no_artifact_has_yet_is_null(own: Filled) -> None:
    for path in (own.store.root / "artifacts" / "llmr").glob("*/rollouts.parquet"):
        manifest = path.with_name("manifest.json")
        content = read_json(manifest)
        pq.write_table(pq.read_table(path).drop_columns("rollout"), path)
        content["files"]["rollouts.parquet"] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        write_json(manifest, content)
    build_catalog(own.store)
    found = rows(own.store, f"select rollout, position from rollouts where run = '{own.first}' order by position")
    assert found == [{"rollout": None, "position": position} for position in range(3)]


def test_a_byte_of_one_run_does_not_keep_the_others_from_being_asked(own: Filled) -> None:
    build_catalog(own.store)
    artifact = own.artifacts[own.first]["evaluate"]
    path = artifact.path / "metrics.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert values(own.store, "select distinct run from metrics where run like 'llmr%' order by 1") == sorted(
        {own.second, own.paper}
    )
    (what,) = left_out(own.store)
    assert what.startswith(f"evaluate {artifact.key[:8]} is left out: metrics.parquet is not what it was")
    assert rows(own.store, "select stage, key from left_out") == [{"stage": "evaluate", "key": artifact.key}]


def test_what_was_written_whole_and_is_no_parquet_is_left_out_and_named(own: Filled) -> None:
    path = own.artifacts[own.first]["evaluate"].path / "metrics.parquet"
    path.write_bytes(b"no parquet")
    manifest = read_json(path.with_name("manifest.json"))
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_json(path.with_name("manifest.json"), manifest)
    assert own.first not in values(own.store, "select distinct run from metrics")
    assert own.second in values(own.store, "select distinct run from metrics")
    (what,) = left_out(own.store)
    assert str(path) in what


def test_a_record_that_cannot_be_read_is_named(own: Filled) -> None:
    path = own.store.root / "runs" / f"{own.first}.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"seed": 0', '"seed": 4'), encoding="utf-8")
    assert count(own.store, "runs") == RUNS - 1
    assert left_out(own.store) == [f"{path} is damaged: its content has changed since it was written"]


def test_a_seed_that_sql_has_no_room_for_is_null_and_blocks_nobody(own: Filled) -> None:
    with open_run(own.store, name="large", parameters={"seed": 2**64 - 1}):
        pass
    assert values(own.store, "select seed from runs where name = 'large'") == [None]


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_byte_of_the_database_itself_is_no_answer(own: Filled, place: float) -> None:
    path = build_catalog(own.store)
    before = rows(own.store, "select * from metrics order by all")
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)
    assert rows(own.store, "select * from metrics order by all") == before


def truncate(artifact: Artifact, name: str) -> None:
    path = artifact.path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_reader_of_the_old_file_keeps_reading_and_a_new_one_sees_the_new(own: Filled) -> None:
    path = build_catalog(own.store)
    with duckdb.connect(str(path), read_only=True) as reader:
        cursor = reader.execute("select run from runs, range(2000) order by run")
        first = cursor.fetchone()
        run_stages(own.store, seed=9)
        assert count(own.store, "runs") == RUNS + 1
        assert first is not None
        assert len(cursor.fetchall()) == RUNS * 2000 - 1
        assert reader.execute("select count(*) from runs").fetchall() == [(RUNS,)]
        assert reader.execute("select count(*) from predictions").fetchall() == [(PREDICTIONS,)]


def test_a_writer_that_holds_the_old_file_stands_in_nobodys_way(own: Filled) -> None:
    path = build_catalog(own.store)
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert count(own.store, "runs") == RUNS
        holder.kill()


BUILD = """
import os, signal, sys
from pathlib import Path
from tasks.catalog import database as catalog
from tasks.store.artifacts import Store

store = Store(Path(sys.argv[1]))
if sys.argv[2] == "die":
    catalog._over_files = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    catalog.build_catalog(store)
"""


def builder(store: Store, how: str, times: int) -> subprocess.Popen[bytes]:
    """Another process, ready to build."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", BUILD, str(store.root), how, str(times)]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_two_builds_at_once_leave_a_whole_file_at_every_moment(own: Filled) -> None:
    path = build_catalog(own.store)
    with builder(own.store, "build", 5) as one, builder(own.store, "build", 5) as other:
        go(one)
        go(other)
        looks = 0
        while one.poll() is None or other.poll() is None or looks < 3:
            with duckdb.connect() as reader:  # as another client would, without the lock
                literal = str(path).replace("'", "''")
                reader.execute(f"ATTACH '{literal}' AS results (READ_ONLY)")
                assert reader.sql("select count(*) from results.predictions").fetchall() == [(PREDICTIONS,)]
            looks += 1
        assert (one.returncode, other.returncode) == (0, 0)
    assert count(own.store, "runs") == RUNS
    assert [found.name for found in own.store.root.iterdir() if DATABASE in found.name] == [DATABASE]


def test_a_build_that_is_killed_leaves_the_old_file_and_the_next_one_works(own: Filled) -> None:
    path = build_catalog(own.store)
    before = path.read_bytes()
    run_stages(own.store, seed=5)
    with builder(own.store, "die", 1) as process:
        go(process)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert any(DATABASE in found.name and found != path for found in own.store.root.iterdir())  # it had begun
    assert count(own.store, "runs") == RUNS + 1
    assert [found.name for found in own.store.root.iterdir() if DATABASE in found.name] == [DATABASE]


# --- questions that are none


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("selec 1", "syntax error"),
        ("from metric", "metric does not exist"),
        ("select cast(run as integer) from runs", "Could not convert"),
        ("select 1/0; from", "syntax error"),
    ],
)
def test_a_bad_query_says_so_in_one_line_and_what_there_is(filled: Filled, sql: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        query(filled.store, sql)
    what, hint = str(caught.value).splitlines()
    assert "Error: " in what
    assert hint == f"the relations are: {', '.join(relations())}"


@pytest.mark.parametrize(
    "sql",
    [
        "create table mine as select 1",
        "create view mine as select 1",
        "insert into runs (run) values ('mine')",
        "update runs set state = 'completed'",
        "delete from runs",
        "drop table runs",
        "create table results.mine (a integer)",
    ],
)
def test_a_query_writes_nothing(filled: Filled, sql: str) -> None:
    with pytest.raises(ValueError, match="read-only") as caught:
        query(filled.store, sql)
    assert len(str(caught.value).splitlines()) == 2
    assert count(filled.store, "runs") == RUNS
    assert sorted(values(filled.store, "show tables")) == sorted(relations())


def test_a_statement_without_an_answer_is_empty(filled: Filled) -> None:
    assert query(filled.store, "").num_rows == 0
    assert query(filled.store, "set threads = 1").num_rows == 0


def test_an_answer_can_be_copied_out(filled: Filled, tmp_path: Path) -> None:
    query(filled.store, f"copy (from metrics) to '{tmp_path / 'metrics.parquet'}'")
    assert pq.read_table(tmp_path / "metrics.parquet").num_rows == count(filled.store, "metrics")


def test_times_are_in_utc(filled: Filled) -> None:
    begun = rows(filled.store, "select started, started::varchar as text from runs limit 1")[0]
    assert begun["text"].endswith("+00")
    assert begun["started"].utcoffset().total_seconds() == 0
