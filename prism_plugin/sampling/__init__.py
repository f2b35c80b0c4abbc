"""Sampling: lay the canvas, look, take back, reveal, until nothing is masked."""

from prism_plugin.sampling.export import export_sampler, push_export_to_hub
from prism_plugin.sampling.filling import SamplerOutput
from prism_plugin.sampling.particles import ParticleOutput
from prism_plugin.sampling.presets import PRESETS, Preset, get_preset
from prism_plugin.sampling.records import StepRecord
from prism_plugin.sampling.sampler import RemaskingSampler
from prism_plugin.sampling.settings import SamplerSettings
from prism_plugin.sampling.settings_files import SAMPLER_CONFIG_NAME
from prism_plugin.sampling.trajectories import BestOfN, PartialRefinement, ParticleGibbs, SelfRewardingSMC

__all__ = [
    "PRESETS",
    "SAMPLER_CONFIG_NAME",
    "BestOfN",
    "PartialRefinement",
    "ParticleGibbs",
    "ParticleOutput",
    "Preset",
    "RemaskingSampler",
    "SamplerOutput",
    "SamplerSettings",
    "SelfRewardingSMC",
    "StepRecord",
    "export_sampler",
    "get_preset",
    "push_export_to_hub",
]
