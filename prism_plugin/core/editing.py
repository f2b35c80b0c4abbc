"""Which revealed tokens to overwrite with another. A rule reads what the model would write there now."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from prism_plugin.core.selection import select_top
from prism_plugin.core.validation import require_choice, require_int, require_number
from prism_plugin.core.view import StepView
from prism_plugin.registry import Registry
from prism_plugin.types import TokenMask


class EditingRule(Protocol):
    """Picks the positions to overwrite: a subset of `view.revealed`; they get the feature `best_visible`.

    It may say `blocks`: "begun" where it may overwrite tokens of blocks before the active one, too.
    """

    def __call__(self, view: StepView) -> TokenMask: ...


EDITING: Registry[EditingRule] = Registry("editing rule")


@dataclass(frozen=True, kw_only=True)
class _OfDoubted:
    """What a rule may overwrite.

    Args:
        quality_below: In [0, 1]: only tokens whose quality is below go; None: any token may.
    """

    quality_below: float | None = None
    reads: ClassVar[tuple[str, ...]] = ()
    by_chance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.quality_below is not None:
            require_number(self, "quality_below", "a probability in [0, 1]", low=0, high=1)

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of a look, and the quality where that restricts it."""
        return frozenset(self.reads) | ({"quality"} if self.quality_below is not None else set())

    def may_go(self, view: StepView) -> TokenMask:
        """Tokens in whose place the model would write another, and that are doubted enough."""
        another = view.revealed & (view.require("best_visible", self) != view.tokens)
        if self.quality_below is None:
            return another
        return another & (view.require("quality", self) < self.quality_below)


@EDITING.register("threshold")
@dataclass(frozen=True)
class ThresholdEditing(_OfDoubted):
    """Overwrite a token by another that the model is sure of: token-to-token editing (LLaDA2.1's T2T, arXiv 2604.18738).

    Args:
        threshold: Probability in [0, 1] that the other token must exceed.
        blocks: "active", or "begun": those before it, too (LLaDA2.1's multi-block editing).
        quality_below: In [0, 1]: only tokens whose quality is below go; None: any token may.
    """

    threshold: float
    blocks: Literal["active", "begun"] = "active"
    reads: ClassVar[tuple[str, ...]] = ("best_visible", "best_visible_confidence")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self, "threshold", "a probability in [0, 1]", low=0, high=1)
        require_choice(self, "blocks", ("active", "begun"))

    def __call__(self, view: StepView) -> TokenMask:
        return self.may_go(view) & (view.require("best_visible_confidence", self) > self.threshold)


@EDITING.register("swap")
@dataclass(frozen=True)
class SwapEditing(_OfDoubted):
    """Once a block is full, overwrite the tokens that another beats by most (GIDD's self-correction, arXiv 2503.04482).

    Args:
        num_swaps: Tokens at each look, >= 1; the authors overwrite one.
        quality_below: In [0, 1]: only tokens whose quality is below go; None: any token may.
    """

    num_swaps: int = 1
    reads: ClassVar[tuple[str, ...]] = ("best_visible", "best_visible_confidence", "visible_confidence")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self, "num_swaps", minimum=1)

    def __call__(self, view: StepView) -> TokenMask:
        ahead = view.require("best_visible_confidence", self) - view.require("visible_confidence", self)
        full = ~view.masked.any(-1, keepdim=True)
        count = torch.full((len(view.tokens),), self.num_swaps, device=view.tokens.device)
        return select_top(ahead, self.may_go(view) & full, count)


@EDITING.register("corrected")
@dataclass(frozen=True)
class CorrectedEditing(_OfDoubted):
    """Overwrite every token by what a corrected look says, and none at other looks (ProSeCo, arXiv 2602.11590).

    For a `CorrectedLook`, over all blocks begun.

    Args:
        quality_below: In [0, 1]: only tokens whose quality is below go; None: any token may.
    """

    blocks: ClassVar[Literal["active", "begun"]] = "begun"
    reads: ClassVar[tuple[str, ...]] = ("corrected", "best_visible")

    def __call__(self, view: StepView) -> TokenMask:
        return self.may_go(view) & view.require("corrected", self).bool()
