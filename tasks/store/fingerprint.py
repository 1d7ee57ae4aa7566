"""Which code a stage's result depends on: the syntax of every definition that it reaches, by name.

A definition is a function, a class or a variable at the top of a module. From a stage's function on, every name that
stands for a definition of ours is followed, through however many modules. Where a definition stands is no part of it:
a file that is moved or renamed changes nothing, and neither do comments, docstrings, formatting, the annotations of
functions, or how an import is called. An edit to `reward_to_go` changes exactly the stages that reach it.
"""

import ast
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tasks.store.source import EFFECTS, Definition, Reference, Sources

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "kd_core", "data")
# These carry bytes, order and messages around and never a value that is computed: an edit to them changes no result,
# and must not make a user pay for every stage again. A package stands for all that is in it.
INFRASTRUCTURE = (
    "kd_core.models.files",
    "tasks.compute.alarms",
    "tasks.compute.track",
    "tasks.endpoints",
    "tasks.engine",
    "tasks.store",
)


@dataclass(frozen=True)
class Code:
    """One definition that a stage reaches: what it computes, and the file in which it stands today."""

    digest: str
    path: str


def code_identity(function: Callable[..., Any]) -> dict[str, str]:
    """Name -> digest of every definition that a function reaches, itself included; empty where it has no source."""
    return {name: each.digest for name, each in reached(function.__module__, function.__qualname__).items()}


@cache
def reached(module: str, qualname: str) -> dict[str, Code]:
    """What `code_identity` names, with where it stands. Read once a process: the code that runs does not change."""
    return read_code(sources(), module, qualname)


@cache
def sources() -> Sources:
    """Our own code, as it is when this process first looks."""
    return Sources(PROJECT, PACKAGES, INFRASTRUCTURE)


def read_code(sources: Sources, module: str, qualname: str) -> dict[str, Code]:
    """Every definition that a function reaches, by name. Of several with one name each has what it is in its name."""
    found = _reach(sources, Reference(module, qualname.split(".")[0]))
    alike = Counter(each.name for each in found)

    @cache
    def label(reference: Reference) -> str:
        if alike[reference.name] == 1:
            return reference.name
        return f"{reference.name}~{_digest(found[reference].form, lambda other: other.name)[:6]}"

    codes: dict[str, Code] = {}
    for reference, each in found.items():
        codes[label(reference)] = Code(_digest(each.form, label), each.path)
    return dict(sorted(codes.items()))


def _reach(sources: Sources, start: Reference) -> dict[Reference, Definition]:
    """A definition and all that it mentions, and so on; what importing their modules does goes with them."""
    found: dict[Reference, Definition] = {}
    waiting = [start]
    while waiting:
        reference = waiting.pop()
        module = sources.module(reference.module)
        if reference in found or module is None or reference.name not in module.statements:
            continue
        found[reference] = module.definition(reference.name)
        parts = reference.module.split(".")
        waiting += [Reference(".".join(parts[: i + 1]), EFFECTS) for i in range(len(parts))]
        waiting += found[reference].mentions
    return found


def _digest(form: Any, label: Callable[[Reference], str]) -> str:
    text = json.dumps(form, separators=(",", ":"), default=label)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def stages() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Name of a stage -> (module, arguments) of the functions of that name that are decorated with `@stage`."""
    found = defaultdict(list)
    for path in sorted((PROJECT / "tasks").rglob("*.py")):
        module = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "stage" for each in node.decorator_list):
                names = frozenset(each.arg for each in (*node.args.args[1:], *node.args.kwonlyargs))
                found[node.name].append((module, names))
    return dict(found)
