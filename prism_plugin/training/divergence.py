"""Stops a run whose numbers are no longer finite, before they reach the weights, a checkpoint or the result.

The loss since the last log and the norm of the gradients are there anyway, and one of them is NaN or infinite as soon as a
number behind them is. Both are read once per optimizer step, before the step is taken. Several processes add up what they
found, so that all of them stop together.
"""

import math
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from prism_plugin.core.finite import first_not_finite
from prism_plugin.errors import NonFiniteError
from prism_plugin.training.checkpoints import last_checkpoint

# Under fp16 a step whose gradients overflow is skipped, and their scale halved: from 2**16 down to 1/16. What still overflows
# then is no matter of the scale.
MAX_SKIPPED_STEPS = 20


class DivergenceCheck:
    """What the trainer asks at each step, evaluation and save.

    Args:
        trainer: Its accelerator is asked, and its checkpoints are named.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skipped = 0

    def step(self, loss: Tensor, grad_norm: Tensor | float | None, number: int) -> None:
        """Look at a step before the optimizer takes it. Collective: every process calls it.

        Args:
            loss: Sum of the losses since the last log, with those of this step.
            grad_norm: Of the step's gradients; not looked at under DeepSpeed, which has taken the step already.
            number: Of the step, from 1.

        Raises:
            NonFiniteError: If the loss is not finite on a process, or the gradients are not; under fp16, where the scaler skips
                such a step, if more than `MAX_SKIPPED_STEPS` are to be skipped in a row.
        """
        looked_at, taken = [loss.detach()], self.trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
        if not taken:
            norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else torch.as_tensor(grad_norm)
            looked_at.append(norm.detach().to(loss))
        wrong = self._on_any_process(~torch.stack(looked_at).isfinite())
        if wrong[0]:
            self._stop(f"the loss of step {number} is NaN or infinite{'' if taken else ', so the step was not taken'}")
        self.skipped = self.skipped + 1 if any(wrong) else 0
        if self.trainer.accelerator.scaler is None and self.skipped:
            self._stop(f"a gradient of step {number} is NaN or infinite, so the step was not taken")
        if self.skipped > MAX_SKIPPED_STEPS:
            self._stop(f"a gradient was NaN or infinite at each of the {self.skipped} steps up to {number}, whatever its scale")

    def evaluation(self, loss: float, number: int) -> None:
        """Look at the loss of an evaluation, which is the same on every process.

        Raises:
            NonFiniteError: If it is NaN or infinite.
        """
        if not math.isfinite(loss):
            self._stop(f"the evaluation after step {number} gives a loss of {loss}")

    def weights(self, model: nn.Module, number: int) -> None:
        """Look at what is trained, after a step and before it is saved or handed on. Collective: every process calls it.

        Raises:
            NonFiniteError: If a weight is NaN or infinite.
        """
        name = first_not_finite({name: one for name, one in model.named_parameters() if one.requires_grad})
        if any(self._on_any_process(torch.tensor([name is not None], device=self.trainer.args.device))):
            self._stop(f"after step {number} {f'`{name}`' if name else 'a weight'} is NaN or infinite, and is not saved")

    def _on_any_process(self, wrong: Tensor) -> list[bool]:
        return [count > 0 for count in self.trainer.accelerator.reduce(wrong.float(), reduction="sum").tolist()]

    def _stop(self, what: str) -> None:
        last = last_checkpoint(Path(self.trainer.args.output_dir))
        kept = "no checkpoint was written before" if last is None else f"the last whole checkpoint is {last}"
        raise NonFiniteError(
            f"Training diverged: {what}; {kept}; lower `learning_rate`, set `max_grad_norm` above 0, or look for data that the "
            "model cannot read."
        )
