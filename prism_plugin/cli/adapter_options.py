"""Options of the verbs that load a trained adapter: its folder, the backbone where that was moved, and its code."""

import argparse
from typing import Any

from prism_plugin.modeling import PrismModel


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--adapter", required=True, help="folder of a trained adapter, or its id on the Hub")
    parser.add_argument(
        "--backbone",
        metavar="DIR",
        help="folder or Hub id of the backbone that the adapter was trained on (default: where the adapter says that it is)",
    )
    add_code_option(parser)


def add_code_option(parser: argparse.ArgumentParser, whose: str = "the backbone") -> None:
    """Declare the option that lets a repository's code run; `whose` that is."""
    parser.add_argument("--trust-remote-code", action="store_true", help=f"let {whose}'s own Python code run")


def load_adapter(args: argparse.Namespace, where: dict[str, Any]) -> PrismModel:
    """Load the adapter with its backbone.

    Args:
        args: The options.
        where: What `placement` gave.

    Raises:
        PrismError: As `PrismModel.from_pretrained`.
    """
    return PrismModel.from_pretrained(args.adapter, args.backbone, trust_remote_code=args.trust_remote_code, **where)
