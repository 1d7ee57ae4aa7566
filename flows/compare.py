"""The flow `compare`: several variants of one named run, over shared stages, in one table."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.compare_outline import OUTLINE
from flows.stack.recorded import run_in_prefect
from tasks.store.stage import RuntimeSettings


@flow(name="compare", persist_result=False)
def compare(
    run: str,
    variants: dict[str, dict[str, Any]],
    seeds: list[int] = [0, 1, 2],  # noqa: B006 (never changed)
    sweep: str | None = None,
    values: list[float] = [],  # noqa: B006 (never changed)
    settings: dict[str, Any] = {},  # noqa: B006 (never changed)
    workers: int = 1,
    catalogue: str | None = None,
    runtime: RuntimeSettings = RuntimeSettings(),  # noqa: B008 (frozen)
) -> State[Any] | tuple[str, str]:
    """Compare variants of one named run, at several values of a setting, with several seeds.

    Args:
        run: the named run that all of them are
        variants: label → the settings that make it, by dotted name
        seeds: each variant is run with each
        sweep: a setting that is varied for every variant, such as method.alpha
        values: of the setting that is varied
        settings: what differs from the named run in all variants, by dotted name
        workers: cells that are computed side by side, each on its share of the CPUs
        catalogue: the file that names the run; by default the prefect.yaml of the project
        runtime: device, threads and checkpoints; changes no result
    """
    parameters = locals().copy()  # exactly the run's parameters: this is the first statement
    return run_in_prefect(OUTLINE, parameters)
