"""Trainable parameters that get no gradient are told, and only then DDP looks for them in each step."""

import pytest
from distributed.objectives_run import IDLE, with_idle_layers
from training_methods import METHODS

from prism_plugin.errors import ConfigurationError
from prism_plugin.training import get_objective
from prism_plugin.training.gradients import allow_for_idle_parameters, idle_parameters

PRISM = get_objective("prism")


@pytest.fixture
def told(caplog):
    """What the log says."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "prism_plugin.training.gradients"]


def test_every_objective_reaches_all_that_it_trains(lab):
    model = lab.build_model(dropout=0.2).train()
    assert idle_parameters(model, PRISM) == idle_parameters(model, get_objective("prism_recorded")) == []
    head = [f"quality_head.{name}" for name, _ in model.quality_head.named_parameters()]
    assert idle_parameters(model, METHODS["proseco"]) == head
    assert all(module.training for module in model.modules())
    assert all(one.grad is None for one in model.parameters())


def test_layers_that_are_never_called_are_named(lab, tmp_path, told):
    model = with_idle_layers(IDLE["idle layers"])
    before = {name: one.clone() for name, one in model.named_parameters() if one.requires_grad}
    trainer = lab.make_trainer(tmp_path, model=model, max_steps=2)
    trainer.train()
    (said,) = told()
    assert "reaches 4 of 14 trainable parameters: backbone.base_model.model.longformer.encoder.layer.0." in said
    assert "They stay as they are, unless others reach them" in said
    moved = {name for name, one in model.named_parameters() if name in before and not one.equal(before[name])}
    assert before.keys() - moved == {name for name in before if "query_global" in name}
    assert trainer.accelerator.ddp_handler.find_unused_parameters


def test_nothing_is_said_where_all_get_one(lab, tmp_path, told):
    trainer = lab.make_trainer(tmp_path, max_steps=1)
    trainer.train()
    assert told() == []
    assert not trainer.accelerator.ddp_handler.find_unused_parameters


def test_several_processes_refuse_not_to_look(lab, tmp_path):
    model = with_idle_layers(IDLE["idle layers"])
    trainer = lab.make_trainer(tmp_path, model=model, ddp_find_unused_parameters=False)
    args, accelerator = trainer.args, trainer.accelerator
    allow_for_idle_parameters(model, PRISM, args, accelerator)
    accelerator.state.distributed_type, before = type(accelerator.distributed_type).MULTI_CPU, accelerator.distributed_type
    try:
        with pytest.raises(ConfigurationError, match=r"reaches 4 of 14 .*`ddp_find_unused_parameters` must not be False then"):
            allow_for_idle_parameters(model, PRISM, args, accelerator)
    finally:
        accelerator.state.distributed_type = before


def test_rows_that_are_not_an_objectives_own_say_nothing(lab, monkeypatch):
    model = lab.build_model()
    monkeypatch.setattr("prism_plugin.training.gradients._plain_batch", lambda *_: {})
    assert idle_parameters(model, PRISM) == []
