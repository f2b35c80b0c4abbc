"""Everything that a model is, in a form that compares: what attaching, probing, scoring and sampling must leave alone."""

import copy

import torch

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def whole_state(backbone):
    """Name -> value, for config, modules and their attributes, parameters, buffers and hooks. Tensors are copied."""
    state = {f"config.{name}": _kept(value) for name, value in vars(backbone.config).items()}
    for path, module in backbone.named_modules():
        state[f"{path}: module"] = (id(module), type(module))
        for name, value in vars(module).items():
            if name in _HOOKS:
                state[f"{path}: {name}"] = dict(value)
            elif name not in ("_parameters", "_buffers", "_modules"):
                state[f"{path}: {name}"] = _kept(value)
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, kind).items():
                state[f"{path}: {kind}.{name}"] = _kept(tensor)
                facts = None if tensor is None else (tensor.requires_grad, tensor.device, tensor.dtype)
                state[f"{path}: {kind}.{name} is"] = facts
    return state


def differences(before, after):
    """Names of what is not as it was."""
    missing = object()
    return [
        name for name in sorted(before.keys() | after.keys())
        if not _same(before.get(name, missing), after.get(name, missing))
    ]  # fmt: skip


def _kept(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | set | dict):
        return copy.deepcopy(value) if _is_plain(value) else id(value)
    return id(value)


def _is_plain(value):
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple | set) else isinstance(value, _PLAIN)


def _same(one, other):
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other
