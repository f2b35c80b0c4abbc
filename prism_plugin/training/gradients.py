"""Which trainable parameters get a gradient: those that get none are named, and several processes allow for them."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils import logging

from prism_plugin.backbones import evaluation_mode, kept_random_state, max_row_length
from prism_plugin.backbones.probe import plain_tokens, why_not_run
from prism_plugin.errors import ConfigurationError, PrismError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.checks import collator_of
from prism_plugin.training.objective import Objective

logger = logging.get_logger(__name__)

_LENGTH, _NAMED = 8, 3
_EPOCH = -2  # a key of the noise that neither training nor an evaluation uses


def allow_for_idle_parameters(
    model: PrismModel, objective: Objective, args: PrismTrainingArguments, accelerator: Accelerator
) -> None:
    """Say which trainable parameters get no gradient, and let DDP look for them where there are any. Collective.

    DDP waits for a gradient of every parameter, and stops at the second step where one never comes.

    Args:
        model: As it will be trained, not yet wrapped for several processes.
        objective: What is learnt.
        args: Says by `ddp_find_unused_parameters` whether DDP looks for them in any case, or never.
        accelerator: Its settings of DDP are changed.

    Raises:
        ConfigurationError: If `ddp_find_unused_parameters` is False, which several processes cannot do with such parameters.
    """
    idle = idle_parameters(model, objective, seed=args.seed)
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    what = f"No gradient of {objective.title} reaches {len(idle)} of {trainable} trainable parameters: {_listed(idle)}"
    # Experts that one process found idle at its few tokens may be busy at those of another.
    of_any = accelerator.reduce(torch.tensor(float(len(idle)), device=accelerator.device), reduction="sum").item() > 0
    with_ddp = accelerator.distributed_type.value.startswith("MULTI_")
    if of_any and with_ddp and args.ddp_find_unused_parameters is False:
        raise ConfigurationError(
            f"{what}; with several processes `ddp_find_unused_parameters` must not be False then, so leave it out."
        )
    if idle and accelerator.is_main_process:
        logger.warning(
            f"{what}, at a look at a few plain tokens. They stay as they are, unless others reach them, as they may experts."
        )
    if accelerator.ddp_handler is not None and args.ddp_find_unused_parameters is None:
        accelerator.ddp_handler.find_unused_parameters = of_any


def idle_parameters(model: PrismModel, objective: Objective, *, seed: int = 0) -> list[str]:
    """Names of the trainable parameters that the loss of a few plain tokens does not depend on.

    The loss is computed and not gone backward from: its graph says what it depends on. None are named where that cannot be
    found out: weights that are not there or are sharded, or an objective that wants other rows.

    Args:
        model: It is left as it was.
        objective: What is learnt.
        seed: Of the objective's noise.
    """
    if why_not_run(model.plain_backbone) is not None:
        return []
    try:
        with evaluation_mode(model), torch.enable_grad(), kept_random_state(model.device):
            loss = objective.step(model, _plain_batch(model, objective), epoch=_EPOCH, seed=seed, unwrapped=model).loss
    # What an objective or a corruptor of somebody may raise at rows that are not its own.
    except (PrismError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        logger.debug(f"Which parameters get a gradient could not be found out: {error}")
        return []
    finally:
        model.call_changes.put_back()
    reached = _leaves_of(loss)
    return [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in reached]


def _plain_batch(model: PrismModel, objective: Objective) -> dict[str, Tensor]:
    length = min(_LENGTH, max_row_length(model.plain_backbone) or _LENGTH)
    plain = plain_tokens(model.plain_backbone.config, (model.mask_token_id,))
    ids = [plain[index % len(plain)] for index in range(length)]
    row = {"input_ids": ids, "maskable": [False] + [True] * (length - 1)}
    if objective.reads_drafts:
        row["draft_ids"] = [*ids[:-2], ids[0], model.mask_token_id]
    batch = collator_of(model)([{**row, "example_id": index} for index in (0, 1)])
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _leaves_of(loss: Tensor) -> set[int]:
    """Ids of the parameters that a loss depends on."""
    found, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), nn.Parameter):
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
