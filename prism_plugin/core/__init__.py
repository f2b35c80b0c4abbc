"""The mathematics: tensors in, tensors out. No model, tokenizer, file or device of its own."""

from prism_plugin.core.calibration import auroc, brier, ece
from prism_plugin.core.categorical import RowStats, draw_rows, token_confidence
from prism_plugin.core.corruption import Corrupted, MaskedTokens, draw_times, mask_tokens
from prism_plugin.core.drafting import DraftRule, num_to_draft
from prism_plugin.core.editing import EDITING, EditingRule, ThresholdEditing
from prism_plugin.core.forbidding import HeldBack
from prism_plugin.core.joint import DECIDERS, P2Decider
from prism_plugin.core.labels import Labels, drafted_labels, visible_labels
from prism_plugin.core.lm_loss import cross_entropy
from prism_plugin.core.losses import (
    PrismLossOutput,
    cross_entropy_at,
    diffusion_loss,
    diffusion_loss_per_row,
    mean_over_rows,
    prism_loss,
    quality_loss,
    quality_loss_per_row,
    share_scale,
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
from prism_plugin.core.soft import SoftTokens, soft_tokens
from prism_plugin.core.terms import TERMS, CapTerm, DiffusionTerm, Looked, QualityTerm, RepairTerm, Term
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
from prism_plugin.core.view import Budget, Decider, Decision, StepView, apply_step, unmask_grant

__all__ = [
    "DECIDERS",
    "EDITING",
    "REMASKING",
    "SCHEDULES",
    "TERMS",
    "UNMASKING",
    "Budget",
    "CapTerm",
    "CommitConfidenceRemasking",
    "ConfidenceUnmasking",
    "Corrupted",
    "Decider",
    "Decision",
    "DiffusionTerm",
    "DraftRule",
    "EditingRule",
    "EntropyUnmasking",
    "EvenSchedule",
    "HeldBack",
    "Labels",
    "Looked",
    "LoopSchedule",
    "MarginUnmasking",
    "MaskedTokens",
    "NeverRemasking",
    "P2Decider",
    "PrismLossOutput",
    "QualityRemasking",
    "QualityTerm",
    "QualityThresholdRemasking",
    "RandomRemasking",
    "RandomUnmasking",
    "RedraftRemasking",
    "RedraftSchedule",
    "RedraftUnmasking",
    "RefineSchedule",
    "RemaskingRule",
    "RemdmConfRemasking",
    "RepairTerm",
    "RowStats",
    "Schedule",
    "SoftTokens",
    "StepView",
    "Term",
    "ThresholdEditing",
    "ThresholdUnmasking",
    "UnmaskingRule",
    "apply_step",
    "at_most",
    "auroc",
    "brier",
    "cross_entropy",
    "cross_entropy_at",
    "diffusion_loss",
    "diffusion_loss_per_row",
    "drafted_labels",
    "draw_rows",
    "draw_times",
    "ece",
    "mask_tokens",
    "mean_over_rows",
    "num_to_draft",
    "prism_loss",
    "quality_loss",
    "quality_loss_per_row",
    "select_above",
    "select_top",
    "share_scale",
    "soft_tokens",
    "token_confidence",
    "uniforms",
    "unmask_grant",
    "visible_labels",
]
