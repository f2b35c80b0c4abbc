"""Soft masks: a corruptor whose masks say a little of what the model would write there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from prism_plugin.core.corruption import Corrupted, Noise
from prism_plugin.core.soft import soft_tokens
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.training.corruptors import CORRUPTORS, Masking
from prism_plugin.training.drafts import Ask
from prism_plugin.types import FlatIndex, Rows


@CORRUPTORS.register("soft_masks")
@dataclass(frozen=True)
class SoftMasks(Masking):
    """Mask each row at a rate of its own, and mix the masks' embeddings with what the model would write there.

    The second look sees the same masks, but softly: (1 - a) of the mask and a of the most probable tokens (`soft_tokens`). So
    a model learns to read what a sampler that feeds its last look back would show it (Soft-Masked Diffusion, arXiv
    2510.17206). What a mixture tells is a function of the noised tokens, so the posterior that is learnt is the same.

    Args:
        share: Of the rows that are softened, in (0, 1]; the others keep plain masks, so that the model still reads those.
        mix: Most of a mixture that is not the mask, in (0, 1].
        top_k: Tokens in a mixture, >= 1.
        t_min: As for `Masking`.
        t_max: As for `Masking`.
        masks: As for `Masking`.
        noised_blocks: As for `Masking`.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    share: float = 0.8
    mix: float = 0.8
    top_k: int = 3
    soft_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self, "share", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_number(self, "mix", "a share in (0, 1]", low=0, high=1, open_low=True)
        require_int(self, "top_k", minimum=1)

    def plan(self, batch: Mapping[str, Tensor], noise: Noise, mask_token_id: int) -> "_SoftMasks":
        return _SoftMasks(self.noised(batch, noise, mask_token_id), self, mask_token_id)


class _SoftMasks:
    def __init__(self, noised: Corrupted, how: SoftMasks, mask_token_id: int) -> None:
        self.noised, self.reads = noised, noised.masked
        self._how, self._mask_token_id = how, mask_token_id

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Make the mixtures; see `Plan.fill`."""
        at, how = self.noised, self._how
        softened = (at.noise("soft", 1) < how.share) & at.masked  # elsewhere a mixture of its one token
        mix = how.mix * softened.flatten()[row_index]
        soft = soft_tokens(rows, row_index, mask_token_id=self._mask_token_id, top_k=how.top_k, mix=mix)
        keep = at.masked.flatten()[row_index]
        self._soft = replace(soft, index=soft.index[keep], ids=soft.ids[keep], weights=soft.weights[keep])

    def finish(self, ask: Ask) -> Corrupted:
        """The noised tokens with their mixtures; see `Plan.finish`."""
        return replace(self.noised, soft=self._soft)
