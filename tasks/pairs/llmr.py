"""The stage `llmr`: policy gradient on the student's own outputs, rewarded by the teacher's logits."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.models.policy import Model
from kd_core.models.prompts import Prompts
from kd_core.models.token_rows import token_names
from kd_core.train.llmr import Experience, LLMRSettings, train_llmr
from kd_core.train.ranks import Ranks
from kd_core.train.state import StepMetrics
from tasks.compute.device import device_of, teacher_devices
from tasks.compute.models import LoadedModel, load_artifact, load_pair
from tasks.compute.served import ANSWERS
from tasks.compute.training import last_validation, mean_of, mean_of_last_tenth, run_training
from tasks.pairs.inputs import read_sources, read_split, validation_sources
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage, trains

LOGGED_ROLLOUTS = 4  # written down at each look: enough to read, little enough to keep
TRUNCATED_ALARM = 0.5  # share of rollouts without an end above which the run says so

ROLLOUTS = pa.schema(
    [
        ("step", pa.int64()),
        ("rollout", pa.int32()),  # which of those that were written down at this step; an input may have several
        ("id", pa.int64()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("token_id", pa.int32()),
        ("q_value", pa.float32()),
        ("value", pa.float32()),
        ("reward", pa.float32()),
        ("gain", pa.float32()),
        ("log_prob", pa.float32()),
    ]
)


@trains()
@stage
def llmr(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    prompt: Prompts,
    settings: LLMRSettings,
    seed: int,
) -> None:
    """Train the pre-distilled student by LLMR: model/, training_log.parquet and rollouts.parquet."""
    answers = build.checkpoints.dir / ANSWERS
    teacher_model, student_model = pair = load_pair(
        teacher, student, teacher_devices(build.runtime), answers, build.runtime.sharded
    )
    limit = settings.max_source_tokens
    train = read_sources(corpus, "train", pair, prompt, limit)
    validation = validation_sources(corpus, pair, prompt, settings)
    start = start_of(build, student, student_model, settings) if settings.start_kl > 0 else None
    seen: dict[int, Experience] = {}
    log = run_training(
        build,
        student_model,
        settings.optimizer,
        lambda state: train_llmr(
            state,
            teacher_model.model,
            train,
            validation,
            settings,
            seed,
            start=start,
            num_tokens=student_model.num_tokens,
            observe=seen,
        ),
        settings.steps,
        RolloutLog(student_model, read_split(corpus, "train", ("id",))["id"], seen),
    )
    truncated = mean_of(log, "truncated")
    build.record(
        reward_last_tenth=mean_of_last_tenth(log, "reward"),
        truncated_share=truncated,
        rollout_tokens=sum(row.values["tokens"] for row in log[1:]),
        **last_validation(log),
    )
    if truncated > TRUNCATED_ALARM:
        what = "dropped" if settings.reward.truncated == "drop" else "bootstrapped"
        build.warn(
            f"{truncated:.0%} of the rollouts hit the limit of {settings.sampling.max_new_tokens} tokens "
            f"and were {what}; raise lengths.target"
        )


def start_of(build: Build, student: Artifact, loaded: LoadedModel, settings: LLMRSettings) -> Model:
    """The student as it starts, trained no more."""
    if build.runtime.shares_out("student"):  # a sharded model has no copy
        return load_artifact(student, device_of(build.runtime), sharded=True).model
    return frozen_copy(loaded.model, settings.optimizer.precision)


def frozen_copy(student: Model, precision: str) -> Model:
    """The student as it starts, trained no more and rounded as it will be; what is frozen of it is there once."""
    shared = {id(x): x for x in (*student.parameters(), *student.buffers()) if not x.requires_grad}
    copy = deepcopy(student, shared)
    for parameter in copy.parameters():
        if parameter.requires_grad and precision == "bfloat16_weights":
            parameter.data = parameter.data.bfloat16()
        parameter.requires_grad_(requires_grad=False)
    return copy


def first_rollouts(part: Experience) -> list[tuple[int, dict[str, list[Any]]]]:
    """The first few of a micro-batch: the row of each one's source, and what there is of each of its tokens."""
    columns = {
        "token_id": part.tokens_BT,
        "q_value": part.q_value_BT,
        "value": part.value_BT,
        "reward": part.reward_BT,
        "gain": part.gain_BT,
        "log_prob": part.log_prob_BT,
    }
    lists = {name: x_BT[:LOGGED_ROLLOUTS].tolist() for name, x_BT in columns.items()}
    lengths = part.mask_BT[:LOGGED_ROLLOUTS].sum(dim=1).tolist()
    return [
        (source, {name: rows[i][: lengths[i]] for name, rows in lists.items()})
        for i, source in enumerate(part.source_B[:LOGGED_ROLLOUTS].tolist())
        if lengths[i]  # else it only keeps step
    ]


class RolloutLog:
    """A few rollouts of each look at the validation set, token by token: what the teacher rewarded.

    `seen` holds this rank's rows of the last update, by micro-batch.
    """

    def __init__(self, student: LoadedModel, ids: list[int], seen: dict[int, Experience]) -> None:
        self._student, self._ids, self._seen = student, ids, seen
        self._rows: list[dict[str, Any]] = []

    def add(self, row: StepMetrics) -> None:
        """Note the first few rollouts of an update after which the validation set was looked at."""
        if "validation_reward" not in row.values or row.step == 0:
            return
        first = [rollout for part in [self._seen.get(0)] if part for rollout in first_rollouts(part)]
        rollouts = [rollout for each in Ranks.here().gather(first) for rollout in each]
        for i, (source, columns) in enumerate(rollouts[:LOGGED_ROLLOUTS]):
            names = token_names(self._student.tokenizer, columns["token_id"])
            for t, name in enumerate(names):
                place = {"step": row.step, "rollout": i, "id": self._ids[source], "position": t, "token": name}
                self._rows.append(place | {name: values[t] for name, values in columns.items()})

    def save(self, directory: Path) -> None:
        """Write rollouts.parquet."""
        pq.write_table(pa.Table.from_pylist(self._rows, schema=ROLLOUTS), directory / "rollouts.parquet")

    def load(self, directory: Path) -> None:
        """Go on from a saved rollouts.parquet."""
        self._rows = pq.read_table(directory / "rollouts.parquet").to_pylist()
