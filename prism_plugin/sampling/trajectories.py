"""Samplers of samplers: several particles of a row are filled side by side, weighed, resampled, and one of them is kept.

They step the sampler's loop from outside. A particle is a row of the batch; what it costs is counted for its row. Random
numbers belong to the slots in which particles stand, so that a resampled particle goes its own way from then on.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.core.selection import select_top
from prism_plugin.core.validation import require_choice, require_int, require_number
from prism_plugin.decoding.chance import Generators, require_generators
from prism_plugin.decoding.state import State
from prism_plugin.errors import ConfigurationError
from prism_plugin.registry import Registry
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.filling import MaskFiller
from prism_plugin.sampling.particles import Particles, Reward, TrajectoryOutput


class Trajectories(Protocol):
    """Fills what a sampler fills, by several runs of it."""

    def infill(
        self, input_ids: Any, attention_mask: Tensor | None = None, *, generator: Generators = None
    ) -> TrajectoryOutput: ...


TRAJECTORIES: Registry[Trajectories] = Registry("sampler of samplers")


@TRAJECTORIES.register("best_of")
@dataclass(frozen=True)
class BestOfN(Particles):
    """Fill each row several times, and keep the best.

    Args:
        sampler: Fills the particles; it has to draw.
        num_particles: Of each row, >= 1.
        by: What is best: "log_probability", the sum over what was written of the log of its probability then; "quality", the
            mean log quality of what stands at the end, one forward more for each particle; or a reward of your own.

    Raises:
        ConfigurationError: If a setting is out of range, or all particles would be the same.
    """

    def run(self, canvas: LaidCanvas, generator: Generators) -> TrajectoryOutput:
        wide, loop, state, _ = self.begin(canvas, generator)
        while (step := loop.advance(state)) is not None:
            state = step.state
        state = self.judged(wide, loop.finish(state))
        return self.output(wide, state, self.score(wide, state))


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
        sampler: Fills the particles; it has to draw.
        num_particles: Of each row, >= 1.
        by: What particles are worth, as for `BestOfN`; "quality" reads the qualities that the sampler's own looks gave.
        every: Looks between two weighings, >= 1; None: at the ends of blocks, where particles wait for each other.
        resample_below: Share of the particles, in (0, 1]: where the effective number is below, they are resampled.
        resampling: "systematic", which has less variance, or "multinomial".
        tempered: See above; only with `every`.
        keep: "best" by worth; or "drawn" by weight, which keeps one as likely as the target has it.

    Raises:
        ConfigurationError: If a setting is out of range, or all particles would be the same.
    """

    every: int | None = None
    resample_below: float = 0.5
    resampling: Literal["systematic", "multinomial"] = "systematic"
    tempered: bool = False
    keep: Literal["best", "drawn"] = "best"

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
        if self.by == "quality" and "quality" not in self.sampler.reads:
            raise ConfigurationError(
                'by="quality" weighs particles by what the sampler\'s looks say of them, but no rule of this one reads the '
                "quality; choose a sampler that does."
            )

    def run(self, canvas: LaidCanvas, generator: Generators) -> TrajectoryOutput:
        wide, loop, state, own = self.begin(canvas, generator)
        run = _Weighing(self, wide, own, self.score(wide, state) * 0)
        looks = 0
        while True:
            level = state.block.view(-1, self.num_particles).amin(-1, keepdim=True)
            may_move = None if self.every is not None else (state.block.view(-1, self.num_particles) == level).flatten()
            step = loop.advance(state, rows=may_move)
            if step is None:
                break
            state, looks = step.state, looks + 1
            over = state.block.view(-1, self.num_particles).amin(-1, keepdim=True) > level
            if self.every is not None and looks % self.every == 0:
                state = run.weigh(state, min(1.0, looks / loop.num_steps) if self.tempered else 1.0)
            elif self.every is None and bool(over.any()):
                state = run.weigh(state, 1.0, among=over.squeeze(-1))
        state = self.judged(wide, loop.finish(state))
        return run.finish(state)


