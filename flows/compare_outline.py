"""The outline of a comparison: one named run in several variants, at several values of a setting, with several seeds.

All cells share their stages: what does not depend on the variant is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from flows.catalogue import NamedRun, assigned, find_catalogue, load_catalogue, named_run, put
from flows.outlines import Outline, outline_of, with_precision
from flows.settings import jsonable, nearest, validate
from flows.workers import build_cells
from tasks.compare import Cell, compare
from tasks.store.artifacts import Artifact
from tasks.store.stage import PlanRow, current_run

REFERENCES = {"teacher", "student", "pre_distilled"}  # what every run has besides its own method


@dataclass(frozen=True)
class Task:
    """A cell of the grid with its validated parameters."""

    cell: Cell
    parameters: dict[str, Any]


def pipeline(
    run: str,
    variants: dict[str, dict[str, Any]],
    seeds: list[int] = [0, 1, 2],  # noqa: B006 (never changed)
    sweep: str | None = None,
    values: list[float] = [],  # noqa: B006 (never changed)
    settings: dict[str, Any] = {},  # noqa: B006 (never changed)
    workers: int = 1,
    catalogue: str | None = None,
) -> Artifact:
    """Compare variants of one named run, at several values of a setting, with several seeds.

    Args:
        run: the named run that every variant changes
        variants: label → the settings that make it, by dotted name
        seeds: each variant is run with each
        sweep: a setting that is varied for every variant, such as method.alpha
        values: what sweep is set to, one after another
        settings: what differs from the named run in all variants, by dotted name
        workers: cells that are computed side by side, each on its share of the CPUs; one at a time with Ray
        catalogue: the file that names the run; by default the prefect.yaml of the project
    """
    outline, tasks = _tasks(run, variants, seeds, sweep, values, settings, workers, catalogue)
    current = current_run()
    tasks = [replace(each, parameters=with_precision(each.parameters, current.runtime)) for each in tasks]
    current.record.dataset = jsonable(tasks[0].parameters)["dataset"]
    if workers > 1 and not current.planning and current.runtime.engine == "local":
        build_cells(current, outline.entrypoint, [(task.cell.name, task.parameters) for task in tasks], workers)
    results = {}
    for task in tasks:
        with current.serving(task.cell.name):
            results[task.cell.name] = outline.pipeline(**task.parameters)
    x_name = None if sweep is None else sweep.rpartition(".")[2]
    return compare(results=results, cells=tuple(task.cell for task in tasks), x_name=x_name)


def check(parameters: Mapping[str, Any]) -> list[str]:
    """Check the run of every cell as if it were started by itself. Returns the remarks on them, each once."""
    outline, tasks = _tasks(**parameters)
    first = tasks[0].cell
    beside = [task for task in tasks if (task.cell.x, task.cell.seed) == (first.x, first.seed)]
    same = [
        f"the variants {one.cell.variant} and {other.cell.variant} are the same: nothing that they set differs"
        for one, other in combinations(beside, 2)
        if one.parameters == other.parameters
    ]
    return list(dict.fromkeys([*same, *(remark for task in tasks for remark in outline.check(task.parameters))]))


def _tasks(
    run: str,
    variants: dict[str, dict[str, Any]],
    seeds: Sequence[int],
    sweep: str | None,
    values: Sequence[float],
    settings: dict[str, Any],
    workers: int,
    catalogue: str | None,
) -> tuple[Outline, list[Task]]:
    """The cells of the grid with their parameters. Raises ValueError in one line, naming the cell at fault."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    for name, given in (("variants", variants), ("seeds", seeds)):
        if not given:
            raise ValueError(f"{name} must not be empty\na comparison needs at least one of each")
    for name, shown in (("seeds", [str(seed) for seed in seeds]), ("values", [f"{x:g}" for x in values])):
        twice = next((each for each in shown if shown.count(each) > 1), None)
        if twice is not None:  # cells are told apart by what is shown
            raise ValueError(f"{name} must differ in what is shown of them, got {twice} twice\nleave one of them out")
    if not all(name.strip() and name.isprintable() for name in variants):
        raise ValueError("a variant needs a name that can be seen\ngive it one: variants: {my-variant: {…}}")
    taken = REFERENCES & set(variants)
    if taken:
        raise ValueError(f"a variant cannot be called {min(taken)}: a system of every run is\ncall it something else")
    if (sweep is None) != (not values):
        raise ValueError(
            "sweep (a setting) and values go together, got one without the other\n"
            "for instance: --set sweep=method.optimizer.learning_rate --set 'values=[1e-4, 1e-3]'"
        )
    for where, changes in [("settings", settings), *((f"variant {name}", each) for name, each in variants.items())]:
        _check_not_elsewhere(where, changes, sweep)
    _check_not_elsewhere("sweep", {sweep: values} if sweep is not None else {}, None)
    base = named(run, catalogue)
    outline = outline_of(base.entrypoint)
    tasks = []
    points: list[float | None] = [*values] or [None]
    for x in points:
        for variant, changes in variants.items():
            for seed in seeds:
                name = ", ".join([variant, *([f"{sweep}={x:g}"] if x is not None else []), f"seed={seed}"])
                swept = [(sweep, x)] if sweep is not None else []
                put_in = [*settings.items(), *changes.items(), *swept, ("seed", seed)]
                parameters = _parameters(outline, base, put_in, name)
                tasks.append(Task(Cell(name=name, variant=variant, seed=seed, x=x), parameters))
    return outline, tasks


