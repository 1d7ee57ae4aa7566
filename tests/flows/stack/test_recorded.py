"""Prefect's limit shows that a device is taken, and stops no run."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.stack.recorded import limit_of, slot
from tasks.compute.device_lock import Device

GPU = Device("cuda:1", "5fd4f087-86f3")


@contextmanager
def no_server() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def test_a_gpus_limit_is_one_for_all_containers_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for node in ("3f2a9c", "77be01"):
        monkeypatch.setattr(platform, "node", lambda node=node: node)
        names.add(limit_of(GPU))
    assert names == {"gpu-5fd4f087"}
    assert limit_of(Device("mps", "mps")) == "gpu-77be01"  # its id says nothing


def test_a_run_goes_on_where_the_server_does_not_answer_and_says_so() -> None:
    said: list[str] = []
    with no_server(), slot(GPU, said.append):
        said.append("computes")
    assert said[0].startswith("Prefect's limit gpu-5fd4f087 does not show that cuda:1 is taken: ")
    assert said[0].endswith("; going on without")
    assert said[1:] == ["computes"]


def test_what_fails_while_a_device_is_held_is_not_taken_for_the_servers_fault() -> None:
    said: list[str] = []
    with pytest.raises(httpx.ConnectError, match="the judge"), no_server(), slot(GPU, said.append):
        raise httpx.ConnectError("the judge")
    assert len(said) == 1
