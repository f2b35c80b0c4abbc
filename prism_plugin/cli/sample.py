"""`prism-plugin sample`: continue prompts, or fill masks in place, with a trained adapter."""

import argparse
import json
from pathlib import Path

import torch

from prism_plugin.backbones import pad_rows
from prism_plugin.cli.adapter_options import add_adapter_options, load_adapter
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.filling import fill_in_batches
from prism_plugin.cli.sampler_options import add_sampler_options, build_sampler, chosen_settings
from prism_plugin.cli.show import Show, add_show_options, check_show_options
from prism_plugin.core.validation import require_seed
from prism_plugin.data import read_lines
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling.places import require_other_file
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.canvas import require_new_tokens
from prism_plugin.sampling.prompts import lay_prompts
from prism_plugin.tokenizing import encode

# The answer to a blank line.
_NOTHING = {"text": "", "answer": "", "num_forward_passes": 0, "num_remasked": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="prompts, or texts with mask tokens")
    add_adapter_options(parser)
    parser.add_argument(
        "--file", type=Path, help="read the texts from this file, one a line; a blank line is answered by a blank one"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="continue each text by this many tokens; without it, its mask tokens are filled"
    )
    parser.add_argument(
        "--min-new-tokens", type=int, help="draw no end of text among the first so many new tokens, or masks, of a text"
    )
    add_sampler_options(parser)
    add_device_options(parser, batch_size=32)
    parser.add_argument("--seed", type=int, default=0, help="of the sampler's draws (default: %(default)s)")
    add_show_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object with the figures of each text")


def run(args: argparse.Namespace) -> int:
    """Sample and print. Returns the exit code."""
    lines, settings = _lines(args), chosen_settings(args)
    texts = [line for line in lines if not _is_blank(args, line)]
    require_seed(args.seed, "--seed")
    if args.max_new_tokens is not None:
        require_new_tokens(args.max_new_tokens, args.min_new_tokens)
    check_show_options(args)
    if args.report is not None:
        require_other_file(args.report, {"the file of the texts": args.file})
    model = load_adapter(args, placement(args))
    sampler = build_sampler(args, model, settings)
    if model.tokenizer is None:
        raise SamplingError(f"`sample` needs a tokenizer, found none with {args.adapter}; use the library on token ids.")
    input_ids, attention_mask, starts = _lay(args, sampler, texts)
    show = Show(args, sampler, texts, attention_mask)
    how = {"min_new_tokens": args.min_new_tokens, "batch_size": args.batch_size, "seed": args.seed}
    output = fill_in_batches(sampler, input_ids, attention_mask, **how, show=show)
    if starts is None:
        new = [row[own].tolist() for row, own in zip(output.sequences, attention_mask, strict=True)]
    else:
        placed = zip(output.sequences.tolist(), starts, strict=True)
        new = [row[start : start + args.max_new_tokens] for row, start in placed]
    answers = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    figures = zip(texts, answers, output.num_forward_passes.tolist(), output.num_remasked.tolist(), strict=True)
    rows = [
        {"text": text, "answer": answer, "num_forward_passes": passes, "num_remasked": remasked}
        for text, answer, passes, remasked in figures
    ]
    show.report()
    told = iter(rows)  # answers stay beside what they answer
    rows = [{**_NOTHING, "text": line} if _is_blank(args, line) else next(told) for line in lines]
    print(json.dumps({"rows": rows, "sampler": sampler.to_dict()}) if args.json else "\n".join(row["answer"] for row in rows))
    return 0


def _is_blank(args: argparse.Namespace, line: str) -> bool:
    """Whether a line of the file asks for nothing. A text on the command line always asks for something."""
    return args.file is not None and not line.strip()


def _lines(args: argparse.Namespace) -> list[str]:
    if bool(args.texts) == (args.file is not None):
        raise ConfigurationError("`sample` takes texts on the command line or `--file`; give one of the two.")
    if args.file is None:
        return args.texts
    lines = read_lines(args.file)
    if all(_is_blank(args, line) for line in lines):
        raise ConfigurationError(f"{args.file} holds no text; write one a line.")
    return lines


def _lay(
    args: argparse.Namespace, sampler: RemaskingSampler, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor, list[int] | None]:
    """Token ids with masks to fill, their attention mask, and where new tokens start; None where masks were in the texts."""
    tokenizer, mask_token_id = sampler.model.tokenizer, sampler.model.mask_token_id
    rows = [encode(tokenizer, text, SamplingError)["input_ids"] for text in texts]
    holds_mask, mask_token = any(mask_token_id in row for row in rows), tokenizer.convert_ids_to_tokens(mask_token_id)
    if args.max_new_tokens is not None:
        if holds_mask:
            raise SamplingError(
                f"a text that is continued must not hold the mask token, {mask_token!r}, found it in one; leave "
                "`--max-new-tokens` out to fill masks in place."
            )
        laid = lay_prompts(
            tokenizer,
            texts,
            max_new_tokens=args.max_new_tokens,
            mask_token_id=mask_token_id,
            pad_token_id=sampler.fill_id,
        )
        return laid.input_ids, laid.attention_mask, laid.starts
    if not holds_mask:
        raise SamplingError(
            f"a text must hold the mask token, {mask_token!r}, where something is to be filled, found it in none; write it, or "
            "give `--max-new-tokens` to continue the texts."
        )
    return *pad_rows(rows, sampler.fill_id), None
