"""Who computes the parts of a stage: this process, one after another, or the processes of a cluster.

    def opens(runtime):                      # once a process: what is dear, such as a model
        model = load(…)

        def work(part):                      # once a part: a generator that yields how much of it is done
            for number, batch in enumerate(part):
                …
                yield number
            return result

        return work

    for number, result in engine.map(opens, parts, tell):
        …

Results come in the order in which they are ready. For a cluster `opens` and the parts are pickled: `opens` is a
function at the top of a module, or a `partial` of one.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tasks.engine.group import Work
from tasks.engine.settings import RuntimeSettings

T = TypeVar("T")
R = TypeVar("R")
Steps = Generator[int, None, R]  # yields how much is done, and returns what was made
Opens = Callable[[RuntimeSettings], Callable[[T], Steps[R]]]
Tell = Callable[[int, int], None]  # the number of a part, and how much of it is done


class Engine(Protocol):
    """Computes the parts of a stage."""

    @property
    def about(self) -> dict[str, Any]:
        """What a manifest records of it, where it is not this process."""

    def map(self, opens: Opens[T, R], parts: Sequence[T], tell: Tell) -> Iterator[tuple[int, R]]:
        """Number and result of every part. Raises what `opens` or its work raises."""


class Team(Engine, Protocol):
    """Processes that can also do one thing together."""

    def together(self, work: Work[T], tell: Callable[[T], None]) -> int:
        """Let all run `work` at once, as the ranks of one group, and tell what they yield; returns how many do.

        Raises what the work raises, and WorkerDiedError where one of them dies; all the others are ended then.
        """


class Local:
    """This process, one part after another, in their order."""

    def __init__(self, runtime: RuntimeSettings) -> None:
        self._runtime = runtime
        self.about: dict[str, Any] = {}

    def map(self, opens: Opens[T, R], parts: Sequence[T], tell: Tell) -> Iterator[tuple[int, R]]:
        """See `Engine`. Nothing is opened for no parts."""
        work = opens(self._runtime) if parts else None
        for number, part in enumerate(parts):
            assert work is not None
            tell(number, 0)
            for done, result in told(work(part)):
                if result is None:
                    tell(number, done)
                else:
                    yield number, result


def told(steps: Steps[R]) -> Iterator[tuple[int, R | None]]:
    """How much is done and None, time and again, and in the end 0 and the result, which is not None."""
    while True:
        try:
            yield next(steps), None
        except StopIteration as end:
            yield 0, end.value
            return


def finished(steps: Steps[R]) -> R:
    """What steps end in, with nobody told of them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
