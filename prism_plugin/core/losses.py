"""The terms of the objectives, each a pure function of tensors.

One normalisation for all: a term is averaged within its row, then over rows. A row without labels counts as 0, so eight
micro-batches of one row give the gradient of one batch of eight.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prism_plugin.core.categorical import chunk_slices, log_sum_exp
from prism_plugin.core.float64 import to_float64
from prism_plugin.core.labels import QualityLabels
from prism_plugin.core.selection import select_top
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import FlatIndex, PerToken, Rows, Times, TokenIds, TokenMask


@dataclass(frozen=True)
class PrismLossOutput:
    """The PRISM loss, its two terms before weighting (nats), and counts from which a base rate is made."""

    loss: Float[Tensor, ""]
    quality_loss: Float[Tensor, ""]
    diffusion_loss: Float[Tensor, ""]
    num_correct: Int[Tensor, ""]  # judged tokens equal to the data
    num_judged: Int[Tensor, ""]


def quality_loss(quality_logits: PerToken, labels: QualityLabels) -> Float[Tensor, ""]:
    """Binary cross-entropy of the quality head, in nats per labelled position (PRISM, arXiv 2510.01384).

    The authors divide by K times the batch size even where a row had fewer than K masks; here each row has its own mean.

    Args:
        quality_logits: Head output before the sigmoid; what it is at unlabelled positions does not matter.
        labels: Targets and where they hold.
    """
    per_row = quality_loss_per_row(quality_logits, labels)
    return per_row.sum() / max(per_row.shape[0], 1)


def quality_loss_per_row(quality_logits: PerToken, labels: QualityLabels) -> Times:
    """The terms of `quality_loss`, one per row, 0 where a row has no label."""
    logits = quality_logits.float().masked_fill(~labels.labelled, 0.0)
    per_token = F.binary_cross_entropy_with_logits(logits, labels.targets.float(), reduction="none")
    return (per_token * labels.labelled).sum(-1) / labels.labelled.sum(-1).clamp(min=1)


def cross_entropy(rows: Rows, targets: Int[Tensor, " rows"], *, overwrite_rows: bool = False) -> Float[Tensor, " rows"]:
    """Cross-entropy of each row of logits in nats, float32; forward and backward go through the rows a chunk at a time.

    The one tensor of the size of `rows` that is made is their gradient, in their dtype; with `overwrite_rows` not even that.

    Args:
        rows: Logits of any float type.
        targets: The right token of each row.
        overwrite_rows: Write the gradient over the logits in backward; they hold garbage afterwards. Only where the logits
            come straight from a matrix product, so that nothing else needs them for its own gradient; elsewhere it is made
            anew all the same.
    """
    return _ChunkedCrossEntropy.apply(rows, targets, overwrite_rows and _is_a_product(rows))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Rows, targets: Int[Tensor, " rows"], overwrite: bool) -> Float[Tensor, " rows"]:
        of_target = rows.gather(-1, targets.unsqueeze(-1)).squeeze(-1).float()
        log_total = log_sum_exp(rows)
        ctx.save_for_backward(rows, targets, log_total)
        ctx.overwrite = overwrite
        return log_total - of_target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Float[Tensor, " rows"]) -> tuple[Rows, None, None]:
        rows, targets, log_total = ctx.saved_tensors
        gradient = rows.detach() if ctx.overwrite else torch.empty_like(rows)
        of_loss, log_total, targets = (one.unsqueeze(-1) for one in (of_loss, log_total, targets))
        for here in chunk_slices(rows):
            # in float32 the gradient is made where it will stand; 16 bits are too few to compute in
            into = gradient[here] if rows.dtype == torch.float32 else None
            chunk = torch.sub(rows[here].float(), log_total[here], out=into).exp_().mul_(of_loss[here])
            chunk.scatter_add_(-1, targets[here], -of_loss[here])
            if into is None:
                gradient[here] = chunk
        return gradient, None, None


# What may stand between a matrix product and the logits that a model returns, without looking at them again in backward.
_LAYOUT = frozenset({"SqueezeBackward0", "SqueezeBackward1", "ViewBackward0", "UnsafeViewBackward0", "AddBackward0"})
_PRODUCTS = frozenset({"MmBackward0", "AddmmBackward0", "BmmBackward0", "LinearBackward0"})


def _is_a_product(rows: Rows) -> bool:
    node = rows.grad_fn
    while node is not None and node.name() in _LAYOUT:
        node = node.next_functions[0][0]
    return node is not None and node.name() in _PRODUCTS


def diffusion_loss(rows: Rows, row_index: FlatIndex, clean_ids: TokenIds, maskable: TokenMask, t: Times) -> Float[Tensor, ""]:
    """Masked diffusion cross-entropy weighted by 1/t, in nats per maskable token (LLaDA, arXiv 2502.09992, equation 3).

    In expectation over the masks it bounds the negative log-likelihood per token.

    Args:
        rows: Logits at masked positions only.
        row_index: Where they are: flat positions of the batch in row-major order.
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted; their number per row is the divisor.
        t: Masking probability of each row, in (0, 1].
    """
    return diffusion_loss_per_row(rows, row_index, clean_ids, maskable, t).sum() / max(clean_ids.shape[0], 1)


def diffusion_loss_per_row(
    rows: Rows,
    row_index: FlatIndex,
    clean_ids: TokenIds,
    maskable: TokenMask,
    t: Times,
    *,
    scale: PerToken | None = None,
    overwrite_rows: bool = False,
) -> Times:
    """The terms of `diffusion_loss`, one per row of the batch, 0 where nothing is masked.

    Args:
        rows: As for `diffusion_loss`; where `scale` is 0, other positions may be among them.
        row_index: As for `diffusion_loss`.
        clean_ids: As for `diffusion_loss`.
        maskable: As for `diffusion_loss`.
        t: As for `diffusion_loss`.
        scale: Multiplies the term of each position, as `share_scale` gives it; None: 1.
        overwrite_rows: As for `cross_entropy`.
    """
    per_position = cross_entropy(rows, clean_ids.flatten()[row_index], overwrite_rows=overwrite_rows)
    if scale is not None:
        per_position = per_position * scale.flatten()[row_index]
    # laid out by position and not added up by row number: accelerators do that in any order, and no run would repeat exactly
    laid = torch.zeros(clean_ids.numel(), device=rows.device).index_copy(0, row_index, per_position).view(clean_ids.shape)
    return laid.sum(-1) / (t.float() * maskable.sum(-1).clamp(min=1))


def share_scale(masked: TokenMask, share: float, noise: PerToken) -> PerToken:
    """Weights that estimate a sum over each row's masked positions from a share of them, without bias.

    Of m masked positions, n = ceil(share * m) are chosen, each set of n equally likely, and weigh m / n. The variance that
    this adds to the sum is m**2 * (1 - n/m) * s**2 / n, where s**2 is the variance of the terms over the masked positions.

    Args:
        masked: Positions of the sum.
        share: In (0, 1].
        noise: Uniform in [0, 1), one per position.

    Returns:
        m / n at the chosen positions, 0 elsewhere.
    """
    count = masked.sum(-1)
    # less a little before rounding up, so that a share in binary does not turn 0.1 of 10 positions into 2
    chosen = (share * to_float64(count) - 1e-9).ceil().long().to(count.device)
    weight = count / chosen.clamp(min=1)
    return select_top(noise, masked, chosen) * weight.unsqueeze(-1)


def prism_loss(
    quality_logits: PerToken,
    labels: QualityLabels,
    rows: Rows | None,
    row_index: FlatIndex | None,
    clean_ids: TokenIds,
    maskable: TokenMask,
    t: Times,
    *,
    diffusion_weight: float = 0.5,
    quality_weight: float = 1.0,
) -> PrismLossOutput:
    """The PRISM objective: quality cross-entropy on the draft plus weighted diffusion cross-entropy on the noised tokens.

    With several drafts of each noised sequence, `quality_logits` and `labels` have that many times the rows of `clean_ids`.

    Args:
        quality_logits: Head output on the draft, before the sigmoid.
        labels: Which positions of the draft are judged, and the targets.
        rows: Logits at the masked positions of the noised tokens; None to skip the diffusion term.
        row_index: Flat positions of `rows`, row-major; None with `rows`.
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted.
        t: Masking probability of each row, in (0, 1].
        diffusion_weight: The paper's lambda, >= 0.
        quality_weight: Weight of the quality term, >= 0.

    Raises:
        ConfigurationError: If the diffusion term has a weight and no rows.
    """
    if rows is None and diffusion_weight:
        raise ConfigurationError(
            f"The diffusion term has weight {diffusion_weight} but no rows of logits; pass them or weight 0."
        )
    quality = quality_loss(quality_logits, labels)
    diffusion = torch.zeros_like(quality) if rows is None else diffusion_loss(rows, row_index, clean_ids, maskable, t)
    return weigh(quality, diffusion, labels, diffusion_weight=diffusion_weight, quality_weight=quality_weight)


def weigh(
    quality: Float[Tensor, ""],
    diffusion: Float[Tensor, ""],
    labels: QualityLabels,
    *,
    diffusion_weight: float,
    quality_weight: float,
) -> PrismLossOutput:
    """Put the two terms of the PRISM objective together; arguments as for `prism_loss`."""
    return PrismLossOutput(
        loss=quality_weight * quality + diffusion_weight * diffusion,
        quality_loss=quality,
        diffusion_loss=diffusion,
        num_correct=labels.targets.sum(),
        num_judged=labels.labelled.sum(),
    )
