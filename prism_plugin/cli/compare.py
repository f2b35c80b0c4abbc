"""`prism-plugin compare`: tasks, adapters, presets, budgets and seeds from one file, as tables and a page."""

import argparse
import contextlib
import json
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from prism_plugin.cli.adapter_options import add_code_option
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.progress import comparison_progress
from prism_plugin.errors import ConfigurationError
from prism_plugin.evaluation.compare import BATCH_SIZE
from prism_plugin.evaluation.comparison import compare
from prism_plugin.evaluation.comparison_file import read_comparison
from prism_plugin.evaluation.comparison_files import seconds_of, to_json, write_files
from prism_plugin.modeling import PrismModel
from prism_plugin.report.comparison_page import comparison_page
from prism_plugin.report.comparison_tables import comparison_markdown, comparison_tables
from prism_plugin.writing import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="what is compared; docs/compare.md says what it holds")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the results, and of the runs to go on with"
    )
    parser.add_argument(
        "--presets",
        metavar="NAME,NAME",
        help="run only these of the file, and show the others where all their runs are there (default: run all)",
    )
    parser.add_argument("--limit", type=int, help="use only the first rows of each file, to try it")
    add_code_option(parser, whose="a backbone")
    add_device_options(parser, batch_size=BATCH_SIZE)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def run(args: argparse.Namespace) -> int:
    """Compare, write and print. Returns the exit code."""
    if args.limit is not None and args.limit < 1:
        raise ConfigurationError(f"`--limit` must be at least 1, got {args.limit}.")
    where = placement(args)
    presets = None if args.presets is None else [name.strip() for name in args.presets.split(",")]
    comparison = read_comparison(args.file, presets)
    with contextlib.redirect_stdout(sys.stderr), comparison_progress() as progress:  # whatever libraries print is no result
        results = compare(
            comparison,
            args.output,
            load=partial(PrismModel.from_pretrained, trust_remote_code=args.trust_remote_code, **where),
            batch_size=args.batch_size,
            progress=progress,
            limit=args.limit,
        )
    write_files(args.output, results)
    write_text(args.output / "tables.md", comparison_markdown(results))
    page = args.output / "index.html"
    write_text(page, comparison_page(results))
    if args.json:
        print(json.dumps({**to_json(results), "seconds": seconds_of(results), "output": str(args.output)}, default=str))
        return 0
    console = Console()
    for table in comparison_tables(results):
        console.print(table)
    console.print(f"Success against forwards, and all figures: {page.absolute()}", soft_wrap=True)
    return 0
