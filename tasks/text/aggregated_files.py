"""What a round adds to the data, as files: a row a prediction, with the student's context and the true token.

Shape legend: M windows, L tokens and P predictions of a window.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kd_core.losses.soft_targets import TeacherLabels
from kd_core.windows.cutting import WindowSettings
from kd_core.windows.dad_dagger import Aggregated
from kd_core.windows.train import Below, Tokens, Windows
from kd_core.windows.trunk import TrunkPrecision
from tasks.store.artifacts import Artifact
from tasks.text.window_files import StoredTrunk

AGGREGATED = pa.schema(
    [
        ("round", pa.int32()),
        ("trajectory", pa.int32()),  # where in the training text it starts
        ("step", pa.int32()),  # tokens of the student's own in the context
        ("position", pa.int32()),  # of the true token in the training text
        ("context", pa.list_(pa.int32())),
        ("target", pa.int32()),  # the true token
        ("left", pa.bool_()),  # whether the context's last token is not that of the text
    ]
)


def aggregated_table(part: Aggregated, number: int, context: int) -> pa.Table:
    """A row a prediction, in the order in which training counts them."""
    num_windows, width = part.target_MP.shape
    window_R = np.repeat(np.arange(num_windows), width)
    step_R, trajectory_R = part.step_MP.flatten().cpu().numpy(), part.trajectory_M.cpu().numpy()[window_R]
    ids_ML = part.context_ML.cpu().numpy()
    longest = ids_ML.shape[1]  # packed: each prediction of a window sees one token more, the last one all
    contexts = [ids_ML[window, : longest - width + 1 + row % width] for row, window in enumerate(window_R)]
    return pa.table(
        {
            "round": np.full(len(window_R), number),
            "trajectory": trajectory_R,
            "step": step_R,
            "position": trajectory_R + context + step_R,
            "context": contexts,
            "target": part.target_MP.flatten().cpu().numpy(),
            "left": part.left_MP.flatten().cpu().numpy(),
        },
        schema=AGGREGATED,
    )


def aggregated_set(
    artifact: Artifact,
    settings: WindowSettings,
    labels: TeacherLabels | None,
    precision: TrunkPrecision,
    *,
    stored: bool,
) -> Windows:
    """The windows of a round, with their features where they are kept; see `window_set`."""
    files = sorted(artifact.path.glob("aggregated-*.parquet"))
    rows = pa.concat_tables([pq.read_table(path, columns=["step", "context", "target"]) for path in files])
    width = int(np.max(rows["step"].to_numpy())) if settings.mode == "packed" else 1
    target_MP = torch.from_numpy(rows["target"].to_numpy().astype(np.int64)).unflatten(0, (-1, width))
    below: Below
    if stored:
        below = StoredTrunk.open(artifact.path, "aggregated")
    else:
        whole = rows["context"].take(np.arange(width - 1, len(rows), width)).combine_chunks()  # the longest of each
        ids_ML = whole.flatten().to_numpy().reshape(len(whole), -1).astype(np.int64)
        below = Tokens(torch.from_numpy(ids_ML), width, precision)
    return Windows(below, target_MP, labels)
