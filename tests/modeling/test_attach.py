"""Attaching checks first, freezes what is not trained, takes any PEFT config that adapts weights, and can be undone."""

import numpy as np
import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from families import with_marks
from moved_weights import trained
from peft import LoraConfig, get_peft_model
from torch import nn
from whole_state import differences, whole_state

from prism_plugin.errors import BackboneError, ConfigurationError, MaskTokenError, PrismError
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.modeling.lm_head import has_row_gathering
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import TINY_FAMILIES, tiny_backbone, tiny_tokenizer

MASK = PrismConfig(mask_token_id=31)
ADAPTERS = {
    "lora": LoraConfig(r=2),
    "all-linear": LoraConfig(r=2, target_modules="all-linear"),
    "regex": LoraConfig(r=2, target_modules=r".*layer\.0\..*\.query"),
    "dora": LoraConfig(r=2, use_dora=True),
    "pissa": LoraConfig(r=2, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, init_lora_weights="olora"),
    "bias": LoraConfig(r=2, bias="all"),
    "modules_to_save": LoraConfig(r=2, modules_to_save=["cls"]),
    "loha": peft.LoHaConfig(r=2),
    "ia3": peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
    "oft": peft.OFTConfig(oft_block_size=4),
}


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["frozen", "lora"])
@pytest.mark.parametrize("family", with_marks(*TINY_FAMILIES))
def test_detach_gives_the_backbone_back_as_it_was(family, lora, ids):
    backbone = tiny_backbone(family)
    backbone.get_input_embeddings().weight.requires_grad_(False)  # the user's own choice comes back too
    backbone.get_submodule("cls" if family == "bert" else "").train()
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    logits, state = backbone(input_ids=ids).logits, whole_state(backbone)

    model = trained(attach_quality_head(backbone, MASK, lora=lora).train())
    if model.spec.activation_checkpointing:
        model.activation_checkpointing_enable()
    model(ids, logits_at=ids == 31).quality_logits.sum().backward()
    again = model.detach()

    assert again is backbone
    assert differences(state, whole_state(backbone)) == []
    assert list(backbone.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())
    assert torch.equal(backbone(input_ids=ids).logits, logits)
    attach_quality_head(backbone, MASK, lora=lora)  # and can be attached to again, without a warning


@pytest.mark.parametrize("name", ADAPTERS)
def test_any_config_that_adapts_weights(name, ids):
    backbone = tiny_backbone()
    logits, state = backbone(input_ids=ids).logits, whole_state(backbone)
    given = str(ADAPTERS[name])
    model = attach_quality_head(backbone, MASK, lora=ADAPTERS[name])
    assert str(ADAPTERS[name]) == given, "the user's config was written to"
    trainable = {key for key, p in model.named_parameters() if p.requires_grad}
    assert any(key.startswith("backbone.") for key in trainable)
    assert model(ids, logits_at=torch.tensor([0])).logits.shape == (1, 32)
    trained_logits = trained(model)(ids, logits_at=torch.ones_like(ids).bool()).logits.view_as(logits)
    assert not torch.allclose(trained_logits, logits, atol=1e-3)
    model.detach()
    assert differences(state, whole_state(backbone)) == []
    assert torch.equal(backbone(input_ids=ids).logits, logits)


def test_with_checkpointing_on_before(ids):
    backbone = tiny_backbone()
    backbone.activation_checkpointing_enable()
    state = whole_state(backbone)
    attach_quality_head(backbone, MASK, lora=LoraConfig(r=2)).detach()
    assert differences(state, whole_state(backbone)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained_is_float32_and_the_rest_is_frozen(dtype, ids):
    model = attach_quality_head(tiny_backbone().to(dtype), MASK, lora=LoraConfig(r=2))
    for name, parameter in model.named_parameters():
        ours = "lora_" in name or name.startswith("quality_head.")
        assert parameter.requires_grad == ours, name
        assert parameter.dtype == (torch.float32 if ours else dtype), name
    assert model(ids).quality_logits.dtype == torch.float32
    assert model.num_parameters(only_trainable=True) < model.num_parameters()


def test_default_targets_are_those_of_the_spec():
    model = attach_quality_head(tiny_backbone("modernbert"), MASK, lora=LoraConfig(r=2))
    assert {name.rpartition(".")[2] for name in model.backbone.base_model.targeted_module_names} == {"Wqkv", "Wo"}


def test_without_lora_only_the_head_is_trained():
    model = attach_quality_head(tiny_backbone(), MASK)
    assert all(p.requires_grad == name.startswith("quality_head.") for name, p in model.named_parameters())


def test_train_backbone_trains_everything():
    backbone = tiny_backbone().requires_grad_(False)
    model = attach_quality_head(backbone, PrismConfig(mask_token_id=31, train_backbone=True))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in model.detach().parameters())


