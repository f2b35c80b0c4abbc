"""The losses, each a pure function of tensors.

One normalisation for all: a term is averaged within its row, then over rows. A row without labels counts as 0, so eight
micro-batches of one row give the gradient of one batch of eight.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prism_plugin.core.float64 import to_float64
from prism_plugin.core.labels import Labels
from prism_plugin.core.lm_loss import cross_entropy, entropy
from prism_plugin.core.selection import select_top
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import Count, DrawnIndex, FlatIndex, PerDraftToken, PerToken, Rows, Scalar, Times, TokenIds, TokenMask


def quality_loss_per_row(quality_logits: PerToken, labels: Labels, divisor: Times | None = None) -> Times:
    """Binary cross-entropy of the quality head in nats per labelled position, one per row (PRISM, arXiv 2510.01384).

    The authors divide by K times the batch size even where a row had fewer than K masks; here each row has its own mean.

    Args:
        quality_logits: Head output before the sigmoid; what it is at unlabelled positions does not matter.
        labels: Targets and where they hold.
        divisor: Of each row's sum, > 0; None: the number of its labels.

    Returns:
        0 where a row has no label.
    """
    logits = quality_logits.float().masked_fill(~labels.labelled, 0.0)
    per_token = F.binary_cross_entropy_with_logits(logits, labels.targets.float(), reduction="none")
    return (per_token * labels.labelled).sum(-1) / (labels.labelled.sum(-1).clamp(min=1) if divisor is None else divisor)


def quality_loss(quality_logits: PerToken, labels: Labels) -> Scalar:
    """The mean of `quality_loss_per_row`."""
    return mean_over_rows(quality_loss_per_row(quality_logits, labels))


def diffusion_loss_per_row(
    rows: Rows,
    row_index: FlatIndex,
    clean_ids: TokenIds,
    maskable: TokenMask,
    t: Times,
    *,
    scale: PerToken | None = None,
    wanted: DrawnIndex | None = None,
    overwrite_rows: bool = False,
) -> Times:
    """Masked diffusion cross-entropy weighted by 1/t, in nats per maskable token (LLaDA, arXiv 2502.09992, equation 3).

    In expectation over the masks it bounds the negative log-likelihood per token.

    Args:
        rows: Logits at masked positions; where `scale` is 0, other positions may be among them.
        row_index: Where they are: flat positions of the batch in row-major order.
        clean_ids: Tokens of the data.
        maskable: Positions that may be corrupted; their number per row is the divisor.
        t: Masking probability of each row, in (0, 1].
        scale: Multiplies the term of each position, as `share_scale` gives it; None: 1.
        wanted: As for `cross_entropy_at`.
        overwrite_rows: As for `cross_entropy`.

    Returns:
        One per row of the batch, 0 where nothing is masked.
    """
    laid = cross_entropy_at(rows, row_index, clean_ids, scale=scale, wanted=wanted, overwrite_rows=overwrite_rows)
    return laid.sum(-1) / (t.float() * maskable.sum(-1).clamp(min=1))


def diffusion_loss(rows: Rows, row_index: FlatIndex, clean_ids: TokenIds, maskable: TokenMask, t: Times) -> Scalar:
    """The mean of `diffusion_loss_per_row`."""
    return mean_over_rows(diffusion_loss_per_row(rows, row_index, clean_ids, maskable, t))


def cross_entropy_at(
    rows: Rows,
    row_index: FlatIndex,
    targets: TokenIds,
    *,
    scale: PerToken | None = None,
    wanted: DrawnIndex | None = None,
    overwrite_rows: bool = False,
) -> PerToken:
    """Cross-entropy of some rows of logits, laid out by position, 0 where there is no row.

    Args:
        rows: Logits.
        row_index: Their flat positions.
        targets: The right token at every position.
        scale: Multiplies each; None: 1.
        wanted: Numbers of the rows that count, in ascending order, where they are not all; the others are not looked at.
        overwrite_rows: As for `cross_entropy`.
    """
    if wanted is not None:
        row_index = row_index[wanted]
    per_position = cross_entropy(rows, targets.flatten()[row_index], at=wanted, overwrite_rows=overwrite_rows)
    if scale is not None:
        per_position = per_position * scale.flatten()[row_index]
    # laid out by position and not added up by row number: accelerators do that in any order, and no run would repeat exactly
    return torch.zeros(targets.numel(), device=rows.device).index_copy(0, row_index, per_position).view(targets.shape)


def repair_loss_per_row(
    rows: Rows,
    row_index: FlatIndex,
    clean_ids: TokenIds,
    chosen: TokenMask,
    divisor: Times,
    *,
    right: TokenMask | None = None,
    wanted: DrawnIndex | None = None,
    overwrite_rows: bool = False,
) -> Times:
    """Cross-entropy with the data's tokens at some positions of a draft, one per row (ProSeCo, arXiv 2602.11590).

    Args:
        rows: Logits.
        row_index: Their flat positions; every chosen one is among them.
        clean_ids: Tokens of the data.
        chosen: Positions that count.
        divisor: Of each row's sum, > 0.
        right: Where minus the probability of the data's token counts instead, in [-1, 0]; None: nowhere.
        wanted: As for `cross_entropy_at`.
        overwrite_rows: As for `cross_entropy`.
    """
    laid = cross_entropy_at(rows, row_index, clean_ids, wanted=wanted, overwrite_rows=overwrite_rows)
    if right is not None:
        laid = torch.where(right, -laid.neg().exp(), laid)
    return (laid * chosen).sum(-1) / divisor


def cap_loss_per_row(rows: Rows, row_index: FlatIndex, clean_ids: TokenIds, masked: TokenMask) -> Times:
    """Entropy in nats at the masked positions whose most probable token is the data's, their mean of each row (CAP).

    From LLaDA2.0's technical report, arXiv 2512.15745. Where the model is wrong nothing is learnt.

    Args:
        rows: Logits, those of every masked position among them.
        row_index: Their flat positions.
        clean_ids: Tokens of the data.
        masked: Positions that count.

    Returns:
        0 where the model is right at none.
    """
    counts = masked.flatten()[row_index] & (rows.detach().argmax(-1) == clean_ids.flatten()[row_index])
    nothing = torch.zeros(clean_ids.numel(), device=rows.device)
    laid = nothing.index_copy(0, row_index, entropy(rows) * counts).view(clean_ids.shape)
    number = nothing.index_copy(0, row_index, counts.float()).view(clean_ids.shape).sum(-1)
    return laid.sum(-1) / number.clamp(min=1)


@torch.no_grad()
def probability_where(rows: Rows, row_index: FlatIndex, clean_ids: TokenIds) -> PerToken:
    """The probability that rows of logits give to the data's tokens, laid out by position, 1 where there is no row."""
    return cross_entropy_at(rows, row_index, clean_ids).neg().exp()


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


