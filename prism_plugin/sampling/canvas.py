"""Station 2 of sampling: requests of any shape laid out as one canvas, and taken back from it.

On the canvas every row starts at column 0: its tokens stand without gaps and padding only follows them. Absolute positions
are then the same as for the row alone, whatever side the caller padded, so a ragged batch equals its rows one by one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BatchEncoding

from prism_plugin.decoding.state import Canvas
from prism_plugin.errors import SamplingError
from prism_plugin.modeling.given_ids import read_ids
from prism_plugin.types import PerRow, TokenIds, TokenMask


@dataclass(frozen=True)
class LaidCanvas(Canvas):
    """A canvas that knows the request it was laid from."""

    lengths: PerRow  # own tokens of each row
    place: TokenIds  # [batch, out length]: canvas column of each position of the request, 0 where it is padding
    present: TokenMask  # [batch, out length]: the request's own tokens
    request: TokenIds  # [batch, out length]: the request, masks at the positions to generate

    def restore(self, values: Tensor, outside: Tensor | float | bool) -> Tensor:
        """Bring values from the canvas, [batch, length], to the request's layout, with `outside` at its padding."""
        return torch.where(self.present, values.gather(1, self.place), outside)


def lay_canvas(
    request: TokenIds,
    present: TokenMask,
    editable: TokenMask,
    block_length: int | None,
    *,
    fill_id: int = 0,
    from_first_token: bool = False,
) -> LaidCanvas:
    """Lay out a request.

    Args:
        request: Tokens, with the mask token at the positions to generate.
        present: The row's own tokens; what is not present is padding, on any side.
        editable: Positions to generate, a subset of `present`.
        block_length: Positions per block, >= 1, counted from the row's first editable position; None for one block. A
            block without an editable position is left out, so blocks are numbered without gaps.
        fill_id: What the network sees where a row is padded, whatever the request has there.
        from_first_token: Blocks are counted from the row's first token, as attention by blocks counts them; so the first one
            may begin in the prompt.
    """
    order = (~present).to(torch.int8).argsort(dim=-1, stable=True)
    lengths = present.sum(-1)
    width = int(lengths.max())
    order = order[:, :width]
    own = torch.arange(width, device=request.device) < lengths.unsqueeze(-1)
    editable = editable.gather(1, order) & own
    block_of, num_blocks = _number_blocks(editable, block_length, from_first_token)
    return LaidCanvas(
        tokens=request.gather(1, order).where(own, fill_id),
        attention_mask=own.long(),
        editable=editable,
        block_of=block_of,
        num_blocks=num_blocks,
        lengths=lengths,
        place=(present.cumsum(-1) - 1).clamp(min=0),
        present=present,
        request=request,
    )


def _number_blocks(editable: TokenMask, block_length: int | None, from_first_token: bool) -> tuple[TokenIds, PerRow]:
    batch, length = editable.shape
    size = length if block_length is None else block_length
    columns = torch.arange(length, device=editable.device)
    first = torch.where(editable, columns, length).amin(-1, keepdim=True) * (not from_first_token)
    chunk = (columns - first).clamp(min=0) // size
    used = torch.zeros(batch, length, dtype=torch.int64, device=editable.device)
    used = used.scatter_reduce(1, chunk, editable.long(), reduce="amax")
    number = (used.cumsum(-1) - 1).gather(1, chunk)
    return torch.where(editable, number, -1), used.sum(-1)


def read_request(
    input_ids: TokenIds | BatchEncoding, attention_mask: Tensor | None, vocab_size: int
) -> tuple[TokenIds, TokenMask]:
    """Read what the caller passed: token ids, and which positions are the rows' own tokens.

    Raises:
        SamplingError: If the ids are not a matrix of integers inside the vocabulary, or the mask does not fit them.
    """
    input_ids, attention_mask = read_ids(input_ids, attention_mask, SamplingError)
    present = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
    runs = present[:, :1].sum(-1) + (present[:, 1:] & ~present[:, :-1]).sum(-1)
    if (runs > 1).any():
        row = int((runs > 1).nonzero()[0])
        raise SamplingError(
            f"`attention_mask` must pad on the left or on the right only, but `attention_mask[{row}]` has padding between its "
            "tokens; pad at the ends."
        )
    outside = present & ((input_ids < 0) | (input_ids >= vocab_size))
    if outside.any():
        raise SamplingError(
            f"`input_ids` must lie in the model's vocabulary, 0 to {vocab_size - 1}, found {int(input_ids[outside][0])}; "
            "use the tokenizer that belongs to the model."
        )
    return input_ids, present


def require_new_tokens(max_new_tokens: int, min_new_tokens: int | None = None) -> None:
    """Check a number of tokens to generate, and how many of them come before an end of text.

    Raises:
        SamplingError: If one is not an integer of at least 1, or the second is larger.
    """
    _require_count("max_new_tokens", max_new_tokens)
    require_min_new_tokens(min_new_tokens)
    if min_new_tokens is not None and min_new_tokens > max_new_tokens:
        raise SamplingError(
            f"`min_new_tokens` must be at most `max_new_tokens`, {max_new_tokens} here, got {min_new_tokens}; lower it."
        )


def require_min_new_tokens(min_new_tokens: int | None) -> None:
    """Check a number of tokens before an end of text, if there is one.

    Raises:
        SamplingError: If it is not an integer of at least 1.
    """
    if min_new_tokens is not None:
        _require_count("min_new_tokens", min_new_tokens)


def _require_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SamplingError(f"`{name}` must be an integer of at least 1, got {value!r}.")
