"""What a model changes about itself when it is called, and how it is put back.

Some classes are not the same after a call. BigBird turns to full attention at a short row and stays so; dynamic RoPE keeps the
table of the longest row; others keep tables for the length that they saw last. What such a model says of a row depends on the
rows before it.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prism_plugin.backbones.modes import is_of_a_library
from prism_plugin.backbones.probe import is_sharded

# Where a module holds what a call may change: its attributes (""), its buffers and its submodules.
_KINDS = ("", "_buffers", "_modules")
_ABSENT = object()


class CallChanges:
    """Watches the calls of a model, and puts back what they changed: submodules, attributes, buffers, settings of configs.

    A call of another kind, such as one with longer rows, finds the model as it was before the first call. As long as calls are
    of one kind nothing is put back: what the model made for it, it would make again, and activation checkpointing calls its
    layers once more in the backward pass.

    Args:
        backbone: The model. Its own modules are watched, those that it has now.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone
        self._kind: Hashable = None
        self._changed: list[tuple[object, str, str, Any]] = []
        self._written: list[tuple[object, str, Tensor]] = []
        # torch's own layers do not change in a call, and what other libraries note on theirs is not the model's.
        modules = [module for module in backbone.modules() if not is_of_a_library(module)]
        configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
        self._watched = [*((config, "") for config in configs.values()), *((one, kind) for one in modules for kind in _KINDS)]

    @contextmanager
    def watched(self, kind: Hashable) -> Iterator[None]:
        """While open, the model may be called.

        Sharded weights belong to an engine that keeps notes of its own on the modules, so such a model is left alone.

        Args:
            kind: What the model may go by when it changes itself, above all the length of the rows.
        """
        if torch.compiler.is_compiling() or kind == self._kind or is_sharded(self._backbone):
            yield
            return
        self.put_back()
        self._kind = kind
        before = [dict(_held(owner, part)) for owner, part in self._watched]
        # LongRoPE writes into its table: the object stays, and only a copy tells what was in it.
        tables = [
            (owner, name, table, table._version, table.detach().clone())
            for (owner, part), had in zip(self._watched, before, strict=True)
            for name, table in had.items()
            if part == "_buffers" and name.endswith("inv_freq") and _has_values(table)
        ]
        try:
            yield
        finally:
            self._written = [(owner, name, copy) for owner, name, table, version, copy in tables if table._version != version]
            for (owner, part), had in zip(self._watched, before, strict=True):
                has = _held(owner, part)
                if list(map(id, has.values())) != list(map(id, had.values())):
                    changed = [name for name in had.keys() | has.keys() if has.get(name, _ABSENT) is not had.get(name, _ABSENT)]
                    self._changed += [(owner, part, name, had.get(name, _ABSENT)) for name in changed if name != "training"]

    def put_back(self) -> None:
        """Make the model what it was before it was called. Weights stay, and what was changed between calls."""
        for owner, part, name, value in self._changed:
            holder = _held(owner, part)
            now = holder.pop(name, None) if value is _ABSENT else holder.get(name)
            if isinstance(value, nn.Module) and isinstance(now, nn.Module):
                value.train(now.training)  # the mode may have been set, and the model moved, while this was not in it
            elif isinstance(value, Tensor) and isinstance(now, Tensor):
                value = value.to(now.device)
            if value is not _ABSENT:
                holder[name] = value
        for owner, name, value in self._written:
            _held(owner, "_buffers")[name].copy_(value)
        self._kind, self._changed, self._written = None, [], []


def _held(owner: object, part: str) -> dict[str, Any]:
    return vars(owner)[part] if part else vars(owner)


def _has_values(table: object) -> bool:
    return isinstance(table, Tensor) and not table.is_meta and not table.is_inference()
