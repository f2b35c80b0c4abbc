"""Rotary position tables: computed buffers, not stored ones, so that a loader may leave them uninitialised in silence."""

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prism_plugin.backbones.probe import Check, not_run

# Of rounding, such as that of bfloat16's 8 bits in a table that has no config. What was never written is off by magnitudes.
_TOLERANCE = 1e-2
# These grow with the longest sequence seen so far, so no one table is right.
_MOVING = ("dynamic", "longrope")


def check_rotary_tables(backbone: PreTrainedModel) -> Check:
    """Every `inv_freq` buffer is finite, in (0, 1], and what its module computes from the config; plain tables start at 1.

    Where a module cannot be built again from its config, the table must fall by one factor from entry to entry, as
    theta^(-2i/d) does.

    Args:
        backbone: Any model; one without such buffers passes.
    """
    tables = list(_tables(backbone))
    if any(getattr(module, name).is_meta for _, module, name in tables):
        return not_run("rotary_tables", "no weights")
    worst = 0.0
    for path, module, name in tables:
        buffer = getattr(module, name)
        table, expected = buffer.detach().cpu().double(), _computed_again(module, name)
        plain = _rope_type(module, name) == "default"
        # A table that was cast with its model is that of the config, cast: float16 is off by percents at its smallest numbers.
        wanted = _geometric(table) if expected is None else expected.to(buffer.dtype).double()
        deviation = _deviation(table, wanted, plain)
        if deviation > _TOLERANCE:
            return Check(
                "rotary_tables", False, deviation,
                f"The rotary table `{path}` of {type(backbone).__name__} must be the one that its config gives, in (0, 1], but "
                f"starts {', '.join(f'{value:.3g}' for value in table.flatten()[:3].tolist())}; it was not initialised or is "
                "damaged, so load the model with `load_backbone`.",
            )  # fmt: skip
        worst = max(worst, deviation)
    detail = f"largest relative deviation of {len(tables)} rotary tables from those of the config"
    return Check("rotary_tables", True, worst, detail if tables else "the model has no rotary tables")


def _tables(backbone: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str]]:
    for prefix, module in backbone.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq") and buffer is not None:
                yield f"{prefix}.{name}", module, name


def _rope_type(module: nn.Module, name: str) -> str:
    kinds = getattr(module, "rope_type", "default")
    return kinds.get(name.removesuffix("_inv_freq"), "default") if isinstance(kinds, dict) else kinds


def _computed_again(module: nn.Module, name: str) -> Tensor | None:
    """The table that a new module of the class gets from the same config; None where that cannot be told."""
    if "config" not in inspect.signature(type(module).__init__).parameters or not hasattr(module, "config"):
        return None
    if _rope_type(module, name) in _MOVING:
        return None
    try:
        with torch.device("cpu"):
            return getattr(type(module)(config=module.config), name, None)
    except (TypeError, ValueError, KeyError, AttributeError):  # older remote code: more arguments, names that are gone
        return None


def _geometric(table: Tensor) -> Tensor:
    factor = table.flatten()[1] if table.numel() > 1 else torch.ones((), dtype=table.dtype)
    return (table.flatten()[0] * factor ** torch.arange(table.numel())).view_as(table)


def _deviation(table: Tensor, expected: Tensor, plain: bool) -> float:
    in_range = bool(table.isfinite().all() and (table > 0).all() and (table <= 1 + _TOLERANCE).all())
    if table.shape != expected.shape or not in_range or (plain and abs(table.flatten()[0].item() - 1) > _TOLERANCE):
        return float("inf")
    return ((table - expected).abs() / expected).max().item()
