"""Plots as inline SVG: lines with bands, scatter with error bars, histograms. Colours and dashes are the page's CSS.

A panel is 320 wide, about a phone's column, so that its text is read at the size it is written in. Every panel says in
<title> and <desc> what it shows; the numbers themselves are in the table below its figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.formatting import short
from tasks.report.html import Html, join, tag
from tasks.report.marks import marker
from tasks.report.scales import Scale, fitted, tick_labels, ticks

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38
ROW = 30  # of a system in a panel of dots
MARKED = 16  # points of a line; more have no markers


@dataclass(frozen=True)
class Point:
    """A value with its interval, where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A named row of points. The style (0 to 9) is a colour, a dash and a marker."""

    name: str
    style: int
    points: Sequence[Point]
    group: str = ""  # what the legend calls it, where it does not name each line


@dataclass(frozen=True)
class Level:
    """A horizontal line: a system that the x axis says nothing about."""

    name: str
    style: int
    value: float
    low: float | None = None
    high: float | None = None
    group: str = ""  # what the legend calls it, where it does not name each line


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[Level] = field(default_factory=tuple)
    holds: Sequence[float] = ()  # what the y axis must reach: panels to be compared have the same
    note: str = ""  # how to read it, in a sentence


def lines(panel: Panel) -> Html:
    """Lines with their bands, and levels across."""
    x, y = _axes(panel)
    drawn = [_level(level, y) for level in panel.levels]
    bands = [_band(series, x, y) for series in panel.series]
    drawn += [_line(series, x, y) for series in panel.series]
    return _svg(panel, x, y, [*bands, *drawn, _level_names(panel.levels, y)])


def scatter(panel: Panel, x_intervals: dict[str, tuple[float | None, float | None]]) -> Html:
    """A marker per point with its name beside it, and the intervals of both axes as a cross."""
    bounds = [bound for pair in x_intervals.values() for bound in pair]
    x, y = _axes(panel, bounds)
    drawn = [_cross(series, x_intervals.get(series.name, (None, None)), x, y) for series in panel.series]
    return _svg(panel, x, y, [*drawn, _names(panel.series, x, y)])


def dots(title: str, levels: Sequence[Level]) -> Html:
    """A row for each system: its name, and under it its value with the interval around it."""
    bounds = [bound for level in levels for bound in (level.value, level.low, level.high)]
    x, floor = fitted(bounds, 12, WIDTH - 12), 4 + ROW * len(levels)
    at = ticks(x.low, x.high, 4)
    parts = [tag("line", {"class": "grid", "x1": x(v), "x2": x(v), "y1": 2, "y2": floor}) for v in at]
    parts += [
        tag("text", {"class": "tick", "x": x(v), "y": floor + 14, "text-anchor": "middle"}, text)
        for v, text in zip(at, tick_labels(at), strict=True)
    ]
    for row, level in enumerate(levels):
        middle, told = 4 + ROW * (row + 0.72), [tag("text", {"class": "name", "x": 4, "y": 15 + ROW * row}, level.name)]
        if level.low is not None and level.high is not None:
            told.append(tag("path", {"class": "span", "d": f"M{x(level.low):g} {middle:g}H{x(level.high):g}"}))
        told.append(marker(level.style, x(level.value), middle, f"{level.name}: {short(level.value)}"))
        parts.append(tag("g", {"class": f"s{level.style}"}, told))
    described = " ".join(f"{level.name}: {short(level.value)}." for level in levels)
    box = {"viewBox": f"0 0 {WIDTH} {floor + 20}", "role": "img", "class": "panel"}
    drawn = tag("svg", box, tag("title", title), tag("desc", described), parts)
    return plot(title, drawn)


def plot(title: str, drawn: Html, note: str = "") -> Html:
    """A panel under its title, which the panel itself has for those who do not see it, and over how to read it."""
    heading = tag("p", {"class": "plot-title", "aria-hidden": "true"}, title)
    return tag("div", {"class": "plot"}, heading, drawn, tag("p", {"class": "note"}, note) if note else None)


def _names(series: Sequence[Series], x: Scale, y: Scale) -> Html:
    """Each point's name beside it, moved down where it would lie over the one above."""
    lowest = {"start": 0.0, "end": 0.0}
    parts = []
    for top, left, name in sorted((y(p.y), x(p.x), each.name) for each in series for p in each.points):
        anchor = "start" if left < WIDTH * 0.6 else "end"
        height = max(top - 6, lowest[anchor] + 12)
        lowest[anchor] = height
        place = {"x": left + (8 if anchor == "start" else -8), "y": round(height, 1), "text-anchor": anchor}
        parts.append(tag("text", {"class": "name"} | place, name))
    return join(parts)


