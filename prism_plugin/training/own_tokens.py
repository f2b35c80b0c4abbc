"""Corruptors that write the model's own tokens in other ways than `fill`: everywhere, into a cleaner state, or masked again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prism_plugin.core.categorical import draw_rows, most_probable
from prism_plugin.core.corruption import Corrupted, Noise, draw_times
from prism_plugin.core.selection import select_top
from prism_plugin.core.validation import require_choice, require_number
from prism_plugin.errors import ConfigurationError
from prism_plugin.training.corruptors import CORRUPTORS, MASKINGS, Masking, masked_batch
from prism_plugin.training.drafts import Ask
from prism_plugin.types import FlatIndex, Rows, TokenMask


class _OneLook:
    """A plan that takes one token for each position of the first look that it reads.

    Args:
        noised: What the first look sees.
        reads: Positions whose tokens are taken.
        mask_token_id: Id of the mask token, which is never taken.
        samples: Draw the tokens from the model's distribution; otherwise its most probable ones.
    """

    def __init__(self, noised: Corrupted, reads: TokenMask, mask_token_id: int, *, samples: bool = False) -> None:
        self.noised, self.reads, self._mask_token_id, self._samples = noised, reads, mask_token_id, samples

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Take the tokens; see `Plan.fill`."""
        forbidden_ids = (self._mask_token_id,)
        if self._samples:
            uniforms = self.noised.noise("token/0/0", None).flatten()[row_index]
            tokens = draw_rows(rows, temperature=1.0, uniforms=uniforms, forbidden_ids=forbidden_ids).candidates
        else:
            tokens = most_probable(rows, forbidden_ids=forbidden_ids)
        self.ids = self._laid(self.noised.ids, tokens, row_index)

    def _laid(self, whole: Tensor, part: Tensor, row_index: FlatIndex) -> Tensor:
        return whole.flatten().index_copy(0, row_index, part.to(whole.dtype)).view(whole.shape)

    def finish(self, ask: Ask) -> Corrupted:
        """Put the tokens where they were read; see `Plan.finish`."""
        at = self.noised
        ids = torch.where(self.reads, self.ids, at.ids)
        return replace(at, ids=ids, masked=at.masked & ~self.reads, drafted=self.reads)


@CORRUPTORS.register("predict_all")
@dataclass(frozen=True)
class PredictAll(Masking):
    """Mask each row at a rate of its own, and let the model write all of it (ProSeCo, arXiv 2602.11590).

    Args:
        visible: What stands where nothing was masked: the "model"'s token, as in both of the authors' training scripts, or the
            "data"'s, as by default in their code.
        tokens: "argmax", or "sample" from the model's distribution.
        t_min: As for `Masking`.
        t_max: As for `Masking`.
        masks: As for `Masking`.
        noised_blocks: As for `Masking`.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    visible: Literal["model", "data"] = "model"
    tokens: Literal["argmax", "sample"] = "argmax"
    leaves_masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "visible", ("model", "data"))
        require_choice(self, "tokens", ("argmax", "sample"))

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> _OneLook:
        noised = self.noised(batch, noise, mask_token_id)
        reads = noised.maskable if self.visible == "model" else noised.masked
        return _OneLook(noised, reads, mask_token_id, samples=self.tokens == "sample")


@CORRUPTORS.register("look_back")
@dataclass(frozen=True)
class LookBack(Masking):
    """Let the model write at a state with more masks, and put its surest tokens into one with fewer.

    BackPlay, arXiv 2601.06428. So tokens that were written with little context are judged with more. The masks of the cleaner
    state are among those of the noisier one. Where it has a mask, some of the tokens fill it.

    Args:
        step: Least share that the noisier state has more masked, and the share of each row's maskable positions that is taken
            from it, rounded up, in (0, 1).
        t_min: Smallest masking probability of the cleaner state, > 0.
        t_max: Largest masking probability of the noisier state, <= 1.
        masks: As for `Masking`.
        noised_blocks: As for `Masking`.

    Raises:
        ConfigurationError: If a setting is out of range, or the step does not fit between `t_min` and `t_max`.
    """

    step: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self, "step", "a share in (0, 1)", low=0, high=1, open_low=True)
        if self.t_min + self.step > self.t_max:
            raise ConfigurationError(
                f"`step` of LookBack must fit between t_min={self.t_min} and t_max={self.t_max}, found {self.step}; lower it."
            )

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> "_LookBack":
        t = draw_times(noise("t", 1).squeeze(-1), self.t_min, self.t_max - self.step)
        later = t + self.step + noise("later", 1).squeeze(-1) * (self.t_max - self.step - t)
        cleaner, noisier = (
            masked_batch(batch, one, noise, mask_token_id, self.masks) for one in (t, later.clamp(max=self.t_max))
        )
        return _LookBack(noisier, cleaner, self.step, mask_token_id)


class _LookBack(_OneLook):
    def __init__(self, noisier: Corrupted, cleaner: Corrupted, step: float, mask_token_id: int) -> None:
        super().__init__(noisier, noisier.masked, mask_token_id)
        self._cleaner, self._step = cleaner, step

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Take the tokens, and see which of them are the surest; see `Plan.fill`."""
        at, drawn = self.noised, draw_rows(rows, forbidden_ids=(self._mask_token_id,))
        self.ids = self._laid(at.ids, drawn.candidates, row_index)
        confidence = self._laid(torch.zeros(at.ids.shape, device=at.ids.device), drawn.confidence, row_index)
        count = (self._step * at.maskable.sum(-1) - 1e-4).ceil().long()
        self._surest = select_top(confidence, at.masked, count)

    def finish(self, ask: Ask) -> Corrupted:
        """Put the surest tokens into the cleaner state; see `Plan.finish`."""
        at, surest = self._cleaner, self._surest
        return replace(
            at,
            ids=torch.where(surest, self.ids, at.ids),
            masked=at.masked & ~surest,
            masked_before=at.masked | surest,
            drafted=surest,
        )


@CORRUPTORS.register("remask")
@dataclass(frozen=True)
class Remask(Masking):
    """Fill all masks with the model's tokens, and mask a fresh share of the whole row again (SMART, arXiv 2001.08785).

    Args:
        tokens: "argmax", or "sample" from the model's distribution.
        t_min: As for `Masking`, of both maskings.
        t_max: As for `Masking`, of both maskings.
        masks: As for `Masking`, of both maskings.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    tokens: Literal["argmax", "sample"] = "argmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "tokens", ("argmax", "sample"))

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> "_Remask":
        noised = self.noised(batch, noise, mask_token_id)
        return _Remask(noised, self, mask_token_id)


class _Remask(_OneLook):
    def __init__(self, noised: Corrupted, how: Remask, mask_token_id: int) -> None:
        super().__init__(noised, noised.masked, mask_token_id, samples=how.tokens == "sample")
        self._how = how

    def finish(self, ask: Ask) -> Corrupted:
        """Mask again; see `Plan.finish`."""
        filled, how = super().finish(ask), self._how
        t = draw_times(filled.noise("t/again", 1).squeeze(-1), how.t_min, how.t_max)
        again = MASKINGS[how.masks](
            filled.ids, filled.maskable, mask_token_id=self._mask_token_id, t=t, noise=filled.noise("masked/again", None)
        )
        return replace(filled, ids=again.noised_ids, masked=again.masked, drafted=filled.drafted & ~again.masked, t=again.t)
