"""The terms of the objectives, each a pure function of tensors.

One normalisation for all: a term is averaged within its row, then over rows. A row without labels counts as 0, so eight
micro-batches of one row give the gradient of one batch of eight.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prism_plugin.core.labels import QualityLabels
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
    return _weighted_cross_entropy(rows, row_index, clean_ids, maskable, t).sum() / max(clean_ids.shape[0], 1)


def diffusion_loss_per_row(rows: Rows, row_index: FlatIndex, clean_ids: TokenIds, maskable: TokenMask, t: Times) -> Times:
    """The terms of `diffusion_loss`, one per row of the batch, 0 where nothing is masked. Arguments as there."""
    per_position = _weighted_cross_entropy(rows, row_index, clean_ids, maskable, t)
    return torch.zeros_like(t, dtype=torch.float32).index_add(0, row_index // clean_ids.shape[1], per_position)


def _weighted_cross_entropy(
    rows: Rows, row_index: FlatIndex, clean_ids: TokenIds, maskable: TokenMask, t: Times
) -> Float[Tensor, " rows"]:
    per_position = F.cross_entropy(rows.float(), clean_ids.flatten()[row_index], reduction="none")
    weight = 1 / (t.float() * maskable.sum(-1))
    return per_position * weight[row_index // clean_ids.shape[1]]


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
    return PrismLossOutput(
        loss=quality_weight * quality + diffusion_weight * diffusion,
        quality_loss=quality,
        diffusion_loss=diffusion,
        num_correct=labels.targets.sum(),
        num_judged=labels.labelled.sum(),
    )
