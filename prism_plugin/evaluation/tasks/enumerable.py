"""A distribution small enough to enumerate: what the quality head should learn can be counted instead of believed.

PRISM's claim (arXiv 2510.01384) is that its head learns `p(x_i = y_i | y with i masked)`, the probability that a token is
right had the model not seen it. Given the noised tokens, drafted tokens say nothing about the data; so with one drafted
position per row the label has that very probability, whatever the model proposes. With more, the head cannot know which
other tokens of the draft were proposed as well, and learns a mixture of posteriors that leave them out. Here both are sums
over a table.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prism_plugin.backbones import dropout_off, vocab_size_of
from prism_plugin.core.corruption import draw_times
from prism_plugin.core.drafting import DraftRule
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.types import TokenIds

Proposal = Float[Tensor, "canvases length letters"]
PerCanvas = Float[Tensor, " canvases"]
PerState = Float[Tensor, " states"]


@dataclass(frozen=True)
class JointTable:
    """A joint distribution over short sequences, as counts: a data set with every sequence that often is the distribution.

    Letters are the token ids below `num_letters`, and `num_letters` is the mask token. A canvas is a sequence of both.

    Args:
        counts: How often each sequence occurs, >= 1, so that every posterior is defined; one axis per position, all of one
            length, the number of letters.

    Raises:
        ConfigurationError: If the axes differ or a count is below 1.
    """

    counts: Int[Tensor, "*positions"]

    def __post_init__(self) -> None:
        if self.counts.ndim < 2 or len(set(self.counts.shape)) != 1:
            raise ConfigurationError(
                f"`counts` of JointTable needs two or more axes, all of one length, found the shape {tuple(self.counts.shape)}."
            )
        if self.counts.min() < 1:
            raise ConfigurationError(
                f"`counts` of JointTable must be at least 1, so that every posterior is defined, found {self.counts.min()}."
            )

    @property
    def num_letters(self) -> int:
        """Letters of the alphabet; also the id of the mask token."""
        return self.counts.shape[0]

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.counts.ndim

    @property
    def canvases(self) -> TokenIds:
        """Every canvas of letters and masks, in order, [(num_letters + 1) ** length, length]."""
        return torch.cartesian_prod(*[torch.arange(self.num_letters + 1)] * self.length)

    def index_of(self, canvases: TokenIds) -> Int[Tensor, " canvases"]:
        """Give the place of canvases in `canvases`."""
        radix = (self.num_letters + 1) ** torch.arange(self.length - 1, -1, -1)
        return (canvases * radix).sum(-1)

    def mass(self) -> PerCanvas:
        """Give, for every canvas, the probability that data agrees with its letters."""
        sums = self.counts.double()
        for axis in range(self.length):
            sums = torch.cat((sums, sums.sum(axis, keepdim=True)), axis)
        return sums.flatten() / sums.flatten()[-1]

    def prepared_rows(self) -> list[dict[str, Any]]:
        """Write the distribution as rows for a trainer."""
        sequences = itertools.product(range(self.num_letters), repeat=self.length)
        repeated = [list(ids) for ids in sequences for _ in range(int(self.counts[ids]))]
        return [{"example_id": i, "input_ids": ids, "maskable": [True] * self.length} for i, ids in enumerate(repeated)]


def three_letter_table() -> JointTable:
    """Make a table of three letters and three positions, some 1,000 rows, in which letters like company.

    p(x) is proportional to exp(1.5 for each pair of equal neighbours + 1 if the first equals the last), with the first letter
    a little more common than the second and that than the third. So tokens vouch for each other: that is what more than one
    drafted token spoils.
    """
    weights = torch.zeros(3, 3, 3, dtype=torch.float64)
    for first, middle, last in itertools.product(range(3), repeat=3):
        company = 1.5 * (first == middle) + 1.5 * (middle == last) + 1.0 * (first == last)
        weights[first, middle, last] = math.exp(company + 0.3 * (3 - first - middle - last))
    return JointTable((1000 * weights / weights.sum()).round().long())


@dataclass(frozen=True)
class DraftStates:
    """Every token that can be judged in training: a draft and one of its drafted positions. One entry a state.

    Attributes:
        draft_ids: The draft, [states, length].
        position: The judged position.
        weight: Its share of the quality loss; the sum is 1.
        exact: p(x_i = y_i | y with i masked).
        predicted: What minimises the quality loss: the probability of the label given the draft, over all the ways in which
            the draft can have come about. With one drafted position there is one way, and it equals `exact`.
    """

    draft_ids: Int[Tensor, "states length"]
    position: Int[Tensor, " states"]
    weight: PerState
    exact: PerState
    predicted: PerState

    def __len__(self) -> int:
        return len(self.weight)

    def mean_error(self, estimate: PerState, target: PerState) -> float:
        """Give the mean absolute difference, weighted by `weight`."""
        return float((self.weight * (estimate.double() - target).abs()).sum() / self.weight.sum())

    def best_constant(self) -> PerState:
        """Give the constant with the least mean error against `exact`, the weighted median, at every state."""
        order = self.exact.argsort()
        reached = self.weight[order].cumsum(0)
        return self.exact[order[torch.searchsorted(reached, reached[-1:] / 2)]].expand_as(self.exact)

    def quality(self, model: PrismModel) -> PerState:
        """Give the model's quality of each judged token."""
        return model.score(self.draft_ids).cpu().gather(1, self.position.unsqueeze(1)).squeeze(1)


