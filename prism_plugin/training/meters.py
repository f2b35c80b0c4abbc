"""What is measured: sums and counts on the device, read once per log, and the figures of an evaluation."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from prism_plugin.core.calibration import auroc, brier, ece
from prism_plugin.core.float64 import float64_device


class Meters:
    """Named numerators and denominators; no host synchronisation until `read`.

    Args:
        names: What is measured, in the order in which it is logged.
        device: Where the totals live; on the CPU if it has no float64.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.totals = torch.zeros(len(names), 2, dtype=torch.float64, device=float64_device(device))

    def add(self, ratios: Mapping[str, tuple[Tensor | int, Tensor | int]]) -> None:
        """Add a (numerator, denominator) to every name."""
        device = self.totals.device
        pairs = [torch.as_tensor(part, device=device).detach() for name in self.names for part in ratios[name]]
        self.totals += torch.stack([part.to(self.totals.dtype) for part in pairs]).reshape(self.totals.shape)

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Reduce over ranks, empty the meters, return the ratios that have a denominator. Collective."""
        totals = accelerator.reduce(self.totals, reduction="sum").tolist()
        self.totals = torch.zeros_like(self.totals)
        return {name: total / count for name, (total, count) in zip(self.names, totals, strict=True) if count}

    def state(self, accelerator: Accelerator) -> list[list[float]]:
        """The totals over all ranks, for a checkpoint; nothing is emptied. Collective."""
        return accelerator.reduce(self.totals, reduction="sum").tolist()

    def restore(self, state: list[list[float]]) -> None:
        """Take up totals that `state` gave; on one rank only, or they would count several times."""
        self.totals = torch.tensor(state, dtype=self.totals.dtype, device=self.totals.device)


def quality_metrics(quality_logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The figures of the quality head on judged tokens.

    Args:
        quality_logits: [rows, positions].
        targets: 1 where a token is right, 0 where it is wrong, negative where it is not judged; [rows, positions].

    Returns:
        `base_rate` (share of right tokens), `quality_auroc`, `quality_auroc_within` (right and wrong
        tokens compared within a row only), `quality_ece` and `quality_brier`; NaN where nothing is judged.
    """
    labelled = targets >= 0
    quality, correct = quality_logits[labelled].sigmoid(), targets[labelled] == 1
    row = torch.arange(len(targets)).unsqueeze(-1).expand_as(targets)[labelled]
    return {
        "base_rate": correct.double().mean().item(),
        "quality_auroc": auroc(quality, correct),
        "quality_auroc_within": auroc(quality, correct, row),
        "quality_ece": ece(quality, correct),
        "quality_brier": brier(quality, correct),
    }
