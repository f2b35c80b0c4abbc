"""The layout keeps its promises: imports go one way, files and functions stay small, importing is cheap."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "prism_plugin"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_SOURCES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

# The package itself gives the public names, so it stands above all that they come from. Reports show what evaluation measures.
LEVELS = [
    {"errors", "types"},
    {"reader", "parsing", "tokenizing", "writing"},
    {"registry"},
    {"core", "parsing_yaml"},
    {"backbones", "data"},
    {"modeling"},
    {"decoding"},
    {"training", "sampling"},
    {"evaluation"},
    {"report"},
    {"__init__"},
    {"cli", "testing"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
# What a level may import from outside, beyond the standard library and what lower levels may.
OUTSIDE = {
    "errors": set(),
    "registry": set(),
    "reader": set(),
    "parsing": set(),
    "parsing_yaml": {"yaml"},
    "tokenizing": {"jinja2"},
    "writing": {"safetensors"},
    "__init__": set(),
    "types": {"torch", "jaxtyping"},
    "core": {"torch"},
}
# Optional packages, and the one file that each is imported in.
OPTIONAL = {"matplotlib": "report/calibration_plot.py"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: `core`, `errors`, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions and under TYPE_CHECKING; `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def target_part(module: str) -> str:
    """The part that `prism_plugin.x.y` lies in; `__init__` when `x` is a name of the package and no module."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in LEVEL else "__init__"


def test_imports_go_down():
    edges = [
        (part_of(path), target_part(module), path.relative_to(ROOT))
        for path in SOURCES
        for module in imported_modules(path)
        if module.split(".")[0] == "prism_plugin"
    ]
    assert len(edges) > 150, "the walker found next to nothing; it is broken"
    unplaced = {part_of(path) for path in SOURCES} - set(LEVEL)
    assert not unplaced, f"no level is written down for {unplaced}"
    wrong = [f"{path}: {src} -> {dst}" for src, dst, path in edges if src != dst and LEVEL[dst] >= LEVEL[src]]
    assert not wrong, wrong


def file_imports() -> dict[str, set[str]]:
    """Which of our files each file names, by module; also inside functions and for annotations, which hide a circle."""
    modules = {module_name(path): path for path in SOURCES}
    named = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imported_modules(path)}
        for module, path in modules.items()
    }
    return {module: (names & set(modules)) - {module} for module, names in named.items()}


def circle_in(edges: dict[str, set[str]]) -> list[str]:
    """Modules that cannot be read one after the other, because each of them names, over others, itself; none: no circle."""
    left = dict(edges)
    while free := {module for module, names in left.items() if not names & set(left)}:
        left = {module: names for module, names in left.items() if module not in free}
    while unnamed := set(left) - set().union(*left.values()):  # these only look at the circle
        left = {module: names for module, names in left.items() if module not in unnamed}
    return sorted(left)


def test_no_files_name_each_other_in_a_circle():
    edges = file_imports()
    assert sum(map(len, edges.values())) > 300, "the walker found next to nothing; it is broken"
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert not circle_in(edges)


def test_only_declared_packages_are_imported():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {requirement.split(">")[0].replace("pyyaml", "yaml") for requirement in metadata["dependencies"]}
    imported = {(path, module.split(".")[0]) for path in SOURCES for module in imported_modules(path)}
    outside = {(path, name) for path, name in imported if name != "prism_plugin" and name not in sys.stdlib_module_names}
    assert {name for _, name in outside} == declared | set(OPTIONAL)
    extras = {requirement.split(">")[0] for names in metadata["optional-dependencies"].values() for requirement in names}
    assert set(OPTIONAL) <= extras
    outside = {(path, name) for path, name in outside if path != PACKAGE / OPTIONAL.get(name, "")}
    wrong = [(str(path), name) for path, name in outside if name not in OUTSIDE.get(part_of(path), declared)]
    assert not wrong, wrong


def test_the_package_does_not_import_its_surroundings():
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in SOURCES
        for module in imported_modules(path)
        if module.split(".")[0] in {"tests", "benchmarks", "reference", "conftest", "pytest"}
    ]
    assert not wrong, wrong


def test_files_are_short():
    assert len(ALL_SOURCES) > 60, "the walker found next to nothing; it is broken"
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_SOURCES}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_functions_are_short():
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": function_lines(node)
        for path in ALL_SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 300
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without decorators and docstring."""
    first = node.body[0]
    has_docstring = ast.get_docstring(node) is not None
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_docstring else 0)


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_module_can_be_imported(path):
    assert importlib.import_module(module_name(path)).__doc__ or not path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "code", ["import prism_plugin", "import prism_plugin.errors, prism_plugin.registry, prism_plugin.cli.main"]
)
def test_importing_the_package_is_light(code):
    check = f"import sys; {code}; sys.exit(', '.join({{'torch', 'transformers', 'numpy'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
