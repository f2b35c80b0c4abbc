"""Options of the verbs that take a sampler: the adapter's own, or a preset with settings."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel
from prism_plugin.parsing_yaml import parse_yaml
from prism_plugin.reader import naming
from prism_plugin.sampling import PRESETS, SAMPLER_CONFIG_NAME, RemaskingSampler, SamplerSettings
from prism_plugin.sampling.presets import preset_settings


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose a sampler."""
    parser.add_argument("--preset", help=f"{', '.join(PRESETS)} (default: the adapter's own {SAMPLER_CONFIG_NAME})")
    parser.add_argument("--num-steps", type=int, help="forward passes at most; with --preset only, and then needed")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the preset, such as num_remask=2"
    )


def chosen_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """Read the settings of the preset that was asked for, before anything is loaded; None without a preset.

    Raises:
        ConfigurationError: If settings are given without a preset, a preset without a budget, or one is out of range.
        UnknownNameError: If no preset has that name.
        UnknownKeyError: If the preset has no such setting.
    """
    if args.preset is None:
        if args.num_steps is not None or args.set:
            raise ConfigurationError(
                f"`--num-steps` and `--set` go with `--preset`; the adapter's {SAMPLER_CONFIG_NAME} has its own."
            )
        return None
    if args.num_steps is None:
        raise ConfigurationError("`--preset` needs `--num-steps`, the forward passes that it may use.")
    chosen = preset_settings(args.preset, read_pairs(args.set))
    budget = SamplerSettings(num_steps=args.num_steps)
    with naming("--set"):
        replace(budget, **chosen)  # what is out of range is found here
    return chosen


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings as `--set` takes them, each `NAME=VALUE`.

    Raises:
        ConfigurationError: If one has another form, or comes twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"`--set` takes NAME=VALUE, found {pair!r}.")
        if name in settings:
            raise ConfigurationError(f"`--set` takes each setting once, found {name!r} twice; leave one of them out.")
        settings[name] = parse_yaml(value, f"--set {name}")
    return settings


def build_sampler(args: argparse.Namespace, model: PrismModel, settings: dict[str, Any] | None) -> RemaskingSampler:
    """Make the sampler that was chosen, or read the adapter's own.

    Raises:
        ConfigurationError: If none was chosen and the adapter has none.
    """
    if settings is not None:
        return RemaskingSampler(model, num_steps=args.num_steps, **settings)
    if not (Path(args.adapter) / SAMPLER_CONFIG_NAME).exists():
        raise ConfigurationError(
            f"{args.adapter} has no {SAMPLER_CONFIG_NAME}, as fresh from training; choose a sampler with "
            "`--preset NAME --num-steps N`."
        )
    return RemaskingSampler.from_pretrained(args.adapter, model)
