"""Trajectories: several runs of each row, side by side or one after another, of which the best is kept.

They step the sampler's loop from outside. A particle is a row of the batch; what it costs is counted for its row. Random
numbers belong to the slots in which particles stand, so that a resampled particle goes its own way from then on.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from prism_plugin.core.selection import select_top
from prism_plugin.core.validation import require_choice, require_int, require_number
from prism_plugin.decoding.chance import Generators, uniform
from prism_plugin.decoding.state import State
from prism_plugin.errors import ConfigurationError
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.gibbs import ParticleGibbs
from prism_plugin.sampling.particles import (
    SCORES,
    TRAJECTORIES,
    Filling,
    Fills,
    ParticleOutput,
    Particles,
    Reward,
    Watch,
    judged,
    require_head,
    with_cost_of,
    worth,
)

__all__ = ["TRAJECTORIES", "BestOfN", "PartialRefinement", "ParticleGibbs", "SelfRewardingSMC"]


@TRAJECTORIES.register("best_of")
@dataclass(frozen=True)
class BestOfN(Particles):
    """Fill each row several times, and keep the best.

    Args:
        num_particles: Of each row, >= 1.
        by: What is best: "log_probability", the sum over what was written of the log of its probability then; "quality", the
            mean log quality of what stands at the end, one forward more for each particle; or a reward of your own.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    def __call__(
        self, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None
    ) -> tuple[State, ParticleOutput]:
        filling = Filling(sampler, canvas, generator, watch, self.num_particles, self.by)
        state = filling.loop.begin(filling.canvas)
        while (following := filling.advance(state)) is not None:
            state = following
        state = filling.judged(filling.loop.finish(state))
        scores = filling.score(state)
        return filling.output(state, scores, scores.argmax(-1))


