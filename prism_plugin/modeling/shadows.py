"""Which backbones take shadows: positions and a mask of pairs."""

import torch

from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.backbones.probe import plain_tokens, takes_positions, why_not_run
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.windows import require_far_sight

_LENGTH, _PLACE, _TOLERANCE = 6, 2, 1e-3


def require_shadows(model: HeadedBackbone) -> None:
    """Check that no token of a backbone sees a shadow, and that a mask and its shadow, which see the same, are the same.

    Args:
        model: A backbone with a quality head.

    Raises:
        ConfigurationError: If they are not: its forward takes no positions or no mask of pairs, or reads them in another way.
    """
    backbone = model.plain_backbone
    name = type(backbone).__name__
    if not takes_positions(backbone) or model.spec.attention_mask == "none":
        raise ConfigurationError(
            f"A look with shadows needs a backbone whose forward takes `position_ids` and an attention mask, but that of "
            f"{name} does not; choose another look, or another backbone."
        )
    if model.spec.logits_alignment != "same_position":
        raise ConfigurationError(
            f"A look with shadows reads a mask's logits at the mask, but {name} gives them one position before; choose another "
            "look, or another backbone."
        )
    require_far_sight(model, "shadows")
    if why_not_run(backbone) is not None:
        return  # no weights to try it with
    plain = plain_tokens(backbone.config, (model.mask_token_id,))
    ids = torch.tensor([[plain[place % len(plain)] for place in range(_LENGTH)]], device=model.device)
    ids[0, _PLACE] = model.mask_token_id
    everywhere = torch.arange(_LENGTH + 1, device=model.device)
    shadows = torch.tensor([[_PLACE]], device=model.device)
    try:
        with evaluation_mode(model), torch.no_grad():
            without = model(ids, logits_at=everywhere[:-1], with_quality=False).logits.float()
            beside = model(ids, logits_at=everywhere, with_quality=False, shadows=shadows).logits.float()
    except BackboneError as error:
        raise ConfigurationError(f"A look with shadows needs a mask of pairs, but {name} fails: {error}") from error
    finally:
        model.call_changes.put_back()
    apart = (torch.cat((without, without[_PLACE : _PLACE + 1])) - beside).abs().max() / without.abs().max().clamp(min=1e-6)
    if not apart <= _TOLERANCE:
        raise ConfigurationError(
            f"A look with shadows needs a backbone in which no token sees them, but the logits of {name} differ by "
            f"{apart.item():.1%} beside one; choose another look, or another backbone."
        )
