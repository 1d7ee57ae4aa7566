"""What tells lines and points apart without colour: a shape for each style, and a piece of line for legends."""

import math

from tasks.report.html import Html, tag


def swatch(style: int, line: bool = True) -> Html:
    """A piece of a line with its marker, for a legend."""
    parts = [tag("path", {"class": "line", "d": "M1 7H31"})] if line else []
    box = {"viewBox": "0 0 32 14", "class": f"swatch s{style}", "aria-hidden": "true"}
    return tag("svg", box, parts, marker(style, 16, 7))


def marker(style: int, x: float, y: float, title: str = "") -> Html:
    """A shape of its own for each style: it is told apart without colour too."""
    inner = tag("title", title) if title else None
    if style in (0, 1):
        return tag("circle", {"class": "dot", "cx": x, "cy": y, "r": 3.5}, inner)
    corners = SHAPES[style]
    path = " ".join(f"{round(x + dx, 1):g},{round(y + dy, 1):g}" for dx, dy in corners)
    return tag("polygon", {"class": "dot", "points": path}, inner)


def _polygon(number: int, radius: float, turn: float = -90.0) -> list[tuple[float, float]]:
    angles = [math.radians(turn + 360 * k / number) for k in range(number)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(arms: int, outer: float, inner: float) -> list[tuple[float, float]]:
    return [
        corner
        for pair in zip(_polygon(arms, outer), _polygon(arms, inner, -90 + 180 / arms), strict=True)
        for corner in pair
    ]


SHAPES = {
    2: _polygon(4, 4.6, 45),  # square
    3: _polygon(3, 5.0),  # triangle
    4: _polygon(4, 5.0),  # diamond
    5: _polygon(3, 5.0, 90),  # triangle, pointing down
    6: _star(5, 5.2, 2.2),
    7: _star(4, 5.2, 1.8),
    8: _polygon(6, 4.4),
    9: _polygon(4, 4.6, 45),
}
