import copy

import pytest
import torch
from peft import LoraConfig
from remote_families import STANDIN_FAMILIES

import prism_plugin as prism
from prism_plugin.backbones import load_backbone
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.testing import tiny_backbone, tiny_tokenizer


def save(family, folder):
    """A folder with a tiny backbone: a stock Llama, or one with LLaDA's own code."""
    if family == "llada":
        STANDIN_FAMILIES["llada"].save(folder)
    else:
        tiny_backbone(family).save_pretrained(folder)
    return {"trust_remote_code": family == "llada"}


@pytest.fixture
def needs_bitsandbytes():
    pytest.importorskip("bitsandbytes", reason='4-bit weights need the extra "quantization"')


def as_with_avx512_bf16(layers):
    """There, and on no other processor, bitsandbytes packs what is called in evaluation mode; no gradient passes after that."""
    for layer in layers:
        assert hasattr(layer, "support_avx512bf16_for_cpu"), "bitsandbytes calls it otherwise now"
        layer.support_avx512bf16_for_cpu = True


@pytest.mark.usefixtures("needs_bitsandbytes")
@pytest.mark.parametrize("family", ["llama", "llada"])
def test_one_step_on_4_bit_weights_moves_lora_and_the_float32_head_only(family, tmp_path):
    trust = save(family, tmp_path / "backbone")
    backbone = load_backbone(tmp_path / "backbone", quantization="nf4", **trust)
    assert backbone.is_quantized
    in_4_bits = [module for module in backbone.modules() if type(module).__name__ == "Linear4bit"]
    assert len(in_4_bits) >= 2 * 7, "seven linear layers in each of two blocks"
    as_with_avx512_bf16(in_4_bits)
    assert type(backbone.get_output_embeddings()) is torch.nn.Linear
    assert backbone.get_output_embeddings().weight.dtype == torch.bfloat16
    model = prism.attach_quality_head(backbone, lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    before = copy.deepcopy({name: parameter.data for name, parameter in model.named_parameters()})
    args = prism.PrismTrainingArguments(
        str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        activation_checkpointing=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    objective = prism.get_objective("prism", num_drafted=2, t_min=0.5)
    rows = [{"text": "the cat sat."}] * 2
    trainer = prism.PrismTrainer(model, args, objective=objective, train_dataset=rows, eval_dataset=rows)
    trainer.evaluate()
    trainer.train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter.data, before[name])}
    assert moved
    # LoRA's A has no gradient in the first step, where its B is zero.
    assert all("lora_B" in name or name.startswith("quality_head.") for name in moved)
    assert {name.partition(".")[0] for name in moved} == {"backbone", "quality_head"}
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


@pytest.mark.usefixtures("needs_bitsandbytes")
def test_4_bit_weights_cannot_be_trained_themselves(tmp_path):
    save("llama", tmp_path)
    backbone = load_backbone(tmp_path, quantization="nf4")
    with pytest.raises(ConfigurationError, match="needs floating-point weights"):
        prism.attach_quality_head(backbone, prism.PrismConfig(train_backbone=True), tokenizer=tiny_tokenizer())


@pytest.mark.usefixtures("needs_bitsandbytes")
def test_4_bit_weights_that_were_packed_for_inference_are_not_trained(tmp_path):
    save("llama", tmp_path)
    backbone = load_backbone(tmp_path, quantization="nf4")
    model = prism.attach_quality_head(backbone, lora=LoraConfig(r=2), tokenizer=tiny_tokenizer())
    backbone.get_submodule("model.layers.1.mlp.up_proj").weight.quant_state.packing_format_for_cpu = True
    args = prism.PrismTrainingArguments(str(tmp_path), report_to="none")
    with pytest.raises(ConfigurationError, match=r"1 of the layers were called .* packs .*: model\.layers\.1\.mlp\.up_proj;"):
        prism.PrismTrainer(model, args, train_dataset=[{"text": "the cat sat."}] * 8)


def test_an_unknown_kind_and_a_missing_package_are_one_sentence(tmp_path, monkeypatch):
    save("llama", tmp_path)
    with pytest.raises(BackboneError, match="must be one of nf4 or None, got 'int3'"):
        load_backbone(tmp_path, quantization="int3")
    monkeypatch.setattr("prism_plugin.backbones.quantization.can_quantize", lambda: False)
    with pytest.raises(BackboneError, match="needs the package bitsandbytes"):
        load_backbone(tmp_path, quantization="nf4")
