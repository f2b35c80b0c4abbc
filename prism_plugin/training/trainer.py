"""`PrismTrainer`: transformers' Trainer with PRISM's two looks, two learning rates, and checkpoints of what we own."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import ExportableState

from prism_plugin.backbones import dropout_off, evaluation_mode
from prism_plugin.data import Origin, PrismCollator, RowStream
from prism_plugin.errors import SavingError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.places import save_into
from prism_plugin.training import checkpoints
from prism_plugin.training.alignment import AlignmentCheck
from prism_plugin.training.apart import backward_apart, keep_output_dtype
from prism_plugin.training.arguments import PrismTrainingArguments, as_prism_arguments
from prism_plugin.training.checks import (
    check_metric,
    check_together,
    collator_of,
    freeze_unread_head,
    require_prism_model,
    rows_per_step,
    take_tokenizer,
)
from prism_plugin.training.divergence import DivergenceCheck
from prism_plugin.training.given_rows import check_recorded, to_evaluate_on, to_train_on, wants_history
from prism_plugin.training.gradients import allow_for_idle_parameters
from prism_plugin.training.last_log import LogLastStep
from prism_plugin.training.meters import Meters, meters_of, metrics_of, predictions_of, ratios_of, with_more
from prism_plugin.training.objective import Objective, StepOutput
from prism_plugin.training.optimization import check_optimization, chosen_optimizer, parameter_groups
from prism_plugin.training.presets import as_objective, objective_to_dict
from prism_plugin.training.resuming import LOG_STATE_FILE, OnBegin, ResumingTrainer
from prism_plugin.training.row_order import EpochSampler
from prism_plugin.training.sharding import check_sharding, gather_trained, save_optimizer

EVALUATION_EPOCH = -1  # a key that training never uses, so that evaluation gives the same figure twice


class PrismTrainer(ResumingTrainer):
    """Train a quality head, and LoRA or the backbone with it; design and figures are in the README.

    Args:
        model: A backbone with a quality head.
        args: Training arguments, which must be given; transformers' own will do.
        objective: What is learnt, or its name, or a mapping as in a recipe; PRISM's when None.
        train_dataset: Prepared rows, or raw rows (a `datasets.Dataset`, a list of mappings or of texts, a DataFrame), which are
            then prepared with the default `DataSettings` and the model's tokenizer; or a stream of either.
        eval_dataset: The same, for evaluation, or a dict of several by name. A stream is read to its end.
        data_collator: `PrismCollator` with the model's pad id when None.
        compute_metrics: More figures of an evaluation, by name. It is given what ours are computed from: as predictions the
            quality logits and the losses by row and term, as labels the targets, negative where nothing is judged.
        processing_class: The tokenizer, where the model was attached without one.
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
        args: PrismTrainingArguments | TrainingArguments | None = None,
        *,
        objective: Objective | str | Mapping[str, Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: PrismCollator | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
    ) -> None:
        require_prism_model(model)
        args = as_prism_arguments(args)
        self.objective, self.more_metrics = as_objective(objective), compute_metrics
        check_together(model, self.objective, args)
        if compute_metrics is None:  # which may give the figure that is looked for
            check_metric(self.objective, args, eval_dataset if isinstance(eval_dataset, dict) else None)
        take_tokenizer(model, processing_class)
        self.prism_model = model
        freeze_unread_head(model, self.objective)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or collator_of(model),
            train_dataset=to_train_on(train_dataset, model, args, self.objective),
            eval_dataset=to_evaluate_on(eval_dataset, model, self.objective),
            compute_metrics=self._metrics,
            callbacks=[*(callbacks or []), OnBegin(self._restore_log_state), LogLastStep()],
            optimizers=optimizers,  # type: ignore[arg-type]  # it takes any scheduler, and names but LambdaLR
        )
        if self.is_fsdp_enabled:
            check_sharding(
                self.accelerator.state.fsdp_plugin,
                self.accelerator.mixed_precision,
                is_quantized=model.is_quantized,
                has_new_tokens=model.has_new_tokens,
            )
        model.prism_config = replace(model.prism_config, objective=objective_to_dict(self.objective))
        self.meters = Meters(meters_of(self.objective), self.args.device)
        self.divergence = DivergenceCheck(self)
        self.alignment = AlignmentCheck(self, model, wanted=self.args.check_alignment)

    def prepare_steps(self) -> None:
        """Say which trainable parameters get no gradient, and let DDP allow for them. Collective."""
        allow_for_idle_parameters(self.prism_model, self.objective, self.args, self.accelerator)

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
        self._check_batch(inputs)
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
        self._check_batch(inputs)
        keep_output_dtype(self.accelerator, self.prism_model)
        with evaluation_mode(model), torch.no_grad(), self.compute_loss_context_manager():
            output = self.objective.step(model, inputs, epoch=EVALUATION_EPOCH, seed=self.args.seed, unwrapped=self.prism_model)
        return (None, *predictions_of(self.objective, output, inputs["input_ids"].shape[0]))

    def _check_batch(self, inputs: dict[str, Any]) -> None:
        """Look at rows that were given later, or come from a loader of their own."""
        check_recorded(self.objective, inputs, Origin("batch"), with_history=wants_history(self.prism_model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Trainer asks for it at each step, before the optimizer does anything: here the host waits for the device."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.divergence.step(self._tr_loss, grad_norm, self.state.global_step + 1)
        return grad_norm

    def _metrics(self, evaluated: EvalPrediction) -> dict[str, float]:
        figures = metrics_of(self.objective, evaluated.predictions, evaluated.label_ids)
        self.divergence.evaluation(figures["loss"], self.state.global_step)
        return figures if self.more_metrics is None else with_more(figures, self.more_metrics(evaluated))

    # ---- rows and their order, and two learning rates ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the rows that the trainer has, or on others, which may be whatever `eval_dataset` of the trainer may be.

        Raises:
            DataFormatError: If they cannot be used.
            NonFiniteError: If the loss is NaN or infinite.
        """
        named = isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict) and eval_dataset in self.eval_dataset
        if not named:
            eval_dataset = to_evaluate_on(eval_dataset, self.prism_model, self.objective)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Load the rows of `predict`, which are prepared first if they are raw."""
        return super().get_test_dataloader(to_evaluate_on(test_dataset, self.prism_model, self.objective, "test_dataset"))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        given: Any = self.train_dataset if train_dataset is None else train_dataset
        rows = len(given)
        global_batch = rows_per_step(rows, self.args)
        return EpochSampler(rows, rows // global_batch * global_batch, self.args.data_seed, self._epoch)

    def _epoch(self) -> int:
        # The ids of a stream's rows count on, so that its rows get fresh noise without.
        return 0 if isinstance(self.train_dataset, RowStream) else math.floor(self.state.epoch or 0)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that `args` names, with the head's parameters in groups of their own, after the others."""
        if self.optimizer is None:
            opt_model = self.model if model is None else model
            chosen, settings = chosen_optimizer(self.args, opt_model, self.optimizer_cls_and_kwargs)
            # Trainer puts `params` in place of its own groups, as it does for GaLore.
            self.optimizer_cls_and_kwargs = (chosen, {**settings, "params": self._parameter_groups(opt_model)})
        return super().create_optimizer(model)

    def _parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(self.args, model, self.prism_model.quality_head, set(self.get_decay_parameter_names(model)))

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
        except BaseException as error:
            if self.args.should_save:
                shutil.rmtree(building, ignore_errors=True)
            if not isinstance(error, OSError | RuntimeError):  # torch.save reports a full disk as RuntimeError
                raise
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
