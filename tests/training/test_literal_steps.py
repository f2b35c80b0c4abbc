"""Every named objective against its literal transcription: losses and gradients, with LoRA and frozen, padded and in parts."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from reference import objectives as reference
from training_methods import FROZEN

from prism_plugin.core import CapTerm, DiffusionTerm, DraftRule
from prism_plugin.training import Objective, get_objective
from prism_plugin.training.presets import PRESETS

LOW, HIGH, SEED, EPOCH = 0.2, 0.9, 5, 2
DIFFUSION, ON_DRAFT = reference.diffusion, partial(reference.diffusion, on="draft")
ALL, ROLLED = DraftRule(num_drafted=None, share=(1.0, 1.0)), DraftRule(num_drafted=None, share=(0.0, 1.0), num_looks=3)
VISIBLE = partial(reference.quality, where="visible")


def repair(where, **how):
    return partial(reference.repair, where=where, **how)


# name: settings, how the draft is made, the terms
CASES = {
    "prism": ({}, ("fill", {"rules": (DraftRule(),)}), {"diffusion": DIFFUSION, "quality": reference.quality}),
    "prism/permuted_prefix": (
        {"masks": "permuted_prefix", "num_drafted": 2}, ("fill", {"rules": (DraftRule(num_drafted=2),), "exact": True}),
        {"diffusion": DIFFUSION, "quality": reference.quality},
    ),
    "prism_recorded": ({}, ("recorded", {}), {"diffusion": DIFFUSION, "quality": VISIBLE}),
    "token_critic": ({}, ("fill", {"rules": (ALL,)}), {"diffusion": DIFFUSION, "quality": reference.quality}),
    "p2_planner": ({}, ("fill", {"rules": (ALL,)}), {"quality": partial(VISIBLE, by_time=True)}),
    "joint": ({}, ("fill", {"rules": (ROLLED,)}), {"diffusion": DIFFUSION, "quality": VISIBLE, "repair": repair("visible")}),
    "proseco": ({}, ("predict_all", {}), {"diffusion": DIFFUSION, "repair": repair("all", by_time=True)}),
    "proseco/data": (
        {"visible": "data", "tokens": "sample", "repair_by_time": False, "repair_errors_weigh_more": True},
        ("predict_all", {"visible": "data", "sample": True}),
        {"diffusion": DIFFUSION, "repair": repair("all", errors_weigh_more=True)},
    ),
    "backplay": ({"step": 0.3}, ("look_back", {"step": 0.3}), {"quality": VISIBLE}),
    "remedi": (
        {"mid_rate": 0.25}, ("random_tokens", {"mid_rate": 0.25, "vocab": 32}),
        {"diffusion": ON_DRAFT, "quality": partial(reference.quality, where="all")},
    ),
    "smart": ({}, ("remask", {}), {"repair": repair("all")}),
    "cdlm": ({"rate": 0.4}, ("random_tokens", {"rate": 0.4, "vocab": 32}), {"repair": repair("all")}),
    "t2t": ({"rate": 0.4}, ("random_tokens", {"rate": 0.4, "vocab": 32}), {"diffusion": ON_DRAFT, "repair": repair("visible")}),
    "scope": ({}, ("fill", {"rules": (ROLLED,)}), {"diffusion": DIFFUSION, "repair": repair("wrong")}),
    "dmax": ({}, ("fill", {"rules": (replace(ALL, tokens="argmax"),)}), {"diffusion": DIFFUSION, "repair": repair("all")}),
    "soft_masked": ({}, ("soft_masks", {}), {"diffusion": ON_DRAFT}),
    "cap": ({}, ("fill", {"rules": (DraftRule(),)}), {"diffusion": DIFFUSION, "cap": reference.cap}),
}  # fmt: skip


def objective_of(name):
    settings = {} if name in ("prism_recorded",) else {"t_min": LOW, "t_max": HIGH}
    if name == "cap":
        return Objective(get_objective("prism", **settings).corruptor, (DiffusionTerm(), CapTerm(weight=0.7)))
    return get_objective(name.partition("/")[0], **settings, **CASES[name][0])


def rows_of(lab, name):
    return lab.recorded_rows(6) if name == "prism_recorded" else lab.make_rows(6)


def look_of(model):
    def look(ids, soft=None):
        embed = model.get_input_embeddings()
        embeddings = embed(torch.tensor([ids]))[0]
        mixed = list(embeddings)
        for place, (tokens, weights) in (soft or {}).items():
            mixed[place] = sum(weight * embed(torch.tensor(token)) for token, weight in zip(tokens, weights, strict=True))
        logits = model.plain_backbone(inputs_embeds=torch.stack(mixed).unsqueeze(0)).logits[0]
        return logits, model(torch.tensor([ids])).quality_logits[0]

    return look


def literal(model, rows, name):
    """Loss of each term and gradients, row by row; drafts are made without gradient."""
    objective, (_, (kind, how), losses) = objective_of(name), CASES[name]
    look, totals = look_of(model), dict.fromkeys(losses, 0.0)
    weights = {term.name: term.weight for term in objective.terms}
    model.zero_grad()
    for given in rows:
        row = reference.Row(given, SEED, EPOCH, model.mask_token_id)
        with torch.no_grad():
            reference.corrupt(row, kind, look, LOW, HIGH, **how)
        for term, loss_of in losses.items():
            loss = loss_of(row, look) / len(rows)
            totals[term] += loss.item()
            if loss.requires_grad and weights[term]:
                (weights[term] * loss).backward()
    return totals, gradients_of(model)


def gradients_of(model):
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}


def ours(model, parts, lab, name, apart):
    """The same by the objective, over micro-batches, padded."""
    objective, totals = objective_of(name), {}
    model.zero_grad()
    for part in parts:
        how = {"apart": lambda: nullcontext(lambda loss: (loss / len(parts)).backward())} if apart else {}
        output = objective.step(model, lab.collate(part), epoch=EPOCH, seed=SEED, unwrapped=model, **how)
        if output.loss.requires_grad:
            (output.loss / len(parts)).backward()
        for term, found in output.terms.items():
            totals[term] = totals.get(term, 0.0) + found.loss.item() / len(parts)
    return totals, gradients_of(model)


def check_same(found, expected):
    (losses, gradients), (expected_losses, expected_gradients) = found, expected
    assert losses == pytest.approx(expected_losses, rel=1e-5, abs=1e-7)
    assert gradients.keys() == expected_gradients.keys()
    assert gradients
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def model_of(lab, lora):
    return lab.build_model(lora=lora).double()  # so that no rounding decides a token; the head stays in float32


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_literal_step(lab, name):
    preset = name.partition("/")[0]
    model, rows = model_of(lab, lora=preset not in FROZEN), rows_of(lab, name)
    expected = literal(model, rows, name)
    assert all(loss != 0 for loss in expected[0].values())
    check_same(ours(model, [rows], lab, name, apart=False), expected)
    check_same(ours(model, [rows[:2], rows[2:4], rows[4:]], lab, name, apart=True), expected)


@pytest.mark.parametrize(
    "name", [name for name in CASES if "quality" in CASES[name][2] and name.partition("/")[0] not in FROZEN]
)
def test_a_head_alone_gets_the_same_gradient_on_a_frozen_backbone(lab, monkeypatch, name):
    objective = objective_of(name)
    quiet = replace(objective, terms=tuple(term for term in objective.terms if term.reads_quality), name=None)
    monkeypatch.setitem(globals(), "objective_of", lambda name: quiet)
    monkeypatch.setitem(CASES, name, (*CASES[name][:2], {"quality": CASES[name][2]["quality"]}))
    model, rows = model_of(lab, lora=False), rows_of(lab, name)
    check_same(ours(model, [rows[:3], rows[3:]], lab, name, apart=True), literal(model, rows, name))


def test_every_named_objective_is_transcribed():
    assert {name.partition("/")[0] for name in CASES} - {"cap"} == PRESETS.keys()
