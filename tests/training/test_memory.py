"""The estimate adds up what is there, leaves the model alone, and agrees with what a process really takes."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from remote_families import MASK, STANDIN_FAMILIES
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from training_methods import FROZEN
from transformers import LlamaConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from benchmarks.memory import ALLOCATOR, BERT, SHAPES
from prism_plugin.backbones import BackboneSpec, build_backbone, register_backbone
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import get_objective
from prism_plugin.training.live_bytes import LiveBytes
from prism_plugin.training.memory import StepShape, estimate_memory

ROOT = Path(__file__).resolve().parents[2]
SHAPE = StepShape(4, 32)
SMALL = {"config": {**BERT, "hidden_size": 128, "intermediate_size": 512}, "lora": 8, "batch_size": 8, "length": 64}


def attached(family="llama", *, device="meta", lora=4, head=None, **sizes):
    backbone = tiny_backbone(family, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **sizes).to(device)
    settings = PrismConfig(mask_token_id=31, train_backbone=lora == "all", **(head or {}))
    return attach_quality_head(backbone, settings, lora=LoraConfig(r=lora) if isinstance(lora, int) else None)


def bytes_of(parameters):
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


@pytest.mark.parametrize("lora", [4, None, "all"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_stays_is_counted_tensor_by_tensor(family, lora):
    model = attached(family, lora=lora)
    estimate = estimate_memory(model, SHAPE)
    trained = bytes_of(p for p in model.parameters() if p.requires_grad)
    adapter = bytes_of(p for name, p in model.named_parameters() if "lora_" in name)
    assert estimate.head == bytes_of(model.quality_head.parameters())
    assert (estimate.adapter > 0) == (lora == 4)
    assert estimate.adapter == adapter
    assert estimate.weights == bytes_of((*model.parameters(), *model.buffers())) - estimate.head - adapter
    assert (estimate.gradients, estimate.optimizer) == (trained, 2 * trained)
    assert estimate.not_estimated == ""
    staying = estimate.weights + estimate.adapter + estimate.head + estimate.optimizer
    assert staying + trained < estimate.total <= staying + trained + estimate.activations + estimate.logits


def test_every_number_grows_where_it_must():
    model = attached(vocab_size=128)
    base = estimate_memory(model, SHAPE)
    larger = estimate_memory(model, StepShape(8, 32))
    half = estimate_memory(model, StepShape(4, 32, masked_share=0.5))
    drafts = estimate_memory(model, SHAPE, get_objective("prism", num_drafts=3))
    together = estimate_memory(model, StepShape(4, 32, looks_apart=False))
    assert larger.activations == pytest.approx(2 * base.activations, rel=0.02)
    assert larger.logits == pytest.approx(2 * base.logits, rel=0.02)
    assert half.logits == pytest.approx(base.logits / 2, rel=0.02)
    assert half.logits_full == pytest.approx(base.logits_full, rel=0.02)
    rows = 4 * 32 * 128 * 4  # all of them are one chunk, which is copied, and held in float64 and in int64, to draw from it
    assert base.logits == pytest.approx(7 * rows, rel=0.02)
    assert base.logits_full == base.logits + rows
    assert together.activations == pytest.approx(2 * base.activations, rel=0.1)
    assert drafts.activations > 1.5 * base.activations
    assert base.activations_checkpointed < 0.8 * base.activations
    assert base.total_checkpointed < base.total
    assert estimate_memory(model, StepShape(4, 32, optimizer_states=0)).total == base.total - base.optimizer


def test_a_first_look_without_gradient_keeps_nothing():
    model = attached(lora=None)
    with_gradient = estimate_memory(attached(), SHAPE)
    assert (
        estimate_memory(model, SHAPE, get_objective("prism", diffusion_weight=0)).activations < 0.5 * with_gradient.activations
    )


def test_recorded_drafts_leave_out_the_draw_and_without_weight_the_first_look():
    model = attached(vocab_size=128)
    rows = 4 * 32 * 128 * 4
    drawn, recorded = estimate_memory(model, SHAPE), estimate_memory(model, SHAPE, get_objective("prism_recorded"))
    assert recorded.activations == pytest.approx(drawn.activations, rel=0.02)
    assert rows <= recorded.logits < drawn.logits
    frozen = attached(lora=None, vocab_size=4096)
    first_look = estimate_memory(frozen, SHAPE, get_objective("prism", diffusion_weight=0))
    one_look = estimate_memory(frozen, SHAPE, get_objective("prism_recorded", diffusion_weight=0))
    assert first_look.logits > 0
    assert one_look.logits == 0
    assert one_look.logits_full == 4 * 32 * 4096 * 4, "what the second look's rows would take"
    assert one_look.total < first_look.total


def test_mixed_precision_and_half_weights():
    single, half = attached(vocab_size=512), attached(vocab_size=512)
    half.backbone.to(torch.bfloat16)
    of_half = estimate_memory(half, StepShape(4, 32, autocast=torch.bfloat16))
    of_single = estimate_memory(single, SHAPE)
    assert of_half.weights == pytest.approx(of_single.weights / 2, rel=0.02)
    assert of_half.activations < 0.8 * of_single.activations


def test_four_bit_packs_linear_layers_but_not_the_lm_head():
    model = attached()
    plain, packed = estimate_memory(model, SHAPE), estimate_memory(model, StepShape(4, 32, four_bit=True))
    linear = [
        module.weight for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and not name.endswith("lm_head")
    ]  # fmt: skip
    numbers = sum(weight.numel() for weight in linear)
    assert plain.weights - packed.weights == pytest.approx(numbers * (4 - 0.5 - 1 / 64 - 4 / 64 / 256), abs=len(linear))
    assert packed.activations - plain.activations == 4 * max(weight.numel() for weight in linear), "one layer is unpacked"
    assert packed.adapter == plain.adapter


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_model_is_not_touched(device):
    model = attached(device=device)
    before = {name: (id(p), p.device, p.requires_grad, type(p)) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    estimate_memory(model, SHAPE)
    assert {name: (id(p), p.device, p.requires_grad, type(p)) for name, p in model.named_parameters()} == before
    assert [module.training for module in model.modules()] == modes
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    if device == "cpu":
        assert model(torch.tensor([[3, 4, 31]])).quality_logits.shape == (1, 3)


def test_weights_and_no_weights_give_the_same():
    assert estimate_memory(attached(device="cpu"), SHAPE) == estimate_memory(attached(), SHAPE)


@pytest.fixture
def experts(monkeypatch):
    """A mixture of experts, with one of transformers' three ways to compute it."""

    def build(implementation):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "head_dim": 8, "vocab_size": 32}
        config = Qwen3MoeConfig(
            **sizes, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_experts=4, num_experts_per_tok=2,
            is_causal=False,
        )  # fmt: skip
        backbone = Qwen3MoeForCausalLM(config).eval()
        backbone.set_experts_implementation(implementation)
        return attach_quality_head(backbone, PrismConfig(mask_token_id=31))

    monkeypatch.setattr("prism_plugin.backbones.spec._SPECS", {})
    register_backbone(BackboneSpec("qwen3_moe", "lm_head", ("q_proj",), settings_while_attached=(("config.use_cache", False),)))
    return build