def histogram(name: str, style: int, shares: Sequence[float], top: float, description: str) -> Html:
    """Bars of shares of one system, in a strip as high as `top`, under which strips of others can stand."""
    width, height = 300, 40
    y = Scale(0.0, top or 1.0, height, 2)
    step = width / max(1, len(shares))
    bars = [
        tag(
            "rect",
            {
                "x": round(i * step, 1),
                "y": y(share),
                "width": round(max(step - 1, 0.5), 1),
                "height": height - y(share),
            },
        )
        for i, share in enumerate(shares)
        if share > 0
    ]
    base = tag("line", {"class": "axis", "x1": 0, "x2": width, "y1": height, "y2": height})
    box = {
        "viewBox": f"0 0 {width} {height + 1}",
        "role": "img",
        "class": f"strip s{style}",
        "preserveAspectRatio": "none",
    }
    return tag("svg", box, tag("title", name), tag("desc", description), bars, base)


def whisker(value: float, low: float | None, high: float | None, scale: Scale) -> Html:
    """An interval on a line with its zero, for a table's cell: the numbers are in the cells beside it."""
    parts = [tag("line", {"class": "zero", "x1": scale(0), "x2": scale(0), "y1": 0, "y2": 20})]
    if low is not None and high is not None:
        parts += [tag("line", {"class": "span", "x1": scale(low), "x2": scale(high), "y1": 10, "y2": 10})]
        parts += [
            tag("line", {"class": "span", "x1": scale(end), "x2": scale(end), "y1": 6, "y2": 14}) for end in (low, high)
        ]
    parts += [tag("circle", {"cx": scale(value), "cy": 10, "r": 4})]
    decided = low is not None and high is not None and (low > 0 or high < 0)
    box = {"viewBox": f"{scale.start:g} 0 {scale.end - scale.start:g} 20", "aria-hidden": "true"}
    return tag("svg", box | {"class": "whisker decided" if decided else "whisker"}, parts)


def _axes(panel: Panel, more_x: Sequence[float | None] = ()) -> tuple[Scale, Scale]:
    points = [point for series in panel.series for point in series.points]
    heights = [value for p in points for value in (p.y, p.low, p.high)]
    heights += [value for level in panel.levels for value in (level.value, level.low, level.high)]
    heights += panel.holds
    x = fitted([*(p.x for p in points), *more_x], LEFT, WIDTH - RIGHT, margin=0.03)
    return x, fitted(heights, HEIGHT - BOTTOM, TOP)


def _svg(panel: Panel, x: Scale, y: Scale, drawn: Sequence[Html | None]) -> Html:
    box = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "class": "panel"}
    return tag("svg", box, tag("title", panel.title), tag("desc", describe(panel)), _grid(panel, x, y), drawn)


def describe(panel: Panel) -> str:
    """What a panel shows, in words: each line's ends and extremes."""
    parts = [f"{panel.y_label} against {panel.x_label}." if panel.x_label else f"{panel.y_label}."]
    for series in panel.series:
        ys, called = [p.y for p in series.points], f"{series.name}: " if series.name else ""
        if len(ys) == 1:
            parts.append(f"{called}{short(ys[0])} at {short(series.points[0].x)}.")
        elif ys:
            parts.append(
                f"{called}from {short(ys[0])} at {short(series.points[0].x)} to {short(ys[-1])} at "
                f"{short(series.points[-1].x)}; lowest {short(min(ys))}, highest {short(max(ys))}."
            )
    parts += [f"{level.name}: {short(level.value)} throughout." for level in panel.levels]
    return " ".join(parts)


