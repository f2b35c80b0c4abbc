"""Samplers of samplers: costs, independence of rows, and the mean weight on a world where it is known."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from small_samplers import MASK, build_model, prompts, sampled
from test_exact_joint import POSTERIORS, TABLE

from prism_plugin.core import RandomUnmasking
from prism_plugin.core.selection import true_places
from prism_plugin.decoding import Seen
from prism_plugin.decoding.looks import Logits
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.trajectories import TRAJECTORIES, BestOfN, PartialRefinement, SelfRewardingSMC, _Weighing
from prism_plugin.testing import tiny_backbone

NEW = 8


@pytest.fixture(scope="module")
def model():
    return build_model()


def request(rows=3):
    return torch.cat((prompts(rows, 4), torch.full((rows, NEW), MASK)), dim=1)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


KINDS = {
    "best_of": lambda sampler, **how: BestOfN(sampler, **how),
    "self_rewarding_smc": lambda sampler, **how: SelfRewardingSMC(sampler, every=2, **how),
    "self_rewarding_smc, blocks": lambda sampler, **how: SelfRewardingSMC(sampler, resample_below=1.0, **how),
}


def test_every_kind_is_tested():
    assert {name.split(",")[0] for name in KINDS} | {"partial_refinement"} == set(TRAJECTORIES.names())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["log_probability", "quality"])
def test_what_every_kind_keeps_to(model, kind, by):
    sampler, ids = sampled(model, 8, block_length=4), request()
    output = KINDS[kind](sampler, num_particles=5, by=by).infill(ids, generator=seeded(0, 1, 2))
    assert output.particles.shape == (3, 5, 12)
    assert not (output.particles == MASK).any()
    assert torch.equal(output.sequences[:, :4], ids[:, :4])
    best = output.scores.argmax(-1)
    assert torch.equal(output.sequences, output.particles[torch.arange(3), best])
    looks = 8 + (by == "quality")
    assert output.num_forward_passes.tolist() == [5 * looks] * 3
    assert output.num_positions.tolist() == [5 * looks * 12] * 3
    assert len({tuple(one) for one in output.particles[0].tolist()}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(model, kind):
    sampler, ids = sampled(model, 8, block_length=4), request()
    how = KINDS[kind](sampler, num_particles=4)
    together = how.infill(ids, generator=seeded(5, 6, 7))
    for row in range(3):
        alone = how.infill(ids[row : row + 1], generator=seeded(5 + row))
        assert torch.equal(alone.particles[0], together.particles[row])


def test_one_particle_is_the_sampler_itself(model):
    sampler, ids = sampled(model, 8), request()
    output = BestOfN(sampler, num_particles=1).infill(ids, generator=torch.Generator().manual_seed(3))
    plain = sampler.infill(ids, generator=torch.Generator().manual_seed(3))
    assert torch.equal(output.sequences, plain.sequences)
    assert torch.equal(output.num_forward_passes, plain.num_forward_passes)


def test_the_best_by_a_reward_is_kept(model):
    def most_thirteens(tokens):
        return (tokens == 13).sum(-1).double()

    output = BestOfN(sampled(model, 6), num_particles=6, by=most_thirteens).infill(request(), generator=seeded(0, 1, 2))
    counts = (output.particles == 13).sum(-1)
    assert torch.equal(output.scores, counts.double())
    assert torch.equal((output.sequences == 13).sum(-1), counts.amax(-1))


def test_particles_wait_for_each_other_at_the_end_of_a_block(model):
    sampler = sampled(model, 12, block_length=4)
    how = SelfRewardingSMC(sampler, num_particles=3, resample_below=1.0)
    output = how.infill(request(), generator=seeded(0, 1, 2))
    assert len(output.ancestors) == 2
    assert all(one.shape == (3, 3) for one in output.ancestors)
    # what stood in the first block when it ended is what stands there in the descendants
    assert not torch.equal(output.ancestors[0], torch.arange(3).expand(3, 3))


@pytest.mark.parametrize("choose", ["random", "doubt"])
@pytest.mark.parametrize("by", ["quality", "log_probability", "always"])
def test_a_refinement_keeps_what_is_better_and_counts_everything(model, choose, by):
    sampler, ids = RemaskingSampler(model, num_steps=4, temperature=1.0), request()
    how = PartialRefinement(sampler, num_rounds=3, share=0.5, choose=choose, by=by)
    output = how.infill(ids, generator=seeded(0, 1, 2))
    judged = choose == "doubt" or by == "quality"
    assert output.num_forward_passes.tolist() == [4 * (4 + judged)] * 3
    assert output.num_remasked.tolist() == [3 * 4] * 3
    assert not (output.sequences == MASK).any()
    assert torch.equal(output.sequences[:, :4], ids[:, :4])
    if by == "quality":
        draft = sampler.infill(ids, generator=seeded(0, 1, 2)).sequences
        with torch.no_grad():
            before, after = (
                model(tokens).quality_logits.sigmoid()[:, 4:].log().mean(-1) for tokens in (draft, output.sequences)
            )
        assert (after >= before - 1e-6).all()
        assert (after > before + 1e-6).any()
        torch.testing.assert_close(output.scores[:, 0].float(), after)
    for row in range(3):
        alone = how.infill(ids[row : row + 1], generator=seeded(row))
        assert torch.equal(alone.sequences[0], output.sequences[row])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rounds": 0}, "`num_rounds` of PartialRefinement must be an integer of at least 1"),
        ({"share": 0.0}, "`share` of PartialRefinement must be a share in"),
        ({"choose": "worst"}, "`choose` of PartialRefinement must be one of random, doubt"),
        ({"by": "speed"}, "must be one of log_probability, quality, found 'speed'"),
    ],
)
def test_settings_of_a_refinement_are_checked(model, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PartialRefinement(sampled(model, 4), **settings)


# ---- the mean weight, where it is known ----

LENGTH, LETTERS, RUNS = TABLE.length, TABLE.num_letters, 6000
WORTH = torch.tensor([[0.9, -0.4, 0.1], [-0.8, 0.5, 0.3], [0.2, 0.6, -0.7]])


@dataclass(frozen=True)
class ExactLook:
    """The exact posterior of the table, whatever the model."""

    def __call__(self, model, state, want, memory):
        index = true_places(want.masked, want.num_masked)
        rows = POSTERIORS[TABLE.index_of(state.tokens)].flatten(0, 1)[index]
        return Seen(Logits(rows, index), None, None), memory


def worth_of(tokens):
    """Of the letters that stand, and a little more where two that agree stand side by side."""
    padded = torch.cat((WORTH, torch.zeros(LENGTH, 1)), dim=1)
    own = padded[torch.arange(LENGTH), tokens].sum(-1)
    return own + 0.5 * ((tokens[:, :-1] == tokens[:, 1:]) & (tokens[:, 1:] != LETTERS)).sum(-1)


def estimate(runs=RUNS, **how):
    model = attach_quality_head(tiny_backbone(vocab_size=LETTERS + 1), PrismConfig(mask_token_id=LETTERS))
    sampler = RemaskingSampler(model, num_steps=LENGTH, unmasking=RandomUnmasking(), temperature=1.0, look=ExactLook())
    smc = SelfRewardingSMC(sampler, **{"num_particles": 4, "by": worth_of, "every": 1, **how})
    tokens = torch.full((runs, LENGTH), LETTERS)
    return smc.infill(tokens, generator=torch.Generator().manual_seed(0))


def z_of(output):
    """How many standard errors the mean weight is off, and the relative error."""
    expected = sum(
        int(TABLE.counts[ids]) * math.exp(float(worth_of(torch.tensor([ids]))))
        for ids in itertools.product(range(LETTERS), repeat=LENGTH)
    ) / int(TABLE.counts.sum())
    found = output.log_normaliser.exp()
    error = float(found.std() / math.sqrt(len(found)))
    return (float(found.mean()) - expected) / error, error / expected


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
@pytest.mark.parametrize("tempered", [False, True])
def test_the_mean_weight_is_unbiased(resampling, tempered):
    output = estimate(resampling=resampling, tempered=tempered, resample_below=0.95)
    z, relative = z_of(output)
    assert len(output.ancestors) > 0
    assert relative <= 0.01
    assert abs(z) < 3


def test_a_wrong_weight_is_found_out(monkeypatch):
    """Resampled particles that keep the worth of those whose slots they took."""
    weigh = _Weighing.weigh

    def wrong(self, state, counts, among=None):
        following = weigh(self, state, counts, among)
        if following is not state:
            self.before = counts * self.how.score(self.canvas, state)
        return following

    monkeypatch.setattr(_Weighing, "weigh", wrong)
    z, _ = z_of(estimate(resample_below=0.95))
    assert abs(z) > 5


def test_a_particle_that_is_drawn_is_distributed_as_the_target_has_it():
    """With many particles, letters come as p(x) exp(worth) says."""
    output = estimate(1500, num_particles=32, keep="drawn", resample_below=0.95)
    weights = torch.zeros(LENGTH, LETTERS)
    for ids in itertools.product(range(LETTERS), repeat=LENGTH):
        mass = int(TABLE.counts[ids]) * math.exp(float(worth_of(torch.tensor([ids]))))
        for place, letter in enumerate(ids):
            weights[place, letter] += mass
    expected = weights / weights.sum(-1, keepdim=True)
    found = torch.stack([(output.sequences == letter).float().mean(0) for letter in range(LETTERS)], dim=1)
    assert (found - expected).abs().max() < 0.04  # a thirty-second part of bias, and the draws' noise
    own = torch.stack([TABLE.counts.sum(tuple({0, 1, 2} - {place})) for place in range(LENGTH)]) / TABLE.counts.sum()
    assert (found - own).abs().max() > 0.08, "as the data have them"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one: BestOfN(one, num_particles=0), "`num_particles` of BestOfN must be an integer of at least 1"),
        (lambda one: BestOfN(one, by="speed"), "`by` of BestOfN must be one of log_probability, quality, found 'speed'"),
        (lambda one: SelfRewardingSMC(one, every=0), "`every` of SelfRewardingSMC must be an integer of at least 1"),
        (lambda one: SelfRewardingSMC(one, resample_below=0), "`resample_below` of SelfRewardingSMC must be a share"),
        (lambda one: SelfRewardingSMC(one, resampling="even"), "`resampling` of SelfRewardingSMC must be one of"),
        (lambda one: SelfRewardingSMC(one, tempered=True), "`tempered` goes by looks, but `every` is None"),
        (lambda one: SelfRewardingSMC(one, keep="all"), "`keep` of SelfRewardingSMC must be one of best, drawn"),
    ],
)
def test_settings_are_checked(model, make, message):
    with pytest.raises(ConfigurationError, match=message):
        make(sampled(model, 4))


def test_particles_that_would_be_the_same_are_refused(model):
    with pytest.raises(ConfigurationError, match="needs particles that differ, but this sampler draws nothing, so all 4"):
        BestOfN(RemaskingSampler(model, num_steps=4))
    with pytest.raises(ConfigurationError, match="but no rule of this one reads the quality; choose a sampler that does"):
        SelfRewardingSMC(RemaskingSampler(model, num_steps=4, temperature=1.0), by="quality")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda tokens: torch.full((len(tokens),), float("nan")), "a reward must be a number for each canvas, but gave NaN"),
        (lambda tokens: torch.zeros(2), "one number for each of the 12 canvases, but gave .2.; return a tensor of that length"),
        (lambda tokens: 1.0, "one number for each of the 12 canvases, but gave float"),
    ],
)
def test_a_reward_that_is_none_is_one_sentence(model, reward, message):
    with pytest.raises(SamplingError, match=message):
        BestOfN(sampled(model, 4), by=reward).infill(request())