@TRAJECTORIES.register("self_rewarding_smc")
@dataclass(frozen=True)
class SelfRewardingSMC(Particles):
    """Particles that are weighed on the way by what they are worth, and resampled where few carry the weight.

    Self-rewarding sequential Monte Carlo (arXiv 2602.01849). At each weighing a particle's weight is multiplied by exp(u - v),
    where u is what it is worth and v what it was worth before, so a token that is taken back gives its share back. The mean
    weight estimates the mean of exp(worth) over the sampler's own outputs, without bias. With `tempered`, u counts by the share
    of the looks that are over, and whole in the end: then weights are ratios of one target after the other. The authors' code
    multiplies each increment by that share instead, which belongs to no target.

    Args:
        num_particles: Of each row, >= 1.
        by: What particles are worth, as for `BestOfN`; "quality" reads the qualities that the sampler's own looks gave.
        every: Looks between two weighings, >= 1; None: at the ends of blocks, where particles wait for each other.
        resample_below: Share of the particles, in (0, 1]: where the effective number is below, they are resampled.
        resampling: "systematic", which has less variance, or "multinomial".
        tempered: See above; only with `every`.
        keep: "best" by worth; or "drawn" by weight, which keeps one as likely as the target has it.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    every: int | None = None
    resample_below: float = 0.5
    resampling: Literal["systematic", "multinomial"] = "systematic"
    tempered: bool = False
    keep: Literal["best", "drawn"] = "best"
    weighed_on_the_way: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every is not None:
            require_int(self, "every", minimum=1)
        require_number(self, "resample_below", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_choice(self, "resampling", ("systematic", "multinomial"))
        require_choice(self, "keep", ("best", "drawn"))
        if self.tempered and self.every is None:
            raise ConfigurationError(
                "`tempered` goes by looks, but `every` is None, so particles are weighed at the ends of blocks; give `every`."
            )

    def __call__(
        self, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None
    ) -> tuple[State, ParticleOutput]:
        filling = Filling(sampler, canvas, generator, watch, self.num_particles, self.by)
        weights = filling.weights(resample_below=self.resample_below, resampling=self.resampling)
        state = filling.loop.begin(filling.canvas)
        while (moved := filling.advance(state, filling.waiting(state) if self.every is None else None)) is not None:
            among = filling.over(state, moved, self.every)
            state = moved
            if among is not None:
                counts = min(1.0, filling.looks / filling.loop.num_steps) if self.tempered else 1.0
                chosen = weights.weigh(filling.looks, counts * filling.score(state), among)
                state = state if chosen is None else filling.resampled(state, chosen)
        state = filling.judged(filling.loop.finish(state))
        scores = filling.score(state)
        weights.gain(scores)
        kept = scores.argmax(-1) if self.keep == "best" else weights.one()
        more = {"log_normaliser": weights.log_normaliser(), "weighings": tuple(weights.weighings)}
        return filling.output(state, scores, kept, **more)


@TRAJECTORIES.register("partial_refinement")
@dataclass(frozen=True)
class PartialRefinement:
    """Fill everything; then mask a part of what was filled and fill it again, and keep that where it is better; several rounds.

    Iterative partial refinement (arXiv 2605.19317), which redraws a quarter of an image's parts chosen at random. A round may
    take as many looks as the sampler allows. Where nothing is drawn by chance, it ends with the first round that is no better.

    Args:
        num_rounds: After the draft, >= 1.
        share: Of the generated tokens that is masked in a round, in (0, 1], rounded up.
        choose: "random", or "doubt": the tokens with the lowest quality, which takes a forward of its own in each round.
        by: What is better, as for `BestOfN`; and "always": each round is kept.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    num_rounds: int = 4
    share: float = 0.25
    choose: Literal["random", "doubt"] = "doubt"
    by: Literal["log_probability", "quality", "always"] | Reward = "quality"

    def __post_init__(self) -> None:
        require_int(self, "num_rounds", minimum=1)
        require_number(self, "share", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_choice(self, "choose", ("random", "doubt"))
        if not callable(self.by):
            require_choice(self, "by", (*SCORES, "always"))

    @property
    def num_particles(self) -> int:
        """One at a time."""
        return 1

    @property
    def draws(self) -> bool:
        """What is masked is chosen by chance."""
        return self.choose == "random"

    @property
    def needs(self) -> frozenset[str]:
        """What is doubted is asked by a forward of its own."""
        return frozenset()

    @property
    def asks_head(self) -> bool:
        """For what is doubted, or what is better."""
        return self.choose == "doubt" or self.by == "quality"

    def may_fill(self, sampler: Fills) -> None:
        """Refuse a sampler that would fill the same again, or whose model judges nothing."""
        require_head("quality" if self.asks_head else self.by, sampler)

    def __call__(
        self, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None
    ) -> tuple[State, ParticleOutput]:
        refining = _Refining(self, sampler, canvas, generator, watch)
        best = refining.filled(canvas)
        scores = [refining.worth(best)]
        found, kept = [best.tokens], torch.zeros(len(best.tokens), dtype=torch.int64, device=scores[0].device)
        for number in range(1, self.num_rounds + 1):
            again = refining.filled(replace(canvas, tokens=refining.masked_again(best)), best)
            found.append(again.tokens)
            highest = torch.stack(scores).gather(0, kept.unsqueeze(0)).squeeze(0)
            scores.append(refining.worth(again))
            better = scores[-1] > highest
            if self.by == "always":
                better = torch.ones_like(better)
            kept = torch.where(better, number, kept)
            best = _either(better.to(best.tokens.device), again, best)
            if not (better.any() or self.draws or sampler.run_draws):
                break  # another round would mask and fill the same
        sequences = torch.stack([canvas.restore(tokens, canvas.request) for tokens in found], dim=1)
        return best, ParticleOutput(sequences, torch.stack(scores, dim=1), kept)


class _Refining:
    """The rounds of a refinement."""

    def __init__(
        self, how: PartialRefinement, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None
    ) -> None:
        self.how, self.sampler, self.canvas, self.generator, self.watch = how, sampler, canvas, generator, watch
        self.mask_token_id = sampler.model.mask_token_id

    def filled(self, canvas: LaidCanvas, before: State | None = None) -> State:
        """Fill the masks of a canvas; what it cost before is added, and what stood there before keeps its confidence."""
        editable = canvas.tokens == self.mask_token_id
        part = replace(canvas, editable=editable, block_of=canvas.block_of.masked_fill(~editable, -1))
        loop = self.sampler.loop(part, self.generator, watched=self.watch is not None)
        state = loop.begin(part)
        if before is not None:
            state = replace(
                with_cost_of(state, before),
                commit_confidence=torch.where(editable, state.commit_confidence, before.commit_confidence),
                quality=torch.where(editable, state.quality, before.quality),
                age=torch.where(editable, state.age, before.age),
                times_remasked=before.times_remasked + editable,
                num_remasked=before.num_remasked + editable.sum(-1),
            )
        while (step := loop.advance(state)) is not None:
            if self.watch is not None:
                self.watch(self.canvas, state, step)
            state = step.state
        state = replace(loop.finish(state), canvas=canvas)
        if self.how.asks_head:
            state = judged(self.sampler.model, loop, canvas, state)
        return state

    def worth(self, state: State) -> Tensor:
        """What each row is worth."""
        by = "log_probability" if self.how.by == "always" else self.how.by
        return worth(by, self.canvas, state, self.mask_token_id)

    def masked_again(self, state: State) -> Tensor:
        """Tokens with a part of them masked."""
        editable, tokens = self.canvas.editable, state.tokens
        count = (self.how.share * editable.sum(-1) - 1e-6).ceil().long()
        if self.how.choose == "doubt":
            scores = -state.quality
        else:
            shared = self.generator is None or isinstance(self.generator, torch.Generator)
            own: Any = [self.generator] * len(count) if shared else self.generator
            lengths = self.canvas.lengths.tolist()
            scores = torch.zeros(tokens.shape, device=tokens.device)
            for row, (generator, length) in enumerate(zip(own, lengths, strict=True)):
                scores[row, :length] = uniform(generator, (length,), torch.float32, tokens.device)
        return tokens.masked_fill(select_top(scores, editable, count), self.mask_token_id)


def _either(choose: Tensor, these: State, others: State) -> State:
    """Of each row one state or the other, with what both have cost."""
    rows = choose.nonzero().squeeze(-1)
    return with_cost_of(replace(others, memory={}).put(rows, replace(these, memory={}).take(rows)), these)
