"""The teacher's labels of its outputs, as training on pairs reads them."""

from kd_core.models.token_rows import TokenRows
from kd_core.rollout.teacher_labels import OutputLabels
from kd_core.train.ranks import Ranks
from tasks.compute.device import device_of
from tasks.labels.files import HEAD, open_labels, read_head
from tasks.pairs.inputs import output_columns
from tasks.store.artifacts import Artifact, StoreError
from tasks.store.stage import Build


def output_labels(build: Build, labels: Artifact, outputs: Artifact, teacher: Artifact | None = None) -> OutputLabels:
    """The labels of every token of the outputs. Of the teacher only its head is read, and that where it is needed.

    Raises StoreError for labels of other outputs than these, or of another teacher.
    """
    read = labels.manifest().inputs
    for name, artifact in (("outputs", outputs), ("teacher", teacher)):
        if artifact is not None and read[name] != artifact.manifest().content:
            raise StoreError(
                f"the labels in {labels.path} are of another {name} than {artifact.path}\n"
                "make labels of these outputs by this teacher: call label_outputs with both"
            )
    head = labels.path / HEAD
    ranks = Ranks.here()
    with ranks.first_alone():
        kept = open_labels(
            sorted(labels.path.glob("labels-*.parquet")),
            build.checkpoints.dir / "labels",
            labels.key,
            read_head(head, device_of(build.runtime)) if head.exists() else None,
            fill=ranks.is_first,
        )
    written = TokenRows.of(output_columns(outputs, "token_ids")["token_ids"].to_pylist())
    return OutputLabels(kept, written.offset_R1[:-1])
