"""Whole modules of this package in one flat folder, which runs where the package is not installed.

Starting from some modules, every module that one of them imports comes along. Only the lines that import from the package are
changed, `from prism_plugin.core.view import StepView` to `from .view import StepView`: transformers copies a folder of code by
following such imports. Of `types.py` the names are kept, and each means a plain Tensor.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping

PACKAGE = "prism_plugin"
# What the modules may import besides the standard library: transformers needs the other three.
ALLOWED = ("torch", "transformers", "safetensors", "huggingface_hub")
_SHAPES = f"{PACKAGE}.types"
_HEADER = """\
# ruff: noqa
# {module} of prism_plugin, where changes belong; written by `prism_plugin.export_sampler`, which changed imports only.
# SPDX-License-Identifier: Apache-2.0
"""


class UnfitModuleError(Exception):
    """A module cannot be copied as it is: our mistake, found by a test, never the user's."""


def flat_folder(entries: Mapping[str, str]) -> dict[str, str]:
    """Copy modules, and all that they import of the package, into one folder.

    Args:
        entries: Dotted name of a module to start from -> its name in the folder. Others keep the last part of theirs.

    Returns:
        Name of each file -> its text.

    Raises:
        UnfitModuleError: If a module imports a package that is not allowed, a package of ours instead of the module that
            defines what is wanted, or two modules have one name.
    """
    sources: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = _source(module)
            waiting += _imported(module, sources[module])
    names = {module: entries.get(module, module.rpartition(".")[2]) for module in sorted(sources)}
    for module, name in names.items():
        twins = [other for other, same in names.items() if same == name and other != module]
        if twins:
            raise UnfitModuleError(f"{module} and {twins[0]} would both be {name}.py in an exported folder; rename one.")
    return {
        f"{name}.py": _HEADER.format(module=module) + _with_relative_imports(sources[module], names)
        for module, name in names.items()
    }


def _source(module: str) -> str:
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        raise UnfitModuleError(f"{module} is a package, but an exported module imports from it; name the module inside.")
    source = inspect.getsource(found)
    return _plain(source) if module == _SHAPES else source


def _plain(source: str) -> str:
    """The aliases of `types.py`, each a Tensor."""
    targets = [ast.unparse(node.targets[0]) for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    aliases = "\n".join(f"{target} = Tensor" for target in targets)
    return f'"""Names for shapes of tensors."""\n\nfrom torch import Tensor\n\n{aliases}\n'


def _imported(module: str, source: str) -> Iterable[str]:
    """The modules of the package that a source imports from.

    Raises:
        UnfitModuleError: If it imports from anywhere else but what is allowed.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and _is_ours(node.module):
            yield node.module
        elif isinstance(node, ast.Import | ast.ImportFrom):
            given = [node.module or "."] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            refused = [one for one in given if one.split(".")[0] not in (*ALLOWED, *sys.stdlib_module_names)]
            if refused:
                raise UnfitModuleError(
                    f"{module} line {node.lineno} imports {refused[0]}, but an exported sampler runs with {', '.join(ALLOWED)} "
                    "alone; move what needs it to a module that is not exported."
                )


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def _with_relative_imports(source: str, names: Mapping[str, str]) -> str:
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            first = node.lineno - 1
            lines[first] = lines[first].replace(f"from {node.module} import", f"from .{names[node.module]} import")
    return "".join(lines)
