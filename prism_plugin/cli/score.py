"""`prism-plugin score`: how likely each token of a text is to be right, as a table, as JSON, or in colours."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from rich.console import Console

from prism_plugin.cli.adapter_options import add_adapter_options, load_adapter
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.progress import counting_progress
from prism_plugin.cli.show import shows_styles
from prism_plugin.cli.texts import add_text_options, given_texts, require_tokenizer
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling import PrismModel, ScoredTokens
from prism_plugin.modeling.texts import rows_to_score
from prism_plugin.reader import naming
from prism_plugin.report.pieces import token_pieces
from prism_plugin.report.scores import (
    ScoredToken,
    plain_legend,
    plain_scores,
    scores_table,
    styled_legend,
    styled_scores,
)
from prism_plugin.report.trace import DOUBT_BELOW
from prism_plugin.sampling.batches import batches_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_text_options(parser, texts_are="texts to rate")
    add_adapter_options(parser)
    parser.add_argument(
        "--doubt-below",
        type=float,
        default=DOUBT_BELOW,
        metavar="QUALITY",
        help="mark the tokens whose quality is below this; `eval quality --precision` finds one (default: %(default)s)",
    )
    add_device_options(parser, batch_size=32)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--text", action="store_true", help="print the texts in colours, or with marks where there are none")
    how.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def run(args: argparse.Namespace) -> int:
    """Rate and print. Returns the exit code."""
    if not 0 <= args.doubt_below <= 1:
        raise ConfigurationError(f"`--doubt-below` must be a quality in [0, 1], got {args.doubt_below}.")
    given, where = given_texts(args), placement(args)
    model = load_adapter(args, where)
    require_tokenizer(model, args)
    texts = given.asking()
    rated = iter(_rated(args, model, texts))
    rows = [[] if given.is_blank(line) else next(rated) for line in given.lines]  # answers stay beside what they answer
    if args.json:
        print(json.dumps(_plain(args, given.lines, rows)))
    elif args.text:
        _print_texts(args, rows)
    else:
        console = Console()
        for place, tokens in zip(texts, (row for row in rows if row), strict=True):
            console.print(scores_table(tokens, title=f"{place}: {texts[place][:60]}"))
    return 0


def _rated(args: argparse.Namespace, model: PrismModel, texts: dict[str, str]) -> list[list[ScoredToken]]:
    lengths = []
    for place, text in texts.items():  # what cannot be rated is found before anything is
        with naming(place):
            lengths.append(rows_to_score(model, [text], None)[0].shape[1])
    all_texts = list(texts.values())
    rated: list[list[ScoredToken]] = [[] for _ in all_texts]
    batches = batches_of(model, range(len(lengths)), lengths, args.batch_size)
    with ExitStack() as stack:
        note = stack.enter_context(counting_progress("rating", len(batches), "batches")) if len(batches) > 1 else None
        for rows in batches:
            scored = model.score([all_texts[row] for row in rows], batch_size=len(rows), return_tokens=True)
            for index, row in enumerate(rows):
                rated[row] = _tokens(model, scored, index, args.doubt_below)
            if note is not None:
                note()
    return rated


def _tokens(model: PrismModel, scored: ScoredTokens, row: int, doubt_below: float) -> list[ScoredToken]:
    """A row's own tokens."""
    ids, own, rates = (part[row].tolist() for part in (scored.input_ids, scored.attention_mask, scored.quality))
    pieces, names = token_pieces(model.tokenizer, ids), model.tokenizer.convert_ids_to_tokens(ids)
    offsets = [None] * len(ids) if scored.offsets is None else scored.offsets[row]
    tokens = []
    for token_id, name, place, quality, is_own in zip(ids, names, offsets, rates, own, strict=True):
        start, end = (None, None) if place is None else place
        rated = None if token_id == model.mask_token_id else quality
        doubted = rated is not None and rated < doubt_below
        if is_own:
            tokens.append(ScoredToken(token_id, name, pieces[token_id], start, end, rated, doubted))
    return tokens


def _plain(args: argparse.Namespace, lines: Sequence[str], rows: Sequence[Sequence[ScoredToken]]) -> dict[str, Any]:
    told = [
        {"text": line, "tokens": [{name: value for name, value in asdict(one).items() if name != "piece"} for one in tokens]}
        for line, tokens in zip(lines, rows, strict=True)
    ]
    return {"rows": told, "doubt_below": args.doubt_below}


def _print_texts(args: argparse.Namespace, rows: Sequence[Sequence[ScoredToken]]) -> None:
    """One text a line; what the colours and the marks mean goes to stderr, beside what can be piped."""
    console = Console()
    if shows_styles(console):
        for tokens in rows:
            console.print(styled_scores(tokens), soft_wrap=True)
        Console(stderr=True).print(styled_legend(args.doubt_below))
    else:
        print("\n".join(map(plain_scores, rows)))
        print(f"marks: {plain_legend(args.doubt_below)}", file=sys.stderr)
