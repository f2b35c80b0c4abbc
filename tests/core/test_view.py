import pytest
import torch
from views import step_view

from prism_plugin.core.remasking import QualityRemasking
from prism_plugin.core.unmasking import MarginUnmasking
from prism_plugin.core.view import Budget, Decision, apply_step, unmask_grant
from prism_plugin.errors import MissingQualityError, SamplingError


@pytest.fixture
def view():
    masked = torch.tensor([[False, True, True, False]])
    zeros, count = torch.zeros(1, 4), torch.tensor([2])
    return step_view(
        masked=masked,
        revealed=torch.tensor([[False, False, False, True]]),
        editable=torch.tensor([[False, True, True, True]]),
        candidates=torch.tensor([[11, 12, 13, 14]]),
        confidence=zeros,
        commit_confidence=zeros + 1,
        noise=zeros,
        step=count,
        num_steps=count,
        total=count,
        times_remasked=masked.long(),
    )


def test_apply_step_writes_and_takes_back(view):
    tokens = torch.tensor([[1, 9, 9, 4]])
    decision = Decision(write=torch.tensor([[False, True, False, False]]), remask=view.revealed)
    assert apply_step(tokens, view.candidates, decision, mask_token_id=9).tolist() == [[1, 12, 9, 9]]
    edited = Decision(torch.tensor([[True, True, False, False]]), view.revealed, tokens=torch.tensor([[5, 6, 7, 8]]))
    assert apply_step(tokens, view.candidates, edited, mask_token_id=9).tolist() == [[5, 6, 9, 9]]
    assert tokens.tolist() == [[1, 9, 9, 4]]


def test_the_grant_follows_what_was_taken_back():
    budget = Budget(remask=torch.zeros(4, dtype=torch.long), target=torch.tensor([5, 5, 5, 5]))
    revealed, remasked, masked = torch.tensor([3, 3, 6, 3]), torch.tensor([0, 2, 0, 2]), torch.tensor([9, 9, 3, 1])
    assert unmask_grant(budget, revealed, remasked, masked).tolist() == [2, 4, 0, 1]


def test_what_is_there_is_given(view):
    assert view.require("noise", MarginUnmasking()) is view.noise


def test_missing_quality_is_explained(view):
    with pytest.raises(MissingQualityError, match=r"QualityRemasking ranks tokens by the quality head, .*; attach a head with"):
        QualityRemasking()(view, torch.tensor([1]))


def test_another_missing_field_is_named(view):
    with pytest.raises(SamplingError, match="MarginUnmasking reads `margin`, which this view lacks; name it in"):
        MarginUnmasking()(view, torch.tensor([1]))
