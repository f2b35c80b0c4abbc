"""What each objective teaches, found by training all functions there are: a table with a number for every state.

The objectives are the real ones, and the table holds every function of what a look sees, so what it comes to is what the
corruptor and the term say. What that should be is walked over, outcome by outcome, in tests/reference/minimisers.py. Networks
come to the same (test_networks_minimise.py), which takes longer.
"""

import itertools
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded_table import recorded_rows
from reference import minimisers as reference
from torch import nn

from prism_plugin.backbones.spec import get_spec_by_model_type
from prism_plugin.core import CapTerm, DiffusionTerm, Labels, QualityTerm, RepairTerm, terms
from prism_plugin.data import PrismCollator
from prism_plugin.evaluation.tasks.enumerable import three_letter_table
from prism_plugin.training import Fill, Objective, get_objective

TABLE = three_letter_table()
MASK, LENGTH = TABLE.num_letters, TABLE.length
CANVASES = TABLE.canvases
COUNTS = {ids: int(TABLE.counts[ids]) for ids in itertools.product(range(MASK), repeat=LENGTH)}
LOW, HIGH = 0.1, 1.0
# What the model proposes wherever a draft is made: the data's posterior, flattened, and pushed about so that it is not right.
_PUSH = 0.8 * torch.sin(torch.arange(len(CANVASES) * LENGTH * MASK).double() * 1.7).view(len(CANVASES), LENGTH, MASK)


def seen_of(canvas):
    return tuple(None if token == MASK else token for token in canvas)


def _proposal_logits():
    mass, logits = TABLE.mass(), torch.zeros(len(CANVASES), LENGTH, MASK, dtype=torch.float64)
    for place, letter in itertools.product(range(LENGTH), range(MASK)):
        filled = CANVASES.clone()
        filled[:, place] = letter
        logits[:, place, letter] = 0.6 * mass[TABLE.index_of(filled)].log()
    return logits + _PUSH


LOGITS = _proposal_logits()
PROPOSAL = {seen_of(canvas.tolist()): rows.softmax(-1).tolist() for canvas, rows in zip(CANVASES, LOGITS, strict=True)}
UNKNOWN = 2**LENGTH


class EveryFunction(nn.Module):
    """Logits of every letter and a quality for each position of each canvas, all free; and what it proposes, which is fixed.

    With a head that reads history the quality is one for each set of written positions, too, and one where that is unknown.
    """

    mask_token_id, device, unknown_ids = MASK, torch.device("cpu"), ()
    spec = get_spec_by_model_type("bert")

    def __init__(self, with_history=False):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(CANVASES) * LENGTH, MASK + 1))
        self.proposal = torch.cat((LOGITS.flatten(0, 1).float(), torch.full((len(CANVASES) * LENGTH, 1), -40.0)), 1)
        self.quality = nn.Parameter(torch.zeros(len(CANVASES), UNKNOWN + 1, LENGTH))
        self.quality_head = SimpleNamespace(reads_history=("age",) if with_history else ())

    def get_output_embeddings(self):
        return nn.Linear(1, MASK + 1)

    def forward(self, ids, attention_mask=None, *, logits_at=None, with_quality=True, history=None):
        index = TABLE.index_of(ids)
        where = (index.unsqueeze(-1) * LENGTH + torch.arange(LENGTH)).flatten()
        table = self.logits if torch.is_grad_enabled() else self.proposal  # looks without gradient make drafts
        rows = None if logits_at is None else table[where[logits_at]]
        written = torch.full_like(index, UNKNOWN)
        if history is not None:
            bits = ((history.age >= 0) * 2 ** torch.arange(LENGTH)).sum(-1)
            written = torch.where(history.known, bits, written)
        return SimpleNamespace(logits=rows, quality_logits=self.quality[index, written] if with_quality else None)


def _rows(rows, times):
    repeated = [{**row, "example_id": number} for number, row in enumerate(rows * times)]
    return PrismCollator(pad_token_id=0)(repeated)


ROWS = _rows(TABLE.prepared_rows(), 8)


