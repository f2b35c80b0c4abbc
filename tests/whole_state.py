"""Everything that a model is, in a form that compares: what attaching, probing, scoring and sampling must leave alone."""

import copy

import torch

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def whole_state(backbone):
    """Dotted path -> value, for config, submodules, their attributes, buffers, parameters and hooks. Tensors are copied."""
    state = {f"config.{name}": _kept(value) for name, value in vars(backbone.config).items()}
    for path, module in backbone.named_modules():
        before = f"{path}." if path else ""
        state[f"{before}class"] = (id(module), type(module))
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                state[before + name] = list(value.items())
            elif name not in ("_parameters", "_buffers", "_modules"):
                state[before + name] = _kept(value)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            state[before + name] = _kept(tensor)
            kept = isinstance(tensor, torch.nn.Parameter)  # a buffer may be made anew
            state[f"{before}{name}.is"] = (id(tensor) if kept else None, tensor.device, tensor.dtype)
            state[f"{before}{name}.requires_grad"] = tensor.requires_grad
    return state


def differences(before, after):
    """Paths of what is not as it was."""
    missing = object()
    return [
        path for path in sorted(before.keys() | after.keys())
        if not _same(before.get(path, missing), after.get(path, missing))
    ]  # fmt: skip


def _kept(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.deepcopy(value) if _is_plain(value) else id(value)


def _is_plain(value):
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple | set) else isinstance(value, _PLAIN)


def _same(one, other):
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and (one.is_meta or torch.equal(one, other))
    return type(one) is type(other) and one == other
