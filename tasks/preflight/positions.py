"""Whether models have enough positions for all that a run on pairs gives them, before anything is trained.

A prompt of N tokens and T written after it take N + T - 1 positions, since the last token is only written. Judging
takes one more: what is cut off is valued by the state after it. An encoder–decoder (BART) has positions for its source
and for what it writes apart; those of the T5 family have no such limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from kd_core.models.loading import ModelSettings, Tokenizer, load_tokenizer
from kd_core.models.prompts import PLACEHOLDER, Chat, Prompts, wrapped_rows
from kd_core.models.token_rows import TokenRows
from kd_core.train.budget import Budget
from kd_core.train.llmr import LLMRSettings
from kd_core.train.supervised import SupervisedSettings
from tasks.compute.models import model_location
from tasks.pairs.evaluate import EvaluationSettings
from tasks.pairs.exposure import ExposureSettings
from tasks.pairs.inputs import read_split
from tasks.pairs.prompting_student import PromptingStudentSettings
from tasks.pairs.score import ScoreSettings
from tasks.pairs.seqkd import SeqKDSettings
from tasks.preflight.models import is_encoder_decoder, positions_of
from tasks.store.artifacts import Artifact
from tasks.store.stage import current_run

Role = Literal["teacher", "student"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """How much a stage gives a model at once: the sources of a split, and what is written after them."""

    stage: str  # as its settings are called
    role: Role
    prompted: bool
    split: str
    rows: int | None  # of the split, the first ones; None = all
    max_source_tokens: int
    tokens: int  # written after each source at most
    references: bool = False  # what stands after a source is its reference, which may be shorter
    judged: bool = False


def needs(
    score: ScoreSettings,
    pre_distill: SupervisedSettings,
    method: Any,
    evaluation: EvaluationSettings,
    exposure: ExposureSettings | None,
) -> Iterator[Need]:
    """The needs of all stages of a run, the earliest first."""
    limits: dict[str, Any]
    prompted_student = isinstance(method, PromptingStudentSettings)
    if not prompted_student:
        beam = score.beam.max_new_tokens
        of = partial(Need, stage="score", split="train", max_source_tokens=score.max_source_tokens)
        yield of(role="teacher", prompted=True, rows=score.max_rows, tokens=beam)
        yield from _supervised("pre_distill", pre_distill, score.max_rows, beam)
        held_out = partial(Need, split="validation", rows=pre_distill.validation_rows, references=True)
        limits = {"max_source_tokens": pre_distill.max_source_tokens, "tokens": pre_distill.max_target_tokens}
        yield held_out(stage="pre_distill", role="teacher", prompted=True, **limits)
    if isinstance(method, SeqKDSettings):
        yield from _supervised("method", method.supervised(), score.max_rows, score.beam.max_new_tokens)
    elif isinstance(method, LLMRSettings | Budget):
        limits = {"max_source_tokens": method.max_source_tokens, "tokens": method.sampling.max_new_tokens}
        for split, rows in (("train", None), ("validation", method.validation_rows)):
            of = partial(Need, stage="method", split=split, rows=rows, **limits)
            yield of(role="student", prompted=False)
            yield of(role="teacher", prompted=True, judged=True)
    read = [("evaluation", evaluation.decode)] + ([("exposure", exposure.decode(0))] if exposure is not None else [])
    for stage, decode in read:
        written = (decode.sampling or decode.decoding).max_new_tokens
        limits = {"max_source_tokens": decode.max_source_tokens, "tokens": written}
        of = partial(Need, stage=stage, split=decode.split, rows=decode.max_rows, **limits)
        yield of(role="teacher", prompted=True, judged=True)
        yield of(role="student", prompted=prompted_student)


def _supervised(stage: str, settings: SupervisedSettings, rows: int | None, written: int) -> Iterator[Need]:
    """Those of a student in supervised training: on the teacher's outputs, and on the validation references."""
    limit, target = settings.max_source_tokens, settings.max_target_tokens
    of = partial(Need, stage=stage, role="student", prompted=False, max_source_tokens=limit)
    yield of(split="train", rows=rows, tokens=min(target, written))
    yield of(split="validation", rows=settings.validation_rows, tokens=target, references=True)


def check_room(
    corpus: Artifact,
    teacher_model: Artifact,
    teacher: ModelSettings,
    student: ModelSettings,
    prompt: Prompts,
    *wanted: Need,
) -> None:
    """Both models have positions for every need. The texts are read only where the settings alone do not make it sure.

    Raises ValueError naming the stage and what to lower. A run that is only planned may have no texts yet.
    """
    positions = {"teacher": positions_of(teacher), "student": positions_of(student)}
    if set(positions.values()) == {None} or current_run().planning:
        return
    location, revision, _ = model_location(teacher_model)
    readers = dict.fromkeys(("teacher", "student"), load_tokenizer(location, revision))
    if isinstance(prompt.student, Chat) and student.path is not None:
        readers["student"] = load_tokenizer(student.path)  # same tokens, a chat template of its own
    apart = {"teacher": is_encoder_decoder(teacher), "student": is_encoder_decoder(student)}
    for need in wanted:
        most, reader = positions[need.role], _Reader(readers[need.role], prompt, apart[need.role])
        if most is None or reader.bound(need) <= most:
            continue
        tokens = reader.longest(need, corpus)
        if tokens > most:
            what = "judges" if need.judged else "is given"
            raise ValueError(
                f"{need.stage}: the {need.role} has {most} positions, and {what} up to {tokens} tokens at once\n"
                "lower lengths.source or lengths.target (or what the stage sets of its own), or take a model with more"
            )


@dataclass(frozen=True)
class _Reader:
    """How a model reads and writes: an encoder–decoder's sources take positions of their own."""

    tokenizer: Tokenizer
    prompt: Prompts
    is_encoder_decoder: bool

    def bound(self, need: Need) -> int:
        """Positions that no row can exceed, by the settings alone."""
        template = len(self.rows(need, [""]).flat)
        return self.at_once(need, need.max_source_tokens - 1 + template, need.tokens)

    def longest(self, need: Need, corpus: Artifact) -> int:
        """Positions that the longest row takes."""
        texts = read_split(corpus, need.split, ("source", "target"), need.rows)
        written = [need.tokens] * len(texts["source"])
        if need.references:
            written = TokenRows.targets(self.tokenizer, texts["target"], need.tokens).lengths.tolist()
        read = self.rows(need, texts["source"]).lengths.tolist() if texts["source"] else []
        return max((self.at_once(need, *each) for each in zip(read, written, strict=True)), default=0)

    def at_once(self, need: Need, read: int, written: int) -> int:
        """Positions of a row of so many tokens."""
        return max(read, written + need.judged) if self.is_encoder_decoder else read + written - 1 + need.judged

    def rows(self, need: Need, sources: list[str]) -> TokenRows:
        """The sources as the model reads them."""
        read = self.prompt.of_student(is_encoder_decoder=self.is_encoder_decoder)
        read = self.prompt.teacher if need.prompted else read
        ends = self.is_encoder_decoder or (isinstance(read, str) and read.endswith(PLACEHOLDER))
        return wrapped_rows(self.tokenizer, read, sources, need.max_source_tokens, ends=ends)
