import dataclasses
import json

import pytest
import torch
from reference import training as reference

from prism_plugin.core.drafting import DraftRule
from prism_plugin.errors import ConfigurationError, UnknownKeyError, UnknownNameError
from prism_plugin.training import Fill, get_objective, objective_to_dict

MIXTURE = (
    DraftRule(num_drafted=2),
    DraftRule(num_drafted=None, share=(0.3, 0.9), num_looks=3, positions="confidence", temperature=0.7),
    DraftRule(num_drafted=3, positions="semi_autoregressive", window=3, tokens="nucleus", top_p=0.8, weight=0.5),
    DraftRule(num_drafted=4, num_looks=2, tokens="argmax", weight=2.0),
)


def run(model, rows, lab, objective, *, seed=5, epoch=2):
    return objective.step(model, lab.collate(rows), epoch=epoch, seed=seed, unwrapped=model)


@pytest.mark.parametrize("rules", [MIXTURE[:1], MIXTURE[1:2], MIXTURE[2:3], MIXTURE[3:], MIXTURE], ids=len)
@pytest.mark.parametrize("num_drafts", [1, 2])
def test_the_step_is_the_papers_row_by_row(lab, rules, num_drafts):
    model, rows = lab.build_model(), lab.make_rows(8)
    objective = get_objective("prism", drafts=rules, num_drafts=num_drafts, t_min=0.2, t_max=0.9)

    @torch.no_grad()
    def look(ids):
        output = model(torch.tensor([ids]), logits_at=torch.ones(1, len(ids), dtype=torch.bool))
        return output.logits.tolist(), output.quality_logits[0].tolist()

    quality, diffusion = reference.step(
        look,
        [(row["example_id"], row["input_ids"], row["maskable"]) for row in rows],
        rules,
        mask_token_id=lab.mask,
        num_drafts=num_drafts,
        t_range=(0.2, 0.9),
        seed=5,
        epoch=2,
    )
    losses = lab.losses(run(model, rows, lab, objective))
    assert losses.quality_loss.item() == pytest.approx(quality, rel=1e-4)
    assert losses.diffusion_loss.item() == pytest.approx(diffusion, rel=1e-4)
    assert losses.loss.item() == pytest.approx(quality + 0.5 * diffusion, rel=1e-4)


