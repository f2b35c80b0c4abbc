"""Every example runs offline, without a warning, and prints the line that its docstring promises."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
# Packages that only bring weights or data; without them the example says so and stops.
NEEDS = {"07_a_real_model.py": ("antiberty", "abstar")}
PUBLIC = {"prism_plugin", "prism_plugin.core", "prism_plugin.data", "prism_plugin.testing", "prism_plugin.types"}


def promised_output(path):
    """The line after "Prints:" in the docstring."""
    (line,) = re.findall(r"^Prints: (.+)$", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), re.MULTILINE)
    return line


def test_there_are_examples():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, len(EXAMPLES) + 1)]
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_says_what_it_promises(path, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    if path.name in NEEDS and any(find_spec(name) is None for name in NEEDS[path.name]):
        assert done.stdout.startswith("skipped: this example needs `pip install")
        pytest.skip(done.stdout.strip())
    assert promised_output(path) in done.stdout.splitlines()
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_uses_public_names_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {module for module in modules if module.startswith("prism_plugin")}
    assert "prism_plugin" in ours
    assert ours <= PUBLIC | {"prism_plugin.evaluation.tasks.enumerable"}