def minimise(objective, rows=ROWS, steps=120, model=None):
    """Train on all rows at once at a rate that falls; give the mean of the last third, which has less of the draws' noise."""
    model = model or EveryFunction()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.01)
    mean = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for step in range(steps):
        optimizer.zero_grad()
        objective.step(model, rows, epoch=step, seed=0, unwrapped=model).loss.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - steps // 3:
            for name, parameter in model.named_parameters():
                mean[name] += parameter.detach() / (steps // 3)
    return mean


def index_of(seen):
    return int(TABLE.index_of(torch.tensor([[MASK if token is None else token for token in seen]])))


def quality_errors(found, expected):
    """Mean absolute error of the quality, and that of the best constant, by how often a state is reached."""
    learnt = []
    for seen, *drafted, place in expected:
        written = sum(2**one for one in drafted[0]) if drafted else UNKNOWN
        learnt.append(found["quality"][index_of(seen), written, place].sigmoid().item())
    weights, targets = (np.array(part) for part in zip(*expected.values(), strict=True))
    order = targets.argsort()
    median = targets[order][np.searchsorted(weights[order].cumsum(), weights.sum() / 2)]
    return tuple((weights * abs(np.array(one) - targets)).sum() / weights.sum() for one in (learnt, median))


def letter_errors(found, expected):
    """The same of the letters' probabilities, in total variation; the constant is their mean."""
    keys, logits = list(expected), found["logits"].view(len(CANVASES), LENGTH, -1)
    learnt = np.array([logits[index_of(seen), place, :MASK].softmax(-1).tolist() for seen, place in keys])
    weights = np.array([expected[key][0] for key in keys])[:, None]
    targets = np.array([expected[key][1] for key in keys])
    constant = (weights * targets).sum(0) / weights.sum()
    return tuple((weights * abs(one - targets)).sum() / weights.sum() / 2 for one in (learnt, constant))


def check(errors):
    """Pass if what was learnt is the minimiser, and no constant is."""
    error, of_constant = errors
    print(f"what was learnt is {error:.4f} from the minimiser, the best constant {of_constant:.3f}")
    assert of_constant >= 0.1, f"a constant is only {of_constant:.3f} away"
    assert error <= 0.01, f"what was learnt is {error:.4f} away"


SHARED = {"t_min": LOW, "t_max": HIGH}
ALL = {"share": (1.0, 1.0)}
# name: objective, outcomes, how its quality term labels
QUALITY = {
    "prism, one drafted": (
        get_objective("prism", num_drafted=1, diffusion_weight=0.0, **SHARED),
        lambda: reference.fill(COUNTS, PROPOSAL, LOW, HIGH, num_drafted=1), {"where": "drafted"},
    ),
    "prism, two drafted": (
        get_objective("prism", num_drafted=2, diffusion_weight=0.0, **SHARED),
        lambda: reference.fill(COUNTS, PROPOSAL, LOW, HIGH, num_drafted=2), {"where": "drafted"},
    ),
    "token_critic": (
        get_objective("token_critic", diffusion_weight=0.0, **SHARED),
        lambda: reference.fill(COUNTS, PROPOSAL, LOW, HIGH), {"where": "drafted"},
    ),
    "p2_planner": (
        get_objective("p2_planner", **SHARED),
        lambda: reference.fill(COUNTS, PROPOSAL, LOW, HIGH), {"where": "visible", "by_time": True},
    ),
    "rolled out": (
        Objective(Fill(get_objective("prism", num_looks=2, **ALL).corruptor.drafts, **SHARED), (QualityTerm(where="visible"),)),
        lambda: reference.fill(COUNTS, PROPOSAL, LOW, HIGH, num_looks=2), {"where": "visible"},
    ),
    "backplay": (
        get_objective("backplay", step=0.3, **SHARED),
        lambda: reference.look_back(COUNTS, PROPOSAL, LOW, HIGH, step=0.3), {"where": "visible"},
    ),
}  # fmt: skip
REPAIR = {
    "proseco": (
        get_objective("proseco", diffusion_weight=0.0, **SHARED),
        lambda: reference.predict_all(COUNTS, PROPOSAL, LOW, HIGH), {"where": "all", "by_time": True},
    ),
    "proseco, the data where nothing was masked": (
        get_objective("proseco", diffusion_weight=0.0, visible="data", **SHARED),
        lambda: reference.predict_all(COUNTS, PROPOSAL, LOW, HIGH, visible="data"), {"where": "all", "by_time": True},
    ),
    "smart": (
        get_objective("smart", **SHARED), lambda: reference.remask(COUNTS, PROPOSAL, LOW, HIGH), {"where": "all"},
    ),
    "cdlm": (
        get_objective("cdlm", rate=0.3, **SHARED),
        lambda: reference.random_tokens(COUNTS, LOW, HIGH, rate=0.3), {"where": "all"},
    ),
    "t2t, tokens": (
        get_objective("t2t", rate=0.3, **SHARED),
        lambda: reference.random_tokens(COUNTS, LOW, HIGH, rate=0.3), {"where": "visible"},
    ),
    "t2t, masks": (
        get_objective("t2t", rate=0.3, **SHARED),
        lambda: reference.random_tokens(COUNTS, LOW, HIGH, rate=0.3), {"where": "masked", "by_time": True},
    ),
    "scope": (
        get_objective("scope", diffusion_weight=0.0, drafts=[{"share": [1.0, 1.0], "num_looks": 2}], **SHARED),
        lambda: reference.fill(COUNTS, PROPOSAL, LOW, HIGH, num_looks=2), {"where": "wrong"},
    ),
    "dmax": (
        get_objective("dmax", diffusion_weight=0.0, **SHARED),
        lambda: reference.predict_all(COUNTS, PROPOSAL, LOW, HIGH, visible="data"), {"where": "all"},
    ),
}  # fmt: skip


SLOW = {"prism, two drafted", "token_critic", "smart", "scope", "t2t, masks"}  # others say the same sooner


def kinds(table):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in table]


