"""Families that nobody described: real classes that either work from a look at them, or are refused with what to pass."""

import pytest
import torch
import transformers
from peft import LoraConfig

import prism_plugin as prism
from prism_plugin.backbones import (
    build_backbone,
    describe,
    get_backbone_spec,
    get_spec_by_model_type,
    infer_spec,
    load_backbone,
)
from prism_plugin.backbones import spec as known_specs
from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.testing import tiny_backbone

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.25,
}  # fmt: skip
ATTENTION = ("query", "key", "value")
XLM_TARGETS = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
XLM = {
    "emb_dim": 16, "n_layers": 2, "n_heads": 2, "n_langs": 1, "use_lang_emb": False, "max_position_embeddings": 64,
    "pad_index": 0, "bos_index": 1, "eos_index": 1, "unk_index": 2, "mask_index": 31,
}  # fmt: skip
DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# class, more of its config, where its final hidden state goes in, LoRA targets
UNKNOWN = {
    "electra": ("ElectraForMaskedLM", {"embedding_size": 8}, "generator_predictions", ATTENTION),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 8}, "predictions", (*ATTENTION, "ffn", "ffn_output")),
    "mpnet": ("MPNetForMaskedLM", {}, "lm_head", ("q", "k", "v", "o")),
    "camembert": ("CamembertForMaskedLM", {}, "lm_head", ATTENTION),
    "xlm-roberta": ("XLMRobertaForMaskedLM", {}, "lm_head", ATTENTION),
    "deberta-v2": ("DebertaV2ForMaskedLM", {}, "cls", ("query_proj", "key_proj", "value_proj")),
    "mistral": ("MistralForCausalLM", {"num_key_value_heads": 2, "head_dim": 8, "is_causal": False}, "lm_head", DECODER),
    "fnet": ("FNetForMaskedLM", {"num_attention_heads": 1}, "cls", ("intermediate.dense", "output.dense")),
    "longformer": ("LongformerForMaskedLM", {"attention_window": 4, "max_position_embeddings": 66}, "lm_head", ATTENTION),
    "xlm": ("XLMWithLMHeadModel", XLM, "pred_layer", XLM_TARGETS),
    "flaubert": ("FlaubertWithLMHeadModel", XLM, "pred_layer", XLM_TARGETS),
    "xlnet": ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, "lm_loss", ("layer_1", "layer_2")),
    "gpt_neox": (
        "GPTNeoXForCausalLM", {"is_causal": False}, "lm_head", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    ),
}  # fmt: skip

DOCUMENTED = [spec.model_type for spec in BUILTIN_SPECS if spec.reference.startswith("https://huggingface.co/docs")]
# Without an attention mask their forward looks for padding among the values; experts in float32 have no kernel without values.
READ_VALUES = {"deberta", "deberta-lm-predictions", "deberta-v2", "deberta-v2-lm-predictions", "roformer", "gpt2", "qwen3_moe"}


def built(class_name, **changes):
    model_class = getattr(transformers, class_name)
    return model_class(model_class.config_class(**{**SIZES, **changes})).eval()


@pytest.fixture
def _undescribed(monkeypatch):
    """As if nobody had described the families above."""
    described = {name: spec for name, spec in known_specs._SPECS.items() if name not in UNKNOWN}
    monkeypatch.setattr(known_specs, "_SPECS", described)


@pytest.mark.usefixtures("_undescribed")
@pytest.mark.parametrize("model_type", UNKNOWN)
def test_an_unknown_family_works_from_a_look_at_it(model_type):
    class_name, changes, final_hidden_at, targets = UNKNOWN[model_type]
    backbone = built(class_name, **changes)
    with pytest.warns(UserWarning, match=rf"for model type '{model_type}'; {class_name} was looked at .*'{final_hidden_at}'"):
        model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=31), lora=LoraConfig(r=2))
    assert (model.spec.final_hidden_at, model.spec.lora_target_modules) == (final_hidden_at, targets)
    assert eval(describe(model.spec), {"BackboneSpec": prism.BackboneSpec}) == model.spec
    ids = torch.tensor([[3, 31, 4, 31, 5]])
    full = model.plain_backbone(input_ids=ids).logits[0, [1, 3]]
    torch.testing.assert_close(model(ids, logits_at=ids == 31).logits, full, atol=1e-5, rtol=0)
    assert model(ids).quality_logits.shape == (1, 5)
    sampled = prism.RemaskingSampler(model, num_steps=2).infill(ids)
    assert (sampled.sequences != 31).all()


