"""What cannot be had of a teacher behind a server, and whether it is there, before anything expensive starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_core.models.loading import ModelSettings, Tokenizer, check_same_tokenizer, load_tokenizer
from kd_core.models.prompts import Chat, rendered
from kd_core.rollout.beam_search import BeamSettings
from kd_core.rollout.scoring import beyond_log_probs
from kd_core.rollout.teacher_labels import LabelSettings
from kd_core.train.divergence import DivergenceSettings, student_writes
from kd_core.train.llmr import LLMRSettings
from tasks.compute.served import probe_once
from tasks.pairs.prompting_student import PromptingStudentSettings
from tasks.pairs.seqkd import SeqKDSettings
from tasks.pairs.teacher import TeacherSettings
from tasks.preflight.models import is_encoder_decoder
from tasks.store.stage import PlanRow

ASKING = ("teacher", "score", "label_outputs", "pre_distill", "llmr", "decode")  # stages that ask it something


def check_served(settings: Mapping[str, Any]) -> None:
    """A run with a teacher behind a server takes nothing of it that it cannot give; nothing is asked of it here.

    Raises ValueError: what cannot be had, and what can.
    """
    teacher, student = settings["teacher"], settings["student"]
    problem = next(_problems(settings), None)
    if problem is not None:
        what, instead = problem
        raise ValueError(f"{what}, and the teacher is behind a server\n{instead}")
    tokenizer = tokenizer_of(teacher)
    if isinstance(teacher.reads, Chat):
        try:
            rendered(tokenizer, teacher.reads)
        except ValueError as error:
            raise ValueError(f"teacher.chat: {error}") from None
    if student.path is not None:
        check_same_tokenizer(tokenizer, load_tokenizer(student.path))


def check_reached(
    teacher: TeacherSettings, plan: Sequence[PlanRow], labels: LabelSettings | None = None, method: Any = None
) -> None:
    """The server answers, by the tokenizer that is named, if anything is to be asked. Raises ValueError if it does not.

    It tells as many likeliest tokens as labels or divergences ask for, where they do. Tried twice, not more.
    """
    if teacher.endpoint is None:
        return
    wanted = {row.stage.split("[")[0] for row in plan if row.status != "hit"}
    asks_top_k = {"label_outputs"}
    if isinstance(method, DivergenceSettings) and student_writes(method):
        asks_top_k.add("divergence")
    top_k = labels.top_k if labels is not None and wanted & asks_top_k else 0
    if top_k or wanted.intersection(ASKING):
        retries = min(teacher.endpoint.retries, 1)
        probe_once(teacher.endpoint, tokenizer_of(teacher), retries=retries, top_k=top_k)


def tokenizer_of(teacher: TeacherSettings) -> Tokenizer:
    """The tokenizer that is here of a teacher that is not."""
    reader: ModelSettings = teacher.reader
    return load_tokenizer(reader.path or str(reader.name), reader.commit)


def _problems(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What takes more than a server gives, and what to do, each in a line; the first is enough."""
    student, method, score = settings["student"], settings.get("method"), settings.get("score")
    evaluation, exposure = settings.get("evaluation"), settings.get("exposure")
    if student.from_ is not None:
        yield "a student from: teacher is made of its weights", "name a student (student.name), or describe one (shape)"
    if is_encoder_decoder(student):
        yield "an encoder–decoder's teacher is one too", "take a student that goes on with what it reads: GPT, Llama, …"
    if isinstance(method, LLMRSettings):
        if method.reverse_kl > 0:
            yield "method.reverse_kl takes its whole distribution", "leave it at 0; start_kl needs no teacher"
        if method.keep == "reverse_kl":
            yield "method.keep reverse_kl takes its whole distribution", "keep by reward, or the last"
        yield from _reward("method.reward", method.reward)
    elif isinstance(method, DivergenceSettings):
        yield from _divergence(method, settings.get("labels"))
    elif method is not None and not isinstance(method, SeqKDSettings | PromptingStudentSettings):
        yield f"{method.kind} learns from its whole distribution", "take method.kind llmr, seqkd or a divergence"
    if score is not None:
        yield from _beams("score.beam", score.beam)
    yield from _labels(settings.get("labels"), settings["teacher"])
    if evaluation is not None:
        if evaluation.sampling is None:
            yield from _beams("evaluation.decoding", evaluation.decoding)
        yield from _reward("evaluation.reward", evaluation.reward)
    if exposure is not None:
        yield "exposure takes its whole distribution", "set exposure=null"


def _divergence(method: DivergenceSettings, labels: LabelSettings | None) -> Iterator[tuple[str, str]]:
    if method.keep == "reverse_kl":
        yield "method.keep reverse_kl takes its whole distribution", "keep by reward, or the last"
    if labels is None:
        yield (
            f"{method.kind} learns from its distributions",
            "learn from its likeliest tokens: --set labels.kind=topk --set labels.top_k=20 --set labels.tail=bucket",
        )
    elif student_writes(method) and labels.kind == "topk" and labels.tail != "bucket":
        yield (
            f"{method.kind} asks for its likeliest tokens after what the student writes",
            "the others are one more outcome there: set labels.tail=bucket",
        )


def _labels(labels: LabelSettings | None, teacher: TeacherSettings) -> Iterator[tuple[str, str]]:
    if labels is None:
        return
    if labels.kind != "topk":
        what = "its states" if labels.kind == "hidden" else "its whole distribution"
        yield f"labels of kind {labels.kind} take {what}", "set labels.kind=topk"
    if teacher.endpoint is not None and teacher.endpoint.log_probs == "echo":
        yield (
            "labels take token ids, and log_probs echo tells tokens by their text",
            "serve it by vLLM, and set teacher.endpoint.log_probs=prompt_logprobs; or set labels=null",
        )


def _beams(name: str, beam: BeamSettings) -> Iterator[tuple[str, str]]:
    if beam.num_beams > 1 or beam.no_repeat_ngram_size > 0:
        yield (
            f"{name} asks for beam search or a ban on repeats",
            f"it writes greedily: --set {name}.num_beams=1 --set {name}.no_repeat_ngram_size=0",
        )


def _reward(name: str, reward: Any) -> Iterator[tuple[str, str]]:
    problem = beyond_log_probs(reward)
    if problem is not None:
        yield f"{name} takes more than log-probabilities", f"{name}.{problem}"