def gradients(model, batches, lab, objective):
    model.zero_grad()
    for rows in batches:
        (run(model, rows, lab, objective).loss / len(batches)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_eight_micro_batches_of_one_row_give_the_gradient_of_one_batch(lab):
    model, rows = lab.build_model(), lab.make_rows(8)
    objective = get_objective("prism", drafts=MIXTURE, num_drafts=2, t_min=0.1)
    whole = gradients(model, [rows], lab, objective)
    split = gradients(model, [[row] for row in rows], lab, objective)
    assert whole.keys() == split.keys()
    assert len(whole) > 8
    for name in whole:
        assert (split[name] - whole[name]).norm() <= 1e-4 * whole[name].norm(), name


def test_wider_padding_and_row_order_change_nothing(lab):
    model, rows = lab.build_model(), lab.make_rows(6)
    objective = get_objective("prism", drafts=MIXTURE, t_min=0.1)
    plain = lab.losses(run(model, rows, lab, objective))
    wide = dataclasses.replace(lab.collate, pad_to_multiple_of=20)(rows[::-1])
    padded = lab.losses(objective.step(model, wide, epoch=2, seed=5, unwrapped=model))
    assert padded.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert padded.num_judged == plain.num_judged


def test_seed_and_epoch_are_the_keys_of_the_noise(lab):
    model, rows = lab.build_model(), lab.make_rows(6)
    objective = get_objective("prism", t_min=0.1)
    first = run(model, rows, lab, objective).loss.item()
    assert run(model, rows, lab, objective).loss.item() == first
    assert run(model, rows, lab, objective, epoch=3).loss.item() != first
    assert run(model, rows, lab, objective, seed=6).loss.item() != first


def test_drafts_fill_masks_with_real_tokens_and_touch_nothing_else(lab):
    model, rows = lab.build_model(), lab.make_rows(12)
    with torch.no_grad():
        model.get_output_embeddings().bias[lab.mask] = 100.0  # the model would say the mask if it were allowed to
    batch = lab.collate(rows)
    seen = []
    hook = model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    output = get_objective("prism", drafts=(DraftRule(num_drafted=3),), t_min=0.5).step(
        model, batch, epoch=0, seed=0, unwrapped=model
    )
    hook.remove()
    noised, draft = seen
    labelled = output.terms["quality"].labels.labelled
    assert (draft[labelled] != lab.mask).all()
    assert (noised[labelled] == lab.mask).all()
    assert torch.equal(draft[~labelled], noised[~labelled])
    assert not (labelled & ~batch["maskable"]).any()
    assert labelled.sum(-1).tolist() == (noised == lab.mask).sum(-1).clamp(max=3).tolist()


def test_a_row_with_nothing_masked_counts_as_zero(lab):
    model, rows = lab.build_model(), lab.make_rows(2)
    losses = lab.losses(run(model, rows, lab, get_objective("prism", t_min=1e-9, t_max=1e-9)))
    assert losses.loss.item() == 0
    assert losses.num_judged == 0
    losses.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_dropout_is_off_where_drafts_come_from_and_on_where_they_are_judged(lab):
    model, rows = lab.build_model(dropout=0.5).train(), lab.make_rows(8)
    outputs = [run(model, rows, lab, get_objective("prism", drafts=MIXTURE, t_min=0.1)) for _ in range(2)]
    assert torch.equal(outputs[0].terms["diffusion"].per_row, outputs[1].terms["diffusion"].per_row)
    assert torch.equal(outputs[0].terms["quality"].labels.targets, outputs[1].terms["quality"].labels.targets)
    assert not torch.equal(outputs[0].quality_logits, outputs[1].quality_logits)


def test_without_diffusion_weight_only_the_second_look_has_a_gradient(lab):
    model, rows = lab.build_model(lora=False), lab.make_rows(4)
    looks = []
    model.register_forward_hook(lambda module, args, output: looks.append(output.logits if len(looks) == 0 else output[0]))
    output = run(model, rows, lab, get_objective("prism", diffusion_weight=0.0, t_min=0.1))
    seen = [one.requires_grad for one in looks]
    assert seen == [False, True]
    assert output.terms["diffusion"].loss > 0


def test_no_vocabulary_row_is_computed_in_the_second_look(lab):
    model, rows = lab.build_model(), lab.make_rows(4)
    counts = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: counts.append(out.numel() // 32))
    masks = []
    looks = model.plain_backbone.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(int((kwargs["input_ids"] == lab.mask).sum())), with_kwargs=True
    )
    run(model, rows, lab, get_objective("prism", num_drafts=3, t_min=0.5))
    hook.remove()
    looks.remove()
    assert counts == [masks[0], 0]


def test_objectives_are_built_by_name_and_written_down():
    short = get_objective("prism", num_drafted=4, positions="confidence", diffusion_weight=5.0)
    assert short == get_objective("prism", drafts=(DraftRule(num_drafted=4, positions="confidence"),), diffusion_weight=5.0)
    mixed = get_objective("prism", drafts=[{"share": [0.1, 0.5], "num_looks": 2}, {"num_drafted": 2}], num_drafts=2)
    written = json.loads(json.dumps(objective_to_dict(mixed)))
    assert get_objective(**written) == mixed
    assert written["drafts"][0]["share"] == [0.1, 0.5]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"name": "prysm"}, UnknownNameError, "did you mean 'prism'"),
        (
            {"name": "prism", "num_draftd": 2},
            UnknownKeyError,
            "'prism': nothing reads 'num_draftd' \\(did you mean 'num_drafted'\\?\\); known: .*num_drafted",
        ),
        (
            {"name": "prism", "num_drafted": 0},
            ConfigurationError,
            "`num_drafted` of DraftRule must be an integer of at least 1",
        ),
        ({"name": "prism", "num_drafts": 0}, ConfigurationError, "`num_drafts` .* must be an integer of at least 1, found 0"),
        ({"name": "prism", "share": [True, 1]}, ConfigurationError, "`share` must be a list of 2: a number, a number or null"),
        ({"name": "prism", "positions": ["random"]}, ConfigurationError, r"`positions` must be text, found \['random'\]"),
        ({"name": "prism", "drafts": []}, ConfigurationError, "`drafts` needs at least one DraftRule, found none"),
        ({"name": "prism", "drafts": 3}, ConfigurationError, "`drafts` must be a list, each a mapping of settings, found 3"),
        (
            {"name": "prism", "drafts": [3]},
            ConfigurationError,
            r"`drafts` must be a list, each a mapping of settings, found \[3\]",
        ),
        ({"name": "prism", "drafts": [{}], "num_drafted": 2}, ConfigurationError, r"give `drafts` or the settings of one"),
        (
            {"name": "prism", "diffusion_weight": -1.0},
            ConfigurationError,
            "diffusion_weight: `weight` of DiffusionTerm must be 0 or more, found -1.0",
        ),
        (
            {"name": "prism", "diffusion_weight": 0.0, "quality_weight": 0.0},
            ConfigurationError,
            "`diffusion_weight` and `quality_weight` are 0, so nothing would be learnt; raise one",
        ),
        (
            {"name": "prism", "diffusion_weight": "a"},
            ConfigurationError,
            "diffusion_weight: `weight` must be a number, found 'a'",
        ),
        (
            {"name": "prism", "diffusion_share": 0.0},
            ConfigurationError,
            r"diffusion_share: `share` of .* must be a share in \(0, 1\], found 0.0",
        ),
        ({"name": "prism", "t_min": "a"}, ConfigurationError, "`t_min` must be a number, found 'a'"),
        ({"name": "prism", "t_max": None}, ConfigurationError, "`t_max` must be a number, found None"),
        ({"name": "prism", "t_min": 0.0}, ConfigurationError, "0 < t_min <= t_max <= 1, found t_min=0.0"),
    ],
)
def test_bad_settings_are_one_sentence(settings, error, words):
    with pytest.raises(error, match=words):
        get_objective(**settings)


