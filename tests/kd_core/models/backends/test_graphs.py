"""Steps over static buffers write what steps over growing ones do; on a CUDA device, as graphs."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_core.models.backends import graphs
from kd_core.models.backends.graphs import Graphs, Shape, in_graphs, rounded, writes_in_graphs
from kd_core.models.policy import PACKED, backend_of, encode, step_decoder
from kd_core.rollout.beam_search import BeamSettings, beam_search
from kd_core.rollout.responses import Rollout
from kd_core.rollout.sampling import SamplingSettings, Writer, sample_from
from tests.kd_core.models.backends.families import tiny

ROWS, LIMIT = 12, 20
LENGTHS = 1 + torch.arange(ROWS) % 7


def prompts(device: str, *, short: bool = False) -> tuple[Tensor, Tensor]:
    ids = 3 + torch.arange(ROWS * 7, device=device).view(ROWS, 7) % 50
    lengths = torch.ones_like(LENGTHS) if short else LENGTHS
    return ids, torch.arange(7, device=device) < lengths.to(device)[:, None]


@torch.no_grad()
def written(model: Any, *, by_graphs: bool, look_every: int = 1, short: bool = False) -> Rollout:
    memory = encode(model, *prompts(model.device, short=short))
    with in_graphs(model) if by_graphs else nullcontext():
        writer = Writer(model, memory, LIMIT, None)
    settings = SamplingSettings(max_new_tokens=LIMIT)
    return sample_from(writer, settings, torch.Generator().manual_seed(0), look_every=look_every)


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PLACES", 4)


def ending(name: str) -> Any:
    """A model that ends in any of six tokens, so that rows are dropped."""
    model = tiny(name)
    model.config.eos_token_id = [1, 5, 9, 13, 17, 21]
    return model


@pytest.mark.usefixtures("few_places")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])  # with groups, windows, softcaps, neither
@pytest.mark.parametrize("look_every", [1, 3])
@pytest.mark.parametrize("short", [False, True])
def test_the_tokens_are_the_same(name: str, look_every: int, short: bool) -> None:
    model = ending(name)
    grown = written(model, by_graphs=False, short=short)
    static = written(model, by_graphs=True, look_every=look_every, short=short)
    assert torch.equal(grown.tokens_BT, static.tokens_BT)
    torch.testing.assert_close(grown.log_prob_BT, static.log_prob_BT, atol=1e-8, rtol=1e-8)
    lengths = grown.mask_BT.sum(dim=1)
    assert lengths.min() < 5 < lengths.max(), "rows are dropped on the way"


def test_shapes_are_rounded_up_so_that_few_are_captured() -> None:
    assert [rounded(rows, 12, 1, 64)[0] for rows in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    assert [rounded(1, 1, places, 150)[1] for places in (1, 64, 65, 128, 129, 150)] == [64, 64, 128, 128, 150, 150]


def test_only_within_it_and_without_beams_are_graphs_used() -> None:
    model = ending("llama")
    with in_graphs(model):
        assert writes_in_graphs(model)
        memory = encode(model, *prompts("cpu"))
        inside = beam_search(model, memory, BeamSettings(num_beams=2, max_new_tokens=5))
    assert not writes_in_graphs(model)
    outside = beam_search(model, memory, BeamSettings(num_beams=2, max_new_tokens=5))
    assert torch.equal(inside.tokens_BT, outside.tokens_BT)


@torch.no_grad()
def test_what_is_over_is_gone_at_once() -> None:
    model = ending("llama")
    memory = encode(model, *prompts("cpu"))
    with in_graphs(model):
        writer = Writer(model, memory, LIMIT, None)
    gc.disable()
    try:
        writer.logits(writer.logits(None).argmax(dim=1))
        decoder = weakref.ref(writer.decoder)
        del writer
        assert decoder() is None, "it would keep its cache and its graphs on the device"
    finally:
        gc.enable()


def test_a_model_is_probed_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> Tensor:
        raise ValueError("no CUDA graph of this model's steps")

    monkeypatch.setattr(Graphs, "run", run)
    model = ending("llama")
    with in_graphs(model):
        assert backend_of(model) is PACKED
        assert writes_in_graphs(model), "afterwards as before"
        with torch.no_grad(), pytest.raises(ValueError, match="no CUDA graph"):
            step_decoder(model, encode(model, *prompts("cpu")), LIMIT).step(torch.arange(ROWS))
    assert backend_of(model) is PACKED
    assert not writes_in_graphs(model)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is asked of `torch.cuda`, without a device; a capture that fails leaves its stream, as PyTorch's does."""
    there = SimpleNamespace(stream=stream(), pools=[], replayed=0)

    @contextmanager
    def on(other: Any) -> Iterator[None]:
        before, there.stream = there.stream, other
        yield
        there.stream = before

    @contextmanager
    def capture(graph: Any, pool: Any) -> Iterator[None]:
        there.pools.append(pool)
        with on(stream()):
            yield
        graph.pool = lambda: pool or "the first one's"

    def replay() -> None:
        there.replayed += 1

    fakes = {
        "Stream": stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=replay),
        "current_stream": lambda: there.stream,
        "set_stream": lambda other: setattr(there, "stream", other),
        "stream": on,
        "graph": capture,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return there


def stream() -> SimpleNamespace:
    return SimpleNamespace(wait_stream=lambda other: None)


def test_a_shape_is_captured_once_and_all_share_their_memory(device: SimpleNamespace) -> None:
    graphs, ran = Graphs(), []

    def function(shape: Shape) -> Tensor:
        ran.append(shape)
        return torch.ones(shape)

    for shape in ((4, 2), (4, 2), (2, 2), (4, 2)):
        assert graphs.run(function, shape, torch.device("cuda")).shape == shape
    assert ran == [(4, 2)] * 2 + [(2, 2)] * 2, "once beforehand, once in the capture"
    assert device.pools == [None, "the first one's"]
    assert device.replayed == 4


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (RuntimeError("it waits\nfor the device"), ValueError, "steps: it waits\nset runtime.cuda_graphs to false"),
        (torch.OutOfMemoryError("tried to allocate 64 GiB"), torch.OutOfMemoryError, "64 GiB"),
    ],
)
def test_a_capture_that_fails_is_said_and_leaves_the_stream_as_it_was(
    device: SimpleNamespace, error: Exception, raised: type[Exception], said: str
) -> None:
    before = device.stream

    def function(shape: Shape) -> Tensor:
        if device.pools:
            raise error
        return torch.ones(shape)

    with pytest.raises(raised, match=said):
        Graphs().run(function, (1, 1), torch.device("cuda"))
    assert device.stream is before


@pytest.mark.cuda
@pytest.mark.usefixtures("few_places")
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_on_a_cuda_device_graphs_write_the_same_tokens(name: str) -> None:
    model = ending(name).cuda()
    grown, replayed = (written(model, by_graphs=by_graphs, look_every=8) for by_graphs in (False, True))
    assert torch.equal(grown.tokens_BT, replayed.tokens_BT)
