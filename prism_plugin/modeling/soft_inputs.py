"""Which backbones take soft tokens: embeddings in place of ids."""

import inspect

import torch

from prism_plugin.backbones.modes import evaluation_mode, kept_random_state
from prism_plugin.backbones.probe import plain_tokens, why_not_run
from prism_plugin.core.soft import SoftTokens
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling.headed import HeadedBackbone

_LENGTH, _TOLERANCE = 6, 1e-3


def require_soft_inputs(model: HeadedBackbone) -> None:
    """Check that a backbone reads embeddings as it reads the ids that they are of.

    Args:
        model: A backbone with a quality head.

    Raises:
        ConfigurationError: If it does not: its forward takes no `inputs_embeds`, or does something with ids besides.
    """
    backbone = model.plain_backbone
    name = type(backbone).__name__
    if "inputs_embeds" not in inspect.signature(backbone.forward).parameters:
        raise ConfigurationError(
            f"Soft tokens need a backbone whose forward takes `inputs_embeds`, but that of {name} does not; choose another "
            "objective, or another backbone."
        )
    if why_not_run(backbone) is not None:
        return  # no weights to try it with
    plain = plain_tokens(backbone.config, (model.mask_token_id,))
    ids = torch.tensor([[plain[place % len(plain)] for place in range(_LENGTH)]], device=model.device)
    ids[0, 1] = model.mask_token_id
    everywhere = torch.arange(_LENGTH, device=model.device)
    soft = SoftTokens(everywhere, ids.view(-1, 1), torch.ones(_LENGTH, 1, device=model.device))
    try:
        with evaluation_mode(model), torch.no_grad(), kept_random_state(model.device):
            by_ids, by_embeddings = (
                model(ids, logits_at=everywhere, with_quality=False, soft=one).logits.float() for one in (None, soft)
            )
    except BackboneError as error:
        raise ConfigurationError(f"Soft tokens need a backbone that reads embeddings, but {name} fails: {error}") from error
    finally:
        model.call_changes.put_back()
    apart = (by_ids - by_embeddings).abs().max() / by_ids.abs().max().clamp(min=1e-6)
    if not apart <= _TOLERANCE:
        raise ConfigurationError(
            f"Soft tokens need a backbone that reads embeddings as it reads their ids, but the logits of {name} differ by "
            f"{apart.item():.1%} between the two, so it does something with ids besides; choose another objective, or another "
            "backbone."
        )
