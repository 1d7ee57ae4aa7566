"""Which code a stage's result depends on: the syntax of its module and of everything of ours that it imports.

Comments, docstrings and formatting are no part of it, so reformatting rebuilds nothing; an edit to
`kd_core/losses/rewards.py` changes exactly the stages that import it, through however many modules.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "kd_core", "data")
# These carry bytes, order and messages around and never a value that is computed: an edit to them changes no result,
# and must not make a user pay for every stage again.
INFRASTRUCTURE = frozenset(
    {
        "kd_core.models.files",
        "tasks.store.checkpoints",
        "tasks.store.files",
        "tasks.store.fingerprint",
        "tasks.judge.endpoint",
        "tasks.judge.judgements",
        "tasks.store.keys",
        "tasks.store.machine",
        "tasks.store.progress",
        "tasks.store.runs",
        "tasks.store.shards",
        "tasks.store.stage",
        "tasks.store.artifacts",
    }
)


def code_identity(module_name: str) -> dict[str, str]:
    """Relative file -> hash of its syntax, for a module and all of ours that it imports, transitively."""
    found: dict[str, str] = {}
    waiting, seen = [module_name], {module_name}
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None:
            continue
        digest, imports = _read(path, path.stat().st_mtime_ns, name)
        found[path.relative_to(PROJECT).as_posix()] = digest
        for imported in imports - seen - INFRASTRUCTURE:
            seen.add(imported)
            waiting.append(imported)
    return dict(sorted(found.items()))


def module_path(name: str) -> Path | None:
    """The file of one of our modules, or None if there is no such module."""
    base = PROJECT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _read(path: Path, _modified: int, name: str) -> tuple[str, frozenset[str]]:
    """Hash of a file's syntax and the modules of ours that it imports. Cached for as long as the file is untouched."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    imports = frozenset(_imports(tree, name, is_package=path.name == "__init__.py"))
    for node in ast.walk(tree):
        _strip_docstring(node)
    # unparse rather than dump: the text of a program is the same on every Python, the fields of its nodes are not
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16], imports


def _strip_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body[0:1] = [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]


def _imports(tree: ast.Module, name: str, *, is_package: bool) -> set[str]:
    package = name.split(".") if is_package else name.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    ours = {n for n in names if n.split(".")[0] in PACKAGES}
    parents = {".".join(n.split(".")[:i]) for n in ours for i in range(1, n.count(".") + 1)}
    return {n for n in ours | parents if module_path(n) is not None}
