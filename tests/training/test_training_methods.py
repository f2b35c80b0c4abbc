"""Methods of other papers as values and short blocks: through step, trainer, evaluation, memory, save and load."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from training_methods import BACKPLAY, METHODS, PROSECO, REMEDI, MasksAndRandomTokens

from prism_plugin.modeling import PrismModel
from prism_plugin.training import CORRUPTORS, get_objective, objective_to_dict
from prism_plugin.training.memory import StepShape, estimate_memory


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_through_trainer_evaluation_memory_save_and_load(lab, tmp_path, name):
    objective, frozen = METHODS[name], name == "backplay"
    model = lab.build_model(lora=not frozen)
    trainer = lab.make_trainer(tmp_path, model=model, objective=objective, eval_rows=lab.make_rows(6), max_steps=3)
    head = {key: one.clone() for key, one in model.quality_head.state_dict().items()}
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    names = [term.name for term in objective.terms]
    weighted = [sum(term.weight * log[f"{term.name}_loss"] for term in objective.terms) for log in logs]
    assert [log["loss"] for log in logs] == pytest.approx(weighted, rel=1e-3)
    figures = trainer.evaluate()
    assert all(figures[f"eval_{one}_loss"] > 0 for one in names)
    judged = next((term.name for term in objective.terms if term.reads_quality), None)
    assert (f"eval_{judged}_auroc" in figures) == ("base_rate" in logs[0]) == (judged is not None)
    moved = any(not torch.equal(one, head[key]) for key, one in model.quality_head.state_dict().items())
    assert moved == objective.reads_quality, "a head that nothing reads is frozen"
    estimate = estimate_memory(model, StepShape(2, 8), objective)
    assert (estimate.not_estimated, estimate.logits > 0) == ("", True)
    model.save_pretrained(tmp_path / "saved")
    again = PrismModel.from_pretrained(tmp_path / "saved", model.detach())
    assert get_objective(**again.prism_config.objective) == objective
    assert objective_to_dict(objective)["corruptor"]["name"] in CORRUPTORS.names()


def full_logits(model, at):
    return model(at.ids, at.attention_mask, logits_at=torch.ones_like(at.masked)).logits.view(*at.ids.shape, -1)


@torch.no_grad()
def test_repair_is_the_cross_entropy_of_what_should_stand_at_every_position(lab):
    model, batch = lab.build_model(), lab.collate(lab.make_rows(5))
    output = PROSECO.step(model, batch, epoch=0, seed=0, unwrapped=model)
    at, logits = output.draft, full_logits(model, output.draft)
    assert not at.masked.any()
    for row in range(5):
        where = at.maskable[row]
        expected = F.cross_entropy(logits[row][where], at.clean_ids[row][where], reduction="sum") / (at.t[row] * where.sum())
        assert output.terms["repair"].per_row[row].item() == pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def test_a_look_back_judges_every_visible_token_of_the_cleaner_state(lab):
    model, batch = lab.build_model(lora=False), lab.collate(lab.make_rows(8))
    output = BACKPLAY.step(model, batch, epoch=0, seed=0, unwrapped=model)
    labels, at = output.terms["quality"].labels, output.draft
    assert torch.equal(labels.labelled, at.visible)
    assert 0 < labels.targets.sum() < labels.labelled.sum()
    assert torch.equal(at.ids != at.clean_ids, (at.masked & at.maskable) | (at.drafted & (at.ids != at.clean_ids)))


@torch.no_grad()
def test_soft_labels_are_the_models_own_probability(lab):
    model, batch = lab.build_model(), lab.collate(lab.make_rows(5))
    looks = []
    hook = model.register_forward_hook(lambda module, args, output: looks.append(output))
    objective = replace(REMEDI, corruptor=MasksAndRandomTokens(rate=0.9))
    output = objective.step(model, batch, epoch=0, seed=0, unwrapped=model)
    hook.remove()
    assert len(looks) == 1, "there is no first look"
    at, labels = output.draft, output.terms["soft_quality"].labels
    right = full_logits(model, at).softmax(-1).gather(-1, at.clean_ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(labels.targets[at.masked], right[at.masked], rtol=1e-4, atol=1e-6)
    assert set(labels.targets[at.visible].tolist()) == {0.0, 1.0}
