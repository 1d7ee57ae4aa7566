"""The flow `distill` on running text: DaD-DAgger and its baselines, recorded by Prefect."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.distill_text_outline import OUTLINE
from flows.stack.recorded import run_in_prefect, takes_parameters_of


@flow(name="distill", persist_result=False)
@takes_parameters_of(OUTLINE)
def distill_text(**parameters: Any) -> State[Any] | tuple[str, str]:
    """See the outline."""
    return run_in_prefect(OUTLINE, parameters)
