"""Tokens and losses stay what they were: of every preset, of every corruptor, whatever is rebuilt below them."""

import json
from pathlib import Path

import pytest

from golden.cases import OBJECTIVES, ONE_RUN, sampled, trained

HERE = Path(__file__).parent


def _stored(name: str) -> dict:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def test_presets_write_the_same_tokens_in_as_many_looks():
    stored, found = _stored("sampling"), sampled()
    assert len(stored) == 5 * len(ONE_RUN)
    assert sum(sum(one["remasked"]) for one in stored.values()) > 100
    assert found == stored


def test_losses_are_the_same_to_a_millionth_and_gradients_nearly(tmp_path):
    """Losses are computed in float32, and three steps of SGD add up: processors were seen to differ by 2e-6 in gradients."""
    stored, found = _stored("training"), trained(tmp_path)
    assert len(stored) == 2 * len(OBJECTIVES)
    assert found.keys() == stored.keys()
    for name, expected in stored.items():
        assert found[name]["logs"] == [pytest.approx(one, rel=1e-6, abs=1e-6) for one in expected["logs"]], name
        assert found[name]["eval"] == pytest.approx(expected["eval"], rel=1e-6, abs=1e-6, nan_ok=True), name
        for step, gradients in zip(found[name]["gradients"], expected["gradients"], strict=True):
            assert step.keys() == gradients.keys()
            for parameter, numbers in gradients.items():
                assert step[parameter] == pytest.approx(numbers, rel=1e-5, abs=1e-5), (name, parameter)
