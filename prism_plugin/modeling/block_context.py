"""What a family that attends by blocks knows in front of a block, as real rows show it: clean blocks, or noised ones too."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prism_plugin.backbones import device_of, dropout_off, input_embeddings_of, kept_random_state
from prism_plugin.backbones.alignment import unlearnt
from prism_plugin.backbones.call import WRITTEN, attention_blocks
from prism_plugin.backbones.probe import Check, not_run
from prism_plugin.core.float64 import to_float64
from prism_plugin.core.lm_loss import cross_entropy
from prism_plugin.core.noise import uniforms
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.types import TokenIds, TokenMask

NAME = "block_context_on_data"
_MASKED = 0.5  # of a block and, where they are noised, of those before it
_FEWEST_TOKENS, _LEARNT_NATS, _CLEAR_NATS, _CLEAR_ERRORS = 20, 0.5, 0.1, 3.0


@torch.no_grad()
def fill_behind_blocks(model: HeadedBackbone, batch: Mapping[str, Tensor]) -> Tensor:
    """Fill half of one block of each row: behind clean blocks, half-masked ones, and half-masked ones whose masks are hidden.

    The last two tell the model the same. To one that was trained behind noised blocks, masks in front are nothing strange; one
    that only ever saw clean blocks there is disturbed by them, and does better where it does not see them.

    Rows of one block are left out. The random state is left as it was, and dropout is off.

    Args:
        model: A model whose family attends by blocks.
        batch: What `PrismCollator` makes.

    Returns:
        float32 [tokens, 4]: each masked token, and its cross-entropy in nats at the three looks.
    """
    length = model.spec.attention_block_length
    assert length is not None  # as the caller saw to
    ids, present = batch["input_ids"], batch["attention_mask"].bool()
    block = attention_blocks(present, length)
    last = torch.where(present, block, 0).amax(-1, keepdim=True)
    drawn = uniforms(0, 0, batch["example_id"], "block_context", 1).to(ids.device)
    chosen = 1 + (drawn * last).long().minimum((last - 1).clamp(min=0))
    noise = uniforms(0, 0, batch["example_id"], "block_context_masked", ids.shape[1]).to(ids.device)
    noised = present & batch["maskable"] & (noise < _MASKED)
    masked, before = noised & (block == chosen), noised & (block < chosen)
    clean = ids.masked_fill(masked, model.mask_token_id)
    behind_noised = clean.masked_fill(before, model.mask_token_id)
    mask = present.long().masked_fill(present & (block == chosen), WRITTEN)
    device = device_of(input_embeddings_of(model.plain_backbone, model.spec))
    with dropout_off(model), kept_random_state(device):
        found = [ids[masked].float()]
        found += [_losses(model, one, mask, masked, ids) for one in (clean, behind_noised)]
        with _hidden(model, before):
            found.append(_losses(model, behind_noised, mask, masked, ids))
    return torch.stack(found, dim=-1)


def _losses(model: HeadedBackbone, ids: TokenIds, mask: Tensor, at: TokenMask, right: TokenIds) -> Tensor:
    index = at.flatten().nonzero().squeeze(-1)
    return cross_entropy(model(ids, mask, logits_at=index, with_quality=False).logits, right[at])


@contextmanager
def _hidden(model: HeadedBackbone, positions: TokenMask) -> Iterator[None]:
    """While open, nobody but they themselves sees some positions; blocks are counted as ever."""
    name, seen = model.spec.mask_argument, ~positions[:, None, None, :]
    itself = torch.eye(positions.shape[-1], dtype=torch.bool, device=positions.device)

    def hide(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, name: kwargs[name] & (seen | itself)}

    handle = model.plain_backbone.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def judge_block_context(filled: Tensor) -> Check:
    """Say what the model knows in front of a block. It judges nothing, and so it passes.

    Args:
        filled: As `fill_behind_blocks` gives it, of several batches.
    """
    if len(filled) < _FEWEST_TOKENS:
        return not_run(NAME, f"{len(filled)} tokens could be compared, and comparing needs {_FEWEST_TOKENS}; give more rows")
    clean, noised, hidden = (one.item() for one in to_float64(filled[:, 1:]).mean(0))
    figures = f"{clean:.2f} nats a token behind clean blocks, {noised:.2f} behind half-masked ones, {hidden:.2f} masks hidden"
    learnt = clean < unlearnt(filled[:, 0]) - _LEARNT_NATS
    if not (learnt and _is_clear(filled[:, 2] - filled[:, 1])):
        return Check(NAME, True, noised - clean, f"not to be seen: blocks before a block tell too little of it; {figures}")
    if _is_clear(filled[:, 2] - filled[:, 3]):
        known = "it knows clean blocks alone before a block; `noised_blocks: one`, the default, trains it behind them"
    else:
        known = "masks before a block do not disturb it, so it was trained behind noised blocks, as `noised_blocks: all` does"
    return Check(NAME, True, noised - clean, f"{known}; {figures}")


def _is_clear(more: Tensor) -> bool:
    """The mean is above 0, beyond doubt."""
    more = to_float64(more)
    return bool(more.mean() > max(_CLEAR_NATS, _CLEAR_ERRORS * (more.std() / len(more) ** 0.5).item()))