class _Weighing:
    """Weights of all particles, and what was resampled."""

    def __init__(self, how: SelfRewardingSMC, canvas: LaidCanvas, own: list[torch.Generator | None], nothing: Tensor) -> None:
        self.how, self.canvas, self.own = how, canvas, own
        self.before, self.log_weights = nothing, nothing
        self.log_mean = nothing[:, 0]
        self.ancestors: list[Tensor] = []

    def weigh(self, state: State, counts: float, among: Tensor | None = None) -> State:
        """Multiply weights by what was gained, and resample the rows in which few particles carry them.

        Args:
            state: Of all particles.
            counts: How much of a particle's worth counts by now.
            among: Rows that are weighed; None: all.
        """
        worth = counts * self.how.score(self.canvas, state)
        gained = worth - self.before
        if among is not None:
            gained, worth = gained * among.unsqueeze(-1), torch.where(among.unsqueeze(-1), worth, self.before)
        self.log_weights, self.before = self.log_weights + gained, worth
        weights = self.log_weights.softmax(-1)
        number = weights.shape[1]
        few = 1 / weights.square().sum(-1) < self.how.resample_below * number
        chosen = torch.arange(number, device=weights.device).expand_as(weights).clone()
        for row in few.nonzero().flatten().tolist():
            chosen[row] = self._drawn(weights[row], row)
        if not few.any():
            return state
        self.ancestors.append(chosen)
        mean = self.log_weights.logsumexp(-1) - torch.log(torch.tensor(float(number), device=weights.device))
        self.log_mean = torch.where(few, self.log_mean + mean, self.log_mean)
        self.log_weights = torch.where(few.unsqueeze(-1), 0.0, self.log_weights)
        self.before = self.before.gather(1, chosen)
        slots = torch.arange(len(chosen), device=chosen.device).unsqueeze(-1) * number + chosen
        return state.take(slots.flatten())

    def _drawn(self, weights: Tensor, row: int) -> Tensor:
        number, generator = len(weights), self.own[row]
        device = weights.device if generator is None else generator.device
        if self.how.resampling == "multinomial":
            places = torch.rand(number, generator=generator, device=device, dtype=torch.float64)
        else:
            shift = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
            places = (torch.arange(number, device=device) + shift) / number
        edges = weights.double().cumsum(-1).to(device)
        return torch.searchsorted(edges / edges[-1], places).clamp(max=number - 1).to(weights.device)

    def _one(self, weights: Tensor, row: int) -> Tensor:
        device = weights.device if self.own[row] is None else self.own[row].device  # type: ignore[union-attr]  # there
        return torch.multinomial(weights.to(device), 1, generator=self.own[row]).to(weights.device)

    def finish(self, state: State) -> TrajectoryOutput:
        """Weigh what is left to be weighed, whole, and keep a particle."""
        worth = self.how.score(self.canvas, state)
        self.log_weights = self.log_weights + worth - self.before
        number = worth.shape[1]
        log_mean = self.log_mean + self.log_weights.logsumexp(-1) - torch.log(torch.tensor(float(number), device=worth.device))
        scores = worth
        if self.how.keep == "drawn":
            drawn = torch.stack([self._one(weights, row) for row, weights in enumerate(self.log_weights.softmax(-1))])
            scores = torch.full_like(worth, -torch.inf).scatter(1, drawn, 0.0)
        return self.how.output(self.canvas, state, scores, log_normaliser=log_mean, ancestors=tuple(self.ancestors))