def test_config_is_filled_in():
    config = attach_quality_head(tiny_backbone(), tokenizer=tiny_tokenizer()).prism_config
    assert (config.mask_token_id, config.head_hidden_size) == (31, 16)
    assert (config.backbone_model_type, config.backbone_hidden_size, config.backbone_vocab_size) == ("bert", 16, 32)
    assert config.backbone_name is None


def test_head_settings_are_used():
    config = PrismConfig(mask_token_id=31, head="mlp", head_hidden_size=5, base_rate=0.25)
    model = attach_quality_head(tiny_backbone(), config)
    assert model.quality_head.layers[1].out_features == 5
    torch.testing.assert_close(model.score(torch.tensor([[3, 4]])), torch.full((1, 2), 0.25))


def test_mode_of_the_backbone_is_taken_over():
    assert not attach_quality_head(tiny_backbone(), MASK, lora=LoraConfig(r=2)).training
    assert attach_quality_head(tiny_backbone().train(), MASK, lora=LoraConfig(r=2)).training


def test_same_seed_same_model():
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(attach_quality_head(tiny_backbone(), MASK, lora=LoraConfig(r=2)).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


REFUSED = {
    "both": (PrismConfig(mask_token_id=31, train_backbone=True), LoraConfig(r=2), "which excludes `lora`"),
    "lm head": (
        MASK,
        LoraConfig(target_modules=["query", "decoder"]),
        r"must not adapt the LM head, but .* cls.predictions.decoder;",
    ),
    "tied": (MASK, LoraConfig(target_modules=["word_embeddings"]), r"match bert.embeddings.word_embeddings;"),
    "nothing": (
        MASK,
        LoraConfig(target_modules=["qqq"]),
        r"PEFT cannot put `lora` on BertForMaskedLM \(Target modules .* the base model\); name .*, such as query, key, value",
    ),
    "half": (
        MASK,
        LoraConfig(target_modules=["query", "qqq", "rrr"]),
        "but nothing is called qqq, rrr; leave that out, or name layers of it, such as query, key, value",
    ),
    "norm": (
        MASK,
        LoraConfig(target_modules=["query", "LayerNorm"]),
        r"PEFT cannot put `lora` on BertForMaskedLM \(Target module LayerNorm.* is not supported\); name layers of it",
    ),
    "virtual": (MASK, peft.PromptTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION"), "adds virtual tokens"),
    "mask": (PrismConfig(), None, "No mask token id is known"),
    "type": (
        PrismConfig(mask_token_id=31, backbone_model_type="esm"),
        None,
        "`backbone_model_type` of the PrismConfig is 'esm'",
    ),
    "width": (PrismConfig(mask_token_id=31, backbone_hidden_size=8), None, "`backbone_hidden_size` .* is 8, but .* has 16"),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # PEFT's, about what we refuse
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_the_backbone_as_it_was(name, ids):
    config, lora, message = REFUSED[name]
    backbone = tiny_backbone()
    logits, state = backbone(input_ids=ids).logits, whole_state(backbone)
    with pytest.raises(PrismError, match=message):
        attach_quality_head(backbone, config, lora=lora)
    assert differences(state, whole_state(backbone)) == []
    assert torch.equal(backbone(input_ids=ids).logits, logits)


def test_a_wrong_mask_id_is_found_before_anything_is_changed():
    with pytest.raises(MaskTokenError, match=r"outside|integer in"):
        attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=99))


def test_a_quantised_backbone_cannot_be_trained_whole():
    backbone = tiny_backbone()
    backbone.is_quantized = True
    with pytest.raises(ConfigurationError, match="needs floating-point weights, but the backbone is quantised; use `lora`"):
        attach_quality_head(backbone, PrismConfig(mask_token_id=31, train_backbone=True))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 reads the old name
def test_an_adapter_that_is_there_already():
    wrapped = get_peft_model(tiny_backbone(), LoraConfig(target_modules=["query"]))
    for carrier in (wrapped, wrapped.get_base_model()):
        with pytest.raises(BackboneError, match="must be a plain model, but it carries a PEFT adapter; merge it"):
            attach_quality_head(carrier, MASK)


def test_a_head_that_is_there_already():
    backbone = tiny_backbone()
    model = attach_quality_head(backbone, MASK)
    with pytest.raises(BackboneError, match=r"already carries a quality head; call `detach\(\)`"):
        attach_quality_head(backbone, MASK)
    model.detach()
    assert isinstance(attach_quality_head(backbone, MASK), PrismModel)


def test_merging_keeps_the_answers(lora_model, ids):
    before = lora_model(ids, logits_at=torch.tensor([1, 4]))
    backbone = lora_model.merge_and_unload()
    after = lora_model(ids, logits_at=torch.tensor([1, 4]))
    assert backbone is lora_model.backbone
    assert not any("lora" in name for name, _ in lora_model.named_parameters())
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.quality_logits, before.quality_logits, atol=1e-5, rtol=1e-4)
    assert lora_model.merge_and_unload() is backbone
    assert not has_row_gathering(lora_model.detach().cls)


