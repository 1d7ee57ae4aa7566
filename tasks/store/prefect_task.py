"""A stage as Prefect shows it."""

import sys
from collections.abc import Callable
from typing import Any

from tasks.messages import first_line
from tasks.store.artifacts import Artifact


def as_prefect_task(name: str, body: Callable[[], Artifact]) -> Artifact:
    """Run the body as a Prefect task inside a flow run, plainly elsewhere.

    Prefect caches nothing: the manifest is the truth. A user's mistake fails the task with its one line, no traceback.
    """
    if "prefect" not in sys.modules:
        return body()
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.client.schemas.objects import State
    from prefect.context import FlowRunContext
    from prefect.states import Failed

    if FlowRunContext.get() is None:
        return body()
    mistakes: list[Exception] = []

    def recorded() -> Artifact | State[Any]:
        try:
            return body()
        except (ValueError, OSError) as error:
            mistakes.append(error)
            return Failed(message=first_line(error))

    state: State[Any] = task(name=name, cache_policy=NO_CACHE, persist_result=False)(recorded)(return_state=True)
    if mistakes:
        raise mistakes[0]
    artifact: Artifact = state.result()
    return artifact
