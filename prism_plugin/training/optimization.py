"""The optimizer: which one, its groups of parameters with two learning rates, and whether it can be built."""

from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory

from prism_plugin.errors import ConfigurationError
from prism_plugin.training.arguments import PrismTrainingArguments


def chosen_optimizer(
    args: PrismTrainingArguments, model: nn.Module, given: tuple[type[Optimizer], dict[str, Any]] | None = None
) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer's class and settings: those that were given, or those that the arguments name.

    Raises:
        ConfigurationError: If it would choose its own groups of parameters.
        ImportError: If it needs a package that is not installed.
    """
    chosen, settings = given or Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]  # any module
    if is_optimizer_factory(chosen) or {"params", "model", "optimizer_dict"} & set(settings):
        raise ConfigurationError(
            f"`optim: {args.optim.value}` chooses its own parameter groups, so the head cannot have its learning rate; use "
            "another, such as adamw_torch."
        )
    return chosen, settings


def check_optimization(
    args: PrismTrainingArguments, make_optimizer: Callable[[], Optimizer], num_steps: int, *, with_schedule: bool = True
) -> None:
    """Build the optimizer and the schedule of the learning rate, and keep neither.

    Raises:
        ConfigurationError: If one of them cannot be built.
    """
    try:
        optimizer = make_optimizer()
        if with_schedule:
            get_scheduler(
                args.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=args.get_warmup_steps(num_steps),
                num_training_steps=num_steps,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]  # a dict once Trainer read it
            )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"`optim: {args.optim.value}` with `lr_scheduler_type: {args.lr_scheduler_type.value}` cannot be used as it is "
            f"set: {error}"
        ) from error


def parameter_groups(
    args: PrismTrainingArguments, model: nn.Module, head: nn.Module, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """The groups of what is trained, those of the head after the others.

    Args:
        args: Has the learning rates and the weight decay.
        model: As it is trained, maybe wrapped.
        head: The quality head in it.
        decayed: Names of the parameters that weight decay applies to.
    """
    of_head = {id(parameter) for parameter in head.parameters()}
    groups = []
    for is_head, rate in ((False, args.learning_rate), (True, args.head_learning_rate or args.learning_rate)):
        for decay in (True, False):
            members = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and (id(parameter) in of_head) == is_head and (name in decayed) == decay
            ]
            weight_decay = args.weight_decay if decay else 0.0
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": weight_decay})
    return groups
