"""The methods of the flow `distill`, told apart by `kind`, and the stage that each of them is."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from kd_core.models.prompts import Prompts
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.train.divergence import (
    DivergenceSettings,
    ForwardKLSettings,
    GKDSettings,
    JSSettings,
    ReverseKLSettings,
    reads_outputs,
    student_writes,
)
from kd_core.train.llmr import LLMRSettings
from kd_core.train.minillm import MiniLLMSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.pairs.divergence import divergence
from tasks.pairs.llmr import llmr
from tasks.pairs.minillm import minillm
from tasks.pairs.prompting_student import PromptingStudentSettings
from tasks.pairs.seqkd import SeqKDSettings, seqkd
from tasks.store.artifacts import Artifact


def kind_of(value: Any) -> str:
    """The kind that a method's settings name; llmr where they name none, or are no settings."""
    return str(value.get("kind", "llmr") if isinstance(value, Mapping) else getattr(value, "kind", "llmr"))


class _AnyOf:
    """Has the union in JSON schema as `anyOf`: Prefect's server would refuse settings without a kind under `oneOf`."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: Any, handler: Any) -> dict[str, Any]:
        found: dict[str, Any] = handler(schema)
        return found | {"anyOf": found.pop("oneOf")}


Method = Annotated[
    Annotated[LLMRSettings, Tag("llmr")]
    | Annotated[SeqKDSettings, Tag("seqkd")]
    | Annotated[ForwardKLSettings, Tag("forward_kl")]
    | Annotated[ReverseKLSettings, Tag("reverse_kl")]
    | Annotated[JSSettings, Tag("js")]
    | Annotated[GKDSettings, Tag("gkd")]
    | Annotated[MiniLLMSettings, Tag("minillm")]
    | Annotated[PromptingStudentSettings, Tag("prompting_student")],
    Discriminator(kind_of),
    _AnyOf,
]


def train(
    method: Method,
    corpus: Artifact,
    teacher: Artifact,
    outputs: Artifact,
    student: Artifact,
    prompt: Prompts,
    seed: int,
    labels: Artifact | None = None,
    top_k: int = 0,
) -> Artifact:
    """Train the pre-distilled student by the method; with labels of the teacher's outputs, where it reads any.

    top_k: how many of its likeliest tokens a teacher behind a server is asked for, of what the student writes.
    """
    match method:
        case LLMRSettings():
            return llmr(corpus=corpus, teacher=teacher, student=student, prompt=prompt, settings=method, seed=seed)
        case SeqKDSettings():
            return seqkd(
                corpus=corpus,
                outputs=outputs,
                student=student,
                prompt=prompt,
                settings=method,
                seed=seed,
                labels=labels if reads_labels(method) else None,
            )
        case MiniLLMSettings():
            return minillm(corpus=corpus, teacher=teacher, student=student, prompt=prompt, settings=method, seed=seed)
        case _:
            return divergence.labelled(method.kind)(
                corpus=corpus,
                teacher=teacher,
                outputs=outputs,
                student=student,
                prompt=prompt,
                settings=method,
                seed=seed,
                labels=labels if reads_labels(method) else None,
                top_k=top_k if isinstance(method, DivergenceSettings) and student_writes(method) else 0,
            )


def reads_labels(method: Method) -> bool:
    """Whether the method can learn from labels of the teacher's outputs."""
    if isinstance(method, SeqKDSettings):
        return method.alpha < 1
    return isinstance(method, DivergenceSettings) and reads_outputs(method)


def check_labels(
    labels: LabelSettings | None,
    pre_distill: SupervisedSettings,
    method: Method,
    max_source_tokens: int,
    *,
    served: bool = False,
) -> list[str]:
    """Labels are there where they are wanted, and are of use. Returns a remark where nothing reads any.

    max_source_tokens: how much of a source the teacher read, of whose outputs they are. served: whether it is behind a
    server, which divergences ask for labels as they go. Raises ValueError, with what to do in a second line.
    """
    for name, alpha in (("pre_distill", pre_distill.alpha), ("method", getattr(method, "alpha", 1.0))):
        if alpha < 1 and labels is None:
            raise ValueError(
                f"{name}.alpha {alpha} learns from the teacher's distributions, and none are kept\n"
                f"set labels.kind=hidden (or topk, sampled), or leave {name}.alpha out"
            )
    if labels is None:
        return []
    for name, each, reads in (
        ("pre_distill", pre_distill, pre_distill.alpha < 1),
        ("method", method, reads_labels(method)),
    ):
        limit = getattr(each, "max_source_tokens", max_source_tokens)
        if reads and limit != max_source_tokens:
            raise ValueError(
                f"{name} reads {limit} tokens of a source, and labels are of what the teacher made of "
                f"{max_source_tokens}\nset {name}.max_source_tokens={max_source_tokens}, or leave labels out"
            )
    if not reads_labels(method):
        unread = [f"labels are not made: neither method {method.kind} nor pre_distill with alpha 1 would read them"]
        asked = served and isinstance(method, DivergenceSettings)
        return unread if pre_distill.alpha == 1 and not asked else []
    if isinstance(method, JSSettings | GKDSettings) and labels.kind == "sampled":
        raise ValueError(f"{method.kind} is not linear in p: sampled labels bias it\nset labels.kind=hidden or topk")
    if isinstance(method, GKDSettings) and method.beta == 1 and labels.kind == "topk":
        raise ValueError(
            "gkd with beta 1 is the reverse KL, which divides by what top-k labels leave out, and may round to 0\n"
            f"set {'method.student_share=1' if served else 'labels.kind=hidden'}, or method.beta below 1"
        )
    if isinstance(method, DivergenceSettings) and not student_writes(method) and method.keep != "last":
        raise ValueError(
            f"keep {method.keep} asks the teacher, for which labels stand\nset method.keep=last, or leave labels out"
        )
    return []
