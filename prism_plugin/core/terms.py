"""Terms: losses that know at which look they are read, at which positions, and what they weigh."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from prism_plugin.core.corruption import Corrupted
from prism_plugin.core.labels import Labels, drafted_labels, of_written_labels, visible_labels, with_soft_labels
from prism_plugin.core.losses import (
    cap_loss_per_row,
    diffusion_loss_per_row,
    probability_where,
    quality_loss_per_row,
    repair_loss_per_row,
    share_scale,
)
from prism_plugin.core.validation import require_choice, require_number
from prism_plugin.errors import ConfigurationError
from prism_plugin.registry import Registry
from prism_plugin.types import DrawnIndex, FlatIndex, PerToken, Rows, Times, TokenIds, TokenMask


@dataclass(frozen=True)
class Looked:
    """What one look gave.

    Attributes:
        rows: Logits at the positions that a term reads; None where none does.
        row_index: Flat positions of `rows`, in row-major order.
        quality_logits: Output of the quality head before the sigmoid; None where no term reads it.
        wanted: Numbers of the rows that the term itself reads, where others, or the draft, read more; None: all.
        may_overwrite: One term alone reads `rows`, so it may write their gradient over them.
        kept: What was made of the rows, for whoever asks again; copies of a look share it.
    """

    rows: Rows | None = None
    row_index: FlatIndex | None = None
    quality_logits: PerToken | None = None
    wanted: DrawnIndex | None = None
    may_overwrite: bool = False
    kept: dict[str, PerToken] = field(default_factory=dict, compare=False, repr=False)

    def probability_of(self, clean_ids: TokenIds) -> PerToken:
        """As `probability_where`; the rows are gone through once, though losses and figures both ask."""
        if "probability" not in self.kept:
            self.kept["probability"] = probability_where(self.rows, self.row_index, clean_ids)
        return self.kept["probability"]


class Term(Protocol):
    """One loss of an objective: a frozen dataclass, registered in `TERMS` if it is to be saved.

    It knows nothing of how the draft came to be, only what is right: `Corrupted` says what was done to the data. One that
    learns at masks alone may say so by a `reads_masks` that is True: it is then refused where a corruptor leaves none.

    Attributes:
        name: As registered: it is logged as `<name>_loss`, weighted as `<name>_weight`, and written to disk.
        weight: In the sum of all terms, >= 0.
        on: Which look it reads: that at the noised tokens, or that at the draft.
        reads_quality: It reads the quality head.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def on(self) -> Literal["noised", "draft"]: ...
    @property
    def reads_quality(self) -> bool: ...

    def rows(self, at: Corrupted) -> TokenMask | None:
        """Positions whose logits it reads; None if it never reads any. What others read is looked at together."""
        ...

    def labels(self, looked: Looked, at: Corrupted) -> Labels | None:
        """What the quality should be and where; base rate and AUROC come from it. None: it does not judge."""
        ...

    def __call__(self, looked: Looked, at: Corrupted) -> Times:
        """The loss of each row, in nats. `looked.rows` may hold other positions besides its own."""
        ...


TERMS: Registry[Term] = Registry("term")


@TERMS.register("diffusion")
@dataclass(frozen=True)
class DiffusionTerm:
    """Keeps the language model in place: `diffusion_loss_per_row` at the masks of the noised tokens.

    Args:
        weight: The paper's lambda, >= 0. Default: --reg_coeff of the authors' PRISM_llada/train.py. 0 where the backbone is
            frozen.
        share: Share of each row's masked positions at which the term is computed, in (0, 1], rounded up; the others are
            estimated from them, without bias and with the variance that `share_scale` states. Below 1 it saves rows of the
            LM head where drafts take random positions; other drafts read all of them.
        on: Whose masks: those of the noised tokens, whose other tokens are the data's; or those of the draft, among whose
            tokens some may be wrong.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    weight: float = 0.5
    share: float = 1.0
    on: Literal["noised", "draft"] = "noised"
    name: ClassVar[str] = "diffusion"
    reads_quality: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "weight", "0 or more", low=0.0)
        require_number(self, "share", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_choice(self, "on", ("noised", "draft"))

    @property
    def reads_masks(self) -> bool:
        """It learns at masks alone."""
        return True

    def rows(self, at: Corrupted) -> TokenMask:
        return at.masked if self.share == 1 else self._scale(at) > 0

    def labels(self, looked: Looked, at: Corrupted) -> None:
        return None

    def __call__(self, looked: Looked, at: Corrupted) -> Times:
        return diffusion_loss_per_row(
            looked.rows, looked.row_index, at.clean_ids, at.maskable, at.t,
            scale=self._scale(at), wanted=looked.wanted, overwrite_rows=looked.may_overwrite,
        )  # fmt: skip

    def _scale(self, at: Corrupted) -> PerToken:
        return at.masked.float() if self.share == 1 else share_scale(at.masked, self.share, at.noise("diffusion", None))


@TERMS.register("quality")
@dataclass(frozen=True)
class QualityTerm:
    """Teaches the head which tokens of the draft are right: `quality_loss_per_row` (PRISM, arXiv 2510.01384).

    Args:
        weight: >= 0.
        where: "drafted" labels what the draft filled; "visible" every token that could have been corrupted; "all" the masks,
            too, whose target is the probability that the model gives to the data's token there, without a gradient (RemeDi,
            arXiv 2509.23653): one head then ranks tokens and masks.
        by_time: Divided by t and by the maskable positions, as the diffusion term is (P2's planner, arXiv 2502.03540);
            otherwise the mean over the labelled positions.

    In rows that show the head their history, only tokens that the model wrote are labelled: a given one is right for sure.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    weight: float = 1.0
    where: Literal["drafted", "visible", "all"] = "drafted"
    by_time: bool = False
    name: ClassVar[str] = "quality"
    on: ClassVar[Literal["noised", "draft"]] = "draft"
    reads_quality: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "weight", "0 or more", low=0.0)
        require_choice(self, "where", ("drafted", "visible", "all"))

    def rows(self, at: Corrupted) -> TokenMask | None:
        return at.maskable & at.masked if self.where == "all" else None

    def labels(self, looked: Looked, at: Corrupted) -> Labels:
        if self.where == "drafted":
            labels = drafted_labels(at.ids, at.clean_ids, at.drafted)
        else:
            labels = visible_labels(at.ids, at.clean_ids, at.maskable, at.masked)
        if at.history is not None:
            labels = of_written_labels(labels, at.history)
        if self.where != "all":
            return labels
        masked = at.maskable & at.masked
        return with_soft_labels(labels, masked, looked.probability_of(at.clean_ids))

    def __call__(self, looked: Looked, at: Corrupted) -> Times:
        divisor = at.t.float() * at.maskable.sum(-1).clamp(min=1) if self.by_time else None
        return quality_loss_per_row(looked.quality_logits, self.labels(looked, at), divisor)


