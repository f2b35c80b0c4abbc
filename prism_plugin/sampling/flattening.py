"""One module out of many: some functions of a package, with all that they reach, in a text that imports none of it.

Nothing is kept by hand. Starting from the roots, whatever a definition names is copied with its comments, module by module in
the order of their imports: a function, a constant, a class with its fields. A method comes along when something that is copied
speaks of its name, or when it overrides one of a class from elsewhere, which may call it (`nn.Module` calls `forward`).
Annotations are not followed: the text does not evaluate them.
"""

import ast
import builtins
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# What the text may import besides the standard library: transformers needs the other three.
ALLOWED = ("torch", "transformers", "safetensors", "huggingface_hub")

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class FlatteningError(Exception):
    """The package is written in a way that cannot be flattened: our mistake, found by a test, never the user's."""


@dataclass
class Module:
    """The top level of one source file."""

    name: str
    lines: list[str]
    definitions: dict[str, Definition] = field(default_factory=dict)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)  # imported name -> module of the package, name there
    theirs: dict[str, set[str]] = field(default_factory=dict)  # imported name -> the statements: `import a.b`, `import a.c`

    @classmethod
    def read(cls, name: str) -> "Module":
        """Read the source of a module by its dotted name, whose first part is the package."""
        package = name.split(".")[0]
        source = inspect.getsource(importlib.import_module(name))
        module = cls(name, source.splitlines())
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    module.theirs.setdefault(bound, set()).add(ast.unparse(ast.Import([alias])))
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    bound = alias.asname or alias.name
                    if node.module.split(".")[0] == package:
                        module.ours[bound] = (node.module, alias.name)
                    else:
                        module.theirs[bound] = {ast.unparse(ast.ImportFrom(node.module, [alias], 0))}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                module.definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
                module.definitions |= dict.fromkeys(names, node)
        return module

    def text(self, node: ast.stmt, without: Iterable[ast.stmt] = ()) -> str:
        """The lines of a statement with the comments above it, and without those of some statements inside."""
        gone = {number for one in without for number in self._range(one)}
        kept = [self.lines[number] for number in self._range(node) if number not in gone]
        text = "\n".join(kept).rstrip()
        while "\n\n\n" in text:
            text = text.replace("\n\n\n", "\n\n")
        return text

    def _range(self, node: ast.stmt) -> range:
        decorators = [one.lineno for one in getattr(node, "decorator_list", [])]
        first = min([node.lineno, *decorators]) - 1
        while first > 0 and self.lines[first - 1].lstrip().startswith("#"):
            first -= 1
        return range(first, node.end_lineno)


