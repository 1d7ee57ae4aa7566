"""The methods of the flow `distill`, told apart by `kind`, and the stage that each of them is."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from kd_core.models.prompts import Prompts
from kd_core.train.divergence import ForwardKLSettings, GKDSettings, JSSettings, ReverseKLSettings
from kd_core.train.llmr import LLMRSettings
from kd_core.train.minillm import MiniLLMSettings
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
) -> Artifact:
    """Train the pre-distilled student by the method."""
    match method:
        case LLMRSettings():
            return llmr(corpus=corpus, teacher=teacher, student=student, prompt=prompt, settings=method, seed=seed)
        case SeqKDSettings():
            return seqkd(corpus=corpus, outputs=outputs, student=student, prompt=prompt, settings=method, seed=seed)
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
            )
