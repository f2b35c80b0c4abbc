"""Backbones that do something else in training mode, such as taking labels, stay in evaluation mode while they are trained."""

import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from remote_families import MASK, OWN_LOSS, randomise
from standins.modeling_own_loss import OwnLossConfig, OwnLossForCausalLM
from torch import nn
from training.conftest import make_rows, make_trainer
from transformers import BertForMaskedLM

from prism_plugin.backbones import infer_spec
from prism_plugin.backbones import spec as known_specs
from prism_plugin.cli import main as cli
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.modeling.probing import probe_model
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

CONFIG = PrismConfig(mask_token_id=MASK)
IDS = torch.tensor([[3, 4, MASK, 5]])


def own_loss(**changes):
    model = OwnLossForCausalLM(OwnLossConfig(**{**OWN_LOSS.config, **changes}))
    randomise(model, 0)
    return model.eval()


@pytest.fixture
def described(monkeypatch):
    """The family has a spec, and what is given differs from what looking at it finds."""

    def register(**changes):
        spec = replace(infer_spec(own_loss()), **changes)
        monkeypatch.setitem(known_specs._SPECS, "own_loss", spec)
        return spec

    return register


@pytest.mark.parametrize(
    ("labels_first", "cause"), [(True, "AttributeError: 'NoneType' object"), (False, "AssertionError: La")]
)
def test_a_model_that_wants_labels_in_training_mode_is_refused_with_what_to_do(described, labels_first, cause):
    described(keeps_evaluation_mode=False)
    backbone = own_loss(labels_first=labels_first)
    with pytest.raises(BackboneError, match=rf"in training mode .*\({cause}.*`dataclasses.replace\(.*keeps_evaluation_mode"):
        attach_quality_head(backbone, CONFIG)
    assert not any(module.training for module in backbone.modules())


def test_a_look_finds_out_that_it_stays_in_evaluation_mode():
    assert infer_spec(own_loss()).keeps_evaluation_mode
    assert not infer_spec(tiny_backbone("llama")).keeps_evaluation_mode


def test_it_is_trained_in_evaluation_mode(described, tmp_path):
    described()
    backbone = own_loss().train()
    lora = LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False)
    model = attach_quality_head(backbone, CONFIG, lora=lora)
    assert model.training
    assert model.quality_head.training
    assert not any(module.training for module in (backbone, *backbone.model.layers, backbone.model.layers[0].self_attn))
    looks = [model(IDS, logits_at=IDS == MASK).logits for _ in range(2)]
    assert not torch.equal(*looks), "dropout of the adapter is on"
    assert {check.name: check.ok for check in probe_model(model)}["training"]
    before = {name: one.clone() for name, one in model.named_parameters() if one.requires_grad}
    make_trainer(tmp_path, model=model, rows=make_rows(16), max_steps=2).train()
    assert all(not torch.equal(one, before[name]) for name, one in model.named_parameters() if name in before)
    assert model.detach() is backbone
    assert all(module.training for module in backbone.modules())


def test_its_layers_recompute_their_activations(described):
    described()
    backbone, gradients, calls = own_loss(), [], []
    model = attach_quality_head(backbone, CONFIG, lora=LoraConfig(r=2, init_lora_weights=False)).train()
    backbone.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    for recomputing in (False, True):
        if recomputing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(IDS, logits_at=IDS == MASK).logits.float().logsumexp(-1).sum().backward()
        gradients.append({name: one.grad.clone() for name, one in model.backbone.named_parameters() if one.requires_grad})
    assert len(calls) == 3, "once, then once more in backward"
    torch.testing.assert_close(*gradients)