class _Names(ast.NodeVisitor):
    """What a statement speaks of: names that are evaluated, names in annotations, and names after a dot or in quotes."""

    def __init__(self) -> None:
        self.evaluated: set[str] = set()
        self.annotated: set[str] = set()
        self.dotted: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        self.evaluated.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.dotted.add(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value.isidentifier():
            self.dotted.add(node.value)  # of getattr(value, "name")

    def visit_arg(self, node: ast.arg) -> None:
        self._annotation(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        for part in (node.target, node.value):
            if part is not None:
                self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._annotation(node.returns)
        for part in (node.args, *node.body, *node.decorator_list):
            self.visit(part)

    def _annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            self.annotated |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


class Flattening:
    """Collects what some functions and classes of the package reach, then writes it down.

    Args:
        roots: Functions and classes of one package.

    Raises:
        FlatteningError: If something that is reached imports a package that is not allowed, or two modules give one name to
            different things.
    """

    def __init__(self, roots: Iterable[type | object]) -> None:
        self.modules: dict[str, Module] = {}
        self.kept: set[tuple[str, str]] = set()  # module and name, or module and `Class.method`
        self._imports: dict[str, set[str]] = {}
        self._annotated: set[tuple[str, str]] = set()
        self._dotted: set[str] = set()
        self._waiting = [(root.__module__, root.__qualname__) for root in roots]
        while self._waiting:
            while self._waiting:
                self._keep(*self._waiting.pop())
            self._waiting = [one for one in self._wanted_methods() if one not in self.kept]
        self._require_one_meaning()

    def text(self) -> str:
        """The module without a docstring: imports, names of annotations, every definition under the name of its module."""
        parts = ["\n".join(self._import_lines())]
        unknown = self._only_in_annotations()
        if unknown:
            placeholders = "\n".join(f"{name} = Any" for name in unknown)
            parts.append(f"# Only annotations speak of these, and nothing evaluates those.\n{placeholders}")
        for name in self._in_order():
            module = self.modules[name]
            nodes = list(dict.fromkeys(node for key, node in module.definitions.items() if (name, key) in self.kept))
            parts.append(f"# ---- {name} ----")
            parts += [module.text(node, self._dropped_methods(name, node)) for node in nodes]
        return "\n\n\n".join(parts) + "\n"

    def _module(self, name: str) -> Module:
        if name not in self.modules:
            self.modules[name] = Module.read(name)
        return self.modules[name]

    def _home(self, module: str, name: str) -> tuple[str, str] | None:
        """Where the package defines what a module calls `name`; None where it is no name of the package."""
        here = self._module(module)
        if name in here.definitions:
            return module, name
        return self._home(*here.ours[name]) if name in here.ours else None

    def _keep(self, module: str, name: str) -> None:
        if (module, name) in self.kept:
            return
        self.kept.add((module, name))
        owner, _, method = name.partition(".")
        node = self._module(module).definitions[owner]
        if method:
            node = next(one for one in _methods(node) if one.name == method)
        names = _Names()
        for part in _parts_without_methods(node):
            names.visit(part)
        self._dotted |= names.dotted
        self._annotated |= {(module, one) for one in names.annotated}
        for one in sorted(names.evaluated):
            home = self._home(module, one)
            if home is not None:
                self._waiting.append(home)
            elif one in self._module(module).theirs:
                self._import(module, one)

    def _import(self, module: str, name: str) -> None:
        statements = self.modules[module].theirs[name]
        refused = [one for one in statements if not _may_be_imported(one)]
        if refused:
            raise FlatteningError(f"{module} needs `{refused[0]}`, which an exported sampler must run without.")
        together = self._imports.setdefault(name, set()) | statements
        if len(together) > 1 and not all(one.split(".")[0] == f"import {name}" for one in together):
            raise FlatteningError(f"`{name}` means different things: {', '.join(sorted(together))}; rename it in {module}.")
        self._imports[name] = together

    def _wanted_methods(self) -> Iterator[tuple[str, str]]:
        for module, name in sorted(self.kept):
            node = self.modules[module].definitions.get(name)
            if isinstance(node, ast.ClassDef):
                cls = getattr(importlib.import_module(module), name)
                for method in _methods(node):
                    if method.name in self._dotted or _is_called_from_elsewhere(cls, method.name):
                        yield module, f"{name}.{method.name}"

    def _dropped_methods(self, module: str, node: ast.stmt) -> list[ast.FunctionDef]:
        if not isinstance(node, ast.ClassDef):
            return []
        return [one for one in _methods(node) if (module, f"{node.name}.{one.name}") not in self.kept]

    def _require_one_meaning(self) -> None:
        homes: dict[str, str] = {}
        for module, name in sorted(self.kept):
            if "." in name:
                continue
            other = "an import" if name in self._imports else homes.setdefault(name, module)
            if other != module:
                raise FlatteningError(f"`{name}` of {module} is also a name of {other}; rename one.")

    def _import_lines(self) -> list[str]:
        statements = {"from __future__ import annotations"}.union(*self._imports.values())
        for module, name in self._annotated:
            statements |= {one for one in self.modules[module].theirs.get(name, ()) if _may_be_imported(one)}
        if self._only_in_annotations():
            statements.add("from typing import Any")
        return _joined(statements)

    def _only_in_annotations(self) -> list[str]:
        """Names that stand in annotations alone, and are neither kept nor importable."""
        defined = {name for _, name in self.kept}
        names = set()
        for module, name in self._annotated:
            imported = any(map(_may_be_imported, self.modules[module].theirs.get(name, ())))
            if not imported and name not in defined and not hasattr(builtins, name):
                names.add(name)
        return sorted(names)

    def _in_order(self) -> list[str]:
        """Modules of which something is kept, each after those that it imports."""
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in done:
                for used, _ in self._module(name).ours.values():
                    if used in self.modules and used != name:
                        visit(used)
                done[name] = None

        for name in sorted({module for module, _ in self.kept}):
            visit(name)
        kept = {module for module, _ in self.kept}
        return [name for name in done if name in kept]


def _joined(statements: Iterable[str]) -> list[str]:
    """Sorted import statements, one for each module; that of `__future__` comes first, as it must."""
    whole, parts = [], {}
    for statement in sorted(statements):
        if statement.startswith("from "):
            source, names = statement.split(" import ")
            parts.setdefault(source, []).append(names)
        else:
            whole.append(statement)
    return [f"{source} import {', '.join(names)}" for source, names in parts.items()] + whole


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [one for one in node.body if isinstance(one, ast.FunctionDef)]


def _parts_without_methods(node: ast.stmt) -> list[ast.AST]:
    if not isinstance(node, ast.ClassDef):
        return [node]
    body = [one for one in node.body if not isinstance(one, ast.FunctionDef)]
    return [*node.decorator_list, *node.bases, *node.keywords, *body]


def _is_called_from_elsewhere(cls: type, method: str) -> bool:
    """Python calls methods with two underscores; a class from elsewhere calls its own, which ours may override."""
    package = cls.__module__.split(".")[0]
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] != package]
    return (method.startswith("__") and method.endswith("__")) or any(method in vars(base) for base in bases)


def _may_be_imported(statement: str) -> bool:
    package = statement.split()[1].split(".")[0]
    return package in ALLOWED or package in sys.stdlib_module_names
