"""The page of families says what the specs and the contract's last run say."""

import runpy

from pages import ROOT

from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.backbones.tested_code import recorded

FAMILIES = runpy.run_path(str(ROOT / ".ci" / "families.py"))


def test_the_page_is_what_the_specs_and_the_last_run_give():
    assert FAMILIES["PAGE"].read_text(encoding="utf-8") == FAMILIES["page"](), "run `python .ci/families.py`"


def test_the_last_run_was_of_every_family():
    names = {FAMILIES["STANDINS"].get(spec.model_type, spec.model_type) for spec in BUILTIN_SPECS}
    assert names <= recorded()["passed"].keys(), "run `python .ci/families.py --run FOLDER`"
    assert {name for name, count in recorded()["passed"].items() if count < 15} == set()