@pytest.mark.parametrize("drafts", [3, (3,), "one"])
def test_drafts_are_draft_rules(drafts):
    with pytest.raises(ConfigurationError, match="`drafts` is a tuple of DraftRule, found"):
        Fill(drafts=drafts)


def test_a_draft_says_how_probable_its_tokens_were_when_they_were_written(lab):
    model, rows = lab.build_model(), lab.make_rows(6)
    draft = run(model, rows, lab, get_objective("prism", drafts=(DraftRule(num_drafted=2, num_looks=2),), t_min=0.9)).draft
    assert torch.equal(draft.history.age >= 0, draft.drafted)

    def probability(ids, attention_mask, position):
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        logits = model(ids.unsqueeze(0), attention_mask.unsqueeze(0), logits_at=everywhere.unsqueeze(0)).logits[position]
        logits[lab.mask] = -torch.inf
        return logits.softmax(-1)

    for ids, drafted, confidence, mask in zip(
        draft.ids, draft.drafted, draft.history.commit_confidence, lab.collate(rows)["attention_mask"], strict=True
    ):
        one, other = drafted.nonzero().flatten().tolist()
        orders = []
        for first, second in ((one, other), (other, one)):
            noised = ids.index_fill(0, torch.tensor([first, second]), lab.mask)
            before = probability(noised, mask, first)[ids[first]]
            half = ids.index_fill(0, torch.tensor([second]), lab.mask)
            after = probability(half, mask, second)[ids[second]]
            orders.append(torch.allclose(confidence[[first, second]], torch.stack((before, after)), rtol=1e-4))
        assert any(orders)


def test_a_share_of_the_diffusion_term_reads_fewer_rows(lab):
    model, rows = lab.build_model(), lab.make_rows(8)
    counts, losses = [], []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: counts.append(out.numel() // 32))
    for share, positions in [(1.0, "random"), (0.3, "random"), (0.3, "confidence")]:
        rule = DraftRule(num_drafted=1, positions=positions)
        objective = get_objective("prism", drafts=(rule,), diffusion_share=share, t_min=0.9)
        losses.append(lab.losses(run(model, rows, lab, objective)))
    hook.remove()
    everything, some, confident = counts[::2]
    assert some < 0.7 * everything
    assert confident == everything
    assert losses[1].diffusion_loss.item() == pytest.approx(losses[2].diffusion_loss.item(), rel=1e-5)
    assert losses[1].diffusion_loss != losses[0].diffusion_loss
    assert losses[1].quality_loss.item() == pytest.approx(losses[0].quality_loss.item(), rel=1e-5)


def test_a_share_is_unbiased_over_epochs(lab):
    model, batch = lab.build_model(), lab.collate(lab.make_rows(8) * 8)
    batch["example_id"] = torch.arange(64)
    totals = dict.fromkeys((1.0, 0.4), 0.0)
    for epoch in range(20):
        for share in totals:
            with torch.no_grad():
                step = get_objective("prism", diffusion_share=share, t_min=0.5).step(
                    model, batch, epoch=epoch, seed=0, unwrapped=model
                )
            totals[share] += step.terms["diffusion"].loss.item() / 20
    assert totals[0.4] == pytest.approx(totals[1.0], rel=0.02)