def _check_not_elsewhere(where: str, changes: Mapping[str, Any], sweep: str | None) -> None:
    """Refuse a setting that a comparison takes from elsewhere, and so would not have from `changes`."""
    for name in changes:
        if name == "seed":
            raise ValueError(f"{where} cannot set seed: each variant is run with each of seeds\n--set 'seeds=[0]'")
        if name.partition(".")[0] == "runtime":
            raise ValueError(f"{where} cannot set {name}: all cells have the comparison's\n--set {name}=…")
        if name == sweep:
            raise ValueError(f"{where} cannot set {name}: it is swept, over values\n--set 'values=[…]'")


def override_cells(parameters: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A comparison's parameters with each `dotted.name=value` put in, also where it is a setting of the compared run.

    That is for all cells, `settings.` before it or not, those of a variant that sets it itself included.
    `variants.NAME.…` is for one variant, and `seed=3` stands for `seeds=[3]`. Raises ValueError for a name that neither
    has, and for a variant that there is not.
    """
    given = dict(parameters)
    for name, value in map(assigned, assignments):
        first, _, rest = name.partition(".")
        if name == "seed":
            given["seeds"] = [value]
        elif first == "variants" and "." in rest:
            given["variants"] = _put_in_variant(_settings_of(given, "variants"), rest, value)
        elif name == "settings" or (first != "settings" and first in OUTLINE.parameters):
            given = put(given, name, value)
        else:
            given = _put_in_all(given, rest if first == "settings" else name, value)
    return given


def _put_in_variant(variants: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    variant = max((each for each in variants if name.startswith(f"{each}.")), key=len, default=None)
    if variant is None:
        wrong = name.partition(".")[0]
        raise ValueError(f"there is no variant {wrong}{nearest(wrong, variants)}\nthere are: {', '.join(variants)}")
    return {**variants, variant: _put_last(_settings_of(variants, variant), name.removeprefix(f"{variant}."), value)}


def _put_in_all(parameters: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    run = parameters.get("run")
    if not isinstance(run, str):
        raise ValueError(f"run must be the name of a run, got {run!r}\n--set run=…")
    known = outline_of(named(run, parameters.get("catalogue")).entrypoint).parameters
    first = name.partition(".")[0]
    if first not in known:
        ours = OUTLINE.parameters
        raise ValueError(
            f"there is no setting {name}{nearest(first, [*known, *ours])}\n"
            f"a comparison has: {', '.join(ours)}; each run in it: {', '.join(known)}"
        )
    variants = _settings_of(parameters, "variants")
    for variant in variants:
        changes = _settings_of(variants, variant)
        if any(f"{name}.".startswith(f"{each}.") for each in changes):  # it sets this, or all that holds it
            variants = {**variants, variant: _put_last(changes, name, value)}
    return {
        **parameters,
        "settings": _put_last(_settings_of(parameters, "settings"), name, value),
        "variants": variants,
    }


def _settings_of(parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = parameters.get(name, {})
    if not isinstance(given, dict):
        raise ValueError(f'{name} must be settings by name, got {given!r}\nfor instance: {{"method.steps": 4}}')
    return given


def _put_last(changes: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**{each: x for each, x in changes.items() if each != name}, name: value}


def named(run: str, catalogue: str | None) -> NamedRun:
    """The named run to compare. Raises ValueError if it is a comparison itself."""
    path = find_catalogue(None if catalogue is None else Path(catalogue))
    found = named_run(load_catalogue(path), run)
    if found.entrypoint == OUTLINE.entrypoint:
        raise ValueError(f"{run} is a comparison itself\nname a run of the flow distill")
    return found


def _parameters(outline: Outline, base: NamedRun, changes: Sequence[tuple[str, Any]], name: str) -> dict[str, Any]:
    given = base.parameters
    try:
        for dotted, value in changes:
            given = put(given, dotted, value)
        valid = validate(outline.parameters, given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    valid.pop("runtime")
    return valid


def asks(parameters: Mapping[str, Any]) -> bool:
    """Whether the compared run does."""
    outline, tasks = _tasks(**parameters)
    return any(outline.asks(task.parameters) for task in tasks)


def check_plan(parameters: Mapping[str, Any], plan: Sequence[PlanRow]) -> str | None:
    """The compared run's own check of its plan."""
    outline, tasks = _tasks(**parameters)
    if outline.check_plan is None:
        return None
    asking = {_endpoints(task.parameters): task.parameters for task in tasks if outline.asks(task.parameters)}
    remarks = [outline.check_plan(each, plan) for each in asking.values()]
    return next((remark for remark in remarks if remark is not None), None)


def _endpoints(parameters: Mapping[str, Any]) -> str:
    """What a run would ask, as text: cells that ask the same are checked once."""
    endpoint, kind = (getattr(parameters.get(x), y, None) for x, y in (("teacher", "endpoint"), ("method", "kind")))
    return repr([endpoint, kind, parameters.get("labels"), parameters.get("evaluation")])


OUTLINE = Outline("flows/compare.py:compare", pipeline, check, asks, check_plan)
