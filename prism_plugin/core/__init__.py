"""The mathematics: tensors in, tensors out. No model, tokenizer, file or device of its own."""

from prism_plugin.core.calibration import auroc, brier, ece
from prism_plugin.core.categorical import RowStats, draw_rows, token_confidence
from prism_plugin.core.corruption import MaskedTokens, draw_times, mask_tokens
from prism_plugin.core.drafting import Draft, DraftRule, draft_positions, num_to_draft
from prism_plugin.core.labels import QualityLabels, drafted_labels, visible_labels
from prism_plugin.core.losses import (
    PrismLossOutput,
    cross_entropy,
    diffusion_loss,
    diffusion_loss_per_row,
    prism_loss,
    quality_loss,
    quality_loss_per_row,
    share_scale,
    weigh,
)
from prism_plugin.core.noise import uniforms
from prism_plugin.core.remasking import (
    REMASKING,
    CommitConfidenceRemasking,
    NeverRemasking,
    QualityRemasking,
    QualityThresholdRemasking,
    RandomRemasking,
    RedraftRemasking,
    RemaskingRule,
    RemdmConfRemasking,
)
from prism_plugin.core.schedules import SCHEDULES, EvenSchedule, LoopSchedule, RedraftSchedule, RefineSchedule, Schedule
from prism_plugin.core.selection import at_most, select_above, select_top
from prism_plugin.core.unmasking import (
    UNMASKING,
    ConfidenceUnmasking,
    EntropyUnmasking,
    MarginUnmasking,
    RandomUnmasking,
    RedraftUnmasking,
    ThresholdUnmasking,
    UnmaskingRule,
)
from prism_plugin.core.view import Budget, StepView, apply_step, unmask_grant

__all__ = [
    "REMASKING",
    "SCHEDULES",
    "UNMASKING",
    "Budget",
    "CommitConfidenceRemasking",
    "ConfidenceUnmasking",
    "Draft",
    "DraftRule",
    "EntropyUnmasking",
    "EvenSchedule",
    "LoopSchedule",
    "MarginUnmasking",
    "MaskedTokens",
    "NeverRemasking",
    "PrismLossOutput",
    "QualityLabels",
    "QualityRemasking",
    "QualityThresholdRemasking",
    "RandomRemasking",
    "RandomUnmasking",
    "RedraftRemasking",
    "RedraftSchedule",
    "RedraftUnmasking",
    "RefineSchedule",
    "RemaskingRule",
    "RemdmConfRemasking",
    "RowStats",
    "Schedule",
    "StepView",
    "ThresholdUnmasking",
    "UnmaskingRule",
    "apply_step",
    "at_most",
    "auroc",
    "brier",
    "cross_entropy",
    "diffusion_loss",
    "diffusion_loss_per_row",
    "draft_positions",
    "drafted_labels",
    "draw_rows",
    "draw_times",
    "ece",
    "mask_tokens",
    "num_to_draft",
    "prism_loss",
    "quality_loss",
    "quality_loss_per_row",
    "select_above",
    "select_top",
    "share_scale",
    "token_confidence",
    "uniforms",
    "unmask_grant",
    "visible_labels",
    "weigh",
]
