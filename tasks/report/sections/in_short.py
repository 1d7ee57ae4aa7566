"""The answer before the evidence: which system is better, in which metric, and what is undecided."""

from collections.abc import Sequence

from tasks.formatting import decimals, fixed, probability
from tasks.report.html import Html, tag
from tasks.report.names import metric, swept, system
from tasks.report.results import Results, Row
from tasks.report.section import Section
from tasks.report.sections.differences import BETTER, LEVEL, OTHER, UNDECIDED, WORSE, all_differences, decided, verdict

VALUES = "FROM comparison WHERE run = $run AND value IS NOT NULL"
SAID_ELSEWHERE = ("cross_entropy", "cross_entropy_bits")  # what perplexity says, in other units
MOST_PAIRS = 3  # of methods, in a metric's card


def in_short(results: Results) -> Section | None:
    """Of a run: the last student against the first. Of a comparison: who leads, metric by metric."""
    rows = [row for row in all_differences(results) if row["metric"] not in SAID_ELSEWHERE]
    if not rows:
        return None
    return _of_comparison(results, rows) if results.cells else _of_run(results, rows)


def _of_run(results: Results, rows: Sequence[Row]) -> Section | None:
    students = [row for row in rows if not {row["method"], row["baseline"]} & results.references]
    pairs = students or [row for row in rows if row["method"] not in results.references]
    if not pairs:
        return None
    method, baseline = pairs[-1]["method"], pairs[0 if students else -1]["baseline"]
    chosen = [row for row in pairs if (row["method"], row["baseline"]) == (method, baseline)]
    kinds: dict[str, list[Row]] = {}
    for row in chosen:
        kinds.setdefault(verdict(row), []).append(row)
    facts = [
        _card(kind, kind.capitalize(), _listed(kinds[kind]))
        for kind in (BETTER, WORSE, OTHER, UNDECIDED)
        if kind in kinds
    ]
    lead = (
        f"{system(method)} against {system(baseline)}, on the same inputs of the {chosen[0]['split']} split. "
        "Undecided: the 95 % interval of the difference holds 0."
    )
    return _section(facts, lead)


def _of_comparison(results: Results, rows: Sequence[Row]) -> Section | None:
    values = [row for row in results.ask("comparison", VALUES) if row["method"] not in results.references]
    between = [row for row in rows if row["baseline"] not in results.references]
    facts: list[Html] = []
    open_: list[str] = []  # metrics in which chance may be all there is
    for name in dict.fromkeys(row["metric"] for row in rows if metric(row["metric"]).better):
        of_metric = [row for row in values if row["metric"] == name]
        if not of_metric:
            continue
        best = max(of_metric, key=lambda row: metric(row["metric"]).better * row["value"])
        tested = [row for row in between or rows if row["metric"] == name]
        if best["x"] is not None:
            facts.append(_of_grid(best, tested))
        elif any(decided(row) for row in tested if best["method"] in (row["method"], row["baseline"])):
            facts.append(_leader(best, tested))
        else:
            open_.append(metric(name).label)
    if open_:
        text = f"In {_and(open_)} the first is not decidedly better than any other."
        facts.append(_card(UNDECIDED, UNDECIDED.capitalize(), text))
    number = len({row["seed"] for row in results.cells})
    seeds = "one seed" if number == 1 else f"{number} seeds"
    lead = (
        f"On the same inputs of the {rows[0]['split']} split, over {seeds}. A difference counts where p is below "
        f"{LEVEL}, corrected for all differences of the metric here. Undecided does not mean equal."
    )
    return _section(facts, lead) if facts else None


def _leader(best: Row, tested: Sequence[Row]) -> Html:
    """Who has the best value, and whom it beats by more than chance."""
    beaten: list[str] = []
    behind: list[str] = []
    open_: list[str] = []
    for row in tested:
        if best["method"] not in (row["method"], row["baseline"]):
            continue
        ours, word = row["method"] == best["method"], verdict(row)
        other = system(row["baseline"] if ours else row["method"])
        text = f"{other} (p {_probability(row)})"
        {BETTER: beaten if ours else behind, WORSE: behind if ours else beaten}.get(word, open_).append(text)
    name, value = system(best["method"]), fixed(best["value"], decimals([best["value"]]))
    if beaten and not open_ and not behind:
        return _card(BETTER, metric(best["metric"]).label, f"{name}, {value}: better than {_and(beaten)}")
    parts = [f"{name} leads with {value}"]
    parts += [f"better than {_and(beaten)}"] if beaten else []
    parts += [f"worse than {_and(behind)}"] if behind else []
    parts += [f"undecided against {_and(open_)}"] if open_ else []
    return _card(BETTER if beaten else UNDECIDED, metric(best["metric"]).label, "; ".join(parts))


def _of_grid(best: Row, tested: Sequence[Row]) -> Html:
    """Where the best value is, and at how many values of the setting one method is better than another."""
    setting, value = best["x_name"], fixed(best["value"], decimals([best["value"]]))
    parts = [f"best at {swept(best)}: {system(best['method'])}, {value}"]
    pairs: dict[tuple[str, str], list[str]] = {}
    for row in tested:
        pairs.setdefault((row["method"], row["baseline"]), []).append(verdict(row))
    shown = [pair for pair in pairs if best["method"] in pair][:MOST_PAIRS]
    for method, baseline in shown:
        words = pairs[method, baseline]
        counts = [f"{word} at {words.count(word)}" for word in (BETTER, WORSE, OTHER, UNDECIDED) if word in words]
        found = f"{', '.join(counts)} of {len(words)} values of {setting}"
        parts.append(f"{system(method)} against {system(baseline)}: {found}")
    told = {word for pair in shown for word in pairs[pair]}
    return _card(told.pop() if len(told) == 1 else "", metric(best["metric"]).label, "; ".join(parts))


def _section(facts: Sequence[Html], lead: str) -> Section:
    return Section("in-short", "In short", tag("dl", {"class": "short"}, facts), lead)


def _card(kind: str, name: str, text: str) -> Html:
    return tag("div", {"class": kind or None}, tag("dt", name), tag("dd", text))


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{metric(row['metric']).label} {fixed(row['value'], decimals([row['value']]), sign=True)}" for row in rows
    )


def _probability(row: Row) -> str:
    text = "unknown" if row["p_corrected"] is None else probability(row["p_corrected"])
    return text if text.startswith("<") else f"= {text}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
