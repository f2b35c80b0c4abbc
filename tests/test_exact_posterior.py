"""The proof: on a distribution that can be enumerated, the head of a real network learns the exact posterior.

The training is that of examples/06_exact_posterior.py: the real objective in a plain loop, on a real BERT. What each kind of
label teaches, and that wrong ones are found out, is shown in tests/training/test_minimisers.py, in seconds.
"""

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from recorded_table import recorded_rows

from prism_plugin.data import PrismCollator
from prism_plugin.evaluation.tasks.enumerable import three_letter_table
from prism_plugin.training import get_objective

EXAMPLE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "06_exact_posterior.py"))
TABLE = three_letter_table()

pytestmark = pytest.mark.slow


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


def test_recorded_drafts_of_one_position_make_a_biased_head_exact(two_drafted):
    model = EXAMPLE["build"](TABLE)
    model.load_state_dict(two_drafted.state_dict())
    with pytest.raises(AssertionError, match=r"the head is 0\.\d+ from the exact posterior"):
        check_exact(model)
    whole, chance = PrismCollator(pad_token_id=0)(recorded_rows(TABLE)), torch.Generator().manual_seed(0)
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
