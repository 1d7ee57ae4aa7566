"""What results.duckdb holds: the relations, their columns, and the Parquet files that some of them are views of."""

import re

import pyarrow as pa

RUNS = pa.schema(
    [
        ("run", pa.string()),
        ("name", pa.string()),
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("state", pa.string()),
        ("started", pa.timestamp("ms", tz="UTC")),
        ("finished", pa.timestamp("ms", tz="UTC")),
        ("seconds", pa.float64()),
        ("error", pa.string()),
        ("parameters", pa.string()),
    ]
)
STAGES = pa.schema(
    [
        ("run", pa.string()),
        ("position", pa.int32()),
        ("stage", pa.string()),
        ("label", pa.string()),
        ("cell", pa.string()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("seconds", pa.float64()),
        ("why", pa.string()),
        ("build_seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("bytes", pa.int64()),
        ("built", pa.timestamp("ms", tz="UTC")),
        ("path", pa.string()),
        ("stats", pa.string()),
        ("machine", pa.string()),
        ("versions", pa.string()),
    ]
)
LINEAGE = pa.schema(
    [
        ("stage", pa.string()),
        ("key", pa.string()),
        ("input", pa.string()),
        ("input_stage", pa.string()),
        ("input_key", pa.string()),
    ]
)
LEFT_OUT = pa.schema([("what", pa.string()), ("stage", pa.string()), ("key", pa.string())])  # damaged, or unreadable

# relation -> (stage, its files, columns: what is selected, and its type). `f` is the Parquet file's row, `s` the row of
# `stages` that it belongs to, `r` that of `runs`.
_NUMBERS = "f.value DOUBLE, f.low DOUBLE, f.high DOUBLE"
_MEASURED = f"f.split VARCHAR, f.metric VARCHAR, {_NUMBERS}, f.n BIGINT, f.unit VARCHAR, f.note VARCHAR"
_PLACED = f"r.dataset VARCHAR, f.x_name VARCHAR, f.x DOUBLE, {_MEASURED}"
_CELL = "r.run VARCHAR, r.name VARCHAR, s.cell VARCHAR"
_SYSTEM = f"{_CELL}, f.system AS method VARCHAR"
_DATA = "r.dataset VARCHAR, r.seed BIGINT"
TABLES = {
    "metrics": ("evaluate", "metrics.parquet", f"{_SYSTEM}, {_DATA}, {_MEASURED}"),
    "differences": ("evaluate", "differences.parquet", f"{_SYSTEM}, f.baseline VARCHAR, {_DATA}, {_MEASURED}"),
    "free_running": (
        "evaluate",
        "free_running.parquet",
        f"{_SYSTEM}, {_DATA}, f.round INTEGER, f.step INTEGER, {_NUMBERS}, f.left_text DOUBLE, f.n BIGINT, "
        "s.key VARCHAR",
    ),
    "comparison": (
        "compare",
        "comparison.parquet",
        f"r.run VARCHAR, r.name VARCHAR, f.method VARCHAR, {_PLACED}, f.lowest DOUBLE, f.highest DOUBLE, "
        "f.seeds INTEGER",
    ),
    "comparison_differences": (
        "compare",
        "comparison_differences.parquet",
        f"r.run VARCHAR, r.name VARCHAR, f.method VARCHAR, f.baseline VARCHAR, {_PLACED}, f.p DOUBLE, "
        "f.p_corrected DOUBLE, f.seeds INTEGER",
    ),
    "comparison_cells": (
        "compare",
        "comparison_cells.parquet",
        "r.run VARCHAR, r.name VARCHAR, f.cell VARCHAR, f.method VARCHAR, f.x_name VARCHAR, f.x DOUBLE, "
        "f.seed BIGINT, f.system VARCHAR",
    ),
}
VIEWS = {
    "predictions": (
        "evaluate",
        "predictions.parquet",
        "s.run VARCHAR, s.cell VARCHAR, f.id BIGINT, f.system AS method VARCHAR, f.source VARCHAR, "
        "f.reference VARCHAR, f.prediction VARCHAR, f.num_tokens INTEGER, f.truncated BOOLEAN, f.reward DOUBLE, "
        "f.log_prob DOUBLE, f.teacher_entropy DOUBLE, f.reverse_kl DOUBLE, f.forward_kl DOUBLE, f.overlap DOUBLE, "
        "s.key VARCHAR",
    ),
    "training_log": (
        "*",
        "training_log.parquet",
        "s.run VARCHAR, s.stage VARCHAR, s.label VARCHAR, s.cell VARCHAR, f.step BIGINT, f.metric VARCHAR, "
        "f.value DOUBLE, s.key VARCHAR",
    ),
    "teacher_scores": (
        "score",
        "outputs-*.parquet",
        "s.run VARCHAR, f.id BIGINT, f.text VARCHAR, f.token_ids INTEGER[], f.log_prob FLOAT, f.truncated BOOLEAN",
    ),
    "rollouts": (
        "llmr",
        "rollouts.parquet",
        "s.run VARCHAR, s.cell VARCHAR, f.step BIGINT, f.rollout INTEGER, f.id BIGINT, f.position INTEGER, "
        "f.token VARCHAR, f.token_id INTEGER, f.q_value FLOAT, f.value FLOAT, f.reward FLOAT, f.gain FLOAT, "
        "f.log_prob FLOAT",
    ),
    "aggregated": (
        "dagger_aggregate",
        "aggregated-*.parquet",
        'r.run VARCHAR, s.cell VARCHAR, r.seed BIGINT, f."round" INTEGER, f.trajectory INTEGER, f.step INTEGER, '
        'f.position INTEGER, f.context INTEGER[], f.target INTEGER, f."left" BOOLEAN',
    ),
    "pairs": (
        "prepare",
        "[tv]*.parquet",  # train, validation and test
        "s.run VARCHAR, parse_filename(f.file,true) AS split VARCHAR, f.id BIGINT, f.dialogue VARCHAR, "
        "f.source VARCHAR, f.target VARCHAR",
    ),
    "excess_error": (
        "exposure",
        "excess_error.parquet",
        f"{_CELL}, s.label AS method VARCHAR, {_DATA}, f.length INTEGER, f.d_student DOUBLE, f.d_teacher DOUBLE, "
        f"{_NUMBERS}, f.n BIGINT, f.note VARCHAR, s.key VARCHAR",
    ),
    "overlap_findings": (
        "prepare",
        "overlaps.parquet",
        "s.run VARCHAR, f.item VARCHAR, f.partner VARCHAR, f.score DOUBLE, f.decision VARCHAR, f.reason VARCHAR, "
        "f.split VARCHAR",
    ),
    "split_overlaps": (
        "prepare",
        "split_overlaps.parquet",
        's.run VARCHAR, f."time" VARCHAR, f.split VARCHAR, f.other VARCHAR, f.items BIGINT, f.overlapping BIGINT, '
        "f.share DOUBLE, f.threshold DOUBLE",
    ),
    "dropped": (
        "prepare",
        "dropped.parquet",
        "s.run VARCHAR, f.split VARCHAR, f.dialogue VARCHAR, f.source VARCHAR, f.target VARCHAR, f.reason VARCHAR",
    ),
}


def selected(columns: str) -> str:
    """The columns of a relation as a SELECT list."""
    return ", ".join(column.rpartition(" ")[0] for column in columns.split(", "))


def defined(columns: str) -> str:
    """The same as CREATE TABLE has them, for a relation without a file: a view over none would be an error."""
    return ", ".join(re.sub(r"^.*(?: AS |\.)", "", column) for column in columns.split(", "))


# DaD and ImitKD are DaD-DAgger with alpha 1 and 0, and stand in its row of the papers' tables. A comparison's cell has
# the alpha that it was swept to, or that its variant sets, or all cells do.
PAPER_VS_OURS = """
CREATE VIEW paper_vs_ours AS
WITH ours AS (
    SELECT m.* EXCLUDE (seed), coalesce(m.seed, c.seed) AS seed,
           CASE WHEN m.method IN ('dad', 'imitkd') THEN 'dad_dagger' ELSE m.method END AS called,
           CASE m.method WHEN 'dad' THEN 1 WHEN 'imitkd' THEN 0 ELSE coalesce(
               CASE WHEN c.x_name = 'alpha' THEN c.x END,
               TRY_CAST((((r.parameters -> 'variants') -> c.method) ->> 'method.alpha') AS DOUBLE),
               TRY_CAST((r.parameters -> 'settings') ->> 'method.alpha' AS DOUBLE),
               TRY_CAST(r.parameters ->> '$.method.alpha' AS DOUBLE),
               0.5
           ) END AS alpha
    FROM metrics m JOIN runs r ON r.run = m.run
    LEFT JOIN comparison_cells c ON c.run = m.run AND c.cell = m.cell
    WHERE m.split = 'test'
)
SELECT p.paper, p.place, p.row, p.dataset, p.metric, p.alpha, p.value AS paper_value,
       o.value AS our_value, o.low, o.high, o.value - p.value AS difference, o.run, o.cell, o.seed
FROM published p LEFT JOIN ours o
  ON o.dataset = p.our_dataset AND o.called = p.our_method AND o.metric = p.metric
 AND (p.alpha IS NULL OR p.alpha = o.alpha)
"""
# Free running by round and step: round 0 is the student before the first, the last one is what the run ends with.
DAGGER_ROUNDS = """
CREATE VIEW dagger_rounds AS
SELECT run, cell, "round", step, 'free_running_ce' AS metric, value, n FROM free_running WHERE "round" IS NOT NULL
UNION ALL
SELECT run, cell, "round", step, 'left_text' AS metric, left_text AS value, n FROM free_running
WHERE "round" IS NOT NULL
"""
