"""`PrismTrainer`: transformers' Trainer with PRISM's two looks, two learning rates, and checkpoints of what we own."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput

from prism_plugin.backbones import dropout_off, evaluation_mode
from prism_plugin.core.float64 import to_float64
from prism_plugin.data import PrismCollator
from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.modeling.places import save_into
from prism_plugin.parsing import parse_json
from prism_plugin.training import checkpoints
from prism_plugin.training.alignment import AlignmentCheck
from prism_plugin.training.apart import backward_apart, keep_output_dtype
from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.checks import (
    as_prepared,
    check_optimization,
    check_recorded,
    check_together,
    chosen_optimizer,
    collator_of,
    freeze_unread_head,
    rows_per_step,
)
from prism_plugin.training.divergence import DivergenceCheck
from prism_plugin.training.meters import Meters, meters_of, metrics_of, predictions_of, ratios_of
from prism_plugin.training.objective import Objective, StepOutput
from prism_plugin.training.presets import get_objective, objective_to_dict
from prism_plugin.training.resuming import OnBegin, sum_of_logged
from prism_plugin.training.row_order import EpochSampler
from prism_plugin.training.run_folder import RunFolderTrainer
from prism_plugin.training.sharding import check_sharding, gather_trained, save_optimizer

EVALUATION_EPOCH = -1  # a key that training never uses, so that evaluation gives the same figure twice
LOG_STATE_FILE = "log_state.json"


class PrismTrainer(RunFolderTrainer):
    """Train a quality head, and LoRA or the backbone with it; design and figures are in the README.

    Args:
        model: A backbone with a quality head.
        args: Training arguments.
        objective: What is learnt; PRISM's when None.
        train_dataset: Prepared rows, or raw rows (a `datasets.Dataset` or a list of mappings), which are then prepared with
            the default `DataSettings` and the model's tokenizer.
        eval_dataset: The same, for evaluation.
        data_collator: `PrismCollator` with the model's pad id when None.
        callbacks: Trainer callbacks.
        optimizers: Optimizer and scheduler, instead of those that `args` describe.

    Raises:
        ConfigurationError: If objective, model and arguments cannot go together.
        DataFormatError: If a data set cannot be used.
    """

    args: PrismTrainingArguments
    objective: Objective

    # The loss is a mean over the rows of one micro-batch: Trainer has to divide by the accumulation steps, and cannot guess.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PrismModel,
        args: PrismTrainingArguments,
        *,
        objective: Objective | None = None,
        train_dataset: Dataset | datasets.Dataset | Sequence[Mapping[str, Any]] | None = None,
        eval_dataset: Dataset | datasets.Dataset | Sequence[Mapping[str, Any]] | None = None,
        data_collator: PrismCollator | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
    ) -> None:
        self.objective = objective or get_objective("prism")
        check_together(model, self.objective, args)
        self.prism_model = model
        freeze_unread_head(model, self.objective)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or collator_of(model),
            train_dataset=as_prepared(train_dataset, model, "train_dataset", self.objective),
            eval_dataset=as_prepared(eval_dataset, model, "eval_dataset", self.objective),
            compute_metrics=self._metrics,
            callbacks=[*(callbacks or []), OnBegin(self._restore_log_state)],
            optimizers=optimizers,  # type: ignore[arg-type]  # it takes any scheduler, and names but LambdaLR
        )
        if self.is_fsdp_enabled:
            check_sharding(
                self.accelerator.state.fsdp_plugin, self.accelerator.mixed_precision, is_quantized=model.is_quantized
            )
        model.prism_config = replace(model.prism_config, objective=objective_to_dict(self.objective))
        self.meters = Meters(meters_of(self.objective), self.args.device)
        self.divergence = DivergenceCheck(self)
        self.alignment = AlignmentCheck(self, model, wanted=args.check_alignment)
        self.resumed_from: Path | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from a checkpoint folder if one is given, or from the last whole one in `output_dir` if True.

        Raises:
            ConfigurationError: If there is no checkpoint to resume from, another process trains in `output_dir`, or it is not
                apart from what the model was read from.
            SavingError: If `output_dir` holds files of others that saving there would cost.
            NonFiniteError: If the loss, a gradient, a weight or the loss of an evaluation is no longer finite.
            BackboneError: If the first batch shows that logits are about another position than the model's spec says.
        """
        if resume_from_checkpoint is True:
            self.resumed_from = checkpoints.last_checkpoint(Path(self.args.output_dir))
            if self.resumed_from is None:
                raise ConfigurationError(
                    f"Resuming needs a whole checkpoint in {self.args.output_dir}, found none; start afresh."
                )
        else:
            self.resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self.resumed_from is None:
            return super().train(None, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        finished = self._finished_state(self.resumed_from)
        if finished is None:
            return super().train(str(self.resumed_from), trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        best = finished.best_model_checkpoint and self.args.load_best_model_at_end
        from_here = checkpoints.best_checkpoint(finished, self.resumed_from.parent) if best else self.resumed_from
        load_weights(self.prism_model, from_here)
        self.state = finished
        return TrainOutput(finished.global_step, float("nan"), {})

    def check_trainable(self) -> None:
        """Raise now what `train` would raise of too few rows, the optimizer or its schedule; nothing is kept of what is built.

        Raises:
            ConfigurationError: If the rows do not fill a step, or the optimizer or the schedule cannot be used.
            ImportError: If the optimizer needs a package that is not installed.
        """
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        with_schedule = self.lr_scheduler is None
        if self.optimizer is not None:
            return check_optimization(self.args, lambda: self.optimizer, max_steps, with_schedule=with_schedule)
        chosen, settings = chosen_optimizer(self.args, self.model, self.optimizer_cls_and_kwargs)
        groups = self._parameter_groups(self.model)
        return check_optimization(self.args, lambda: chosen(groups, **settings), max_steps, with_schedule=with_schedule)

    def _finished_state(self, checkpoint: Path) -> TrainerState | None:
        """The state of a checkpoint that has nothing left to train; Trainer would take one step too many from it."""
        with checkpoints.reading(checkpoint):
            state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE_FILE))
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return state if state.global_step >= max_steps else None

    # ---- stations 7 to 11: two looks ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, forward and backward."""
        if not self.args.activation_checkpointing:
            return super().training_step(model, inputs, num_items_in_batch)
        # Checkpointed layers run again in backward, when the first look's own context is gone; with dropout back on, they
        # would not be the layers that were run. So dropout is off for the whole step.
        with dropout_off(self.prism_model):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, StepOutput]:
        """Two looks; the first goes backward before the second is made, where it can. The meters take note."""
        keep_output_dtype(self.accelerator, self.prism_model)
        apart = backward_apart(self, model, self.prism_model, self.objective)
        check_recorded(self.objective, inputs, "batch")  # rows that are given later, or by a loader of their own
        self.alignment.first_batch(inputs)
        output = self.objective.step(
            model, inputs, epoch=self._epoch(), seed=self.args.seed, unwrapped=self.prism_model, apart=apart
        )
        self.meters.add(ratios_of(self.objective, output))
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Any, Tensor]:
        """Judge the model's own drafts of a batch, the same ones at every evaluation.

        Returns:
            No loss, since it follows from the rest; and what `predictions_of` gives.
        """
        inputs = self._prepare_inputs(inputs)
        check_recorded(self.objective, inputs, "batch")
        keep_output_dtype(self.accelerator, self.prism_model)
        with evaluation_mode(model), torch.no_grad(), self.compute_loss_context_manager():
            output = self.objective.step(model, inputs, epoch=EVALUATION_EPOCH, seed=self.args.seed, unwrapped=self.prism_model)
        return (None, *predictions_of(self.objective, output, inputs["input_ids"].shape[0]))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Trainer asks for it at each step, before the optimizer does anything: here the host waits for the device."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.divergence.step(self._tr_loss, grad_norm, self.state.global_step + 1)
        return grad_norm

    def _metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        figures = metrics_of(self.objective, evaluated.predictions, evaluated.label_ids)
        self.divergence.evaluation(figures["loss"], self.state.global_step)
        return figures

    # ---- the order of rows, and two learning rates ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        given: Any = self.train_dataset if train_dataset is None else train_dataset
        rows = len(given)
        global_batch = rows_per_step(rows, self.args)
        return EpochSampler(rows, rows // global_batch * global_batch, self.args.data_seed, self._epoch)

    def _epoch(self) -> int:
        return math.floor(self.state.epoch or 0)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that `args` names, with the head's parameters in groups of their own, after the others."""
        if self.optimizer is None:
            opt_model = self.model if model is None else model
            chosen, settings = chosen_optimizer(self.args, opt_model, self.optimizer_cls_and_kwargs)
            # Trainer puts `params` in place of its own groups, as it does for GaLore.
            self.optimizer_cls_and_kwargs = (chosen, {**settings, "params": self._parameter_groups(opt_model)})
        return super().create_optimizer(model)

    def _parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        decayed = set(self.get_decay_parameter_names(model))
        head = {id(parameter) for parameter in self.prism_model.quality_head.parameters()}
        head_rate = self.args.head_learning_rate or self.args.learning_rate
        groups = []
        for of_head, rate in ((False, self.args.learning_rate), (True, head_rate)):
            for decay in (True, False):
                members = [
                    parameter
                    for name, parameter in model.named_parameters()
                    if parameter.requires_grad and (id(parameter) in head) == of_head and (name in decayed) == decay
                ]
                weight_decay = self.args.weight_decay if decay else 0.0
                if members:
                    groups.append({"params": members, "lr": rate, "weight_decay": weight_decay})
        return groups

    # ---- station 13: report ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the meters and the head's learning rate to what Trainer logs. Collective: every rank calls it."""
        if "loss" in logs:
            logs = {**logs, **self.meters.read(self.accelerator)}
            if self.objective.reads_quality:
                logs["head_learning_rate"] = self._head_learning_rate
        super().log(logs, start_time)

    def _get_learning_rate(self) -> float:
        # Trainer asks once per step, before the scheduler moves on: the head's rate of the same step is taken here.
        self._head_learning_rate = float(self.optimizer.param_groups[-1]["lr"])
        return super()._get_learning_rate()

    # ---- station 14: save and resume ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what we own into a folder. Collective.

        Raises:
            NonFiniteError: If a weight is NaN or infinite; nothing is written then.
            SavingError: If the files cannot be written.
        """
        self.divergence.weights(self.prism_model, self.state.global_step)
        if not self.is_fsdp_enabled:
            return super().save_model(output_dir, _internal_call)
        # Trainer writes nothing for sharded weights, or gathers the frozen backbone too.
        self._save(output_dir, gather_trained(self.model))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        return None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # Trainer would write the whole backbone, and its arguments as a pickle.
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            of_run = directory.resolve().is_relative_to(Path(self.args.output_dir).resolve())
            began = self.state.global_step > 0  # and looked at its folder then
            known = self.prism_model.card_facts
            save_into(self.prism_model, directory, known=known, state_dict=state_dict, checked=of_run and began)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Build a checkpoint beside, and give it its name when it is whole. Collective."""
        run_dir, name = Path(self._get_output_dir(trial=trial)), f"checkpoint-{self.state.global_step}"
        building = str(checkpoints.building_folder(run_dir, name))
        self.divergence.weights(self.prism_model, self.state.global_step)
        self.store_flos()
        log_state = self._log_state()
        try:
            if self.args.should_save:
                checkpoints.start_building(run_dir, name)
            self.accelerator.wait_for_everyone()
            self.save_model(building, _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(building)
                self._save_scaler(building)
                self._save_rng_state(building)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._note_best(run_dir)
                self._note_callbacks()
                (Path(building) / LOG_STATE_FILE).write_text(json.dumps(log_state), encoding="utf-8")
                self.state.save_to_json(str(Path(building) / checkpoints.STATE_FILE))
                checkpoints.finish_building(run_dir, name)
                steps = {"newest": self.state.global_step, "best": self.state.best_global_step}
                checkpoints.remove_oldest(run_dir, self.args.save_total_limit, **steps)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            if self.args.should_save:
                shutil.rmtree(building, ignore_errors=True)
            cause = str(error.__cause__ if isinstance(error, SavingError) else error).split("\n")[0]
            raise SavingError(
                f"{run_dir / name} could not be written ({cause}), and older checkpoints are unchanged; make room or choose "
                "another `output_dir`."
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))

    def _note_best(self, run_dir: Path) -> None:
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (self.state.best_global_step == self.state.global_step or best.exists()):
            self.state.best_model_checkpoint = str(best)

    def _note_callbacks(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states: Any = self.state.stateful_callbacks  # declared as the list that it is made of
                states[type(callback).__name__] = callback.state()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        save_optimizer(self.accelerator, self.model, self.optimizer, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        return None

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
