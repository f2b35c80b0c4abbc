"""The texts of `sample`, a batch at a time. A text's tokens depend on its number and the seed, not on its neighbours."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prism_plugin.cli.progress import counting_progress
from prism_plugin.cli.show import Show
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.batches import batches_of
from prism_plugin.types import PerRow, PerToken, TokenIds, TokenMask


@dataclass(frozen=True)
class Runs:
    """The runs of a text that a trajectory made, on the CPU: [runs, length], what each is worth, and which was kept."""

    sequences: TokenIds
    scores: list[float]
    kept: int


@dataclass(frozen=True)
class Filled:
    """What all texts gave, on the CPU, in their order; as in `SamplerOutput`.

    Attributes:
        sequences: As there.
        num_forward_passes: As there.
        num_positions: As there.
        num_remasked: As there.
        runs: Of each text that had masks, where the sampler makes several.
    """

    sequences: TokenIds
    num_forward_passes: PerRow
    num_positions: PerRow
    num_remasked: PerRow
    runs: dict[int, Runs] = field(default_factory=dict)


def fill_in_batches(
    sampler: RemaskingSampler,
    input_ids: TokenIds,
    attention_mask: TokenMask,
    *,
    batch_size: int,
    seed: int,
    show: Show,
    min_new_tokens: int | None = None,
) -> Filled:
    """Fill the masks of all rows. A row without masks stays as it is, and takes part in no batch.

    Args:
        sampler: Fills them.
        input_ids: Rows padded on the right, at least one with a mask.
        attention_mask: The rows' own tokens.
        batch_size: Rows with masks in a batch; fewer where the family takes no padding and not as many are equally long.
        seed: Of the draws, which row number `i` gets from a generator of its own.
        show: Shows the looks of each batch.
        min_new_tokens: As for `RemaskingSampler.infill`.

    Raises:
        SamplingError: If one of the batches cannot be filled, before any is.
    """
    batches = _batches(sampler, input_ids, attention_mask, batch_size)
    for rows in batches:
        sampler.lay_infill(*_cut(input_ids, attention_mask, rows), min_new_tokens=min_new_tokens)
    nothing = torch.zeros(len(input_ids), dtype=torch.int64)
    filled = Filled(input_ids.clone(), nothing, nothing.clone(), nothing.clone())
    with ExitStack() as stack:
        note = None
        if len(batches) > 1 and not show.is_watched:
            note = stack.enter_context(counting_progress("sampling", len(batches), "batches"))
        for rows in batches:
            ids, mask = _cut(input_ids, attention_mask, rows)
            generators = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in rows]
            with show.watching(rows, ids, mask) as on_step:
                output = sampler.infill(
                    ids,
                    mask,
                    min_new_tokens=min_new_tokens,
                    generator=generators,
                    on_step=on_step,
                    return_trace=show.is_reported,
                )
            show.keep(rows, mask, output)
            filled.sequences[rows, : ids.shape[1]] = output.sequences.cpu()
            filled.num_forward_passes[rows] = output.num_forward_passes.cpu()
            filled.num_positions[rows] = output.num_positions.cpu()
            filled.num_remasked[rows] = output.num_remasked.cpu()
            if output.particles is not None:
                parts = zip(output.particles.sequences.cpu(), output.particles.scores, output.particles.kept, strict=True)
                for row, (sequences, scores, kept) in zip(rows, parts, strict=True):
                    filled.runs[row] = Runs(sequences, scores.tolist(), int(kept))
            if note is not None:
                note()
    return filled


def _batches(sampler: RemaskingSampler, input_ids: TokenIds, attention_mask: TokenMask, batch_size: int) -> list[list[int]]:
    """Numbers of the rows that hold masks, in order."""
    asked = (input_ids == sampler.model.mask_token_id).any(-1).nonzero().squeeze(-1).tolist()
    return batches_of(sampler.model, asked, attention_mask.sum(-1).tolist(), batch_size)


def rated(model: PrismModel, sequences: TokenIds, attention_mask: TokenMask, *, batch_size: int) -> PerToken:
    """The quality of finished rows as they stand, by one more look at each, on the CPU; 0 at padding."""
    quality = torch.zeros(sequences.shape)
    for rows in batches_of(model, range(len(sequences)), attention_mask.sum(-1).tolist(), batch_size):
        ids, mask = _cut(sequences, attention_mask, rows)
        quality[rows, : ids.shape[1]] = model.score(ids, mask, batch_size=batch_size).cpu()
    return quality


def _cut(input_ids: TokenIds, attention_mask: TokenMask, rows: list[int]) -> Iterator[Tensor]:
    """Some rows, as wide as the longest of them."""
    width = int(attention_mask[rows].sum(-1).max())
    return (tensor[rows, :width] for tensor in (input_ids, attention_mask))
