"""A run says how it went at its end, however short it was."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy


class LogLastStep(TrainerCallback):
    """Logs the last step, or a run of fewer steps than `logging_steps` would tell none of its losses."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop and args.logging_strategy == IntervalStrategy.STEPS:
            control.should_log = True