@torch.no_grad()
def proposal_of(model: PrismModel, table: JointTable) -> Proposal:
    """Give the probability with which a model proposes each letter at each position of every canvas.

    Raises:
        ConfigurationError: If the model's tokens are not the table's letters and its mask.
    """
    vocab_size = vocab_size_of(model.get_output_embeddings())
    if (vocab_size, model.mask_token_id) != (table.num_letters + 1, table.num_letters):
        raise ConfigurationError(
            f"The model needs {table.num_letters + 1} tokens, the last of them the mask, to speak of this table, found "
            f"{vocab_size} tokens with mask token {model.mask_token_id}."
        )
    canvases = table.canvases
    with dropout_off(model):  # as where drafts are made
        everywhere = torch.arange(canvases.numel(), device=model.device)
        logits = model(canvases.to(model.device), logits_at=everywhere, with_quality=False).logits
    return logits[:, : table.num_letters].cpu().double().softmax(-1).view(*canvases.shape, -1)


def draft_states(
    table: JointTable, proposal: Proposal, num_drafted: int, *, t_min: float = 1e-3, t_max: float = 1.0
) -> DraftStates:
    """Enumerate what the `prism` objective judges when it draws `num_drafted` tokens at random masked positions.

    Data, masking probability, masks, drafted positions and their tokens are all summed over, none is sampled.

    Args:
        table: The data.
        proposal: What the drafted tokens are drawn from, of every canvas; read at its masked positions.
        num_drafted: Positions drafted per row, >= 1.
        t_min: Smallest masking probability.
        t_max: Largest masking probability.

    Returns:
        The states that are reached at all, with their weights.

    Raises:
        ConfigurationError: If `num_drafted` or a masking probability is out of range.
    """
    DraftRule(num_drafted=num_drafted)
    draw_times(torch.zeros(1), t_min, t_max)
    canvases, mass = table.canvases, table.mass()
    num_masks = (canvases == table.num_letters).sum(-1)
    of_masks = torch.tensor(
        [_mask_probability(count, table.length, t_min, t_max) for count in range(table.length + 1)], dtype=torch.float64
    )
    weight = torch.zeros(canvases.shape, dtype=torch.float64)
    right = torch.zeros_like(weight)
    for size in range(1, num_drafted + 1):
        for drafted in itertools.combinations(range(table.length), size):
            # every canvas, as the draft in which just these positions were drafted
            masked = num_masks + size
            possible = (canvases[:, drafted] != table.num_letters).all(-1) & (masked.clamp(max=num_drafted) == size)
            drafts, masked = canvases[possible], masked[possible]
            noised = _with_masks(drafts, drafted, table)
            noised_index = table.index_of(noised)
            reach = mass[noised_index] * of_masks[masked] / _choose(masked, size)
            for position in drafted:
                reach = reach * proposal[noised_index, position, drafts[:, position]]
            for position in drafted:
                with_token = noised.clone()
                with_token[:, position] = drafts[:, position]
                agrees = mass[table.index_of(with_token)] / mass[noised_index]
                weight[possible, position] += reach / size  # the loss is a mean over the positions of a row
                right[possible, position] += reach / size * agrees
    index, places = weight.nonzero(as_tuple=True)
    left_out = canvases[index].scatter(1, places.unsqueeze(1), table.num_letters)
    return DraftStates(
        draft_ids=canvases[index],
        position=places,
        weight=weight[index, places] / weight.sum(),
        exact=mass[index] / mass[table.index_of(left_out)],
        predicted=(right / weight)[index, places],
    )


def _with_masks(drafts: TokenIds, positions: tuple[int, ...], table: JointTable) -> TokenIds:
    noised = drafts.clone()
    noised[:, positions] = table.num_letters
    return noised


def _choose(total: Int[Tensor, " rows"], size: int) -> Float[Tensor, " rows"]:
    return torch.tensor([math.comb(int(one), size) for one in total], dtype=torch.float64)


def _mask_probability(count: int, length: int, t_min: float, t_max: float) -> float:
    """The probability that `count` given positions are masked and no other: the mean of t^count (1 - t)^(length - count)."""
    if t_min == t_max:
        return t_min**count * (1 - t_min) ** (length - count)
    others = length - count
    terms = (
        (-1) ** power
        * math.comb(others, power)
        * (t_max ** (count + power + 1) - t_min ** (count + power + 1))
        / (count + power + 1)
        for power in range(others + 1)
    )
    return sum(terms) / (t_max - t_min)
