"""The objective of recorded drafts: PRISM's loss on what a sampler's canvas held, with nothing drafted on the fly."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from prism_plugin.core.drafting import Draft
from prism_plugin.core.losses import diffusion_loss_per_row
from prism_plugin.data import require_batch
from prism_plugin.modeling.model import PrismModel
from prism_plugin.training.objectives import (
    OBJECTIVES,
    Apart,
    StepOutput,
    check_weights,
    diffusion_apart,
    judge_draft,
    logits_without_dropout,
)
from prism_plugin.types import Times, TokenMask


@OBJECTIVES.register("prism_recorded")
@dataclass(frozen=True)
class RecordedPrismObjective:
    """Ask the head which tokens of a recorded canvas are right: PRISM's loss (arXiv 2510.01384) under a sampler's corruption.

    Rows bring the canvas as `draft_ids`: what a sampler had written at some moment, mask tokens included. The head judges its
    revealed tokens among the maskable ones; the diffusion term is that of the data under the canvas's own masks. PRISM's
    exact posterior is then one of the recorded canvases: the minimiser is p(clean = token | canvas) under the distribution
    that was recorded, and holds for samplers that visit such canvases.

    Neither epoch nor seed is read: without dropout the losses are a function of the batch and the weights. With dropout the
    second look differs each time, by torch's random state; the first has none.

    Args:
        diffusion_weight: Weight of the masked diffusion cross-entropy, >= 0, as `PrismObjective` has it. At 0 the look that it
            needs is left out, and the diffusion loss is said to be 0.
        quality_weight: Weight of the quality cross-entropy, >= 0.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    reads_drafts: ClassVar[bool] = True  # the column `draft_ids`, which has to be there then

    diffusion_weight: float = 0.5
    quality_weight: float = 1.0

    def __post_init__(self) -> None:
        check_weights(self)

    def step(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        epoch: int,
        seed: int,
        unwrapped: PrismModel,
        apart: Apart | None = None,
    ) -> StepOutput:
        """Two looks, two terms; see `Objective.step`. The draft's confidence is 0, since it was not recorded."""
        require_batch(batch, with_drafts=True)
        draft_ids, maskable = batch["draft_ids"], batch["maskable"]
        masked = maskable & (draft_ids == unwrapped.mask_token_id)
        # Where it has a weight, every batch is looked at, one without masks too: processes look equally often together.
        if self.diffusion_weight:
            look = partial(_look_at_masks, model, unwrapped, batch, masked)
            diffusion, diffusion_per_row = diffusion_apart(look, self.diffusion_weight, apart)
        else:
            diffusion_per_row = torch.zeros(len(draft_ids), device=draft_ids.device)
            diffusion = diffusion_per_row.sum()
        confidence = torch.zeros(draft_ids.shape, device=draft_ids.device)
        draft = Draft(draft_ids=draft_ids, drafted=maskable & ~masked, confidence=confidence)
        return judge_draft(self, model, batch, draft, diffusion, diffusion_per_row)


def _look_at_masks(model: nn.Module, unwrapped: PrismModel, batch: Mapping[str, Tensor], masked: TokenMask) -> Times:
    """Diffusion losses per row, of the data under the canvas's masks: the mean over the masked positions, 0 without any."""
    clean_ids, maskable = batch["input_ids"], batch["maskable"]
    noised_ids = torch.where(masked, unwrapped.mask_token_id, clean_ids)
    row_index = masked.flatten().nonzero().squeeze(-1)
    rows = logits_without_dropout(model, unwrapped, noised_ids, batch["attention_mask"], row_index)
    t = masked.sum(-1).clamp(min=1) / maskable.sum(-1).clamp(min=1)
    return diffusion_loss_per_row(rows, row_index, clean_ids, maskable, t, overwrite_rows=True)