@TRAJECTORIES.register("partial_refinement")
@dataclass(frozen=True)
class PartialRefinement:
    """Fill everything; then mask a part of what was filled and fill it again, and keep that where it is better; several rounds.

    Iterative partial refinement (arXiv 2605.19317), which redraws a quarter of an image's parts chosen at random. A round may
    take as many looks as the sampler allows.

    Args:
        sampler: Fills.
        num_rounds: After the draft, >= 1.
        share: Of the generated tokens that is masked in a round, in (0, 1], rounded up.
        choose: "random", or "doubt": the tokens with the lowest quality, which takes a forward of its own in each round.
        by: What is better, as for `BestOfN`; and "always": each round is kept.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    sampler: MaskFiller
    num_rounds: int = 4
    share: float = 0.25
    choose: Literal["random", "doubt"] = "doubt"
    by: Literal["log_probability", "quality", "always"] | Reward = "quality"

    def __post_init__(self) -> None:
        require_int(self, "num_rounds", minimum=1)
        require_number(self, "share", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_choice(self, "choose", ("random", "doubt"))
        if self.by != "always":
            Particles(self.sampler, 1, self.by)

    def infill(self, input_ids: Any, attention_mask: Tensor | None = None, *, generator: Generators = None) -> TrajectoryOutput:
        """Fill the mask tokens that are in place; see `RemaskingSampler.infill`.

        Args:
            input_ids: As there.
            attention_mask: As there.
            generator: As there; a row's tokens do not depend on the others with one for each.

        Raises:
            SamplingError: If the request cannot be met, or a reward is no number for each canvas.
        """
        canvas = self.sampler.lay_infill(input_ids, attention_mask)
        require_generators(generator, canvas.request.shape[0])
        with evaluation_mode(self.sampler.model), torch.no_grad():
            best = self._filled(canvas, generator)
            worth = self._worth(canvas, best)
            for _ in range(self.num_rounds):
                again = self._filled(replace(canvas, tokens=self._masked_again(canvas, best, generator)), generator, best)
                found = self._worth(canvas, again)
                better = found >= worth if self.by == "always" else found > worth
                best, worth = _either(better, again, best), torch.where(better, found, worth)
        return TrajectoryOutput(
            sequences=canvas.restore(best.tokens, canvas.request),
            num_forward_passes=best.num_forward_passes,
            num_positions=best.num_positions,
            num_remasked=best.num_remasked,
            particles=canvas.restore(best.tokens, canvas.request).unsqueeze(1),
            scores=worth.unsqueeze(1),
        )

    def _filled(self, canvas: LaidCanvas, generator: Generators, before: State | None = None) -> State:
        """Fill the masks of a canvas; what it cost before is added, and what stood there before keeps its confidence."""
        editable = canvas.tokens == self.sampler.model.mask_token_id
        part = replace(canvas, editable=editable, block_of=canvas.block_of.masked_fill(~editable, -1))
        loop = self.sampler.loop(part, generator, watched=False)
        state = loop.begin(part)
        if before is not None:
            state = replace(
                state,
                commit_confidence=torch.where(editable, state.commit_confidence, before.commit_confidence),
                quality=torch.where(editable, state.quality, before.quality),
                num_forward_passes=before.num_forward_passes,
                num_shadows=before.num_shadows,
                num_remasked=before.num_remasked + editable.sum(-1),
            )
        while (step := loop.advance(state)) is not None:
            state = step.state
        state = replace(loop.finish(state), canvas=canvas)
        return self._judge(canvas, state) if self.choose == "doubt" or self.by == "quality" else state

    def _judge(self, canvas: LaidCanvas, state: State) -> State:
        output = self.sampler.model(state.tokens, canvas.attention_mask)
        quality = output.quality_logits.float().sigmoid()
        return replace(state, quality=quality, num_forward_passes=state.num_forward_passes + 1)

    def _worth(self, canvas: LaidCanvas, state: State) -> Tensor:
        if self.by == "always":
            return torch.zeros(len(state.tokens), dtype=torch.float64, device=state.tokens.device)
        return Particles(self.sampler, 1, self.by).score(canvas, state).squeeze(-1)

    def _masked_again(self, canvas: LaidCanvas, state: State, generator: Generators) -> Tensor:
        count = (self.share * canvas.editable.sum(-1) - 1e-6).ceil().long()
        if self.choose == "doubt":
            scores = -state.quality
        else:
            own = [generator] * len(count) if generator is None or isinstance(generator, torch.Generator) else list(generator)
            length = state.tokens.shape[1]
            rows = [torch.rand(length, generator=one, device=None if one is None else one.device) for one in own]
            scores = torch.stack(rows).to(count.device)
        chosen = select_top(scores, canvas.editable, count)
        return state.tokens.masked_fill(chosen, self.sampler.model.mask_token_id)


def _either(choose: Tensor, these: State, others: State) -> State:
    """Of each row one state or the other, with what both have cost."""
    rows = choose.nonzero().squeeze(-1)
    return replace(
        replace(others, memory={}).put(rows, replace(these, memory={}).take(rows)),
        num_forward_passes=these.num_forward_passes,
        num_shadows=these.num_shadows,
        num_remasked=these.num_remasked,
    )
