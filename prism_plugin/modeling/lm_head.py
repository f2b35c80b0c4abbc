"""Feeds the LM head only the rows that are asked for.

One forward pre-hook on the module that reads the final hidden state does two things while a `PrismModel` calls its
backbone: it keeps that state for the quality head, and hands on just the requested rows. At any other time, when the user
calls the backbone directly, it does nothing. The request travels in a context variable and not on the module, so that
threads, nested calls and exceptions cannot leave one behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prism_plugin.backbones.turning import RowTurning
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import FlatIndex, HiddenStates, Rows, TokenMask

# Views, a bias, a cast, a cap: more does not stand between a matrix product and the logits that a model returns.
_NODES_ABOVE_THE_PRODUCT = 8


@dataclass
class RowRequest:
    """One call's wish, and what the hook found. `hidden_states` is filled in by the hook."""

    module: nn.Module
    row_index: FlatIndex
    hidden_states: HiddenStates | None = None


# A compiled graph cannot read a context variable, so its request stands here, and whoever makes it holds a lock.
_COMPILED: list[RowRequest] = []
_REQUEST: ContextVar[RowRequest | None] = ContextVar("prism_plugin_row_request", default=None)


@contextmanager
def gathered_rows(module: nn.Module, row_index: FlatIndex, *, compiled: bool = False) -> Iterator[RowRequest]:
    """While open, `module` sees only the rows of its input at `row_index`, as a [1, rows, hidden] tensor.

    Args:
        module: The module that carries the hook of `install_row_gathering`.
        row_index: Flat positions in row-major order of [batch, length]; may be empty.
        compiled: The call goes through a compiled graph, and the caller holds `key_values.ONE_COMPILED_CALL`.
    """
    request = RowRequest(module, row_index)
    token = _REQUEST.set(request)
    if compiled:
        _COMPILED.append(request)
    try:
        yield request
    finally:
        if compiled:
            _COMPILED.pop()
        _REQUEST.reset(token)


def install_row_gathering(module: nn.Module) -> RemovableHandle:
    """Put the hook on the module whose input is the final hidden state. Removing the handle undoes it."""
    return module.register_forward_pre_hook(_gather_rows)


def has_row_gathering(module: nn.Module) -> bool:
    """Tell whether the hook is on a module."""
    return any(hook is _gather_rows for hook in module._forward_pre_hooks.values())


def _gather_rows(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    request = _COMPILED[-1] if torch.compiler.is_compiling() and _COMPILED else _REQUEST.get()
    if request is None or request.module is not module:
        return None
    hidden_states = args[0]
    request.hidden_states = hidden_states
    row_index = request.row_index.to(hidden_states.device)
    return (hidden_states.flatten(0, 1).index_select(0, row_index).unsqueeze(0), *args[1:])


def to_row_index(
    logits_at: TokenMask | FlatIndex | None, input_ids: Tensor, *, alignment: str, turning: RowTurning | None = None
) -> FlatIndex:
    """Turn a request for logits about positions into the rows of hidden states that give them.

    Args:
        logits_at: Bool mask [batch, length], int64 flat index [rows], or None for no row.
        input_ids: Tokens of the call, [batch, length].
        alignment: "same_position", or "next_token": then the row of the position before is taken. The first position
            of a sequence has none before it and takes its own, as Dream does.
        turning: How the rows are turned before the call; None: they are not.

    Raises:
        ConfigurationError: If `logits_at` is neither.
    """
    if logits_at is None:
        return torch.empty(0, dtype=torch.int64, device=input_ids.device)
    if logits_at.dtype == torch.bool and logits_at.shape == input_ids.shape:
        row_index = logits_at.flatten().nonzero().squeeze(-1)
    elif logits_at.dtype == torch.int64 and logits_at.ndim == 1:
        row_index = logits_at
    else:
        raise ConfigurationError(
            f"`logits_at` must be a bool mask of shape {tuple(input_ids.shape)} or an int64 index of flat positions, "
            f"got {logits_at.dtype} of shape {tuple(logits_at.shape)}."
        )
    if turning is not None:
        row_index = turning.index(row_index)
    if alignment == "next_token":
        row_index = torch.where(row_index % input_ids.shape[1] == 0, row_index, row_index - 1)
    return row_index


def may_overwrite(logits: Rows) -> bool:
    """Tell whether nothing that made some logits keeps them for its own gradient, so that theirs may be written over them.

    A matrix product needs its factors and not its result; a softcap's tanh needs its result. Looked up in the few nodes
    of the graph between the logits and the product, for as long as they could share the logits' memory.
    """
    memory = logits.untyped_storage().data_ptr()
    node = logits.grad_fn
    for _ in range(_NODES_ABOVE_THE_PRODUCT):
        if node is None:
            return True
        names = (name for name in dir(node) if name.startswith("_saved_"))
        kept = [*(getattr(node, name) for name in names), *getattr(node, "saved_tensors", ())]
        if any(isinstance(one, Tensor) and one.untyped_storage().data_ptr() == memory for one in kept):
            return False
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return True
