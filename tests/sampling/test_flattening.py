"""A small package is flattened into one module; then our own, which must need nothing but torch and transformers."""

import ast
import importlib
import itertools
import subprocess
import sys
import textwrap

import pytest

from prism_plugin.core import REMASKING, SCHEDULES, UNMASKING
from prism_plugin.modeling.wrapping import wrap_with_adapter
from prism_plugin.sampling.export import generate_source, loader_source
from prism_plugin.sampling.flattening import ALLOWED, Flattening, FlatteningError

NUMBERS = itertools.count()
SHAPES = """
    import json
    from math import pi, tau

    from {package}.units import SCALE, Base

    UNUSED = tau

    # Doubled,
    # as agreed.
    FACTOR = 2 * SCALE


    class Shape(Base, dict):
        kind: str = "round"

        def __len__(self):
            return FACTOR

        def area(self) -> Width:
            return pi * self.width()

        # Goes with it.
        def width(self) -> float:
            return 1.0

        def unused(self):
            return json.dumps({{}})

        def keys(self):
            return self.helper()


    def measure(shape: Shape) -> float:
        '''Say how large.'''
        return shape.area() + getattr(shape, "inherited")()


    measure_again = measure(Shape())
"""
UNITS = """
    SCALE = 3


    class Base:
        def __call__(self):
            return SCALE

        def inherited(self):
            return 0.0

        def helper(self):
            return ["a"]

        def unused_too(self):
            return None
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a new package and imports the last."""

    def write(**modules):
        name = f"flattened{next(NUMBERS)}"
        (tmp_path / name).mkdir()
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text.format(package=name)))
        return importlib.import_module(f"{name}.{module}")

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_what_is_reached_is_copied_and_nothing_else(package):
    shapes = package(units=UNITS, shapes="from __future__ import annotations\n" + textwrap.dedent(SHAPES))
    text = Flattening([shapes.measure, shapes.Shape]).text()
    flat = {}
    exec(text, flat)
    assert flat["measure"](flat["Shape"]()) == shapes.measure(shapes.Shape())
    assert len(flat["Shape"]()) == 6, "Python calls it, so it comes along"
    assert flat["Shape"]()() == 3
    assert flat["Shape"]().keys() == ["a"], "a class from elsewhere has it, and may call it"
    assert "# Doubled,\n# as agreed.\nFACTOR = 2 * SCALE" in text
    assert "# Goes with it.\n    def width" in text
    assert "Width = Any" in text, "an annotation without a meaning"
    assert not {"json", "tau", "UNUSED", "unused", "unused_too", "measure_again"} & set(names_of(text))
    assert "import shapes" not in text
    assert "import units" not in text


def names_of(text):
    for node in ast.walk(ast.parse(text)):
        yield from (value for field, value in ast.iter_fields(node) if field in ("id", "name", "attr"))


def test_one_name_for_two_things_is_refused(package):
    first = "def _same():\n    return 1\n\n\ndef first():\n    return _same()\n"
    second = "from {package}.one import first\n\n\ndef _same():\n    return 2\n\n\ndef both():\n    return first() + _same()\n"
    with pytest.raises(FlatteningError, match=r"`_same` of flattened\d+\.two is also a name of flattened\d+\.one"):
        Flattening([package(one=first, two=second).both])


def test_one_name_for_two_imports_is_refused(package):
    first = "from math import exp\n\n\ndef first():\n    return exp(1)\n"
    second = "from cmath import exp\nfrom {package}.one import first\n\n\ndef both():\n    return first() + exp(1)\n"
    with pytest.raises(FlatteningError, match=r"`exp` means different things: from cmath import exp, from math import exp"):
        Flattening([package(one=first, two=second).both])


def test_a_package_that_would_have_to_be_installed_is_refused():
    with pytest.raises(
        FlatteningError, match=r"wrapping needs `from peft import .*`, which an exported sampler must run without"
    ):
        Flattening([wrap_with_adapter])


@pytest.mark.parametrize("source", [generate_source, loader_source])
def test_ours_needs_nothing_else_and_lacks_no_name(source, tmp_path):
    text = source()
    imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    assert len(imported) > 10
    assert {name.split(".")[0] for name in imported} <= {*ALLOWED, *sys.stdlib_module_names}
    (tmp_path / "flat.py").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--select", "F", "--ignore", "F722,F402"]
    done = subprocess.run([*command, tmp_path / "flat.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_every_rule_with_a_name_comes_along():
    defined = {node.name for node in ast.parse(generate_source()).body if isinstance(node, ast.ClassDef)}
    rules = [registry.get(name) for registry in (UNMASKING, REMASKING, SCHEDULES) for name in registry.names()]
    ours = {rule.__name__ for rule in rules if rule.__module__.startswith("prism_plugin.")}  # other tests register their own
    assert len(ours) >= 14
    assert ours <= defined
