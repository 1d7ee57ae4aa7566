"""Source code as definitions that refer to each other, whatever file they stand in and however they are imported.

The form of a definition is its syntax as nested lists, in which a `Reference` stands for every name that means a
definition of ours, and the full dotted name for what comes from elsewhere (`F.linear` is torch.nn.functional.linear).
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EFFECTS = "<module>"  # what importing a module does beyond defining things
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
NOT_COMPUTED = ("ctx", "type_comment", "kind", "type_params", "returns", "annotation")
Binding = tuple[str, str | None]  # a module, and a name in it; None for the module itself


@dataclass(frozen=True)
class Reference:
    """A function, class or variable at the top of a module of ours."""

    module: str
    name: str


@dataclass(frozen=True)
class Definition:
    """What a reference stands for: its form, all that is mentioned in it, and the file."""

    form: list[Any]
    mentions: tuple[Reference, ...]
    path: str


class Sources:
    """The modules under a project's root that are ours; the `opaque` ones are not looked into."""

    def __init__(self, root: Path, packages: Iterable[str], opaque: Iterable[str]) -> None:
        self.root, self._packages, self._opaque = root, frozenset(packages), tuple(opaque)
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> "Module | None":
        """One of our modules, parsed once, or None if there is no such module."""
        if name not in self._modules:
            base = self.root.joinpath(*name.split("."))
            path = next((each for each in (base.with_suffix(".py"), base / "__init__.py") if each.is_file()), None)
            self._modules[name] = None if path is None else Module(self, name, path)
        return self._modules[name]

    def find(self, module: str, name: str | None) -> "Reference | Module | str":
        """What a binding stands for; what is not looked into, by name alone."""
        dotted = module if name is None else f"{module}.{name}"
        if module.split(".")[0] not in self._packages:
            return dotted
        if self._is_opaque(dotted):
            return name or dotted
        holder = self.module(module)
        found = holder.lookup(name) if holder is not None and name is not None else None
        return found or self.module(dotted) or name or dotted

    def _is_opaque(self, dotted: str) -> bool:
        return any(dotted == each or dotted.startswith(f"{each}.") for each in self._opaque)


