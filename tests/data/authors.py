"""The authors' cleaned dialogues, for comparison only: their licence (CC BY-NC-SA) keeps them out of this project."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("DISTILL_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
CLEANED = SHARED / "cleaned_dialogues"


def authors_file(name: str) -> Path:
    """One of their files; the test is skipped, with the reason, where they are not beside the project."""
    if not (CLEANED / name).is_file():
        pytest.skip("the authors' cleaned dialogues are not beside the project (their licence keeps them out of it)")
    return CLEANED / name


def authors_lines(name: str) -> list[str]:
    """Its lines."""
    return authors_file(name).read_text(encoding="utf-8").rstrip("\n").split("\n")


def authors_rows(name: str) -> list[tuple[str, str]]:
    """The (context, response) rows of one of their CSV files, as they are."""
    with authors_file(name).open(encoding="utf-8", newline="") as file:
        return [(row[0], row[1]) for row in csv.reader(file)][1:]
