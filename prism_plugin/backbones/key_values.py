"""Keys and values of canvases, kept between the calls of a backbone, so that a call may compute some positions only.

A masked diffusion model has no growing cache: every position may change, and all see each other. So a call computes the
positions that it is asked for, writes their keys and values over the old ones, and lets them attend to all that is kept. As
Fast-dLLM's dual cache does (arXiv 2505.22618), but for any positions, others in each row.

How a family makes queries, keys and values is its own; all that is met here calls
`torch.nn.functional.scaled_dot_product_attention`. While a call is open, that function is ours: it keeps what it is given,
layer after layer, and hands everything kept to torch's. Calls of other threads, and of anything else, go through unchanged.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.errors import BackboneError
from prism_plugin.types import PerRow, TokenMask

KeyValue = tuple[Tensor, Tensor]


class KeyValues:
    """What is kept of the canvases of some rows, each in a slot.

    Attributes:
        num_slots: Rows that it has room for.
        length: Columns of their canvases.
        layers: Keys and values of each attention layer, [slots, length, heads, width], in the order of the layers.
        hidden_states: Final hidden states, [slots, length, hidden], where the quality head reads its neighbours'; else None.
    """

    def __init__(self, num_slots: int, length: int) -> None:
        self.num_slots, self.length = num_slots, length
        self.layers: list[KeyValue] = []
        self.hidden_states: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that is taken."""
        kept = [one for layer in self.layers for one in layer]
        kept += [] if self.hidden_states is None else [self.hidden_states]
        return sum(one.numel() * one.element_size() for one in kept)

    def grow(self, num_slots: int) -> None:
        """Make room for more rows; what is kept stays in its slots."""

        def longer(kept: Tensor) -> Tensor:
            return torch.cat((kept, kept.new_zeros(num_slots - self.num_slots, *kept.shape[1:])))

        self.layers = [(longer(keys), longer(values)) for keys, values in self.layers]
        self.hidden_states = None if self.hidden_states is None else longer(self.hidden_states)
        self.num_slots = num_slots


@dataclass(frozen=True)
class Window:
    """The positions of a call that are computed, and where the rest is kept.

    Attributes:
        kept: Keys and values; those of the window are written over.
        slots: Slot of each row, [batch] int64; None: all slots in their order.
        columns: Columns that are computed, [batch, width] int64, no column twice in a row; None: all of them.
        own: Which of `columns` a row asked for, where rows ask for different numbers; the others are computed, and nothing is
            written or told of them. None: all.
        compile_mode: The backbone is called through `torch.compile` of this mode; None: as it is.
    """

    kept: KeyValues
    slots: PerRow | None = None
    columns: Tensor | None = None
    own: TokenMask | None = None
    compile_mode: str | None = None

    def gathered(self, values: Tensor) -> Tensor:
        """Values of a canvas, [batch, length], at the window."""
        return values if self.columns is None else values.gather(1, self.columns)

    def rows_of(self, index: Tensor) -> Tensor:
        """Where flat positions of the canvas, which must lie in the window, stand among the window's."""
        if self.columns is None:
            return index
        width = self.columns.shape[1]
        places = torch.arange(width, device=self.columns.device).expand_as(self.columns)
        place_of = self.columns.new_zeros(len(self.columns), self.kept.length).scatter(1, self.columns, places)
        return index // self.kept.length * width + place_of.flatten()[index]

    def laid(self, values: Tensor) -> Tensor:
        """Values at the window, [batch, width], laid out on the canvas; NaN elsewhere."""
        if self.columns is None:
            return values
        values = values if self.own is None else values.masked_fill(~self.own, float("nan"))
        return values.new_full((len(values), self.kept.length), float("nan")).scatter(1, self.columns, values)

    def kept_hidden_states(self, hidden_states: Tensor) -> Tensor:
        """Final hidden states of the whole canvas, [batch, length, hidden], those of the window written over the old ones."""
        if self.kept.hidden_states is None:
            shape = (self.kept.num_slots, self.kept.length, hidden_states.shape[-1])
            self.kept.hidden_states = hidden_states.new_zeros(shape)
        return self.written(self.kept.hidden_states, hidden_states)

    def written(self, kept: Tensor, new: Tensor) -> Tensor:
        """Write over what is kept, in place.

        Args:
            kept: [slots, length, ...].
            new: At the window, [batch, width, ...].

        Returns:
            What is kept now of the call's rows, [batch, length, ...].
        """
        slots = None if self.slots is None else self.slots.to(kept.device)
        if self.columns is None:
            if slots is None:
                kept.copy_(new)
            else:
                kept.index_copy_(0, slots, new)
            return new
        rows = torch.arange(len(new), device=kept.device) if slots is None else slots
        index = (rows.unsqueeze(-1) * self.kept.length + self.columns.to(kept.device)).flatten()
        places, values = kept.flatten(0, 1), new.flatten(0, 1)
        if self.own is not None:
            own = self.own.to(kept.device).view(-1, *[1] * (values.ndim - 1))
            values = torch.where(own, values, places.index_select(0, index))
        places.index_copy_(0, index, values)
        return kept if slots is None else kept.index_select(0, slots)


