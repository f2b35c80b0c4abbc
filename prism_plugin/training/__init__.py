"""Training: arguments, objectives, and the trainer."""

from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.corruptors import CORRUPTORS, Corruptor, Fill, Plan, Recorded
from prism_plugin.training.objective import Objective, StepOutput, TermOutput
from prism_plugin.training.presets import get_objective, objective_to_dict, register_objective
from prism_plugin.training.trainer import PrismTrainer

__all__ = [
    "CORRUPTORS",
    "Corruptor",
    "Fill",
    "Objective",
    "Plan",
    "PrismTrainer",
    "PrismTrainingArguments",
    "Recorded",
    "StepOutput",
    "TermOutput",
    "get_objective",
    "objective_to_dict",
    "register_objective",
]
