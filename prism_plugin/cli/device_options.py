"""Options of the verbs that load a model: the device it is put on, the dtype of its weights, and how many rows go at once."""

import argparse
from typing import Any

from prism_plugin.backbones import best_device, require_device
from prism_plugin.errors import ConfigurationError

DTYPES = ("float32", "bfloat16", "float16")


def add_device_options(parser: argparse.ArgumentParser, *, device: str = "auto", batch_size: int | None = None) -> None:
    """Declare the options.

    Args:
        parser: Of the verb.
        device: Default of `--device`.
        batch_size: Default of `--batch-size`; None: the verb has no batches.
    """
    parser.add_argument(
        "--device",
        default=device,
        help="auto (the accelerator of this machine, or else the CPU), cpu, cuda, cuda:1, mps, xpu, ... (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="of the backbone's weights (default: %(default)s, as saved)"
    )
    if batch_size is not None:
        parser.add_argument("--batch-size", type=int, default=batch_size, help="rows at once (default: %(default)s)")


def placement(args: argparse.Namespace) -> dict[str, Any]:
    """Check the options, and say what `PrismModel.from_pretrained` is told: `dtype` and `device_map`.

    Raises:
        ConfigurationError: If there is no such device, or a batch would have no row.
    """
    batch_size = getattr(args, "batch_size", None)
    if batch_size is not None and batch_size < 1:
        raise ConfigurationError(f"`--batch-size` must be at least 1, got {batch_size}.")
    device = best_device() if args.device == "auto" else args.device
    require_device(device, "--device")
    return {"dtype": args.dtype, "device_map": device}