@dataclass
class _Call:
    """One call of a backbone with a window: which layer comes next, and who may look where."""

    window: Window
    may_see: Tensor | None
    groups: int
    num_heads: int
    layer: int = 0
    of_device: dict[torch.device, Tensor] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """What the next layer's attention gives."""
        if query.ndim != 4 or key.shape[2] != query.shape[2]:
            raise BackboneError(
                f"a look with a cache needs attention over [batch, heads, length, width], found queries of shape "
                f"{list(query.shape)} and keys of {list(key.shape)}; choose another look."
            )
        if self.groups > 1 and key.shape[1] == query.shape[1] == self.num_heads:  # repeated for each of a group's queries
            key, value = key[:, :: self.groups], value[:, :: self.groups]
        kept, number = self.window.kept, self.layer
        self.layer += 1
        if number == len(kept.layers):
            shape = (kept.num_slots, kept.length, key.shape[1])
            kept.layers.append((key.new_zeros(*shape, key.shape[3]), value.new_zeros(*shape, value.shape[3])))
        key, value = (
            self.window.written(store, new.transpose(1, 2)).transpose(1, 2)
            for store, new in zip(kept.layers[number], (key, value), strict=True)
        )
        mask, groups = self._mask(query.device), query.shape[1] // key.shape[1]
        if groups > 1 and mask is not None:  # kernels that take a mask repeat keys themselves, or hold the whole matrix
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return _torch_attention()(query, key, value, attn_mask=mask, scale=scale, enable_gqa=groups > 1 and mask is None)

    def _mask(self, device: torch.device) -> Tensor | None:
        if self.may_see is None:
            return None
        if device not in self.of_device:
            self.of_device[device] = self.may_see.to(device).unsqueeze(1)
        return self.of_device[device]


_CALL: ContextVar[_Call | None] = ContextVar("prism_plugin_windowed_call", default=None)
_LOCK = threading.Lock()
# A compiled graph cannot read a context variable, so its call stands here, and whoever makes it holds the lock.
_COMPILED: list[_Call] = []
ONE_COMPILED_CALL = threading.RLock()
_OPEN: list[Callable[..., Tensor]] = []  # torch's own function, once for each open call


def _torch_attention() -> Callable[..., Tensor]:
    return _OPEN[0] if _OPEN else F.scaled_dot_product_attention


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Stands in for `torch.nn.functional.scaled_dot_product_attention` while a call is open."""
    call = _COMPILED[-1] if torch.compiler.is_compiling() and _COMPILED else _CALL.get()
    if call is None:
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return _torch_attention()(query, key, value, attn_mask=attn_mask, **options)
    return call.attend(query, key, value, scale)


@contextmanager
def attending(backbone: PreTrainedModel, spec: BackboneSpec, window: Window, may_see: Tensor | None) -> Iterator[_Call]:
    """While open, the backbone is called once, on the tokens of a window.

    Args:
        backbone: The model.
        spec: Its family.
        window: What is computed.
        may_see: Which positions of the canvas each of the window may look at, [batch, width or 1, length]; None: all.

    Raises:
        BackboneError: If the attention of no layer came through here.
    """
    config = backbone.config.get_text_config()
    num_heads = int(getattr(config, "num_attention_heads", None) or getattr(config, "n_heads", None) or 1)
    num_kept = int(getattr(config, "num_key_value_heads", None) or getattr(config, "n_kv_heads", None) or num_heads)
    call = _Call(window, may_see, max(1, num_heads // num_kept), num_heads)
    with _LOCK:
        _OPEN.append(F.scaled_dot_product_attention if not _OPEN else _OPEN[0])
        F.scaled_dot_product_attention = _attention
    token = _CALL.set(call)
    try:
        with _rotary_rows(backbone, spec, window), _compiling(call):
            yield call
    finally:
        _CALL.reset(token)
        with _LOCK:
            if len(_OPEN) == 1:  # put back before it is forgotten: other threads may be on their way through here
                F.scaled_dot_product_attention = _OPEN[0]
            _OPEN.pop()
    if call.layer == 0 or call.layer != len(window.kept.layers):
        raise BackboneError(
            f"a look with a cache keeps keys and values where {type(backbone).__name__} calls `scaled_dot_product_attention`, "
            f"but {call.layer} of {max(1, len(window.kept.layers))} layers did; load the model with "
            '`attn_implementation="sdpa"`, or choose another look.'
        )


@contextmanager
def _compiling(call: _Call) -> Iterator[None]:
    """While open, a compiled graph finds the call."""
    if call.window.compile_mode is None:
        yield
        return
    _COMPILED.append(call)
    try:
        yield
    finally:
        _COMPILED.pop()


@contextmanager
def _rotary_rows(backbone: nn.Module, spec: BackboneSpec, window: Window) -> Iterator[None]:
    """While open, modules whose rotary table goes from the first position on give the rows of the window's positions."""
    if spec.rotary_method is None or window.columns is None:
        yield
        return
    owners = [module for module in backbone.modules() if callable(getattr(type(module), spec.rotary_method, None))]
    looked_up: dict[tuple[int, torch.device], Tensor] = {}

    def rows_of(table: Tensor) -> Tensor:  # [1, 1, length, width] -> [batch, 1, window, width]
        key = (table.data_ptr(), table.device)
        if key not in looked_up:
            looked_up[key] = table[0, 0][window.columns.to(table.device)].unsqueeze(1)  # type: ignore[union-attr]
        return looked_up[key]

    def patched(module: nn.Module) -> Callable[..., KeyValue]:
        whole = getattr(module, spec.rotary_method)  # type: ignore[arg-type]  # a name, as was asked above

        def rows(length: int, device: torch.device, **_: object) -> KeyValue:  # RemeDi names positions too, which are these
            sines, cosines = whole(window.kept.length, device)
            return rows_of(sines), rows_of(cosines)

        return rows

    for module in owners:
        setattr(module, spec.rotary_method, patched(module))
    try:
        yield
    finally:
        for module in owners:
            delattr(module, spec.rotary_method)