def test_tokens_are_spread_evenly_over_experts():
    with FakeTensorMode():
        states, mine = torch.empty(8, 3), torch.empty(8, dtype=torch.bool)
        with LiveBytes(nn.Linear(1, 1), Qwen3MoeConfig(num_experts=4), 32):
            assert states[mine].shape == (2, 3)
            assert states.T[:, mine].shape == (3, 2)
            assert torch.where(mine)[0].shape == (2,)
            assert states[..., [1]].shape == (8, 1), "only masks pick tokens"
        with LiveBytes(nn.Linear(1, 1), LlamaConfig(), 32), pytest.raises(DynamicOutputShapeException):
            states[mine]


@pytest.mark.parametrize("family", STANDIN_FAMILIES)
def test_code_of_repositories_runs_without_data(family, tmp_path):
    STANDIN_FAMILIES[family].save(tmp_path)
    backbone = build_backbone(tmp_path, trust_remote_code=True)
    estimate = estimate_memory(attach_quality_head(backbone, PrismConfig(mask_token_id=MASK), lora=LoraConfig(r=2)), SHAPE)
    assert estimate.not_estimated == ""
    assert estimate.total > 0
    assert (estimate.total_checkpointed is None) == (family in ("mdlm", "proseco"))


def test_experts_that_need_no_values(experts):
    assert estimate_memory(experts("batched_mm"), SHAPE).total > 0


def test_a_forward_that_asks_for_values_is_said_to(experts, caplog):
    estimate = estimate_memory(experts("eager"), SHAPE)
    assert estimate.weights > 0
    assert estimate.total is estimate.activations is estimate.logits_full is None
    assert "the forward does not run without data" in estimate.not_estimated
    assert estimate.in_gb()["total"] is None
    assert not caplog.records


