"""4-bit loading of a frozen backbone, by bitsandbytes."""

import importlib.util

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from prism_plugin.errors import BackboneError

QUANTIZATIONS = ("nf4",)


def check_kind(kind: str) -> None:
    """Refuse a kind of quantisation that is not known.

    Raises:
        BackboneError: If it is not one of `QUANTIZATIONS`.
    """
    if kind not in QUANTIZATIONS:
        raise BackboneError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)} or None, got {kind!r}.")


def can_quantize() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def quantization_config(kind: str, dtype: torch.dtype | str | None) -> BitsAndBytesConfig:
    """How transformers is told to quantise the linear layers of a backbone while it loads them.

    `nf4` is QLoRA's (arXiv 2305.14314): 4-bit NormalFloat with the block scales quantised too, 4.13 bits a weight. The LM head
    and the embeddings stay in `dtype`.

    Args:
        kind: One of `QUANTIZATIONS`.
        dtype: What the layers compute in, and the dtype of what is not quantised; None: bfloat16.

    Raises:
        BackboneError: If the kind is unknown, or bitsandbytes is not installed.
    """
    check_kind(kind)
    if not can_quantize():
        raise BackboneError(
            f"`quantization` {kind!r} needs the package bitsandbytes, which is not installed; install it with "
            '`pip install "prism-plugin[quantization]"`.'
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype in (None, "auto") else dtype,
    )


def packed_layers(model: nn.Module) -> list[str]:
    """Names of the 4-bit layers that bitsandbytes has packed for inference on the CPU, which let no gradient through."""
    states = {name: getattr(getattr(module, "weight", None), "quant_state", None) for name, module in model.named_modules()}
    return [name for name, state in states.items() if getattr(state, "packing_format_for_cpu", False)]
