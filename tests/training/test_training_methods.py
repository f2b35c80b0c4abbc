"""Objectives with a name: through step, trainer, evaluation, memory, save and load; and what each corruptor makes."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from training_methods import FROZEN, METHODS

from prism_plugin.core import CapTerm, DiffusionTerm, RepairTerm, uniforms
from prism_plugin.core.terms import TERMS, QualityTerm
from prism_plugin.core.unmasking import UNMASKING
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling import PrismModel
from prism_plugin.training import (
    CORRUPTORS,
    Fill,
    LookBack,
    Objective,
    PredictAll,
    RandomTokens,
    get_objective,
    objective_to_dict,
)
from prism_plugin.training.memory import StepShape, estimate_memory
from prism_plugin.training.meters import Meters, meters_of


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_through_trainer_evaluation_memory_save_and_load(lab, tmp_path, name):
    objective, frozen = METHODS[name], name in FROZEN
    model = lab.build_model(lora=not frozen)
    trainer = lab.make_trainer(tmp_path, model=model, objective=name, eval_rows=lab.make_rows(6), max_steps=3)
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
    by_parts = objective_to_dict(replace(objective, name=None))
    assert by_parts["corruptor"]["name"] in CORRUPTORS.names()
    assert replace(get_objective(**by_parts), name=name) == objective


@torch.no_grad()
def step_of(lab, objective, count=6, **model):
    """A batch through an objective: the model, and what the step gave."""
    built, batch = lab.build_model(**model), lab.collate(lab.make_rows(count))
    return built, objective.step(built, batch, epoch=0, seed=0, unwrapped=built)


def full_logits(model, at):
    with torch.no_grad():
        return model(at.ids, at.attention_mask, logits_at=torch.ones_like(at.masked)).logits.view(*at.ids.shape, -1)


@pytest.mark.parametrize("errors_weigh_more", [False, True])
@pytest.mark.parametrize("visible", ["model", "data"])
def test_proseco_predicts_everything_from_what_the_model_wrote(lab, visible, errors_weigh_more):
    objective = get_objective("proseco", visible=visible, repair_errors_weigh_more=errors_weigh_more)
    model, output = step_of(lab, objective)
    at, logits = output.draft, full_logits(model, output.draft)
    assert not (at.masked & at.maskable).any()
    noised = replace(at, ids=torch.where(at.masked_before, lab.mask, at.clean_ids))
    first = full_logits(model, noised)
    first[..., lab.mask] = -torch.inf
    written = at.maskable if visible == "model" else at.masked_before
    assert torch.equal(at.ids, torch.where(written, first.argmax(-1), at.clean_ids))
    assert (at.ids != at.clean_ids).any()
    assert (at.ids == at.clean_ids)[at.drafted].any()
    for row in range(len(at.ids)):
        total = 0.0
        for place in at.maskable[row].nonzero().flatten():
            loss = F.cross_entropy(logits[row, place], at.clean_ids[row, place]).item()
            right = at.ids[row, place] == at.clean_ids[row, place]
            total += -(2.718281828459045**-loss) if errors_weigh_more and right else loss
        expected = total / (at.t[row] * at.maskable[row].sum()).item()
        assert output.terms["repair"].per_row[row].item() == pytest.approx(expected, rel=1e-4)


def test_a_look_back_puts_the_surest_tokens_of_a_noisier_state_into_a_cleaner_one(lab):
    looks = []
    model, batch = lab.build_model(lora=False), lab.collate(lab.make_rows(8))
    hook = model.register_forward_pre_hook(lambda module, args: looks.append(args[0]))
    with torch.no_grad():
        output = get_objective("backplay", step=0.3).step(model, batch, epoch=0, seed=0, unwrapped=model)
    hook.remove()
    at, noisier = output.draft, looks[0] == lab.mask
    assert torch.equal(looks[1], at.ids)
    assert (at.masked & ~noisier).sum() == 0, "the masks of the cleaner state are among those of the noisier one"
    logits = full_logits(model, replace(at, ids=looks[0]))
    logits[..., lab.mask] = -torch.inf
    sure, best = logits.softmax(-1).max(-1)
    for row in range(8):
        wanted = min(-(-3 * int(at.maskable[row].sum()) // 10), int(noisier[row].sum()))
        surest = sure[row].masked_fill(~noisier[row], -1).topk(wanted).indices
        assert set(at.drafted[row].nonzero().flatten().tolist()) == set(surest.tolist())
        assert torch.equal(at.ids[row][at.drafted[row]], best[row][at.drafted[row]])
    labels = output.terms["quality"].labels
    assert torch.equal(labels.labelled, at.visible)
    assert 0 < labels.targets.sum() < labels.labelled.sum()
    assert torch.equal((at.ids != at.clean_ids) & ~at.masked, at.drafted & (at.ids != at.clean_ids))


def test_remedi_labels_masks_by_the_models_own_probability(lab):
    looks = []
    model, batch = lab.build_model(), lab.collate(lab.make_rows(40))
    hook = model.register_forward_hook(lambda module, args, output: looks.append(output))
    with torch.no_grad():
        output = get_objective("remedi", mid_rate=0.25).step(model, batch, epoch=0, seed=0, unwrapped=model)
    hook.remove()
    assert len(looks) == 1, "there is no first look"
    at, labels = output.draft, output.terms["quality"].labels
    right = full_logits(model, at).softmax(-1).gather(-1, at.clean_ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(labels.targets[at.masked], right[at.masked], rtol=1e-4, atol=1e-6)
    assert torch.equal(labels.labelled, at.maskable)
    assert torch.equal(labels.targets[at.visible] == 1, (at.ids == at.clean_ids)[at.visible])
    assert torch.equal(at.ids != at.clean_ids, at.masked | at.drafted), "a wrong token is never the right one"
    expected = at.t * (1 - at.t)  # 4 * 0.25
    assert at.drafted.sum() == pytest.approx((expected.unsqueeze(-1) * at.maskable).sum().item(), rel=0.25)


def test_random_tokens_are_those_that_the_tokenizer_has_but_the_mask(lab):
    model, batch = lab.build_model(tokenizer=lab.tokenizer), lab.collate(lab.make_rows(200))
    objective = get_objective("cdlm", rate=0.9)
    with torch.no_grad():
        at = objective.step(model, batch, epoch=0, seed=0, unwrapped=model).draft
    drawn = set(at.ids[at.drafted].tolist())
    assert drawn == set(range(32)) - {lab.mask} - set(model.unknown_ids)
    assert at.drafted.sum() / (at.visible.sum()) == pytest.approx(0.9, abs=0.05)


def test_smart_masks_a_fresh_share_of_what_the_model_filled(lab):
    model, output = step_of(lab, get_objective("smart"), count=40)
    at = output.draft
    assert (at.masked & ~at.masked_before).any(), "data is masked"
    assert (at.drafted & (at.ids != at.clean_ids)).any(), "wrong tokens are left"
    assert torch.equal(at.drafted, at.masked_before & ~at.masked)
    share = (at.masked.sum(-1) / at.maskable.sum(-1)).mean().item()
    assert share == pytest.approx(at.t.mean().item(), abs=0.1)
    logits = full_logits(model, at)
    row = F.cross_entropy(logits[0][at.maskable[0]], at.clean_ids[0][at.maskable[0]])
    assert output.terms["repair"].per_row[0].item() == pytest.approx(row.item(), rel=1e-4)


def test_soft_masks_mix_in_what_the_model_would_write_there(lab):
    model, output = step_of(lab, get_objective("soft_masked", share=0.5), count=40)
    at, soft = output.draft, output.draft.soft
    assert torch.equal(at.ids, torch.where(at.masked, lab.mask, at.clean_ids))
    assert torch.equal(soft.index, at.masked.flatten().nonzero().squeeze(-1))
    logits = full_logits(model, replace(at, soft=None)).flatten(0, 1)[soft.index]
    logits[:, lab.mask] = -torch.inf
    best = logits.topk(3).indices
    assert torch.equal(soft.ids, torch.cat((torch.full_like(best[:, :1], lab.mask), best), 1))
    softened = (soft.weights[:, 0] < 1).float().mean().item()
    assert 0.3 < softened < 0.7
    with torch.no_grad():
        rows = model(at.ids, at.attention_mask, logits_at=soft.index, soft=soft).logits
        plain = model(at.ids, at.attention_mask, logits_at=soft.index).logits
    assert (rows - plain).abs().max() > 0.01
    losses = F.cross_entropy(rows, at.clean_ids.flatten()[soft.index], reduction="none")
    laid = torch.zeros(at.ids.numel()).index_copy(0, soft.index, losses).view_as(at.t.new_zeros(at.ids.shape)).sum(-1)
    expected = laid / (at.t * at.maskable.sum(-1))
    torch.testing.assert_close(output.terms["diffusion"].per_row, expected, rtol=1e-4, atol=1e-5)


def test_soft_masks_are_refused_where_the_backbone_takes_none(lab, tmp_path, monkeypatch):
    model = lab.build_model()
    monkeypatch.setattr(type(model.plain_backbone), "forward", lambda self, input_ids, attention_mask=None: None)
    with pytest.raises(ConfigurationError, match=r"Soft tokens need a backbone whose forward takes `inputs_embeds`"):
        lab.make_trainer(tmp_path, model=model, objective="soft_masked")


def test_a_permuted_prefix_masks_an_exact_share(lab):
    _, output = step_of(lab, get_objective("prism", masks="permuted_prefix", num_drafted=1, t_min=0.5, t_max=0.5), count=12)
    at = output.draft
    assert at.masked_before.sum(-1).tolist() == [-(-int(one) // 2) for one in at.maskable.sum(-1)]
    torch.testing.assert_close(at.t, at.masked_before.sum(-1) / at.maskable.sum(-1))


def test_cap_is_the_entropy_where_the_model_is_right(lab):
    objective = Objective(get_objective("prism").corruptor, (DiffusionTerm(), CapTerm(weight=0.5)))
    model, output = step_of(lab, objective)
    batch = lab.collate(lab.make_rows(6))
    plan = objective.corruptor.plan(batch, lambda name, count=None: noise(batch, name, count), lab.mask)
    at, expected = plan.noised, []
    log_p = full_logits(model, at).log_softmax(-1)
    for row in range(6):
        best = log_p[row].argmax(-1)
        right = [place for place in at.masked[row].nonzero().flatten() if best[place] == at.clean_ids[row, place]]
        entropies = [-(log_p[row, place].exp() * log_p[row, place]).sum().item() for place in right]
        expected.append(sum(entropies) / max(len(right), 1))
    assert output.terms["cap"].per_row.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert 0 < sum(one > 0 for one in expected) < 6, "some rows have none that is right"


def noise(batch, name, count):
    return uniforms(0, 0, batch["example_id"], name, batch["input_ids"].shape[1] if count is None else count)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(RandomTokens(), (DiffusionTerm(),)), r"`diffusion` reads the noised tokens, but RandomTokens"),
        (lambda: Objective(PredictAll(), (DiffusionTerm(on="draft"),)), r"`diffusion` learns at the masks of the draft"),
        (lambda: Objective(PredictAll(), (RepairTerm(where="masked"),)), r"`repair` learns at the masks of the draft"),
        (lambda: Objective(Fill(), (DiffusionTerm(weight=0.0), QualityTerm())), r"`diffusion` has weight 0, so it would"),
        (lambda: get_objective("prism", diffusion_weight=0.0, diffusion_share=0.5), r"`diffusion_weight` is 0, so `diffusion_"),
        (lambda: get_objective("token_critic", diffusion_on="draft"), r"masks of the draft, but Fill leaves none"),
        (lambda: RepairTerm(where="wrong", errors_weigh_more=True), r"where='wrong' reads no right one"),
        (lambda: RandomTokens(mid_rate=0.1), r"needs either `rate` or `mid_rate`, found rate=0.1 and mid_rate=0.1"),
        (lambda: LookBack(step=0.5, t_max=0.4), r"`step` of LookBack must fit between t_min=0.001 and t_max=0.4, found 0.5"),
        (lambda: get_objective("smart", masks="some"), r"`masks` .*independent.*permuted_prefix"),
    ],
)  # fmt: skip
def test_what_would_learn_nothing_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


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
