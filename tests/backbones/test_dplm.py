"""DPLM is ESM-2's class with weights that need its token dropout: which of the two a model is, only its config says."""

import json

import pytest
import torch
from transformers import EsmConfig

from prism_plugin.backbones import get_spec_by_model_type, load_backbone, resolve_mask_token_id
from prism_plugin.data import Origin
from prism_plugin.errors import BackboneError, DataFormatError
from prism_plugin.modeling import attach_quality_head
from prism_plugin.testing import tiny_backbone
from prism_plugin.training.given_rows import as_prepared


def half_masked(backbone):
    ids = torch.tensor([[3, 31, 4, 31, 5, 31]])
    return ids, backbone(input_ids=ids).logits[0]


def test_dplm_is_told_from_esm_by_its_config(tmp_path):
    tiny_backbone("dplm").save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    for changes, family in (
        ({}, "dplm"),
        ({"architectures": ["EsmForDPLM"]}, "dplm"),  # as released
        ({"dplm_type": None}, "esm"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**stated, **changes}))
        backbone = load_backbone(tmp_path)
        ids, own = half_masked(backbone)
        model = attach_quality_head(backbone)
        assert model.spec.model_type == family
        off = (model(ids, logits_at=torch.arange(6)).logits - own).abs().max()
        assert off < 1e-5 if family == "dplm" else off > 0.1
        assert torch.equal(half_masked(model.detach())[1], own)


def test_what_is_released_of_dplm_says_its_mask_token():
    spec, config = get_spec_by_model_type("dplm"), EsmConfig(vocab_size=33)
    assert resolve_mask_token_id(None, config, None, spec) == (32, "the BackboneSpec of 'dplm'")


@pytest.mark.parametrize("kind", ["dplm2_esm", "dplm2_bit_esm"])
def test_dplm_2_is_not_taken_for_esm_2(kind):
    backbone = tiny_backbone("esm")
    backbone.config.dplm_type = kind
    with pytest.raises(BackboneError, match=rf"must have `config.dplm_type=None`, found '{kind}'.*otherwise it cannot be used"):
        attach_quality_head(backbone)


def test_rows_that_may_become_masks_alone_are_refused_before_training():
    rows = [{"input_ids": [2, 3, 4], "maskable": [False, True, True]}, {"input_ids": [5, 6]}]
    model = attach_quality_head(tiny_backbone("dplm"))
    as_prepared(rows[:1], model, Origin("train_dataset"))
    with pytest.raises(DataFormatError, match=r"`train_dataset\[1\]` must hold a token that is never masked, .* but is"):
        as_prepared([rows[0], {**rows[1], "maskable": [True, True]}], model, Origin("train_dataset"))