def test_what_libraries_ask_for_is_the_backbones(lora_model):
    backbone = lora_model.plain_backbone
    assert lora_model.config is backbone.config
    assert lora_model._no_split_modules == ["BertLayer"]
    assert lora_model.get_input_embeddings() is backbone.get_input_embeddings()
    assert lora_model.get_output_embeddings() is backbone.get_output_embeddings()
    assert (lora_model.dtype, lora_model.device) == (torch.float32, torch.device("cpu"))
    assert lora_model.supports_gradient_checkpointing
    assert not lora_model.is_quantized
    assert lora_model.hf_quantizer is None
    lora_model.tie_weights()
    backbone.is_quantized = True
    assert lora_model.is_quantized
    assert lora_model._hf_peft_config_loaded, "transformers refuses to train a quantised model without it"
    assert isinstance(lora_model, nn.Module)


def test_score_of_texts_and_ids(lora_model):
    texts = ["abc def", "hi", "x"]
    lora_model.train()
    lora_model.quality_head.eval()
    modes = [module.training for module in lora_model.modules()]
    quality = lora_model.score(texts)
    assert [module.training for module in lora_model.modules()] == modes
    assert quality.shape == (3, 7)
    assert not quality.requires_grad
    encoded = lora_model.tokenizer(texts, padding=True, return_tensors="pt")
    inside = encoded["attention_mask"].bool()
    assert (quality[inside] > 0).all()
    assert (quality[~inside] == 0).all()
    torch.testing.assert_close(lora_model.score(encoded["input_ids"], inside, batch_size=2), quality)
    torch.testing.assert_close(lora_model.score(["hi"])[0], quality[1, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(lora_model.score(encoded), quality)
    nothing_of_it = inside & (torch.arange(3) != 1).unsqueeze(-1)  # a row that is all padding
    torch.testing.assert_close(lora_model.score(encoded["input_ids"], nothing_of_it), quality.where(nothing_of_it, 0.0))


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_padded_on_the_tokenizers_side_with_and_without_a_padding_token(lora_model, side):
    lora_model.tokenizer.padding_side = side
    texts = ["abc def", "hi"]
    encoded = lora_model.tokenizer(texts, padding=True, return_tensors="pt")
    expected = lora_model.score(encoded["input_ids"], encoded["attention_mask"].bool())
    torch.testing.assert_close(lora_model.score(texts), expected)
    lora_model.tokenizer.pad_token = lora_model.config.pad_token_id = None
    torch.testing.assert_close(lora_model.score(texts), expected)


def test_score_refusals(lora_model):
    with pytest.raises(ConfigurationError, match="`batch_size` must be at least 1, got 0"):
        lora_model.score(["a"], batch_size=0)
    encoded = lora_model.tokenizer(["a"])
    for nothing in ("a text", b"a", [], {"input_ids": [3]}, encoded.data, {"a"}, np.ones((1, 2), int), (one for one in "a")):
        with pytest.raises(ConfigurationError, match="must be a list with at least one text, or a tensor of token ids, got"):
            lora_model.score(nothing)
    for wrong, found in (([[3, 4]], "list"), (["a", None], "NoneType"), ([b"a"], "bytes")):
        with pytest.raises(ConfigurationError, match=f"must be text, found {found}; token ids are given as a tensor"):
            lora_model.score(wrong)
    with pytest.raises(ConfigurationError, match="Text 1 must give at least one token, found ''"):
        lora_model.score(["a", ""])
    with pytest.raises(ConfigurationError, match="a BatchEncoding must hold tensors; call the tokenizer with"):
        lora_model.score(encoded)
    for wrong in (encoded, [[3]]):
        with pytest.raises(ConfigurationError, match="`input_ids` must be a tensor of token ids, found"):
            lora_model(wrong)
    with pytest.raises(ConfigurationError, match="`attention_mask` goes with token ids"):
        lora_model.score(["a"], torch.ones(1, 3).bool())
    for wrong in (-1, 32):
        with pytest.raises(ConfigurationError, match=f"in the model's vocabulary, 0 to 31, found {wrong}; use the tokenizer"):
            lora_model.score(torch.tensor([[3, wrong]]))
    with pytest.raises(ConfigurationError, match=r"must be integer ids of shape \[batch, length\] .* got int64 of shape \[2\]"):
        lora_model.score(torch.tensor([3, 4]))
    with pytest.raises(
        ConfigurationError, match=r"A row must have at most .* tokens, as many as bert has positions for, found 999"
    ):
        lora_model.score(torch.full((1, 999), 3))
    lora_model.tokenizer = None
    with pytest.raises(ConfigurationError, match="Scoring texts needs a tokenizer, but the model has none"):
        lora_model.score(["a"])


@pytest.mark.parametrize(
    "lora", [LoraConfig(r=2, init_lora_weights="pissa"), LoraConfig(r=2, bias="all")], ids=["pissa", "bias"]
)
def test_detaching_a_merged_model_keeps_what_was_merged(lora, ids):
    model = trained(attach_quality_head(tiny_backbone(), lora=lora, tokenizer=tiny_tokenizer()))
    everywhere = torch.ones_like(ids).bool()
    before = model(ids, logits_at=everywhere).logits
    model.merge_and_unload()
    after = model.detach()(ids).logits[everywhere]
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_weights_that_accelerate_offloads(family, ids):
    """As with `device_map="auto"` where not all fits: weights are on the meta device between calls, the head is not."""
    plain = trained(attach_quality_head(tiny_backbone_of_seed(family), MASK))
    expected = plain(ids, logits_at=ids > 4)
    backbone = cpu_offload(tiny_backbone_of_seed(family), execution_device=torch.device("cpu"))
    assert backbone.get_output_embeddings().weight.is_meta
    model = attach_quality_head(backbone, MASK)
    assert {parameter.device.type for parameter in model.quality_head.parameters()} == {"cpu"}
    model.quality_head.load_state_dict(plain.quality_head.state_dict())
    found = model(ids, logits_at=ids > 4)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.quality_logits, expected.quality_logits)
    torch.testing.assert_close(model.score(ids), plain.score(ids))
    filled = [RemaskingSampler(one, num_steps=3).infill(ids.where(ids > 9, 31)).sequences for one in (model, plain)]
    assert torch.equal(*filled)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_what_would_be_trained_must_not_be_offloaded(ids, place, tmp_path):
    backbone, cpu = tiny_backbone_of_seed("bert"), torch.device("cpu")
    if place == "cpu":
        cpu_offload(backbone, cpu)
    else:
        disk_offload(backbone, tmp_path, cpu)
    words = r"`lora` and `train_backbone` need weights that .* \d+ of them are offloaded, bert.embeddings.word_embeddings.we"
    before = whole_state(backbone)
    for settings in ({"lora": LoraConfig(r=2)}, {"config": PrismConfig(mask_token_id=31, train_backbone=True)}):
        with pytest.raises(ConfigurationError, match=words):
            attach_quality_head(backbone, **{"config": MASK} | settings)
    assert differences(before, whole_state(backbone)) == []
    assert attach_quality_head(backbone, MASK)(ids).quality_logits.isfinite().all()


def tiny_backbone_of_seed(family):
    torch.manual_seed(3)
    return tiny_backbone(family)
