"""Training: arguments, objectives, and the trainer."""

from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.objectives import Objective, PrismObjective, get_objective, objective_to_dict
from prism_plugin.training.recorded import RecordedPrismObjective
from prism_plugin.training.trainer import PrismTrainer

__all__ = [
    "Objective",
    "PrismObjective",
    "PrismTrainer",
    "PrismTrainingArguments",
    "RecordedPrismObjective",
    "get_objective",
    "objective_to_dict",
]