def mean_over_rows(per_row: Times) -> Scalar:
    """The mean over rows, 0 without any."""
    return per_row.sum() / max(per_row.shape[0], 1)


@dataclass(frozen=True)
class PrismLossOutput:
    """The PRISM loss, its two terms before weighting (nats), and counts from which a base rate is made."""

    loss: Scalar
    quality_loss: Scalar
    diffusion_loss: Scalar
    num_correct: Scalar  # judged tokens equal to the data
    num_judged: Count


def prism_loss(
    quality_logits: PerDraftToken,
    labels: Labels,
    rows: Rows | None,
    row_index: FlatIndex | None,
    clean_ids: TokenIds,
    maskable: TokenMask,
    t: Times,
    *,
    diffusion_weight: float = 0.5,
    quality_weight: float = 1.0,
) -> PrismLossOutput:
    """The PRISM objective, from the functions that its terms call: quality on the draft, diffusion on the noised tokens.

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
    if (rows is None or row_index is None) and diffusion_weight:
        raise ConfigurationError(
            f"The diffusion term has weight {diffusion_weight} but no rows of logits; pass them or weight 0."
        )
    quality = quality_loss(quality_logits, labels)
    diffusion = torch.zeros_like(quality)
    if rows is not None and row_index is not None:
        diffusion = diffusion_loss(rows, row_index, clean_ids, maskable, t)
    return PrismLossOutput(
        loss=quality_weight * quality + diffusion_weight * diffusion,
        quality_loss=quality,
        diffusion_loss=diffusion,
        num_correct=labels.targets.sum(),
        num_judged=labels.labelled.sum(),
    )
