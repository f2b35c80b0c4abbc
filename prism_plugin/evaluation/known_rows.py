"""Rows whose tokens are known, as requests to a sampler: what it is to fill, and what it has to go by."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prism_plugin.core.noise import uniforms
from prism_plugin.core.selection import select_top
from prism_plugin.data import IN_MEMORY, Origin
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.modeling import PrismModel
from prism_plugin.tokenizing import special_ids
from prism_plugin.training.trainer import EVALUATION_EPOCH
from prism_plugin.types import TokenIds


def require_share(masked: float) -> None:
    """Check the share of a row that is to be filled.

    Raises:
        ConfigurationError: If it is none.
    """
    if not 0 < masked <= 1:
        raise ConfigurationError(f"`masked` must be a share in (0, 1], got {masked}.")


def masked_request(
    model: PrismModel, batch: Mapping[str, Tensor], masked: float, seed: int, origin: Origin = IN_MEMORY
) -> TokenIds:
    """Mask a share of each row, at least one token, and check that something is left to go by.

    Args:
        model: Says what the mask is, and which tokens mean nothing in a text.
        batch: Prepared rows, as the collator gives them.
        masked: Share of each row's maskable positions, in (0, 1].
        seed: Of the positions; a row's depend on it and on its `example_id` alone.
        origin: Where the rows come from, for errors.

    Returns:
        Token ids with masks where a token is to be filled.

    Raises:
        DataFormatError: If nothing is left of a row.
    """
    input_ids, maskable = batch["input_ids"], batch["maskable"]
    noise = uniforms(seed, EVALUATION_EPOCH, batch["example_id"], "asked", input_ids.shape[1])
    chosen = select_top(noise, maskable, (masked * maskable.sum(-1)).round().long().clamp(min=1))
    special = torch.tensor(sorted(special_ids(model.tokenizer)), device=input_ids.device)
    given = batch["attention_mask"].bool() & ~chosen & ~torch.isin(input_ids, special)
    if not given.any(-1).all():
        row = batch["example_id"][~given.any(-1)][0]
        raise DataFormatError(
            f"{origin.row(int(row))}: with all of it masked, nothing says which tokens are right; mask a share (`masked=0.5`), "
            "or give rows with a prompt."
        )
    return torch.where(chosen, model.mask_token_id, input_ids)
