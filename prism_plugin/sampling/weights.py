"""Weights of particles, and how they are resampled by them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prism_plugin.decoding.chance import uniform
from prism_plugin.types import PerRow


@dataclass(frozen=True)
class Weighing:
    """A moment at which particles were weighed, and perhaps resampled.

    Attributes:
        look: Looks of the batch before it.
        log_weights: What each particle weighed then, [batch, particles].
        ancestors: The particle that each slot was given, [batch, particles]; itself in rows that were not resampled.
        among: Rows that were weighed, [batch].
    """

    look: int
    log_weights: Tensor
    ancestors: Tensor
    among: Tensor


class Weights:
    """What the particles of all rows weigh.

    A weight is multiplied by exp(u - v), where u is what a particle is worth and v what it was worth before; so a token that is
    taken back gives its share back, and the product over the way is exp of what it is worth in the end.

    Args:
        batch: Rows.
        number: Particles of each.
        device: Of the worths.
        own: A generator for each row.
        resample_below: Share of the particles: where the effective number is below, they are resampled.
        resampling: "systematic" or "multinomial".
        pinned: The first slot keeps its particle, as conditional SMC has it; only with "multinomial".
    """

    def __init__(
        self,
        batch: int,
        number: int,
        device: torch.device,
        *,
        own: list[torch.Generator | None],
        resample_below: float,
        resampling: Literal["systematic", "multinomial"],
        pinned: bool = False,
    ) -> None:
        self.before = self.log_weights = torch.zeros(batch, number, dtype=torch.float64, device=device)
        self.log_mean = self.before[:, 0]
        self.weighings: list[Weighing] = []
        self._own, self._below, self._resampling, self._pinned = own, resample_below, resampling, pinned

    def gain(self, worth: Tensor, among: Tensor | None = None) -> Tensor:
        """Multiply weights by what was gained. Returns which rows changed, [batch].

        Args:
            worth: What each particle is worth now, [batch, particles].
            among: Rows that are weighed, [batch]; None: all.
        """
        gained = worth - self.before
        if among is not None:
            gained = torch.where(among.unsqueeze(-1), gained, 0.0)
            worth = torch.where(among.unsqueeze(-1), worth, self.before)
        self.log_weights, self.before = self.log_weights + gained, worth
        return (gained != 0).any(-1)

    def weigh(self, look: int, worth: Tensor, among: Tensor | None = None) -> Tensor | None:
        """Weigh, and resample the rows in which few particles carry the weight.

        Args:
            look: Looks of the batch before.
            worth: As for `gain`.
            among: As for `gain`.

        Returns:
            The particle that each slot is given, [batch, particles]; None where all keep theirs.
        """
        changed = self.gain(worth, among)
        weights, weighed = self.log_weights.softmax(-1), self.log_weights
        number = weights.shape[1]
        few = changed & (1 / weights.square().sum(-1) < self._below * number)
        chosen = torch.arange(number, device=weights.device).expand_as(weights).clone()
        for row in few.nonzero().flatten().tolist():
            chosen[row] = self._drawn(weights[row], row)
        everyone = torch.ones(len(chosen), dtype=torch.bool, device=chosen.device)
        self.weighings.append(Weighing(look, weighed, chosen, everyone if among is None else among))
        if not few.any():
            return None
        self.log_mean = torch.where(few, self.log_mean + self._mean(), self.log_mean)
        self.log_weights = torch.where(few.unsqueeze(-1), 0.0, self.log_weights)
        self.before = self.before.gather(1, chosen)
        return chosen

    def log_normaliser(self) -> Tensor:
        """Logarithm of the estimate of the mean weight, [batch]."""
        return self.log_mean + self._mean()

    def one(self) -> PerRow:
        """Draw a particle of each row by its weight, [batch]."""
        weights = self.log_weights.softmax(-1)
        places = torch.stack([self._uniforms(1, row) for row in range(len(weights))]) if len(weights) else weights[:, :1]
        return _at(weights, places).squeeze(-1)

    def _mean(self) -> Tensor:
        number = torch.tensor(float(self.log_weights.shape[1]), dtype=torch.float64, device=self.log_weights.device)
        return self.log_weights.logsumexp(-1) - number.log()

    def _drawn(self, weights: Tensor, row: int) -> Tensor:
        number = len(weights)
        if self._resampling == "multinomial":
            places = self._uniforms(number, row)
        else:
            places = (torch.arange(number, device=weights.device) + self._uniforms(1, row)) / number
        chosen = _at(weights, places)
        if self._pinned:
            chosen[0] = 0
        return chosen

    def _uniforms(self, count: int, row: int) -> Tensor:
        return uniform(self._own[row], (count,), torch.float64, self.log_weights.device)


def _at(weights: Tensor, places: Tensor) -> Tensor:
    """Which particle each place in [0, 1) falls to, where each has a part as large as its weight."""
    edges = weights.cumsum(-1)
    edges = (edges / edges[..., -1:]).contiguous()
    return torch.searchsorted(edges, places.contiguous(), right=True).clamp(max=weights.shape[-1] - 1)
