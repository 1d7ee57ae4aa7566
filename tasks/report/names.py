"""How systems and metrics are called on the page, and which direction is better."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.systems import SYSTEMS

UP, DOWN, NEITHER = 1, -1, 0
NUM_STYLES = 8  # that can be told apart without colour; two more are neutral, for what students are measured against
TEACHER, UNTRAINED = 0, 9

REFERENCE_SYSTEMS = ("teacher", "student", "prompting_student")  # what students are measured against


@dataclass(frozen=True)
class Metric:
    """A metric as people call it, which direction is better, and what it says."""

    label: str
    better: int = NEITHER
    meaning: str = ""


METRICS = {
    "bleu_2": Metric("BLEU-2", UP, "n-grams up to 2 shared with the reference, computed as the LLMR paper's code does"),
    "bleu_4": Metric("BLEU-4", UP, "n-grams up to 4 shared with the reference, computed as the LLMR paper's code does"),
    "sacrebleu_2": Metric("sacreBLEU-2", UP, "BLEU of order 2 with sacreBLEU's own tokeniser and smoothing"),
    "sacrebleu_4": Metric("sacreBLEU-4", UP, "BLEU of order 4 with sacreBLEU's own tokeniser and smoothing"),
    "rouge_1": Metric("ROUGE-1", UP, "words shared with the reference (F1, stemmed)"),
    "rouge_2": Metric("ROUGE-2", UP, "word pairs shared with the reference (F1, stemmed)"),
    "rouge_l": Metric("ROUGE-L", UP, "longest common subsequence with the reference (F1, stemmed)"),
    "rouge_lsum": Metric("ROUGE-Lsum", UP, "ROUGE-L line by line, over the whole summary"),
    "distinct_1": Metric("Dist-1", UP, "different words per word written: how varied the outputs are"),
    "distinct_2": Metric("Dist-2", UP, "different word pairs per word written, also across outputs"),
    "distinct_within_1": Metric("Dist-1 within", UP, "different words per word, within outputs"),
    "distinct_within_2": Metric("Dist-2 within", UP, "different word pairs per pair, within outputs"),
    "equal": Metric("Equal", DOWN, "outputs that another output of the system equals: stock replies"),
    "repetition": Metric("Repetition", DOWN, "word 4-grams of an output that stood in it before"),
    "length": Metric("Length", NEITHER, "tokens per output, its end included"),
    "truncated": Metric("Cut off", DOWN, "outputs that hit the length limit before they ended"),
    "reward": Metric("Reward", UP, "what the teacher's logits say of an output, per token (LLMR, Eq. 3)"),
    "gain": Metric("Gain", UP, "the reward summed over an output: what LLMR maximises (Eq. 1)"),
    "log_prob": Metric("Teacher's log-prob.", UP, "the teacher's log-probability of what the system wrote"),
    "teacher_entropy": Metric("Teacher's entropy", NEITHER, "how unsure the teacher is after what the system wrote"),
    "reverse_kl": Metric("Reverse KL", DOWN, "KL(system ‖ teacher) on what the system wrote, exposure bias and all"),
    "forward_kl": Metric("Forward KL", DOWN, "KL(teacher ‖ system) on what the system wrote, exposure bias and all"),
    "overlap": Metric("Overlap", UP, "of the 16 likeliest next tokens, those that system and teacher have in common"),
    "cross_entropy": Metric("Cross-entropy", DOWN, "nats per token of the true text"),
    "cross_entropy_bits": Metric("Cross-entropy, bits", DOWN, "the same in bits"),
    "perplexity": Metric("Perplexity", DOWN, "exp of the cross-entropy on the true text"),
    "free_running_ce": Metric(
        "Free-running CE", DOWN, "nats per token of the true text after what the system itself has written"
    ),
    "left_text": Metric("Left the text", NEITHER, "how often the system writes another token than the text has"),
    "g_eval": Metric("G-Eval", UP, "a judge model's score of the continuation"),
    "g_eval_true": Metric("G-Eval, true", NEITHER, "the judge's score of the true continuation"),
    "g_eval_normalised": Metric("G-Eval, normalised", UP, "the score as a share of that of the true continuation"),
    "g_eval_refused": Metric("G-Eval, refused", NEITHER, "continuations that the judge would not score"),
    "g_eval_unparsed": Metric("G-Eval, unread", NEITHER, "replies of the judge that hold no score"),
    "wer": Metric("WER", DOWN, "outputs that are not exactly the reference"),
    "per": Metric("PER", DOWN, "phonemes inserted, deleted or replaced per phoneme of the reference"),
    "exact": Metric("Exact", UP, "outputs equal to the reference"),
}
ROUND = re.compile(r"^round_(\d+)$")  # the student after that round of training
_HIGHER = re.compile(r"bleu|rouge|distinct|reward|gain|accuracy|exact|g_?eval")
_LOWER = re.compile(r"loss|perplexity|entropy|error|truncated|^[wp]er$")


def metric(name: str) -> Metric:
    """What is known of a metric; of an unknown one its name, and a direction only where the name tells."""
    if name in METRICS:
        return METRICS[name]
    better = UP if _HIGHER.search(name) else DOWN if _LOWER.search(name) else NEITHER
    return Metric(name.replace("_", " "), better)


def system(name: str, cell: str = "") -> str:
    """`LLMR`, or `LLMR (alpha 0.5)`. The names that a comparison gave its variants stay as they are."""
    known = SYSTEMS.get(name, "") or (ROUND.sub(r"round \1", name) if ROUND.match(name) else "")
    shown = known[:1].upper() + known[1:] if known else name
    return f"{shown} ({cell})" if cell else shown


def swept(row: Mapping[str, Any]) -> str:
    """`alpha 0.5`: the setting that was varied in a comparison, at this row; empty where none was."""
    return f"{row['x_name']} {row['x']:g}" if row.get("x") is not None else ""


def styles(names: Iterable[str]) -> dict[str, int]:
    """A style for each name, in order; references take the two neutral ones. Beyond eight they repeat."""
    found: dict[str, int] = {}
    used = 0
    for name in names:
        if name in found:
            continue
        if name in REFERENCE_SYSTEMS:
            found[name] = TEACHER if name == "teacher" else UNTRAINED
            continue
        found[name] = 1 + used % NUM_STYLES
        used += 1
    return found
