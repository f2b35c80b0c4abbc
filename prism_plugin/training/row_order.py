"""The order in which rows are visited."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from prism_plugin.core.noise import uniforms


class EpochSampler(Sampler[int]):
    """A permutation of the rows that is a function of the seed and the epoch alone.

    Every rank computes the same one, and batches of `n` rows on `r` ranks are the batches of `n * r` rows on one: accelerate
    deals micro-batches out in turn. It asks for the epoch itself, because neither Trainer nor accelerate reliably tells a
    sampler (accelerate's `skip_first_batches` hides it from `set_epoch` when there are several processes).

    Args:
        num_rows: Rows of the data set.
        num_visited: Rows visited in an epoch, <= `num_rows`: whole global batches only, so that how a step is split into
            micro-batches does not change which rows it has.
        seed: Any integer.
        epoch: Tells the epoch that begins.
    """

    def __init__(self, num_rows: int, num_visited: int, seed: int, epoch: Callable[[], int]) -> None:
        self.num_rows, self.num_visited, self.seed, self.epoch = num_rows, num_visited, seed, epoch

    def __len__(self) -> int:
        return self.num_visited

    def __iter__(self) -> Iterator[int]:
        noise = uniforms(self.seed, self.epoch(), torch.arange(self.num_rows), "order", 1).squeeze(-1)
        yield from noise.argsort(stable=True)[: self.num_visited].tolist()
