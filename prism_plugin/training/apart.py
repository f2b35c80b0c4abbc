"""One look's graph at a time: how the first look goes backward before the second is made, under the engine that trains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer
from transformers.training_args import OptimizerNames

from prism_plugin.modeling.model import PrismModel
from prism_plugin.training.objective import Apart, Objective


def backward_apart(trainer: Trainer, model: nn.Module, prism_model: PrismModel, objective: Objective) -> Apart | None:
    """How the first look goes backward by itself; None where one backward of all looks has to do.

    Args:
        trainer: Scales losses by its accumulation steps, as it does the one that `compute_loss` returns.
        model: As it is trained, maybe wrapped for several processes.
        prism_model: The model inside.
        objective: Says which parameters get a gradient from the look at the draft.
    """
    args, accelerator = trainer.args, trainer.accelerator
    if not torch.is_grad_enabled() or args.n_gpu > 1 or accelerator.distributed_type == DistributedType.DEEPSPEED:
        return None  # DeepSpeed takes a step of its own at every backward, DataParallel gives one loss per device
    if args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        return None  # they update the weights in backward
    if isinstance(getattr(model, "_orig_mod", None), DistributedDataParallel):
        return None  # accelerate compiles around DDP, whose switch for sending gradients is then part of what was compiled

    def backward(loss: Tensor) -> None:
        accelerator.backward(loss / trainer.current_gradient_accumulation_steps)

    if not isinstance(model, DistributedDataParallel):
        return lambda: nullcontext(backward)
    # DDP waits in the last backward for a gradient of every parameter, which the second look has to give then; unless it looks
    # for those without one, and it takes note of those that the first look gave.
    modules: list[nn.Module] = [] if objective.reads_quality_of("draft") else [prism_model.quality_head]
    if not objective.reads_rows_of("draft"):
        final_hidden = prism_model.plain_backbone.get_submodule(prism_model.spec.final_hidden_at)
        modules += [final_hidden, prism_model.get_output_embeddings()]
    if not model.find_unused_parameters and any(one.requires_grad for module in modules for one in module.parameters()):
        return None

    @contextmanager
    def local() -> Iterator[Callable[[Tensor], None]]:
        with accelerator.no_sync(model):  # the second look's backward sends the sum of both
            yield backward

    return local


def keep_output_dtype(accelerator: Accelerator, prism_model: PrismModel) -> None:
    """Undo accelerate's conversion of what the model returns to float32, which would copy every row of logits.

    It wraps the model's forward together with autocast, which stays.
    """
    if vars(prism_model).pop("_original_forward", None) is None:
        return
    forward = type(prism_model).forward

    @wraps(forward)
    def under_autocast(model: PrismModel, *args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(model, *args, **kwargs)

    # A copy of the model has to call itself.
    prism_model.forward = MethodType(under_autocast, prism_model)  # type: ignore[method-assign]  # of this model alone
