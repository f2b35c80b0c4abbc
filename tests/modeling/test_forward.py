"""One forward gives the rows that are asked for, bit for bit what the whole LM head gives, and quality everywhere."""

import copy
import threading

import pytest
import torch
from families import with_marks
from peft import LoraConfig
from torch import nn

from prism_plugin.backbones import BackboneSpec, dropout_off, register_backbone
from prism_plugin.backbones.call import call_arguments
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import TINY_FAMILIES, tiny_backbone


@pytest.mark.parametrize("family", with_marks(*TINY_FAMILIES))
def test_head_reads_the_final_hidden_state(family, ids):
    model = attach_quality_head(tiny_backbone(family), PrismConfig(mask_token_id=31))
    last = model.backbone(**call_arguments(model.spec, ids, None), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model(ids, output_hidden_states=True).hidden_states, last, atol=1e-5, rtol=0)


def test_next_token_alignment_takes_the_row_before(monkeypatch, ids):
    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {})
    register_backbone(BackboneSpec("bert", "cls", ("query",), logits_alignment="next_token"))
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31))
    full = model.backbone(input_ids=ids).logits
    shifted = torch.cat([full[:, :1], full[:, :-1]], dim=1)
    wanted = torch.rand(ids.shape) < 0.7
    wanted[1, 0] = True
    torch.testing.assert_close(model(ids, logits_at=wanted).logits, shifted[wanted], atol=1e-5, rtol=0)


def test_a_family_without_attention_mask_never_gets_one(monkeypatch, ids):
    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {})
    register_backbone(BackboneSpec("bert", "cls", ("query",), attention_mask="none"))
    model = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31))
    everything = torch.ones_like(ids).bool()
    half = everything.clone()
    half[:, 4:] = False
    assert torch.equal(model(ids, half, logits_at=everything).logits, model(ids, logits_at=everything).logits)


@pytest.mark.parametrize("wrong", [torch.ones(3, 6).bool(), torch.ones(3, 7), torch.ones(3, dtype=torch.int32)])
def test_logits_at_must_be_a_mask_or_an_index(lora_model, ids, wrong):
    with pytest.raises(ConfigurationError, match=r"bool mask of shape \(3, 7\) or an int64 index of flat positions, got"):
        lora_model(ids, logits_at=wrong)


def test_forward_takes_no_other_arguments(lora_model, ids):
    with pytest.raises(TypeError, match="labels"):
        lora_model(ids, labels=ids)
    assert lora_model.accepts_loss_kwargs is False


def test_the_backbone_alone_gives_full_logits_also_after_an_error(lora_model, ids):
    handle = lora_model.get_output_embeddings().register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
    with pytest.raises(BackboneError, match="boom"):
        lora_model(ids, logits_at=torch.tensor([0]))
    handle.remove()
    assert lora_model.backbone(input_ids=ids).logits.shape == (3, 7, 32)


def test_a_call_inside_a_call_does_not_disturb_it(ids):
    outer = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31))
    inner = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=31))
    alone = outer(ids, logits_at=torch.tensor([1, 2])).logits
    handle = outer.plain_backbone.bert.register_forward_pre_hook(lambda *_: inner(ids[:1]) and None)
    assert torch.equal(outer(ids, logits_at=torch.tensor([1, 2])).logits, alone)
    handle.remove()
    shapes = []
    handle = outer.plain_backbone.bert.register_forward_pre_hook(
        lambda *_: shapes.append(inner.backbone(input_ids=ids[:1]).logits.shape)
    )
    outer(ids, logits_at=torch.tensor([1, 2]))
    handle.remove()
    assert shapes == [(1, 7, 32)]


def test_threads_do_not_disturb_each_other(lora_model, ids):
    expected = {n: lora_model(ids, logits_at=torch.arange(n)).logits for n in (1, 5)}
    wrong = []

    def call(n):
        with torch.no_grad():
            wrong.extend(
                n for _ in range(20) if not torch.equal(lora_model(ids, logits_at=torch.arange(n)).logits, expected[n])
            )

    threads = [threading.Thread(target=call, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_deep_copy_works_on_its_own(lora_model, ids):
    twin = copy.deepcopy(lora_model)
    assert torch.equal(twin(ids, logits_at=torch.tensor([3])).logits, lora_model(ids, logits_at=torch.tensor([3])).logits)
    twin.detach()
    assert lora_model(ids, logits_at=torch.tensor([3])).logits.shape == (1, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch.compile warns about changes with its version
def test_torch_compile(lora_model, ids):
    full = lora_model.backbone(input_ids=ids).logits.flatten(0, 1)
    quality = lora_model(ids).quality_logits
    compiled = torch.compile(lora_model, backend="eager")
    for index in ([2, 8], [0, 1], [5], []):  # a request must not be compiled in
        output = compiled(ids, logits_at=torch.tensor(index, dtype=torch.int64))
        torch.testing.assert_close(output.logits, full[index])
        torch.testing.assert_close(output.quality_logits, quality)
    assert lora_model.backbone(input_ids=ids).logits.shape == (3, 7, 32)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_activation_checkpointing_changes_no_gradient(family, use_reentrant, ids):
    model = attach_quality_head(
        tiny_backbone(family), PrismConfig(mask_token_id=31), lora=LoraConfig(r=2, init_lora_weights=False)
    ).train()
    nn.init.normal_(model.quality_head.layers[-1].weight)

    def gradients():
        model.zero_grad()
        output = model(ids, logits_at=torch.tensor([1, 5]))
        (output.logits.logsumexp(-1).sum() + output.quality_logits.sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})  # the older name, which people type
    assert model.is_activation_checkpointing
    assert model.is_gradient_checkpointing
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name])
    model.gradient_checkpointing_disable()
    assert not model.is_activation_checkpointing


@pytest.mark.parametrize("family", with_marks(*TINY_FAMILIES))
def test_dropout_off_takes_the_chance_out_and_puts_it_back(family, ids):
    model = attach_quality_head(
        tiny_backbone(family, dropout=0.5),
        PrismConfig(mask_token_id=31),
        lora=LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False),
    )
    everything = torch.ones_like(ids).bool()
    quiet = model(ids, logits_at=everything).logits
    model.train()
    noisy = model(ids, logits_at=everything).logits
    with dropout_off(model):
        assert all(module.training for module in model.modules())
        torch.testing.assert_close(model(ids, logits_at=everything).logits, quiet, atol=1e-5, rtol=0)
    assert not torch.allclose(noisy, quiet, atol=1e-3)
    torch.manual_seed(1)
    one = model(ids, logits_at=everything).logits
    assert not torch.allclose(one, model(ids, logits_at=everything).logits, atol=1e-3)


def test_a_spec_whose_module_is_never_reached(monkeypatch):
    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {})
    register_backbone(BackboneSpec("bert", "cls.predictions.transform.transform_act_fn", ("query",)))
    backbone = tiny_backbone()
    backbone.cls.predictions.transform.forward = backbone.cls.predictions.transform.dense.forward
    backbone.cls.predictions.transform.transform_act_fn = nn.Identity()
    with pytest.raises(BackboneError, match=r"must pass through `cls.*` and return `logits`, but it did not"):
        attach_quality_head(backbone, PrismConfig(mask_token_id=31))
