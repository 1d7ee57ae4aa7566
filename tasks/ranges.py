"""Which numbers a run takes: those that torch, numpy, Arrow and DuckDB all can hold.

Each setting checks its own range; here are the limits of the types that hold the numbers, for all of them at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

SEEDS = (0, 2**63 - 1)  # a BIGINT in the results; numpy refuses what is below 0, torch what is beyond 64 bits
WORKERS = (1, 1024)  # threads and processes: beyond it the system gives none, and libraries abort
COUNTS = (-(2**31), 2**31 - 1)  # int32: rows and tokens of the tokenizers, torch's sizes, columns in the results
VOCABULARY = (1, 1_000_000)  # SentencePiece begins with as many pieces; asked for more it never returns
OF_NAME = {
    **dict.fromkeys(("seed", "data_seed", "seeds"), SEEDS),
    **dict.fromkeys(("threads", "workers"), WORKERS),
    "vocab_size": VOCABULARY,
    "limit": (1, 2**31 - 1),
}
FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # the size of a normal one: beyond it lie 0 and infinity


def check_numbers(name: str, value: Any) -> None:
    """Refuse a number that some library cannot hold, in `value` or anywhere inside it.

    `name` is the setting's dotted name; its last part says what the number is. Raises ValueError with the name of the
    first such number.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for inner, item in value.items():
            check_numbers(f"{name}.{inner}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_numbers(name, item)
    elif isinstance(value, int) and not isinstance(value, bool):
        _check_int(name, value)
    elif isinstance(value, float):
        _check_float(name, value)


def _check_int(name: str, value: int) -> None:
    limits = OF_NAME.get(name.rpartition(".")[2])
    low, high = limits or COUNTS
    if not low <= value <= high:
        # the other end of an int32 would read as if the setting took it
        bounds = f"in [{low}, {high}]" if limits else f"at most {high}" if value > high else f"at least {low}"
        raise ValueError(f"{name} must be {bounds}, got {_short(value)}")


def _check_float(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    smallest, largest = FLOAT32
    if value and not smallest <= abs(value) <= largest:
        raise ValueError(f"{name} must be 0 or of a size in [{smallest:.3g}, {largest:.3g}] (float32), got {value}")


def _short(value: int) -> str:
    """A number, or how long it is: Python refuses to write out very long ones."""
    return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