class Module:
    """One file: what it defines, and what its imports bind."""

    def __init__(self, sources: Sources, name: str, path: Path) -> None:
        self.sources, self.name = sources, name
        self.path = path.relative_to(sources.root).as_posix()
        self._package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.statements: dict[str, list[ast.stmt]] = {}
        self._bindings: dict[str, Binding] = {}
        self._definitions: dict[str, Definition] = {}
        for statement in _without_docstring(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body):
            self._take(statement)

    def _take(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            for each in statement.orelse:
                self._take(each)
            return
        nodes = _in_scope([statement])
        self._bindings |= self.imported(nodes)
        if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
            return
        for name in set(_bound(nodes)) or {EFFECTS}:
            self.statements.setdefault(name, []).append(statement)

    def imported(self, nodes: Iterable[ast.AST]) -> dict[str, Binding]:
        """What the imports among some nodes bind: name -> what it stands for."""
        bindings: dict[str, Binding] = {}
        for each in nodes:
            if isinstance(each, ast.Import):
                for alias in each.names:
                    top = alias.name.split(".")[0]
                    bindings[alias.asname or top] = (alias.name if alias.asname else top, None)
            elif isinstance(each, ast.ImportFrom):
                above = self._package.split(".")
                base = above[: len(above) - each.level + 1] if each.level else []
                module = ".".join([*base, *([each.module] if each.module else [])])
                bindings |= {alias.asname or alias.name: (module, alias.name) for alias in each.names}
        return bindings

    def lookup(self, name: str) -> "Reference | Module | str | None":
        """What a name stands for in this module; None for a builtin."""
        if name in self.statements:
            return Reference(self.name, name)
        return self.sources.find(*self._bindings[name]) if name in self._bindings else None

    def definition(self, name: str) -> Definition:
        """One of its definitions, or `EFFECTS`."""
        if name not in self._definitions:
            reader = _Reader(self)
            form = [reader.form(each, _Scope()) for each in self.statements[name]]
            self._definitions[name] = Definition(form, tuple(reader.mentions), self.path)
        return self._definitions[name]


@dataclass(frozen=True)
class _Scope:
    """What hides a module's names inside a function: its own variables, and its own imports."""

    hidden: frozenset[str] = frozenset()
    imports: Mapping[str, Binding] = field(default_factory=dict)
    in_function: bool = False

    def inside(self, names: Iterable[str], imports: Mapping[str, Binding], *, function: bool = True) -> "_Scope":
        hidden = (self.hidden | frozenset(names)) - imports.keys()
        kept = {name: each for name, each in self.imports.items() if name not in hidden}
        return _Scope(hidden, kept | dict(imports), self.in_function or function)


class _Reader:
    """Reads syntax into forms, and notes what of ours it mentions."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self.mentions: dict[Reference, None] = {}

    def form(self, node: Any, scope: _Scope) -> Any:
        """Nested lists and texts of what a piece of syntax computes."""
        if isinstance(node, list):
            return [self.form(each, scope) for each in node if not isinstance(each, ast.Import | ast.ImportFrom)]
        if not isinstance(node, ast.AST):
            return node if isinstance(node, str | int) else repr(node)
        if isinstance(node, ast.Constant):
            return ["Constant", repr(node.value)]
        if isinstance(node, ast.Name | ast.Attribute):
            return self._name(node, scope)
        if isinstance(node, ast.Lambda | FUNCTIONS):
            return self._function(node, scope)
        if isinstance(node, COMPREHENSIONS):
            first, inner = (
                node.generators[0].iter,
                scope.inside((each.id for each in _targets(node)), {}, function=False),
            )
            return [self.form(first, scope), *self._fields(node, inner)]
        if isinstance(node, ast.AnnAssign) and scope.in_function:
            self.form(node.annotation, scope)  # mentioned, and no part of what is computed
            return self.form(ast.Assign([node.target], node.value), scope) if node.value else ["Pass"]
        if isinstance(node, ast.ClassDef):
            node.body = _without_docstring(node.body)
        annotation = [self.form(node.annotation, scope)] if isinstance(node, ast.AnnAssign) else []
        return [*self._fields(node, scope), *annotation]

    def _fields(self, node: ast.AST, scope: _Scope, skipped: tuple[str, ...] = ()) -> list[Any]:
        names = [name for name in node._fields if name not in NOT_COMPUTED and name not in skipped]
        values = [(name, getattr(node, name, None)) for name in names]
        present = [[name, self.form(value, scope)] for name, value in values if value is not None and value != []]
        return [type(node).__name__, *present]

    def _function(self, node: Any, scope: _Scope) -> list[Any]:
        arguments = [each for each in ast.walk(node.args) if isinstance(each, ast.arg)]
        for each in [*(argument.annotation for argument in arguments), getattr(node, "returns", None)]:
            if each is not None:
                self.form(each, scope)  # mentioned, and no part of what is computed
        outside = [self.form(getattr(node, "decorator_list", []), scope)]
        outside += [self.form(list(node.args.defaults), scope), self.form(node.args.kw_defaults, scope)]
        body = [node.body] if isinstance(node, ast.Lambda) else _without_docstring(node.body)
        nodes = _in_scope(body)
        shared = {name for each in nodes if isinstance(each, ast.Global) for name in each.names}
        names = {argument.arg for argument in arguments} | set(_bound(nodes)) - shared
        inner = scope.inside(names, self._module.imported(nodes))
        shape = self._fields(node.args, inner, ("defaults", "kw_defaults"))
        return [type(node).__name__, getattr(node, "name", ""), outside, shape, self.form(body, inner)]

    def _name(self, node: ast.Name | ast.Attribute, scope: _Scope) -> Any:
        """A name, or attributes of one, as what it stands for and the attributes that are left."""
        attributes: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            attributes.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return ["Attribute", self.form(base, scope), *attributes]
        found: Reference | Module | str | None = None
        if base.id in scope.imports:
            found = self._module.sources.find(*scope.imports[base.id])
        elif base.id not in scope.hidden and isinstance(base.ctx, ast.Load):
            found = self._module.lookup(base.id)
        while isinstance(found, Module) and attributes:
            found = self._module.sources.find(found.name, attributes.pop(0))
        if isinstance(found, Module):  # as a whole: any of its definitions may be meant
            whole = [Reference(found.name, name) for name in sorted(found.statements)]
            self.mentions |= dict.fromkeys(whole)
            return ["Module", whole]
        if isinstance(found, Reference):
            self.mentions[found] = None
        return ["Name", base.id if found is None else found, *attributes]


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_text else body


def _in_scope(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    """These and all inside them, but not what functions and classes in them hold."""
    found, waiting = list[ast.AST](), [*nodes]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, ast.Lambda | ast.ClassDef | FUNCTIONS):
            waiting += ast.iter_child_nodes(node)
    return found


def _bound(nodes: list[ast.AST]) -> Iterator[str]:
    """The names that are defined or assigned to by the nodes of a scope; what imports bind is not among them."""
    elsewhere = {each for node in nodes if isinstance(node, COMPREHENSIONS) for each in _targets(node)}
    for node in nodes:
        if isinstance(node, ast.ClassDef | FUNCTIONS):
            yield node.name
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and node not in elsewhere:
            yield node.id
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name


def _targets(node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> Iterator[ast.Name]:
    """A comprehension's own variables."""
    return (each for one in node.generators for each in ast.walk(one.target) if isinstance(each, ast.Name))
