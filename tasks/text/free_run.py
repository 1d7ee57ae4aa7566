"""The stage `free_run`: one system on held-out text, its loss on exact windows and after tokens of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kd_core.losses.lm_head import token_log_probs
from kd_core.models.policy import head_of
from kd_core.rollout.sampling import SamplingSettings
from kd_core.windows.cutting import contexts, trajectory_starts, window_targets
from kd_core.windows.free_running import free_running
from kd_core.windows.last_block import next_hidden
from tasks.compute.device import teacher_devices
from tasks.compute.models import LoadedModel, load_artifact
from tasks.engine.settings import RuntimeSettings
from tasks.store.artifacts import Artifact
from tasks.store.shards import Making, Shard, Sharded
from tasks.store.stage import Build, stage
from tasks.text.tokens import read_tokens

BATCH_WINDOWS = 256

WINDOWS = pa.schema([("position", pa.int32()), ("nll", pa.float32())])
STEPS = pa.schema(
    [
        ("start", pa.int32()),  # where in the text the true context starts
        ("step", pa.int32()),  # tokens of its own that the system has written before
        ("nll", pa.float32()),  # -log q of the true token, in nats
        ("token_id", pa.int32()),  # what it wrote instead
        ("left", pa.bool_()),  # whether that is another token
    ]
)


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings:
    """What each system is asked of held-out text. Defaults: the paper's."""

    split: Literal["validation", "test"] = "test"
    horizon: int = 10  # tokens that are written from each start
    window_stride: int = 1  # tokens between two windows whose next token is predicted
    start_stride: int = 1  # tokens between two starts of free running
    temperature: float = 1.0
    # free running's contexts keep their length; false: they grow, as where a model writes, at a fraction of the cost
    sliding: bool = field(default=True, metadata={"later": True})
    seed: int = 0  # of free running

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise ValueError(f"split must be validation or test, got {self.split!r}")
        for name in ("horizon", "window_stride", "start_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class FreeRunSettings(HeldOutSettings):
    """The settings of the stage: what is asked, and the context of the run's windows."""

    context: int = 128


Tables = Callable[[LoadedModel, torch.Tensor, FreeRunSettings], Iterator[pa.Table]]
Work = Callable[[Tables], Making]


@stage
def free_run(build: Build, corpus: Artifact, model: Artifact, settings: FreeRunSettings) -> None:
    """Write windows.parquet (the cross-entropy of exact windows) and steps.parquet (free running from them)."""
    length = len(read_tokens(corpus, settings.split))
    windows = len(window_targets(length, settings.context, settings.window_stride))
    starts = len(trajectory_starts(length, settings.context, settings.horizon, settings.start_stride))
    parts = (Shard(("windows.parquet",), _told, windows), Shard(("steps.parquet",), _free, starts * settings.horizon))
    shards = Sharded(build, "predictions", parts)
    shards.make(partial(_opens, corpus, model, settings))
    build.shards.collect(*shards.files)


def _opens(corpus: Artifact, model: Artifact, settings: FreeRunSettings, runtime: RuntimeSettings) -> Work:
    """The model and the text, opened once a process; then what makes one of the two tables."""
    loaded = load_artifact(model, teacher_devices(runtime))
    text_N = read_tokens(corpus, settings.split, loaded.model.device)

    @torch.no_grad()
    def work(of: Tables) -> Making:
        tables: list[pa.Table] = []
        for table in of(loaded, text_N, settings):
            tables.append(table)
            yield sum(map(len, tables))
        return [partial(pq.write_table, pa.concat_tables(tables))]

    return work


def _told(loaded: LoadedModel, text_N: torch.Tensor, settings: FreeRunSettings) -> Iterator[pa.Table]:
    """-log q of the next token after exact windows of the true text."""
    head = head_of(loaded.model, loaded.num_tokens)
    targets = window_targets(len(text_N), settings.context, settings.window_stride).to(text_N.device)
    for target_B in targets.split(BATCH_WINDOWS):
        hidden_BD = next_hidden(loaded.model, contexts(text_N, target_B, settings.context))
        nll_B = -token_log_probs(hidden_BD, head, text_N[target_B])
        yield pa.table({"position": target_B.cpu().numpy(), "nll": nll_B.float().cpu().numpy()}, schema=WINDOWS)


def _free(loaded: LoadedModel, text_N: torch.Tensor, settings: FreeRunSettings) -> Iterator[pa.Table]:
    """The same while the system goes on from its own tokens. All systems are given the same random numbers."""
    start_B = trajectory_starts(len(text_N), settings.context, settings.horizon, settings.start_stride)
    found = free_running(
        loaded.model,
        text_N,
        start_B.to(text_N.device),
        settings.context,
        settings.horizon,
        settings.seed,
        sampling=SamplingSettings(max_new_tokens=1, temperature=settings.temperature),
        sliding=settings.sliding,
        num_tokens=loaded.num_tokens,
        batch_rows=BATCH_WINDOWS,
    )
    for part, first_B in zip(found, start_B.split(BATCH_WINDOWS), strict=True):
        step_BT = torch.arange(settings.horizon).expand(len(first_B), -1)
        columns = {
            "start": first_B.repeat_interleave(settings.horizon),
            "step": step_BT,
            "nll": part.nll_BT.float(),
            "token_id": part.token_BT,
            "left": part.left_BT,
        }
        yield pa.table({name: each.flatten().cpu().numpy() for name, each in columns.items()}, schema=STEPS)