@pytest.mark.parametrize("name", kinds(QUALITY))
def test_quality_comes_to_the_probability_over_all_that_can_have_happened(name):
    objective, outcomes, how = QUALITY[name]
    check(quality_errors(minimise(objective), reference.quality(outcomes(), **how)))


@pytest.mark.parametrize("name", kinds(REPAIR))
def test_repair_comes_to_what_should_stand_there(name):
    objective, outcomes, how = REPAIR[name]
    check(letter_errors(minimise(objective), reference.repair(outcomes(), **how)))


def exact(seen, place):
    """p(token | the rest), the token not seen."""
    agreeing = [clean for clean in COUNTS if all(token in (None, clean[one]) for one, token in enumerate(seen) if one != place)]
    return sum(COUNTS[clean] for clean in agreeing if clean[place] == seen[place]) / sum(COUNTS[clean] for clean in agreeing)


# How far the minimiser is from p(token | the rest), which PRISM, P2 and others want of a quality head.
APART = {"prism, one drafted": 0.0, "prism, two drafted": 0.05, "token_critic": 0.05, "p2_planner": 0.05, "backplay": 0.05}


@pytest.mark.parametrize("name", APART)
def test_one_drafted_token_alone_teaches_the_exact_posterior(name):
    """What the papers claim of more tokens, or of given ones beside them, is near it and not the same."""
    _, outcomes, how = QUALITY[name]
    expected = reference.quality(outcomes(), **how)
    total = sum(weight for weight, _ in expected.values())
    apart = sum(weight * abs(right - exact(*key)) for key, (weight, right) in expected.items()) / total
    assert apart == pytest.approx(0, abs=1e-9) if APART[name] == 0 else apart > APART[name]


def test_visible_tokens_of_recorded_drafts_teach_the_exact_posterior():
    rows = _rows(recorded_rows(TABLE), 1)
    found = minimise(get_objective("prism_recorded", diffusion_weight=0.0), rows)
    expected = defaultdict(lambda: [0.0, 0.0])
    for draft, maskable in zip(rows["draft_ids"].tolist(), rows["maskable"].tolist(), strict=True):
        for place in range(LENGTH):
            if maskable[place] and draft[place] != MASK:
                expected[seen_of(draft), place][0] += 1
    check(quality_errors(found, {key: (weight, exact(*key)) for key, (weight, _) in expected.items()}))


