"""The objective of recorded drafts: a literal reference, no chance, and the same looks whatever a batch holds."""

from contextlib import nullcontext

import datasets
import pytest
import torch
from reference import training as reference

from prism_plugin.data import Origin
from prism_plugin.errors import ConfigurationError, DataFormatError, UnknownKeyError
from prism_plugin.training import get_objective, objective_to_dict
from prism_plugin.training.given_rows import as_prepared


def run(model, rows, lab, objective=None, *, seed=5, epoch=2, **how):
    objective = objective or get_objective("prism_recorded")
    return objective.step(model, lab.collate(rows), epoch=epoch, seed=seed, unwrapped=model, **how)


def gradients(model, batches, lab, **how):
    model.zero_grad()
    for rows in batches:
        (run(model, rows, lab, **how).loss / len(batches)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def check_same(found, expected):
    assert found.keys() == expected.keys()
    assert len(expected) > 8
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_the_step_is_the_papers_on_recorded_drafts_row_by_row(lab):
    model, rows = lab.build_model(), lab.recorded_rows(8)

    @torch.no_grad()
    def look(ids):
        output = model(torch.tensor([ids]), logits_at=torch.ones(1, len(ids), dtype=torch.bool))
        return output.logits.tolist(), output.quality_logits[0].tolist()

    quality, diffusion = reference.recorded_step(
        look, [(row["input_ids"], row["maskable"], row["draft_ids"]) for row in rows], mask_token_id=lab.mask
    )
    losses = lab.losses(run(model, rows, lab, get_objective("prism_recorded", diffusion_weight=0.3, quality_weight=2.0)))
    assert losses.quality_loss.item() == pytest.approx(quality, rel=1e-4)
    assert losses.diffusion_loss.item() == pytest.approx(diffusion, rel=1e-4)
    assert losses.loss.item() == pytest.approx(2.0 * quality + 0.3 * diffusion, rel=1e-4)
    revealed = [
        (token == right) for row in rows
        for token, right, may in zip(row["draft_ids"], row["input_ids"], row["maskable"], strict=True)
        if may and token != lab.mask
    ]  # fmt: skip
    assert (losses.num_correct.item(), losses.num_judged.item()) == (sum(revealed), len(revealed))
    assert 0 < sum(revealed) < len(revealed)


def test_micro_batches_of_one_row_and_two_backwards_give_the_gradient_of_one_batch(lab):
    model, rows = lab.build_model().double(), lab.recorded_rows(4)  # so that rounding hides nothing
    whole = gradients(model, [rows], lab)
    check_same(gradients(model, [[row] for row in rows], lab), whole)
    check_same(gradients(model, [rows], lab, apart=lambda: nullcontext(torch.Tensor.backward)), whole)


@pytest.mark.parametrize("as_rows", [list, datasets.Dataset.from_list])
def test_drafts_with_another_models_mask_are_refused(lab, as_rows):
    model, objective = lab.build_model(), get_objective("prism_recorded")

    def prepared(of_mask):
        rows = lab.make_rows(8)
        for row in rows:
            row["draft_ids"] = [*row["input_ids"][:-3], of_mask, of_mask, 3 + row["input_ids"][-1] % 4]
        return as_prepared(as_rows(rows), model, Origin("rows"), objective)

    assert len(prepared(lab.mask)) == len(prepared(4)) == 8, "its own masks, or none"
    with pytest.raises(DataFormatError, match=r"must hold the model's mask token 31 where .* no draft holds it, and 2, which"):
        prepared(2)
    with pytest.raises(DataFormatError, match=r"must lie in the model's vocabulary, 0 to 31, found 99"):
        prepared(99)


def test_nothing_is_drawn_and_the_order_of_rows_is_theirs(lab):
    model, rows = lab.build_model(), lab.recorded_rows(6)
    first, other = run(model, rows, lab), run(model, rows[::-1], lab, seed=8, epoch=9)
    assert other.loss.item() == pytest.approx(first.loss.item(), rel=1e-5)
    torch.testing.assert_close(other.terms["diffusion"].per_row.flip(0), first.terms["diffusion"].per_row)
    assert first.draft.history is None


def test_a_batch_without_masks_makes_the_same_looks_and_costs_nothing(lab):
    model, went = lab.build_model(), []
    rows = lab.recorded_rows(4)[-1:]

    def backward(loss):
        went.append(loss.item())
        loss.backward()

    output = run(model, rows, lab, apart=lambda: nullcontext(backward))
    assert went == [0.0], "every process has to send as many gradients as the others"
    assert output.terms["diffusion"].loss == 0
    assert output.terms["quality"].labels.labelled.sum() == sum(rows[0]["maskable"])
    assert run(model, lab.recorded_rows(4), lab).terms["diffusion"].per_row[-1] == 0
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_the_first_look_sees_the_data_under_the_drafts_masks_and_is_left_out_without_weight(lab):
    model, rows, seen = lab.build_model(), lab.recorded_rows(3), []
    model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    run(model, rows, lab)
    batch = lab.collate(rows)
    drafts = batch["draft_ids"]
    noised = torch.where((drafts == lab.mask) & batch["maskable"], lab.mask, batch["input_ids"])
    assert not torch.equal(noised, drafts)
    assert [ids.tolist() for ids in seen] == [noised.tolist(), drafts.tolist()]
    seen.clear()
    losses = lab.losses(run(model, rows, lab, get_objective("prism_recorded", diffusion_weight=0.0)))
    assert [ids.tolist() for ids in seen] == [drafts.tolist()]
    assert losses.diffusion_loss == 0
    assert losses.loss.item() == losses.quality_loss.item()


def test_dropout_is_off_in_the_first_look_and_on_in_the_second(lab):
    model, rows = lab.build_model(dropout=0.5).train(), lab.recorded_rows(6)
    one, other = (run(model, rows, lab) for _ in range(2))
    assert torch.equal(one.terms["diffusion"].per_row, other.terms["diffusion"].per_row)
    assert not torch.equal(one.quality_logits, other.quality_logits)


def test_it_is_built_by_name_and_has_no_draft_rules():
    objective = get_objective("prism_recorded", diffusion_weight=0.25)
    of_diffusion = {"diffusion_weight": 0.25, "diffusion_share": 1.0, "diffusion_on": "noised"}
    of_quality = {"quality_weight": 1.0, "quality_where": "visible", "quality_by_time": False}
    written = {"name": "prism_recorded", "history_hidden": 0.5, **of_diffusion, **of_quality}
    assert objective_to_dict(objective) == written
    assert get_objective(**written) == objective
    assert get_objective(name="prism_recorded", diffusion_weight=0.25, quality_weight=1.0) == objective  # as 0.1.0 wrote it
    for unread in ({"num_drafted": 2}, {"drafts": [{}]}, {"t_min": 0.1}):
        with pytest.raises(UnknownKeyError, match=r"'prism_recorded': nothing reads '.*'; known: diffusion_on"):
            get_objective("prism_recorded", **unread)
    with pytest.raises(ConfigurationError, match=r"diffusion_weight: `weight` of .* must be 0 or more, found -1"):
        get_objective("prism_recorded", diffusion_weight=-1)
    with pytest.raises(ConfigurationError, match="are 0, so nothing would be learnt"):
        get_objective("prism_recorded", diffusion_weight=0, quality_weight=0)


def test_the_trainer_trains_evaluates_and_records_it(lab, tmp_path):
    model, rows = lab.build_model(), datasets.Dataset.from_list(lab.recorded_rows(16))
    trainer = lab.make_trainer(
        tmp_path, model=model, objective=get_objective("prism_recorded"), rows=rows, eval_rows=rows, max_steps=12
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_loss"] == pytest.approx(after["eval_quality_loss"] + 0.5 * after["eval_diffusion_loss"])
    assert model.prism_config.objective == objective_to_dict(trainer.objective)


@pytest.mark.parametrize("raw", [False, True])
def test_drafts_that_would_be_ignored_and_rows_without_them_are_refused(lab, tmp_path, raw):
    rows, plain = lab.recorded_rows(4), lab.make_rows(4)
    if raw:
        rows, plain = ([{key: one[key] for key in one if key != "example_id"} for one in given] for given in (rows, plain))
    recorded = get_objective("prism_recorded")
    wanted = "`prism_recorded` learns from recorded drafts, the column `draft_ids`, but `{}` has none; record them"
    ignored = "`{}` has recorded drafts, the column `draft_ids`, which the objective `prism` would ignore; train with"
    for objective, words, good, bad in ((recorded, wanted, rows, plain), (get_objective("prism"), ignored, plain, rows)):
        with pytest.raises(DataFormatError, match=words.format("train_dataset")):
            lab.make_trainer(tmp_path, objective=objective, rows=bad)
        with pytest.raises(DataFormatError, match=words.format("eval_dataset")):
            lab.make_trainer(tmp_path, objective=objective, rows=good, eval_rows=bad)


@pytest.mark.parametrize("raw", [False, True])
def test_every_row_of_a_list_is_looked_at(lab, raw):
    rows, plain = lab.recorded_rows(4), lab.make_rows(4)
    if raw:
        rows, plain = ([{key: one[key] for key in one if key != "example_id"} for one in given] for given in (rows, plain))
    model = lab.build_model()
    with pytest.raises(DataFormatError, match=r"`rows` has recorded drafts, .* which the objective `prism` would ignore"):
        as_prepared([*plain[:2], *rows[2:]], model, Origin("rows"), get_objective("prism"))
    with pytest.raises(DataFormatError, match=r"`prism_recorded` learns from recorded drafts, .* but `rows` has none"):
        as_prepared([*rows[:2], *plain[2:]], model, Origin("rows"), get_objective("prism_recorded"))
    assert len(as_prepared(rows, model, Origin("rows"), get_objective("prism_recorded"))) == 4


def test_a_batch_that_no_check_has_seen_is_refused_by_itself(lab, tmp_path):
    rows, plain = lab.recorded_rows(4), lab.make_rows(4)
    ignored = "`batch` has recorded drafts, the column `draft_ids`, which the objective `prism` would ignore"
    missing = "`prism_recorded` learns from recorded drafts, the column `draft_ids`, but `batch` has none"
    for objective, good, bad, words in ((None, plain, rows, ignored), (get_objective("prism_recorded"), rows, plain, missing)):
        trainer = lab.make_trainer(tmp_path, objective=objective, rows=good)
        with pytest.raises(DataFormatError, match=words.replace("batch", "eval_dataset")):
            trainer.evaluate(datasets.Dataset.from_list(bad))
        with pytest.raises(DataFormatError, match=words):
            trainer.compute_loss(trainer.model, lab.collate(bad))


def test_what_is_no_batch_is_refused(lab):
    model, objective = lab.build_model(), get_objective("prism_recorded")
    batch = lab.collate(lab.recorded_rows(2))
    wrong = {
        "found no maskable, example_id": {key: batch[key] for key in ("input_ids", "attention_mask", "draft_ids")},
        "found no draft_ids": {**batch, "draft_ids": batch["draft_ids"].tolist()},
        "must be a mapping of names to tensors, found list": [batch],
    }
    for words, given in wrong.items():
        with pytest.raises(DataFormatError, match=words):
            objective.step(model, given, epoch=0, seed=0, unwrapped=model)
