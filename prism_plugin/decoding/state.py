"""Where every row stands: what stays fixed during a request, what the loop writes, and what features remember."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from prism_plugin.core.forbidding import HeldBack
from prism_plugin.core.history import History
from prism_plugin.types import FlatIndex, PerRow, PerToken, TokenIds, TokenMask

# What features and looks keep from one look to the next: name -> parts, each beginning with the batch.
Memory = Mapping[str, Tensor]


@dataclass(frozen=True)
class Canvas:
    """What stays fixed. All tensors begin with the batch; `length` is the longest row's, and padding only follows a row."""

    tokens: TokenIds  # as laid, masks at the positions to generate
    attention_mask: Tensor  # [batch, length] int64, 1 for the row's own tokens
    editable: TokenMask
    block_of: TokenIds  # number of the block an editable position belongs to; -1 elsewhere
    num_blocks: PerRow
    too_early: TokenMask | None = field(default=None, kw_only=True)  # no end of text may be drawn here; None: anywhere

    def held_back(self, end_ids: tuple[int, ...], index: FlatIndex) -> HeldBack | None:
        """At which of some flat positions the tokens that end a text may not be drawn; None: at all of them they may."""
        return None if self.too_early is None else HeldBack(end_ids, self.too_early.flatten()[index])

    def take(self, rows: Tensor) -> Self:
        """The canvas of some rows, in the order of `rows`."""
        parts = [getattr(self, one.name) for one in fields(self)]
        taken: dict[str, Any] = {
            one.name: part[rows] for one, part in zip(fields(self), parts, strict=True) if part is not None
        }
        return type(self)(**taken)


@dataclass(frozen=True)
class State:
    """Where every row stands. All tensors begin with the batch.

    Attributes:
        canvas: What stays fixed.
        tokens: What stands there now.
        commit_confidence: Probability of the token when it was written, 1 elsewhere.
        quality: Last quality seen of the token that stands there, NaN where it was not judged.
        times_remasked: How often each position has been taken back.
        times_edited: How often its token has been overwritten by another.
        last_changed: How many positions of the row had been taken back or overwritten when this one last was, itself counted;
            0 where it never was. It is noted only where a queue is kept of them.
        age: Looks at the row since the token was written, 0 for one written at the last; -1 where the model wrote none.
        goal: Positions that each block shall have revealed in the end, [batch, blocks].
        block: Number of the active block.
        step: Within the block; equal to its number of steps when nothing is left to do.
        num_looks: Looks that each row took part in.
        num_forward_passes: Calls of the network for each row, in these looks.
        num_positions: Positions that were computed in them.
        num_remasked: Positions taken back, over all looks.
        fault: 0, or the number of what a decider or the model did wrong.
        memory: What features and looks remember, by their names.
    """

    canvas: Canvas
    tokens: TokenIds
    commit_confidence: PerToken
    quality: PerToken
    times_remasked: TokenIds
    times_edited: TokenIds
    last_changed: TokenIds
    age: TokenIds
    goal: TokenIds
    block: PerRow
    step: PerRow
    num_looks: PerRow
    num_forward_passes: PerRow
    num_positions: PerRow
    num_remasked: PerRow
    fault: PerRow
    memory: Mapping[str, Memory] = field(default_factory=dict)

    @property
    def history(self) -> History:
        """What each token has been through."""
        confidence = self.commit_confidence.masked_fill(self.age < 0, 1.0)
        return History(self.age, confidence, self.times_remasked)

    def take(self, rows: Tensor) -> "State":
        """A copy of some rows, in the order of `rows`; with a row several times, it is resampled."""
        parts = {name: getattr(self, name)[rows] for name in _TENSORS}
        memory = {name: {key: part[rows] for key, part in one.items()} for name, one in self.memory.items()}
        return State(canvas=self.canvas.take(rows), memory=memory, **parts)

    def put(self, rows: Tensor, part: "State") -> "State":
        """A copy with some rows written back; their canvas stays as it is."""
        parts = {name: getattr(self, name).index_copy(0, rows, getattr(part, name)) for name in _TENSORS}
        memory = {}
        for name, one in part.memory.items():
            before = self.memory.get(name) or {key: _nothing(some, len(self.block)) for key, some in one.items()}
            memory[name] = {key: whole.index_copy(0, rows, one[key]) for key, whole in before.items()}
        return replace(self, memory=memory, **parts)


def _nothing(some: Tensor, batch: int) -> Tensor:
    """What rows remember that have not been looked at, where the first memory of some is."""
    if not isinstance(some, Tensor):  # a handle, which says so itself
        return some.nothing(batch)
    return some.new_zeros((batch, *some.shape[1:]))


_TENSORS = tuple(one.name for one in fields(State) if one.name not in ("canvas", "memory"))


def begin_state(canvas: Canvas, goal: TokenIds, memory: Mapping[str, Memory]) -> State:
    """The state before the first look; `step` is not found yet."""
    none = torch.zeros_like(canvas.num_blocks)
    return State(
        canvas=canvas,
        tokens=canvas.tokens,
        commit_confidence=torch.ones(canvas.tokens.shape, device=none.device),
        quality=torch.full(canvas.tokens.shape, float("nan"), device=none.device),
        times_remasked=torch.zeros_like(canvas.tokens),
        times_edited=torch.zeros_like(canvas.tokens),
        last_changed=torch.zeros_like(canvas.tokens),
        age=torch.full_like(canvas.tokens, -1),
        goal=goal,
        block=none,
        step=none,
        num_looks=none,
        num_forward_passes=none,
        num_positions=none,
        num_remasked=none,
        fault=none,
        memory=memory,
    )
