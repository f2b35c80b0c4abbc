"""One call of the network, and what came of it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from prism_plugin.backbones.call import WRITTEN
from prism_plugin.core.history import History
from prism_plugin.core.selection import true_places
from prism_plugin.decoding.state import Canvas, Memory, State
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.registry import Registry
from prism_plugin.types import FlatIndex, PerRow, PerToken, Rows, TokenIds, TokenMask


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
        visible_tokens: Revealed positions that may be decided about, whether their logits are wanted or not.
        widest: The most positions of a row that may be decided about.
        forbidden_ids: Tokens that are never written.
    """

    masked: TokenMask
    num_masked: int
    visible: TokenMask | None
    num_visible: int
    quality: bool
    padded: bool
    visible_tokens: TokenMask
    widest: int
    forbidden_ids: tuple[int, ...] = ()


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
        quality: Quality of every position, in [0, 1], NaN where `where` is False; None where it was not wanted.
        num_forwards: Calls of the network; of each row, where they differ.
        shadow: Logits of visible positions, each at a mask of its own; None where no such look was made.
        left_out: Logits of visible positions, each from a forward in which it was masked; None where no such look was made.
        corrected: Which rows' logits are about a draft of the model's own; None where no such look was made.
        judges_masks: The quality means something at masks, too.
        refined: Tokens that a refiner would write, -1 where it says nothing; None where none was asked.
        num_positions: Positions that were computed of each row; None: all its own at every call.
        where: Positions whose quality was computed, which hold all that may be decided about; None: all.
    """

    masked: Logits
    visible: Logits | None
    quality: PerToken | None
    num_forwards: int | PerRow = 1
    shadow: Logits | None = None
    left_out: Logits | None = None
    corrected: Tensor | None = None
    judges_masks: bool = False
    refined: TokenIds | None = None
    num_positions: PerRow | None = None
    where: TokenMask | None = None

    def positions(self, canvas: Canvas) -> PerRow:
        """Positions that were computed of each row."""
        return self.num_forwards * canvas.attention_mask.sum(-1) if self.num_positions is None else self.num_positions


class Look(Protocol):
    """A look at the rows of a state. What it remembers lies under "look" in `State.memory`, each part beginning with the batch.

    A frozen dataclass, registered in `LOOKS` if a sampler that has it is to be saved. What it may say of itself:

    - `gives`, names among "shadow", "corrected", "left_out", "refined" and "quality": what features may read of it that a plain
      look has not, or that it has from elsewhere.
    - `tells_block`, True: it tells a model by `told` which block is written, which a family with `causal_context` needs.
    - `greedy`, True: it judges the most probable tokens, so others can't be drawn.
    - `may_look_at(model)`, which raises a ConfigurationError where a model cannot make this look.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]: ...


LOOKS: Registry[Look] = Registry("look")


@dataclass(frozen=True)
class Asked:
    """The positions whose logits are wanted, as a model takes them.

    Attributes:
        masked: Flat positions of masks.
        visible: Flat positions of tokens; empty where none are wanted.
        want: What they were made of.
    """

    masked: FlatIndex
    visible: FlatIndex
    want: Want

    @classmethod
    def of(cls, want: Want) -> "Asked":
        """Both kinds, without waiting for the device."""
        masked = true_places(want.masked, want.num_masked)
        return cls(masked, masked[:0] if want.visible is None else true_places(want.visible, want.num_visible), want)

    @property
    def index(self) -> FlatIndex:
        """Masks first, then tokens."""
        return torch.cat((self.masked, self.visible)) if len(self.visible) else self.masked

    def seen(self, model: HeadedBackbone, rows: Rows, quality_logits: Tensor | None, **more: Any) -> Seen:
        """What was seen, from a row of logits for each position of `index`.

        Args:
            model: What was asked.
            rows: Logits; what follows those of `index` is left out.
            quality_logits: Of every position; read where the quality is wanted.
            more: Other attributes of `Seen`.
        """
        number, want = len(self.masked), self.want
        visible = rows[number : number + len(self.visible)]
        found: dict[str, Any] = {
            "quality": quality_logits.float().sigmoid() if want.quality and quality_logits is not None else None,
            "judges_masks": model.judges_masks,
        }
        return Seen(
            masked=Logits(rows[:number], self.masked),
            visible=None if want.visible is None else Logits(visible, self.visible),
            **found | more,
        )


def looks_of_block(state: State, memory: Memory) -> PerRow:
    """Looks at each row's block, this one counted, from the memory that `{"looks": ..., "block": state.block}` makes."""
    if not memory:
        return torch.ones_like(state.block)
    return 1 + memory["looks"] * (memory["block"] == state.block)


def history_of(model: HeadedBackbone, state: State, want: Want) -> History | None:
    """What the head is shown of the tokens' history."""
    return state.history if want.quality and model.quality_head.reads_history else None


def told(model: HeadedBackbone, state: State, want: Want) -> Tensor | None:
    """The mask that a network is told with a state, [batch, length]; None where there is nothing to tell.

    A family with `causal_context` is told which block is written.
    """
    canvas = state.canvas
    if model.spec.causal_context:
        return canvas.attention_mask.masked_fill(canvas.block_of == state.block.unsqueeze(-1), WRITTEN)
    return canvas.attention_mask if want.padded else None


@LOOKS.register("plain")
@dataclass(frozen=True)
class PlainLook:
    """One forward over the whole canvas, with a row of the LM head at each position that is wanted and nowhere else."""

    tells_block: ClassVar[bool] = True

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        asked = Asked.of(want)
        output = model(
            state.tokens,
            told(model, state, want),
            logits_at=asked.index,
            with_quality=want.quality,
            history=history_of(model, state, want),
        )
        return asked.seen(model, output.logits, output.quality_logits), memory


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
