"""The page: one HTML file that carries its own style and script and asks nothing of any network."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from tasks.formatting import duration
from tasks.report.html import Html, tag
from tasks.report.results import Results, Row, results_of
from tasks.report.section import Section
from tasks.report.sections import (
    curves,
    differences,
    free_running,
    in_short,
    lengths,
    measures,
    overview,
    rollouts,
    samples,
    training,
)
from tasks.store.artifacts import Store, StoreError
from tasks.store.files import atomic_write
from tasks.store.runs import RunRecord

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("script.js")


def write_report(store: Store, run_id: str, output: Path | None = None, *, ending: RunRecord | None = None) -> Path:
    """Write a run's report, whole or not at all, and return its path: <store>/reports/<run id>.html, or `output`.

    `ending` is the run as it will be recorded once its report is there.

    Raises ValueError if there is no such run, StoreError if it cannot be written, or would take the place of the run's
    own after artifacts were deleted: that one may be all that is left of them.
    """
    with results_of(store, run_id, ending) as results:
        text, deleted = render(results), "" if output else results.deleted
    path = (output or report_path(store, run_id)).expanduser().absolute()
    if deleted and path.is_file():
        raise StoreError(
            f"the store has no more all that this run made: deleted: {deleted}\n"
            f"its report of before is kept, {path}; --output FILE writes what is left"
        )
    if path.exists() and not (path.is_file() or path.is_dir()):  # it would be replaced by a plain file
        raise StoreError(f"cannot write {path}: it is a device or a pipe\ngive another place with --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}\ngive another place with --output") from error
    return path


def report_path(store: Store, run_id: str) -> Path:
    """Where a run's report is, unless somebody asked for it elsewhere."""
    return store.root / "reports" / f"{run_id}.html"


def render(results: Results) -> str:
    """The whole page as text."""
    record = results.record
    warnings = overview.warnings(results)
    sections = _sections(results)
    main = tag("main", {"id": "main"}, warnings, [section.html() for section in sections])
    kind = "Comparison" if results.compares else "Run"
    body = tag(
        "body",
        tag("a", {"class": "skip", "href": "#main"}, "Skip to the content"),
        tag("header", _title(results, kind), _theme()),
        tag("div", {"class": "columns"}, _contents(sections, warnings is not None), main),
        tag("footer", tag("p", f"Made by distill-llm: all numbers are in the results. {_question(record)}")),
        tag("script", Html(_asset(SCRIPT))),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{_head(str(record["name"]))}{body}</html>\n'


def _question(record: Row) -> str:
    return f"distill sql \"from metrics where run = '{record['run']}'\""


def _sections(results: Results) -> list[Section]:
    found = [
        in_short.in_short(results),
        measures.metrics(results),
        curves.against_setting(results),
        curves.method_by_method(results),
        differences.differences(results),
        curves.quality_against_variety(results),
        curves.excess_error(results),
        free_running.free_running(results),
        samples.samples(results),
        rollouts.rollouts(results),
        lengths.lengths(results),
        training.training(results),
        overview.what_was_run(results),
    ]
    return [section for section in found if section is not None]


def _head(name: str) -> Html:
    style, script = _asset(STYLE), _asset(SCRIPT)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", f"{name}: report"),
        tag("link", {"rel": "icon", "href": "data:,"}),  # else a browser asks the server for one
        tag("style", Html(style)),
    )


def _title(results: Results, kind: str) -> Html:
    record = results.record
    facts = [kind, record["dataset"], f"seed {record['seed']}" if record["seed"] is not None else None]
    facts += [
        record["state"],
        f"{record['started']:%Y-%m-%d}",
        duration(record["seconds"]) if record["seconds"] is not None else None,
    ]
    return tag(
        "div",
        tag("h1", record["name"]),
        tag("p", {"class": "facts-line"}, " · ".join(str(fact) for fact in facts if fact)),
    )


def _theme() -> Html:
    return tag("button", {"type": "button", "id": "theme", "hidden": True}, "Theme: as the system")


def _contents(sections: Sequence[Section], warned: bool) -> Html:
    links = [("warnings", "Read this first")] if warned else []
    links += [(section.anchor, section.title) for section in sections]
    return tag(
        "nav",
        {"aria-label": "Contents"},
        tag("ol", [tag("li", tag("a", {"href": f"#{anchor}"}, title)) for anchor, title in links]),
    )


def _asset(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """An inline element's text as the content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