@pytest.mark.parametrize("family", DOCUMENTED)
def test_a_look_finds_what_the_specs_say(family):
    backbone, spec = tiny_backbone(family), get_spec_by_model_type(family)
    inferred = infer_spec(backbone)
    assert inferred.final_hidden_at == spec.final_hidden_at
    assert inferred.auto_class == spec.auto_class
    assert inferred.causal_by_default == spec.causal_by_default
    assert set(inferred.lora_target_modules) & set(spec.lora_target_modules)
    if family not in READ_VALUES:
        assert infer_spec(backbone.to("meta")) == inferred, "without weights the look must find the same"


def test_the_look_leaves_nothing_behind():
    backbone = built("ElectraForMaskedLM").train()
    infer_spec(backbone)
    assert backbone.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


class GivesNothing(torch.nn.Module):
    """As remote code may have it: a part that gives no tensor."""

    def __init__(self, nothing):
        super().__init__()
        self.nothing = nothing

    def forward(self):
        return self.nothing


class WithOddParts(transformers.ElectraForMaskedLM):
    """Calls parts that give nothing, an empty tuple and a number."""

    def forward(self, input_ids, attention_mask=None):
        for part in self.parts_of_mine:
            part()
        return super().forward(input_ids, attention_mask=attention_mask)


def test_parts_that_give_no_tensor_are_passed_by():
    backbone = WithOddParts(built("ElectraForMaskedLM").config)
    backbone.parts_of_mine = torch.nn.ModuleList(GivesNothing(nothing) for nothing in (None, (), {}, 0.5))
    assert infer_spec(backbone).final_hidden_at == "generator_predictions"


