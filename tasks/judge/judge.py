"""The judge of G-Eval: texts in, verdicts out, through any endpoint that speaks the chat-completions protocol.

    check_judge(settings)                                             # before anything expensive
    verdicts = yield from judge_texts(store.root, settings, items)    # asks only for what was never answered

The endpoint is `judge.base_url` or OPENAI_BASE_URL, the key is OPENAI_API_KEY and is written down nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_core.metrics.g_eval.reply import Reply, Verdict, judged, read_reply
from tasks.endpoints.answers import Answers, content_key
from tasks.endpoints.asking import asking
from tasks.endpoints.endpoint import ContentFilterError, Endpoint, EndpointError, Names
from tasks.engine.local import Steps
from tasks.judge.settings import URL_VARIABLE, Item, JudgeSettings, api_key, endpoint_url

DIRECTORY = "judgements"  # in the store's root
NAMES = Names(
    who="the judge",
    url=f"judge.base_url or {URL_VARIABLE}",
    model="judge.model",
    key="OPENAI_API_KEY",
    parameters="where it refuses a parameter, leave it out: judge.top_logprobs=0, judge.temperature=null or "
    "judge.max_reply_tokens=null",
    other=f"see that it runs and that judge.base_url or {URL_VARIABLE} is right, then run again",
)


def why_no_judge(settings: JudgeSettings | None) -> str | None:
    """Why there can be no G-Eval, as the note of the metrics that are then absent; None if there can."""
    if settings is None:
        return "no judge is configured (evaluation.judge)"
    if endpoint_url(settings) is None:
        return f"no endpoint is configured (judge.base_url or {URL_VARIABLE})"
    return None


def check_judge(settings: JudgeSettings) -> str | None:
    """Ask the judge one short question with the parameters of the real ones, before anything expensive starts.

    Returns a remark if it answers without token probabilities though they were asked for. Raises EndpointError, with
    what to do in a second line, if there is no endpoint or key, or if it does not answer. Tried twice, not more.
    """
    body = settings.parameters() | {"messages": [{"role": "user", "content": "Write this line and no more:\nScore: 3"}]}
    endpoint = _open(settings, retries=min(settings.retries, 1))
    try:
        reply = _ask(endpoint, body)
    finally:
        endpoint.close()
    if settings.top_logprobs and judged(reply).outcome != "weighted":
        return f"the judge at {endpoint.base_url} returns no token probabilities: scores will be as it writes them"
    return None


def judge_texts(
    store_root: Path,
    settings: JudgeSettings,
    items: Sequence[Item],
) -> Steps[list[Verdict]]:
    """The verdict on each item, in order. What was answered before, by whichever run, is not asked again.

    Yields how many different requests are answered. Raises EndpointError if the endpoint cannot be asked; every answer
    that it gave until then is kept under `store_root`.
    """
    url = endpoint_url(settings)
    asked = [{"endpoint": url, "body": settings.body(item)} for item in items]
    keys = [content_key(each) for each in asked]
    different = dict(zip(keys, asked, strict=True))
    answers = Answers(store_root / DIRECTORY)
    with ExitStack() as stack:
        found = yield from asking(
            lambda: stack.enter_context(closing(_open(settings, settings.retries))),
            answers,
            different,
            lambda endpoint, each: {"asked": each, "reply": asdict(_ask(endpoint, each["body"]))},
            settings.requests_in_flight,
        )
    return [judged(Reply(**found[key]["reply"])) for key in keys]


def _ask(endpoint: Endpoint, body: dict[str, Any]) -> Reply:
    try:
        return endpoint.ask("/chat/completions", body, read_reply, "chat completions")
    except ContentFilterError:
        return Reply(text="", refusal="stopped by the endpoint's content filter")


def _open(settings: JudgeSettings, retries: int) -> Endpoint:
    """The endpoint, if it is configured and has the key that it needs. Raises ValueError if not."""
    url = endpoint_url(settings)
    if url is None:
        raise EndpointError(
            f"the judge has no endpoint\nset judge.base_url or {URL_VARIABLE}, such as http://localhost:8000/v1"
        )
    return Endpoint(NAMES, base_url=url, key=api_key(url), timeout_seconds=settings.timeout_seconds, retries=retries)
