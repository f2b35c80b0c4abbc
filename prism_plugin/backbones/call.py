"""What one call of a backbone is given: the habits of each family with masks and extra arguments, settled in one place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.errors import BackboneError, ConfigurationError, PrismError, first_line, is_out_of_memory
from prism_plugin.types import TokenIds, TokenMask

WRITTEN = 2  # of a mask: a token of the block that is written now


def call_arguments(spec: BackboneSpec, input_ids: TokenIds, attention_mask: TokenMask | None) -> dict[str, Any]:
    """Make the keyword arguments of a backbone's forward.

    Args:
        spec: The backbone's family.
        input_ids: Tokens.
        attention_mask: True (or 1) where there is a token, False (or 0) at padding; None: no padding. 2 in the block that is
            written now, of a family with `causal_context`.
    """
    arguments = {"input_ids": input_ids, **dict(spec.call_arguments)}
    if spec.time_argument is not None:
        arguments[spec.time_argument] = torch.zeros(input_ids.shape[0], device=input_ids.device)
    if spec.attention_mask == "2d" and attention_mask is not None:
        arguments[spec.mask_argument] = attention_mask.bool().long()
    elif spec.attention_mask == "4d" and (attention_mask is not None or spec.attention_block_length is not None):
        present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        arguments[spec.mask_argument] = pairs_of(spec, present)
    return arguments


@contextmanager
def one_sentence(backbone: nn.Module) -> Iterator[None]:
    """What a model's own code raises becomes a BackboneError, whatever it is; errors of ours stay, and too little memory.

    Args:
        backbone: The model that is called meanwhile.

    Raises:
        BackboneError: If something was raised.
        Exception: If it says that memory did not suffice, as it was raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, PrismError) or is_out_of_memory(error):
            raise
        raise BackboneError(
            f"The forward of {type(backbone).__name__} failed ({type(error).__name__}: {first_line(error)}); load it with "
            "`load_backbone`, correct its BackboneSpec, or give it what its code expects."
        ) from error


def require_visible_token(
    spec: BackboneSpec, input_ids: TokenIds, attention_mask: TokenMask | None, mask_token_id: int
) -> None:
    """Refuse rows of mask tokens alone where the family has no logits for them.

    Raises:
        ConfigurationError: If there is such a row.
    """
    # Other kinds of tensors have no values to look at: memory is estimated with them.
    if not spec.needs_visible_token or type(input_ids) is not Tensor:
        return
    visible = input_ids != mask_token_id
    if attention_mask is not None:
        visible = visible & attention_mask.bool()
    if not visible.any(-1).all():
        raise ConfigurationError(
            f"Every row of a {spec.model_type} must hold a token that is not the mask, since its code divides by their share, "
            "but a row holds none; keep one, such as those that its tokenizer puts at both ends."
        )


def pad_rows(rows: Sequence[Sequence[int]], pad_token_id: int, *, side: str = "right") -> tuple[TokenIds, TokenMask]:
    """Pad rows of token ids; unlike a tokenizer's own padding, for tokenizers without a padding token too.

    Args:
        rows: Token ids, at least one row.
        pad_token_id: Id written into the padding. Any id will do, since nothing looks at it.
        side: Where the padding stands, "right" or "left".

    Returns:
        Token ids, and which of them are the rows' own; both [rows, longest].
    """
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    own = [torch.ones_like(row, dtype=torch.bool) for row in tensors]
    return pad_sequence(tensors, True, pad_token_id, side), pad_sequence(own, True, False, side)


def attention_blocks(present: TokenMask, block_length: int) -> TokenIds:
    """The number of the block that each position is in, counted from the row's first token."""
    return (present.cumsum(-1) - 1).clamp(min=0) // block_length


def pairs_of(spec: BackboneSpec, attention_mask: Tensor) -> Tensor:
    """Say which position may look at which in a family, as a bool tensor [batch, 1, query, key].

    Args:
        spec: The family.
        attention_mask: As for `call_arguments`.
    """
    by_blocks = pairwise_mask(attention_mask.bool(), spec.attention_block_length)
    if not spec.causal_context:
        return by_blocks
    written = attention_mask == WRITTEN
    columns = torch.arange(written.shape[-1], device=written.device)
    within = written[:, None, :, None] & written[:, None, None, :]
    seen = attention_mask.bool()[:, None, None, :] & (within | (columns[:, None] >= columns))
    return torch.where(written.any(-1)[:, None, None, None], seen, by_blocks)


def pairwise_mask(present: TokenMask, block_length: int | None = None) -> Tensor:
    """Say which position may look at which, as a bool tensor [batch, 1, query, key].

    Padding is hidden as a key, never as a query: a row of the attention matrix without a key would be NaN in some kernels.

    Args:
        present: Where there is a token.
        block_length: A position looks at its own block of that many tokens and at the blocks before; blocks are counted from
            the row's first token, whatever side it is padded on. None: at the whole row.
    """
    batch, length = present.shape
    allowed = present[:, None, None, :].expand(batch, 1, length, length)
    if block_length is None:
        return allowed
    block = attention_blocks(present, block_length)
    return allowed & (block[:, None, :, None] >= block[:, None, None, :])
