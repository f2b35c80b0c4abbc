"""Which backbones compute a window of a canvas as they compute the whole."""

import torch

from prism_plugin.backbones.key_values import KeyValues, Window
from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.backbones.probe import plain_tokens, sees_at_most, takes_positions, why_not_run
from prism_plugin.errors import BackboneError, ConfigurationError
from prism_plugin.modeling.headed import HeadedBackbone

_LENGTH, _TOLERANCE = 8, 1e-3
# Not contiguous, and another number in each row.
_WINDOWS = ((2, 3, 5), (1, 6))


def require_far_sight(model: HeadedBackbone, what: str) -> None:
    """Check that every layer of a backbone sees the whole row: what masks pairs itself would let it see more than it does.

    Raises:
        ConfigurationError: If some layer does not.
    """
    reach = sees_at_most(model.plain_backbone.config)
    if reach is not None:
        raise ConfigurationError(
            f"A look with {what} needs a backbone whose layers all see the whole row, but some of {model.spec.model_type} see "
            f"{reach} positions; choose another look, or another backbone."
        )


def require_windows(model: HeadedBackbone) -> None:
    """Check that a backbone computes a window of a canvas as it computes the whole.

    Args:
        model: A backbone with a quality head.

    Raises:
        ConfigurationError: If it does not: its attention does not come to `scaled_dot_product_attention`, sees only what is
            near, or it takes no positions.
    """
    backbone = model.plain_backbone
    name = type(backbone).__name__
    if not takes_positions(backbone) and model.spec.rotary_method is None:
        raise ConfigurationError(
            f"A look with a cache needs a backbone that can be told positions, but the forward of {name} takes no "
            "`position_ids`; choose another look, or another backbone."
        )
    require_far_sight(model, "a cache")
    if why_not_run(backbone) is not None:
        return  # no weights to try it with
    plain = plain_tokens(backbone.config, (model.mask_token_id,))
    ids = torch.tensor([[plain[(row + place) % len(plain)] for place in range(_LENGTH)] for row in range(2)])
    ids, widest = ids.to(model.device), max(map(len, _WINDOWS))
    mask = None
    if model.spec.attention_mask != "none":
        mask = torch.ones_like(ids)
        mask[1, -1] = 0
    outside = [[one for one in range(_LENGTH) if one not in places] for places in _WINDOWS]
    columns = [[*places, *rest][:widest] for places, rest in zip(_WINDOWS, outside, strict=True)]
    own = [[number < len(places) for number in range(widest)] for places in _WINDOWS]
    kept = KeyValues(2, _LENGTH)
    window = Window(kept, None, torch.tensor(columns).to(ids.device), torch.tensor(own).to(ids.device))
    wanted = torch.tensor([row * _LENGTH + one for row, places in enumerate(_WINDOWS) for one in places], device=ids.device)
    if model.spec.logits_alignment == "next_token":  # a row of logits is read one position before
        wanted += 1
    try:
        with evaluation_mode(model), torch.no_grad():
            as_it_is = model(ids, mask, logits_at=wanted, with_quality=False).logits.float()
            whole = model(ids, mask, logits_at=wanted, with_quality=False, window=Window(kept)).logits.float()
            part = model(ids, mask, logits_at=wanted, with_quality=False, window=window).logits.float()
    except BackboneError as error:
        raise ConfigurationError(f"A look with a cache cannot be made of {name}: {error}") from error
    finally:
        model.call_changes.put_back()
    apart = torch.stack((as_it_is - whole, as_it_is - part)).abs().max() / as_it_is.abs().max().clamp(min=1e-6)
    if not apart <= _TOLERANCE:
        raise ConfigurationError(
            f"A look with a cache needs a backbone whose positions all see each other, or that attends by blocks, but the "
            f"logits of {name} differ by {apart.item():.1%} with one; choose another look, or another backbone."
        )


@torch.no_grad()
def cache_bytes(model: HeadedBackbone, rows: int, length: int) -> int:
    """Memory that a look with a cache keeps for some rows, by one small forward: keys and values of every layer, and the final
    hidden states where the quality head looks at neighbours.

    Args:
        model: A backbone with a quality head, which takes windows (`require_windows`).
        rows: Rows that are filled at a time; with a trajectory, its runs of each row.
        length: Tokens of the longest row, those to generate among them.
    """
    kept = KeyValues(1, 2)
    ids = torch.tensor([plain_tokens(model.plain_backbone.config, (model.mask_token_id,))[:2]], device=model.device)
    with evaluation_mode(model):
        model(ids, window=Window(kept))
    model.call_changes.put_back()
    return kept.num_bytes // 2 * rows * length
