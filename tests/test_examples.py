"""Every example runs offline, without a warning, and prints the line that its docstring promises."""

import ast
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
# Packages that only bring weights or data; without them the example says so and stops.
NEEDS = {"07_a_real_model.py": "pip install --no-deps antiberty==0.1.3 abstar==0.8.0"}
SLOW = {"06_exact_posterior.py"}
PUBLIC = {
    "prism_plugin", "prism_plugin.core", "prism_plugin.data", "prism_plugin.decoding", "prism_plugin.sampling",
    "prism_plugin.testing", "prism_plugin.types",
}  # fmt: skip


def promised_output(path):
    """The line after "Prints:" in the docstring."""
    (line,) = re.findall(r"^Prints: (.+)$", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), re.MULTILINE)
    return line


def test_there_are_examples():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, len(EXAMPLES) + 1)]
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] if path.name in SLOW else [], id=path.name) for path in EXAMPLES]
)
def test_example_runs_and_says_what_it_promises(path, tmp_path, tmp_path_factory, scripts):
    done = scripts.run(path, tmp_path, output=tmp_path_factory.mktemp("printed"), timeout=600)
    assert done.returncode == 0, done.stderr
    if path.name in NEEDS and any(find_spec(name) is None for name in re.findall(r"(\w+)==", NEEDS[path.name])):
        assert done.stdout == f"skipped: this example needs `{NEEDS[path.name]}`\n"
        pytest.skip(done.stdout.strip())
    assert promised_output(path) in done.stdout.splitlines()
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


@pytest.mark.parametrize("name", NEEDS)
def test_what_an_example_needs_is_told_alike(name):
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    command = f"{NEEDS[name]} && python examples/{name}"
    assert command in ast.get_docstring(ast.parse(text))
    assert text.count("pip install") == text.count(NEEDS[name]) == 2, "in the docstring and where it says that it is skipped"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras["examples"]) <= set(NEEDS[name].split())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_uses_public_names_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {module for module in modules if module.startswith("prism_plugin")}
    assert "prism_plugin" in ours
    assert ours <= PUBLIC | {"prism_plugin.evaluation.tasks", "prism_plugin.evaluation.tasks.enumerable"}
