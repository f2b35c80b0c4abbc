"""Several runs of a row: costs, independence of rows, and the mean weight on a world where it is known."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from exact_world import LENGTH, LETTERS, TABLE, exact_sampler, worth_of
from small_samplers import MASK, build_model, generators, masked_request, sampled

from prism_plugin.core import EvenSchedule, NeverRemasking, ThresholdUnmasking
from prism_plugin.errors import ConfigurationError, SamplingError, UnknownNameError
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.settings import settings_from_dict
from prism_plugin.sampling.trajectories import TRAJECTORIES, BestOfN, PartialRefinement, ParticleGibbs, SelfRewardingSMC
from prism_plugin.sampling.weights import Weights

KINDS = {
    "best_of": BestOfN,
    "self_rewarding_smc": partial(SelfRewardingSMC, every=2),
    "self_rewarding_smc, blocks": partial(SelfRewardingSMC, resample_below=1.0),
}


@pytest.fixture(scope="module")
def model():
    return build_model()


def with_runs(sampler, trajectory):
    return replace(sampler, trajectory=trajectory)


def test_every_kind_is_tested():
    assert {name.split(",")[0] for name in KINDS} | {"partial_refinement", "particle_gibbs"} == set(TRAJECTORIES.names())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["log_probability", "quality"])
def test_what_every_kind_keeps_to(model, kind, by):
    sampler, ids = sampled(model, 8, block_length=4), masked_request()
    output = with_runs(sampler, KINDS[kind](num_particles=5, by=by)).infill(ids, generator=generators(0, 1, 2))
    particles = output.particles
    assert particles.sequences.shape == (3, 5, 12)
    assert not (particles.sequences == MASK).any()
    assert torch.equal(output.sequences[:, :4], ids[:, :4])
    assert torch.equal(particles.kept, particles.scores.argmax(-1))
    assert torch.equal(output.sequences, particles.sequences[torch.arange(3), particles.kept])
    looks = 8 + (by == "quality")
    assert output.num_forward_passes.tolist() == [5 * looks] * 3
    assert output.num_positions.tolist() == [5 * looks * 12] * 3
    assert len({tuple(one) for one in particles.sequences[0].tolist()}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(model, kind):
    sampler, ids = sampled(model, 8, block_length=4), masked_request()
    how = with_runs(sampler, KINDS[kind](num_particles=4))
    together = how.infill(ids, generator=generators(5, 6, 7))
    for row in range(3):
        alone = how.infill(ids[row : row + 1], generator=generators(5 + row))
        assert torch.equal(alone.particles.sequences[0], together.particles.sequences[row])


def test_one_particle_is_the_sampler_itself(model):
    sampler, ids = sampled(model, 8), masked_request()
    output = with_runs(sampler, BestOfN(1)).infill(ids, generator=torch.Generator().manual_seed(3))
    plain = sampler.infill(ids, generator=torch.Generator().manual_seed(3))
    assert torch.equal(output.sequences, plain.sequences)
    assert torch.equal(output.num_forward_passes, plain.num_forward_passes)


def test_the_best_by_a_reward_is_kept(model):
    def most_thirteens(tokens):
        return (tokens == 13).sum(-1).double()

    sampler = with_runs(sampled(model, 6), BestOfN(6, by=most_thirteens))
    output = sampler.infill(masked_request(), generator=generators(0, 1, 2))
    counts = (output.particles.sequences == 13).sum(-1)
    assert torch.equal(output.particles.scores, counts.double())
    assert torch.equal((output.sequences == 13).sum(-1), counts.amax(-1))


def test_particles_wait_for_each_other_at_the_end_of_a_block(model):
    sampler = with_runs(sampled(model, 12, block_length=4), SelfRewardingSMC(num_particles=3, resample_below=1.0))
    trace = sampler.infill(masked_request(), generator=generators(0, 1, 2), return_trace=True).trace
    output = sampler.infill(masked_request(), generator=generators(0, 1, 2)).particles
    # the end of the last block is the end
    assert len(output.weighings) == 1
    (weighing,) = output.weighings
    before, after = trace[weighing.look - 1].tokens_after, trace[weighing.look].tokens_before
    assert not (before[:, 4:8] == MASK).any()
    assert (before[:, 8:] == MASK).all()
    slots = (torch.arange(3).unsqueeze(-1) * 3 + weighing.ancestors).flatten()
    assert torch.equal(after, before[slots])
    assert not torch.equal(weighing.ancestors, torch.arange(3).expand(3, 3))


def test_what_a_slot_costs_stays_its_own(model):
    """Particles that take different numbers of looks are counted by the looks that were made."""
    sampler = replace(sampled(model, 8), unmasking=ThresholdUnmasking(0.2), remasking=NeverRemasking(), schedule=EvenSchedule())
    sampler = with_runs(sampler, SelfRewardingSMC(num_particles=6, every=1, resample_below=1.0))
    output = sampler.infill(masked_request(), generator=generators(0, 1, 2), return_trace=True)
    looked = torch.stack([record.looked for record in output.trace]).sum(0)
    assert len(set(looked.tolist())) > 1
    assert output.num_forward_passes.tolist() == looked.view(3, 6).sum(-1).tolist()


@pytest.mark.parametrize("choose", ["random", "doubt"])
@pytest.mark.parametrize("by", ["quality", "log_probability", "always"])
def test_a_refinement_keeps_what_is_better_and_counts_everything(model, choose, by):
    sampler, ids = RemaskingSampler(model, num_steps=4, temperature=1.0), masked_request()
    how = with_runs(sampler, PartialRefinement(num_rounds=3, share=0.5, choose=choose, by=by))
    output = how.infill(ids, generator=generators(0, 1, 2))
    judged = choose == "doubt" or by == "quality"
    assert output.num_forward_passes.tolist() == [4 * (4 + judged)] * 3
    assert output.num_remasked.tolist() == [3 * 4] * 3
    assert not (output.sequences == MASK).any()
    assert torch.equal(output.sequences[:, :4], ids[:, :4])
    if by == "quality":
        draft = sampler.infill(ids, generator=generators(0, 1, 2)).sequences
        with torch.no_grad():
            before, after = (
                model(tokens).quality_logits.sigmoid()[:, 4:].log().mean(-1) for tokens in (draft, output.sequences)
            )
        assert (after >= before - 1e-6).all()
        assert (after > before + 1e-6).any()
        torch.testing.assert_close(output.particles.scores.amax(-1).float(), after)
    kept = output.particles.sequences[torch.arange(3), output.particles.kept]
    assert torch.equal(kept, output.sequences)
    assert (output.particles.kept == 3).all() or by != "always"
    for row in range(3):
        alone = how.infill(ids[row : row + 1], generator=generators(row))
        assert torch.equal(alone.sequences[0], output.sequences[row])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_rounds": 0}, "`num_rounds` of PartialRefinement must be an integer of at least 1"),
        ({"share": 0.0}, "`share` of PartialRefinement must be a share in"),
        ({"choose": "worst"}, "`choose` of PartialRefinement must be one of random, doubt"),
        ({"by": "speed"}, "must be one of log_probability, quality, always, found 'speed'"),
    ],
)
def test_settings_of_a_refinement_are_checked(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PartialRefinement(**settings)


def test_a_refinement_without_chance_ends_with_the_first_round_that_is_no_better(model):
    sampler = with_runs(RemaskingSampler(model, num_steps=4), PartialRefinement(num_rounds=50))
    counts = []
    hook = model.register_forward_hook(lambda *_: counts.append(1))
    output = sampler.infill(masked_request())
    hook.remove()
    assert output.particles.sequences.shape[1] < 51
    assert output.num_forward_passes.tolist() == [len(counts)] * 3, "the last round was not counted"
    assert (output.particles.scores[:, -1] <= output.particles.scores.amax(-1)).all()


# ---- the mean weight, where it is known ----

RUNS = 6000


def estimate(runs=RUNS, **how):
    sampler = exact_sampler(SelfRewardingSMC(**{"num_particles": 4, "by": worth_of, "every": 1, **how}))
    tokens = torch.full((runs, LENGTH), LETTERS)
    return sampler.infill(tokens, generator=torch.Generator().manual_seed(0))


def z_of(output):
    """How many standard errors the mean weight is off, and the relative error."""
    expected = sum(
        int(TABLE.counts[ids]) * math.exp(float(worth_of(torch.tensor([ids]))))
        for ids in itertools.product(range(LETTERS), repeat=LENGTH)
    ) / int(TABLE.counts.sum())
    found = output.particles.log_normaliser.exp()
    error = float(found.std() / math.sqrt(len(found)))
    return (float(found.mean()) - expected) / error, error / expected


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
@pytest.mark.parametrize("tempered", [False, True])
def test_the_mean_weight_is_unbiased(resampling, tempered):
    output = estimate(resampling=resampling, tempered=tempered, resample_below=0.95)
    z, relative = z_of(output)
    assert any((one.ancestors != torch.arange(4)).any() for one in output.particles.weighings)
    assert relative <= 0.01
    assert abs(z) < 3


def test_a_wrong_weight_is_found_out(monkeypatch):
    """Resampled particles that keep the worth of those whose slots they took."""
    weigh = Weights.weigh

    def wrong(self, look, worth, among=None):
        chosen = weigh(self, look, worth, among)
        if chosen is not None:
            self.before = worth
        return chosen

    monkeypatch.setattr(Weights, "weigh", wrong)
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


# ---- as a setting ----


@pytest.mark.parametrize(
    "trajectory",
    [BestOfN(3, "quality"), SelfRewardingSMC(3, every=2, keep="drawn"), ParticleGibbs(3, every=2), PartialRefinement(2)],
    ids=lambda one: type(one).__name__,
)
def test_a_trajectory_is_saved_and_read_back(model, trajectory, tmp_path):
    sampler = with_runs(sampled(model, 6), trajectory)
    sampler.save_pretrained(tmp_path)
    again = RemaskingSampler.from_pretrained(tmp_path, model)
    assert again.trajectory == trajectory
    ids = masked_request()
    one, other = (it.infill(ids, generator=generators(0, 1, 2)) for it in (sampler, again))
    assert torch.equal(one.sequences, other.sequences)
    assert settings_from_dict(sampler.to_dict()).trajectory == trajectory


def test_a_reward_of_your_own_is_not_saved(model, tmp_path):
    sampler = with_runs(sampled(model, 6), BestOfN(3, by=lambda tokens: tokens.sum(-1)))
    with pytest.raises(UnknownNameError, match="`by` of BestOfN is a function of your own, which works in `sample`"):
        sampler.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_preset_takes_a_trajectory_by_name_and_settings(model):
    named = RemaskingSampler.from_preset("random", model, num_steps=4, trajectory="best_of")
    assert named.trajectory == BestOfN()
    gibbs_sweeps = ParticleGibbs(2, beta=2, every=1)
    told = {"name": "particle_gibbs", "num_particles": 2, "beta": 2, "every": 1}
    assert RemaskingSampler.from_preset("random", model, num_steps=4, trajectory=told).trajectory == gibbs_sweeps
    with pytest.raises(UnknownNameError, match="No trajectory is called 'best_off'"):
        RemaskingSampler.from_preset("random", model, num_steps=4, trajectory="best_off")


def test_no_streamer_follows_particles(model):
    sampler = with_runs(sampled(model, 6), BestOfN(3))
    with pytest.raises(SamplingError, match="a streamer follows one run as it is filled, but BestOfN chooses among several"):
        sampler.infill(masked_request(1), streamer=object())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestOfN(num_particles=0), "`num_particles` of BestOfN must be an integer of at least 1"),
        (lambda: BestOfN(by="speed"), "`by` of BestOfN must be one of log_probability, quality, found 'speed'"),
        (lambda: SelfRewardingSMC(every=0), "`every` of SelfRewardingSMC must be an integer of at least 1"),
        (lambda: SelfRewardingSMC(resample_below=0), "`resample_below` of SelfRewardingSMC must be a share"),
        (lambda: SelfRewardingSMC(resampling="even"), "`resampling` of SelfRewardingSMC must be one of"),
        (lambda: SelfRewardingSMC(tempered=True), "`tempered` goes by looks, but `every` is None"),
        (lambda: SelfRewardingSMC(keep="all"), "`keep` of SelfRewardingSMC must be one of best, drawn"),
        (lambda: ParticleGibbs(by="log_probability"), "`by` of ParticleGibbs must be one of quality, found 'log_probability'"),
        (lambda: ParticleGibbs(num_sweeps=0), "`num_sweeps` of ParticleGibbs must be an integer of at least 1"),
        (lambda: ParticleGibbs(beta=0), "`beta` of ParticleGibbs must be a number above 0"),
        (lambda: ParticleGibbs(completions=2), "`completions` 2 are for a reward of your own, but `by` is .quality."),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_particles_that_would_be_the_same_are_refused(model):
    with pytest.raises(ConfigurationError, match="needs particles that differ, but this sampler draws nothing, so all 4"):
        RemaskingSampler(model, num_steps=4, trajectory=BestOfN())
    with pytest.raises(ConfigurationError, match="SelfRewardingSMC weighs particles at the ends of blocks, but there are none"):
        RemaskingSampler(model, num_steps=4, temperature=1.0, trajectory=SelfRewardingSMC())


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda tokens: torch.full((len(tokens),), float("nan")),
            "a reward must be a finite number for each canvas, but gave",
        ),
        (lambda tokens: torch.zeros(2), "one number for each of the 12 canvases, but gave .2.; return a tensor of that length"),
        (lambda tokens: 1.0, "one number for each of the 12 canvases, but gave float"),
    ],
)
def test_a_reward_that_is_none_is_one_sentence(model, reward, message):
    with pytest.raises(SamplingError, match=message):
        with_runs(sampled(model, 4), BestOfN(by=reward)).infill(masked_request())
