"""Runs the probes: four forward passes on a dozen plain tokens, through the forward that training and sampling use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prism_plugin.backbones import (
    device_of,
    evaluation_mode,
    input_embeddings_of,
    kept_random_state,
    lm_head_of,
    max_row_length,
)
from prism_plugin.backbones.alignment import judge_alignment
from prism_plugin.backbones.call import one_sentence
from prism_plugin.backbones.modes import trial_of_training
from prism_plugin.backbones.probe import (
    Check,
    difference_of_equal_rows,
    fails_in_training,
    judge_bidirectional,
    judge_finite,
    judge_gathering,
    judge_padding,
    judge_training,
    not_run,
    plain_tokens,
    why_not_run,
)
from prism_plugin.backbones.rotary import check_rotary_tables
from prism_plugin.errors import BackboneError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.lm_head import to_row_index

FORWARD_CHECKS = ("finite", "bidirectional", "padding", "alignment", "gathered_logits", "training")
_LENGTH, _SHORTEST, _PADDED = 12, 6, 2
# (period, masked position): long enough behind the start to be seen repeating, and the token before is another one.
_PATTERNS = ((3, 10), (2, 9), (4, 10))
_MOST_IN_PATTERN = max(period for period, _ in _PATTERNS)


def probe_model(model: HeadedBackbone) -> list[Check]:
    """Check what can only be seen by looking: attention to both sides, padding, alignment, gathered rows, rotary tables.

    The model is left as it was: modes, random state, gradients. Where it has no weights or they are sharded, the checks say
    that they were not run. Nothing touches the network.

    Args:
        model: The model.

    Raises:
        BackboneError: If the model cannot be called at all.
    """
    backbone = model.plain_backbone
    reason = why_not_run(backbone)
    if reason is not None:
        return [*(not_run(name, reason) for name in (*FORWARD_CHECKS, "rotary_tables")), _head_dtype(model)]
    rotary = check_rotary_tables(backbone)
    if rotary.ok is False:  # the looks would measure its noise
        return [*(not_run(name, "the rotary tables are damaged") for name in FORWARD_CHECKS), rotary, _head_dtype(model)]
    device = device_of(input_embeddings_of(backbone, model.spec))
    try:
        with kept_random_state(device), one_sentence(backbone):
            looked = _look(model, device)
    finally:
        model.call_changes.put_back()
    return [*looked, rotary, _head_dtype(model)]


def _look(model: HeadedBackbone, device: torch.device) -> list[Check]:
    name = type(model.plain_backbone).__name__
    length = min(_LENGTH, max_row_length(model.plain_backbone) or _LENGTH)
    plain = plain_tokens(model.plain_backbone.config, (model.mask_token_id,))[:_LENGTH]
    if length < _SHORTEST or len(plain) < 2:
        reason = f"probing needs {_SHORTEST} positions and 2 plain tokens, and the model has {length} and {len(plain)}"
        return [not_run(check, reason) for check in FORWARD_CHECKS]
    tokens = torch.tensor([plain[i % len(plain)] for i in range(length)], device=device)
    with evaluation_mode(model), torch.no_grad():
        unmasked, rows, hidden_states = _without_padding(model, name, tokens)
        padding = _with_padding(model, name, tokens, difference_of_equal_rows(*hidden_states[:2]))
    return [*unmasked[:2], padding, *unmasked[2:], _in_training_mode(model, name, rows, hidden_states)]


def _without_padding(model: HeadedBackbone, name: str, tokens: Tensor) -> tuple[list[Check], Tensor, Tensor]:
    """The checks that need no mask, from one gathered and one full forward; the rows, and their final hidden states."""
    spec, length = model.spec, len(tokens)
    changed = tokens.clone()
    changed[-1] = tokens[-2]
    patterns = [one for one in _PATTERNS if one[1] < length - 1 and len(tokens.unique()) > _MOST_IN_PATTERN]
    rows = torch.stack([tokens, tokens, changed, *(_pattern(tokens, *one, model.mask_token_id) for one in patterns)])
    masked = [(3 + row) * length + position for row, (_, position) in enumerate(patterns)]
    other_row = -1 if spec.logits_alignment == "same_position" else 1
    wanted = torch.tensor([*range(length), *masked, *(at + other_row for at in masked)], device=tokens.device)
    with _arguments_of(model.plain_backbone) as arguments:
        output = model(rows, logits_at=wanted, with_quality=False, output_hidden_states=True)
    full = model.plain_backbone(*arguments[0], **arguments[1]).logits.flatten(0, 1)
    full = full[to_row_index(wanted, rows, alignment=spec.logits_alignment)]
    base, again, moved = output.hidden_states[:3]
    checks = [
        judge_finite(name, output.hidden_states),
        judge_bidirectional(name, base, again, moved),
        _alignment(model, name, tokens, output.logits[length:], patterns),
        judge_gathering(name, spec, output.logits, full),
    ]
    return checks, rows, output.hidden_states


def _alignment(model: HeadedBackbone, name: str, tokens: Tensor, rows: Tensor, patterns: list[tuple[int, int]]) -> Check:
    if not patterns:
        return not_run("alignment", "too few positions or plain tokens for a pattern that repeats")
    answers = torch.stack([tokens[position % period] for period, position in patterns])
    log_probabilities = rows.float().log_softmax(-1).unflatten(0, (2, len(patterns)))
    claimed, other = log_probabilities.gather(-1, answers.expand(2, -1)[..., None])[..., 0]
    return judge_alignment(name, model.spec, claimed, other)


def _with_padding(model: HeadedBackbone, name: str, tokens: Tensor, rounding: float) -> Check:
    if model.spec.attention_mask == "none":
        return Check("padding", True, None, "the model takes no attention mask: padding is seen as in its pretraining")
    padding_changed, valid_changed = tokens.clone(), tokens.clone()
    padding_changed[-_PADDED:] = tokens[-_PADDED - 1 : -1]
    valid_changed[-_PADDED - 1] = tokens[-_PADDED - 2]
    rows = torch.stack([tokens, padding_changed, valid_changed])
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[:, -_PADDED:] = False
    one, other, third = model(rows, mask, with_quality=False, output_hidden_states=True).hidden_states[:, :-_PADDED]
    return judge_padding(name, model.spec, one, other, third, rounding)


def _in_training_mode(model: HeadedBackbone, name: str, rows: Tensor, hidden_states: Tensor) -> Check:
    """Look at the same rows as in training, and go backward where something behind the embeddings is trained."""
    backbone = model.plain_backbone
    # The reentrant kind of checkpointing only goes backward to all parameters at once.
    asked = any(one.requires_grad for one in model.backbone.parameters()) and not backbone.is_activation_checkpointing
    asked = asked and not torch.is_inference_mode_enabled()
    try:
        with trial_of_training(model), torch.set_grad_enabled(asked), _watched_embeddings(model) as embedded:
            trained = model(rows, with_quality=False, output_hidden_states=True).hidden_states
            has_gradient = not asked or trained.requires_grad
            if asked and embedded and has_gradient:
                with one_sentence(backbone):
                    (gradient,) = torch.autograd.grad(trained.float().sum(), embedded[0], allow_unused=True)
                has_gradient = gradient is not None
    except BackboneError as error:
        return fails_in_training(name, model.spec, error.__cause__ or error)
    return judge_training(name, model.spec, hidden_states, trained.detach(), has_gradient)


@contextmanager
def _watched_embeddings(model: HeadedBackbone) -> Iterator[list[Tensor]]:
    """While open, what the token embeddings give is noted, and a gradient can come back to it, be they trained or not."""
    seen: list[Tensor] = []

    def hold(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        seen.append(output.detach().requires_grad_())
        return seen[-1] * 1  # no leaf, which could not be written over

    handle = model.get_input_embeddings().register_forward_hook(hold)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _arguments_of(backbone: nn.Module) -> Iterator[list[Any]]:
    """Note what the backbone is called with, so that it can be called in the same way without the gathering."""
    seen: list[Any] = []
    handle = backbone.register_forward_pre_hook(lambda _, args, kwargs: seen.extend((args, kwargs)), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _pattern(tokens: Tensor, period: int, position: int, mask_token_id: int) -> Tensor:
    row = tokens[torch.arange(len(tokens), device=tokens.device) % period]
    row[position] = mask_token_id
    return row


def _head_dtype(model: HeadedBackbone) -> Check:
    wrong = sum(parameter.dtype != torch.float32 for parameter in model.quality_head.parameters())
    lm_head = lm_head_of(model.plain_backbone, model.spec).weight.dtype
    detail = f"quality head in float32, LM head in {str(lm_head).removeprefix('torch.')}; parameters of another dtype"
    if wrong:
        detail = "The quality head must stay float32, but its parameters were cast; attach it again."
    return Check("head_dtype", not wrong, float(wrong), detail)
