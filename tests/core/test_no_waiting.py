"""Nothing in a step may wait for the device: on "meta" tensors, which hold no values, reading one raises."""

import pytest
import torch
from views import FEATURES, step_view

from prism_plugin import core


@pytest.fixture
def view():
    with torch.device("meta"):
        mask, scores, count = torch.ones(2, 5, dtype=torch.bool), torch.rand(2, 5), torch.ones(2, dtype=torch.long)
        names = {"confidence", "commit_confidence", *FEATURES} - {"best_visible"}
        return step_view(
            masked=mask,
            revealed=mask,
            editable=mask,
            candidates=mask.long(),
            step=count,
            num_steps=count,
            total=count,
            times_remasked=mask.long(),
            best_visible=mask.long(),
            **dict.fromkeys(names, scores),
        )


def test_reading_a_meta_tensor_raises(view):
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        bool(view.masked.any())


@pytest.mark.parametrize("registry", [core.UNMASKING, core.REMASKING], ids=lambda registry: registry.kind)
def test_rules_and_writing(view, registry):
    names = ("threshold", "quality_threshold", "redraft", "below", "replaced", "fallen", "backtrack", "klass")
    settings = {name: {"threshold": 0.5} for name in names}
    settings["below"] |= {"score": "quality"}
    settings["klass"] |= {"divergence": 0.1}
    settings |= {"lowest": {"score": "quality"}, "factor": {"factor": 1.0}}
    for name in (name for name in registry.names() if registry.get(name).__module__.startswith("prism_plugin.core.")):
        chosen = registry.from_dict({"name": name, **settings.get(name, {})})(view, view.total)
        assert chosen.device.type == "meta", name
        assert core.apply_step(view.tokens, view.candidates, core.Decision(chosen, chosen), 3).shape == (2, 5)


def test_schedules(view):
    for schedule in (
        core.EvenSchedule(2, 0.2, 0.8),
        core.LoopSchedule(1, 0.5),
        core.RedraftSchedule(2),
        core.RefineSchedule(2, 3),
        core.PlateauSchedule(2),
        core.CapsSchedule(),
        core.RollbackSchedule(),
        core.OwnPaceSchedule(1),
    ):
        budget = schedule(view.step, view.num_steps, view.total, view.total)
        assert core.unmask_grant(budget, view.total, view.total, view.total).device.type == "meta"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("forbidden_ids", [(8, 0), tuple(range(0, 90, 2))])
def test_drawing(temperature, forbidden_ids):
    rows = torch.rand(6, 99, device="meta")
    drawn = core.draw_rows(
        rows,
        temperature=temperature,
        top_p=0.9,
        forbidden_ids=forbidden_ids,
        held_back=core.HeldBack((1,), torch.ones(6, dtype=torch.bool, device="meta")),
        uniforms=torch.rand(6, device="meta"),
        want_entropy=True,
        want_margin=True,
        chunk_rows=4,
    )
    assert drawn.candidates.shape == drawn.margin.shape == (6,)
    assert core.token_confidence(rows, drawn.candidates, forbidden_ids=(8,)).device.type == "meta"


def test_training():
    with torch.device("meta"):
        ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
        example_ids, rows, index = torch.arange(2), torch.rand(10, 9), torch.arange(10)
    noise = core.uniforms(0, example_ids, example_ids, "masked", 5)
    t = core.draw_times(noise[:, 0], 0.1, 1.0)
    noised = core.mask_tokens(ids, mask, mask_token_id=8, t=t, noise=noise)
    for rule in (
        core.DraftRule(num_drafted=2),
        core.DraftRule(num_drafted=None, share=(0.1, 0.5), positions="confidence"),
        core.DraftRule(num_drafted=2, positions="semi_autoregressive", window=3),
    ):
        assert core.num_to_draft(rule, noised.masked, t).device.type == "meta"
    labels = core.drafted_labels(ids, ids, noised.masked)
    assert core.visible_labels(ids, ids, mask, mask).labelled.device.type == "meta"
    assert core.prism_loss(noise, labels, rows, index, ids, mask, t).loss.device.type == "meta"