@TERMS.register("repair")
@dataclass(frozen=True)
class RepairTerm:
    """Teaches the language model what should stand at positions of the draft: cross-entropy with the data's token.

    Args:
        weight: >= 0.
        where: "visible" tokens that could have been corrupted, those among them that are "wrong", "masked" positions, or "all":
            visible and masked ones.
        by_time: Weighted by 1/t and divided by the maskable positions, as the diffusion term is (ProSeCo, arXiv 2602.11590);
            otherwise the mean over the positions read.
        errors_weigh_more: Where the draft is right, minus the probability of its token stands for the cross-entropy: the slope
            is that of the cross-entropy times the probability, so errors weigh more (ProSeCo's OpenWebText script).

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    weight: float = 1.0
    where: Literal["visible", "wrong", "masked", "all"] = "visible"
    by_time: bool = False
    errors_weigh_more: bool = False
    name: ClassVar[str] = "repair"
    on: ClassVar[Literal["noised", "draft"]] = "draft"
    reads_quality: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self, "weight", "0 or more", low=0.0)
        require_choice(self, "where", ("visible", "wrong", "masked", "all"))
        if self.errors_weigh_more and self.where in ("wrong", "masked"):
            raise ConfigurationError(
                f"`errors_weigh_more` of RepairTerm tells right tokens from wrong ones, and where={self.where!r} reads no "
                'right one; leave it out, or take where="all" or "visible".'
            )

    @property
    def reads_masks(self) -> bool:
        """It learns at masks alone."""
        return self.where == "masked"

    def rows(self, at: Corrupted) -> TokenMask:
        if self.where == "wrong":
            return at.visible & (at.ids != at.clean_ids)
        return {"visible": at.visible, "masked": at.maskable & at.masked, "all": at.maskable}[self.where]

    def labels(self, looked: Looked, at: Corrupted) -> None:
        return None

    def __call__(self, looked: Looked, at: Corrupted) -> Times:
        chosen = self.rows(at)
        right = at.ids == at.clean_ids if self.errors_weigh_more else None
        divisor = at.t.float() * at.maskable.sum(-1).clamp(min=1) if self.by_time else chosen.sum(-1).clamp(min=1)
        return repair_loss_per_row(
            looked.rows, looked.row_index, at.clean_ids, chosen, divisor,
            right=right, wanted=looked.wanted, overwrite_rows=looked.may_overwrite,
        )  # fmt: skip


@TERMS.register("cap")
@dataclass(frozen=True)
class CapTerm:
    """Makes the model sure where it is right, so that more tokens pass a threshold at one look: `cap_loss_per_row`.

    Confidence-aware parallel training (CAP, LLaDA2.0's technical report, arXiv 2512.15745). The report gives no weight; the
    framework that it names for training has 0 unless asked, and recommends 2.

    Args:
        weight: >= 0.

    Raises:
        ConfigurationError: If the weight is negative.
    """

    weight: float = 0.1
    name: ClassVar[str] = "cap"
    on: ClassVar[Literal["noised", "draft"]] = "noised"
    reads_quality: ClassVar[bool] = False
    reads_masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "weight", "0 or more", low=0.0)

    def rows(self, at: Corrupted) -> TokenMask:
        return at.masked

    def labels(self, looked: Looked, at: Corrupted) -> None:
        return None

    def __call__(self, looked: Looked, at: Corrupted) -> Times:
        return cap_loss_per_row(looked.rows, looked.row_index, at.clean_ids, at.masked)
