"""A run whose numbers are no longer finite stops, says where, and leaves nothing behind that is not finite."""

import pytest
import torch

from prism_plugin.core import DraftRule
from prism_plugin.core.finite import first_not_finite
from prism_plugin.errors import ConfigurationError, NonFiniteError
from prism_plugin.training import PrismTrainingArguments, divergence, get_objective

DIVERGING = {"learning_rate": 1e30, "max_grad_norm": 0.0}


def weights_of(trainer):
    return {name: one.detach().clone() for name, one in trainer.prism_model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"save_strategy": "steps", "save_steps": 1}, r"the last whole checkpoint is .*checkpoint-1;"),
        ({"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}, "no checkpoint was written before;"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_before_its_step(lab, tmp_path, settings, last):
    drawn = get_objective("prism", drafts=(DraftRule(num_drafted=2, num_looks=2, temperature=0.8),))
    trainer = lab.make_trainer(tmp_path, objective=drawn, **DIVERGING | settings)
    with pytest.raises(
        NonFiniteError, match=f"the loss of step 2 is NaN or infinite, so the step was not taken; {last}"
    ) as told:
        trainer.train()
    assert "\n" not in str(told.value)
    assert first_not_finite(weights_of(trainer)) is None
    assert [log["step"] for log in trainer.state.log_history] == [1]


def test_a_gradient_that_is_not_finite_stops_the_run(lab, tmp_path):
    trainer = lab.make_trainer(tmp_path)
    before = weights_of(trainer)
    trainer.prism_model.quality_head.layers[0].weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(NonFiniteError, match="a gradient of step 1 is NaN or infinite, so the step was not taken"):
        trainer.train()
    assert all(torch.equal(one, before[name]) for name, one in weights_of(trainer).items())


@pytest.mark.parametrize("saving", ["no", "steps"])
def test_weights_that_a_step_makes_infinite_are_not_kept(lab, tmp_path, saving):
    settings = {"learning_rate": 1e38, "max_steps": 1, "save_strategy": saving}
    trainer = lab.make_trainer(tmp_path, **DIVERGING | settings)
    with pytest.raises(NonFiniteError, match=r"after step 1 `.*` is NaN or infinite, and is not saved; no checkpoint was"):
        trainer.train()
    for save in (trainer.save_model, lambda: trainer.prism_model.save_pretrained(tmp_path)):
        with pytest.raises(NonFiniteError, match=r"is not saved|Weights must be finite to be saved, but"):
            save()
    assert not list(tmp_path.iterdir())


def test_an_evaluation_that_is_not_finite_stops_the_run(lab, tmp_path):
    trainer = lab.make_trainer(tmp_path, eval_rows=lab.make_rows(4))
    with torch.no_grad():
        trainer.prism_model.get_output_embeddings().bias[3:7] = -torch.inf  # the tokens of the data
    with pytest.raises(NonFiniteError, match="the evaluation after step 0 gives a loss of inf; no checkpoint"):
        trainer.evaluate()


@pytest.fixture
def scaled(lab, tmp_path):
    """A trainer on the path of fp16, which accelerate itself takes on accelerators only."""
    trainer = lab.make_trainer(tmp_path, max_steps=6, logging_steps=100)
    accelerator = trainer.accelerator
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=2.0**16), True
    accelerator.state._mixed_precision = "fp16"
    yield trainer
    accelerator.state._mixed_precision = "no"


def test_fp16_may_skip_steps_until_the_scale_fits(scaled):
    before = weights_of(scaled)
    scaled.train()
    assert scaled.accelerator.scaler.get_scale() < 2.0**16
    assert scaled.divergence.skipped == 0
    assert any(not torch.equal(one, before[name]) for name, one in weights_of(scaled).items())


def test_fp16_may_not_skip_forever(scaled, monkeypatch):
    monkeypatch.setattr(divergence, "MAX_SKIPPED_STEPS", 2)
    scaled.prism_model.quality_head.layers[0].weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(NonFiniteError, match="a gradient was NaN or infinite at each of the 3 steps up to 3, whatever"):
        scaled.train()
    assert first_not_finite(weights_of(scaled)) is None


def test_a_setting_that_would_hide_a_loss_is_refused(tmp_path):
    assert PrismTrainingArguments(str(tmp_path), use_cpu=True).logging_nan_inf_filter is False
    with pytest.raises(ConfigurationError, match="`logging_nan_inf_filter` must be False, because a loss that is NaN"):
        PrismTrainingArguments(str(tmp_path), use_cpu=True, logging_nan_inf_filter=True)
