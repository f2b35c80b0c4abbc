"""Particles of a row: how they begin, what they are worth, and what all of them cost. For trajectories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from prism_plugin.core.categorical import draw_rows
from prism_plugin.core.float64 import float64_device, to_float64
from prism_plugin.core.validation import require_choice, require_int
from prism_plugin.decoding.chance import Generators, uniform
from prism_plugin.decoding.loop import Loop, Step
from prism_plugin.decoding.state import State
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.registry import Registry
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.weights import Weighing, Weights
from prism_plugin.types import PerRow, TokenIds, TokenMask

# Tokens of some canvases, masks among them, [canvases, length] as the request has them -> what each is worth.
Reward = Callable[[TokenIds], Tensor]
# Is told of each look: the canvas of all particles, the state of all before it, and the look.
Watch = Callable[[LaidCanvas, State, Step], None]
SCORES = ("log_probability", "quality")


class Fills(Protocol):
    """What a sampler of samplers asks of the sampler that fills its particles."""

    @property
    def model(self) -> HeadedBackbone: ...

    @property
    def block_length(self) -> int | None: ...

    @property
    def run_draws(self) -> bool: ...

    def loop(self, canvas: LaidCanvas, generator: Generators = None, *, watched: bool = True) -> Loop: ...


@dataclass(frozen=True)
class ParticleOutput:
    """What several runs of a sampler came to.

    Attributes:
        sequences: All of them at the end, [batch, particles, length]; of a refinement, the draft and each round.
        scores: What each is worth, [batch, particles], in float64.
        kept: Which one the request was answered with, [batch].
        log_normaliser: Logarithm of the estimate of the mean weight, [batch]; None where it is not estimated.
        weighings: In order; none where nothing is weighed on the way.
    """

    sequences: TokenIds
    scores: Tensor
    kept: PerRow
    log_normaliser: Tensor | None = None
    weighings: tuple[Weighing, ...] = ()


class Trajectory(Protocol):
    """Fills a canvas by several runs of a sampler. A frozen dataclass, registered in `TRAJECTORIES` under its name in files.

    Attributes:
        num_particles: Of each row, that are filled side by side.
        draws: It draws random numbers of its own.
        needs: Features that the sampler's looks have to give for it.
        asks_head: The quality head tells the runs apart, or what is filled again.
    """

    @property
    def num_particles(self) -> int: ...

    @property
    def draws(self) -> bool: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def asks_head(self) -> bool: ...

    def may_fill(self, sampler: Fills) -> None:
        """Refuse a sampler that this cannot be done with, by a ConfigurationError."""
        ...

    def __call__(
        self, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None
    ) -> tuple[State, ParticleOutput]:
        """Fill. Returns the state of each row that was kept, with what all its particles cost, and all of them."""
        ...


TRAJECTORIES: Registry[Trajectory] = Registry("trajectory")


@dataclass(frozen=True)
class Particles:
    """Particles of each row, and what they are worth."""

    num_particles: int = 4
    by: Literal["log_probability", "quality"] | Reward = "log_probability"
    weighed_on_the_way: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_int(self, "num_particles", minimum=1)
        if not callable(self.by):
            require_choice(self, "by", SCORES)

    @property
    def draws(self) -> bool:
        """Its sampler does, or it is refused."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """The quality, where particles are weighed by it on the way."""
        return frozenset({"quality"} if self.by == "quality" and self.weighed_on_the_way else ())

    @property
    def asks_head(self) -> bool:
        """Where particles are told apart by it."""
        return self.by == "quality"

    def may_fill(self, sampler: Fills) -> None:
        """Refuse a sampler whose particles would all be the same or never weighed, or whose model judges nothing."""
        require_head(self.by, sampler)
        if self.num_particles > 1 and not sampler.run_draws:
            raise ConfigurationError(
                f"{type(self).__name__} needs particles that differ, but this sampler draws nothing, so all "
                f"{self.num_particles} would be the same; give it a temperature above 0, or a rule of chance."
            )
        by_blocks = sampler.block_length or sampler.model.spec.attention_block_length
        by_looks = getattr(self, "every", None) is not None
        if self.num_particles > 1 and self.weighed_on_the_way and not by_looks and by_blocks is None:
            raise ConfigurationError(
                f"{type(self).__name__} weighs particles at the ends of blocks, but there are none, so it never would; give "
                "the sampler a `block_length`, or say after how many looks by `every`."
            )


def require_head(by: Any, sampler: Fills) -> None:
    """Refuse to tell particles apart by a quality that no head gives.

    Raises:
        ConfigurationError: If that is asked for.
    """
    if by == "quality" and sampler.model.quality_head is None:
        raise ConfigurationError(
            'by="quality" reads the quality head, but the model has none; attach one, or give "log_probability" or a function.'
        )


class Filling:
    """The particles of a request, while they are filled.

    Attributes:
        canvas: Of all particles, [batch · particles, length]; those of a row stand one after another.
        loop: Fills it. Random numbers belong to the slots in which particles stand.
        own: A generator for what is decided about each row.
        looks: Looks of the batch so far.
    """

    def __init__(
        self, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None, number: int, by: Any
    ) -> None:
        batch = canvas.request.shape[0]
        self.model, self.number, self.by, self._watch = sampler.model, number, by, watch
        self.canvas = canvas.take(torch.arange(batch, device=canvas.tokens.device).repeat_interleave(number))
        slots: Generators
        if generator is None or isinstance(generator, torch.Generator):
            self.own: list[torch.Generator | None] = [generator] * batch
            slots = generator
        else:
            self.own, slots = list(generator), _slots(generator, number)
        self.loop = sampler.loop(self.canvas, slots, watched=watch is not None)
        self.looks = self._begun = 0

    def begin_anew(self) -> None:
        """Looks between weighings are counted from here."""
        self._begun = self.looks

    def advance(self, state: State, rows: Tensor | None = None) -> State | None:
        """Make one look at the particles that may move; None where none has anything left to do."""
        step = self.loop.advance(state, rows=rows)
        if step is None:
            return None
        if self._watch is not None:
            self._watch(self.canvas, state, step)
        self.looks += 1
        return step.state

    def waiting(self, state: State, free: Tensor | None = None) -> TokenMask:
        """Which particles may move where they wait for each other: those in the first block that any of their row is in.

        Args:
            state: Of all particles.
            free: Particles that move at all, [batch · particles]; None: all.
        """
        block = self._blocks(state, free)
        here = (block == block.amin(-1, keepdim=True)).flatten()
        return here if free is None else here & free

    def over(self, before: State, after: State, every: int | None, free: Tensor | None = None) -> Tensor | None:
        """Rows that are to be weighed after a look, [batch]; None: none is. One whose particles are done waits for the end.

        Args:
            before: The state before the look.
            after: The state after it.
            every: Looks between two weighings; None: where the last particle has left a block.
            free: As for `waiting`.
        """
        first = self._blocks(after, free).amin(-1)
        going = first < self.canvas.num_blocks[:: self.number]
        due = going & (first > self._blocks(before, free).amin(-1)) if every is None else going
        return due if (every is None or (self.looks - self._begun) % every == 0) and bool(due.any()) else None

    def _blocks(self, state: State, free: Tensor | None) -> Tensor:
        block = state.block if free is None else state.block.masked_fill(~free, torch.iinfo(torch.int64).max)
        return block.view(-1, self.number)

    def masks_of(self, state: State) -> TokenMask:
        """What is still to be filled."""
        return self.canvas.editable & (state.tokens == self.model.mask_token_id)

    def as_it_stands(self, state: State, index: Tensor, _: int) -> Tensor:
        """The reward of some canvases, in float64."""
        canvas = self.canvas.take(index)
        return rewarded(self.by, canvas.restore(state.tokens[index], canvas.request))

    @torch.no_grad()
    def completed(self, state: State, index: Tensor, count: int) -> Tensor:
        """The mean reward of completions of some canvases, by one forward for each, in float64.

        Args:
            state: Of all particles.
            index: Which particles; each has masks.
            count: Completions of each; every mask is drawn by itself.
        """
        loop, canvas, length = self.loop, self.canvas.take(index), state.tokens.shape[1]
        tokens, lengths = state.tokens[index], canvas.lengths.tolist()
        places = (canvas.editable & (tokens == self.model.mask_token_id)).flatten().nonzero().squeeze(-1)
        mask = canvas.attention_mask if loop.padded else None
        rows = self.model(tokens, mask, logits_at=places, with_quality=False).logits
        home = float64_device(tokens.device)
        uniforms = torch.zeros(len(index), count, length, dtype=torch.float64, device=home)
        for place, particle in enumerate(index.tolist()):
            own = self.own[particle // self.number]
            uniforms[place, :, : lengths[place]] = uniform(own, (count, lengths[place]), torch.float64, home)
        worths = []
        for one in uniforms.unbind(1):
            drawn = draw_rows(
                rows,
                temperature=loop.temperature,
                top_p=loop.top_p,
                forbidden_ids=loop.forbidden_ids,
                held_back=canvas.held_back(loop.end_ids, places),
                uniforms=one.flatten()[places.to(home)],
            )
            full = tokens.flatten().index_copy(0, places, drawn.candidates).view(tokens.shape)
            worths.append(rewarded(self.by, canvas.restore(full, canvas.request)))
        return torch.stack(worths).mean(0)

    def resampled(self, state: State, chosen: Tensor) -> State:
        """Give each slot its ancestor, [batch, particles]; what a slot has cost stays its own."""
        slots = torch.arange(len(chosen), device=chosen.device).unsqueeze(-1) * self.number + chosen
        return with_cost_of(state.take(slots.flatten().to(state.tokens.device)), state)

    def judged(self, state: State) -> State:
        """With the quality of every token that stands, by one forward more, where particles are told apart by it."""
        return judged(self.model, self.loop, self.canvas, state) if self.by == "quality" else state

    def score(self, state: State) -> Tensor:
        """What each particle is worth as it stands, [batch, particles], in float64."""
        return worth(self.by, self.canvas, state, self.model.mask_token_id).view(-1, self.number)

    def weights(self, **how: Any) -> Weights:
        """Weights of the particles, all the same; see `Weights`."""
        batch, device = len(self.own), float64_device(self.canvas.tokens.device)
        return Weights(batch, self.number, device, own=self.own, **how)

    def output(self, state: State, scores: Tensor, kept: PerRow, **more: Any) -> tuple[State, ParticleOutput]:
        """Of each row the particle that is kept, with what all have cost, and all of them."""
        sequences = self.canvas.restore(state.tokens, self.canvas.request).unflatten(0, (-1, self.number))
        rows = (torch.arange(len(kept), device=kept.device) * self.number + kept).to(state.tokens.device)
        summed = {name: getattr(state, name).view(-1, self.number).sum(-1) for name in _COSTS}
        return replace(state.take(rows), **summed), ParticleOutput(sequences, scores, kept, **more)


_COSTS = ("num_forward_passes", "num_positions", "num_remasked")


def with_cost_of(state: State, other: State) -> State:
    """A state with the counts of another."""
    return replace(state, **{name: getattr(other, name) for name in _COSTS})


def with_looks(state: State, looked: PerRow) -> State:
    """A state that counts so many calls of the network more, each of them over a row's whole canvas."""
    computed = state.num_positions + looked * state.canvas.attention_mask.sum(-1)
    return replace(state, num_forward_passes=state.num_forward_passes + looked, num_positions=computed)


