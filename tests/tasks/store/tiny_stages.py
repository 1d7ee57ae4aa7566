"""Three stages in a row that cost nothing, for tests of the store."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tasks.store.artifacts import Artifact, Store
from tasks.store.progress import NullReporter
from tasks.store.runs import StageRun
from tasks.store.stage import Build, Run, open_run, stage


@stage
def words(build: Build, text: str) -> None:
    """The text itself."""
    (build.dir / "words.txt").write_text(text)
    (build.dir / "more").mkdir()
    (build.dir / "more" / "length.txt").write_text(str(len(text)))


@stage
def upper(build: Build, source: Artifact) -> None:
    """The text in capitals, from a shard."""
    if not build.shards.whole("upper.txt"):
        text = (source.path / "words.txt").read_text()
        build.shards.write("upper.txt", lambda path: path.write_text(text.upper()))
    build.shards.collect("upper.txt")


@stage
def count(build: Build, sources: dict[str, Artifact], letter: str) -> None:
    """How often a letter is there."""
    texts = [path.read_text() for each in sources.values() for path in sorted(each.path.glob("*.txt"))]
    (build.dir / "count.txt").write_text(str(sum(text.count(letter) for text in texts)))


@dataclass
class Listener(NullReporter):
    """What a run has said."""

    outcomes: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stage_finished(self, stage: StageRun) -> None:
        self.outcomes.append((stage.stage, stage.outcome))

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@dataclass(frozen=True)
class Made:
    """A run of all three."""

    run: Run
    said: Listener
    artifacts: dict[str, Artifact]

    @property
    def outcomes(self) -> list[str]:
        return [outcome for _, outcome in self.said.outcomes]

    @property
    def counted(self) -> str:
        return (self.artifacts["count"].path / "count.txt").read_text()


def run_all(store: Store, *, letter: str = "L", name: str = "mine", planning: bool = False) -> Made:
    """Words, upper, count."""
    said, made = Listener(), {}
    with open_run(store, name=name, reporter=said, planning=planning) as run:
        made["words"] = words(text="hello all")
        made["upper"] = upper(source=made["words"])
        made["count"] = count(sources={"a": made["upper"]}, letter=letter)
    return Made(run, said, made)


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit in the middle of a file, later than anything was finished before."""
    time.sleep(0.1)
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
