"""Training: arguments, objectives, and the trainer."""

from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.corruptors import CORRUPTORS, Corruptor, Fill, Given, Plan, RandomTokens, Recorded, masked_batch
from prism_plugin.training.objective import Objective, StepOutput, TermOutput
from prism_plugin.training.own_tokens import LookBack, PredictAll, Remask
from prism_plugin.training.presets import get_objective, objective_to_dict, register_objective
from prism_plugin.training.soft_masks import SoftMasks
from prism_plugin.training.trainer import PrismTrainer

__all__ = [
    "CORRUPTORS",
    "Corruptor",
    "Fill",
    "Given",
    "LookBack",
    "Objective",
    "Plan",
    "PredictAll",
    "PrismTrainer",
    "PrismTrainingArguments",
    "RandomTokens",
    "Recorded",
    "Remask",
    "SoftMasks",
    "StepOutput",
    "TermOutput",
    "get_objective",
    "masked_batch",
    "objective_to_dict",
    "register_objective",
]
