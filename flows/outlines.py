"""What a flow does, without Prefect: its outline of stages, its parameters, and what is checked before it starts."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.settings import jsonable, signature

if TYPE_CHECKING:
    from tasks.progress import Reporter
    from tasks.stage import Run
    from tasks.store import Artifact, Store

MODULES = {  # a deployment's entrypoint -> where its outline is
    "flows/distill.py:distill": "flows.pipeline",
    "flows/distill_text.py:distill_text": "flows.text_pipeline",
    "flows/compare.py:compare": "flows.comparison",
}


@dataclass(frozen=True)
class Outline:
    """One flow: which stages it calls in which order. `check` refuses, in one line, what cannot end well."""

    entrypoint: str
    pipeline: Callable[..., Artifact]
    check: Callable[[Mapping[str, Any]], None]

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """What a run can be told: name → (type, default)."""
        from tasks.stage import RuntimeSettings

        return signature(self.pipeline) | {"runtime": (RuntimeSettings, RuntimeSettings())}


def outline_of(entrypoint: str) -> Outline:
    """The outline behind a deployment's entrypoint. Raises ValueError for one that is none of ours."""
    if entrypoint not in MODULES:
        raise ValueError(f"there is no flow {entrypoint!r} here\nthere are: {', '.join(MODULES)}")
    outline: Outline = importlib.import_module(MODULES[entrypoint]).OUTLINE
    return outline


def execute(
    outline: Outline,
    store: Store,
    name: str,
    parameters: Mapping[str, Any],
    reporter: Reporter,
    *,
    planning: bool = False,
) -> tuple[Run, Artifact]:
    """Run (or plan) an outline with validated parameters, record it, and rebuild the results' database."""
    from tasks.catalog import build_catalog
    from tasks.stage import RuntimeSettings, open_run

    settings = dict(parameters)
    runtime: RuntimeSettings = settings.pop("runtime")
    outline.check(settings)
    with open_run(
        store,
        name=name,
        flow=outline.entrypoint,
        parameters=jsonable(parameters),
        runtime=runtime,
        reporter=reporter,
        planning=planning,
    ) as run:
        last = outline.pipeline(**settings)
    if not planning:
        build_catalog(store)
    return run, last
