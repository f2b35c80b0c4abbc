"""Methods of other papers as values and short blocks: through step, trainer, evaluation, memory, save and load."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from training_methods import BACKPLAY, METHODS, PROSECO, REMEDI, MasksAndRandomTokens

from prism_plugin.core.terms import TERMS, QualityTerm
from prism_plugin.core.unmasking import UNMASKING
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling import PrismModel
from prism_plugin.training import CORRUPTORS, Objective, get_objective, objective_to_dict
from prism_plugin.training.memory import StepShape, estimate_memory
from prism_plugin.training.meters import Meters, meters_of


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


def test_two_terms_that_judge_alike_are_measured_alike(lab, tmp_path, monkeypatch):
    """In evaluation, too, where Trainer gathers the batches and the last one is smaller and has other lengths."""

    class Again(QualityTerm):
        name: ClassVar[str] = "again"

    monkeypatch.setattr(TERMS, "_by_name", {**TERMS._by_name, "again": Again})
    objective = Objective(get_objective("prism", num_drafted=3).corruptor, (QualityTerm(), Again()))
    trainer = lab.make_trainer(
        tmp_path, objective=objective, eval_rows=lab.make_rows(11, seed=3), per_device_eval_batch_size=4, max_steps=1
    )
    figures = trainer.evaluate()
    assert 0 < figures["eval_quality_auroc"] < 1
    for figure in ("loss", "auroc", "auroc_within", "ece", "brier"):
        assert figures[f"eval_again_{figure}"] == pytest.approx(figures[f"eval_quality_{figure}"], nan_ok=True), figure


def test_a_term_that_reads_the_head_too_early_is_refused():
    class Early(QualityTerm):
        on: ClassVar[str] = "noised"

    with pytest.raises(ConfigurationError, match=r"The quality head is read on the draft, but the term `quality`.*"):
        Objective(get_objective("prism").corruptor, (Early(),))


def test_the_estimate_of_a_method_that_draws_is_the_same_each_time(lab):
    model, found = lab.build_model(), set()
    for seed in range(4):
        torch.manual_seed(seed)
        found.add(estimate_memory(model, StepShape(2, 16), METHODS["remedi"]))
    assert len(found) == 1


def test_totals_of_0_1_are_taken_up():
    meters = Meters(meters_of(get_objective("prism")), torch.device("cpu"))
    meters.restore([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert dict(zip(meters.names, meters.totals.tolist(), strict=True)) == {
        "quality_loss": [1.0, 2.0], "diffusion_loss": [3.0, 4.0], "base_rate": [5.0, 6.0],
    }  # fmt: skip


def test_a_draft_rule_that_chooses_what_it_may_not_stops_the_step(lab, monkeypatch):
    @dataclass(frozen=True)
    class Everywhere:
        needs: ClassVar[frozenset[str]] = frozenset()

        def __call__(self, view, budget):
            return torch.ones_like(view.masked)

    monkeypatch.setattr(UNMASKING, "_by_name", {**UNMASKING._by_name, "everywhere": Everywhere})
    objective = get_objective("prism", num_drafted=2, positions="everywhere")
    model, batch = lab.build_model(), lab.collate(lab.make_rows(4))
    with pytest.raises(SamplingError, match=r"may choose only among `view.masked`, but Everywhere chose other positions"):
        objective.step(model, batch, epoch=0, seed=0, unwrapped=model)
