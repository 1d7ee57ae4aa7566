"""The flow `compare`: several variants of one named run, over shared stages, in one table."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.compare_outline import OUTLINE
from flows.stack.recorded import run_in_prefect, takes_parameters_of


@flow(name="compare", persist_result=False)
@takes_parameters_of(OUTLINE)
def compare(**parameters: Any) -> State[Any] | tuple[str, str]:
    """See the outline."""
    return run_in_prefect(OUTLINE, parameters)
