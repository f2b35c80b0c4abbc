"""What a model knows in front of a block is seen of models that were trained behind clean blocks, and behind noised ones."""

import pytest
import torch
from torch.nn import functional as F

import prism_plugin as prism
from prism_plugin.modeling.block_context import fill_behind_blocks, judge_block_context
from prism_plugin.testing import tiny_backbone

BLOCK, LENGTH, MASK = 4, 16, 31


def rows(count, seed):
    """Each block repeats the first one, so a mask can be filled by what stands before."""
    first = torch.randint(3, MASK, (count, BLOCK), generator=torch.Generator().manual_seed(seed))
    return first.repeat(1, LENGTH // BLOCK)


def batch_of(ids):
    ones = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "maskable": ones.bool(), "example_id": torch.arange(len(ids))}


def trained(known, steps=300):
    torch.manual_seed(0)
    backbone = tiny_backbone("sdar", hidden_size=32)
    model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=MASK, train_backbone=True))
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    blocks = torch.arange(LENGTH) // BLOCK
    for step in range(steps if known else 0):
        ids = rows(32, step + 10)
        share = torch.rand(32, 1, generator=generator)
        masked = torch.rand(ids.shape, generator=generator) < share
        if known == "clean":
            masked &= blocks == torch.randint(LENGTH // BLOCK, (32, 1), generator=generator)
        output = model(ids.masked_fill(masked, MASK), logits_at=masked, with_quality=False)
        loss = F.cross_entropy(output.logits, ids[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ("clean", "it knows clean blocks alone before a block"),
        ("noised", "masks before a block do not disturb it"),
        (None, "not to be seen"),
    ],
)
def test_what_a_model_was_trained_behind_is_told(known, words):
    model = trained(known)
    state = torch.get_rng_state()
    filled = torch.cat([fill_behind_blocks(model, batch_of(rows(32, seed))) for seed in range(4)])
    assert torch.equal(torch.get_rng_state(), state)
    check = judge_block_context(filled)
    assert check.ok
    assert check.detail.startswith(words), check.detail
    if known is not None:
        assert filled[:, 1].mean() < 0.2 * filled[:, 2].mean(), "it learnt to look back"
    assert not model.plain_backbone._forward_pre_hooks


def test_rows_of_one_block_and_of_other_lengths():
    model, ids = trained(None), rows(6, 0)
    batch = batch_of(ids)
    batch["attention_mask"] = (torch.arange(LENGTH) < torch.tensor([16, 4, 3, 9, 13, 5]).unsqueeze(-1)).long()
    filled = fill_behind_blocks(model, batch)
    assert filled.isfinite().all()
    assert len(filled) <= 4 * 3, "two rows have one block alone"
    assert judge_block_context(filled[:5]).ok is None
