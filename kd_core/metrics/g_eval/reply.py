"""G-Eval: from a judge's reply to a score in [0, 1].

    reply = read_reply(payload)     # of an endpoint that speaks the chat-completions protocol
    verdict = judged(reply)         # a score, or why there is none

A refusal or a reply without a score is no judgement: it is told apart, and never a score of 0.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kd_core.metrics.g_eval.prompt import HIGHEST, LOWEST

# "Score: 4", "**Score**: 4/5", "Score (1-5): 4.5"; not "Score: 4-5", which is no score, nor "Score: -1"
LABEL = r"score\s*(?:\([^)\n]*\))?\s*[*_]*\s*[:=]\s*[*_<]*\s*"
NUMBER = r"([0-9]++(?:\.[0-9]++)?+)(?:\s*/\s*([0-9]++))?+(?!\s*[-–]\s*[0-9])"
LABELLED = re.compile(LABEL + NUMBER, re.IGNORECASE)
ALONE = re.compile(rf"\s*[*_]*{NUMBER}[*_]*\s*\.?\s*")
DECLINING_CHARACTERS = 120  # a refusal begins as one; later on the words may be quoted
DECLINING = re.compile(
    r"\b(?:I(?: a|['’])m sorry|I apologi[sz]e|sorry, but|I (?:can|could) ?not|I can['’]t|I won['’]t|I will not|"
    r"I(?: am|['’]m) (?:unable|not able)|as an AI)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is kept of an answer. Enough to read the score again; small: the reasoning is text, not 20 rows a token.

    text: as written. refusal: what the endpoint itself calls one, or "". cut_off: at the limit of its length.
    alternatives: log-probability (nats) of each token that could have stood where the score stands, if returned.
    """

    text: str
    refusal: str = ""
    cut_off: bool = False
    alternatives: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One continuation, judged. score: in [0, 1], or None with the reason.

    outcome: `weighted` (by token probabilities), `written` (the number as it stands), `refused` or `unparsed`.
    """

    score: float | None
    outcome: Literal["weighted", "written", "refused", "unparsed"]
    reason: str = ""
    text: str = ""


def read_reply(payload: Any) -> Reply:
    """The reply in a chat completion, parsed from JSON.

    Raises ValueError if it is none. Log-probabilities that are missing or malformed count as not returned.
    """
    try:
        choice = payload["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content") or "", message.get("refusal") or ""
    except (LookupError, TypeError, AttributeError):
        raise ValueError("not a chat completion") from None
    if not isinstance(text, str) or not isinstance(refusal, str):
        raise ValueError("not a chat completion in text")
    text, refusal = (each.encode("utf-8", "replace").decode() for each in (text, refusal))  # half an emoji is no text
    if finish == "content_filter":
        refusal = refusal or "stopped by the endpoint's content filter"
    return Reply(text=text, refusal=refusal, cut_off=finish == "length", alternatives=_alternatives(choice))


def judged(reply: Reply) -> Verdict:
    """The verdict in a reply: the expected score where its alternatives are known, else the score as written.

    An answer without a score that begins by declining (`I'm sorry`, `I cannot`, …) counts as refused [ours].
    """
    if reply.refusal:
        return Verdict(score=None, outcome="refused", reason=f"refused: {reply.refusal}", text=reply.text)
    written = written_score(reply.text)
    if written is None:
        if DECLINING.search(reply.text[:DECLINING_CHARACTERS]):
            return Verdict(score=None, outcome="refused", reason="refused in words", text=reply.text)
        reason = "cut off before its score" if reply.cut_off else "no score" if reply.text.strip() else "empty"
        return Verdict(score=None, outcome="unparsed", reason=f"unparsed: {reason}", text=reply.text)
    expected = expected_score(reply.alternatives or {})
    if expected is None or not written.is_integer():  # at 4.5 the alternatives to the token 4 say nothing of the .5
        return Verdict(score=unit_score(written), outcome="written", text=reply.text)
    return Verdict(score=unit_score(expected), outcome="weighted", text=reply.text)


def written_score(text: str) -> float | None:
    """The number after the last `Score:`, or the whole text if it is a number; None if it is not in [1, 5] or over 5.

    `4/5` is 4; `4/10`, `0`, `4-5` and `-1` are no scores on this scale, and are not guessed at.
    """
    labelled = list(LABELLED.finditer(text))
    found = labelled[-1] if labelled else ALONE.fullmatch(text)
    if found is None or found[2] not in (None, str(HIGHEST)):
        return None
    score = float(found[1])
    return score if LOWEST <= score <= HIGHEST else None


def expected_score(alternatives: Mapping[str, float]) -> float | None:
    """The judge's score as an expectation over the tokens it could have written: sum_s p(s) s / sum_s p(s), s = 1..5.

    alternatives: token -> log-probability in nats. White space around a token does not count (` 4` and `4` add up).
    None if none of the tokens is a score. In [1, 5].
    Source: G-Eval (Liu et al. 2023), Eq. 1: score = sum_i p(s_i) s_i. [ours] renormalised over the scores, since an
    endpoint returns the most probable tokens only and some are no scores; without it lost mass would lower the score.
    """
    valid = {str(score): float(score) for score in range(LOWEST, HIGHEST + 1)}
    found = [(valid[token.strip()], log_prob) for token, log_prob in alternatives.items() if token.strip() in valid]
    if not found:
        return None
    most = max(log_prob for _, log_prob in found)
    weights = [math.exp(log_prob - most) for _, log_prob in found]
    return sum(weight * score for weight, (score, _) in zip(weights, found, strict=True)) / sum(weights)


def unit_score(score: float) -> float:
    """A score in [1, 5] on [0, 1]: (s - 1) / 4, so that the worst is 0 and a normalised score is a ratio."""
    return (score - LOWEST) / (HIGHEST - LOWEST)


def _alternatives(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Tokens and log-probabilities at the place of the score, or None where they were not returned.

    The place is found in the tokens' bytes: a token may be part of a character, and its text is then no text.
    """
    try:
        tokens = choice["logprobs"]["content"]
        pieces = [_bytes(token) for token in tokens]
        place = _place_of_score(pieces)
        if place is None:
            return None
        token = tokens[place]
        found = {str(each["token"]): float(each["logprob"]) for each in (*token["top_logprobs"], token)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return {text: log_prob for text, log_prob in found.items() if math.isfinite(log_prob)} or None


def _bytes(token: Mapping[str, Any]) -> bytes:
    given = token.get("bytes")
    return bytes(given) if given is not None else str(token["token"]).encode()


def _place_of_score(pieces: Sequence[bytes]) -> int | None:
    """The index of the token that is the last labelled score (or the only number), if it is one token by itself."""
    # latin-1: a character per byte, so that offsets are the same
    text = b"".join(pieces).decode("latin-1")
    labelled = list(LABELLED.finditer(text))
    found = labelled[-1] if labelled else ALONE.fullmatch(text)
    if found is None:
        return None
    start = 0
    for index, piece in enumerate(pieces):
        if start <= found.start(1) < start + len(piece):
            return index if piece.decode("latin-1").strip() == found[1] else None
        start += len(piece)
    return None
