"""The stage `llmr`: policy gradient on the student's own outputs, rewarded by the teacher's logits."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_core.models.loading import check_same_tokenizer, save_model
from kd_core.train.llmr import Experience, LLMRSettings, train_llmr
from kd_core.training import StepMetrics, TrainState
from tasks.compute.device import device_of
from tasks.compute.models import LoadedModel, load_artifact
from tasks.compute.training import run_training, write_log
from tasks.pairs.inputs import prompted_sources
from tasks.pairs.splits import read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage

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


@stage
def llmr(
    build: Build,
    corpus: Artifact,
    teacher: Artifact,
    student: Artifact,
    prompt: str,
    settings: LLMRSettings,
    seed: int,
) -> None:
    """Train the pre-distilled student by LLMR: model/, training_log.parquet and rollouts.parquet."""
    device = device_of(build.runtime)
    teacher_model, pupil = load_artifact(teacher, device), load_artifact(student, device)
    check_same_tokenizer(teacher_model.tokenizer, pupil.tokenizer)
    train = read_split(corpus, "train", ("id", "source"))
    held_out = read_split(corpus, "validation", ("source",), settings.validation_rows)
    sources, validation = (
        prompted_sources(pupil, prompt, split["source"], settings.max_source_tokens) for split in (train, held_out)
    )
    state = TrainState.start(pupil.model, settings.optimizer)
    seen: list[Experience] = []
    rollouts = RolloutLog(pupil, train["id"])

    def after_step(row: StepMetrics) -> None:
        if "validation_reward" in row.values:
            rollouts.add(row.step, seen[0])

    log = run_training(
        build,
        state,
        lambda s: train_llmr(
            s,
            teacher_model.model,
            sources,
            validation,
            settings,
            seed,
            num_tokens=min(teacher_model.num_tokens, pupil.num_tokens),
            observe=seen,
        ),
        settings.steps,
        save_more=rollouts.save,
        load_more=rollouts.load,
        after_step=after_step,
    )
    save_model(pupil.model, pupil.tokenizer, build.dir / "model")
    write_log(build.dir / "training_log.parquet", log)
    rollouts.save(build.dir)
    _record(build, log, settings)


def _record(build: Build, log: list[StepMetrics], settings: LLMRSettings) -> None:
    tail = log[-max(1, len(log) // 10) :]
    truncated = sum(row.values["truncated"] for row in log) / len(log)
    build.record(
        reward_last_tenth=sum(row.values["reward"] for row in tail) / len(tail),
        truncated_share=truncated,
        rollout_tokens=sum(row.values["tokens"] for row in log),
        validation_reward=log[-1].values["validation_reward"],
    )
    if truncated > TRUNCATED_ALARM:
        what = "dropped" if settings.reward.truncated == "drop" else "bootstrapped"
        build.warn(
            f"{truncated:.0%} of the rollouts hit the limit of {settings.sampling.max_new_tokens} tokens "
            f"and were {what}; raise lengths.target"
        )


class RolloutLog:
    """A few rollouts of each look at the validation set, token by token: what the teacher rewarded."""

    def __init__(self, pupil: LoadedModel, ids: list[int]) -> None:
        self._pupil, self._ids = pupil, ids
        self._rows: list[dict[str, Any]] = []

    def add(self, step: int, part: Experience) -> None:
        """Note the first few rollouts of a micro-batch."""
        tokens, masks = part.tokens_BT[:LOGGED_ROLLOUTS].tolist(), part.mask_BT[:LOGGED_ROLLOUTS].tolist()
        columns = {
            "q_value": part.q_value_BT,
            "value": part.value_BT,
            "reward": part.reward_BT,
            "gain": part.gain_BT,
            "log_prob": part.log_prob_BT,
        }
        numbers = {name: tensor[:LOGGED_ROLLOUTS].tolist() for name, tensor in columns.items()}
        for i, row in enumerate(part.source_B[:LOGGED_ROLLOUTS].tolist()):
            names = self._pupil.tokenizer.convert_ids_to_tokens(tokens[i])
            for t in range(sum(masks[i])):
                place = {"step": step, "rollout": i, "id": self._ids[row], "position": t}
                word = {"token": names[t], "token_id": tokens[i][t]}
                self._rows.append(place | word | {name: values[i][t] for name, values in numbers.items()})

    def save(self, directory: Path) -> None:
        """Write rollouts.parquet."""
        pq.write_table(pa.Table.from_pylist(self._rows, schema=ROLLOUTS), directory / "rollouts.parquet")

    def load(self, directory: Path) -> None:
        """Go on from a saved rollouts.parquet."""
        self._rows = pq.read_table(directory / "rollouts.parquet").to_pylist()
