import pytest
import torch
from reference import selection as reference

from prism_plugin.core.selection import at_most, select_above, select_top, true_places


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 8), (3, 47)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_select_top_matches_choosing_one_at_a_time(batch, length, dtype):
    generator = torch.Generator().manual_seed(length)
    for _ in range(10):
        # few distinct scores make ties, and infinities are scores too
        scores = torch.tensor([-float("inf"), -1.0, 0.0, 0.5, float("inf")], dtype=dtype)[
            torch.randint(5, (batch, length), generator=generator)
        ]
        eligible = torch.rand(batch, length, generator=generator) < 0.6
        budget = torch.randint(length + 3, (batch,), generator=generator)
        before = scores.clone(), eligible.clone(), budget.clone()
        chosen = select_top(scores, eligible, budget)
        expected = [reference.top(*row) for row in zip(scores.tolist(), eligible.tolist(), budget.tolist(), strict=True)]
        assert chosen.tolist() == expected
        assert all(torch.equal(a, b) for a, b in zip(before, (scores, eligible, budget), strict=True))


def test_ties_go_to_the_leftmost():
    chosen = select_top(torch.zeros(1, 2000), torch.ones(1, 2000, dtype=torch.bool), torch.tensor([700]))
    assert chosen[0, :700].all()
    assert not chosen[0, 700:].any()


def test_select_above_includes_the_threshold():
    chosen = select_above(torch.tensor([[0.4, 0.5, 0.6, 0.9]]), torch.tensor([[True, True, True, False]]), 0.5)
    assert chosen.tolist() == [[False, True, True, False]]


def test_at_most_keeps_the_best_of_a_mask():
    mask = torch.tensor([[True, False, True, True]] * 2)
    kept = at_most(mask, torch.tensor([[1.0, 9.0, 3.0, 2.0]] * 2), torch.tensor([2, 5]))
    assert kept.tolist() == [[False, False, True, True], [True, False, True, True]]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 0)])
def test_true_places_are_those_of_nonzero(shape):
    for seed in range(5):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < seed / 4
        expected = mask.flatten().nonzero().squeeze(-1)
        assert torch.equal(true_places(mask, len(expected)), expected)
