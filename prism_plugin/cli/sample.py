"""`prism-plugin sample`: continue prompts, answer chats, or fill masks in place, with a trained adapter."""

import argparse
import json
from typing import Any

import torch

from prism_plugin.backbones import pad_rows
from prism_plugin.cli.adapter_options import add_adapter_options, load_adapter
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.filling import Runs, fill_in_batches, rated
from prism_plugin.cli.sampler_options import add_sampler_options, build_sampler, chosen_settings
from prism_plugin.cli.show import Show, add_show_options, check_show_options
from prism_plugin.cli.texts import add_text_options, given_texts, require_tokenizer
from prism_plugin.core.validation import require_seed
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling.places import require_other_file
from prism_plugin.parsing import parse_json
from prism_plugin.reader import naming
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.sampling.canvas import require_new_tokens
from prism_plugin.sampling.prompts import lay_prompts
from prism_plugin.tokenizing import encode, require_chat

# The answer to a blank line.
_NOTHING = {"answer": "", "token_ids": [], "quality": [], "num_forward_passes": 0, "num_positions": 0, "num_remasked": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_text_options(parser, texts_are="prompts, or texts with mask tokens")
    add_adapter_options(parser)
    parser.add_argument(
        "--chats", action="store_true", help="the texts are chats to answer: each a JSON list of messages, in one line"
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
    parser.add_argument("--json", action="store_true", help="print one JSON object with tokens and figures of each text")


def run(args: argparse.Namespace) -> int:
    """Sample and print. Returns the exit code."""
    _check(args)
    given, settings = given_texts(args), chosen_settings(args)
    prompts = [_chat(line, place) if args.chats else line for place, line in given.asking().items()]
    if args.report is not None:
        require_other_file(args.report, {"the file of the texts": given.file})
    model = load_adapter(args, placement(args))
    sampler = build_sampler(args, model, settings)
    tokenizer = require_tokenizer(model, args)
    input_ids, attention_mask, starts = _lay(args, sampler, prompts)
    show = Show(args, sampler, [_named(prompt) for prompt in prompts], attention_mask)
    how = {"min_new_tokens": args.min_new_tokens, "batch_size": args.batch_size, "seed": args.seed}
    output = fill_in_batches(sampler, input_ids, attention_mask, **how, show=show)
    if starts is None:
        own = [mask.nonzero().squeeze(-1) for mask in attention_mask]
    else:
        own = [torch.arange(start, start + args.max_new_tokens) for start in starts]
    new = [row[where].tolist() for row, where in zip(output.sequences, own, strict=True)]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    show.report()
    if not args.json:
        told = iter(answers)  # answers stay beside what they answer
        print("\n".join("" if given.is_blank(line) else next(told) for line in given.lines))
        return 0
    quality = rated(model, output.sequences, attention_mask, batch_size=args.batch_size)
    rates = [row[where].tolist() for row, where in zip(quality, own, strict=True)]
    counts = (one.tolist() for one in (output.num_forward_passes, output.num_positions, output.num_remasked))
    figures = zip(answers, new, rates, *counts, strict=True)
    asked = ({"messages": prompt} if args.chats else {"text": prompt} for prompt in prompts)
    runs = [_runs(output.runs.get(row), where, tokenizer) for row, where in enumerate(own)]
    several = [{} if sampler.trajectory is None else {"runs": one} for one in runs]
    found = (
        {**one, **dict(zip(_NOTHING, row, strict=True)), **more} for one, row, more in zip(asked, figures, several, strict=True)
    )
    nothing = _NOTHING if sampler.trajectory is None else {**_NOTHING, "runs": []}
    rows = [{"text": line, **nothing} if given.is_blank(line) else next(found) for line in given.lines]
    print(json.dumps({"rows": rows, "sampler": sampler.to_dict()}))
    return 0


def _runs(runs: Runs | None, where: torch.Tensor, tokenizer: Any) -> list[dict[str, Any]]:
    """Every run of a text, of which one was kept."""
    if runs is None:
        return []
    new = runs.sequences[:, where].tolist()
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    told = zip(answers, new, runs.scores, strict=True)
    return [
        {"answer": answer, "token_ids": ids, "score": score, "kept": number == runs.kept}
        for number, (answer, ids, score) in enumerate(told)
    ]


def stopped(_: argparse.Namespace) -> str:
    """Say how to go on after Ctrl-C."""
    return "stopped; nothing was printed or written, and the same command with the same `--seed` gives the same texts."


def _check(args: argparse.Namespace) -> None:
    require_seed(args.seed, "--seed")
    check_show_options(args)
    if args.max_new_tokens is not None:
        require_new_tokens(args.max_new_tokens, args.min_new_tokens)
    elif args.chats:
        raise ConfigurationError("`--chats` are answered, not filled in place; give `--max-new-tokens` too.")


def _chat(line: str, place: str) -> list[dict[str, Any]]:
    """A line with a chat: its messages, or an object that holds them as rows of training data do."""
    try:
        chat = parse_json(line)
    except ValueError as error:
        raise SamplingError(f"{place} must be a chat, a JSON list of messages, but is no JSON: {error}.") from error
    if isinstance(chat, dict) and set(chat) == {"messages"}:
        chat = chat["messages"]
    with naming(place):
        messages = require_chat(chat, "messages", SamplingError)
        if not messages:
            raise SamplingError("a chat must hold a message that can be answered, found none.")
        return messages


def _named(prompt: str | list[dict[str, Any]]) -> str:
    """What a text is called where it is shown: a chat by its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _lay(
    args: argparse.Namespace, sampler: RemaskingSampler, prompts: list[Any]
) -> tuple[torch.Tensor, torch.Tensor, list[int] | None]:
    """Token ids with masks to fill, their attention mask, and where new tokens start; None where masks were in the texts."""
    tokenizer, mask_token_id = sampler.model.tokenizer, sampler.model.mask_token_id
    rows = [] if args.chats else [encode(tokenizer, text, SamplingError)["input_ids"] for text in prompts]
    holds_mask, mask_token = any(mask_token_id in row for row in rows), tokenizer.convert_ids_to_tokens(mask_token_id)
    if args.max_new_tokens is not None:
        if holds_mask:
            raise SamplingError(
                f"a text that is continued must not hold the mask token, {mask_token!r}, found it in one; leave "
                "`--max-new-tokens` out to fill masks in place."
            )
        laid = lay_prompts(
            tokenizer,
            prompts,
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
