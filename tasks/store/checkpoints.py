"""What a stage saves while it works, so that a kill costs seconds: whole or not there, the last two kept."""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.store.artifacts import Store, StoreError, take
from tasks.store.files import file_hash, read_json, sync, write_json
from tasks.store.shards import HASH

HASHES = "hashes.json"
INPUTS = "inputs.json"
KEPT = 2
SAY_SECONDS = 10.0  # that a process may take to die, before it is said


class Checkpoints:
    """Numbered checkpoints of one unfinished stage. `dir` is also where a stage may keep shards that are done."""

    def __init__(self, store: Store, directory: Path, every_seconds: float, warn: Callable[[str], None]) -> None:
        self.dir = directory
        self._store, self._every, self._warn = store, every_seconds, warn
        self._saved_at = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)

    def claim(self, keys: list[str], contents: dict[str, str], *, suspect: bool) -> None:
        """Write down what the stage reads, and keep what is here only if it was made from the same contents.

        Otherwise, and if it is `suspect`, it is moved aside, with a warning that says where to.
        """
        note = {"keys": keys, "contents": contents}
        try:
            same = read_json(self.dir / INPUTS) == note
        except FileNotFoundError:  # new, or of before there were notes
            same = True
        except ValueError:
            same = False
        if suspect or not same:
            moved = self._store.set_aside(self.dir)
            self._warn(f"what {self.dir.name} had was made of other inputs, or of damaged ones; moved to {moved}")
            self.dir.mkdir()
        write_json(self.dir / INPUTS, note)

    @property
    def left(self) -> str:
        """What an unfinished build has left to go on from, in words; empty where there is nothing."""
        if step := self.newest():
            return f"goes on from the checkpoint after step {step:,}"
        files = len(list(self.dir.glob(f"*{HASH}")))
        return f"goes on with {files:,} finished file{'s' if files > 1 else ''}" if files else ""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold what is here against another process, which is waited for where it has not quite ended yet."""
        begun, said = time.monotonic(), False
        with (self._store.root / ".locks" / f"writer-{self.dir.name}.lock").open("w", encoding="utf-8") as file:
            while not take(file.fileno(), fcntl.LOCK_EX):
                if not said and time.monotonic() - begun > SAY_SECONDS:
                    self._warn(f"a process of before still writes to {self.dir}; waiting for its end")
                    said = True
                time.sleep(0.05)
            yield

    def due(self) -> bool:
        """Whether the time set for a checkpoint has passed since the last."""
        return time.monotonic() - self._saved_at >= self._every

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a new directory, then put it in place and drop all but the last two.

        Raises OSError if the disk is full; the checkpoints before stay as they are.
        """
        partial = self.dir / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(partial)
            hashes = {path.name: file_hash(path) for path in sorted(partial.iterdir())}
            for name in hashes:
                sync(partial / name)
            write_json(partial / HASHES, hashes)
            sync(partial)
            target = self._path(step)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            sync(self.dir)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in self._all()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._saved_at = time.monotonic()

    def newest(self) -> int:
        """Step of the newest checkpoint, whole or not; 0 if there is none."""
        return max((int(path.name.removeprefix("step-")) for path in self._all()), default=0)

    def latest(self) -> tuple[int, Path] | None:
        """Step and directory of the newest checkpoint that is whole, or None if there never was one.

        A corrupt one is moved aside and named. Raises StoreError if there were some and none is whole; the next run
        then starts the stage afresh.
        """
        found = self._all()
        for path in reversed(found):
            problem = self._problem(path)
            if problem is None:
                return int(path.name.removeprefix("step-")), path
            moved = self._store.set_aside(path)
            self._warn(f"checkpoint {path.name} is corrupt ({problem}); moved to {moved}")
        if found:
            raise StoreError(
                f"every checkpoint in {self.dir} was corrupt; they were moved to {self._store.root / '.damaged'}\n"
                "run again to start this stage afresh"
            )
        return None

    def _all(self) -> list[Path]:
        return sorted(self.dir.glob("step-*"))

    def _path(self, step: int) -> Path:
        return self.dir / f"step-{step:010d}"

    @staticmethod
    def _problem(path: Path) -> str | None:
        try:
            hashes = read_json(path / HASHES)
            return next((f"{name} has changed" for name, sha in hashes.items() if file_hash(path / name) != sha), None)
        except (FileNotFoundError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
