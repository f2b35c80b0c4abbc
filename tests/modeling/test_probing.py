"""The probes see what they are there for, on real models with one thing wrong, and leave the model as it was."""

import copy
import socket

import pytest
import torch
from families import with_marks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertForMaskedLM, LlamaForCausalLM
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from prism_plugin.backbones import BackboneSpec, evaluation_mode, get_spec_by_model_type, probe, register_backbone
from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.backbones.rotary import check_rotary_tables
from prism_plugin.errors import BackboneError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.probing import FORWARD_CHECKS, probe_model
from prism_plugin.testing import TINY_FAMILIES, tiny_backbone

MASK = PrismConfig(mask_token_id=31)
NAMES = ["finite", "bidirectional", "padding", "alignment", "gathered_logits", "training", "rotary_tables", "head_dtype"]


class IgnoresItsMask(BertForMaskedLM):
    """As LLaDA was before October 2025: the mask is taken and not used."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids)


class CausalUnderAMask(LlamaForCausalLM):
    """As LLaDA2: one zero in the mask and every row attends to the left only."""

    def forward(self, input_ids, attention_mask=None):
        self.config.is_causal = attention_mask is not None and not attention_mask.all()
        return super().forward(input_ids, attention_mask=attention_mask)


class Draws(BertForMaskedLM):
    """Draws a number in evaluation too, as routers with jitter do."""

    def forward(self, input_ids, attention_mask=None):
        torch.rand(1)
        return super().forward(input_ids, attention_mask=attention_mask)


class MixesPositions(BertOnlyMLMHead):
    """An LM head that reads the neighbour too, so that rows cannot be taken in front of it."""

    def forward(self, sequence_output):
        return super().forward(sequence_output + sequence_output.roll(1, 1))


class Fails(BertForMaskedLM):
    """Stands for remote code that has grown too old."""

    def forward(self, input_ids, attention_mask=None):
        raise AttributeError("'LLaDAConfig' object has no attribute 'use_cache'.\nmore")


@pytest.fixture
def specs(monkeypatch):
    """A table of specs that a test may change."""
    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {spec.model_type: spec for spec in BUILTIN_SPECS})


def as_class(cls, family):
    return cls(tiny_backbone(family).config).eval()


def by_name(model):
    return {check.name: check for check in probe_model(model)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", with_marks(*TINY_FAMILIES))
def test_every_family_passes(family, dtype):
    checks = by_name(attach_quality_head(tiny_backbone(family).to(dtype), MASK))
    assert list(checks) == NAMES
    assert all(check.ok for check in checks.values())
    assert checks["bidirectional"].figure > 1e-3
    assert checks["padding"].figure == 0.0
    assert checks["gathered_logits"].figure < (1e-5 if dtype == torch.float32 else 1e-1)
    assert checks["rotary_tables"].figure < 1e-2
    assert "not to be seen here" in checks["alignment"].detail


def test_the_model_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # whoever opens a connection fails
    backbone = tiny_backbone("llama", dropout=0.5).train()
    state = {key: value.clone() for key, value in [*backbone.named_parameters(), *backbone.named_buffers()]}
    model = attach_quality_head(backbone, MASK)
    model.plain_backbone.model.layers[0].eval()
    modes = [module.training for module in backbone.modules()]
    random_state = torch.get_rng_state()
    assert all(check.ok for check in probe_model(model))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in [*backbone.named_parameters(), *backbone.named_buffers()])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not [module for module in backbone.modules() if module._forward_pre_hooks and module is not backbone.lm_head]


def test_chance_inside_the_model_leaves_the_random_state():
    model = attach_quality_head(as_class(Draws, "bert"), MASK)
    random_state = torch.get_rng_state()
    probe_model(model)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_model_that_ignores_its_mask(specs):
    backbone = as_class(IgnoresItsMask, "bert")
    with pytest.raises(BackboneError, match=r"IgnoresItsMask ignores its attention mask: a padded token moves .*'none'"):
        attach_quality_head(backbone, MASK)
    assert not backbone.cls._forward_pre_hooks
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    bert = get_spec_by_model_type("bert")
    register_backbone(BackboneSpec("bert", "cls", bert.lora_target_modules, attention_mask="none"), replace=True)
    check = by_name(attach_quality_head(backbone, MASK))["padding"]
    assert (check.ok, check.figure) == (True, None)
    assert "takes no attention mask" in check.detail


def test_a_model_that_turns_causal_under_a_mask():
    with pytest.raises(BackboneError, match="CausalUnderAMask attends to the left only as soon as its mask has a zero"):
        attach_quality_head(as_class(CausalUnderAMask, "llama"), MASK)


def test_a_causal_model_that_its_config_does_not_give_away(specs):
    backbone = tiny_backbone("llama")
    for layer in backbone.model.layers:
        layer.self_attn.is_causal = True
    backbone.config.is_causal = True
    register_backbone(BackboneSpec("llama", "lm_head", ("q_proj",)), replace=True)
    with pytest.raises(BackboneError, match=r"in LlamaForCausalLM the last token does not reach .*`backbone.config.is_causal"):
        attach_quality_head(backbone, MASK)


def test_rows_gathered_at_the_wrong_place(specs):
    backbone = tiny_backbone()
    backbone.cls.__class__ = MixesPositions
    with pytest.raises(
        BackboneError, match=r"gathered at `cls` must give .* those of BertForMaskedLM differ by .*`final_hidden"
    ):
        attach_quality_head(backbone, MASK)
    register_backbone(BackboneSpec("bert", "bert.encoder.layer.1", ("query",)), replace=True)
    with pytest.raises(BackboneError, match=r"The forward of BertForMaskedLM failed \(RuntimeError: .*, correct its Backbone"):
        attach_quality_head(tiny_backbone(), MASK)


@pytest.mark.parametrize("damage", [float("nan"), 1e25, 0.5])
def test_a_damaged_rotary_table(damage):
    backbone = tiny_backbone("llama", hidden_size=32)
    backbone.model.rotary_emb.inv_freq[1:] = damage
    with pytest.raises(BackboneError, match=r"`model.rotary_emb.inv_freq` of LlamaForCausalLM .* starts 1, .*`load_backbone`"):
        attach_quality_head(backbone, MASK)


def test_a_rotary_table_that_was_cast_is_not_damaged():
    backbone = tiny_backbone("llama", hidden_size=64)
    backbone.config.rope_parameters["rope_theta"] = 1e7
    backbone.model.rotary_emb = type(backbone.model.rotary_emb)(backbone.config)
    for dtype in (torch.bfloat16, torch.float16):
        cast = copy.deepcopy(backbone).to(dtype)
        table = cast.model.rotary_emb.inv_freq
        assert table.dtype == dtype
        assert check_rotary_tables(cast).ok
    # Float16 steps are as wide as that at the smallest of these frequencies.
    exact = backbone.model.rotary_emb.inv_freq
    assert ((table.float() - exact).abs() / exact).max() > 1e-2


def test_a_rotary_table_of_another_base():
    backbone = tiny_backbone("modernbert", hidden_size=32)
    assert check_rotary_tables(backbone).figure < 1e-6
    table = backbone.model.rotary_emb.sliding_attention_inv_freq
    table.copy_(table**0.5)
    with pytest.raises(BackboneError, match=r"`model.rotary_emb.sliding_attention_inv_freq` of ModernBert"):
        attach_quality_head(backbone, MASK)


class OldRotary(nn.Module):
    """As in remote code: nothing to compute the table again from."""

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, dim, 2) / dim), persistent=False)


def test_a_rotary_table_without_a_config():
    backbone = tiny_backbone()
    backbone.bert.rotary = OldRotary(16)
    assert check_rotary_tables(backbone).figure < 1e-6
    for damage in (torch.full((8,), 0.3), torch.linspace(1, 0.1, 8), torch.zeros(8)):
        backbone.bert.rotary.inv_freq.copy_(damage)
        assert check_rotary_tables(backbone).ok is False


def test_weights_that_are_not_numbers():
    backbone = tiny_backbone()
    backbone.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(BackboneError, match=r"BertForMaskedLM gives final hidden states that are not finite.*load them again"):
        attach_quality_head(backbone, MASK)


def test_a_forward_that_fails():
    with pytest.raises(
        BackboneError,
        match=r"The forward of Fails failed \(AttributeError: 'LLaDAConfig' .* 'use_cache'\); load it",
    ):
        attach_quality_head(as_class(Fails, "bert"), MASK)


def test_a_head_of_another_dtype():
    model = attach_quality_head(tiny_backbone(), MASK)
    model.quality_head.layers[0].weight.data = model.quality_head.layers[0].weight.data.double()
    check = by_name(model)["head_dtype"]
    assert (check.ok, check.figure) == (False, 1.0)
    assert "must stay float32" in check.detail


def test_without_weights_the_checks_say_that_they_were_not_run():
    checks = by_name(attach_quality_head(tiny_backbone("llama").to("meta"), MASK))
    assert [checks[name].ok for name in NAMES] == [None] * 7 + [True]
    assert {checks[name].detail for name in (*FORWARD_CHECKS, "rotary_tables")} == {"not run: no weights"}


def test_sharded_weights_are_not_looked_at(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        backbone = fully_shard(tiny_backbone(), mesh=init_device_mesh("cpu", (1,)))
        checks = by_name(attach_quality_head(backbone, MASK))
    finally:
        torch.distributed.destroy_process_group()
    assert {checks[name].detail for name in FORWARD_CHECKS} == {"not run: weights are sharded over processes"}


@pytest.mark.parametrize(("positions", "vocab_size"), [(5, 32), (64, 5)])
def test_models_that_are_too_small_to_probe(positions, vocab_size):
    backbone = tiny_backbone(max_position_embeddings=positions - 1, vocab_size=vocab_size)
    backbone.config.eos_token_id, backbone.config.bos_token_id = 2, 3
    checks = by_name(attach_quality_head(backbone, PrismConfig(mask_token_id=vocab_size - 1)))
    assert {checks[name].ok for name in FORWARD_CHECKS} == {None}
    assert "probing needs 6 positions and 2 plain tokens" in checks["finite"].detail


@pytest.fixture(scope="module")
def repeating():
    """A tiny BERT that has learnt to continue the patterns of its first few tokens."""
    torch.manual_seed(0)
    backbone = tiny_backbone()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-2)
    for _ in range(60):
        tokens = torch.arange(12) % torch.randint(2, 5, (32, 1)) + 2
        masked = torch.rand(32, 12) < 0.15
        logits = backbone(input_ids=tokens.masked_fill(masked, 31)).logits
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits[masked], tokens[masked]).backward()
        optimizer.step()
    return backbone


def test_a_trained_model_shows_its_alignment(repeating):
    model = attach_quality_head(repeating, MASK)
    check = by_name(model)["alignment"]
    model.detach()
    assert check.ok
    assert check.figure > 2
    assert "same_position, seen when it repeats a pattern" in check.detail


def test_a_spec_that_a_trained_model_contradicts(repeating, specs):
    register_backbone(BackboneSpec("bert", "cls", ("query",), logits_alignment="next_token"), replace=True)
    with pytest.raises(BackboneError, match=r"aligned as 'next_token', but BertForMaskedLM repeats .* as 'same_position' does"):
        attach_quality_head(repeating, MASK)


def test_a_failure_names_the_first_check():
    passed, failed = probe.Check("a", True, 0.0, "fine"), probe.Check("b", False, 1.0, "It must not; stop.")
    probe.require_ok([passed, probe.not_run("c", "no weights")])
    with pytest.raises(BackboneError, match=r"^It must not; stop\.$"):
        probe.require_ok([passed, failed])


def test_modes_come_back_even_after_an_error():
    model = tiny_backbone().train()
    model.cls.eval()
    with evaluation_mode(model):
        assert not model.training
    with pytest.raises(IndexError), evaluation_mode(model):
        model(input_ids=torch.tensor([[99]]))
    assert model.training
    assert not model.cls.training