class ListsInLists(transformers.LlamaForCausalLM):
    """As diffusers' transformers have it: the feed-forward network is a list, and so is a pair of layers around it."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.SiLU(), torch.nn.Linear(32, 16))
            layer.idle = torch.nn.Linear(16, 16)
        self.lm_head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 32))

    def get_output_embeddings(self):
        return self.lm_head[1]


def test_layers_in_lists_are_named_by_their_path():
    backbone = ListsInLists(built("LlamaForCausalLM", is_causal=False).config).eval()
    spec = infer_spec(backbone)
    assert spec.final_hidden_at == "lm_head"
    assert spec.lora_target_modules == ("q_proj", "k_proj", "v_proj", "o_proj", "mlp.0", "mlp.2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known_specs._SPECS, "llama", spec)
        model = prism.attach_quality_head(backbone, prism.PrismConfig(mask_token_id=31), lora=LoraConfig(r=2))
    adapted = {name for name in model.backbone.base_model.targeted_module_names if "mlp" in name}
    assert adapted == {f"model.layers.{at}" for at in ("0.mlp.0", "0.mlp.2", "1.mlp.0", "1.mlp.2")}


def test_a_head_needs_no_layers_for_lora():
    backbone, config = built("SqueezeBertForMaskedLM", embedding_size=16), prism.PrismConfig(mask_token_id=31)
    with pytest.warns(UserWarning, match=r"lora_target_modules=\(\)"):
        prism.attach_quality_head(backbone, config).detach()
    with (
        pytest.warns(UserWarning, match="SqueezeBertForMaskedLM was looked at"),
        pytest.raises(ConfigurationError, match="SqueezeBertForMaskedLM are known that `lora` goes to by itself; name them"),
    ):
        prism.attach_quality_head(backbone, config, lora=LoraConfig(r=2))


def test_a_causal_model_of_an_unknown_family_is_refused():
    with (
        pytest.warns(UserWarning, match="GPTNeoXForCausalLM was looked at"),
        pytest.raises(BackboneError, match=r"GPTNeoXForCausalLM attends to the left only.*`backbone.config.is_causal = False`"),
    ):
        prism.attach_quality_head(built("GPTNeoXForCausalLM"), prism.PrismConfig(mask_token_id=31))


def test_convolutions_that_let_padding_through_are_seen():
    with (
        pytest.warns(UserWarning, match="ConvBertForMaskedLM was looked at"),
        pytest.raises(
            BackboneError, match=r"ConvBertForMaskedLM ignores its attention mask.*model_type='convbert', attention_mask"
        ),
    ):
        prism.attach_quality_head(built("ConvBertForMaskedLM"), prism.PrismConfig(mask_token_id=31))


class Detour(transformers.ElectraForMaskedLM):
    """Nothing outside the body is called with what the body gives, and the LM head with a part of it."""

    def forward(self, input_ids, attention_mask=None):
        states = self.electra(input_ids, attention_mask=attention_mask)[0].clone()
        self.generator_lm_head(states[0, :, :8])
        return states


@pytest.mark.usefixtures("_undescribed")
@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (lambda: built("ElectraModel"), r"since it has no LM head in `get_output_embeddings\(\)`"),
        (
            lambda: built("T5ForConditionalGeneration", d_model=16),
            "since its forward fails on plain tokens (ValueError: You must",
        ),
        (
            lambda: Detour(built("ElectraForMaskedLM", embedding_size=8).config),
            "since no module of it is called with the final",
        ),
    ],
    ids=["no head", "encoder and decoder", "detour"],
)
def test_a_family_that_cannot_be_found_out(backbone, reason):
    with pytest.raises(BackboneError) as caught:
        get_backbone_spec(backbone())
    assert reason.replace("\\", "") in str(caught.value)
    assert "; describe it with `register_backbone(BackboneSpec(model_type=" in str(caught.value)


def test_a_width_that_the_config_does_not_name():
    backbone = built("ElectraForMaskedLM")
    backbone.config.__dict__["hidden_size"] = 17
    with pytest.raises(BackboneError, match="since its final hidden state is 16 wide, which its config does not say"):
        infer_spec(backbone)


@pytest.mark.usefixtures("_undescribed")
def test_a_checkpoint_of_an_unknown_family_is_loaded_by_the_class_that_it_names(tmp_path):
    backbone = built("ElectraForMaskedLM")
    backbone.save_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(load_backbone(tmp_path)(input_ids=ids).logits, backbone(input_ids=ids).logits)
    with pytest.warns(UserWarning, match="ElectraForMaskedLM was looked at"):
        model = prism.attach_quality_head(load_backbone(tmp_path), prism.PrismConfig(mask_token_id=31))
    model.save_pretrained(tmp_path / "head")
    with pytest.warns(UserWarning, match="ElectraForMaskedLM was looked at"):
        again = prism.PrismModel.from_pretrained(tmp_path / "head")
    assert torch.equal(again.score(ids), model.score(ids))


def test_without_weights_nothing_is_allocated(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=126464, hidden_size=4096, intermediate_size=12288, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, is_causal=False, mask_token_id=126336, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    backbone = build_backbone(tmp_path)
    assert all(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))
    assert (backbone.dtype, backbone.training) == (torch.bfloat16, False)
    assert build_backbone(tmp_path, dtype="float32").dtype == torch.float32
    lora = LoraConfig(r=256, target_modules=["q_proj", "k_proj", "v_proj"])
    model = prism.attach_quality_head(backbone, lora=lora)
    assert sum(p.numel() for p in model.backbone.parameters() if p.requires_grad) == 201_326_592
    assert sum(p.numel() for p in model.quality_head.parameters()) == 16_793_601


def test_without_a_config_there_is_nothing_to_build(tmp_path):
    with pytest.raises(BackboneError, match=r"has no config.json"):
        build_backbone(tmp_path)
