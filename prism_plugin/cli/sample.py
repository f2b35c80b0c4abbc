"""`prism-plugin sample`: continue prompts, or fill masks in place, with a trained adapter."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from prism_plugin.cli.recipe import parse_yaml
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import PRESETS, SAMPLER_CONFIG_NAME, RemaskingSampler, SamplerOutput
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.sampling.sampler import read_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="prompts, or texts with mask tokens")
    parser.add_argument("--adapter", required=True, help="folder of a trained adapter")
    parser.add_argument("--file", type=Path, help="read the texts from this file, one a line")
    parser.add_argument(
        "--max-new-tokens", type=int, help="continue each text by this many tokens; without it, its mask tokens are filled"
    )
    parser.add_argument("--preset", help=f"{', '.join(PRESETS)} (default: the adapter's own {SAMPLER_CONFIG_NAME})")
    parser.add_argument("--num-steps", type=int, help="forward passes at most; with --preset only, and then needed")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the preset, such as num_remask=2"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampler's draws (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the backbone's own Python code run")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the figures of each text")


def run(args: argparse.Namespace) -> int:
    """Sample and print. Returns the exit code."""
    texts, settings = _texts(args), _settings(args)
    model = PrismModel.from_pretrained(args.adapter, trust_remote_code=args.trust_remote_code)
    sampler = _sampler(args, model, settings)
    if model.tokenizer is None:
        raise SamplingError(f"`sample` needs a tokenizer, found none with {args.adapter}; use the library on token ids.")
    generators = [torch.Generator().manual_seed(args.seed * 1_000_003 + row) for row in range(len(texts))]
    if args.max_new_tokens is not None:
        answers = sampler.generate(texts, max_new_tokens=args.max_new_tokens, generator=generators)
        rows: list[dict[str, Any]] = [{"text": text, "answer": answer} for text, answer in zip(texts, answers, strict=True)]
    else:
        rows = _infill(sampler, texts, generators)
    print(json.dumps({"rows": rows, "sampler": sampler.to_dict()}) if args.json else "\n".join(row["answer"] for row in rows))
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    if bool(args.texts) == (args.file is not None):
        raise ConfigurationError("`sample` takes texts on the command line or `--file`; give one of the two.")
    if args.file is None:
        return args.texts
    try:
        lines = args.file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{args.file} cannot be read: {error}") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise ConfigurationError(f"{args.file} holds no text; write one a line.")
    return texts


def _settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """Settings of the preset that was asked for, checked before anything is loaded; None without a preset."""
    if args.preset is None:
        if args.num_steps is not None or args.set:
            raise ConfigurationError(
                f"`--num-steps` and `--set` go with `--preset`; the adapter's {SAMPLER_CONFIG_NAME} has its own."
            )
        return None
    if args.num_steps is None:
        raise ConfigurationError("`--preset` needs `--num-steps`, the forward passes that it may use.")
    settings = {}
    for pair in args.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"`--set` takes NAME=VALUE, found {pair!r}.")
        settings[name] = parse_yaml(value, f"--set {name}")
    return preset_settings(args.preset, settings)


def _sampler(args: argparse.Namespace, model: PrismModel, settings: dict[str, Any] | None) -> RemaskingSampler:
    if settings is not None:
        return RemaskingSampler(model, num_steps=args.num_steps, **settings)
    if not (Path(args.adapter) / SAMPLER_CONFIG_NAME).exists():
        raise ConfigurationError(
            f"{args.adapter} has no {SAMPLER_CONFIG_NAME}, as fresh from training; choose a sampler with "
            "`--preset NAME --num-steps N`."
        )
    return RemaskingSampler.from_pretrained(args.adapter, model)


def _infill(sampler: RemaskingSampler, texts: list[str], generators: list[torch.Generator]) -> list[dict[str, Any]]:
    tokenizer = sampler.model.tokenizer
    for text in texts:
        read_text(tokenizer, text)  # one by one, so that the error names the text
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    output: SamplerOutput = sampler.infill(encoded["input_ids"], encoded["attention_mask"], generator=generators)
    answers = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    figures = zip(texts, answers, output.num_forward_passes.tolist(), output.num_remasked.tolist(), strict=True)
    return [
        {"text": text, "answer": answer, "num_forward_passes": passes, "num_remasked": remasked}
        for text, answer, passes, remasked in figures
    ]
