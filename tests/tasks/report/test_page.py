"""The report: its numbers are SQL's, hostile texts stay texts, what is absent is left out, and it asks no network."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli.main import main
from tasks.catalog.database import query
from tasks.report import write_report
from tasks.report.html import Html, escape, tag, visible
from tasks.report.names import system
from tasks.report.page import render
from tasks.report.results import literal, results_of
from tasks.report.sections.watch import WATCHED
from tasks.store.artifacts import Store, StoreError
from tests.tasks.fake_runs import ROLLOUT, SOURCES, Filled
from tests.tasks.report.fake_reports import (
    ALARM,
    ALPHAS,
    HOSTILE,
    METHODS,
    WARNING,
    run_comparison,
    run_hostile,
    run_watched,
)
from tests.tasks.report.html_tree import Node, parse

LARGEST = 1_500_000  # bytes of a page


@dataclass(frozen=True)
class Made:
    """A store with two comparisons, a hostile run and one that collapses: their ids, and their pages by those names."""

    store: Store
    grid: str
    methods: str
    hostile: str
    watched: str
    texts: dict[str, str]

    def page(self, name: str) -> Node:
        """One of the pages."""
        return parse(self.texts[name])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    store = Store(tmp_path_factory.mktemp("reports"))
    runs = {"grid": run_comparison(store, "dad-dagger"), "methods": run_comparison(store, "llmr")}
    runs |= {"hostile": run_hostile(store), "watched": run_watched(store)}
    texts = {name: text_of(store, run) for name, run in runs.items()}
    return Made(store, **runs, texts=texts)


@pytest.fixture(scope="module")
def page(filled: Filled) -> Node:
    """The report of an ordinary run."""
    return report(filled.store, filled.first)


def text_of(store: Store, run: str) -> str:
    with results_of(store, run) as results:
        return render(results)


def report(store: Store, run: str) -> Node:
    return parse(text_of(store, run))


def rows(store: Store, sql: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = query(store, sql).to_pylist()
    return answer


def numbers(text: str) -> list[float]:
    """The numbers in a text, written with true minus signs and commas between thousands."""
    return [float(each.replace(",", "")) for each in re.findall(r"[+-]?\d[\d,]*\.?\d*", text.replace("−", "-"))]


def shown(text: str, *values: float) -> bool:
    """Whether a text has these numbers, in order, each as exact as its decimals say."""
    found = numbers(text)
    digits = [len(each.partition(".")[2]) for each in re.findall(r"\d[\d,]*\.?\d*", text)]
    pairs = list(zip(found, digits, values, strict=False))
    return len(found) >= len(values) and all(abs(a - value) <= 0.501 * 10**-d for a, d, value in pairs)


def headings(page: Node) -> list[str]:
    return [node.text for node in page.all("h2")]


# --- numbers


def test_the_metrics_are_what_sql_says(filled: Filled, page: Node) -> None:
    table = page.one("section", id="metrics").one("table", class_="values")
    header, *body = table.rows()
    assert header == ["metric", "Teacher", "Pre-distilled", "LLMR"]
    measured = rows(filled.store, f"FROM metrics WHERE run = '{filled.first}' ORDER BY rowid")
    names = list(dict.fromkeys(row["metric"] for row in measured))
    assert len(body) == len(names) == 23
    for row in measured:
        cell = body[names.index(row["metric"])][header.index(system(row["method"]))]
        assert row["value"] is not None
        assert shown(cell, row["value"], row["low"], row["high"]), (row, cell)


def test_the_best_student_is_marked_where_one_direction_is_better(filled: Filled, page: Node) -> None:
    marked = {}
    for name, _, start, llmr in page.one("section", id="metrics").one("table", class_="values").rows()[1:]:
        marked[name.split(" ")[0]] = ["★" in start, "★" in llmr]
    values = rows(filled.store, f"FROM metrics WHERE run = '{filled.first}' AND metric = 'reward'")
    reward = {row["method"]: row["value"] for row in values}
    assert marked["Reward"] == [
        reward[a] > reward[b] for a, b in (("pre_distilled", "llmr"), ("llmr", "pre_distilled"))
    ]
    assert not any(marked["Length" + "tokens"])  # neither longer nor shorter is better
    assert "★" not in "".join(row[1] for row in page.one("table", class_="values").rows())  # the teacher is no student


def test_published_numbers_stand_beside_ours(filled: Filled, page: Node) -> None:
    paper = rows(filled.store, f"FROM paper_vs_ours WHERE run = '{filled.paper}'")
    cells = report(filled.store, filled.paper).one("section", id="metrics").all("small", class_="paper")
    assert sorted(number for cell in cells for number in numbers(cell.text)) == sorted(
        row["paper_value"] for row in paper
    )
    assert len(paper) > 0
    assert not page.all("small", class_="paper")  # of a data set that no paper used


def test_the_differences_are_what_sql_says(filled: Filled, page: Node) -> None:
    found = iter(page.one("section", id="differences").one("table").all("tr"))
    expected = rows(filled.store, f"FROM differences WHERE run = '{filled.first}' AND value IS NOT NULL")
    by_metric = {
        name: [r for r in expected if r["metric"] == name] for name in dict.fromkeys(r["metric"] for r in expected)
    }
    next(found)  # the header
    for of_metric in by_metric.values():
        next(found)  # the metric's name and scale
        for row in of_metric:
            line = next(found)
            name, _, value, bounds, verdict = [node.text for node in line.all() if node.name in ("th", "td")]
            assert name == f"{system(row['method'])} − {system(row['baseline'])}"
            assert shown(value, row["value"])
            assert shown(bounds, row["low"], row["high"])
            assert ("undecided" in verdict) == (row["low"] <= 0 <= row["high"])
    assert next(found, None) is None


def test_in_short_sorts_the_differences_to_the_start(filled: Filled, page: Node) -> None:
    section = page.one("section", id="in-short")
    assert section.one("p", class_="lead").text.startswith("LLMR against Pre-distilled")
    decided = rows(
        filled.store,
        f"SELECT metric FROM differences WHERE run = '{filled.first}' AND method = 'llmr' "
        "AND baseline = 'pre_distilled' AND (low > 0 OR high < 0)",
    )
    texts = [node.text for node in section.all("dd")]
    kinds = [node.text for node in section.all("dt")]
    undecided = texts[kinds.index("Undecided")].count(",") + 1
    assert undecided == 23 - len(decided)


def test_every_rollout_token_has_its_numbers(filled: Filled, page: Node) -> None:
    tokens = page.one("div", id="rollout-list").all("span", class_="t")
    expected = rows(filled.store, f"FROM rollouts WHERE run = '{filled.first}' ORDER BY position")
    assert [node.one("bdi").text for node in tokens] == [token.replace("▁", "␣") for token, *_ in ROLLOUT]
    for node, row in zip(tokens, expected, strict=True):
        values = [float(each) for each in (node.attributes["data-v"] or "").split(",")]
        assert values == pytest.approx([row[name] for name in ("q_value", "value", "reward", "gain", "log_prob")])
        assert shown(node.one("i").text, row["reward"])
    assert SOURCES[1] in page.one("article", class_="rollout").text  # the input of id 1


def test_samples_hold_every_output(filled: Filled, page: Node) -> None:
    articles = page.all("article", class_="sample")
    assert len(articles) == len(SOURCES)
    for article, (source,) in zip(articles, zip(SOURCES, strict=True), strict=True):
        assert source in article.text
    for row in rows(filled.store, f"FROM predictions WHERE run = '{filled.first}'"):
        assert row["prediction"] in articles[row["id"]].text


def test_stages_settings_and_the_command_are_there(filled: Filled, page: Node) -> None:
    section = page.one("section", id="run")
    stages = rows(filled.store, f"FROM stages WHERE run = '{filled.first}' ORDER BY position")
    assert [row[0] for row in section.one("table", class_="stages").rows()[1:]] == [
        f"{row['stage']}[{row['label']}]" if row["label"] else row["stage"] for row in stages
    ]
    assert f"distill resume {filled.first}" in section.text
    assert "method.kind" in section.text
    assert "python 3." in section.text


# --- what to watch


def levels(panel: Node) -> dict[str, float]:
    """The lines across a panel, by name, as its description says them."""
    found = re.findall(r"([^.:]+): ([−\d.]+) throughout", panel.one("desc").text)
    return {name.strip(): numbers(value)[0] for name, value in found}


def panels_of(figure: Node) -> dict[str, Node]:
    return {plot.one("p", class_="plot-title").text: plot for plot in figure.all("div", class_="plot")}


def test_what_to_watch_is_drawn_with_the_start_and_the_references(made: Made) -> None:
    watched, logged = made.page("watched").one("section", id="training").all("figure")
    panels = panels_of(watched)
    assert list(panels) == [each.title for each in WATCHED]
    assert [panel.one("p", class_="note").text for panel in panels.values()] == [each.meaning for each in WATCHED]
    assert list(panels_of(logged)) == ["loss", "Reward"]  # what is watched is not drawn twice, nor is the text's
    assert "validation" not in logged.text
    # fake_reports.looks: the student begins at 0.5 and loses 0.3; the teacher on the references is at -1.5 and 2.0
    assert levels(panels["Overlap"]) == {"start": 0.5}
    assert "from 0.5 at 0 to 0.2 at 40" in panels["Overlap"].one("desc").text
    assert levels(panels["Teacher's log-probability"]) == {"start": -3, "references": -1.5}
    assert levels(panels["Teacher's entropy"]) == {"start": 2.5, "references": 2}
    assert levels(panels["Length"]) == {"start, greedy": 20, "start, sampled": 22}
    assert levels(panels["Reverse and forward KL"]) == {"start, reverse KL": 2, "start, forward KL": 2}
    legend = [node.text for node in watched.one("ul", class_="legend").all("li")]
    assert legend == ["greedy", "sampled", "start", "references", "reverse KL", "forward KL"]


def test_next_to_nothing_does_not_look_like_much(made: Made) -> None:
    (panel,) = [plot for title, plot in panels_of(made.page("watched")).items() if title == "Cut off"]
    ticks = [
        numbers(node.text)[0] for node in panel.all("text", class_="tick") if node.attributes["text-anchor"] == "end"
    ]
    assert min(ticks) == 0
    assert max(ticks) == 0.2


def test_an_alarm_is_read_first_and_says_whose_it_is(made: Made) -> None:
    first = made.page("watched").one("main").all("section")[0]
    assert [node.text for node in first.all("li")] == [f"minillm: {ALARM}"]
    lines = [node.text for node in made.page("methods").one("section", id="warnings").all("li")]
    assert lines == [f"minillm in 3 runs of LLMR: {ALARM}"]  # of seven methods


def test_methods_are_watched_over_one_another_whatever_stage_trained_them(made: Made) -> None:
    section = made.page("methods").one("section", id="training")
    first, more = section.all("figure")[:2]
    assert list(panels_of(first)) == [
        "Reward, greedy", "Overlap", "Teacher's log-probability", "Teacher's entropy", "Reverse KL", "Forward KL",
        "Length, greedy", "Cut off, greedy", "Equal outputs, greedy", "Distinct bigrams, greedy", "Repetition, greedy",
    ]  # fmt: skip
    assert [title.partition(", ")[2] for title in panels_of(more)] == ["sampled"] * 6
    assert {node.text for node in first.one("ul", class_="legend").all("li")} == {
        "MiniLLM", "LLMR", "start", "references"
    }  # fmt: skip
    assert section.all("summary")[1].text == "6 more, of sampled outputs"
    # starts of 0.5, 0.51 and 0.52 over three seeds, of both methods; MiniLLM gains 0.2, LLMR loses 0.3
    overlap = panels_of(first)["Overlap"]
    assert levels(overlap) == {"start": 0.51}
    assert "MiniLLM: from 0.51 at 0 to 0.71 at 40" in overlap.one("desc").text
    assert "LLMR: from 0.51 at 0 to 0.21 at 40" in overlap.one("desc").text
    cells = {(row[0], row[1]): row[2:] for row in first.all("table")[0].rows()[1:]}
    assert cells["LLMR", "40"][1] == "0.21 [0.2, 0.22]"
    stages = {fold.all("summary")[0].text: fold for fold in section.all("details", class_="stage")}
    assert [node.text for node in stages["minillm"].all("p", class_="plot-title")] == ["loss", "Reward"]


def test_a_start_that_methods_do_not_share_is_no_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = run_comparison(store, "llmr", apart=0.1)
    overlap = panels_of(report(store, run).one("section", id="training").all("figure")[0])["Overlap"]
    assert levels(overlap) == {}


def test_an_older_run_is_drawn_as_far_as_it_was_watched(page: Node) -> None:
    section = page.one("section", id="training")  # of fake_runs: looked at once, at its end
    assert "What to watch" not in section.text
    assert "validation length 3" in section.text


# --- comparisons and running text


def test_a_grid_is_drawn_against_its_setting(made: Made) -> None:
    section = made.page("grid").one("section", id="against-alpha")
    panels = section.all("svg", class_="panel")
    assert len(panels) == 3
    for panel in panels:
        levels = {node.text for node in panel.all("text", class_="name")}
        assert levels == {"Untrained student", "Teacher"}
        assert len(panel.all("path", class_="band")) == 2  # of the two methods
    (table,) = section.all("table")
    cells = {(row[0], row[1]): row[2:] for row in table.rows()[1:]}
    compared = rows(made.store, f"FROM comparison WHERE run = '{made.grid}'")
    metrics = list(dict.fromkeys(row["metric"] for row in compared))
    for row in compared:
        at = "–" if row["x"] is None else f"{row['x']:.4g}"
        cell = cells[system(row["method"]), at][metrics.index(row["metric"])]
        assert numbers(cell) == pytest.approx([row["value"], row["low"], row["high"]], rel=1e-3)
    assert len(cells) == 2 * len(ALPHAS) + 2


def test_a_grid_says_at_how_many_of_its_values_a_method_is_better(made: Made) -> None:
    section = made.page("grid").one("section", id="in-short")
    told = dict(zip([n.text for n in section.all("dt")], [n.text for n in section.all("dd")], strict=True))
    pair = "dad-dagger against next-token"
    assert told["Perplexity"] == f"best at alpha 0: dad-dagger, 60.00; {pair}: better at 5 of 5 values of alpha"
    # 0.6 - 0.02 for each place: the higher, the better
    assert told["G-Eval"] == f"best at alpha 0: dad-dagger, 0.600; {pair}: undecided at 5 of 5 values of alpha"


def test_warnings_come_first(made: Made) -> None:
    first = made.page("grid").one("main").all("section")[0]
    assert first.attributes["id"] == "warnings"
    assert WARNING in first.text


def test_the_same_warning_with_other_numbers_is_said_once(made: Made) -> None:
    lines = [node.text for node in made.page("grid").one("section", id="warnings").all("li")]
    (line,) = [text for text in lines if "updates were large" in text]
    where = "dagger_train[1], dagger_train[2] in 30 runs"
    assert line == f"{where}: 50 % of the updates were large (2 more like this, with other numbers)"


def test_a_comparison_runs_freely_in_the_mean_over_its_seeds(made: Made) -> None:
    section = made.page("grid").one("section", id="free-running")
    by_step = section.all("figure")[0]
    assert [node.text for node in by_step.all("p", class_="plot-title")] == [f"alpha {alpha:g}" for alpha in ALPHAS]
    assert {node.text for node in by_step.all("li")} == {"Teacher", "Untrained student", "next-token", "dad-dagger"}
    cells = {(row[0], row[1]): row[2:] for row in by_step.one("table").rows()[1:]}
    for place, alpha in enumerate(ALPHAS):
        found = rows(
            made.store,
            "SELECT avg(value) AS value, min(value) AS low, max(value) AS high FROM free_running "
            f"WHERE run = '{made.grid}' AND method = 'dad_dagger' AND step = 3 AND cell LIKE '%alpha={alpha:g},%'",
        )[0]
        assert shown(cells["dad-dagger", "3"][place], found["value"], found["low"], found["high"])


def test_a_comparisons_rounds_start_from_the_untrained_student(made: Made) -> None:
    by_round = made.page("grid").one("section", id="free-running").all("figure")[1]
    cells = {(row[0], row[1]): row[2:] for row in by_round.one("table").rows()[1:]}
    student, first, last = (
        rows(
            made.store,
            f"SELECT avg(value) AS value FROM free_running WHERE run = '{made.grid}' AND {where} "
            "AND cell LIKE 'dad-dagger, method.alpha=1,%'",
        )[0]["value"]
        for where in ("method = 'student'", "method = 'round_1'", "method = 'dad_dagger'")
    )
    for number, value in (("0", student), ("1", first), ("2", last)):
        assert shown(cells["dad-dagger", number][-1], value)


def test_methods_that_share_a_training_share_its_line(made: Made) -> None:
    first, second = made.page("grid").one("section", id="training").all("details", class_="stage")
    assert first.all("summary")[0].text == "dagger_train[1]"
    assert first.all("ul") == []  # one line in each panel: there is nothing to tell apart
    assert {node.text for node in second.all("li")} == {"next-token", "dad-dagger"}
    titles = [node.text for node in second.all("p", class_="plot-title")]
    assert titles == [f"{name}, alpha {alpha:g}" for name in ("validation loss", "loss") for alpha in ALPHAS]
    # 300 updates in 120 parts, the last one of two: 3 - alpha + seed + 2 / 299.5, in the mean over seeds 0, 1 and 2
    drawn = second.all("svg", class_="panel")
    (panel,) = [node for node in drawn if node.all("title")[0].text == "validation loss, alpha 1"]
    assert "to 3.007 at 300" in panel.one("desc").text


def test_stages_of_a_grid_are_folded_run_by_run(made: Made) -> None:
    section = made.page("grid").one("section", id="run")
    folds = [node.text for node in section.all("summary") if "seed=" in node.text]
    assert len(folds) == 2 * len(ALPHAS) * 3
    assert folds[0].startswith("next-token, method.alpha=0, seed=0: 3 stages of its own")
    assert folds[3].startswith("dad-dagger, method.alpha=0, seed=0: 2 stages of its own")
    assert folds[3].endswith("1 shared with runs above")


def test_a_comparison_shows_what_its_own_methods_wrote(made: Made) -> None:
    section = made.page("grid").one("section", id="samples")
    assert "those with seed 0, alpha 0.5" in section.one("p", class_="lead").text
    shown_names = [node.text for node in section.all("article")[0].all("dt")]
    assert shown_names == ["Input", "Reference", "Teacher", "Untrained student", "next-token", "dad-dagger"]
    assert "dad_dagger 0 0.5" in section.text  # what fake_texts lets that cell write


def test_a_run_on_running_text_shows_each_round_by_step(filled: Filled) -> None:
    page = report(filled.store, filled.text)
    section = page.one("section", id="free-running")
    names = {node.text for node in section.all("li")}
    assert names == {"Teacher", "Untrained student", "Round 1", "DaD-DAgger"}
    cells = {(row[0], row[1]): row[2:] for row in section.one("table").rows()[1:]}
    for row in rows(filled.store, f"FROM free_running WHERE run = '{filled.text}'"):
        value, left = cells[system(row["method"]), str(row["step"])]
        assert shown(value, row["value"], row["low"], row["high"])
        assert shown(left, row["left_text"])
    assert "lengths" not in {node.attributes["id"] for node in page.all("section")}  # all are equally long


def test_without_a_setting_the_leader_is_named_with_corrected_p(made: Made) -> None:
    section = made.page("methods").one("section", id="in-short")
    told = dict(zip([n.text for n in section.all("dt")], [n.text for n in section.all("dd")], strict=True))
    # 4 + 7 * 0.2 for the last of seven; 0.2 apart is undecided, 0.4 and more is not
    assert told["BLEU-2"] == (
        "LLMR leads with 5.40; better than SeqKD (p = 0.040), Forward KL (p = 0.040), Reverse KL (p = 0.040), "
        "JS (p = 0.040) and GKD (p = 0.040); undecided against MiniLLM (p = 1.000)"
    )
    # 30 - 1.5 for each place: the first method's is the highest, and all differences are decided
    assert told["Dist-2"].startswith("SeqKD, 28.50: better than Forward KL (p = 0.040), ")
    assert "undecided" not in told["Dist-2"]
    assert told["Undecided"] == "In ROUGE-L the first is not decidedly better than any other."


def test_methods_are_compared_with_corrected_p_values(made: Made) -> None:
    page = made.page("methods")
    pairs = len(METHODS) * (len(METHODS) - 1) // 2
    section = page.one("section", id="differences")
    assert section.all("summary")[0].text.startswith(f"BLEU-2: {pairs} differences")
    found = {row.all("td")[-2].text for row in section.all("tr") if row.all("svg")}
    assert found == {"0.040", "1.000"}
    assert "Every metric" not in page.text  # nothing was varied
    assert len(page.one("section", id="methods").all("svg")) == 4
    assert [row[0] for row in page.one("table", class_="values").rows()[1:]] == [
        system(m) for m in ("teacher", *METHODS)
    ]
    exerror = page.one("section", id="exerror")  # means of three seeds; the start is shared by the cells of a seed
    at_10 = {name: value for name, length, value in exerror.one("table").rows()[1:] if length == "10"}
    assert at_10 == {
        "SeqKD": "21 [20, 22]", "Reverse KL": "13 [12, 14]", "LLMR": "9 [8, 10]", "Pre-distilled": "26 [25, 27]"
    }  # fmt: skip
    assert len(page.one("section", id="variety").all("text", class_="name")) == 1 + len(METHODS)


# --- absent data


@pytest.mark.parametrize("run", ["failed", "crashed"])
def test_a_run_that_did_not_end_well_says_so_and_shows_what_there_is(filled: Filled, run: str) -> None:
    page = report(filled.store, getattr(filled, run))
    assert f"This run is {run}" in page.one("section", id="warnings").text
    assert "Metrics" not in headings(page)
    assert "What was run" in headings(page)


def test_a_report_never_replaces_a_fuller_one_after_a_deletion(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run = run_hostile(store)
    before = write_report(store, run).read_bytes()
    gone = next((store.root / "artifacts" / "evaluate").iterdir())
    shutil.rmtree(gone)
    with pytest.raises(StoreError, match=rf"deleted: evaluate {gone.name[:8]}\nits report of before is kept") as error:
        write_report(store, run)
    kept = store.root / "reports" / f"{run}.html"
    assert str(kept) in str(error.value)
    assert kept.read_bytes() == before
    left = parse(write_report(store, run, tmp_path / "left.html").read_text(encoding="utf-8"))
    assert f"deleted since: evaluate {gone.name[:8]}" in left.one("section", id="warnings").text
    kept.unlink()
    assert write_report(store, run) == kept  # nothing is lost by it


def test_relations_that_are_not_there_answer_like_empty_ones(filled: Filled) -> None:
    with results_of(filled.store, filled.first) as results:
        assert results.ask("no_such_relation", "FROM no_such_relation") == []


def test_an_undefined_metric_is_undefined_with_its_reason(made: Made) -> None:
    section = made.page("hostile").one("section", id="metrics")
    assert [node.text for node in section.all("span", class_="undefined")] == ["undefined"] * 2
    assert "BLEU-2: no <words> at all" in section.text


def test_a_run_that_there_is_not(filled: Filled) -> None:
    with pytest.raises(ValueError, match="there is no run it's not\n"):
        write_report(filled.store, "it's not")


# --- hostile texts


def test_hostile_texts_stay_texts(made: Made) -> None:
    page = made.page("hostile")
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert len(page.all("style")) == 1
    for article, text in zip(page.all("article", class_="sample"), HOSTILE, strict=True):
        assert visible(text) in article.text
    for text in HOSTILE:
        assert visible(text) in page.one("section", id="warnings").text


def test_no_character_reorders_or_rings(made: Made) -> None:
    text = made.texts["hostile"]
    assert "\u202e" not in text
    assert "[U+202E]gnp.exe" in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2066-\u2069\ud800-\udfff]", text)
    assert "bell ␇ escape ␛[31m null ␀ delete ␡" in text


@given(st.text(st.characters(codec=None)))
def test_any_text_comes_back_from_an_element_and_from_an_attribute(text: str) -> None:
    node = parse(tag("p", {"title": text}, text)).one("p")
    expected = visible(text).replace("\r\n", "\n").replace("\r", "\n")
    assert node.text.replace("\r\n", "\n").replace("\r", "\n") == expected
    assert (node.attributes["title"] or "").replace("\r\n", "\n").replace("\r", "\n") == expected
    visible(text).encode()  # no lone surrogate is left


def test_html_passes_into_an_element_but_never_raw_into_an_attribute() -> None:
    assert escape(Html("<b>")) == "<b>"
    assert tag("p", {"title": Html('"<b>')}, Html("<br>")) == '<p title="&quot;&lt;b&gt;"><br></p>'


def test_a_quote_in_a_run_id_stays_in_its_literal() -> None:
    assert literal("a' OR '1'='1") == "'a'' OR ''1''=''1'"


# --- one file


def test_nothing_is_asked_of_any_network(page: Node, made: Made) -> None:
    for each in (page, made.page("grid"), made.page("hostile")):
        for node in each.all():
            for name, value in node.attributes.items():
                assert not name.startswith("on"), (node.name, name)
                assert name not in ("style", "srcset", "action", "formaction", "src", "data", "xlink:href"), name
                if name == "href":
                    assert value == "data:," or (value or "").startswith("#"), value
        assert not re.search(r"url\(|@import|expression\(", each.one("style").text)


def test_the_policy_lets_in_only_the_pages_own_style_and_script(page: Node) -> None:
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"] or ""
    assert policy.startswith("default-src 'none'; ")
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.one(name).text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_a_large_run_makes_a_page_that_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    texts = [f"{'ش' * 3_000} {i}" for i in range(50)]
    run = run_hostile(store, texts, repeats=100)
    path = write_report(store, run)
    assert path.stat().st_size < LARGEST
    lead = parse(path.read_text(encoding="utf-8")).one("section", id="samples").one("p", class_="lead").text
    assert re.match(r"\d+ of 5,000 inputs, evenly spread", lead)


def test_it_is_written_whole_where_it_is_asked_for(filled: Filled, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "report.html"
    assert write_report(filled.store, filled.first, target) == target
    assert parse(target.read_text(encoding="utf-8")).one("h1").text == "llmr-chitchat"
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    own = write_report(filled.store, filled.first)
    assert own == filled.store.root / "reports" / f"{filled.first}.html"
    assert own.read_bytes() == target.read_bytes()  # the same run, the same page


def test_a_place_that_cannot_be_written_to(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*\ngive another place with --output"):
        write_report(filled.store, filled.first, tmp_path / "file" / "report.html")


# --- for everybody


@pytest.mark.parametrize("which", ["first", "grid", "hostile", "methods", "watched"])
def test_the_page_can_be_read_by_a_machine_that_reads_aloud(page: Node, made: Made, which: str) -> None:
    page = page if which == "first" else made.page(which)
    assert page.one("html").attributes["lang"] == "en"
    assert len(page.all("main")) == len(page.all("h1")) == len(page.all("nav")) == 1
    levels = [int(node.name[1]) for node in page.all() if re.fullmatch("h[1-6]", node.name)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert {(node.attributes["href"] or "")[1:] for node in page.all("a")} <= set(ids)
    for section in page.all("section"):
        assert section.attributes["aria-labelledby"] in ids
    for table in page.all("table"):
        assert table.one("caption").text
        assert all(node.attributes["scope"] in ("col", "row", "rowgroup") for node in table.all("th"))
    for svg in page.all("svg"):
        plain = svg.attributes.get("aria-hidden") == "true"
        assert plain or (svg.attributes["role"] == "img" and svg.all("title") and svg.one("desc").text)
    for label in page.all("label"):
        assert len([node for node in label.all() if node.name in ("select", "input")]) == 1


# --- the command


def test_the_command_writes_the_last_run_of_a_name(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(filled.store.root))
    target = tmp_path / "report.html"
    assert main(["report", "llmr-dailydialog", "--output", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert parse(target.read_text(encoding="utf-8")).one("head").one("title").text == "llmr-dailydialog: report"


def test_the_command_without_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_HOME", str(tmp_path))
    assert main(["report"]) == 1
    assert capsys.readouterr().err.startswith("error: there are no runs yet\nstart one with")
