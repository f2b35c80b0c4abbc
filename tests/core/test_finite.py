import pytest
import torch

from prism_plugin.core.finite import first_not_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_wrong_number_is_found_in_every_float_type(dtype, value):
    good = torch.full((3, 5), 2.0).to(dtype)
    bad = good.float().index_fill(1, torch.tensor(4), value).to(dtype)
    assert first_not_finite({"good": good}) is None
    assert first_not_finite({"good": good, "second": bad, "third": bad}) == "second"


def test_what_holds_no_floating_point_number_is_passed_over():
    others = {"ints": torch.ones(2).long(), "none": torch.ones(0, 3), "meta": torch.ones(2, device="meta")}
    assert first_not_finite(others) is None
    assert first_not_finite({}) is None
