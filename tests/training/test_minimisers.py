"""What each kind of label teaches, found by training all functions there are: a table with a number for every state.

The objectives are the real ones, and what they are minimised over holds every function of the canvas, so what it comes to is
what the labels say. That a network comes to the same is shown in tests/test_exact_posterior.py, which takes longer.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch
from recorded_table import recorded_rows
from torch import nn

from prism_plugin.backbones.spec import get_spec_by_model_type
from prism_plugin.core import DiffusionTerm, Labels, QualityTerm, RepairTerm, terms
from prism_plugin.data import PrismCollator
from prism_plugin.evaluation.tasks.enumerable import draft_states, three_letter_table
from prism_plugin.training import Fill, Objective, get_objective

TABLE = three_letter_table()
MASK, LENGTH = TABLE.num_letters, TABLE.length
CANVASES, MASS = TABLE.canvases, TABLE.mass()


class EveryFunction(nn.Module):
    """Logits of every letter and a quality for each position of each canvas, all free."""

    mask_token_id, device, unknown_ids = MASK, torch.device("cpu"), ()
    quality_head = SimpleNamespace(reads_history=())
    spec = get_spec_by_model_type("bert")

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(CANVASES) * LENGTH, MASK + 1))
        self.quality = nn.Parameter(torch.zeros(len(CANVASES), LENGTH))

    def forward(self, ids, attention_mask=None, *, logits_at=None, with_quality=True):
        index = TABLE.index_of(ids)
        where = (index.unsqueeze(-1) * LENGTH + torch.arange(LENGTH)).flatten()
        rows = None if logits_at is None else self.logits[where[logits_at]]
        return SimpleNamespace(logits=rows, quality_logits=self.quality[index] if with_quality else None)


ROWS = PrismCollator(pad_token_id=0)(TABLE.prepared_rows())
RECORDED = PrismCollator(pad_token_id=0)(recorded_rows(TABLE))


def minimise(objective, rows=ROWS, steps=80):
    """Train on all rows at once, or some thousands; give the mean of the last half, which has less of the draws' noise."""
    model, chance = EveryFunction(), torch.Generator().manual_seed(0)
    count = len(rows["example_id"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99))
    mean = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for step in range(steps):
        chosen = slice(None) if count < 4000 else torch.randint(count, (4000,), generator=chance)
        batch = {name: values[chosen] for name, values in rows.items()}
        optimizer.zero_grad()
        objective.step(model, batch, epoch=step, seed=0, unwrapped=model).loss.backward()
        optimizer.step()
        if step >= steps // 2:
            for name, parameter in model.named_parameters():
                mean[name] += parameter.detach() / (steps - steps // 2)
    return mean


def posterior():
    """p(letter at a masked position | the rest of a canvas), of every canvas: [canvases, length, letters]; NaN at letters."""
    found = torch.full((*CANVASES.shape, MASK), float("nan"), dtype=torch.float64)
    for place, letter in itertools.product(range(LENGTH), range(MASK)):
        masked = CANVASES[:, place] == MASK
        filled = CANVASES[masked].clone()
        filled[:, place] = letter
        found[masked, place, letter] = MASS[TABLE.index_of(filled)] / MASS[masked]
    return found


def quality_error(found, states, expected):
    place = TABLE.index_of(states.draft_ids), states.position
    return states.mean_error(found["quality"][place].sigmoid(), expected)


UNIFORM = torch.full((*CANVASES.shape, MASK), 1 / MASK, dtype=torch.float64)  # what a table of zeros proposes


@pytest.mark.parametrize("num_drafted", [1, 2])
def test_drafted_tokens_teach_the_probability_over_the_ways_of_drafting(num_drafted):
    objective = get_objective("prism", num_drafted=num_drafted, diffusion_weight=0.0)
    found = minimise(objective)
    states = draft_states(TABLE, UNIFORM, num_drafted)
    assert quality_error(found, states, states.predicted) <= 0.025
    assert (states.mean_error(states.predicted, states.exact) > 0.05) == (num_drafted > 1)


def test_visible_tokens_of_recorded_drafts_teach_the_exact_posterior():
    found = minimise(get_objective("prism_recorded", diffusion_weight=0.0), RECORDED)
    states = draft_states(TABLE, UNIFORM, 1)
    assert quality_error(found, states, states.exact) <= 0.025


def test_visible_tokens_teach_how_often_a_token_is_right_the_untouched_among_them():
    """A higher number than that of drafted tokens: thresholds do not carry over."""
    visible = Objective(Fill(drafts=get_objective("prism", num_drafted=1).corruptor.drafts), (QualityTerm(where="visible"),))
    found = minimise(visible)
    states = draft_states(TABLE, UNIFORM, 1)
    place = TABLE.index_of(states.draft_ids), states.position
    assert states.mean_error(found["quality"][place].sigmoid(), states.exact) > 0.1
    assert ((found["quality"][place].sigmoid() - states.exact) * states.weight).sum() > 0.1


@pytest.mark.parametrize("kind", ["diffusion", "repair"])
def test_the_cross_entropies_teach_what_should_stand(kind):
    if kind == "diffusion":
        found = minimise(Objective(Fill(), (DiffusionTerm(weight=1.0),)))
        place = (CANVASES == MASK).nonzero(as_tuple=True)
        canvas, position = place
    else:
        recorded = get_objective("prism_recorded").corruptor
        found = minimise(Objective(recorded, (RepairTerm(where="visible"),)), RECORDED)
        states = draft_states(TABLE, UNIFORM, 1)
        canvas, position = TABLE.index_of(states.draft_ids), states.position
        place = TABLE.index_of(states.draft_ids.scatter(1, position.unsqueeze(1), MASK)), position
    learnt = found["logits"].view(*CANVASES.shape, -1)[canvas, position, :MASK].softmax(-1)
    expected = posterior()[place]
    weight = MASS[place[0]].unsqueeze(-1)
    assert ((learnt - expected).abs() * weight).sum() / weight.sum() / MASK <= 0.025
    assert ((expected - 1 / MASK).abs() * weight).sum() / weight.sum() / MASK > 0.05, "a constant would do"


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
    found = minimise(get_objective("prism", num_drafted=1, diffusion_weight=0.0))
    states = draft_states(TABLE, UNIFORM, 1)
    assert quality_error(found, states, states.exact) > 0.05
