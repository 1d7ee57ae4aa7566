"""Identity of what lies outside the project: local files by content, packages by version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with `~` as home; `~name` of a user that there is not stays as it is, and nothing will be there."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def path_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of a directory's files with their relative names (hidden ones left out).

    Read in pieces, and remembered for as long as size and modification time stay the same.
    Raises FileNotFoundError for a path that is not there.
    """
    path = expanded(path)
    if path.is_file():
        return _file_hash(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or directory: {path}\nname the one that you have")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{_file_hash(file)}\n".encode())
    return digest.hexdigest()


def files_hash(files: Mapping[str, Path]) -> str:
    """SHA-256 of some files' contents with the names they go by, in the order given."""
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0{_file_hash(path)}\n".encode())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    stat = path.stat()
    return _file_hash_of(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _file_hash_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_version(package: str) -> str:
    """Version of an installed package. Raises ValueError with the command that installs an absent one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ValueError(f"the package {package} is not installed\npip install {package}") from None


def package_file(module: str, requirement: str, *names: str) -> Path:
    """A file or folder that lies beside the code of an installed package; that code is not imported.

    Raises ValueError with the command that installs `requirement` where there is no such package or file.
    """
    spec = util.find_spec(module)
    package = requirement.partition("==")[0]
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {package} is not installed\npip install {requirement}")
    path = Path(spec.submodule_search_locations[0]).joinpath(*names)
    if not path.exists():
        raise ValueError(f"the package {package} has no {'/'.join(names)}\npip install {requirement}")
    return path