def test_gigabytes_are_named_and_rounded():
    estimate = estimate_memory(attached(), SHAPE)
    in_gb = estimate.in_gb()
    assert list(in_gb) == [name for name in vars(estimate) if name != "not_estimated"]
    assert in_gb["total"] == round(estimate.total / 1e9, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` of StepShape must be .*at least 1.*0"),
        ({"length": 1}, "`length` of StepShape must be .*at least 2.*1"),
        ({"masked_share": 0.0}, "`masked_share` .*above 0 and at most 1.*0.0"),
        ({"optimizer_states": -1}, "`optimizer_states` of StepShape must be .*at least 0.*-1"),
    ],
)
def test_shapes_that_cannot_be(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        StepShape(**{"batch_size": 2, "length": 8, **settings})


def held_by_a_step(model, objective, shape, vocab_size=64):
    """Bytes of a real step at its peak, beyond what stays."""
    size = (shape.batch_size, shape.length)
    ids = torch.randint(32, vocab_size, size)
    everywhere = torch.ones(size, dtype=torch.bool)
    batch = {"input_ids": ids, "attention_mask": everywhere.long(), "maskable": everywhere, "example_id": torch.arange(size[0])}
    if objective.reads_drafts:
        batch["draft_ids"] = torch.where(torch.arange(size[1]) < shape.num_masked // size[0], 31, ids)
    apart = (lambda: nullcontext(torch.Tensor.backward)) if shape.looks_apart else None
    with LiveBytes(model, model.config.get_text_config(), vocab_size) as tracker:
        objective.step(model, batch, epoch=0, seed=0, unwrapped=model, apart=apart).loss.backward()
    return tracker.together


# One for each way to make a draft, and those with special rows of logits: all in both looks, without gradient, of two terms.
HELD = ("prism", "joint", "proseco", "backplay", "remedi", "scope", "soft_masked")


@pytest.mark.parametrize(("name", "looks_apart"), [*((name, True) for name in HELD), ("joint", False), ("proseco", False)])
def test_the_estimate_is_what_a_step_holds(name, looks_apart, monkeypatch):
    monkeypatch.setattr("prism_plugin.core.categorical._CHUNK_ENTRIES_CPU", 2 * 4096)  # as a chunk of many rows of logits
    settings = {"t_min": 0.5, "t_max": 0.5, "masks": "permuted_prefix"}
    more = {"prism_recorded": {}, "backplay": {**settings, "t_min": 0.25, "step": 0.25}}
    more |= {key: {**settings, "share": [1.0, 1.0], "num_looks": 3} for key in ("joint", "scope")}
    objective = get_objective(name, **more.get(name, settings))
    shape = StepShape(4, 32, masked_share=0.5, looks_apart=looks_apart)
    model = attached(device="cpu", lora=None if name in FROZEN else 4, vocab_size=4096).train()
    estimate = estimate_memory(model, shape, objective)
    staying = estimate.weights + estimate.adapter + estimate.head + estimate.optimizer
    held = max(held_by_a_step(model, objective, shape, 4096), estimate.gradients)
    assert 0.97 * held <= estimate.total - staying <= 1.03 * held  # numbers of positions, of 8 bytes each, are not counted


@pytest.mark.parametrize(
    "head",
    [
        {"head": "linear", "head_history": ("age",)},
        {"head": "transformer", "head_blocks": 3, "head_history": ("age", "commit_confidence")},
        {"head": "multi_tap", "head_taps": (0, 1)},
    ],
)
def test_the_estimate_counts_each_kind_of_head(head):
    objective = get_objective("joint", t_min=0.5, t_max=0.5, masks="permuted_prefix", share=[1.0, 1.0], num_looks=3)
    shape = StepShape(4, 32, masked_share=0.5, looks_apart=True)
    model = attached(device="cpu", lora=4, vocab_size=64, head=head).train()
    estimate = estimate_memory(model, shape, objective)
    assert estimate.head == bytes_of(model.quality_head.parameters())
    staying = estimate.weights + estimate.adapter + estimate.head + estimate.optimizer
    held = max(held_by_a_step(model, objective, shape), estimate.gradients)
    assert 0.97 * held <= estimate.total - staying  # numbers of positions, of 8 bytes each, are not counted
    assert estimate.total - staying <= 1.15 * held


needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a process from Linux")


def ratio(settings):
    command = [sys.executable, "-m", "benchmarks.memory", "--shape", json.dumps(settings)]
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["estimate"] / found["measured"]


@needs_proc
@pytest.mark.slow
def test_the_estimate_is_what_a_process_takes():
    assert ratio(SMALL) == pytest.approx(1, abs=0.15)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_of_every_shape_is_what_a_process_takes(name):
    assert ratio(SHAPES[name]) == pytest.approx(1, abs=0.15)
