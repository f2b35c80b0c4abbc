"""Calls the verb `train` in this process."""

import argparse

from prism_plugin.cli import train


def run(recipe, *options):
    parser = argparse.ArgumentParser(prog="prism-plugin train")
    train.add_arguments(parser)
    return train.run(parser.parse_args(["--recipe", str(recipe), *map(str, options)]))
