"""The loop in which the model writes tokens, below training and sampling: state, looks, features, deciders."""

from prism_plugin.decoding.chance import Chance, GeneratorChance, Generators
from prism_plugin.decoding.decide import Separate
from prism_plugin.decoding.features import FEATURES, Feature
from prism_plugin.decoding.looks import Look, PlainLook, Recalled, Seen, Want
from prism_plugin.decoding.loop import Loop, Step
from prism_plugin.decoding.state import Canvas, State

__all__ = [
    "FEATURES",
    "Canvas",
    "Chance",
    "Feature",
    "GeneratorChance",
    "Generators",
    "Look",
    "Loop",
    "PlainLook",
    "Recalled",
    "Seen",
    "Separate",
    "State",
    "Step",
    "Want",
]
