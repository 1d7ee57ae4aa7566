"""Many questions at once to one endpoint: what was answered before is not asked again, and what comes is kept."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tasks.endpoints.answers import Answers
from tasks.endpoints.endpoint import Endpoint, EndpointError, Stopped
from tasks.engine.local import Steps, finished


def ask_all(
    opened: Callable[[], Endpoint],
    answers: Answers,
    questions: Mapping[str, Any],
    ask: Callable[[Endpoint, Any], dict[str, Any]],
    in_flight: int,
) -> dict[str, dict[str, Any]]:
    """What `asking` ends in."""
    return finished(asking(opened, answers, questions, ask, in_flight))


def asking(
    opened: Callable[[], Endpoint],
    answers: Answers,
    questions: Mapping[str, Any],
    ask: Callable[[Endpoint, Any], dict[str, Any]],
    in_flight: int,
) -> Steps[dict[str, dict[str, Any]]]:
    """The answer to each question, by the same keys: `ask` is called for those that `answers` lacks.

    opened: the endpoint, called if anything is missing. ask: what is kept of the answer to a question, as JSON; called
    in as many threads as there may be requests in flight. Yields how many answers are there. After a failure, and when
    it is closed, what is on its way is still waited for, and kept. Raises EndpointError, with how many answers are
    kept, and what else `ask` raises.
    """
    found = {key: answers.read(key) for key in questions}
    missing = [key for key, answer in found.items() if answer is None]
    if missing:
        yield from _ask_missing(opened(), answers, {key: questions[key] for key in missing}, ask, in_flight, len(found))
        found |= {key: answers.read(key) for key in missing}
    yield len(found)
    return {key: answer for key, answer in found.items() if answer is not None}  # none is: nothing deletes them


def _ask_missing(
    endpoint: Endpoint,
    answers: Answers,
    missing: Mapping[str, Any],
    ask: Callable[[Endpoint, Any], dict[str, Any]],
    in_flight: int,
    total: int,
) -> Iterator[int]:
    known = total - len(missing)
    failures: list[Exception] = []

    def ask_one(key: str, question: Any) -> None:
        try:
            answers.ask_once(key, lambda: ask(endpoint, question), endpoint.wait)
        except Stopped:
            pass  # by a failure that is in the list, or by the user
        except Exception as error:
            failures.append(error)
            endpoint.stop.set()  # here, where no further request can slip in between

    try:
        with ThreadPoolExecutor(in_flight, thread_name_prefix="ask") as pool:
            futures = [pool.submit(ask_one, key, question) for key, question in missing.items()]
            try:
                for done, _ in enumerate(as_completed(futures), start=1):
                    if failures:
                        raise failures[0]
                    yield known + done
            except BaseException:
                endpoint.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except EndpointError as error:
        problem, _, advice = str(error).partition("\n")
        kept = known + sum(answers.read(key) is not None for key in missing)
        raise EndpointError(f"{problem}; {kept} of {total} answers are kept\n{advice}") from None
