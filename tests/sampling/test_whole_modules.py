"""Small packages are laid flat; then our own, which must need nothing but torch and transformers, and be whole."""

import ast
import importlib
import itertools
import sys
import textwrap

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

from prism_plugin.decoding.features import FEATURES
from prism_plugin.modeling.heads import HEADS
from prism_plugin.sampling import whole_modules
from prism_plugin.sampling.export import exported_code
from prism_plugin.sampling.settings import PLUG_INS
from prism_plugin.sampling.whole_modules import ALLOWED, UnfitModuleError, flat_folder

NUMBERS = itertools.count()
SHAPES = """
    '''A module.

    from {package}.sizes.units import SCALE  # as a reader would write it
    '''

    from __future__ import annotations

    import json

    from {package}.sizes.units import (
        SCALE,  # of all
    )
    from {package}.types import Width

    try:
        import torch
    except ImportError:
        torch = None

    SIZES = []
    for _size in range(3):
        SIZES.append(_size * SCALE)


    if SIZES:
        def measure(shape: Width) -> float:
            from {package}.late import late

            return late(SIZES[-1])
"""
UNITS = "SCALE = 3\n"
LATE = "def late(size):\n    return size + 1\n"
TYPES = "from jaxtyping import Float\nfrom torch import Tensor\n\nWidth = Float[Tensor, ' rows']\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a new package, in folders where their names have one, and gives its name."""

    def write(**modules):
        name = f"whole{next(NUMBERS)}"
        for module, text in modules.items():
            path = (tmp_path / name / module.replace("__", "/")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in {path.parent, tmp_path / name}:
                (folder / "__init__.py").touch()
            path.write_text(textwrap.dedent(text.format(package=name)))
        monkeypatch.setattr(whole_modules, "PACKAGE", name)
        monkeypatch.setattr(whole_modules, "_SHAPES", f"{name}.types")
        return name

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_modules_come_whole_with_all_that_they_import(package, tmp_path, monkeypatch):
    name = package(area__shapes=SHAPES, sizes__units=UNITS, late=LATE, types=TYPES, unused="import peft\n")
    folder = flat_folder({f"{name}.area.shapes": "measuring"})
    assert set(folder) == {"measuring.py", "units.py", "late.py", "types.py"}
    (tmp_path / "flat").mkdir()
    for file, text in folder.items():
        (tmp_path / "flat" / file).write_text(text)
    monkeypatch.setitem(sys.modules, name, None)  # the package is not there any more
    measuring = importlib.import_module("flat.measuring")
    assert measuring.measure(None) == 7
    assert measuring.torch is not None
    before, after = textwrap.dedent(SHAPES.format(package=name)).splitlines(), folder["measuring.py"].splitlines()
    changed = [line for line in after if line not in before]
    assert [line.strip() for line in changed if not line.startswith("#")] == [
        "from .units import (", "from .types import Width", "from .late import late"
    ]  # fmt: skip
    assert folder["types.py"].endswith("from torch import Tensor\n\nWidth = Tensor\n")


UNFIT = {
    "one name": (
        {"area__units": "from {package}.sizes.units import SCALE\n", "sizes__units": UNITS},
        "area.units",
        r"sizes\.units and whole\d+\.area\.units would both be units\.py|area\.units and whole\d+\.sizes\.units would both be",
    ),
    "another package": (
        {"one": "if True:\n    import peft.tuners\n"},
        "one",
        r"one line 2 imports peft\.tuners, but",
    ),
    "a relative import": ({"one": "from . import two\n", "two": ""}, "one", r"one line 1 imports \., but an exported"),
    "ours by its name": ({"one": "import {package}.two\n", "two": ""}, "one", r"one line 1 imports whole\d+\.two, but"),
    "a package": (
        {"one": "from {package}.sizes import units\n", "sizes__units": UNITS},
        "one",
        r"sizes is a package, but an exported module imports from it; name the module inside",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_copied_is_refused(package, case):
    modules, start, words = UNFIT[case]
    name = package(**modules)
    with pytest.raises(UnfitModuleError, match=words):
        flat_folder({f"{name}.{start}": "start"} if case != "one name" else {f"{name}.{start}": "units"})


def test_ours_needs_nothing_else(tmp_path):
    code = exported_code(with_loader=True)
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for text in code.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for alias in node.names
    }
    assert imported & set(ALLOWED) == set(ALLOWED)
    assert imported <= {*ALLOWED, *sys.stdlib_module_names}
    assert not any("prism_plugin." in line for text in code.values() for line in text.splitlines() if "import" in line.split())


@pytest.mark.parametrize(("entry", "with_loader"), [("generate", False), ("load_backbone", True)])
def test_transformers_finds_every_module(tmp_path, entry, with_loader):
    code = exported_code(with_loader=with_loader)
    for name, text in code.items():
        (tmp_path / name).write_text(text)
    found = set(get_relative_import_files(tmp_path / f"{entry}.py"))
    assert all((tmp_path / path).is_file() for path in found)
    if not with_loader:
        assert {path.removeprefix(f"{tmp_path}/") for path in found} == set(code) - {"generate.py"}


def test_everything_of_ours_with_a_name_comes_along():
    named = [registry.get(name) for registry in (*PLUG_INS.values(), FEATURES) for name in registry.names()] + [*HEADS.values()]
    ours = {(one.__module__.rpartition(".")[2], one.__name__) for one in named if one.__module__.startswith("prism_plugin.")}
    code = exported_code(with_loader=False)
    defined = {
        (file.removesuffix(".py"), node.name)
        for file, text in code.items()
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    assert len(ours) >= 20
    assert ours <= defined
