"""What `free_run` wrote, as arrays and as text.

Shape legend: B starts, T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kd_core.models.loading import Tokenizer
from tasks.store.artifacts import Artifact
from tasks.text.tokens import read_tokens


@dataclass(frozen=True)
class Continuations:
    """Free running from B starts of a split."""

    split: str
    context: int
    start_B: NDArray[np.int64]  # where in the text the true context starts
    token_BT: NDArray[np.int64]
    nll_BT: NDArray[np.float64]  # -log q of the true token, in nats
    left_BT: NDArray[np.bool_]

    @classmethod
    def of(cls, written: Artifact) -> "Continuations":
        """Read steps.parquet of a `free_run`."""
        settings = written.manifest().key_record["settings"]["settings"]
        steps = pq.read_table(written.path / "steps.parquet")
        horizon = int(settings["horizon"])

        def column(name: str, kind: Any) -> Any:
            return steps[name].to_numpy(zero_copy_only=False).astype(kind).reshape(-1, horizon)

        return cls(
            split=str(settings["split"]),
            context=int(settings["context"]),
            start_B=column("start", np.int64)[:, 0],
            token_BT=column("token_id", np.int64),
            nll_BT=column("nll", np.float64),
            left_BT=column("left", np.bool_),
        )

    def texts(
        self, corpus: Artifact, tokenizer: Tokenizer, rows: Sequence[int], shown: int | None = None
    ) -> list[tuple[str, str, str]]:
        """Context (its last `shown` tokens), continuation and true continuation of some starts, as text."""
        text_N, horizon = read_tokens(corpus, self.split).numpy(), self.token_BT.shape[1]
        first_R = self.start_B[list(rows)] + self.context
        seen = min(self.context, shown or self.context)
        parts: list[list[Any]] = [
            [text_N[first - seen : first] for first in first_R],
            list(self.token_BT[list(rows)]),
            [text_N[first : first + horizon] for first in first_R],
        ]
        return list(zip(*(tokenizer.batch_decode(part, skip_special_tokens=True) for part in parts), strict=True))
