"""`prism-plugin sample`: continue prompts, or fill masks in place, with a trained adapter."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from prism_plugin.cli.sampler_options import add_sampler_options, build_sampler, chosen_settings
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler, SamplerOutput
from prism_plugin.sampling.prompts import read_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="prompts, or texts with mask tokens")
    parser.add_argument("--adapter", required=True, help="folder of a trained adapter")
    parser.add_argument("--file", type=Path, help="read the texts from this file, one a line")
    parser.add_argument(
        "--max-new-tokens", type=int, help="continue each text by this many tokens; without it, its mask tokens are filled"
    )
    add_sampler_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the sampler's draws (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the backbone's own Python code run")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the figures of each text")


def run(args: argparse.Namespace) -> int:
    """Sample and print. Returns the exit code."""
    texts, settings = _texts(args), chosen_settings(args)
    model = PrismModel.from_pretrained(args.adapter, trust_remote_code=args.trust_remote_code)
    sampler = build_sampler(args, model, settings)
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
