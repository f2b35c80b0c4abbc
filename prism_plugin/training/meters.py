"""What is measured: sums and counts on the device, read once per log, and the figures of an evaluation."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from prism_plugin.core.calibration import auroc, brier, ece
from prism_plugin.core.float64 import float64_device
from prism_plugin.core.terms import Term
from prism_plugin.errors import ConfigurationError
from prism_plugin.training.objective import Objective, StepOutput

_NAMES_OF_0_1 = ("quality_loss", "diffusion_loss", "base_rate")  # which wrote none
_NOT_JUDGED = -100.0  # with which Trainer fills rows up, too
QUALITY_FIGURES = ("auroc", "auroc_within", "ece", "brier")


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

    def state(self, accelerator: Accelerator) -> dict[str, list[float]]:
        """The totals over all ranks by name, for a checkpoint; nothing is emptied. Collective."""
        return dict(zip(self.names, accelerator.reduce(self.totals, reduction="sum").tolist(), strict=True))

    def restore(self, state: Mapping[str, list[float]] | list[list[float]]) -> None:
        """Take up totals that `state` gave, or 0.1's; on one rank only, or they would count several times."""
        by_name = dict(zip(_NAMES_OF_0_1, state, strict=True)) if isinstance(state, list) else state
        totals = [by_name[name] for name in self.names]
        self.totals = torch.tensor(totals, dtype=self.totals.dtype, device=self.totals.device)


def meters_of(objective: Objective) -> tuple[str, ...]:
    """What is measured of an objective's terms, in the order in which it is logged."""
    rates = [_key("base_rate", term, objective) for term in objective.terms if term.reads_quality]
    return (*(f"{term.name}_loss" for term in objective.terms), *rates)


def figures_of(objective: Objective) -> tuple[str, ...]:
    """What an evaluation measures, without the prefix `eval_`."""
    judged = [f"{term.name}_{figure}" for term in objective.terms if term.reads_quality for figure in QUALITY_FIGURES]
    return ("loss", *meters_of(objective), *judged)


def _key(name: str, term: Term, objective: Objective) -> str:
    """A figure that one objective mostly has once: the first term that has it gives it its plain name."""
    first = next(one for one in objective.terms if one.reads_quality)
    return name if term.name == first.name else f"{term.name}_{name}"


def ratios_of(objective: Objective, output: StepOutput) -> dict[str, tuple[Tensor | int, Tensor | int]]:
    """Numerator and denominator of everything that is measured, of one micro-batch."""
    ratios: dict[str, tuple[Tensor | int, Tensor | int]] = {}
    for term in objective.terms:
        found = output.terms[term.name]
        ratios[f"{term.name}_loss"] = (found.per_row.sum(), len(found.per_row))
        if term.reads_quality:
            labels = found.labels
            judged = (0, 0) if labels is None else (labels.targets.sum(), labels.labelled.sum())
            ratios[_key("base_rate", term, objective)] = judged
    return ratios


def predictions_of(objective: Objective, output: StepOutput, batch_size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """What Trainer gathers of an evaluated batch, all by row of the batch.

    Returns:
        The quality logits, [batch, drafts * length], and the loss of each term, [batch, terms]; and the targets of each term
        that reads the head, negative where nothing is labelled, [batch, drafts * length, terms].
    """

    def side_by_side(drafts: Tensor) -> Tensor:
        return drafts.unflatten(0, (-1, batch_size)).transpose(0, 1).flatten(1)

    losses = torch.stack([output.terms[term.name].per_row for term in objective.terms], dim=1)
    nothing = torch.zeros(batch_size, 1, device=losses.device)  # Trainer takes no figure where there are no labels
    targets = [side_by_side(_targets(output, term)) for term in objective.terms if term.reads_quality]
    quality = nothing if output.quality_logits is None else side_by_side(output.quality_logits.float())
    return (quality, losses), torch.stack(targets, dim=-1) if targets else nothing.unsqueeze(-1)


def _targets(output: StepOutput, term: Term) -> Tensor:
    labels = output.terms[term.name].labels
    if labels is None:  # it reads the head, and does not judge
        return torch.full_like(output.quality_logits, _NOT_JUDGED, dtype=torch.float32)  # type: ignore[arg-type]  # it was read
    return labels.targets.float().masked_fill(~labels.labelled, _NOT_JUDGED)


def metrics_of(objective: Objective, predictions: Any, targets: Any) -> dict[str, float]:
    """The figures of an evaluation, from all that `predictions_of` gave."""
    quality_logits, losses = (torch.as_tensor(part) for part in predictions)
    means = losses.double().mean(0).tolist()
    figures = {"loss": sum(term.weight * mean for term, mean in zip(objective.terms, means, strict=True))}
    figures |= {f"{term.name}_loss": mean for term, mean in zip(objective.terms, means, strict=True)}
    judging = [term for term in objective.terms if term.reads_quality]
    for term, part in zip(judging, torch.as_tensor(targets).unbind(-1), strict=False):
        measured = quality_metrics(quality_logits, part)
        figures[_key("base_rate", term, objective)] = measured.pop("base_rate")
        figures |= {f"{term.name}_{name}": figure for name, figure in measured.items()}
    return figures


def with_more(figures: dict[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Figures of an evaluation with those of somebody else.

    Raises:
        ConfigurationError: If they are no mapping, or a name is taken.
    """
    if not isinstance(more, Mapping):
        raise ConfigurationError(f"`compute_metrics` must give a mapping of names to figures, found {type(more).__name__}.")
    taken = sorted(set(more) & set(figures))
    if taken:
        raise ConfigurationError(
            f"`compute_metrics` must give names of its own, but {', '.join(taken)} is measured already; choose another name."
        )
    return {**figures, **more}


def quality_metrics(quality_logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The figures of the quality head on judged tokens.

    Args:
        quality_logits: [rows, positions].
        targets: Probability that a token is right, negative where it is not judged; [rows, positions].

    Returns:
        `base_rate` (mean of the targets), and of the tokens whose target is 0 or 1: `auroc`, `auroc_within` (right and wrong
        tokens compared within a row only), `ece` and `brier`; NaN where nothing is judged.
    """
    known = (targets == 0) | (targets == 1)
    quality, correct = quality_logits[known].sigmoid(), targets[known] == 1
    row = torch.arange(len(targets)).unsqueeze(-1).expand_as(targets)[known]
    return {
        "base_rate": targets[targets >= 0].double().mean().item(),
        "auroc": auroc(quality, correct),
        "auroc_within": auroc(quality, correct, row),
        "ece": ece(quality, correct),
        "brier": brier(quality, correct),
    }
