"""Families whose attention goes by blocks: nothing is written in a block while one before it holds masks."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from blocks import BLOCK, MASK, block_model
from small_samplers import generators, prompts

from prism_plugin.core import EvenSchedule, P2Decider, ThresholdEditing
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.sampling import SAMPLER_CONFIG_NAME, RemaskingSampler, export_sampler
from prism_plugin.sampling.exported import load_sampler

NEW = 9


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        yield block_model(patch)


def ragged():
    """Prompts of 7, 3, 4 and 1 tokens, padded on the left; with 9 new ones, one row begins at a border, and one ends there."""
    ids, mask = prompts(4, 7), torch.zeros(4, 7, dtype=torch.long)
    for row, length in enumerate((7, 3, 4, 1)):
        mask[row, 7 - length :] = 1
    return ids, mask


def require_order(output, present):
    """Wherever a mask was filled, no block of the attention before it held one; and every block was written."""
    filled = 0
    for record in output.trace:
        for before, unmasked, own in zip(record.tokens_before, record.unmasked, present.bool(), strict=True):
            masks, written = (part[own].nonzero().flatten() // BLOCK for part in (before == MASK, unmasked))
            filled += int((unmasked & (before == MASK))[own].sum())
            assert not len(written) or not len(masks) or written.max() <= masks.min()
    assert filled >= (output.trace[0].tokens_before == MASK).sum()
    assert not (output.sequences[present.bool()] == MASK).any()


def samplers(model):
    for name in ("threshold", "prism-refine", "prism-redraft"):
        yield RemaskingSampler.from_preset(name, model, num_steps=12)
    for block_length in (None, 1, 2):
        yield RemaskingSampler.from_preset("prism", model, num_steps=12, block_length=block_length, num_remask=1)
    plain = RemaskingSampler(model, num_steps=6)
    yield replace(plain, editing=ThresholdEditing(0.1))
    yield replace(plain, decider=P2Decider(), schedule=EvenSchedule(2))


def test_no_position_is_written_while_a_block_before_it_holds_masks(model):
    ids, mask = ragged()
    present = torch.cat((mask, torch.ones(4, NEW, dtype=torch.long)), dim=1)
    for sampler in samplers(model):
        require_order(
            sampler.sample(ids, mask, max_new_tokens=NEW, generator=generators(*range(4)), return_trace=True), present
        )


def test_an_infill_keeps_the_borders(model):
    request = torch.randint(3, MASK, (3, 11), generator=torch.Generator().manual_seed(0))
    request[0, [1, 4, 5, 10]] = request[1, 3:9] = request[2, 7] = MASK
    for block_length in (None, 2):
        sampler = RemaskingSampler(model, num_steps=8, block_length=block_length)
        require_order(sampler.infill(request, return_trace=True), torch.ones_like(request))
    canvas = RemaskingSampler(model, num_steps=8).lay_infill(request)
    assert canvas.num_blocks.tolist() == [3, 3, 1], "blocks without masks take no steps"
    assert canvas.block_of[0][request[0] == MASK].tolist() == [0, 1, 1, 2]


def test_what_comes_later_changes_nothing(model):
    """Two looks a block: a block is what it is with more of them behind it, since it sees none of those."""
    ids = prompts(1, 3)
    short = RemaskingSampler(model, num_steps=4).sample(ids, max_new_tokens=5).sequences
    long = RemaskingSampler(model, num_steps=6).sample(ids, max_new_tokens=9).sequences
    assert torch.equal(short, long[:, :8])


@pytest.mark.parametrize("length", [1, 3, 4, 6])
def test_steps_are_shared_over_blocks(model, length):
    blocks = -(-(length + NEW) // BLOCK) - length // BLOCK
    output = RemaskingSampler(model, num_steps=blocks).sample(prompts(1, length), max_new_tokens=NEW)
    assert output.num_forward_passes.tolist() == [blocks]
    with pytest.raises(SamplingError, match=f"least the number of blocks, {blocks} of 4, by which .*; raise `num_steps`."):
        RemaskingSampler(model, num_steps=blocks - 1).sample(prompts(1, length), max_new_tokens=NEW)


@dataclass(frozen=True)
class ReachesBack(P2Decider):
    reach: ClassVar[str] = "begun"


@pytest.mark.parametrize("block_length", [3, 5, 6, 8, 32])
def test_other_blocks_are_refused_in_one_sentence(model, block_length):
    with pytest.raises(
        ConfigurationError, match=f"`block_length` must divide 4, since llama attends .* got {block_length}; choo"
    ):
        RemaskingSampler(model, num_steps=9, block_length=block_length)
    with pytest.raises(
        ConfigurationError, match="ReachesBack may change tokens of blocks that later ones have read, but llama"
    ):
        RemaskingSampler(model, num_steps=9, decider=ReachesBack(), schedule=EvenSchedule(1))


@pytest.mark.slow
def test_an_exported_sampler_keeps_them_too(model, tmp_path):
    sampler = RemaskingSampler(model, num_steps=12)
    export_sampler(sampler, tmp_path / "shared")
    about = json.loads((tmp_path / "shared" / "custom_generate" / "backbone.json").read_text())
    assert about["spec"]["attention_block_length"] == BLOCK
    assert json.loads((tmp_path / "shared" / SAMPLER_CONFIG_NAME).read_text())["block_length"] is None
    ids, mask = ragged()
    loaded = type(model.plain_backbone).from_pretrained(tmp_path / "shared").eval()
    with load_sampler(loaded, tmp_path / "shared") as exported:
        assert torch.equal(
            exported.sample(ids, mask, max_new_tokens=NEW).sequences, sampler.sample(ids, mask, max_new_tokens=NEW).sequences
        )