def _grid(panel: Panel, x: Scale, y: Scale) -> Html:
    counted = all(point.x == round(point.x) for series in panel.series for point in series.points)
    across, up = ticks(x.low, x.high, 5, whole=counted), ticks(y.low, y.high, 5)
    parts = [tag("line", {"class": "grid", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": y(v), "y2": y(v)}) for v in up]
    parts += [
        tag("text", {"class": "tick", "x": LEFT - 6, "y": y(v) + 4, "text-anchor": "end"}, text)
        for v, text in zip(up, tick_labels(up), strict=True)
    ]
    parts += [
        tag("text", {"class": "tick", "x": x(v), "y": HEIGHT - BOTTOM + 15, "text-anchor": "middle"}, text)
        for v, text in zip(across, tick_labels(across), strict=True)
    ]
    floor = HEIGHT - BOTTOM
    parts.append(tag("line", {"class": "axis", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": floor, "y2": floor}))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", {"class": "label", "x": middle, "y": HEIGHT - 6, "text-anchor": "middle"}, panel.x_label))
    return join(parts)


def _level(level: Level, y: Scale) -> Html:
    band = None
    if level.low is not None and level.high is not None:
        box = {
            "x": LEFT,
            "width": WIDTH - RIGHT - LEFT,
            "y": y(level.high),
            "height": round(y(level.low) - y(level.high), 1),
        }
        band = tag("rect", box | {"class": "band"})
    line = tag("path", {"class": "line", "d": f"M{LEFT} {y(level.value):g}H{WIDTH - RIGHT}"})
    return tag("g", {"class": f"level s{level.style}"}, band, line)


def _level_names(levels: Sequence[Level], y: Scale) -> Html:
    """Each level's name above it at the right end, moved down where it would lie over the one above."""
    lowest, parts = 0.0, []
    for top, name in sorted((y(level.value) - 4, level.name) for level in levels):
        lowest = max(top, lowest + 12)
        place = {"x": WIDTH - RIGHT - 2, "y": round(lowest, 1), "text-anchor": "end"}
        parts.append(tag("text", {"class": "name"} | place, name))
    return join(parts)


def _band(series: Series, x: Scale, y: Scale) -> Html | None:
    sure = [(p.x, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
    if len(sure) < 2:
        return None
    upper = [f"{x(at):g} {y(high):g}" for at, _, high in sure]
    lower = [f"{x(at):g} {y(low):g}" for at, low, _ in reversed(sure)]
    return tag("path", {"class": f"band s{series.style}", "d": f"M{'L'.join(upper + lower)}Z"})


def _line(series: Series, x: Scale, y: Scale) -> Html:
    path = "L".join(f"{x(p.x):g} {y(p.y):g}" for p in series.points)
    parts = [tag("path", {"class": "line", "d": f"M{path}"})] if len(series.points) > 1 else []
    if len(series.points) <= MARKED:
        parts += [
            marker(series.style, x(p.x), y(p.y), f"{series.name} {short(p.x)}: {short(p.y)}".strip())
            for p in series.points
        ]
    return tag("g", {"class": f"s{series.style}"}, parts)


def _cross(series: Series, wide: tuple[float | None, float | None], x: Scale, y: Scale) -> Html:
    parts = []
    for p in series.points:
        if p.low is not None and p.high is not None:
            parts.append(tag("path", {"class": "span", "d": f"M{x(p.x):g} {y(p.low):g}V{y(p.high):g}"}))
        low, high = wide
        if low is not None and high is not None:
            parts.append(tag("path", {"class": "span", "d": f"M{x(low):g} {y(p.y):g}H{x(high):g}"}))
        parts.append(marker(series.style, x(p.x), y(p.y), f"{series.name}: {short(p.x)}, {short(p.y)}"))
    return tag("g", {"class": f"s{series.style}"}, parts)
