"""LLMR's update at SmolLM2-135M's shape by one process and by two that train together, one thread each.

Random weights, a student of 20 of the teacher's 30 layers, prompts of uneven length, responses that all run to the
limit. No Ray: what is timed is the loop, not the start of its processes. Beside the seconds of an update it says where
they go: to other ranks' being late, to what ranks exchange, and to Adam, which every rank repeats.
"""

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.common import line
from benchmarks.decoder_only import BEGIN, PAD, SMOLLM2_135M, prompt_lengths
from kd_core.losses.rewards import RewardSettings
from kd_core.models.token_rows import TokenRows
from kd_core.rollout.sampling import SamplingSettings
from kd_core.train.batches import BatchSettings, Sources
from kd_core.train.llmr import LLMRSettings, train_llmr
from kd_core.train.ranks import Ranks
from kd_core.train.state import OptimizerSettings, TrainState

ROWS, LIMIT, UPDATES = (
    16,
    32,
    3,
)  # rows of an update, tokens of a response; updates that are timed, after one that is not
STUDENT_LAYERS = 20


@dataclass(frozen=True)
class Timed(Ranks):
    """Ranks that note the seconds of what they do together: `waiting` for the last of them, then the `exchange`."""

    seconds: dict[str, float] = field(default_factory=lambda: {"waiting": 0.0, "exchange": 0.0, "adam": 0.0})

    def timed(self, name: str, function: Callable[[], Any]) -> Any:
        """What a function returns."""
        begun = time.perf_counter()
        found = function()
        self.count(name, begun)
        return found

    def count(self, name: str, begun: float) -> None:
        """Add what has passed since then."""
        self.seconds[name] += time.perf_counter() - begun

    def gather(self, own: Any) -> Any:
        """See `Ranks`."""
        self.timed("waiting", self.barrier)
        return self.timed("exchange", partial(super().gather, own))

    def add_gradients(self, parameters: Any) -> None:
        """See `Ranks`."""
        self.timed("waiting", self.barrier)
        self.timed("exchange", partial(super().add_gradients, parameters))


def run() -> Iterator[dict[str, Any]]:
    """Seconds an update by one and by two processes; the reference is one."""
    with tempfile.TemporaryDirectory() as folder:
        alone, together = (by_ranks(size, Path(folder)) for size in (1, 2))
    assert all(alone["losses"]), "nothing is learnt"
    for one, other in zip(alone["losses"], together["losses"], strict=True):
        assert abs(one - other) < 1e-4 * abs(one), f"other losses: {alone['losses']}, {together['losses']}"
    sizes = {"rows": ROWS, "max_new_tokens": LIMIT, "layers": [SMOLLM2_135M["num_hidden_layers"], STUDENT_LAYERS]}
    for found, ranks in ((alone, 1), (together, 2)):
        parts = {name: round(found[name], 3) for name in ("waiting", "exchange", "adam")}
        yield line(
            "ranks", found["update"], alone["update"], "s/update", **sizes, threads=1, ranks=ranks, of_which=parts
        )


def by_ranks(size: int, folder: Path) -> dict[str, Any]:
    """What the first of some processes has found."""
    multiprocessing.spawn(process, (size, folder), nprocs=size)
    found: dict[str, Any] = pickle.loads((folder / f"{size}.pickle").read_bytes())
    return found


def process(rank: int, size: int, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size)
    found = updates(Timed(rank, size))
    if rank == 0:
        (folder / f"{size}.pickle").write_bytes(pickle.dumps(found))
    distributed.destroy_process_group()


def updates(ranks: Timed) -> dict[str, Any]:
    """Losses of a few updates, median seconds of one, and mean seconds of its parts."""
    teacher, student = (llama(seed, layers) for seed, layers in enumerate((30, STUDENT_LAYERS)))
    sources = prompts(ROWS * (UPDATES + 2))
    settings = LLMRSettings(
        steps=UPDATES + 2,  # the last looks at the validation set: it is not timed
        validate_every=0,
        validation_rows=1,
        sampling=SamplingSettings(max_new_tokens=LIMIT, top_k=2),
        reward=RewardSettings(truncated="bootstrap"),  # no response ends
        batch=BatchSettings(micro_batch_tokens=10**6, micro_batch_rows=ROWS, micro_batches=1),
        optimizer=OptimizerSettings(learning_rate=1e-5),
    )
    state = TrainState.start(student, settings.optimizer, ranks)
    adam = {"begun": 0.0}
    state.optimizer.register_step_pre_hook(lambda *_: adam.update(begun=time.perf_counter()))
    state.optimizer.register_step_post_hook(lambda *_: ranks.count("adam", adam["begun"]))
    losses, times, begun = [], list[float](), 0.0
    for row in train_llmr(state, teacher, sources, sources, settings, 0):
        if 1 < row.step <= UPDATES + 1:
            times.append(time.perf_counter() - begun)
            losses.append(row.values["loss"])
        if row.step == 1:
            ranks.seconds.update(dict.fromkeys(ranks.seconds, 0.0))
        if row.step == UPDATES + 1:
            break
        begun = time.perf_counter()
    means = {name: seconds / UPDATES for name, seconds in ranks.seconds.items()}
    return {"losses": losses, "update": statistics.median(times), **means}


def llama(seed: int, layers: int) -> Any:
    """Random weights; no response ends before the limit."""
    torch.manual_seed(seed)
    vocabulary = SMOLLM2_135M["vocab_size"]
    ends = {"eos_token_id": vocabulary, "pad_token_id": PAD, "bos_token_id": BEGIN}
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**SMOLLM2_135M, **ends, "num_hidden_layers": layers})).eval()


def prompts(rows: int) -> Sources:
    """Prompts of uneven length, the same for both."""
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> Tensor:
        return torch.randint(3, SMOLLM2_135M["vocab_size"], (length,), generator=generator)

    read = TokenRows.of([words(length).tolist() for length in prompt_lengths(rows, generator).tolist()])
    return Sources(read, read)
