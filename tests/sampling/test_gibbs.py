"""Particle Gibbs: its sweeps leave the target as it is, and keep their reference."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from exact_world import LENGTH, LETTERS, TABLE, exact_sampler, worth_of
from small_samplers import MASK, build_model, generators, masked_request, sampled

from prism_plugin.sampling import gibbs
from prism_plugin.sampling.trajectories import ParticleGibbs
from prism_plugin.sampling.weights import Weights

RUNS_OF_GIBBS = 40_000
# Above these a right sampler is found once in 1,000 tests, by degrees of freedom.
CHI_SQUARE_999 = {26: 54.05, 25: 52.62, 24: 51.18, 23: 49.73, 22: 48.27, 21: 46.80, 20: 45.31, 19: 43.82, 18: 42.31}


def exact_gibbs(**how):
    how = {"num_particles": 3, "by": worth_of, "every": 1, "num_sweeps": 1, "beta": 0.7, **how}
    return exact_sampler(ParticleGibbs(**how))


@pytest.fixture(scope="module")
def model():
    return build_model()


def target(beta=0.7):
    """p(x) exp(r(x) / beta) of all texts, in the order of `itertools.product`."""
    masses = [
        int(TABLE.counts[ids]) * math.exp(float(worth_of(torch.tensor([ids]))) / beta)
        for ids in itertools.product(range(LETTERS), repeat=LENGTH)
    ]
    return torch.tensor(masses, dtype=torch.float64) / sum(masses)


def number_of(tokens):
    return (tokens * LETTERS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


def chi_square(output, expected):
    """Of the texts, with those of the same expectation of under 5 put together; statistic and degrees."""
    found = torch.bincount(number_of(output), minlength=LETTERS**LENGTH).double()
    expected = expected * len(output)
    rare = expected < 5
    found, expected = (torch.cat((one[~rare], one[rare].sum().view(1))) for one in (found, expected))
    keep = expected > 0
    return float(((found - expected)[keep].square() / expected[keep]).sum()), int(keep.sum()) - 1


def exact_start(monkeypatch):
    """Ordinary runs that are drawn again by exp(r / beta), as many as are wanted: their texts are the target's, their ways too.

    A run's way given its text does not depend on the weight, so rejection by the final reward alone draws whole ways exactly.
    """
    highest = max(float(worth_of(torch.tensor([ids]))) for ids in itertools.product(range(LETTERS), repeat=LENGTH))
    begin = gibbs._Sweep.run
    chance = torch.Generator().manual_seed(7)

    def exact(sweep, before):
        state = begin(sweep, before)
        if sweep.reference is None:
            worth = sweep.moments[-1].worth[:, 0]
            keep = torch.rand(len(worth), generator=chance, dtype=torch.float64) < (worth - highest / 0.7).exp()
            accepted.append(keep)
        return state

    accepted = []
    monkeypatch.setattr(gibbs._Sweep, "run", exact)
    return accepted


@pytest.mark.parametrize("how", [{}, {"completions": 2}, {"resample_below": 0.8}, {"every": 2}], ids=str)
def test_a_gibbs_sweep_leaves_the_target_as_it_is(monkeypatch, how):
    """Exact starts, one sweep, independent runs."""
    accepted = exact_start(monkeypatch)
    sampler = exact_gibbs(**how)
    output = sampler.infill(torch.full((RUNS_OF_GIBBS, LENGTH), LETTERS), generator=torch.Generator().manual_seed(1))
    kept = output.sequences[accepted[0]]
    assert len(kept) > 3000
    statistic, degrees = chi_square(kept, target())
    assert statistic < CHI_SQUARE_999[degrees]


@pytest.mark.parametrize("wrong", ["the reference cannot be drawn again", "weights forget what was before"])
def test_a_wrong_sweep_is_found_out(monkeypatch, wrong):
    accepted = exact_start(monkeypatch)
    if wrong == "the reference cannot be drawn again":
        one = Weights.one

        def without(self):
            self.log_weights[:, 0] = -torch.inf
            return one(self)

        monkeypatch.setattr(Weights, "one", without)
    else:
        gain = Weights.gain

        def forgets(self, worth, among=None):
            self.before = torch.zeros_like(self.before)
            return gain(self, worth, among)

        monkeypatch.setattr(Weights, "gain", forgets)
    output = exact_gibbs().infill(torch.full((RUNS_OF_GIBBS, LENGTH), LETTERS), generator=torch.Generator().manual_seed(1))
    statistic, degrees = chi_square(output.sequences[accepted[0]], target())
    assert statistic > 2 * CHI_SQUARE_999[degrees]


def test_many_sweeps_come_to_the_target_from_anywhere():
    sampler = exact_gibbs(num_sweeps=6, num_particles=6)
    output = sampler.infill(torch.full((4000, LENGTH), LETTERS), generator=torch.Generator().manual_seed(2))
    statistic, degrees = chi_square(output.sequences, target())
    assert statistic < CHI_SQUARE_999[degrees]
    plain = replace(sampler, trajectory=None).infill(
        torch.full((4000, LENGTH), LETTERS), generator=torch.Generator().manual_seed(2)
    )
    assert chi_square(plain.sequences, target())[0] > 5 * CHI_SQUARE_999[degrees], "without sweeps"


def test_with_one_particle_every_sweep_returns_its_reference(model):
    sampler, ids = sampled(model, 8), masked_request()
    output = replace(sampler, trajectory=ParticleGibbs(1, num_sweeps=5)).infill(ids, generator=torch.Generator().manual_seed(3))
    plain = sampler.infill(ids, generator=torch.Generator().manual_seed(3))
    assert torch.equal(output.sequences, plain.sequences)


@pytest.mark.parametrize("how", [{"every": 2}, {"every": None}, {"every": 3, "completions": 2}], ids=str)
def test_a_gibbs_row_does_not_depend_on_the_others(model, how):
    def thirteens(tokens):
        return (tokens == 13).sum(-1).double()

    sampler, ids = sampled(model, 8, block_length=4), masked_request()
    by = thirteens if how.get("completions") else "quality"
    sampler = replace(sampler, trajectory=ParticleGibbs(4, by, num_sweeps=2, beta=0.1, **how))
    together = sampler.infill(ids, generator=generators(5, 6, 7))
    assert not (together.particles.sequences == MASK).any()
    assert torch.equal(together.sequences[:, :4], ids[:, :4])
    for row in range(3):
        alone = sampler.infill(ids[row : row + 1], generator=generators(5 + row))
        assert torch.equal(alone.particles.sequences[0], together.particles.sequences[row])
        assert alone.num_forward_passes.tolist() == together.num_forward_passes[row : row + 1].tolist()


def test_the_reference_costs_no_look(model):
    sampler, ids = sampled(model, 8), masked_request()
    output = replace(
        sampler, trajectory=ParticleGibbs(4, lambda tokens: tokens.sum(-1).double(), num_sweeps=3, every=2)
    ).infill(ids)
    assert output.num_forward_passes.tolist() == [8 + 3 * 3 * 8] * 3
    own = replace(
        sampler, trajectory=ParticleGibbs(4, lambda tokens: tokens.sum(-1).double(), num_sweeps=3, every=4, completions=2)
    )
    # one weighing of each run is before the end, and looks once more at each particle that is filled
    assert own.infill(ids).num_forward_passes.tolist() == [9 + 3 * 3 * 9] * 3
