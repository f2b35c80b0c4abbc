"""Checks a model before it carries a quality head: attributes first, then what a few tiny forward passes showed.

Nothing here calls the model. `prism_plugin.modeling.probing` makes the forward passes, through the same forward as training and
sampling; the functions below judge the tensors that came back.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.backbones.spec import BackboneSpec, lm_head_of, vocab_size_of
from prism_plugin.core.float64 import to_float64
from prism_plugin.errors import BackboneError, first_line

# A change counts when it is this many times the difference between two equal rows of the same batch, which is rounding.
_ABOVE_ROUNDING = 10.0
# An ignored mask lets a padded token through like any other, so the two effects are about equal; a honoured one gives 0.
_LEAK_SHARE = 0.05
# Reading the wrong row moves logits by their own size; float32 kernels (TF32 among them) and bfloat16 round by less than this.
_GATHERING_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_GATHERING_TOLERANCE_HALF = 5e-2


@dataclass(frozen=True)
class Check:
    """What one probe found.

    Attributes:
        name: The probe.
        ok: Whether the model passed; None when the probe could not run.
        figure: What was measured, in the unit that `detail` says; None when nothing was.
        detail: What the figure means; where `ok` is False, one sentence with what to do.
    """

    name: str
    ok: bool | None
    figure: float | None
    detail: str


def not_run(name: str, reason: str) -> Check:
    """A check without a result."""
    return Check(name, None, None, f"not run: {reason}")


def require_ok(checks: list[Check]) -> None:
    """Raise the first failure.

    Raises:
        BackboneError: If a check failed.
    """
    for check in checks:
        if check.ok is False:
            raise BackboneError(check.detail)


def check_backbone(backbone: PreTrainedModel, spec: BackboneSpec, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse a model that cannot carry a quality head as it is. Reads attributes only, so a sharded model can be checked too.

    Args:
        backbone: The user's model.
        spec: What is claimed about it.
        tokenizer: The tokenizer that will be used with it, if any.

    Raises:
        BackboneError: If the model has no LM head where the spec says, attends to the left only, or has a smaller vocabulary
            than the tokenizer.
    """
    name = type(backbone).__name__
    for setting, needed in spec.required_config:
        found = getattr(backbone.config, setting, needed)
        if found != needed:
            raise BackboneError(
                f"A {spec.model_type!r} backbone must have `config.{setting}={needed}`, found {found!r}; "
                "load it with `load_backbone`, which sees to it where that can be done; otherwise it cannot be used."
            )
    if _submodule(backbone, spec.final_hidden_at) is None or lm_head_of(backbone, spec) is None:
        raise BackboneError(
            f"A {spec.model_type!r} backbone must have its LM head behind a module `{spec.final_hidden_at}`, which {name} "
            f"lacks; load it with `{spec.auto_class}`."
        )
    both_sides = not getattr(backbone.config, "is_causal", True) or getattr(
        backbone.config, "use_bidirectional_attention", False
    )
    if spec.causal_by_default and not both_sides:
        raise BackboneError(
            f"A masked diffusion model attends to both sides, but {name} attends to the left only; if it was trained with "
            "bidirectional attention, set `backbone.config.is_causal = False` before attaching."
        )
    if getattr(backbone.config, "is_decoder", False):
        raise BackboneError(
            f"A masked diffusion model attends to both sides, but {name} has `config.is_decoder=True`; "
            "load it with `is_decoder=False`."
        )
    vocab_size = vocab_size_of(lm_head_of(backbone, spec))
    if tokenizer is not None and len(tokenizer) > vocab_size:
        raise BackboneError(
            f"The tokenizer has {len(tokenizer)} tokens, but {name} has a vocabulary of {vocab_size}; "
            "pass the tokenizer that belongs to this model, or resize the model's embeddings."
        )


def _submodule(model: PreTrainedModel, path: str) -> object | None:
    found = dict(model.named_modules(remove_duplicate=False))
    return found.get(path)


def max_row_length(backbone: PreTrainedModel) -> int | None:
    """Most tokens that a row can have: the rows of a table of positions. None without one, as with most rotary positions."""
    table = _table_of_positions(backbone)
    return None if table is None else table.num_embeddings - first_position(backbone)


def first_position(backbone: PreTrainedModel) -> int:
    """The position of a row's first token: RoBERTa and its kin count from `padding_idx + 1`, all others from 0."""
    table = _table_of_positions(backbone)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def takes_positions(backbone: PreTrainedModel) -> bool:
    """Whether a backbone's forward can be told where tokens stand."""
    return "position_ids" in inspect.signature(backbone.forward).parameters


