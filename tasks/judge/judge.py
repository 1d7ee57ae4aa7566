"""The judge of G-Eval: texts in, verdicts out, through any endpoint that speaks the chat-completions protocol.

    check_judge(settings)                                             # before anything expensive
    verdicts = judge_texts(store.root, settings, items, progress)     # asks only for what was never answered

The endpoint is `judge.base_url` or OPENAI_BASE_URL, the key is OPENAI_API_KEY and is written down nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_core.metrics.g_eval.reply import Reply, Verdict, judged
from tasks.judge.endpoint import Endpoint, JudgeError, Stopped
from tasks.judge.judgements import Judgements, content_key
from tasks.judge.settings import URL_VARIABLE, Item, JudgeSettings, api_key, endpoint_url

DIRECTORY = "judgements"  # in the store's root


def why_no_judge(settings: JudgeSettings | None) -> str | None:
    """Why there can be no G-Eval, as the note of the metrics that are then absent; None if there can."""
    if settings is None:
        return "no judge is configured (evaluation.judge)"
    if endpoint_url(settings) is None:
        return f"no endpoint is configured (judge.base_url or {URL_VARIABLE})"
    return None


def check_judge(settings: JudgeSettings) -> str | None:
    """Ask the judge one short question with the parameters of the real ones, before anything expensive starts.

    Returns a remark if it answers without token probabilities though they were asked for. Raises JudgeError, with what
    to do in a second line, if there is no endpoint or key, or if it does not answer. Tried twice, not more.
    """
    body = settings.parameters() | {"messages": [{"role": "user", "content": "Write this line and no more:\nScore: 3"}]}
    endpoint = _open(settings, retries=min(settings.retries, 1))
    try:
        reply = endpoint.ask(body)
    finally:
        endpoint.close()
    if settings.top_logprobs and judged(reply).outcome != "weighted":
        return f"the judge at {endpoint.base_url} returns no token probabilities: scores will be as it writes them"
    return None


def judge_texts(
    store_root: Path,
    settings: JudgeSettings,
    items: Sequence[Item],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Verdict]:
    """The verdict on each item, in order. What was answered before, by whichever run, is not asked again.

    `progress(done, total)` counts different requests, from the calling thread. Raises JudgeError if the endpoint cannot
    be asked; every answer that it gave until then is kept under `store_root`.
    """
    url = endpoint_url(settings)
    asked = [{"endpoint": url, "body": settings.body(item)} for item in items]
    keys = [content_key(each) for each in asked]
    different = dict(zip(keys, asked, strict=True))
    judgements = Judgements(store_root / DIRECTORY)
    missing = [key for key in different if judgements.read(key) is None]
    if missing:
        known = len(different) - len(missing)
        _ask_all(settings, judgements, {key: different[key] for key in missing}, known, progress)
    progress(len(different), len(different))
    replies = {key: _reply(judgements, key) for key in different}
    return [judged(replies[key]) for key in keys]


def _ask_all(
    settings: JudgeSettings,
    judgements: Judgements,
    missing: dict[str, dict[str, Any]],
    known: int,
    progress: Callable[[int, int], None],
) -> None:
    """Ask for everything that is missing. After a failure what is on its way is still waited for, and kept."""
    endpoint = _open(settings, settings.retries)
    failures: list[Exception] = []

    def judge_one(key: str, asked: dict[str, Any]) -> None:
        try:
            judgements.ask_once(
                key, lambda: {"asked": asked, "reply": asdict(endpoint.ask(asked["body"]))}, endpoint.wait
            )
        except Stopped:
            pass  # by a failure that is in the list, or by the user
        except Exception as error:
            failures.append(error)
            endpoint.stop.set()  # here, where no further request can slip in between

    try:
        with ThreadPoolExecutor(settings.requests_in_flight, thread_name_prefix="judge") as pool:
            futures = [pool.submit(judge_one, key, asked) for key, asked in missing.items()]
            try:
                for done, _ in enumerate(as_completed(futures), start=1):
                    if failures:
                        raise failures[0]
                    progress(known + done, known + len(missing))
            except BaseException:
                endpoint.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except JudgeError as error:
        problem, _, advice = str(error).partition("\n")
        kept = known + sum(judgements.read(key) is not None for key in missing)
        raise JudgeError(f"{problem}; {kept} of {known + len(missing)} answers are kept\n{advice}") from None
    finally:
        endpoint.close()


def _reply(judgements: Judgements, key: str) -> Reply:
    found = judgements.read(key)
    assert found is not None  # it was there a moment ago, and nothing deletes it
    return Reply(**found["reply"])


def _open(settings: JudgeSettings, retries: int) -> Endpoint:
    """The endpoint, if it is configured and has the key that it needs. Raises ValueError if not."""
    url = endpoint_url(settings)
    if url is None:
        raise JudgeError(
            f"the judge has no endpoint\nset judge.base_url or {URL_VARIABLE}, such as http://localhost:8000/v1"
        )
    return Endpoint(base_url=url, key=api_key(url), timeout_seconds=settings.timeout_seconds, retries=retries)
