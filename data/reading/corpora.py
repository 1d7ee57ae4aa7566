"""Where the files of the raw corpora lie: DailyDialog's official ones, and a sample of OpenSubtitles' movies."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from data.reading.content import expanded

SPLITS = ("train", "validation", "test")
SAMPLE_SEED = 1  # the authors', like the splits' seed: the published corpus is one draw
_OPENSUBTITLES = (
    "dataset.path is the folder OpenSubtitles/xml/en of OPUS's en.zip (release v2018), or a folder of .txt files, "
    "one a movie: a turn a line, a blank line between dialogues"
)
_DAILYDIALOG = (
    "unpack ijcnlp_dailydialog.zip and the zips in it; dataset.path is the directory that holds "
    "train/dialogues_train.txt, validation/dialogues_validation.txt and test/dialogues_test.txt"
)


def dailydialog_files(directory: str | Path) -> dict[str, Path]:
    """Split -> its official file: `<split>/dialogues_<split>.txt`, or that file in the directory itself.

    Raises FileNotFoundError that names what is missing and says where it comes from.
    """
    folder = expanded(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such directory: {folder}\n{_DAILYDIALOG}")
    found, missing = {}, []
    for split in SPLITS:
        name = f"dialogues_{split}.txt"
        file = next((path for path in (folder / split / name, folder / name) if path.is_file()), None)
        if file is None:
            missing.append(name)
        else:
            found[split] = file
    if missing:
        raise FileNotFoundError(f"DailyDialog in {folder} lacks {', '.join(missing)}\n{_DAILYDIALOG}")
    return found


def movie_files(directory: str | Path, num_movies: int) -> dict[str, Path]:
    """Movie -> its first subtitle file by name, for a seeded sample of the movies, in the order of their names.

    A movie is a folder that has `.xml` or `.xml.gz` files, wherever it lies, or a `.txt` file in the directory itself.
    Raises FileNotFoundError for a directory that is not there or has neither.
    """
    folder = expanded(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such directory: {folder}\n{_OPENSUBTITLES}")
    found = {path.stem: path for path in sorted(folder.glob("*.txt")) if path.is_file()} or dict(
        sorted(_first_files(folder))
    )
    if not found:
        raise FileNotFoundError(f"no subtitle files in {folder}\n{_OPENSUBTITLES}")
    movies = sorted(found)
    if len(movies) > num_movies:
        movies = sorted(random.Random(SAMPLE_SEED).sample(movies, num_movies))
    return {movie: found[movie] for movie in movies}


def _first_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path, _, names in os.walk(folder):
        subtitles = [name for name in names if name.endswith((".xml", ".xml.gz"))]
        if subtitles:
            yield os.path.relpath(path, folder), Path(path) / min(subtitles)