def test_layers_that_only_recompute_in_training_mode_are_not_asked_to(monkeypatch):
    backbone = tiny_backbone("bert")
    monkeypatch.setitem(known_specs._SPECS, "bert", replace(known_specs._SPECS["bert"], keeps_evaluation_mode=True))
    monkeypatch.setattr("prism_plugin.backbones.modes.GradientCheckpointingLayer", nn.Bilinear)
    model = attach_quality_head(backbone, CONFIG)
    assert not model.supports_gradient_checkpointing
    with pytest.raises(BackboneError, match="cannot recompute its activations"):
        model.activation_checkpointing_enable()


class AnotherInTraining(BertForMaskedLM):
    """Reads its rows backwards while it is trained."""

    def forward(self, input_ids, attention_mask=None):
        if self.training:
            input_ids = input_ids.flip(1)
        return super().forward(input_ids, attention_mask=attention_mask)


def test_a_model_that_gives_other_states_in_training_mode():
    backbone = AnotherInTraining(tiny_backbone().config).eval()
    with pytest.raises(BackboneError, match="AnotherInTraining gives other final hidden states in training mode, with"):
        attach_quality_head(backbone, CONFIG)


class WithoutGradient(BertForMaskedLM):
    """Its code was written for sampling."""

    @torch.no_grad()
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask=attention_mask)


def test_a_model_that_lets_no_gradient_through():
    backbone = WithoutGradient(tiny_backbone().config).eval()
    attach_quality_head(backbone, CONFIG).detach()  # a head on top needs none
    with pytest.raises(BackboneError, match="a gradient must flow back through WithoutGradient, but none does"):
        attach_quality_head(backbone, CONFIG, lora=LoraConfig(r=2))


def test_what_code_raises_is_one_sentence_and_too_little_memory_stays(described):
    described()
    backbone = own_loss()
    model = attach_quality_head(backbone, CONFIG)
    backbone.config.most_tokens = 3
    with pytest.raises(
        BackboneError, match=r"The forward of OwnLossForCausalLM failed \(AssertionError: at most 3 tok"
    ) as caught:
        model(IDS)
    assert isinstance(caught.value.__cause__, AssertionError)
    backbone.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory. Tried")))
    backbone.config.most_tokens = 64
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        model(IDS)
    with pytest.raises(ConfigurationError, match="`input_ids` must be a tensor"):
        model([[3]])


def test_the_command_line_prints_no_traceback(tmp_path, capsys, monkeypatch):
    """Code of a repository that fails in training mode, then for long rows alone: doctor, train and sample."""
    monkeypatch.chdir(tmp_path)
    OWN_LOSS.save(tmp_path / "model", most_tokens=16)
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "short.txt").write_text("the cat sat.\n" * 4)
    (tmp_path / "long.txt").write_text("the cat sat on the mat.\n" * 4)
    monkeypatch.setattr("transformers.utils.logging.is_progress_bar_enabled", lambda: False)
    (tmp_path / "recipe.yaml").write_text(
        "backbone: {path: model, trust_remote_code: true}\ndata: {path: short.txt}\nattach: {lora: {r: 2}}\n"
        "training: {output_dir: run, max_steps: 1, per_device_train_batch_size: 2, use_cpu: true, report_to: none, "
        "disable_tqdm: true}\n"
    )
    train, remote = ["train", "--recipe", "recipe.yaml"], "--trust-remote-code"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No BackboneSpec is registered")
        assert cli.main(["doctor", "model", remote, "--length", "16", "--batch-size", "1"]) == 0
        assert "stays in evaluation mode" in " ".join(capsys.readouterr().out.split())
        assert cli.main(train) == 0
        capsys.readouterr()
        long = ["--data.path", "long.txt", "--output_dir", "other"]
        sample = ["sample", "--adapter", "run", "the cat sat on the mat.", "--max-new-tokens", "4", "--num-steps", "2"]
        for arguments in ([*train, *long], [*sample, "--preset", "confidence", remote]):
            assert cli.main(arguments) == 2, arguments
            printed = capsys.readouterr().err
            assert "OwnLossForCausalLM failed (AssertionError: at most 16 tokens)" in printed
            assert "Traceback" not in printed
