"""A run's parameters are declared once, by the outline's pipeline: the Prefect flow has the same, and the runtime."""

import subprocess
import sys
from typing import Any

import pytest
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.methods import Method
from flows.outlines import MODULES, Outline, outline_of
from flows.stack.recorded import takes_parameters_of
from kd_core.train.llmr import LLMRSettings
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Artifact


def by_hand(
    text: str,
    method: Method = LLMRSettings(),  # noqa: B008 (frozen)
    limit: int | None = None,
    runtime: RuntimeSettings = RuntimeSettings(),  # noqa: B008 (frozen)
) -> None:
    """Do it.

    Args:
        text: what it is done to
        method: how
        limit: how much of it
        runtime: device, threads, checkpoints, trackers, who makes shards and trains; changes no result
    """


def pipeline(text: str, method: Method = LLMRSettings(), limit: int | None = None) -> Artifact:  # noqa: B008 (frozen)
    """Do it.

    Args:
        text: what it is done to
        method: how
        limit: how much of it
    """
    raise NotImplementedError


def test_a_flow_shows_what_the_pipeline_declares_as_if_it_were_written_out() -> None:
    @takes_parameters_of(Outline("nowhere", pipeline, lambda _: []))
    def made(**parameters: Any) -> dict[str, Any]:
        return parameters

    assert parameter_schema(made) == parameter_schema(by_hand)
    assert made(text="a") == {"text": "a"}


@pytest.mark.parametrize("entrypoint", MODULES)
def test_every_parameter_of_every_flow_is_described_and_has_its_default(entrypoint: str) -> None:
    flow, known = load_flow_from_entrypoint(entrypoint), outline_of(entrypoint).parameters
    schema = flow.parameters.model_dump()
    assert list(schema["properties"]) == list(known)
    assert all(each.get("description") for each in schema["properties"].values())
    optional = {name for name, each in schema["properties"].items() if "default" in each}
    assert optional == set(known) - set(schema["required"])
    assert "Args:" in (flow.description or "")


def test_an_outline_needs_no_prefect() -> None:
    program = f"import sys, {', '.join(MODULES.values())}; sys.exit('prefect' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
