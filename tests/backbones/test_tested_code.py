"""Code that a repository brings is told apart from the code that was tested."""

import copy

import pytest
from remote_families import STANDIN_FAMILIES

from prism_plugin.backbones import load_backbone, tested_code
from prism_plugin.testing import tiny_backbone


@pytest.fixture
def backbone(tmp_path):
    STANDIN_FAMILIES["llada"].save(tmp_path)
    return load_backbone(tmp_path, trust_remote_code=True)


def test_other_code_is_named_with_what_that_means(backbone):
    check = tested_code.check_own_code(backbone)
    assert check.ok
    assert check.detail.startswith("configuration_llada.py, modeling_llada.py, parts.py: not the code that was tested on 20")
    assert "If they pass, go on, and pin the revision by `--revision`." in check.detail


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_code_that_was_tested_is_known_by_its_hash(backbone, ends, tmp_path, monkeypatch):
    record = copy.deepcopy(tested_code.recorded())
    for name in STANDIN_FAMILIES["llada"].files:
        text = (STANDIN_FAMILIES["llada"].root / name).read_text(encoding="utf-8")
        (tmp_path / "copy.py").write_text(text.replace("\n", ends), encoding="utf-8", newline="")
        record["code"][tested_code.hash_of(tmp_path / "copy.py")] = f"checkout: {name}"
    monkeypatch.setattr(tested_code, "recorded", lambda: record)
    check = tested_code.check_own_code(backbone)
    assert check.detail == (
        "the code that was tested (checkout: configuration_llada.py; checkout: modeling_llada.py; checkout: parts.py)"
    )


def test_classes_of_transformers_have_no_code_of_their_own():
    assert tested_code.check_own_code(tiny_backbone()) is None
