"""Uniforms as a function of the example, not of the process.

Whatever is drawn in training is drawn here, so that resuming, the number of ranks and the batch size change nothing: a
number depends on (seed, epoch, example id, name of the draw, position) and on nothing else. A counter-based generator:
SplitMix64's output function (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") over a key.
"""

import hashlib

import torch
from torch import Tensor

from prism_plugin.types import PerRow, PerToken

_INCREMENT = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, 2**64 over the golden ratio, as a signed 64-bit integer
_FIRST_FACTOR = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_SECOND_FACTOR = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # int64 shifts copy the sign bit; SplitMix64 wants zeros
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Scramble 64 bits; a bijection, so different keys stay different."""
    bits = (bits ^ _shift_right(bits, 30)) * _FIRST_FACTOR
    bits = (bits ^ _shift_right(bits, 27)) * _SECOND_FACTOR
    return bits ^ _shift_right(bits, 31)


def uniforms(seed: int, epoch: int | PerRow, example_ids: PerRow, name: str, length: int) -> PerToken:
    """Draw uniform numbers in [0, 1), `length` for each example.

    Value `j` of a row does not depend on `length` nor on the other rows. Nothing waits for the device.

    Args:
        seed: Any integer.
        epoch: One for all rows or one per row; the same example gets fresh numbers in each.
        example_ids: Any 64-bit integers; the numbers are made on their device.
        name: Name of the draw, such as "masked"; two names give independent numbers.
        length: Numbers per row, >= 0.

    Returns:
        float32 with 24 random bits each, [batch, length].
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    key = torch.full_like(example_ids, int.from_bytes(digest, "little", signed=True), dtype=torch.int64)
    of_epoch = _mix(key + epoch * _INCREMENT if isinstance(epoch, Tensor) else key + _wrap(epoch * _INCREMENT))
    of_example = _mix(of_epoch + example_ids.long() * _INCREMENT)
    counter = torch.arange(1, length + 1, device=example_ids.device) * _INCREMENT
    bits = _mix(of_example.unsqueeze(-1) + counter)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def _wrap(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
