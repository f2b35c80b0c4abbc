"""In these tests, every call of `prism_plugin.core` checks types and shapes against its signature."""

import jaxtyping
import pytest
import torch
from views import step_view


@pytest.fixture(autouse=True)
def _signatures_are_checked(request):
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("other_types") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture
def small_view():
    """Four masked positions, then four revealed ones; every figure orders them differently."""
    masked = torch.tensor([[True] * 4 + [False] * 4])
    scores = {
        "confidence": [0.9, 0.1, 0.5, 0.4, 0.0, 0.0, 0.0, 0.0],
        "margin": [0.1, 0.2, 0.8, 0.3, 0.9, 0.9, 0.9, 0.9],
        "entropy": [3.0, 0.1, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        "noise": [0.3, 0.2, 0.1, 0.9, 0.2, 0.9, 0.1, 0.3],
        "quality": [0.0, 0.0, 0.0, 0.0, 0.9, 0.4, 0.2, 0.5],
        "commit_confidence": [1.0, 1.0, 1.0, 1.0, 0.1, 0.9, 0.8, 0.3],
        "visible_confidence": [0.0] * 8,
        "best_visible_confidence": [0.0] * 4 + [0.9, 0.3, 0.8, 0.95],
        "previous_confidence": [0.0] * 4 + [0.1, 0.6, 0.3, 0.5],
        "mean_confidence": [0.0] * 4 + [0.6, 0.2, 0.9, 0.1],
        "shadow_confidence": [0.0] * 4 + [0.2, 0.3, 0.9, 0.95],
        "looks_since": [-1.0] * 4 + [3.0, 0.0, 1.0, 1.0],
        "kl_of_two": [9.0, 0.001, 0.002, 9.0] + [9.0] * 4,
        "corrected": [1.0] * 8,
    }
    return step_view(
        best_visible=torch.tensor([[0] * 7 + [5]]) + torch.tensor([[0, 0, 0, 0, 5, 5, 0, 0]]),
        masked=masked,
        revealed=~masked,
        editable=masked | ~masked,
        candidates=torch.zeros(1, 8, dtype=torch.long),
        step=torch.tensor([2]),
        num_steps=torch.tensor([4]),
        total=torch.tensor([8]),
        times_remasked=torch.zeros(1, 8, dtype=torch.long),
        **{name: torch.tensor([values]) for name, values in scores.items()},
    )
