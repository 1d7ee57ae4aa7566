"""How numbers are written where people read them: on a terminal, in a report, on a model's card.

A number that is not there is a dash, and a minus is a real one; `plain` makes it one that can be typed.
"""

from collections.abc import Iterable

DASH, MINUS = "–", "−"


def decimals(values: Iterable[float | None]) -> int:
    """Decimals that show about three digits of the largest value."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 3 if largest < 1 else 2 if largest < 100 else 1


def fixed(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with so many decimals, thousands apart; `sign`: with its sign, a minus also where it rounds to 0."""
    return DASH if value is None else f"{value:{'+' if sign else 'z'},.{digits}f}".replace("-", MINUS)


def short(value: float | None, *, sign: bool = False) -> str:
    """A number with four significant digits at most."""
    if value is None:
        return DASH
    kind = ",.0f" if abs(value) >= 1e4 else ".4g"
    return f"{value:{'+' if sign else ''}{kind}}".replace("-", MINUS)


def count(value: int | None) -> str:
    """A whole number, thousands apart."""
    return DASH if value is None else f"{value:,}"


def interval(low: float | None, high: float | None, digits: int, *, sign: bool = False) -> str:
    """`[low, high]`; nothing where there is none."""
    return "" if low is None or high is None else f"[{fixed(low, digits, sign=sign)}, {fixed(high, digits, sign=sign)}]"


def probability(value: float | None) -> str:
    """`0.012`, or `< 0.001`."""
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """In the unit that suits it: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def clock(seconds: float) -> str:
    """`1:05` or `2:00:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float | None) -> str:
    """Bytes in the unit that suits them: 12 B, 3.4 kB, 5.6 MB, 7.8 GB."""
    if num_bytes is None:
        return DASH
    for unit in ("B", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def plain(text: str) -> str:
    """A text of numbers with a minus that can be typed: from a terminal they are copied."""
    return text.replace(MINUS, "-")
