"""The pages of the methods that LLMR is compared with name every setting of theirs, and every metric that is logged."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from kd_core.train.divergence import ForwardKLSettings, GKDSettings, JSSettings, ReverseKLSettings
from kd_core.train.minillm import MiniLLMSettings
from tasks.pairs.seqkd import SeqKDSettings

PAGES = Path(__file__).parents[1] / "docs" / "methods"


def named(*pages: str) -> set[str]:
    text = " ".join((PAGES / f"{page}.md").read_text() for page in pages)
    return set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", text))))


@pytest.mark.parametrize(
    ("settings", "pages"),
    [
        (ForwardKLSettings, ["divergences"]),
        (ReverseKLSettings, ["divergences"]),
        (JSSettings, ["divergences"]),
        (GKDSettings, ["divergences", "gkd"]),
        (MiniLLMSettings, ["divergences", "minillm"]),
        (SeqKDSettings, ["seqkd"]),
    ],
)
def test_every_setting_is_named(settings: Any, pages: list[str]) -> None:
    assert {field.name for field in dataclasses.fields(settings)} - named(*pages) - {"kind"} == set()


def test_every_kind_has_a_command() -> None:
    text = " ".join(path.read_text() for path in PAGES.glob("*.md"))
    kinds = ["forward_kl", "reverse_kl", "js", "gkd", "minillm", "seqkd"]
    assert [kind for kind in kinds if f"method.kind={kind}" not in text] == []
