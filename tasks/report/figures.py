"""What surrounds a plot: its caption, its legend, the numbers behind it; and tables that a phone can scroll."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tasks.formatting import short
from tasks.report.charts import Level, Panel, Point, Series, lines, plot
from tasks.report.html import Html, tag
from tasks.report.marks import swatch
from tasks.report.results import Row

T = TypeVar("T")
TABLE_ROWS = 60  # of the numbers behind a figure; more are thinned out, and the caption says so


def points(rows: Iterable[Row], x: str, y: str = "value") -> list[Point]:
    """Points of rows, in the order of x; what is undefined has none."""
    found = [
        Point(float(row[x]), float(row[y]), _finite(row.get("low")), _finite(row.get("high")))
        for row in rows
        if _finite(row[x]) is not None and _finite(row[y]) is not None
    ]
    return sorted(found, key=lambda point: point.x)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def figure(caption: object, panels: Sequence[Html], key: Html | None, *below: Html | None) -> Html:
    """Panels side by side, as many as fit, under one caption."""
    return tag(
        "figure",
        tag("figcaption", caption),
        key,
        tag("div", {"class": "panels"}, panels),
        *below,
    )


def panels_figure(caption: object, panels: Sequence[Panel], *below: Html | None) -> Html:
    """Panels of lines with one legend, and the numbers behind them."""
    drawn: list[Series | Level] = []
    for panel in panels:
        drawn += [*panel.series, *panel.levels]
    plots = [plot(panel.title, lines(panel), panel.note) for panel in panels]
    return figure(caption, plots, legend(drawn), *below, numbers(panels))


def legend(series: Iterable[Series | Level]) -> Html | None:
    """Each name once, with its line and marker; nothing where there is only one."""
    names = {_called(each): each.style for each in series if each.name}
    if len(names) < 2:
        return None
    return tag("ul", {"class": "legend"}, [tag("li", swatch(style), name) for name, style in names.items()])


def _called(each: Series | Level) -> str:
    return each.group or each.name


def numbers(panels: Sequence[Panel], summary: str = "The numbers") -> Html:
    """Everything that the panels show, as a table that can be unfolded: a row per x and line, a column per panel."""
    found: dict[tuple[str, float | None], dict[int, Point | Level]] = {}
    for column, panel in enumerate(panels):
        for series in panel.series:
            for point in series.points:
                found.setdefault((series.name, point.x), {})[column] = point
        for level in panel.levels:
            found.setdefault((level.name, None), {})[column] = level
    keys = list(found)
    shown = thinned(keys, TABLE_ROWS)
    headers = ["", panels[0].x_label, *(panel.title for panel in panels)]
    rows = [
        [name or "all", short(x) if x is not None else "–", *(_cell(found[name, x].get(i)) for i in range(len(panels)))]
        for name, x in shown
    ]
    caption = "all points" if len(shown) == len(keys) else f"{len(shown)} of {len(keys)} points, evenly spread"
    return folded(summary, table(caption, headers, rows))


def _cell(value: Point | Level | None) -> str:
    if value is None:
        return "–"
    text = short(value.y if isinstance(value, Point) else value.value)
    return text if value.low is None else f"{text} [{short(value.low)}, {short(value.high)}]"


def thinned(items: Sequence[T], number: int) -> list[T]:
    """At most `number` items, evenly spread, the first and the last among them."""
    if len(items) <= number:
        return list(items)
    return [items[round(k * (len(items) - 1) / (number - 1))] for k in range(number)]


def table(caption: str, headers: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table whose first column names its rows, in a box that scrolls sideways where it is too wide."""
    head = tag("tr", [tag("th", {"scope": "col"}, header) for header in headers])
    body = [tag("tr", tag("th", {"scope": "row"}, row[0]), [tag("td", cell) for cell in row[1:]]) for row in rows]
    inner = tag("table", {"class": kind or None}, tag("caption", caption), tag("thead", head), tag("tbody", body))
    return scrolled(inner, caption)


def scrolled(content: Html, label: str) -> Html:
    """A box that scrolls sideways, by the keyboard too."""
    return tag("div", {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": f"Table: {label}"}, content)


def folded(summary: object, *content: object, kind: str | None = None) -> Html:
    """Something behind a line that unfolds it."""
    return tag("details", {"class": kind}, tag("summary", summary), *content)
