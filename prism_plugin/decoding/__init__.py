"""The loop in which the model writes tokens, below training and sampling: state, looks, features, deciders."""

from prism_plugin.decoding.cached import CachedLook
from prism_plugin.decoding.chance import Chance, GeneratorChance, Generators
from prism_plugin.decoding.corrected import CorrectedLook
from prism_plugin.decoding.critic import CriticLook
from prism_plugin.decoding.decide import Separate
from prism_plugin.decoding.features import FEATURES, Feature
from prism_plugin.decoding.guided import GuidedLook
from prism_plugin.decoding.left_out import LeftOutLook
from prism_plugin.decoding.looks import LOOKS, Look, PlainLook, Recalled, Seen, Want
from prism_plugin.decoding.loop import Loop, Step
from prism_plugin.decoding.policy import PolicyUnmasking, UnmaskingPolicy, gumbel, log_probability
from prism_plugin.decoding.refined import BlockRefiner, CausalChecker, RefinedLook
from prism_plugin.decoding.safety import Safety
from prism_plugin.decoding.shadow import ShadowLook
from prism_plugin.decoding.soft_look import SoftLook
from prism_plugin.decoding.state import Canvas, State

__all__ = [
    "FEATURES",
    "LOOKS",
    "BlockRefiner",
    "CachedLook",
    "Canvas",
    "CausalChecker",
    "Chance",
    "CorrectedLook",
    "CriticLook",
    "Feature",
    "GeneratorChance",
    "Generators",
    "GuidedLook",
    "LeftOutLook",
    "Look",
    "Loop",
    "PlainLook",
    "PolicyUnmasking",
    "Recalled",
    "RefinedLook",
    "Safety",
    "Seen",
    "Separate",
    "ShadowLook",
    "SoftLook",
    "State",
    "Step",
    "UnmaskingPolicy",
    "Want",
    "gumbel",
    "log_probability",
]
