"""A look that computes the active block against a cache of everything else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prism_plugin.backbones.call import attention_blocks
from prism_plugin.backbones.key_values import KeyValues, Window
from prism_plugin.core.validation import require_choice, require_int, require_number
from prism_plugin.decoding.looks import LOOKS, Asked, Seen, Want, history_of
from prism_plugin.decoding.state import Memory, State
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.windows import require_windows
from prism_plugin.types import PerRow, TokenMask

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def _require_widths(look: "CachedLook") -> None:
    """Check that widths are numbers of positions, and make them a tuple.

    Raises:
        ConfigurationError: If they are not.
    """
    widths = look.widths
    if not isinstance(widths, list | tuple) or not widths or not all(type(one) is int and one > 0 for one in widths):
        raise ConfigurationError(f"`widths` must be numbers of positions, each at least 1, got {widths!r}.")
    object.__setattr__(look, "widths", tuple(sorted(widths)))


@LOOKS.register("cached")
@dataclass(frozen=True)
class CachedLook:
    """Compute the whole canvas when a block begins, then the block alone, which sees the kept keys and values of the rest.

    Fast-dLLM's dual and prefix cache (arXiv 2505.22618), for rows that are at different places. Positions that change outside
    the block, as an editing rule may do, are computed with it. In a family that attends by blocks this is exact, and only the
    first look is at the whole canvas. Elsewhere what is outside the window keeps the keys and values of the last whole look:
    they know the block as it stood then. Where that is its beginning, they know nothing of it; where it is later, they go on
    knowing tokens that have been taken back since, and with remasking that was the worse of the two (Countdown's page).

    Rows that need a whole look and rows that do not are two calls of the network, one forward for each row. The cache is
    written in place, so a state that was left behind, as trajectories do, finds its rows used and is looked at whole again.
    A look waits for the device once more than a plain one, to know which rows are which.

    Args:
        keep: "dual" computes the active block; "prefix" also all that comes after it.
        every: Looks from one whole look to the next within a block, >= 1; None: only where a block begins. In a family that
            attends by blocks there is nothing to refresh.
        refresh_share: A whole look follows once so many of the block's positions have been taken back since the last, above
            0, 1 is as many as the block has; None: never.
        widths: Numbers of positions that windows are rounded up to, so that there are few sizes of them; a window that is wider
            than all stays as it is. None: each is as wide as the longest row's.
        compile_mode: Windows go through `torch.compile` of this mode, "default", "reduce-overhead" (CUDA graphs) or
            "max-autotune"; each size and number of rows is compiled once. Whole looks do not. None: nothing is compiled.
    """

    keep: Literal["dual", "prefix"] = "dual"
    every: int | None = None
    refresh_share: float | None = None
    widths: tuple[int, ...] | None = None
    compile_mode: str | None = None

    def __post_init__(self) -> None:
        if self.widths is not None:
            _require_widths(self)
        if self.compile_mode is not None:
            require_choice(self, "compile_mode", COMPILE_MODES)
        require_choice(self, "keep", ("dual", "prefix"))
        if self.every is not None:
            require_int(self, "every", minimum=1)
        if self.refresh_share is not None:
            require_number(self, "refresh_share", "a number above 0", low=0, open_low=True)

    def may_look_at(self, model: HeadedBackbone) -> None:
        """Refuse a model that cannot compute a part of a canvas, and settings that mean nothing to it."""
        if model.spec.attention_block_length is not None:
            ignored = [name for name in ("every", "refresh_share") if getattr(self, name) is not None]
            ignored += ["keep"] * (self.keep == "prefix")
            if ignored:
                raise ConfigurationError(
                    f"`{ignored[0]}` of CachedLook is about what goes stale, but {model.spec.model_type} attends by blocks, "
                    "where nothing that is kept does; leave it out."
                )
        require_windows(model)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        wanted, due = self._window(model, state, want, memory)
        rows: CacheRows = memory.get("rows") or CacheRows.none(len(due), due.device)  # type: ignore[assignment]  # a handle
        due |= wanted.sum(-1) >= state.canvas.attention_mask.sum(-1)
        counts = torch.stack((due.long(), wanted.sum(-1), want.masked.sum(-1), _visible(want).sum(-1)), dim=-1)
        plan = _Plan.of(rows, counts, state.tokens.shape[1])
        seen = _look(model, state, want, wanted, plan, self)
        # what a whole look notes; one at a window keeps what the last whole one noted
        noted = {"tokens": state.tokens, "block": state.block, "num_remasked": state.num_remasked}
        noted["looks"] = torch.zeros_like(state.block)
        if memory:
            whole = plan.whole_rows
            noted = {name: torch.where(whole, now, memory[name]) for name, now in noted.items() if name != "tokens"}
            noted["tokens"] = torch.where(wanted | whole.unsqueeze(-1), state.tokens, memory["tokens"])
        noted["looks"] = noted["looks"] + 1
        return seen, {"rows": plan.rows, **noted}  # type: ignore[dict-item]  # a handle

    def _window(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[TokenMask, Tensor]:
        """The positions that each row's look has to compute, and which rows have to be looked at whole."""
        canvas = state.canvas
        moving = (want.masked | want.visible_tokens).any(-1)
        active = (canvas.block_of == state.block.unsqueeze(-1)) & moving.unsqueeze(-1)
        present = canvas.attention_mask.bool()
        window = active | want.masked | want.visible_tokens
        if self.keep == "prefix":
            window |= present & (active.cumsum(-1) > 0)
        if not memory:
            return self._read_from(model, window, want), torch.ones_like(state.block).bool()
        changed = present & (memory["tokens"] != state.tokens) & moving.unsqueeze(-1)
        by_blocks = model.spec.attention_block_length
        if by_blocks is not None:  # all that saw what has changed, up to the active block
            block = attention_blocks(present, by_blocks)
            first = block.masked_fill(~changed, block.shape[1]).amin(-1, keepdim=True)
            last = block.masked_fill(~active, -1).amax(-1, keepdim=True)
            return window | (present & (block >= first) & (block <= last)), torch.zeros_like(state.block).bool()
        due = memory["block"] != state.block
        if self.every is not None:
            due |= memory["looks"] >= self.every
        if self.refresh_share is not None:
            taken_back = state.num_remasked - memory["num_remasked"]
            due |= taken_back >= self.refresh_share * active.sum(-1).clamp(min=1)
        return self._read_from(model, window | changed, want), due & moving

    @staticmethod
    def _read_from(model: HeadedBackbone, window: TokenMask, want: Want) -> TokenMask:
        """The window with the positions whose rows give the logits that are wanted."""
        if model.spec.logits_alignment == "same_position":
            return window
        read = want.masked | _visible(want)
        before = torch.zeros_like(read)
        before[:, :-1] = read[:, 1:]
        return window | before


@dataclass
class CacheStore:
    """A cache, and which state each of its slots belongs to.

    Attributes:
        kept: Keys and values.
        stamps: Number of the look that last wrote each slot.
        looks: Looks so far.
    """

    kept: KeyValues
    stamps: list[int] = field(default_factory=list)
    looks: int = 0


@dataclass(frozen=True)
class CacheRows:
    """Rows of a cache, as a state's memory holds them: which slot each has, and the look that wrote it.

    The cache is written in place, so a copy of a row shares its slot with the original. Whichever looks first has it, and the
    other one sees by the stamp that what is there is not its own.
    """

    store: CacheStore | None
    slots: PerRow
    stamps: PerRow

    @classmethod
    def none(cls, batch: int, device: torch.device) -> "CacheRows":
        """Rows that have no slot."""
        nothing = torch.full((batch,), -1, device=device)
        return cls(None, nothing, nothing)

    def nothing(self, batch: int) -> "CacheRows":
        """As many rows without a slot, of the same cache."""
        rows = CacheRows.none(batch, self.slots.device)
        return CacheRows(self.store, rows.slots, rows.stamps)

    def __getitem__(self, rows: Tensor) -> "CacheRows":
        return CacheRows(self.store, self.slots[rows], self.stamps[rows])

    def index_copy(self, dim: int, rows: Tensor, part: "CacheRows") -> "CacheRows":
        """The same with some rows put in place of its own, as for a tensor."""
        whole = self if self.store is part.store else self.nothing(len(self.slots))  # what another cache holds is not here
        slots, stamps = whole.slots.index_copy(dim, rows, part.slots), whole.stamps.index_copy(dim, rows, part.stamps)
        return CacheRows(part.store, slots, stamps)


@dataclass(frozen=True)
class _Plan:
    """Which rows are looked at whole and which by a window, and the slot of each.

    Attributes:
        store: The cache.
        slots: Of each row.
        whole: Rows that are looked at whole.
        widths: Positions of each row's window.
        masked: Masked positions that each row asks about.
        visible: Tokens whose logits each row asks for.
        rows: What the state remembers.
        whole_rows: `whole`, on the device.
    """

    store: CacheStore
    slots: list[int]
    whole: list[bool]
    widths: list[int]
    masked: list[int]
    visible: list[int]
    rows: CacheRows
    whole_rows: Tensor

    @classmethod
    def of(cls, rows: CacheRows, counts: Tensor, length: int) -> "_Plan":
        """Give every row a slot of its own; here the host waits for the device."""
        table = torch.cat((counts, rows.slots.unsqueeze(-1), rows.stamps.unsqueeze(-1)), dim=-1).tolist()
        due, widths, masked, visible, slots, stamps = (list(one) for one in zip(*table, strict=True))
        store = rows.store
        if store is None or store.kept.length != length:
            store, slots = CacheStore(KeyValues(len(table), length), [0] * len(table)), [-1] * len(table)
        taken: set[int] = set()
        for row, slot in enumerate(slots):
            mine = slot >= 0 and slot not in taken and store.stamps[slot] == stamps[row]
            slots[row] = slot if mine else -1
            taken |= {slot} if mine else set()
        # the slots that were written longest ago: a row that waits keeps its own as long as there are others
        free = sorted(set(range(len(store.stamps))) - taken, key=lambda slot: (store.stamps[slot], slot), reverse=True)
        needed = slots.count(-1) - len(free)
        if needed > 0:
            free = [*range(len(store.stamps) + needed - 1, len(store.stamps) - 1, -1), *free]
            store.kept.grow(len(store.stamps) + needed)
            store.stamps += [0] * needed
        whole = [bool(one) or slot < 0 for one, slot in zip(due, slots, strict=True)]
        slots = [free.pop() if slot < 0 else slot for slot in slots]
        store.looks += 1
        for slot in slots:
            store.stamps[slot] = store.looks
        device = rows.slots.device
        now = CacheRows(store, _brought(slots, device), torch.full((len(slots),), store.looks, device=device))
        return cls(store, slots, whole, widths, masked, visible, now, _brought(whole, device))

    def some(self, whole: bool) -> list[int]:
        """The rows that are looked at whole, or those that are not."""
        return [row for row, one in enumerate(self.whole) if one is whole]


def _brought(values: Sequence[int], device: torch.device) -> Tensor:
    """Numbers of the host, on the device, without waiting for what it is doing."""
    return torch.tensor(values).to(device, non_blocking=True)


def _visible(want: Want) -> TokenMask:
    return torch.zeros_like(want.masked) if want.visible is None else want.visible


def _look(model: HeadedBackbone, state: State, want: Want, wanted: TokenMask, plan: _Plan, how: CachedLook) -> Seen:
    """One or two calls of the network, and what they gave together."""
    asked, length = Asked.of(want), state.tokens.shape[1]
    positions = state.canvas.attention_mask.sum(-1)
    parts = [rows for rows in (plan.some(True), plan.some(False)) if rows]
    if len(parts) == 1:
        rows, quality = _call(model, state, want, wanted, plan, how, parts[0], asked.index)
    else:
        rows, quality = None, None
        row_of = asked.index // length
        for part in parts:
            members = _brought(part, row_of.device)
            place_of = torch.full((len(plan.slots),), -1, device=row_of.device)
            place_of[members] = torch.arange(len(part), device=row_of.device)
            number = sum(plan.masked[row] + plan.visible[row] for row in part)
            mine = (place_of[row_of] >= 0).to(torch.int8).argsort(descending=True, stable=True)[:number]
            index = place_of[row_of[mine]] * length + asked.index[mine] % length
            found, judged = _call(model, state, want, wanted, plan, how, part, index)
            rows = found.new_empty(len(asked.index), found.shape[-1]) if rows is None else rows
            rows.index_copy_(0, mine, found)
            if judged is not None:
                quality = judged.new_empty(len(plan.slots), length) if quality is None else quality
                quality.index_copy_(0, members, judged)
    whole = plan.whole_rows
    computed = torch.where(whole, positions, wanted.sum(-1))
    where = None if all(plan.whole) else wanted | whole.unsqueeze(-1)
    return asked.seen(model, rows, quality, num_positions=computed, where=where)  # type: ignore[arg-type]  # some part is there


def _call(
    model: HeadedBackbone,
    state: State,
    want: Want,
    wanted: TokenMask,
    plan: _Plan,
    how: CachedLook,
    rows: Sequence[int],
    index: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """One call, of rows that are all looked at whole, or none of them."""
    device = wanted.device
    everyone = list(rows) == list(range(len(plan.slots)))
    members = None if everyone else _brought(rows, device)
    slots = [plan.slots[row] for row in rows]
    in_order = slots == list(range(plan.store.kept.num_slots))
    options: dict[str, Any] = {"slots": None if in_order else _brought(slots, device)}
    tokens, mask, history = state.tokens, state.canvas.attention_mask if want.padded else None, history_of(model, state, want)
    if members is not None:
        tokens, wanted = tokens[members], wanted[members]
        mask = None if mask is None else mask[members]
        history = None if history is None else history.moved(lambda one: one[members])
    if not plan.whole[rows[0]]:
        widths = [plan.widths[row] for row in rows]
        width = min((one for one in how.widths or () if one >= max(widths)), default=max(widths))
        columns = wanted.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :width]
        ragged = min(widths) < columns.shape[1]
        options |= {"columns": columns, "own": wanted.gather(1, columns) if ragged else None}
        options |= {"compile_mode": how.compile_mode}
    window = Window(plan.store.kept, **options)
    output = model(tokens, mask, logits_at=index, with_quality=want.quality, history=history, window=window)
    return output.logits, output.quality_logits
