"""Particles of a row: how they begin, what they are worth, and what one of them costs. For samplers of samplers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.core.validation import require_choice, require_int
from prism_plugin.decoding.chance import Generators, require_generators
from prism_plugin.decoding.loop import Loop
from prism_plugin.decoding.state import State
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.filling import MaskFiller
from prism_plugin.types import TokenIds

# Tokens of some canvases, masks among them, [canvases, length] as the request has them -> what each is worth.
Reward = Callable[[TokenIds], Tensor]
_SCORES = ("log_probability", "quality")


@dataclass(frozen=True)
class TrajectoryOutput:
    """What a sampler of samplers gave.

    Attributes:
        sequences: The particle that was kept of each row, [batch, length], as `SamplerOutput` has it.
        num_forward_passes: Calls of the network for each row, over all its particles, [batch].
        num_positions: Positions computed in them, [batch].
        num_remasked: Times that a position was masked again, over all particles, [batch].
        particles: All of them at the end, [batch, particles, length].
        scores: By which one was kept, [batch, particles].
        log_normaliser: Logarithm of the estimate of the mean weight, [batch]; None where nothing is weighed.
        ancestors: Of each resampling, the particle that each slot was given, [batch, particles]; itself in rows that were not
            resampled.
    """

    sequences: TokenIds
    num_forward_passes: Tensor
    num_positions: Tensor
    num_remasked: Tensor
    particles: Tensor
    scores: Tensor
    log_normaliser: Tensor | None = None
    ancestors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Particles:
    """Particles of each row, and what they are worth."""

    sampler: MaskFiller
    num_particles: int = 4
    by: Literal["log_probability", "quality"] | Reward = "log_probability"

    def __post_init__(self) -> None:
        require_int(self, "num_particles", minimum=1)
        if not callable(self.by):
            require_choice(self, "by", _SCORES)
        if self.by == "quality" and getattr(self.sampler.model, "quality_head", None) is None:
            raise ConfigurationError(
                'by="quality" reads the quality head, but the model has none; attach one, or give "log_probability" or a '
                "function."
            )
        if self.num_particles > 1 and not self.sampler.draws:
            raise ConfigurationError(
                f"{type(self).__name__} needs particles that differ, but this sampler draws nothing, so all "
                f"{self.num_particles} would be the same; give it a temperature above 0, or a rule of chance."
            )

    def infill(self, input_ids: Any, attention_mask: Tensor | None = None, *, generator: Generators = None) -> TrajectoryOutput:
        """Fill the mask tokens that are in place; see `RemaskingSampler.infill`.

        Args:
            input_ids: As there.
            attention_mask: As there.
            generator: One for all; one per row, from which its particles get theirs, so that a row does not depend on
                others; or None.

        Raises:
            SamplingError: If the request cannot be met, or a reward is no number for each canvas.
        """
        canvas = self.sampler.lay_infill(input_ids, attention_mask)
        require_generators(generator, canvas.request.shape[0])
        with evaluation_mode(self.sampler.model), torch.no_grad():
            return self.run(canvas, generator)

    def run(self, canvas: LaidCanvas, generator: Generators) -> TrajectoryOutput:
        raise NotImplementedError

    def begin(self, canvas: LaidCanvas, generator: Generators) -> tuple[LaidCanvas, Loop, State, list[torch.Generator | None]]:
        """The canvas of all particles, its loop and state, and a generator for what is decided about each row."""
        batch, count = canvas.request.shape[0], self.num_particles
        wide = canvas.take(torch.arange(batch, device=canvas.tokens.device).repeat_interleave(count))
        own: list[torch.Generator | None]
        slots: Generators
        if generator is None or isinstance(generator, torch.Generator):
            own, slots = [generator] * batch, generator
        else:
            own, slots = list(generator), [_child(one) for one in generator for _ in range(count)]
        loop = self.sampler.loop(wide, slots, watched=False)
        return wide, loop, loop.begin(wide), own

    def score(self, canvas: LaidCanvas, state: State) -> Tensor:
        """What each particle is worth as it stands, [batch, particles], in float64."""
        written = canvas.editable & (state.tokens != self.sampler.model.mask_token_id)
        if callable(self.by):
            worth = self.by(canvas.restore(state.tokens, canvas.request))
            if not isinstance(worth, Tensor) or worth.shape != (len(state.tokens),):
                found = list(worth.shape) if isinstance(worth, Tensor) else type(worth).__name__
                raise SamplingError(
                    f"a reward must give one number for each of the {len(state.tokens)} canvases, but gave {found}; return a "
                    "tensor of that length."
                )
            if worth.isnan().any():
                raise SamplingError("a reward must be a number for each canvas, but gave NaN; say what such a canvas is worth.")
        elif self.by == "quality":
            log_quality = state.quality.clamp(min=1e-6).log()
            judged = written & ~log_quality.isnan()
            worth = log_quality.nan_to_num(0.0).mul(judged).sum(-1) / judged.sum(-1).clamp(min=1)
        else:
            worth = (state.commit_confidence.clamp(min=torch.finfo(torch.float32).tiny).log() * written).sum(-1)
        return worth.to(torch.float64).to(state.tokens.device).view(-1, self.num_particles)

    def judged(self, canvas: LaidCanvas, state: State) -> State:
        """With the quality of every token that stands, by one forward more, where particles are told apart by it."""
        if self.by != "quality":
            return state
        output = self.sampler.model(state.tokens, canvas.attention_mask)
        quality = output.quality_logits.float().sigmoid()
        return replace(
            state,
            quality=torch.where(canvas.editable, quality, state.quality),
            num_forward_passes=state.num_forward_passes + 1,
        )

    def output(self, canvas: LaidCanvas, state: State, scores: Tensor, **more: Any) -> TrajectoryOutput:
        count = self.num_particles
        particles = canvas.restore(state.tokens, canvas.request).unflatten(0, (-1, count))
        kept = scores.argmax(-1)
        summed = {
            name: getattr(state, name).view(-1, count).sum(-1)
            for name in ("num_forward_passes", "num_positions", "num_remasked")
        }
        rows = torch.arange(len(kept), device=kept.device)
        return TrajectoryOutput(sequences=particles[rows, kept], particles=particles, scores=scores, **summed, **more)


def _child(generator: torch.Generator) -> torch.Generator:
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))