@torch.no_grad()
def judged(model: HeadedBackbone, loop: Loop, canvas: LaidCanvas, state: State) -> State:
    """A state with the quality of every token that stands, by one forward more."""
    history = state.history if model.quality_head.reads_history else None
    output = model(state.tokens, canvas.attention_mask if loop.padded else None, history=history)
    quality = torch.where(canvas.editable, output.quality_logits.float().sigmoid(), state.quality)
    return with_looks(replace(state, quality=quality), torch.ones_like(state.block))


def worth(by: Any, canvas: LaidCanvas, state: State, mask_token_id: int) -> Tensor:
    """What canvases are worth as they stand, one number for each, in float64.

    Args:
        by: "log_probability", the sum over what was written of the log of its probability then; "quality", the mean log
            quality of what was judged; or a reward.
        canvas: Of the rows.
        state: Of the rows.
        mask_token_id: Of the model.

    Raises:
        SamplingError: If a reward is no number for each canvas.
    """
    written = canvas.editable & (state.tokens != mask_token_id)
    if callable(by):
        return rewarded(by, canvas.restore(state.tokens, canvas.request))
    if by == "quality":
        log_quality = state.quality.clamp(min=1e-6).log()
        known = written & ~log_quality.isnan()
        found = log_quality.nan_to_num(0.0).mul(known).sum(-1) / known.sum(-1).clamp(min=1)
    else:
        found = (state.commit_confidence.clamp(min=torch.finfo(torch.float32).tiny).log() * written).sum(-1)
    return to_float64(found)


def rewarded(reward: Reward, tokens: TokenIds) -> Tensor:
    """What a reward gives some canvases, in float64.

    Raises:
        SamplingError: If it is no number for each canvas.
    """
    found = reward(tokens)
    if not isinstance(found, Tensor) or found.shape != (len(tokens),):
        what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SamplingError(
            f"a reward must give one number for each of the {len(tokens)} canvases, but gave {what}; return a tensor of that "
            "length."
        )
    if not found.isfinite().all():
        value = float(found[~found.isfinite()][0])
        raise SamplingError(
            f"a reward must be a finite number for each canvas, but gave {value}; say what such a canvas is worth."
        )
    return to_float64(found)


def _slots(generators: Sequence[torch.Generator], number: int) -> list[torch.Generator]:
    """A generator for each particle, seeded by its row's: so a row does not depend on others."""
    return [_child(one) for one in generators for _ in range(number)]


def _child(generator: torch.Generator) -> torch.Generator:
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))
