"""Corruptors: clean rows -> noised tokens and a draft. They know nothing of losses (stations 7 and 9 of training)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from prism_plugin.core.corruption import Corrupted, Noise, draw_times, mask_tokens
from prism_plugin.core.drafting import DraftRule
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.errors import ConfigurationError
from prism_plugin.registry import Registry
from prism_plugin.training.drafts import Ask, DraftMaker, require_draftable
from prism_plugin.types import FlatIndex, Rows, Times, TokenMask


class Plan(Protocol):
    """One batch under way. The objective asks for its parts in this order.

    Attributes:
        noised: What the first look sees, one row for each row of the batch; None: there is no first look.
        reads: Positions whose logits of the first look the draft needs; None where it needs none.
    """

    @property
    def noised(self) -> Corrupted | None: ...
    @property
    def reads(self) -> TokenMask | None: ...

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Take from the first look what the draft needs, before its backward, which may write over the rows.

        Args:
            rows: Logits at `reads` and maybe elsewhere, detached, of tokens that the tokenizer has (`of_known_tokens`).
            row_index: Flat positions of the rows, row-major.
        """
        ...

    def finish(self, ask: Ask) -> Corrupted:
        """Make the draft, by further looks where it needs some: the same number on every process."""
        ...


class Corruptor(Protocol):
    """Turns clean rows into a plan. A frozen dataclass, registered in `CORRUPTORS` if it is to be saved.

    All its chance comes from `noise`, so that a batch, an epoch and a seed give the same plan anywhere. One that reads recorded
    drafts, the column `draft_ids`, says so by a class variable `reads_drafts` that is True; others get no rows that have them.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> Plan:
        """Begin with a batch.

        Args:
            batch: What `PrismCollator` makes; and `attention_block`, the number of the block that each position is in, where
                the family attends by blocks.
            noise: Uniforms of each row by name.
            mask_token_id: Id of the mask token.
        """
        ...


CORRUPTORS: Registry[Corruptor] = Registry("corruptor")


def masked_batch(batch: Mapping[str, Tensor], t: Times, noise: Noise, mask_token_id: int) -> Corrupted:
    """Mask each maskable token of a batch with probability `t` of its row, by the draw "masked"."""
    clean_ids, maskable = batch["input_ids"], batch["maskable"]
    masked = mask_tokens(clean_ids, maskable, mask_token_id=mask_token_id, t=t, noise=noise("masked", None))
    return Corrupted(
        ids=masked.noised_ids,
        clean_ids=clean_ids,
        attention_mask=batch["attention_mask"],
        maskable=maskable,
        masked=masked.masked,
        masked_before=masked.masked,
        drafted=torch.zeros_like(masked.masked),
        t=t,
        noise=noise,
    )


@CORRUPTORS.register("fill")
@dataclass(frozen=True)
class Fill:
    """Mask each row at a rate of its own, and fill some of the masks with the model's own tokens.

    Args:
        drafts: How a draft is made; with several rules, each example picks one by its weight in each epoch.
        num_drafts: Drafts per noised sequence, >= 1. They share the first look; the second has that many times the rows.
        t_min: Smallest masking probability, > 0.
        t_max: Largest masking probability, <= 1.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    drafts: tuple[DraftRule, ...] = (DraftRule(),)
    num_drafts: int = 1
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.drafts, tuple | list) or not all(isinstance(rule, DraftRule) for rule in self.drafts):
            raise ConfigurationError(f"`drafts` is a tuple of DraftRule, found {self.drafts!r}.")
        if not self.drafts:
            raise ConfigurationError("`drafts` needs at least one DraftRule, found none.")
        object.__setattr__(self, "drafts", tuple(self.drafts))
        for rule in self.drafts:
            require_draftable(rule)
        require_int(self, "num_drafts", minimum=1)
        for name in ("t_min", "t_max"):
            require_number(self, name, "a finite number", low=-math.inf)
        draw_times(torch.zeros(1), self.t_min, self.t_max)

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> DraftMaker:
        t = draw_times(noise("t", 1).squeeze(-1), self.t_min, self.t_max)
        noised = masked_batch(batch, t, noise, mask_token_id)
        return DraftMaker(self.drafts, self.num_drafts, noised, mask_token_id, batch.get("attention_block"))


@dataclass(frozen=True)
class Given:
    """A plan that asks the model for nothing: the draft is there when the batch is."""

    noised: Corrupted | None
    draft: Corrupted
    reads: None = None

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Nothing is read of the first look."""

    def finish(self, ask: Ask) -> Corrupted:
        return self.draft


@CORRUPTORS.register("recorded")
@dataclass(frozen=True)
class Recorded:
    """Take what a sampler's canvas held at some moment, mask tokens included, from the rows' column `draft_ids`.

    The noised tokens are the data under the canvas's own masks. Neither epoch nor seed is read: without dropout the losses are
    a function of the batch and the weights. With dropout the second look differs each time, by torch's random state; the first
    has none.
    """

    reads_drafts: ClassVar[bool] = True

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> Given:
        clean_ids, draft_ids, maskable = batch["input_ids"], batch["draft_ids"], batch["maskable"]
        masked = maskable & (draft_ids == mask_token_id)
        same: dict[str, Any] = {
            "clean_ids": clean_ids,
            "attention_mask": batch["attention_mask"],
            "maskable": maskable,
            "masked": masked,
            "masked_before": masked,
            "t": masked.sum(-1).clamp(min=1) / maskable.sum(-1).clamp(min=1),
            "noise": noise,
        }
        noised_ids = torch.where(masked, mask_token_id, clean_ids)
        return Given(
            noised=Corrupted(ids=noised_ids, drafted=torch.zeros_like(masked), **same),
            draft=Corrupted(ids=draft_ids, drafted=maskable & ~masked, **same),
        )
