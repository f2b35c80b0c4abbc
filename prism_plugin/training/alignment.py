"""Refuses to train on logits that are about another position than the model's spec says, before the first step."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import pad
from transformers import Trainer

from prism_plugin.backbones.alignment import judge_alignment_on_data
from prism_plugin.errors import BackboneError
from prism_plugin.modeling.alignment import MOST_TOKENS, fill_both_ways
from prism_plugin.modeling.model import PrismModel


class AlignmentCheck:
    """Looks once, without gradient, at the first batch that a trainer trains on.

    Args:
        trainer: Its accelerator is asked.
        model: The model that it trains.
        wanted: Whether to look.
    """

    def __init__(self, trainer: Trainer, model: PrismModel, *, wanted: bool) -> None:
        self.trainer, self.model, self.wanted = trainer, model, wanted

    def first_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Compare both alignments, if that was not done yet. Collective: every process looks, and all come to one verdict.

        Raises:
            BackboneError: If the other alignment is clearly better.
        """
        if not self.wanted:
            return
        self.wanted = False
        filled = fill_both_ways(self.model, batch)
        # Processes compare different numbers of tokens, and gather equal ones.
        everywhere = self.trainer.accelerator.gather(pad(filled, (0, 0, 0, MOST_TOKENS - len(filled)), value=-1.0))
        name = type(self.model.plain_backbone).__name__
        check = judge_alignment_on_data(name, self.model.spec, everywhere[everywhere[:, 0] >= 0])
        if check.ok is False:
            raise BackboneError(f"{check.detail.rstrip('.')}; to teach it the first one, set `check_alignment: false`.")
