"""Self-correction for pretrained masked diffusion language models: a per-token quality head and remasking samplers.

The names below are imported when they are first used, so that `import prism_plugin` costs nothing and a command that only
prints its help does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_plugin.backbones import BackboneSpec, get_backbone_spec, load_backbone, register_backbone
    from prism_plugin.core import mask_tokens, prism_loss
    from prism_plugin.data import PrismCollator
    from prism_plugin.errors import PrismError
    from prism_plugin.modeling import PrismConfig, PrismModel, PrismModelOutput, ScoredTokens, attach_quality_head
    from prism_plugin.sampling import RemaskingSampler, SamplerOutput, export_sampler
    from prism_plugin.training import Objective, PrismTrainer, PrismTrainingArguments, get_objective

__version__ = "0.1.0"

__all__ = [
    "BackboneSpec",
    "Objective",
    "PrismCollator",
    "PrismConfig",
    "PrismError",
    "PrismModel",
    "PrismModelOutput",
    "PrismTrainer",
    "PrismTrainingArguments",
    "RemaskingSampler",
    "SamplerOutput",
    "ScoredTokens",
    "attach_quality_head",
    "export_sampler",
    "get_backbone_spec",
    "get_objective",
    "load_backbone",
    "mask_tokens",
    "prism_loss",
    "register_backbone",
]

_HOME = {
    "BackboneSpec": "backbones",
    "Objective": "training",
    "PrismCollator": "data",
    "PrismConfig": "modeling",
    "PrismError": "errors",
    "PrismModel": "modeling",
    "PrismModelOutput": "modeling",
    "PrismTrainer": "training",
    "PrismTrainingArguments": "training",
    "RemaskingSampler": "sampling",
    "SamplerOutput": "sampling",
    "ScoredTokens": "modeling",
    "attach_quality_head": "modeling",
    "export_sampler": "sampling",
    "get_backbone_spec": "backbones",
    "get_objective": "training",
    "load_backbone": "backbones",
    "mask_tokens": "core",
    "prism_loss": "core",
    "register_backbone": "backbones",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
