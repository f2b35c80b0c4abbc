"""Going on with what was measured: Trainer starts its running sums afresh whenever `train` begins."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback


def sum_of_logged(log_history: Sequence[Mapping[str, float]]) -> float:
    """The sum of the losses of all steps up to the last log. Each log tells the mean of the steps since the one before."""
    total = last = 0.0
    for log in log_history:
        if "loss" in log:
            total += log["loss"] * (log["step"] - last)
            last = log["step"]
    return total


class OnBegin(TrainerCallback):
    """Calls a function at the first event after Trainer has emptied its sums."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self.restore = restore

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()
