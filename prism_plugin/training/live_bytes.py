"""How many bytes are alive at most while something runs, by kind: a dispatch mode sees every storage come and go."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedConfig

ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits", "gradients"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, by kind. What was there before is not counted.

    Tokens are taken to be spread evenly over experts, so that routing, which asks for values, has an answer.
    """

    def __init__(self, model: nn.Module, config: PreTrainedConfig, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        self.num_experts = next((getattr(config, name) for name in names if hasattr(config, name)), None)
        self.kind_of: dict[int, str] = {}
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.together = 0
        self.before = {self._key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._routed(func, args) if self.num_experts else None
        result = func(*args, **(kwargs or {})) if result is None else result
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _routed(self, func: Any, args: Any) -> Tensor | None:
        """What an operator that picks the tokens of one expert gives; None for other operators."""
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((args[0].numel() // self.num_experts, args[0].ndim), dtype=torch.int64)
        if func is torch.ops.aten.index.Tensor:
            source, indices = args
            at = next((i for i, index in enumerate(indices) if index is not None), None)
            if at is not None and indices[at].dtype == torch.bool and not any(one is not None for one in indices[at + 1 :]):
                mask, shape = indices[at], source.shape
                return source.new_empty((*shape[:at], mask.numel() // self.num_experts, *shape[at + mask.ndim :]))
        return None

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata  # the address of the storage itself, which views share

    def _note(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), self._key(tensor)
        if key in self.kind_of or key in self.before:
            return
        size = storage.nbytes()
        self.kind_of[key] = LOGITS if tensor.ndim and tensor.shape[-1] == self.vocab_size else ACTIVATIONS
        weakref.finalize(storage, self._forget, key, size).atexit = False
        self._add(self.kind_of[key], size)

    def _note_gradient(self, parameter: Any) -> None:
        key, size = self._key(parameter.grad), parameter.grad.untyped_storage().nbytes()
        self.live[self.kind_of[key]] -= size
        self.kind_of[key] = GRADIENTS
        self._add(GRADIENTS, size)

    def _add(self, kind: str, size: int) -> None:
        self.live[kind] += size
        self.peak[kind] = max(self.peak[kind], self.live[kind])
        self.together = max(self.together, self.live.total())

    def _forget(self, key: int, size: int) -> None:
        self.live[self.kind_of.pop(key)] -= size
