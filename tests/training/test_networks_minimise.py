"""A real network comes to the minimisers of tests/training/test_minimisers.py, where looks that learn go through it.

What the drafts hold is fixed, so that what they teach can be counted: it is the proposal of that file's table.
"""

import pytest
import torch
from reference import minimisers as reference
from torch import nn
from training.test_minimisers import (
    CANVASES,
    COUNTS,
    HIGH,
    LENGTH,
    LOW,
    MASK,
    QUALITY,
    REPAIR,
    SHARED,
    TABLE,
    UNKNOWN,
    EveryFunction,
    _rows,
    letter_errors,
    quality_errors,
)

from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import get_objective

pytestmark = pytest.mark.slow
STEPS, RATE = 300, 5e-3
ROWS = _rows(TABLE.prepared_rows(), 3)


class Network(EveryFunction):
    """A small BERT and its head, all trained; drafts are the table's."""

    def __init__(self):
        nn.Module.__init__(self)
        torch.manual_seed(0)
        backbone = tiny_backbone("bert", vocab_size=MASK + 1, hidden_size=48, num_hidden_layers=2)
        backbone.set_attn_implementation("eager")
        self.model = attach_quality_head(backbone, PrismConfig(mask_token_id=MASK, train_backbone=True, base_rate=0.5))
        self.quality_head = self.model.quality_head
        self.proposal = EveryFunction().proposal

    def forward(self, ids, attention_mask=None, *, logits_at=None, with_quality=True, history=None):
        if not torch.is_grad_enabled():
            return super().forward(ids, logits_at=logits_at, with_quality=False)
        return self.model(ids, attention_mask, logits_at=logits_at, with_quality=with_quality)

    def everywhere(self):
        """What it says of each canvas, laid out as the table is."""
        with torch.no_grad():
            found = self.model(CANVASES, logits_at=torch.ones_like(CANVASES, dtype=torch.bool))
        quality = torch.zeros(len(CANVASES), UNKNOWN + 1, LENGTH)
        quality[:, UNKNOWN] = found.quality_logits
        return {"logits": found.logits, "quality": quality}


def trained(objective, steps=STEPS):
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        objective.step(network, ROWS, epoch=step, seed=0, unwrapped=network).loss.backward()
        optimizer.step()
        schedule.step()
    return network.everywhere()


def check(errors):
    error, of_constant = errors
    print(f"what was learnt is {error:.4f} from the minimiser, the best constant {of_constant:.3f}")
    assert of_constant >= 0.1
    assert error <= 0.01


@pytest.mark.parametrize("name", ["rolled out", "backplay"])
def test_quality(name):
    objective, outcomes, how = QUALITY[name]
    check(quality_errors(trained(objective), reference.quality(outcomes(), **how)))


@pytest.mark.parametrize("name", ["proseco", "scope"])
def test_repair(name):
    objective, outcomes, how = REPAIR[name]
    check(letter_errors(trained(objective), reference.repair(outcomes(), **how)))


def test_a_soft_target():
    found = trained(get_objective("remedi", mid_rate=0.2, quality_weight=1.0, **SHARED), steps=800)
    outcomes = list(reference.random_tokens(COUNTS, LOW, HIGH, mid_rate=0.2))
    letters = reference.repair(outcomes, where="masked", by_time=True)
    check(letter_errors(found, letters))
    weights = reference.repair(outcomes, where="masked")
    at_masks = {key: (weights[key][0], float((p**2).sum())) for key, (_, p) in letters.items()}
    check(quality_errors(found, reference.quality(outcomes) | at_masks))