def _table_of_positions(backbone: PreTrainedModel) -> nn.Embedding | None:
    names = ("position_embeddings", "wpe", "embed_positions")
    tables = (module for name, module in backbone.named_modules() if name.endswith(names) and isinstance(module, nn.Embedding))
    return next(tables, None)


def sees_at_most(config: PreTrainedConfig) -> int | None:
    """How far some layer's attention reaches where it does not reach everywhere: the `sliding_window` of Mistral or Gemma, the
    `local_attention` of ModernBERT. None: all layers see the whole row."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not any(kind in ("sliding_attention", "local_attention") for kind in kinds):
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)


def why_not_run(backbone: PreTrainedModel) -> str | None:
    """Say why a model cannot be probed with forward passes; None when it can.

    A forward of sharded weights is collective, and would fix the root of an FSDP tree before the trainer has wrapped the model.
    """
    if any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers())):
        return "no weights"
    return "weights are sharded over processes" if is_sharded(backbone) else None


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only a part of some weights: as DTensor (FSDP2, tensor parallelism), FSDP1, DeepSpeed ZeRO-3."""
    marks = ("device_mesh", "_is_flat_param", "ds_id")
    return any(hasattr(tensor, mark) for tensor in (*model.parameters(), *model.buffers()) for mark in marks)


