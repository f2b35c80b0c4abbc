"""Rotary position tables: computed buffers, not stored ones, so that a loader may leave them uninitialised in silence."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from prism_plugin.backbones.probe import Check, not_run

# Of rounding, such as that of bfloat16's 8 bits. What was never written is off by magnitudes.
_TOLERANCE = 1e-2
# A row that is longer than any model's: LongRoPE has one table for short rows and one for long ones.
_LONGEST = 2**30
# What computing a table raises: in older remote code more arguments, names and keys that are gone; RuntimeError where a config
# differs from layer to layer.
_CANNOT_COMPUTE = (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError)


def check_rotary_tables(backbone: PreTrainedModel) -> Check:
    """Every table of inverse frequencies is one that its module computes from the config, at one length or another.

    What is right differs: zeros in the type "proportional", factors of its own for each entry in "longrope", another table for
    each length in "dynamic". Where neither the module nor the model's config gives a table, it must fall by one factor from
    entry to entry from at most 1, as theta^(-2i/d) does.

    Args:
        backbone: Any model; one without such buffers passes.
    """
    tables = list(_tables(backbone))
    if any(getattr(module, name).is_meta for _, module, name in tables):
        return not_run("rotary_tables", "no weights")
    worst = 0.0
    for path, module, name in tables:
        table = getattr(module, name).detach().cpu()
        candidates = tables_of_config(module, name) or _tables_of_others(backbone.config, table)
        deviation, wanted = min(((_deviation(table, one), one) for one in candidates), key=lambda pair: pair[0])
        if deviation > _TOLERANCE:
            return Check(
                "rotary_tables", False, deviation,
                f"The rotary table `{path}` of {type(backbone).__name__} must be the one that its config gives, which starts "
                f"{_start_of(wanted)}, but it starts {_start_of(table)}; it was not initialised, was damaged, or the config "
                "was changed afterwards, so load the model with `load_backbone`.",
            )  # fmt: skip
        worst = max(worst, deviation)
    detail = f"largest relative deviation of {len(tables)} rotary tables from those of the config"
    return Check("rotary_tables", True, worst, detail if tables else "the model has no rotary tables")


def _tables(backbone: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str]]:
    for prefix, module in backbone.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and buffer is not None and buffer.numel():
                yield f"{prefix}.{name}", module, name


def tables_of_config(module: nn.Module, name: str) -> list[Tensor]:
    """The tables that a module may have by its config: that of a new one of its class, then those of its RoPE function.

    Args:
        module: Has the table as a buffer.
        name: The buffer: "inv_freq" or "original_inv_freq", behind the kind of layer where there are several.

    Returns:
        On the CPU, of the buffer's shape; none where they cannot be computed.
    """
    if not isinstance(getattr(module, "config", None), PreTrainedConfig):
        return []
    config = copy.deepcopy(module.config)  # transformers writes into it
    layer_type = name.removesuffix("inv_freq").removesuffix("original_").removesuffix("_")
    rope_type: Any = getattr(module, "rope_type", None)
    rope_type = rope_type.get(layer_type) if isinstance(rope_type, dict) else rope_type
    default = getattr(module, "compute_default_rope_parameters", None)
    function: Any = getattr(module, "rope_init_fn", None) or ROPE_INIT_FUNCTIONS.get(rope_type, default)
    options = {"layer_type": layer_type} if layer_type else {}
    computed = []
    with torch.device("cpu"), suppress(*_CANNOT_COMPUTE):
        computed.append(getattr(type(module)(config=config), name))
    lengths = [None] if "original_" in name else _lengths(module, layer_type, rope_type)
    for length in lengths:
        with torch.device("cpu"), suppress(*_CANNOT_COMPUTE):
            computed.append(function(config, torch.device("cpu"), **({"seq_len": length} if length else {}), **options)[0])
    return [table.detach() for table in computed if table.shape == getattr(module, name).shape]


def _lengths(module: nn.Module, layer_type: str, rope_type: str | None) -> list[int | None]:
    """Rows whose tables a module may hold: as it was made, and where tables move with the rows, as the last ones left it."""
    if rope_type == "longrope":
        return [None, _LONGEST]
    prefix = f"{layer_type}_" if layer_type else ""
    seen = getattr(module, f"{prefix}max_seq_len_cached", None) or getattr(module, "max_seq_len_cached", None)
    return [None, int(seen)] if rope_type == "dynamic" and seen else [None]


def _tables_of_others(config: PreTrainedConfig, table: Tensor) -> list[Tensor]:
    """The tables that a module without a config may have: what the model's own gives, or any plain one, scaled or not."""
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    name: Any = stated.get("rope_type", stated.get("type"))
    function: Any = ROPE_INIT_FUNCTIONS.get(name)
    exponents = torch.arange(table.numel(), dtype=torch.float64).view_as(table)
    computed = [10_000.0 ** -(exponents / max(1, table.numel()))]
    with torch.device("cpu"), suppress(*_CANNOT_COMPUTE):
        computed.append(function(copy.deepcopy(config))[0].view_as(table))
    start, *others = table.flatten()[:2].double().tolist()
    factor = others[0] / start if others and start else 0.5
    if 0 < start <= 1 + _TOLERANCE and 0 < factor < 1:
        computed.append(start * factor**exponents)
    return computed


def _deviation(table: Tensor, wanted: Tensor) -> float:
    """Largest relative deviation. A table that was cast with its model is that of the config, cast: float16 rounds its smallest
    numbers by percents."""
    wanted, table = wanted.to(table.dtype).double(), table.double()
    off = (table - wanted).abs() / wanted.abs()
    off = torch.where(table == wanted, 0.0, off)  # zeros among them
    return off.max().item() if table.isfinite().all() else float("inf")


def _start_of(table: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in table.flatten()[:3].tolist())
