"""Specs are literals that agree with live models; the mask token id is found in one stated order."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from prism_plugin.backbones import (
    BackboneSpec,
    check_backbone,
    get_backbone_spec,
    get_spec_by_model_type,
    max_row_length,
    register_backbone,
    resolve_mask_token_id,
)
from prism_plugin.backbones import spec as specs
from prism_plugin.errors import BackboneError, MaskTokenError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import TINY_FAMILIES, tiny_backbone, tiny_tokenizer

BERT = get_spec_by_model_type("bert")


def config_of(vocab_size=32, **values):
    return BertConfig(vocab_size=vocab_size, **values)


def test_there_are_families():
    assert len(TINY_FAMILIES) >= 10


@pytest.mark.parametrize(
    ("family", "most"),
    [("bert", 65), ("roberta", 64), ("mpnet", 63), ("gpt2", 65), ("roformer", 65), ("deberta-v2", None), ("llama", None)],
)
def test_how_long_a_row_may_be(family, most):
    backbone = tiny_backbone(family)
    assert max_row_length(backbone) == most
    if most is not None:
        assert backbone(input_ids=torch.full((1, most), 5)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            backbone(input_ids=torch.full((1, most + 1), 5))


def test_unknown_model_type_says_how_to_go_on():
    with pytest.raises(
        BackboneError, match=r"No BackboneSpec is registered for model type 'berta' \(did you mean 'bert'\?\).*register"
    ):
        get_spec_by_model_type("berta")


def test_something_that_is_no_model_is_refused():
    with pytest.raises(BackboneError, match=r"must be a transformers model with `config.model_type`, got Linear"):
        get_backbone_spec(torch.nn.Linear(1, 1))


def test_registering_twice_needs_replace(monkeypatch):
    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {"bert": BERT})
    register_backbone(BERT)
    other = BackboneSpec("bert", "lm_head", ("query",))
    with pytest.raises(BackboneError, match=r"model type 'bert' is registered already.*`replace=True`"):
        register_backbone(other)
    register_backbone(other, replace=True)
    assert get_spec_by_model_type("bert") is other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": ""}, "needs `model_type` and `final_hidden_at`"),
        ({"final_hidden_at": ""}, "needs `model_type` and `final_hidden_at`"),
        (
            {"logits_alignment": "shifted"},
            "`logits_alignment` of .* must be one of 'same_position', 'next_token', got 'shifted'",
        ),
        ({"attention_mask": "5d"}, "`attention_mask` of a BackboneSpec must be one of '2d', '4d', 'none', got '5d'"),
        ({"pads": "seen"}, "`pads` of a BackboneSpec must be one of 'ignored', 'supervised', got 'seen'"),
        ({"attention_block_length": 4}, "at least 1 and goes with `attention_mask='4d'`, got 4 with '2d'"),
        ({"attention_mask": "4d", "attention_block_length": 0}, "at least 1 and goes with .* got 0 with '4d'"),
        ({"mask_token_vocab_size": 9}, "says which vocabulary `mask_token_id` belongs to, but that is None"),
    ],
)
def test_a_spec_checks_itself(values, message):
    with pytest.raises(BackboneError, match=message):
        BackboneSpec(**{"model_type": "x", "final_hidden_at": "lm_head", "lora_target_modules": ("q",), **values})


def test_mask_token_id_comes_from_argument_config_tokenizer_spec_in_this_order():
    tokenizer = tiny_tokenizer()
    spec = BackboneSpec("bert", "cls", ("query",), mask_token_id=7)
    told = config_of(mask_token_id=5)
    assert resolve_mask_token_id(4, told, None, spec) == (4, "PrismConfig.mask_token_id")
    assert resolve_mask_token_id(None, told, None, spec) == (5, "the model's config.mask_token_id")
    assert resolve_mask_token_id(None, config_of(), tokenizer, spec) == (31, "the tokenizer's mask_token_id")
    assert resolve_mask_token_id(None, config_of(), None, spec) == (7, "the BackboneSpec of 'bert'")


def test_no_mask_token_anywhere():
    with pytest.raises(MaskTokenError, match=r"No mask token id is known.*PrismConfig\(mask_token_id=...\)"):
        resolve_mask_token_id(None, config_of(), None, BERT)


@pytest.mark.parametrize("wrong", [32, -1, True, "31"])
def test_mask_token_outside_the_vocabulary(wrong):
    with pytest.raises(MaskTokenError, match=rf"an integer in \[0, 32\).*PrismConfig.mask_token_id says {wrong!r}"):
        resolve_mask_token_id(wrong, config_of(), None, BERT)


@pytest.mark.parametrize(("argument", "config"), [(30, config_of()), (None, config_of(mask_token_id=30))])
def test_mask_token_that_the_tokenizer_contradicts(argument, config):
    with pytest.raises(MaskTokenError, match=r"mask token is 30, but the tokenizer's mask token '\[MASK\]' is 31"):
        resolve_mask_token_id(argument, config, tiny_tokenizer(), BERT)


def test_a_model_without_lm_head_is_refused():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 32}
    with pytest.raises(BackboneError, match=r"behind a module `cls`, which BertForSequenceClassification lacks; load it with"):
        check_backbone(BertForSequenceClassification(BertConfig(**sizes)), BERT)


@pytest.mark.parametrize("is_causal", [True, None])
def test_a_causal_model_is_refused_with_the_fix(is_causal):
    backbone = tiny_backbone("qwen3")
    if is_causal is None:
        del backbone.config.is_causal
    else:
        backbone.config.is_causal = is_causal
    with pytest.raises(BackboneError, match=r"Qwen3ForCausalLM attends to the left only.*`backbone.config.is_causal = False`"):
        check_backbone(backbone, get_backbone_spec(backbone))


def test_a_decoder_is_refused_with_the_fix():
    backbone = tiny_backbone("bert")
    backbone.config.is_decoder = True
    with pytest.raises(BackboneError, match=r"`config.is_decoder=True`; load it with `is_decoder=False`"):
        check_backbone(backbone, BERT)


def test_tokenizer_and_model_must_agree():
    with pytest.raises(BackboneError, match=r"The tokenizer has 32 tokens, but BertForMaskedLM has a vocabulary of 20"):
        check_backbone(tiny_backbone(vocab_size=20), BERT, tiny_tokenizer())


def test_settings_must_be_attributes_of_the_model(monkeypatch):
    wrong = replace(BERT, settings_while_attached=(("config.use_cache", False), ("bert.speed.limit", 3)))
    monkeypatch.setitem(specs._SPECS, "bert", wrong)
    backbone = tiny_backbone()
    with pytest.raises(
        BackboneError, match=r"must name attributes of the model, but BertForMaskedLM has no `bert.speed.limit`"
    ):
        attach_quality_head(backbone, PrismConfig(mask_token_id=31))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
