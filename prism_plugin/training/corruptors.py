"""Corruptors: clean rows -> noised tokens and a draft. They know nothing of losses (stations 7 and 9 of training)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from prism_plugin.core.corruption import Corrupted, Noise, draw_times, mask_after_prefix, mask_tokens, other_tokens
from prism_plugin.core.drafting import DraftRule
from prism_plugin.core.history import HISTORY, History
from prism_plugin.core.validation import require_choice, require_int, require_number
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

    All its chance comes from `noise`, so that a batch, an epoch and a seed give the same plan anywhere. What it may say of
    itself by attributes of these names:

    - `reads_drafts`, True: it reads recorded drafts, the column `draft_ids`. Others get no rows that have them.
    - `draws_tokens`, True: the batch holds `known_ids`, the tokens to draw from, in ascending order and without the mask.
    - `first_look`, False: its plans have no first look, so no term can read one.
    - `leaves_masks`, False: its drafts hold no mask, so no term can learn there.
    - `soft_inputs`, True: its drafts mix embeddings, so the model must take them in place of ids.
    - `within(batch, noise)`, which leaves less to be masked: what it gives is what `plan` gets.
    - `history_hidden`, a share: its drafts know what their tokens have been through, and so many rows hide it from the head.
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
HISTORY_HIDDEN = 0.5


MASKINGS = {"independent": mask_tokens, "permuted_prefix": mask_after_prefix}


def masked_batch(
    batch: Mapping[str, Tensor], t: Times, noise: Noise, mask_token_id: int, masks: str = "independent"
) -> Corrupted:
    """Mask a share `t` of each row's maskable tokens, by the draw "masked"; `masks` is a key of `MASKINGS`."""
    clean_ids, maskable = batch["input_ids"], batch["maskable"]
    masked = MASKINGS[masks](clean_ids, maskable, mask_token_id=mask_token_id, t=t, noise=noise("masked", None))
    return Corrupted(
        ids=masked.noised_ids,
        clean_ids=clean_ids,
        attention_mask=batch["attention_mask"],
        maskable=maskable,
        masked=masked.masked,
        masked_before=masked.masked,
        drafted=torch.zeros_like(masked.masked),
        t=masked.t,
        noise=noise,
    )


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How each row is masked, in the corruptors that mask at random.

    Args:
        t_min: Smallest masking probability, > 0.
        t_max: Largest masking probability, <= 1.
        masks: "independent": each token by itself; "permuted_prefix": all but a prefix of a random order (`mask_after_prefix`).
        noised_blocks: Of a family that attends by blocks: "one": one block of each row, drawn by its maskable tokens, behind
            clean ones, as such families are pretrained (block diffusion, arXiv 2503.09573); "all": every block, behind blocks
            that are noised too. "auto": one where the family attends by blocks; others have no blocks.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    masks: Literal["independent", "permuted_prefix"] = "independent"
    noised_blocks: Literal["auto", "one", "all"] = "auto"

    def __post_init__(self) -> None:
        for name in ("t_min", "t_max"):
            require_number(self, name, "a finite number", low=-math.inf)
        draw_times(torch.zeros(1), self.t_min, self.t_max)
        require_choice(self, "masks", tuple(MASKINGS))
        require_choice(self, "noised_blocks", ("auto", "one", "all"))

    def within(self, batch: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """The batch with one block of each row left to be masked, where that is asked for.

        Raises:
            ConfigurationError: If it is asked for and the family does not attend by blocks.
        """
        block = batch.get("attention_block")
        if block is None and self.noised_blocks == "one":
            raise ConfigurationError(
                "`noised_blocks: one` needs a family that attends by blocks, which this model's does not; leave it at auto."
            )
        if block is None or self.noised_blocks == "all":
            return batch
        maskable = batch["maskable"]
        count = maskable.sum(-1, keepdim=True)
        number = (noise("noised_block", 1).to(maskable.device) * count).long().minimum((count - 1).clamp(min=0))
        chosen = maskable & (maskable.cumsum(-1) == number + 1)
        return {**batch, "maskable": maskable & (block == (block * chosen).sum(-1, keepdim=True))}

    def noised(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> Corrupted:
        """The noised batch, each row at a rate of its own."""
        t = draw_times(noise("t", 1).squeeze(-1), self.t_min, self.t_max)
        return masked_batch(batch, t, noise, mask_token_id, self.masks)


@CORRUPTORS.register("fill")
@dataclass(frozen=True)
class Fill(Masking):
    """Mask each row at a rate of its own, and fill some of the masks with the model's own tokens.

    Args:
        drafts: How a draft is made; with several rules, each example picks one by its weight in each epoch.
        num_drafts: Drafts per noised sequence, >= 1. They share the first look; the second has that many times the rows.
        t_min: As for `Masking`.
        t_max: As for `Masking`.
        masks: As for `Masking`.
        noised_blocks: As for `Masking`.
        history_hidden: As for `Recorded`. With its history, a head sees which tokens were drafted, and learns p(right | draft,
            what was drafted): the posterior that leaves all drafted tokens out, exact for any number of them.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    drafts: tuple[DraftRule, ...] = (DraftRule(),)
    num_drafts: int = 1
    history_hidden: float = HISTORY_HIDDEN

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.drafts, tuple | list) or not all(isinstance(rule, DraftRule) for rule in self.drafts):
            raise ConfigurationError(f"`drafts` is a tuple of DraftRule, found {self.drafts!r}.")
        if not self.drafts:
            raise ConfigurationError("`drafts` needs at least one DraftRule, found none.")
        object.__setattr__(self, "drafts", tuple(self.drafts))
        for rule in self.drafts:
            require_draftable(rule)
        require_int(self, "num_drafts", minimum=1)
        require_number(self, "history_hidden", "a share in [0, 1]", low=0, high=1)

    @property
    def leaves_masks(self) -> bool:
        """Some rule does not fill all masks."""
        return any(rule.share != (1.0, 1.0) for rule in self.drafts)

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> DraftMaker:
        noised = self.noised(batch, noise, mask_token_id)
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
    a function of the batch and the weights, but for `history_hidden`. With dropout the second look differs each time, by
    torch's random state; the first has none.

    Args:
        history_hidden: Share of rows whose history is hidden from a head that reads it, drawn for each row, so that it knows as
            much as other heads where the history is unknown. In rows that show it, terms that judge every visible token judge
            those that the model wrote.

    Raises:
        ConfigurationError: If it is no share.
    """

    history_hidden: float = HISTORY_HIDDEN
    reads_drafts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number(self, "history_hidden", "a share in [0, 1]", low=0, high=1)

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
        history = History(**{name: batch[name] for name in HISTORY}) if HISTORY[0] in batch else None
        return Given(
            noised=Corrupted(ids=noised_ids, drafted=torch.zeros_like(masked), **same),
            draft=Corrupted(ids=draft_ids, drafted=maskable & ~masked, history=history, **same),
        )


@CORRUPTORS.register("random_tokens")
@dataclass(frozen=True)
class RandomTokens(Masking):
    """Mask each row at a rate of its own, and put random wrong tokens in the place of some visible ones: one look, at both.

    Args:
        rate: Of wrong tokens among those that are not masked, in (0, 1).
        mid_rate: Instead of `rate`: wrong tokens are 4 * mid_rate * t * (1 - t) of all, most where half is masked (RemeDi,
            arXiv 2509.23653), in (0, 0.25].
        t_min: As for `Masking`.
        t_max: As for `Masking`.
        masks: As for `Masking`.
        noised_blocks: As for `Masking`.

    Raises:
        ConfigurationError: If a setting is out of range, or not exactly one rate is given.
    """

    rate: float | None = 0.1
    mid_rate: float | None = None
    draws_tokens: ClassVar[bool] = True
    first_look: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rate is None) == (self.mid_rate is None):
            raise ConfigurationError(
                f"RandomTokens needs either `rate` or `mid_rate`, found rate={self.rate} and mid_rate={self.mid_rate}; set the "
                "other to None."
            )
        if self.rate is not None:
            require_number(self, "rate", "a share in (0, 1)", low=0, high=math.nextafter(1.0, 0.0), open_low=True)
        else:
            require_number(self, "mid_rate", "a share in (0, 0.25]", low=0, high=0.25, open_low=True)

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> Given:
        at = self.noised(batch, noise, mask_token_id)
        # of the 1 - t that are visible
        rate = torch.full_like(at.t, self.rate) if self.mid_rate is None else 4 * self.mid_rate * at.t  # type: ignore[arg-type]  # one is given
        wrong = at.visible & (noise("wrong", None) < rate.unsqueeze(-1))
        drawn = other_tokens(at.clean_ids, batch["known_ids"], noise("token", None))
        return Given(noised=None, draft=replace(at, ids=torch.where(wrong, drawn, at.ids), drafted=wrong))
