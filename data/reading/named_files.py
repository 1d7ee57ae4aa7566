"""Files that the user names: what lies at a path, and what is no text although it should be."""

from __future__ import annotations

from pathlib import Path

from data.reading.content import expanded

POINTER = b"version https://git-lfs.github.com/spec/"  # how a file that Git LFS has left out of a clone begins
FETCH = "fetch it: git lfs pull"
CONVERT = "convert the file to UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
_NAME_ANOTHER = "name the file that you have, for example: --set dataset.path=…"
MOST_NULLS = 0.1  # of text's bytes: there is none in UTF-8, and UTF-16 has one in two of a Latin text


def named_file(path: str | Path) -> Path:
    """The file at a path, `~` being home.

    Raises FileNotFoundError if nothing is there, ValueError for what is no plain file, or a pointer in place of one.
    """
    if not str(path).strip():
        raise FileNotFoundError(f"no such file: the path is empty\n{_NAME_ANOTHER}")
    file, path = expanded(path), str(path) if str(path).isprintable() else repr(str(path))
    if file.is_dir():
        raise ValueError(f"{path} is a directory, not a file\nname the file in it")
    if not file.is_file():
        if file.is_symlink():
            raise FileNotFoundError(
                f"no such file: {path}, a link to {file.readlink()}, which is not there\n{_NAME_ANOTHER}"
            )
        if file.exists():
            raise ValueError(f"{path} is no plain file (a pipe, a device)\nsave what it gives as a file, and name that")
        raise FileNotFoundError(f"no such file: {path}\n{_NAME_ANOTHER}")
    check_no_pointer(file)
    return file


def check_no_pointer(file: Path) -> None:
    """Raises ValueError for a file that Git LFS has put in the place of the real one."""
    with file.open("rb") as opened:
        if is_pointer(opened.read(len(POINTER))):
            raise ValueError(f"{file} is a Git LFS pointer, not the file itself\n{FETCH}")


def is_pointer(content: bytes) -> bool:
    """Whether a file's content, or its beginning, is that of a Git LFS pointer."""
    return content.startswith(POINTER)


def check_encoding(file: Path) -> None:
    """Raises ValueError for a text file that is plainly no UTF-8, from its first bytes: UTF-16, UTF-32, binary."""
    with file.open("rb") as opened:
        foreign = foreign_encoding(opened.read(4096))
    if foreign is not None:
        why, advice = foreign
        raise ValueError(f"{file}: not UTF-8: {why}\n{advice}")


def foreign_encoding(content: bytes) -> tuple[str, str] | None:
    """What a text's bytes are in place of UTF-8, and what to do; None where nothing shows it."""
    for mark, name in ((b"\xff\xfe\0\0", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if content.startswith(mark):
            return f"it begins with the byte order mark of {name}", CONVERT.replace("WINDOWS-1252", name)
    if content.count(0) > MOST_NULLS * len(content):
        advice = CONVERT.replace("WINDOWS-1252", "UTF-16")
        return f"it has NUL bytes, the first at byte {content.index(0)}: UTF-16, or no text", advice
    return None


def read_text(file: Path) -> str:
    """The whole of a text file. Raises ValueError for a pointer, and for what is not UTF-8, with its line."""
    check_no_pointer(file)
    check_encoding(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    """The first line that is no UTF-8: a decoder that reads ahead cannot say which it was."""
    begin = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as found:
                at = f"0x{line[found.start]:02x} at byte {begin + found.start}"
                return ValueError(f"{path}:{number}: not UTF-8: {found.reason} {at}\n{CONVERT}")
            begin += len(line)
    return ValueError(f"{path}: not UTF-8: {error.reason}\n{CONVERT}")
