"""`prism-plugin VERB`: one file a verb; only the verb that was asked for is imported."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from prism_plugin import __version__
from prism_plugin.cli.verb import Call, ended, run_verb

_PROG = "prism-plugin"
VERBS = {
    "demo": "fine-tune a quality head on the shipped Sudoku backbone and compare samplers, in minutes",
    "train": "train a quality head by a recipe",
    "record": "keep what samplers' canvases hold on known rows, to train on",
    "sample": "fill masks, continue prompts or answer chats with a trained adapter",
    "score": "say of each token of a text how likely it is to be right",
    "export": "write a folder that transformers alone can sample with",
    "eval": "compare sampler presets on a task, or judge the quality head",
    "compare": "compare presets over tasks, adapters, budgets and seeds from one file",
    "doctor": "check a model before a quality head is attached, and estimate the memory of training it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0, or 2 after one sentence on stderr; others are told at `ended`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return ended(Call(_PROG), lambda call: _run(call, arguments))


def _run(call: Call, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=_PROG,
        description="Self-correction for masked diffusion language models.",
        epilog="\n".join(f"  {verb:<8}{text}" for verb, text in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("verb", choices=VERBS, help="what to do; `prism-plugin VERB --help` says more")
    verb = parser.parse_args(arguments[:1]).verb
    call.prog = f"{_PROG} {verb}"
    return run_verb(call, arguments[1:], lambda: importlib.import_module(f"prism_plugin.cli.{verb}"))


if __name__ == "__main__":
    sys.exit(main())