def plain_tokens(config: PreTrainedConfig, other_than: Iterable[int]) -> list[int]:
    """Up to 16 tokens without a special meaning. Vocabularies are ordered by frequency, so these are common, some way apart.

    Args:
        config: The backbone's config.
        other_than: Tokens to leave out beside padding and the ends of a text.
    """
    vocab_size, special = config.get_text_config().vocab_size, set[Any](other_than)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        value = getattr(config, name, None)
        special |= set(value) if isinstance(value, list | tuple) else {value}
    candidates = range(vocab_size // 40, vocab_size, max(1, vocab_size // 400))
    return list(islice((token for token in candidates if token not in special), 16))


def judge_finite(name: str, hidden_states: Tensor) -> Check:
    """Every final hidden state is a number.

    Args:
        name: The model's class, for the sentence.
        hidden_states: [rows, length, hidden].
    """
    share = hidden_states.isfinite().float().mean().item()
    if share < 1:
        return Check(
            "finite", False, share,
            f"{name} gives final hidden states that are not finite for plain tokens; its weights are damaged or overflow in "
            f"{hidden_states.dtype}, so load them again, or in another dtype.",
        )  # fmt: skip
    return Check("finite", True, share, "share of the final hidden states that are finite")


def judge_training(name: str, spec: BackboneSpec, evaluated: Tensor, trained: Tensor, has_gradient: bool) -> Check:
    """In the mode in which the model is trained, without dropout, it says what it says in evaluation mode, and can be trained.

    Args:
        name: The model's class, for the sentence.
        spec: What is claimed about it.
        evaluated: Final hidden states in evaluation mode, [rows, length, hidden].
        trained: The same in training mode.
        has_gradient: Whether a gradient came back to the token embeddings, where one was asked for.
    """
    moved = _difference(evaluated, trained)
    if not has_gradient:
        return Check(
            "training", False, moved,
            f"To train its weights or an adapter, a gradient must flow back through {name}, but none does, so its code "
            "seems to be written for sampling alone; attach the head alone, or load the model with code that trains.",
        )  # fmt: skip
    if moved > _GATHERING_TOLERANCE.get(trained.dtype, _GATHERING_TOLERANCE_HALF):
        return Check(
            "training", False, moved,
            f"{name} gives other final hidden states in training mode, without dropout, than in evaluation mode (by "
            f"{moved:.2g} of their size), so what is trained would not be what samples; {_KEEP}.",
        )  # fmt: skip
    detail = "how far training mode without dropout moves the states, of their size"
    if spec.keeps_evaluation_mode:
        detail = "the backbone stays in evaluation mode, as its BackboneSpec says; dropout is on in its dropout layers alone"
    return Check("training", True, moved, detail)


_KEEP = (
    "register `dataclasses.replace(get_backbone_spec(backbone), keeps_evaluation_mode=True)` with `replace=True`, and it is "
    "trained in evaluation mode"
)


def fails_in_training(name: str, spec: BackboneSpec, cause: BaseException) -> Check:
    """The check of training mode where the model cannot be called in it.

    Args:
        name: The model's class, for the sentence.
        spec: What is claimed about it.
        cause: What it raised.
    """
    way = "correct its BackboneSpec" if spec.keeps_evaluation_mode else _KEEP
    return Check(
        "training", False, None,
        f"{name} must give logits in training mode as it does in evaluation mode, but its forward failed there "
        f"({type(cause).__name__}: {first_line(cause)}), as code does that takes labels and makes a loss of its own; {way}.",
    )  # fmt: skip


def judge_bidirectional(name: str, base: Tensor, again: Tensor, last_changed: Tensor) -> Check:
    """A later token changes earlier positions.

    Args:
        name: The model's class, for the sentence.
        base: Final hidden states of a row, [length, hidden].
        again: Those of the same row a second time in the batch: what they differ by is rounding.
        last_changed: Those of the row with another last token.
    """
    moved, rounding = _difference(base[:-1], last_changed[:-1]), _difference(base, again)
    if moved <= _ABOVE_ROUNDING * rounding:
        return Check(
            "bidirectional", False, moved,
            f"A masked diffusion model attends to both sides, but in {name} the last token does not reach the positions "
            "before it; if it was trained with bidirectional attention, set `backbone.config.is_causal = False` before "
            "attaching, otherwise it cannot be used.",
        )  # fmt: skip
    return Check("bidirectional", True, moved, "how far the last token moves the states before it, of their size")


def judge_padding(
    name: str, spec: BackboneSpec, base: Tensor, padding_changed: Tensor, valid_changed: Tensor, rounding: float
) -> Check:
    """A padded token changes nothing, and the mask does not turn attention causal.

    Args:
        name: The model's class, for the sentence.
        spec: What is claimed about it.
        base: Final hidden states of the valid positions of a padded row, [valid, hidden].
        padding_changed: Those of the row with other tokens at its padding.
        valid_changed: Those of the row with another last valid token.
        rounding: What two equal rows differ by.
    """
    leak, reach = _difference(base, padding_changed), _difference(base[:-1], valid_changed[:-1])
    if leak > max(_ABOVE_ROUNDING * rounding, _LEAK_SHARE * reach):
        return Check(
            "padding", False, leak,
            f"Padding must not be seen, but {name} ignores its attention mask: a padded token moves the others by {leak:.2g} "
            "of their size; if it was trained to see its padding, say so with `register_backbone(BackboneSpec(model_type="
            f"{spec.model_type!r}, attention_mask='none', ...), replace=True)`.",
        )  # fmt: skip
    if reach <= _ABOVE_ROUNDING * rounding:
        return Check(
            "padding", False, reach,
            f"Attention must stay bidirectional under a mask, but {name} attends to the left only as soon as its mask has a "
            "zero; say that it takes none with `register_backbone(BackboneSpec(model_type="
            f"{spec.model_type!r}, attention_mask='none', ...), replace=True)`.",
        )  # fmt: skip
    return Check("padding", True, leak, "how far a padded token moves the states of valid ones, of their size")


def judge_gathering(name: str, spec: BackboneSpec, gathered: Tensor, full: Tensor) -> Check:
    """Logits of gathered rows equal those of all positions.

    Args:
        name: The model's class, for the sentence.
        spec: What is claimed about it.
        gathered: Rows that were asked for, [rows, vocab].
        full: The same rows out of the model's own full logits.
    """
    if gathered.shape != full.shape or not torch.isfinite(full).all():
        worst, tolerance = float("inf"), 0.0
    else:
        worst = (to_float64(gathered) - to_float64(full)).abs().max().item()
        tolerance = _GATHERING_TOLERANCE.get(full.dtype, _GATHERING_TOLERANCE_HALF) * max(full.abs().max().item(), 1e-6)
    if worst > tolerance:
        return Check(
            "gathered_logits", False, worst,
            f"Rows gathered at `{spec.final_hidden_at}` must give the model's own logits, but those of {name} differ by "
            f"{worst:.2g}; name the module whose input is the final hidden state as `final_hidden_at` of its BackboneSpec.",
        )  # fmt: skip
    return Check("gathered_logits", True, worst, "largest difference between gathered and full logits")


def difference_of_equal_rows(base: Tensor, again: Tensor) -> float:
    """What rounding alone does to a row, relative to its size."""
    return _difference(base, again)


def _difference(one: Tensor, other: Tensor) -> float:
    one, other = to_float64(one), to_float64(other)
    return ((one - other).abs().max() / one.abs().max().clamp(min=1e-12)).item()
