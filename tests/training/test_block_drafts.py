"""Drafts of families whose attention goes by blocks."""

import itertools

import pytest
import torch
from blocks import BLOCK, MASK, block_model

from prism_plugin.core.noise import uniforms
from prism_plugin.errors import ConfigurationError
from prism_plugin.training import get_objective

NAMES = ["prism", "joint", "proseco", "backplay", "remedi", "smart", "cdlm", "t2t", "soft_masked"]


def batch_of(lengths, copies=1):
    """Rows of letters, the first two tokens of each given."""
    lengths = torch.tensor(lengths).repeat_interleave(copies)
    ids = torch.randint(3, MASK, (len(lengths), 22), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(22) < lengths.unsqueeze(-1)).long()
    maskable = mask.bool() & (torch.arange(22) > 1)
    return {"input_ids": ids, "attention_mask": mask, "maskable": maskable, "example_id": torch.arange(len(lengths))}


@pytest.mark.parametrize("name", NAMES)
def test_one_block_of_a_row_is_noised_behind_clean_ones(monkeypatch, name):
    model, batch, seen = block_model(monkeypatch), batch_of([22, 9, 13, 17, 22, 6]), []
    model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("input_ids")), with_kwargs=True
    )
    get_objective(name, t_min=0.5).step(model, batch, epoch=0, seed=0, unwrapped=model)
    looked = [ids for ids in seen if ids is not None]
    assert looked
    noised_in = set()
    for ids in looked:
        for row, (tokens, clean) in enumerate(zip(ids, batch["input_ids"].repeat(len(ids) // 6, 1), strict=True)):
            changed = (tokens != clean).nonzero().flatten() // BLOCK
            assert len(set(changed.tolist())) <= 1
            noised_in |= {(row % 6, block) for block in changed.tolist()}
    assert len(noised_in) <= 6, "a row has one noised block at all of its looks"
    assert len({block for _, block in noised_in}) > 1


def test_blocks_are_drawn_by_their_tokens(monkeypatch):
    model, batch = block_model(monkeypatch), batch_of([10], copies=4000)
    corruptor = get_objective("prism").corruptor
    blocks = torch.arange(22).expand(4000, -1) // BLOCK

    def noise(name, count=None):
        return uniforms(0, 0, batch["example_id"], name, 22 if count is None else count)

    maskable = corruptor.within({**batch, "attention_block": blocks}, noise)["maskable"]
    drawn = (blocks * maskable).amax(-1).bincount(minlength=3) / 4000
    torch.testing.assert_close(drawn, torch.tensor([2, 4, 2]) / 8, atol=0.03, rtol=0)
    assert ((maskable == batch["maskable"]) | ~maskable).all()
    assert model.spec.attention_block_length == BLOCK


def test_families_without_blocks_refuse_one_and_change_nothing():
    batch = batch_of([22, 9])
    corruptor = get_objective("prism").corruptor
    assert corruptor.within(batch, None) is batch
    with pytest.raises(ConfigurationError, match=r"`noised_blocks: one` needs a family that attends by blocks"):
        get_objective("prism", noised_blocks="one").corruptor.within(batch, None)


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
    step = get_objective("prism", drafts=[rule], t_min=0.5, noised_blocks="all").step(
        model, batch, epoch=0, seed=0, unwrapped=model
    )
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
