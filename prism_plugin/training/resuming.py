"""Going on from a checkpoint: with the weights, steps and order of before, and with what was measured since the last log.

Trainer starts its running sums afresh whenever `train` begins, and they are put back here.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from prism_plugin.core.float64 import to_float64
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.parsing import parse_json
from prism_plugin.training import checkpoints
from prism_plugin.training.divergence import DivergenceCheck
from prism_plugin.training.meters import Meters
from prism_plugin.training.run_folder import RunFolderTrainer

LOG_STATE_FILE = "log_state.json"


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


class ResumingTrainer(RunFolderTrainer):
    """A Trainer whose resumed run is the one that was not interrupted. It is given an `OnBegin` of `_restore_log_state`.

    Attributes:
        resumed_from: The checkpoint that the run goes on from; None: it began afresh.
    """

    meters: Meters
    divergence: DivergenceCheck
    resumed_from: Path | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from a checkpoint folder if one is given, or from the last whole one in `output_dir` if True.

        Raises:
            ConfigurationError: If there is no checkpoint to resume from, or it is of a later step than the run has; if another
                process trains in `output_dir`, or it is not apart from what the model was read from.
            SavingError: If `output_dir` holds files of others that saving there would cost.
            NonFiniteError: If the loss, a gradient, a weight or the loss of an evaluation is no longer finite.
        """
        if resume_from_checkpoint is True:
            self.resumed_from = checkpoints.last_checkpoint(Path(self.args.output_dir))
            if self.resumed_from is None:
                raise ConfigurationError(
                    f"Resuming needs a whole checkpoint in {self.args.output_dir}, found none; start afresh."
                )
        else:
            self.resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        finished = None if self.resumed_from is None else self._finished_state(self.resumed_from)
        if self.resumed_from is None or finished is None:
            self.prepare_steps()
            checkpoint = None if self.resumed_from is None else str(self.resumed_from)
            return super().train(checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        best = finished.best_model_checkpoint and self.args.load_best_model_at_end
        from_here = checkpoints.best_checkpoint(finished, self.resumed_from.parent) if best else self.resumed_from
        load_weights(self.prism_model, from_here)
        self.state = finished
        return TrainOutput(finished.global_step, float("nan"), {})

    def prepare_steps(self) -> None:
        """Called before the first step, where there is one left."""

    def _finished_state(self, checkpoint: Path) -> TrainerState | None:
        """The state of a checkpoint that has nothing left to train; Trainer would take one step too many from it."""
        with checkpoints.reading(checkpoint):
            state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE_FILE))
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if state.global_step > max_steps:
            raise ConfigurationError(
                f"{checkpoint} is of step {state.global_step}, but the run is to end after {max_steps}; raise `max_steps`, or "
                "start over."
            )
        return state if state.global_step == max_steps else None

    def _init_training_state(self, max_steps: int, *args: Any) -> tuple[int, int]:
        where = super()._init_training_state(max_steps, *args)
        # Trainer goes on with the intervals of the checkpoint, whatever the arguments say by now.
        self.state.compute_steps(self.args, max_steps)
        return where

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.prism_model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        load_weights(self.prism_model, checkpoints.best_checkpoint(self.state, Path(self.args.output_dir)))

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self.divergence.weights(self.prism_model, self.state.global_step)
        # Trainer divides the sum of the losses by the steps since it was resumed, and here it holds those before them too.
        since_resumed = (self.state.global_step - self._initial_global_step) / max(self.state.global_step, 1)
        self._total_loss_scalar *= since_resumed
        self._tr_loss *= since_resumed
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _log_state(self) -> dict[str, Any]:
        """What was measured since the last log, so that a resumed run logs what an uninterrupted one does. Collective."""
        loss = self.accelerator.reduce(to_float64(self._tr_loss.detach()), reduction="mean").item()
        return {"loss": loss, "logged_at": self._globalstep_last_logged, "meters": self.meters.state(self.accelerator)}

    def _restore_log_state(self) -> None:
        """Go on measuring where the checkpoint was made, if there is one."""
        if self.resumed_from is None:
            return
        with checkpoints.reading(self.resumed_from):
            state = parse_json((self.resumed_from / LOG_STATE_FILE).read_text(encoding="utf-8"))
        self._tr_loss += state["loss"]
        self._globalstep_last_logged = state["logged_at"]
        self._total_loss_scalar = sum_of_logged(self.state.log_history)
        if self.accelerator.is_main_process:
            self.meters.restore(state["meters"])
