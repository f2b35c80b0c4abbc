"""Drafts of families whose attention goes by blocks."""

import itertools

import pytest
import torch
from blocks import BLOCK, MASK, block_model

from prism_plugin.training import get_objective


@pytest.mark.parametrize("positions", ["random", "confidence", "semi_autoregressive"])
def test_drafts_that_are_rolled_out_are_written_in_the_order_of_the_blocks(monkeypatch, positions):
    """As a sampler of the family writes; a look may finish a block and begin the next, since drafts have few looks."""
    model = block_model(monkeypatch)
    window = {"window": 3} if positions == "semi_autoregressive" else {}
    rule = {"num_drafted": None, "share": [0.3, 0.9], "num_looks": 3, "positions": positions, **window}
    ids = torch.randint(3, MASK, (6, 22), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(22) < torch.tensor([22, 22, 9, 13, 22, 17]).unsqueeze(-1)).long()
    maskable = mask.bool() & (torch.arange(22) > 2)
    batch = {"input_ids": ids, "attention_mask": mask, "maskable": maskable, "example_id": torch.arange(6)}
    seen = []
    handle = model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    step = get_objective("prism", drafts=[rule], t_min=0.5).step(model, batch, epoch=0, seed=0, unwrapped=model)
    handle.remove()
    assert len(seen) == 4
    assert torch.equal(seen[-1], step.draft.ids)
    for before, after in itertools.pairwise(seen):
        masks, left = before == MASK, after == MASK
        for row in range(6):
            written = (masks & ~left)[row].nonzero().flatten() // BLOCK
            still = left[row].nonzero().flatten() // BLOCK
            assert not len(written) or not len(still) or written.max() <= still.min()
    assert step.draft.drafted.any(-1).all()
