"""Calls the verb `train` in this process."""

from prism_plugin.cli import main as cli


def run(recipe, *options):
    return cli.main(["train", "--recipe", str(recipe), *map(str, options)])
