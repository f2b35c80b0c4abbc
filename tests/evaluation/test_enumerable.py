import itertools
from collections import Counter

import pytest
import torch
from reference.enumerable import judged_states

from prism_plugin.data import PrismCollator
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.tasks.enumerable import DraftStates, JointTable, draft_states, proposal_of, three_letter_table
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone
from prism_plugin.training import get_objective

TABLE = three_letter_table()
MASK = TABLE.num_letters


def some_proposal(table, seed=0):
    """Proposals that have nothing to do with the table."""
    canvases = table.canvases
    logits = torch.randn(*canvases.shape, table.num_letters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(-1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=TABLE.num_letters + 1, hidden_size=16, num_hidden_layers=1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attach_quality_head(backbone, PrismConfig(mask_token_id=MASK))


def test_mass_by_hand():
    table = JointTable(torch.tensor([[1, 2], [3, 4]]))
    assert table.canvases.tolist() == [list(ids) for ids in itertools.product(range(3), repeat=2)]
    assert torch.equal(table.index_of(table.canvases), torch.arange(9))
    expected = [0.1, 0.2, 0.3, 0.3, 0.4, 0.7, 0.4, 0.6, 1.0]  # 00 01 0_ 10 11 1_ _0 _1 __
    torch.testing.assert_close(table.mass(), torch.tensor(expected, dtype=torch.float64))


def test_rows_are_the_distribution():
    rows = TABLE.prepared_rows()
    assert [row["example_id"] for row in rows] == list(range(int(TABLE.counts.sum())))
    found = Counter(tuple(row["input_ids"]) for row in rows)
    assert found == {ids: int(TABLE.counts[ids]) for ids in itertools.product(range(3), repeat=3)}
    assert all(row["maskable"] == [True] * 3 for row in rows)


@pytest.mark.parametrize("num_drafted", [1, 2, 3])
@pytest.mark.parametrize(("t_min", "t_max"), [(1e-3, 1.0), (0.3, 0.6)])
def test_states_are_those_of_the_literal_walk(num_drafted, t_min, t_max):
    proposal = some_proposal(TABLE)
    states = draft_states(TABLE, proposal, num_drafted, t_min=t_min, t_max=t_max)
    by_canvas = {
        tuple(None if token == MASK else token for token in canvas): rows
        for canvas, rows in zip(TABLE.canvases.tolist(), proposal.tolist(), strict=True)
    }
    counts = {ids: int(TABLE.counts[ids]) for ids in itertools.product(range(3), repeat=3)}
    expected = judged_states(counts, by_canvas, num_drafted, t_min, t_max)
    total = sum(share for share, _ in expected.values())
    assert len(states) == len(expected)
    for ids, position, weight, predicted in zip(
        states.draft_ids.tolist(), states.position.tolist(), states.weight, states.predicted, strict=True
    ):
        share, right = expected[tuple(None if token == MASK else token for token in ids), position]
        assert weight.item() == pytest.approx(share / total, abs=1e-7)
        assert predicted.item() == pytest.approx(right / share, abs=1e-6)


def test_one_masking_probability():
    narrow, none = (draft_states(TABLE, some_proposal(TABLE), 2, t_min=0.4, t_max=t_max) for t_max in (0.4 + 1e-4, 0.4))
    torch.testing.assert_close(none.weight, narrow.weight, atol=1e-4, rtol=0)


def test_exact_posterior_by_hand():
    table = JointTable(torch.tensor([[1, 2], [3, 4]]))
    states = draft_states(table, some_proposal(table), 1)
    keys = zip(map(tuple, states.draft_ids.tolist()), states.position.tolist(), strict=True)
    exact = dict(zip(keys, states.exact.tolist(), strict=True))
    assert len(exact) == 12
    assert exact[(0, 1), 0] == pytest.approx(2 / 6)  # p(x_0 = 0 | x_1 = 1)
    assert exact[(0, 1), 1] == pytest.approx(2 / 3)  # p(x_1 = 1 | x_0 = 0)
    assert exact[(1, 2), 0] == pytest.approx(7 / 10)  # p(x_0 = 1), the other position masked


@pytest.mark.parametrize("seed", [0, 1])
def test_one_drafted_position_predicts_the_exact_posterior_whatever_the_proposal(seed):
    states = draft_states(TABLE, some_proposal(TABLE, seed), 1)
    torch.testing.assert_close(states.predicted, states.exact)


def test_more_drafted_positions_predict_something_else():
    states = draft_states(TABLE, some_proposal(TABLE), 2)
    assert states.mean_error(states.predicted, states.exact) > 0.05


@pytest.mark.parametrize("num_drafted", [1, 2])
def test_states_are_those_that_the_objective_makes(model, num_drafted):
    """The enumeration against the real corruptor: how often each state is judged, and how often it is right."""
    batch = PrismCollator(pad_token_id=0)(TABLE.prepared_rows())
    objective = get_objective("prism", num_drafted=num_drafted)
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    reached, right = (torch.zeros(TABLE.canvases.shape, dtype=torch.float64) for _ in range(2))
    for epoch in range(60):
        with torch.no_grad():
            labels = objective.step(model, batch, epoch=epoch, seed=0, unwrapped=model).terms["quality"].labels
        share = labels.labelled.double() / labels.labelled.sum(-1, keepdim=True).clamp(min=1)
        index = TABLE.index_of(seen[-1])
        reached.index_add_(0, index, share)
        right.index_add_(0, index, share * labels.targets)
    hook.remove()
    states = draft_states(TABLE, proposal_of(model, TABLE), num_drafted)
    place = TABLE.index_of(states.draft_ids), states.position
    assert reached[place].sum() == pytest.approx(reached.sum().item())  # no state is reached that is not enumerated
    found = reached[place] / reached.sum()
    assert (found - states.weight).abs().sum() < 0.05
    frequency = right[place] / reached[place].clamp(min=1e-9)
    assert states.mean_error(frequency, states.predicted) < 0.02


def test_best_constant_is_the_best():
    states = draft_states(TABLE, some_proposal(TABLE), 1)
    best = states.mean_error(states.best_constant(), states.exact)
    others = [states.mean_error(torch.full_like(states.exact, constant / 100), states.exact) for constant in range(101)]
    assert best <= min(others) < best + 0.01


def test_mean_error_is_weighted():
    states = DraftStates(*[torch.zeros(2)] * 2, weight=torch.tensor([3.0, 1.0]), exact=torch.zeros(2), predicted=torch.zeros(2))
    assert states.mean_error(torch.tensor([0.0, 0.8]), states.exact) == pytest.approx(0.2)


def test_quality_is_that_of_the_judged_position(model):
    states = draft_states(TABLE, some_proposal(TABLE), 1)
    rated = model.score(states.draft_ids)
    quality = states.quality(model)
    assert [rated[row, i].item() for row, i in enumerate(states.position.tolist())] == quality.tolist()


def test_proposal_is_what_the_sampler_draws_from(model):
    proposal = proposal_of(model, TABLE)
    logits = model(TABLE.canvases, logits_at=torch.ones_like(TABLE.canvases, dtype=torch.bool)).logits
    logits[:, MASK] = float("-inf")
    torch.testing.assert_close(proposal.flatten(0, 1), logits.softmax(-1)[:, :MASK].double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (torch.ones(3, dtype=torch.long), r"two or more axes, all of one length, found the shape \(3,\)"),
        (torch.ones(3, 2, dtype=torch.long), r"two or more axes, all of one length, found the shape \(3, 2\)"),
        (torch.tensor([[1, 2], [0, 3]]), "must be at least 1, so that every posterior is defined, found 0"),
    ],
)
def test_tables_that_make_no_sense_are_refused(counts, words):
    with pytest.raises(ConfigurationError, match=words):
        JointTable(counts)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_drafted": 0}, "`num_drafted` of DraftRule must be"),
        ({"num_drafted": 1, "t_min": 0.0}, "0 < t_min <= t_max <= 1, found t_min=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        draft_states(TABLE, some_proposal(TABLE), **settings)


def test_model_of_another_alphabet_is_refused():
    other = attach_quality_head(tiny_backbone(vocab_size=6, num_hidden_layers=1), PrismConfig(mask_token_id=5))
    words = "needs 4 tokens, the last of them the mask, to speak of this table, found 6 tokens with mask token 5"
    with pytest.raises(ConfigurationError, match=words):
        proposal_of(other, TABLE)
