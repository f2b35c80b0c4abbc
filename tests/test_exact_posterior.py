"""The proof: on a distribution that can be enumerated, the head learns the exact posterior, and what it learns follows labels.

The training is that of examples/06_exact_posterior.py: the real objective in a plain loop, on a real BERT.
"""

import dataclasses
import itertools
import runpy
from pathlib import Path

import pytest
import torch

from prism_plugin.core import Labels, drafted_labels, terms, visible_labels
from prism_plugin.data import PrismCollator
from prism_plugin.evaluation.tasks.enumerable import three_letter_table
from prism_plugin.training import get_objective

EXAMPLE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "06_exact_posterior.py"))
TABLE = three_letter_table()
MASK = TABLE.num_letters
MORE_STEPS = {"num_steps": 100, "learning_rate": 2e-3, "seed": 1}


def trained(num_drafted):
    model = EXAMPLE["build"](TABLE)
    EXAMPLE["train"](model, TABLE, num_drafted)
    return model


@pytest.fixture(scope="module")
def one_drafted():
    return trained(1)


@pytest.fixture(scope="module")
def two_drafted():
    return trained(2)


def check_exact(model):
    """Pass if the head has learnt the exact posterior, where a constant is far from it."""
    states = EXAMPLE["states_of"](model, TABLE, 1)
    error, of_constant = (states.mean_error(one, states.exact) for one in (states.quality(model), states.best_constant()))
    assert of_constant >= 0.15, f"a constant is only {of_constant:.3f} from the exact posterior"
    assert error <= 0.02, f"the head is {error:.3f} from the exact posterior"


def test_head_learns_the_exact_posterior(one_drafted):
    check_exact(one_drafted)
    assert len(EXAMPLE["states_of"](one_drafted, TABLE, 1)) == 144  # every draft with every one of its letters


def test_more_drafted_positions_give_the_predicted_bias(one_drafted, two_drafted):
    one, two = EXAMPLE["states_of"](one_drafted, TABLE, 1), EXAMPLE["states_of"](two_drafted, TABLE, 2)
    keys, wanted = (TABLE.index_of(states.draft_ids) * TABLE.length + states.position for states in (one, two))
    rows = torch.searchsorted(keys, wanted)
    assert torch.equal(keys[rows], wanted)
    # the states that both reach, weighted by how often one drafted position reaches them
    same = dataclasses.replace(two, weight=one.weight[rows])
    torch.testing.assert_close(same.exact, one.exact[rows])
    assert same.weight.sum() > 0.6
    assert same.mean_error(one.quality(one_drafted)[rows], same.exact) <= 0.02
    assert same.mean_error(two.quality(two_drafted), same.exact) >= 0.05
    # it is this bias and no other: the head has learnt what the enumeration says
    assert two.mean_error(two.quality(two_drafted), two.predicted) <= 0.02


def recorded_rows():
    """Each row of the table under each set of masks, with each letter in one of their places: the other letters are given."""
    sets = [masked for size in range(1, TABLE.length + 1) for masked in itertools.combinations(range(TABLE.length), size)]
    rows = []
    for row in TABLE.prepared_rows():
        for masked in sets:
            noised = [MASK if place in masked else letter for place, letter in enumerate(row["input_ids"])]
            maskable = [place in masked for place in range(TABLE.length)]
            for place, letter in itertools.product(masked, range(TABLE.num_letters)):
                draft_ids = [*noised[:place], letter, *noised[place + 1 :]]
                rows.append({**row, "maskable": maskable, "draft_ids": draft_ids})
    return rows


def test_recorded_drafts_of_one_position_make_a_biased_head_exact(two_drafted):
    model = EXAMPLE["build"](TABLE)
    model.load_state_dict(two_drafted.state_dict())
    with pytest.raises(AssertionError, match=r"the head is 0\.\d+ from the exact posterior"):
        check_exact(model)
    whole, chance = PrismCollator(pad_token_id=0)(recorded_rows()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=150, pct_start=0.1)
    for _ in range(150):
        chosen = torch.randint(len(whole["example_id"]), (1000,), generator=chance)
        batch = {name: values[chosen] for name, values in whole.items()}
        optimizer.zero_grad()
        get_objective("prism_recorded").step(model, batch, epoch=0, seed=0, unwrapped=model).loss.backward()
        optimizer.step()
        schedule.step()
    check_exact(model)


def right(draft_ids, clean_ids, drafted):
    return drafted_labels(draft_ids, clean_ids, drafted)


def inverted(draft_ids, clean_ids, drafted):
    labels = drafted_labels(draft_ids, clean_ids, drafted)
    return Labels(targets=(1 - labels.targets) * drafted, labelled=drafted)


def of_other_rows(draft_ids, clean_ids, drafted):
    order = torch.randperm(len(clean_ids), generator=torch.Generator().manual_seed(0))
    return drafted_labels(draft_ids, clean_ids[order], drafted)


def of_all_letters(draft_ids, clean_ids, drafted):
    return visible_labels(draft_ids, clean_ids, torch.ones_like(drafted), draft_ids == MASK)


def train_on(model, labels, monkeypatch):
    """Train a copy a little further, with another label rule in the objective's place."""
    copy = EXAMPLE["build"](TABLE)
    copy.load_state_dict(model.state_dict())
    monkeypatch.setattr(terms, "drafted_labels", labels)
    EXAMPLE["train"](copy, TABLE, 1, **MORE_STEPS)
    return copy


@pytest.mark.parametrize("labels", [inverted, of_other_rows, of_all_letters])
def test_wrong_labels_are_found_out(one_drafted, labels, monkeypatch):
    with pytest.raises(AssertionError, match=r"the head is 0\.\d+ from the exact posterior"):
        check_exact(train_on(one_drafted, labels, monkeypatch))


def test_right_labels_keep_it_exact(one_drafted, monkeypatch):
    check_exact(train_on(one_drafted, right, monkeypatch))
