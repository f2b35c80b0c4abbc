"""One call of the network, and what came of it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prism_plugin.core.selection import true_places
from prism_plugin.decoding.state import Memory, State
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.types import FlatIndex, PerToken, Rows, TokenMask


@dataclass(frozen=True)
class Want:
    """What is asked of a look.

    Attributes:
        masked: Masked positions whose logits are wanted.
        num_masked: Their number, which the host knows, so that no look waits for the device.
        visible: Revealed positions whose logits are wanted too; None: none.
        num_visible: Their number.
        quality: The quality of every position is wanted.
        padded: Some row has padding, so the network has to be told.
    """

    masked: TokenMask
    num_masked: int
    visible: TokenMask | None
    num_visible: int
    quality: bool
    padded: bool


@dataclass(frozen=True)
class Logits:
    """Rows of logits for some positions.

    Attributes:
        rows: Logits.
        index: Flat positions of the canvas that were asked for, in order.
        at: Which row each position has; None: they are in the order of `index`, and no others.
    """

    rows: Rows
    index: FlatIndex
    at: FlatIndex | None = None

    def in_order(self) -> Rows:
        """One row for each position; a copy where `at` says which."""
        return self.rows if self.at is None else self.rows.index_select(0, self.at)


@dataclass(frozen=True)
class Seen:
    """What a look gave.

    Attributes:
        masked: Logits at the masked positions that were wanted.
        visible: The same at visible positions; None where they were not wanted.
        quality: Quality of every position, in [0, 1]; None where it was not wanted.
        num_forwards: Calls of the network.
    """

    masked: Logits
    visible: Logits | None
    quality: PerToken | None
    num_forwards: int = 1


class Look(Protocol):
    """One call of the network over the rows of a state. What it remembers lies under "look" in `State.memory`."""

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]: ...


@dataclass(frozen=True)
class PlainLook:
    """One forward over the whole canvas, with a row of the LM head at each position that is wanted and nowhere else."""

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        masked = true_places(want.masked, want.num_masked)
        visible = None if want.visible is None else true_places(want.visible, want.num_visible)
        output = model(
            state.tokens,
            state.canvas.attention_mask if want.padded else None,
            logits_at=masked if visible is None else torch.cat((masked, visible)),
            with_quality=want.quality,
            history=state.history if want.quality and model.quality_head.reads_history else None,
        )
        seen = Seen(
            masked=Logits(output.logits[: want.num_masked], masked),
            visible=None if visible is None else Logits(output.logits[want.num_masked :], visible),
            quality=output.quality_logits.float().sigmoid() if want.quality else None,
        )
        return seen, memory


@dataclass(frozen=True)
class Recalled:
    """A look that was made already: for drafts, whose first look has a gradient and is made by whoever trains.

    Args:
        rows: Logits, detached.
        row_index: Their flat positions in the batch that was looked at, in order; what is wanted must be among them.
        batch_rows: The row of that batch for each row of the state; None: the same.
    """

    rows: Rows
    row_index: FlatIndex
    batch_rows: Tensor | None

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        length = state.tokens.shape[1]
        wanted = true_places(want.masked, want.num_masked)
        at: Tensor | None = None  # all rows in their order, so none is copied
        if self.batch_rows is not None or want.num_masked != len(self.rows):
            in_batch = wanted if self.batch_rows is None else self.batch_rows[wanted // length] * length + wanted % length
            # the first of the rows whose position is not before: exactly its row, since all that is wanted is among them
            at = torch.searchsorted(self.row_index, in_batch)
        return Seen(Logits(self.rows, wanted, at), None, None, num_forwards=0), memory
