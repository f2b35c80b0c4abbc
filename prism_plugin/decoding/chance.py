"""The door through which random numbers come into the loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prism_plugin.core.float64 import float64_device
from prism_plugin.errors import SamplingError
from prism_plugin.types import PerToken

Generators = torch.Generator | Sequence[torch.Generator] | None


class Chance(Protocol):
    """Where random numbers come from. It belongs to the rows' places in the batch, and not to what stands there."""

    def draw(self, rows: Tensor, width: int, device: torch.device) -> tuple[PerToken | None, PerToken | None]:
        """Draw one look's noise for the rules, and uniforms for the tokens; None what nobody reads.

        Args:
            rows: Numbers of the rows that look, on the CPU.
            width: Length of the canvas.
            device: Where the numbers are wanted.

        Returns:
            Both in [0, 1), [rows, width].
        """
        ...


@dataclass(frozen=True)
class GeneratorChance:
    """Random numbers of torch's generators.

    With one generator per row, a row's draws depend on its own length and looks only, not on padding or on other rows.

    Attributes:
        generator: One for all rows, one per row of the batch, or None for the device's default.
        lengths: Own tokens of each row of the batch.
        with_uniforms: Whether tokens are sampled.
        with_noise: Whether a rule reads noise.
    """

    generator: Generators
    lengths: list[int]
    with_uniforms: bool
    with_noise: bool

    def draw(self, rows: Tensor, width: int, device: torch.device) -> tuple[PerToken | None, PerToken | None]:
        """Draw noise in float32, and uniforms in float64, on the CPU where `device` has none; see `Chance.draw`."""
        noise = self._numbers(rows, width, torch.float32, device) if self.with_noise else None
        return noise, self._numbers(rows, width, torch.float64, float64_device(device)) if self.with_uniforms else None

    def _numbers(self, rows: Tensor, width: int, dtype: torch.dtype, device: torch.device) -> PerToken:
        if not isinstance(self.generator, Sequence):
            return uniform(self.generator, (len(rows), width), dtype, device)
        # Where the generators are, so that one copy goes to the device, and not one for each row.
        home = float64_device(self.generator[0].device)
        drawn = torch.zeros(len(rows), width, dtype=dtype, device=home)
        for number, row in enumerate(rows.tolist()):
            length = self.lengths[row]
            drawn[number, :length] = uniform(self.generator[row], (length,), dtype, home)
        return drawn.to(device)


def uniform(generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniforms of a generator, or of the device's default, brought to a device."""
    source = device if generator is None else generator.device
    drawable = dtype if float64_device(source) == source else torch.float32  # a generator of a device without float64
    return torch.rand(shape, generator=generator, dtype=drawable, device=source).to(device).to(dtype)


def require_generators(generator: Generators, batch: int) -> None:
    """Refuse what are no generators, or another number of them than rows.

    Raises:
        SamplingError: If that is so.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise SamplingError(f"`generator` must be a torch.Generator, a list with one per row, or None, got {generator!r}.")
    if len(generator) != batch:
        raise SamplingError(f"`generator` must hold one generator per row, {batch} here, got {len(generator)}.")
    if len(set(map(id, generator))) != batch:
        raise SamplingError("`generator` must hold a generator of its own for each row, found the same one twice.")
