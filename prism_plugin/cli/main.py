"""`prism-plugin VERB`: one file a verb; only the verb that was asked for is imported."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from prism_plugin import __version__
from prism_plugin.cli.errors import explain_os_error, explain_out_of_memory
from prism_plugin.cli.plug_ins import HELP, OPTION, import_modules
from prism_plugin.errors import PrismError

VERBS = {
    "demo": "fine-tune a quality head on the shipped Sudoku backbone and compare samplers, in minutes",
    "train": "train a quality head by a recipe",
    "sample": "fill masks or continue prompts with a trained adapter",
    "export": "write a folder that transformers alone can sample with",
    "eval": "compare sampler presets on a task, or judge the quality head",
    "compare": "compare presets over tasks, adapters, budgets and seeds from one file",
    "doctor": "check a model before a quality head is attached, and estimate the memory of training it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code: 0, or 2 after one sentence on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="prism-plugin",
        description="Self-correction for masked diffusion language models.",
        epilog="\n".join(f"  {verb:<8}{text}" for verb, text in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("verb", choices=VERBS, help="what to do; `prism-plugin VERB --help` says more")
    verb = parser.parse_args(arguments[:1]).verb
    try:
        of_user = import_modules(arguments[1:])  # before the verb lists what is known
        module = importlib.import_module(f"prism_plugin.cli.{verb}")
        about = str(module.__doc__).split("\n")[0]
        # a part of `--import` would not import anything
        of_verb = argparse.ArgumentParser(prog=f"prism-plugin {verb}", description=about, allow_abbrev=False)
        module.add_arguments(of_verb)
        of_verb.add_argument(OPTION, metavar="MODULE", help=HELP)
        parsed = of_verb.parse_args(of_user)
    except PrismError as error:
        print(f"prism-plugin {verb}: {error}", file=sys.stderr)
        return 2
    try:
        return module.run(parsed)
    except PrismError as error:
        print(f"prism-plugin {verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        explained = explain_os_error(error)
        if explained is None:
            raise
        print(f"prism-plugin {verb}: {explained}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        explained = explain_out_of_memory(error, parsed)
        if explained is None:
            raise
        print(f"prism-plugin {verb}: {explained}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
