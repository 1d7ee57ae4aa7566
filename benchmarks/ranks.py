"""LLMR's update at SmolLM2-135M's shape by one process and by two that train together, one thread each.

Random weights, a student of 20 of the teacher's 30 layers, prompts of uneven length, responses that all run to the
limit. No Ray: what is timed is the loop, not the start of its processes. Beside the seconds of an update it says where
they go: to other ranks' being late, to what ranks exchange, and to Adam, which every rank repeats; and, of each, the
tokens of its rows and its seconds of CPU, which tell how evenly the work is shared out whatever else the machine does.
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
from kd_core.train.ranks import Mine, Ranks
from kd_core.train.state import OptimizerSettings, TrainState

ROWS, LIMIT = 16, 32  # rows of an update, tokens of a response
UPDATES = 3  # that are timed, after one that is not
STUDENT_LAYERS = 20


@dataclass(frozen=True)
class Timed(Ranks):
    """Ranks that note the seconds of what they do together: `waiting` for the last of them, then the `exchange`.

    And the seconds of CPU in which they do not wait, and the tokens of their rows.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("waiting", "exchange", "adam"), 0.0))
    work: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("tokens", "cpu"), 0.0))

    def mine(self, rows_B: Tensor, micro_batch: int = 0, tokens_B: Tensor | None = None) -> Mine:
        """See `Ranks`."""
        found = super().mine(rows_B, micro_batch, tokens_B)
        if tokens_B is not None:
            self.work["tokens"] += int(tokens_B[found.first : found.first + len(found)].sum())
        return found

    def barrier(self) -> None:
        """See `Ranks`."""
        begun = time.process_time()
        super().barrier()
        self.work["cpu"] -= time.process_time() - begun

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
        parts = {name: [round(each[name], 3) for each in found["ranks"]] for name in ("waiting", "exchange", "adam")}
        of_rank = {name: [round(each[name], 2) for each in found["ranks"]] for name in ("tokens", "cpu")}
        more = {"threads": 1, "ranks": ranks, "of_which": parts, "by_rank": of_rank}
        yield line("ranks", found["update"], alone["update"], "s/update", **sizes, **more)


def by_ranks(size: int, folder: Path) -> dict[str, Any]:
    """Losses and the seconds of an update, of the first of some processes, and where they go in each."""
    multiprocessing.spawn(process, (size, folder), nprocs=size)
    found = [pickle.loads((folder / f"{size}-{rank}.pickle").read_bytes()) for rank in range(size)]
    return {**found[0], "ranks": found}


def process(rank: int, size: int, folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size)
    found = updates(Timed(rank, size))
    (folder / f"{size}-{rank}.pickle").write_bytes(pickle.dumps(found))
    distributed.destroy_process_group()


def updates(ranks: Timed) -> dict[str, Any]:
    """Losses of a few updates, median seconds of one, and means of its parts."""
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
            ranks.work.update(tokens=0.0, cpu=-time.process_time())
        if row.step == UPDATES + 1:
            ranks.work["cpu"] += time.process_time()
            break
        begun = time.perf_counter()
    means = {name: total / UPDATES for name, total in (ranks.seconds | ranks.work).items()}
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
