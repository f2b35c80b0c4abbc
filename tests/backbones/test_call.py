"""What a backbone's forward is given follows from its spec alone."""

import pytest
import torch

from prism_plugin.backbones import BackboneSpec, call_arguments, pairwise_mask


def spec(**values):
    return BackboneSpec(model_type="x", final_hidden_at="lm_head", lora_target_modules=("q",), **values)


IDS = torch.arange(6).view(2, 3)
PRESENT = torch.tensor([[True, True, True], [True, True, False]])


def test_tokens_alone():
    assert call_arguments(spec(), IDS, None) == {"input_ids": IDS}


@pytest.mark.parametrize("given", [PRESENT, PRESENT.long()])
def test_a_2d_mask_is_integers(given):
    assert torch.equal(call_arguments(spec(), IDS, given)["attention_mask"], PRESENT.long())


def test_no_mask_for_a_family_that_takes_none():
    assert "attention_mask" not in call_arguments(spec(attention_mask="none"), IDS, PRESENT)


def test_a_4d_mask_hides_padding_as_key_only():
    mask = call_arguments(spec(attention_mask="4d"), IDS, PRESENT.long())["attention_mask"]
    assert mask.shape == (2, 1, 3, 3)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, PRESENT[:, None, None, :].expand(2, 1, 3, 3))
    assert "attention_mask" not in call_arguments(spec(attention_mask="4d"), IDS, None)


def test_blocks_see_themselves_and_what_is_before():
    mask = pairwise_mask(torch.ones(1, 5).bool(), 2)[0, 0]
    blocks = [0, 0, 1, 1, 2]
    for query, key in torch.cartesian_prod(torch.arange(5), torch.arange(5)).tolist():
        assert mask[query, key] == (blocks[key] <= blocks[query])


def test_blocks_are_counted_from_the_first_token_of_a_row():
    present = torch.tensor([[False, True, True, True], [True, True, True, False]])
    mask = pairwise_mask(present, 2)
    assert torch.equal(mask[0, 0, 1:, 1:], mask[1, 0, :3, :3])
    assert not mask[0, 0, :, 0].any()


def test_a_family_with_blocks_gets_its_mask_without_padding_too():
    whole = call_arguments(spec(attention_mask="4d", attention_block_length=2), IDS, None)["attention_mask"]
    assert torch.equal(whole, pairwise_mask(torch.ones(2, 3).bool(), 2))


def test_further_arguments():
    given = call_arguments(spec(call_arguments=(("use_cache", False),), time_argument="timesteps"), IDS, None)
    assert given["use_cache"] is False
    assert torch.equal(given["timesteps"], torch.zeros(2))
