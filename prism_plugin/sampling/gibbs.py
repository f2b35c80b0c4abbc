"""Particle Gibbs: sweeps of conditional SMC beside a reference that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prism_plugin.core.validation import require_choice, require_int, require_number
from prism_plugin.decoding.chance import Generators
from prism_plugin.decoding.state import State
from prism_plugin.errors import ConfigurationError
from prism_plugin.sampling.canvas import LaidCanvas
from prism_plugin.sampling.particles import (
    TRAJECTORIES,
    Filling,
    Fills,
    ParticleOutput,
    Particles,
    Reward,
    Watch,
    with_cost_of,
    with_looks,
)


@TRAJECTORIES.register("particle_gibbs")
@dataclass(frozen=True)
class ParticleGibbs(Particles):
    """Sweeps of conditional SMC, each of which draws a new reference among particles that went beside the old one (PG-DLM).

    arXiv 2507.08390. The reference is first an ordinary run. A sweep sends new particles on their way beside it, weighs all by
    what they are worth so far, resamples all but the reference, and draws the next reference by the final weights. With any
    number of particles, sweeps leave p(x) exp(r(x) / beta) as it is, where p is what the sampler gives and r what is worth; and
    they come to it the sooner, the more particles there are. With one particle every sweep returns its reference. The reference
    is not filled again: what it was at each weighing is kept, its completions' rewards too, and costs no forward.

    Args:
        num_particles: Of each row, the reference among them, >= 1.
        by: What a text is worth: "quality", the mean log quality; or a reward of your own. On the way it is that of the canvas
            as it stands, with masks, or of completions.
        num_sweeps: >= 1.
        beta: How much of the reward counts: r / beta. > 0.
        every: Looks between two weighings, >= 1; None: at the ends of blocks, where particles wait for each other.
        completions: On the way a canvas is worth the mean reward of so many completions, drawn from the model's own
            probabilities of each mask, by one forward more for each particle. 0: the reward is asked about masks.
        resample_below: Share of the particles, in (0, 1]: where the effective number is below, they are resampled.

    Raises:
        ConfigurationError: If a setting is out of range, or `completions` would be ignored.
    """

    by: Literal["quality"] | Reward = "quality"
    num_sweeps: int = 4
    beta: float = 1.0
    every: int | None = None
    completions: int = 0
    resample_below: float = 1.0
    weighed_on_the_way: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.by):
            require_choice(self, "by", ("quality",))
        require_int(self, "num_sweeps", minimum=1)
        require_number(self, "beta", "a number above 0", low=0, open_low=True)
        if self.every is not None:
            require_int(self, "every", minimum=1)
        require_int(self, "completions", minimum=0)
        require_number(self, "resample_below", "a share in (0, 1]", low=0, high=1, open_low=True)
        if self.completions and not callable(self.by):
            raise ConfigurationError(
                f'`completions` {self.completions} are for a reward of your own, but `by` is "quality", which the looks of the '
                "sampler give on the way; leave them out."
            )

    def __call__(
        self, sampler: Fills, canvas: LaidCanvas, generator: Generators, watch: Watch | None
    ) -> tuple[State, ParticleOutput]:
        filling = Filling(sampler, canvas, generator, watch, self.num_particles, self.by)
        sweep, weighings = _Sweep(self, filling, None), []
        state, kept = sweep.run(None), torch.zeros(len(filling.own), dtype=torch.int64, device=sweep.weights.before.device)
        for _ in range(self.num_sweeps * (self.num_particles > 1)):
            sweep = _Sweep(self, filling, _Reference(sweep.moments, kept))
            state, kept = sweep.run(state), sweep.weights.one()
            weighings += sweep.weights.weighings
        return filling.output(state, sweep.moments[-1].worth * self.beta, kept, weighings=tuple(weighings))


@dataclass(frozen=True)
class _Moment:
    """A weighing: which rows took part, where all particles stood, what they were worth, and who descends from whom."""

    among: Tensor
    state: State
    worth: Tensor
    chosen: Tensor


class _Reference:
    """One particle of each row: where it stood at each of its row's weighings, and at the end.

    Args:
        moments: Of a sweep, the end last, in which all rows take part.
        slots: Where each row's particle stands at the end, [batch].
    """

    def __init__(self, moments: Sequence[_Moment], slots: Tensor) -> None:
        self._states: list[State] = []
        self._worths: list[Tensor] = []
        number = moments[-1].worth.shape[1]
        for moment in reversed(moments):
            slots = moment.chosen.gather(1, slots.unsqueeze(-1)).squeeze(-1)
            rows = torch.arange(len(slots), device=slots.device) * number + slots
            self._states.insert(0, moment.state.take(rows.to(moment.state.tokens.device)))
            self._worths.insert(0, moment.worth.gather(1, slots.unsqueeze(-1)).squeeze(-1))
        among = torch.stack([moment.among for moment in moments], dim=1).tolist()
        # of each row the numbers of the moments that were its own; the end is one of them
        self._own = [[number for number, own in enumerate(row) if own] for row in among]

    def left(self, seen: Sequence[int]) -> list[bool]:
        """Which rows have weighings left, before the end, after so many."""
        return [len(own) - 1 > had for own, had in zip(self._own, seen, strict=True)]

    def laid(
        self, state: State, worth: Tensor, rows: Sequence[int], seen: Sequence[int], *, at_end: bool = False
    ) -> tuple[State, Tensor]:
        """Lay the reference of some rows into their first slots, as it was at a weighing.

        Args:
            state: Of all particles.
            worth: Of all particles, [batch, particles].
            rows: Which rows.
            seen: How many weighings each row has had; after its own last one, the end is meant.
            at_end: The end is meant.
        """
        worth, number, device = worth.clone(), worth.shape[1], state.tokens.device
        moment_of = {row: self._own[row][-1 if at_end else min(seen[row], len(self._own[row]) - 1)] for row in rows}
        for at in sorted(set(moment_of.values())):
            those = torch.tensor([row for row in rows if moment_of[row] == at], device=device)
            state = with_cost_of(state.put(those * number, self._states[at].take(those)), state)
            worth[those.to(worth.device), 0] = self._worths[at][those.to(worth.device)]
        return state, worth


class _Sweep:
    """A sweep: particles on their way beside a reference; or without one, the first slots alone on theirs.

    Args:
        how: Settings.
        filling: Of the particles.
        reference: Stays in the first slots; None: they are what is filled.
    """

    def __init__(self, how: ParticleGibbs, filling: Filling, reference: _Reference | None) -> None:
        self.how, self.filling, self.reference = how, filling, reference
        slots = torch.arange(len(filling.canvas.tokens), device=filling.canvas.tokens.device)
        is_first = slots % filling.number == 0
        self.free = is_first if reference is None else ~is_first
        self.weights = filling.weights(resample_below=how.resample_below, resampling="multinomial", pinned=True)
        self.moments: list[_Moment] = []
        self._seen = [0] * len(filling.own)
        filling.begin_anew()

    def run(self, before: State | None) -> State:
        """Fill, and weigh, up to the end. Returns the state of all particles; what they cost before is added."""
        filling, state = self.filling, self.filling.loop.begin(self.filling.canvas)
        state = state if before is None else with_cost_of(state, before)
        by_blocks = self.how.every is None
        while (moved := filling.advance(state, filling.waiting(state, self.free) if by_blocks else self.free)) is not None:
            among = filling.over(state, moved, self.how.every, self.free)
            state = moved if among is None else self._weighed(moved, among.tolist())
        while self.reference is not None and any(left := self.reference.left(self._seen)):
            state = self._weighed(state, left)  # a reference that took longer is weighed where it was weighed
        return self._ended(state)

    def _weighed(self, state: State, among: Sequence[bool]) -> State:
        """Weigh some rows, write the moment down, and give the particles that go on."""
        rows = [row for row, own in enumerate(among) if own]
        state, worth = self._worth(state, among)
        chosen = torch.arange(self.filling.number, device=worth.device).expand_as(worth)
        if self.reference is not None:
            state, worth = self.reference.laid(state, worth, rows, self._seen)
            found = self.weights.weigh(self.filling.looks, worth, torch.tensor(among, device=worth.device))
            chosen = chosen if found is None else found
        self.moments.append(_Moment(torch.tensor(among), state, worth, chosen))
        for row in rows:
            self._seen[row] += 1
        return self.filling.resampled(state, chosen)

    def _ended(self, state: State) -> State:
        filling = self.filling
        if self.reference is None:  # every slot is as the first, so that all are full
            slots = torch.arange(len(state.tokens), device=state.tokens.device)
            state = with_cost_of(state.take(slots // filling.number * filling.number), state)
        everyone = range(len(filling.own))
        nothing = torch.zeros_like(self.weights.before)
        if self.reference is not None:
            state, _ = self.reference.laid(state, nothing, everyone, self._seen, at_end=True)
        state = filling.judged(filling.loop.finish(state))
        worth = filling.score(state) / self.how.beta
        if self.reference is not None:
            _, worth = self.reference.laid(state, worth, everyone, self._seen, at_end=True)
        self.weights.gain(worth)
        keep = torch.arange(filling.number, device=worth.device).expand_as(worth)
        self.moments.append(_Moment(torch.ones(len(worth), dtype=torch.bool), state, worth, keep))
        return state

    def _worth(self, state: State, among: Sequence[bool]) -> tuple[State, Tensor]:
        """What the particles are worth so far, [batch, particles]; those of other rows may be worth anything."""
        filling, count, beta = self.filling, self.how.completions, self.how.beta
        if not count:
            return state, filling.score(state) / beta
        has_masks = filling.masks_of(state).any(-1)
        asked = torch.tensor(among, device=self.free.device).repeat_interleave(filling.number) & self.free
        worth = torch.zeros(len(asked), dtype=torch.float64, device=self.weights.before.device)
        for rows, of_rows in ((asked & has_masks, filling.completed), (asked & ~has_masks, filling.as_it_stands)):
            if rows.any():
                index = rows.nonzero().squeeze(-1)
                worth[index.to(worth.device)] = of_rows(state, index, count)
        looked = (asked & has_masks).long()
        return with_looks(state, looked), worth.view(-1, filling.number) / beta
