"""The wheel, built without a network: every module, the Sudoku folder as data, and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from prism_plugin import __version__

ROOT = Path(__file__).resolve().parents[1]
DATA = f"prism_plugin-{__version__}.data/data/share/prism_plugin/adapters/sudoku-9x9/"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    # A copy, because setuptools leaves build folders in the source tree.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("prism_plugin", "adapters", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.soak
def test_every_module_and_template_is_in_the_wheel(wheel, source):
    modules = {str(path.relative_to(source)) for path in (source / "prism_plugin").rglob("*.py")}
    assert len(modules) > 50
    packed = {name for name in wheel.namelist() if name.startswith("prism_plugin/")}
    templates = {str(path.relative_to(source)) for path in (source / "prism_plugin" / "report" / "templates").iterdir()}
    assert "prism_plugin/report/templates/trace.html.j2" in templates
    assert packed == modules | templates | {"prism_plugin/py.typed"}


@pytest.mark.soak
def test_the_sudoku_folder_is_in_the_wheel(wheel, source):
    folder = source / "adapters" / "sudoku-9x9"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"data/train.parquet", "data/validation.txt", "data/test.txt"} <= files
    packed = {name.removeprefix(DATA) for name in wheel.namelist() if name.startswith(DATA)}
    assert packed == files


@pytest.mark.soak
def test_nothing_else_is_in_the_wheel(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"prism_plugin", f"prism_plugin-{__version__}.dist-info", f"prism_plugin-{__version__}.data"}
    record = f"prism_plugin-{__version__}.dist-info/"
    assert wheel.read(f"{record}top_level.txt").split() == [b"prism_plugin"]
    assert b"prism-plugin = prism_plugin.cli.main:main" in wheel.read(f"{record}entry_points.txt")
    assert f"{record}licenses/LICENSE" in wheel.namelist()


def test_constraints_pin_exactly_what_the_project_pulls_in():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_key(one): one for one in (Requirement(line) for line in lines if not line.startswith("#"))}
    assert str(pinned["torch"].specifier) == "==2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    other = [name for name, one in pinned.items() if metadata.version(name) not in one.specifier]
    if other:
        pytest.skip(f"what needs what is read from what is installed, which is not what is pinned: {', '.join(other)}")
    todo = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    seen = set()
    while todo:
        wanted = todo.pop()
        assert _key(wanted) in pinned, f"constraints.txt lacks {wanted}"
        (exact,) = pinned[_key(wanted)].specifier
        assert exact.operator == "=="
        assert exact.version in wanted.specifier, f"{pinned[_key(wanted)]} does not satisfy {wanted}"
        if (_key(wanted), *sorted(wanted.extras)) not in seen:
            seen.add((_key(wanted), *sorted(wanted.extras)))
            needed = [Requirement(text) for text in metadata.requires(wanted.name) or []]
            # What torch brings for an accelerator differs from machine to machine, and torch pins it itself.
            todo += [one for one in needed if _applies(one, wanted.extras) and (wanted.name != "torch" or _key(one) in pinned)]
    assert {name for name, *_ in seen} == set(pinned)


def _key(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-")


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