@pytest.mark.slow
def test_a_head_that_sees_what_was_drafted_learns_the_posterior_that_leaves_it_out():
    """Exact for any number of drafted tokens, and where it sees nothing it knows as much as a head without history."""
    two = get_objective("prism", num_drafted=2, diffusion_weight=0.0, **SHARED)
    judges_all = replace(two, terms=(QualityTerm(where="visible"),), name=None)
    found = minimise(judges_all, steps=240, model=EveryFunction(with_history=True))  # half of the rows are for either
    outcomes = list(reference.fill(COUNTS, PROPOSAL, LOW, HIGH, num_drafted=2))
    shown = reference.quality(outcomes, where="drafted", with_drafted=True)
    check(quality_errors(found, shown))
    for (seen, drafted, place), (_, right) in shown.items():
        left_out = tuple(None if one in drafted else token for one, token in enumerate(seen))
        assert right == pytest.approx(exact(reference.put(left_out, {place: seen[place]}), place), abs=1e-9)
    hidden = reference.quality(outcomes, where="visible")
    check(quality_errors(found, hidden))
    without = minimise(judges_all)
    check(quality_errors(without, hidden))


def test_the_soft_target_at_masks_is_how_often_the_model_will_be_right():
    found = minimise(get_objective("remedi", mid_rate=0.2, quality_weight=1.0, **SHARED), steps=240)
    outcomes = list(reference.random_tokens(COUNTS, LOW, HIGH, mid_rate=0.2))
    letters = reference.repair(outcomes, where="masked", by_time=True)
    check(letter_errors(found, letters))
    check(quality_errors(found, reference.quality(outcomes)))
    weights = reference.repair(outcomes, where="masked")
    at_masks = {key: (weights[key][0], float((p**2).sum())) for key, (_, p) in letters.items()}
    print("at masks", errors := quality_errors(found, at_masks))
    assert errors[0] <= 0.01


@pytest.mark.slow
def test_the_diffusion_term_teaches_the_posterior_of_masks_independent_or_not():
    for masks in ("independent", "permuted_prefix"):
        found = minimise(Objective(Fill(**SHARED, masks=masks), (DiffusionTerm(weight=1.0),)))
        outcomes = (
            reference.Outcome(chance, clean, reference.hide(clean, hidden), frozenset(), t)
            for chance, clean, hidden, t in reference.masked(COUNTS, LOW, HIGH)
        )
        check(letter_errors(found, reference.repair(outcomes, where="masked", by_time=True)))


def test_errors_that_weigh_more_do_not_teach_the_posterior():
    """A token that is right with probability r gets 0 below a half, else (2 r - 1) / r; the other letters share the rest.

    There minus r p and the cross-entropies of the others are least together (Lagrange).
    """
    objective = get_objective("proseco", diffusion_weight=0.0, repair_errors_weigh_more=True, **SHARED)
    found = minimise(objective, steps=240)
    posterior = reference.repair(reference.predict_all(COUNTS, PROPOSAL, LOW, HIGH), where="all", by_time=True)
    expected = {}
    for (seen, place), (weight, p) in posterior.items():
        right = p[seen[place]]
        letters = p / max(right, 1 - right)
        letters[seen[place]] = max(2 * right - 1, 0) / max(right, 0.5)
        expected[seen, place] = (weight, letters)
    error, constant = letter_errors(found, expected)
    assert error <= 0.03
    assert constant >= 0.1
    assert letter_errors(found, posterior)[0] >= 0.1


@pytest.mark.slow
def test_cap_makes_a_model_surer_than_the_data_allow():
    objective = Objective(Fill(**SHARED), (DiffusionTerm(weight=1.0), CapTerm(weight=0.5)))
    logits = minimise(objective)["logits"].view(len(CANVASES), LENGTH, -1)[..., :MASK]
    outcomes = (
        reference.Outcome(chance, clean, reference.hide(clean, hidden), frozenset(), t)
        for chance, clean, hidden, t in reference.masked(COUNTS, LOW, HIGH)
    )
    expected = reference.repair(outcomes, where="masked", by_time=True)
    surer = [logits[index_of(seen), place].softmax(-1).max().item() - p.max() for (seen, place), (_, p) in expected.items()]
    assert np.mean(surer) > 0.05


