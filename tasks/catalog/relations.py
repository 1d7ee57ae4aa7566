"""What results.duckdb holds: the relations, their columns, and the Parquet files that some of them are views of."""

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

# relation -> (stage, its files, select list); `f` is the Parquet file's row, `s` the row of `stages` that it belongs to
_MEASURED = "f.split, f.metric, f.value, f.low, f.high, f.n, f.unit, f.note"
_COMPARED = f"f.x_name, f.x, {_MEASURED}, f.lowest, f.highest, f.seeds"
_TESTED = f"f.x_name, f.x, {_MEASURED}, f.p, f.p_corrected, f.seeds"
TABLES = {
    "metrics": (
        "evaluate",
        "metrics.parquet",
        f"r.run, r.name, s.cell, f.system AS method, r.dataset, r.seed, {_MEASURED}",
    ),
    "differences": (
        "evaluate",
        "differences.parquet",
        f"r.run, r.name, s.cell, f.system AS method, f.baseline, r.dataset, r.seed, {_MEASURED}",
    ),
    "free_running": (
        "evaluate",
        "free_running.parquet",
        "r.run, r.name, s.cell, f.system AS method, r.dataset, r.seed, f.round, f.step, "
        "f.value, f.low, f.high, f.left_text, f.n, s.key",
    ),
    "comparison": ("compare", "comparison.parquet", f"r.run, r.name, f.method, r.dataset, {_COMPARED}"),
    "comparison_differences": (
        "compare",
        "comparison_differences.parquet",
        f"r.run, r.name, f.method, f.baseline, r.dataset, {_TESTED}",
    ),
    "comparison_cells": (
        "compare",
        "comparison_cells.parquet",
        "r.run, r.name, f.cell, f.method, f.x_name, f.x, f.seed, f.system",
    ),
}
VIEWS = {
    "predictions": (
        "evaluate",
        "predictions.parquet",
        "s.run, s.cell, f.id, f.system AS method, f.source, f.reference, f.prediction, "
        "f.num_tokens, f.truncated, f.reward, s.key",
    ),
    "training_log": ("*", "training_log.parquet", "s.run, s.stage, s.label, s.cell, f.step, f.metric, f.value, s.key"),
    "teacher_scores": ("score", "outputs-*.parquet", "s.run, f.id, f.text, f.token_ids, f.log_prob, f.truncated"),
    "rollouts": (
        "llmr",
        "rollouts.parquet",
        "s.run, s.cell, f.step, f.rollout, f.id, f.position, f.token, f.token_id, f.q_value, f.value, "
        "f.reward, f.gain, f.log_prob",
    ),
    "aggregated": (
        "dagger_aggregate",
        "aggregated-*.parquet",
        'r.run, s.cell, r.seed, f."round", f.trajectory, f.step, f.position, f.context, f.target, f."left"',
    ),
    "pairs": (
        "prepare",
        "[tv]*.parquet",  # train, validation and test
        "s.run, parse_filename(f.file, true) AS split, f.id, f.dialogue, f.source, f.target",
    ),
    "excess_error": (
        "exposure",
        "excess_error.parquet",
        "r.run, r.name, s.cell, s.label AS method, r.dataset, r.seed, f.length, f.d_student, f.d_teacher, "
        "f.value, f.low, f.high, f.n, f.note, s.key",
    ),
    "overlap_findings": (
        "prepare",
        "overlaps.parquet",
        "s.run, f.item, f.partner, f.score, f.decision, f.reason, f.split",
    ),
    "split_overlaps": (
        "prepare",
        "split_overlaps.parquet",
        "s.run, f.time, f.split, f.other, f.items, f.overlapping, f.share, f.threshold",
    ),
    "dropped": ("prepare", "dropped.parquet", "s.run, f.split, f.dialogue, f.source, f.target, f.reason"),
}
# What an empty relation looks like before any run has filled it: a view over no file at all would be an error.
EMPTY = {
    "metrics": "run VARCHAR, name VARCHAR, cell VARCHAR, method VARCHAR, dataset VARCHAR, seed BIGINT, "
    "split VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, unit VARCHAR, note VARCHAR",
    "differences": "run VARCHAR, name VARCHAR, cell VARCHAR, method VARCHAR, baseline VARCHAR, "
    "dataset VARCHAR, seed BIGINT, split VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, "
    "unit VARCHAR, note VARCHAR",
    "free_running": "run VARCHAR, name VARCHAR, cell VARCHAR, method VARCHAR, dataset VARCHAR, seed BIGINT, "
    "round INTEGER, step INTEGER, value DOUBLE, low DOUBLE, high DOUBLE, left_text DOUBLE, n BIGINT, key VARCHAR",
    "comparison": "run VARCHAR, name VARCHAR, method VARCHAR, dataset VARCHAR, x_name VARCHAR, x DOUBLE, "
    "split VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, unit VARCHAR, note VARCHAR, "
    "lowest DOUBLE, highest DOUBLE, seeds INTEGER",
    "comparison_differences": "run VARCHAR, name VARCHAR, method VARCHAR, baseline VARCHAR, dataset VARCHAR, "
    "x_name VARCHAR, x DOUBLE, split VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, "
    "unit VARCHAR, note VARCHAR, p DOUBLE, p_corrected DOUBLE, seeds INTEGER",
    "comparison_cells": "run VARCHAR, name VARCHAR, cell VARCHAR, method VARCHAR, x_name VARCHAR, x DOUBLE, "
    "seed BIGINT, system VARCHAR",
    "predictions": "run VARCHAR, cell VARCHAR, id BIGINT, method VARCHAR, source VARCHAR, reference VARCHAR, "
    "prediction VARCHAR, num_tokens INTEGER, truncated BOOLEAN, reward DOUBLE, key VARCHAR",
    "training_log": "run VARCHAR, stage VARCHAR, label VARCHAR, cell VARCHAR, step BIGINT, "
    "metric VARCHAR, value DOUBLE, key VARCHAR",
    "teacher_scores": "run VARCHAR, id BIGINT, text VARCHAR, token_ids INTEGER[], log_prob FLOAT, truncated BOOLEAN",
    "rollouts": "run VARCHAR, cell VARCHAR, step BIGINT, rollout INTEGER, id BIGINT, position INTEGER, token VARCHAR, "
    "token_id INTEGER, q_value FLOAT, value FLOAT, reward FLOAT, gain FLOAT, log_prob FLOAT",
    "aggregated": 'run VARCHAR, cell VARCHAR, seed BIGINT, "round" INTEGER, trajectory INTEGER, step INTEGER, '
    'position INTEGER, context INTEGER[], target INTEGER, "left" BOOLEAN',
    "pairs": "run VARCHAR, split VARCHAR, id BIGINT, dialogue VARCHAR, source VARCHAR, target VARCHAR",
    "excess_error": "run VARCHAR, name VARCHAR, cell VARCHAR, method VARCHAR, dataset VARCHAR, seed BIGINT, "
    "length INTEGER, d_student DOUBLE, d_teacher DOUBLE, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT, "
    "note VARCHAR, key VARCHAR",
    "overlap_findings": "run VARCHAR, item VARCHAR, partner VARCHAR, score DOUBLE, decision VARCHAR, reason VARCHAR, "
    "split VARCHAR",
    "split_overlaps": 'run VARCHAR, "time" VARCHAR, split VARCHAR, other VARCHAR, items BIGINT, overlapping BIGINT, '
    "share DOUBLE, threshold DOUBLE",
    "dropped": "run VARCHAR, split VARCHAR, dialogue VARCHAR, source VARCHAR, target VARCHAR, reason VARCHAR",
}
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
