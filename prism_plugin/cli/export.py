"""`prism-plugin export`: a folder that transformers loads and samples with where prism_plugin is not installed."""

import argparse
import json
from pathlib import Path

from prism_plugin.cli.adapter_options import add_adapter_options, load_adapter
from prism_plugin.cli.device_options import add_device_options, placement
from prism_plugin.cli.sampler_options import add_sampler_options, build_sampler, chosen_settings
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.hub import require_hub
from prism_plugin.modeling.places import require_apart
from prism_plugin.sampling import export_sampler, push_export_to_hub
from prism_plugin.sampling.export import require_free_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add_adapter_options(parser)
    parser.add_argument("--output", type=Path, help="folder to write, empty or not there")
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="upload to this repository on the Hub, instead of --output")
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: a new repository is private")
    add_sampler_options(parser)
    parser.add_argument(
        "--no-merge", action="store_true", help="leave the backbone to be loaded by its Hub id, and its adapter to peft"
    )
    # Merging takes a moment and a second copy of the weights; on the CPU it gives the same files everywhere.
    add_device_options(parser, device="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the files that were written")


def run(args: argparse.Namespace) -> int:
    """Export and print where. Returns the exit code."""
    if (args.output is None) == (args.push_to_hub is None):
        raise ConfigurationError("`export` writes to `--output DIR` or to `--push-to-hub REPO_ID`; give one of the two.")
    if args.private and args.push_to_hub is None:
        raise ConfigurationError("`--private` would be ignored without `--push-to-hub`; leave it out.")
    if args.no_merge and args.dtype != "auto":
        raise ConfigurationError(
            "`--dtype` is of the weights that are written, and `--no-merge` writes none; leave one of them out."
        )
    settings, placed = chosen_settings(args), placement(args)
    if args.push_to_hub is not None:
        require_hub(args.push_to_hub)
    else:
        require_apart(args.output, {"the adapter": args.adapter, "the backbone": args.backbone}, "`--output`")
        require_free_folder(args.output)
    model = load_adapter(args, placed)
    sampler = build_sampler(args, model, settings)
    if args.push_to_hub is not None:
        where = push_export_to_hub(sampler, args.push_to_hub, merge=not args.no_merge, private=True if args.private else None)
        print(json.dumps({"commit": where, "sampler": sampler.to_dict()}) if args.json else where)
        return 0
    export_sampler(sampler, args.output, merge=not args.no_merge)
    files = sorted(str(path.relative_to(args.output)) for path in args.output.rglob("*") if path.is_file())
    result = {"output": str(args.output), "files": files, "sampler": sampler.to_dict()}
    print(json.dumps(result) if args.json else f"{args.output}: {', '.join(files)}; README.md says how to run it")
    return 0