def inverted(draft_ids, clean_ids, drafted):
    right = (draft_ids == clean_ids) & drafted
    return Labels(targets=(drafted & ~right).float(), labelled=drafted)


def of_other_rows(draft_ids, clean_ids, drafted):
    return Labels(targets=((draft_ids == clean_ids.roll(len(clean_ids) // 3, 0)) & drafted).float(), labelled=drafted)


def of_all_letters(draft_ids, clean_ids, drafted):
    labelled = draft_ids != MASK
    return Labels(targets=((draft_ids == clean_ids) & labelled).float(), labelled=labelled)


@pytest.mark.parametrize("labels", [inverted, of_other_rows, of_all_letters])
def test_wrong_labels_are_found_out(labels, monkeypatch):
    monkeypatch.setattr(terms, "drafted_labels", labels)
    objective, outcomes, how = QUALITY["prism, one drafted"]
    with pytest.raises(AssertionError, match="what was learnt is"):
        check(quality_errors(minimise(objective, steps=60), reference.quality(outcomes(), **how)))


WRONG = {
    "given tokens labelled beside a shown history": ("of_written_labels", lambda labels, history: labels),
    "hard labels at masks": ("with_soft_labels", lambda labels, masked, p: Labels(labels.targets, labels.labelled | masked)),
}


def test_wrong_weights_are_found_out():
    """1/t left out, argmax for samples, tokens that nothing was masked of taken from the data."""
    _, outcomes, how = QUALITY["p2_planner"]
    expected = reference.quality(outcomes(), **how)
    for changed in ({"quality_by_time": False}, {"tokens": "argmax"}):
        wrong = get_objective("p2_planner", **SHARED, **changed)
        with pytest.raises(AssertionError, match="what was learnt is"):
            check(quality_errors(minimise(wrong, steps=60), expected))
    _, outcomes, how = REPAIR["proseco"]
    expected = reference.repair(outcomes(), **how)
    for changed in ({"visible": "data"}, {"tokens": "sample"}, {"masks": "permuted_prefix"}):
        wrong = get_objective("proseco", diffusion_weight=0.0, **SHARED, **changed)
        with pytest.raises(AssertionError, match="what was learnt is"):
            check(letter_errors(minimise(wrong, steps=60), expected))


def test_given_tokens_judged_beside_a_shown_history_are_found_out(monkeypatch):
    name, labels = WRONG["given tokens labelled beside a shown history"]
    monkeypatch.setattr(terms, name, labels)
    two = get_objective("prism", num_drafted=2, diffusion_weight=0.0, **SHARED)
    found = minimise(replace(two, terms=(QualityTerm(where="visible"),), name=None), steps=60, model=EveryFunction(True))
    given = [
        found["quality"][index_of(seen), 1 << other, place].sigmoid().item()
        for seen, place, other in (((0, 1, 2), 0, 1), ((2, 0, 0), 0, 1), ((1, 1, 2), 2, 1))
    ]
    assert min(given) > 0.9, "the history tells that they are the data's"


def test_hard_labels_at_masks_are_found_out(monkeypatch):
    name, labels = WRONG["hard labels at masks"]
    monkeypatch.setattr(terms, name, labels)
    found = minimise(get_objective("remedi", mid_rate=0.2, **SHARED), steps=60)
    outcomes = list(reference.random_tokens(COUNTS, LOW, HIGH, mid_rate=0.2))
    letters = reference.repair(outcomes, where="masked", by_time=True)
    at_masks = {key: (weight, float((p**2).sum())) for key, (weight, p) in letters.items()}
    assert quality_errors(found, at_masks)[0] > 0.1


def test_a_repair_term_without_errors_to_repair_learns_nothing():
    wrong = Objective(get_objective("scope", **SHARED).corruptor, (RepairTerm(where="wrong"),))
    at = wrong.corruptor.plan(ROWS, lambda name, count=None: torch.zeros(len(ROWS["example_id"]), count or LENGTH), MASK).noised
    assert not wrong.terms[0].rows(at).any()
