"""The flow `distill` on pairs: its outline with a record in Prefect, its artifacts in Prefect's UI."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.distill_outline import OUTLINE
from flows.stack.recorded import run_in_prefect, takes_parameters_of


@flow(name="distill", persist_result=False)
@takes_parameters_of(OUTLINE)
def distill(**parameters: Any) -> State[Any] | tuple[str, str]:
    """See the outline."""
    return run_in_prefect(OUTLINE, parameters)
