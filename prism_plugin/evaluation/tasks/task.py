"""A task: rows to fill, and what counts as right. What compares, judges and shows knows this protocol and no task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from prism_plugin.modeling import PrismModel
from prism_plugin.registry import Registry
from prism_plugin.types import TokenIds, TokenMask

PerAnswer = Float[Tensor, " answers"]


@dataclass(frozen=True)
class Figure:
    """A figure of answers, kept by row, so that any rows can be put together or compared in pairs: a sum over a count.

    Attributes:
        total: What each row adds to the sum, [rows].
        count: What each row adds to the count, [rows]: 1 where rows count alike, 0 where a row says nothing.
        kinds: Where different things are counted, those of each row. The sum is over what no earlier row had: it is the same in
            any order, while what one row adds to it is not, so that nothing is said of its error. None: rows are independent.
    """

    total: PerAnswer
    count: PerAnswer
    kinds: tuple[frozenset[str], ...] | None = None

    @classmethod
    def of_rows(cls, values: Tensor) -> "Figure":
        """A mean over rows, all alike."""
        return cls(values, torch.ones_like(values))

    @classmethod
    def of_kinds(cls, rows: Sequence[Sequence[str]]) -> "Figure":
        """Of what rows hold, the share of different ones among all: a word that all rows repeat counts once in the sum."""
        kinds = tuple(map(frozenset, rows))
        return cls(_new_kinds(kinds), torch.tensor([len(row) for row in rows]), kinds)

    @classmethod
    def joined(cls, parts: Sequence["Figure"]) -> "Figure":
        """The figure of all rows of some parts."""
        kinds = tuple(row for one in parts if one.kinds is not None for row in one.kinds)
        total = _new_kinds(kinds) if kinds else torch.cat([one.total for one in parts])
        return cls(total, torch.cat([one.count for one in parts]), kinds or None)

    def of_rows_in(self, order: Sequence[int]) -> "Figure":
        """The same figure with its rows in another order, given by their numbers."""
        kinds = None if self.kinds is None else tuple(self.kinds[row] for row in order)
        rows = torch.tensor(order)
        return Figure(self.total[rows] if kinds is None else _new_kinds(kinds), self.count[rows], kinds)

    @property
    def value(self) -> float | None:
        """The sum over the count; None where nothing was counted."""
        count = self.count.double().sum().item()
        return self.total.double().sum().item() / count if count else None

    @property
    def stderr(self) -> float | None:
        """Standard error of `value` over rows; for shares of rows it is the binomial one. None where nothing was counted, or
        different things were.
        """
        if self.value is None or self.kinds is not None:
            return None
        off = self.total.double() - self.value * self.count.double()
        return (off.square().sum().sqrt() / self.count.double().sum()).item()


def _new_kinds(rows: Sequence[frozenset[str]]) -> PerAnswer:
    """How many things each row has that no earlier one had."""
    seen: set[str] = set()
    found = []
    for row in rows:
        found.append(float(len(row - seen)))
        seen |= row
    return torch.tensor(found)


@dataclass(frozen=True)
class Heading:
    """How a table shows a figure, and what may be said by it.

    Attributes:
        text: What stands above it.
        form: Of a number; a share unless said otherwise.
        chooses: Of the first figure: whether settings and presets may be chosen by it alone. False where figures have to be
            read together: `compare` then takes one trial of each preset, calls none the best, and shows all figures together.
    """

    text: str
    form: str = ".1%"
    chooses: bool = True


class Symmetry(Protocol):
    """A change of each of some rows after which what was right is right."""

    def move_places(self, values: Tensor) -> Tensor:
        """Move a value of each position with its position, [rows, length]."""

    def move_tokens(self, ids: TokenIds) -> TokenIds:
        """Move token ids, [rows, length], which may change what they say."""


class Task(Protocol):
    """What is measured of a model that fills canvases. A frozen dataclass, whose fields are what can be set, each by default.

    Attributes:
        rows_are: What its rows are called, in the plural.
        data_is: What a file of rows holds, for a person who has to give one.
        figures: Figures of answers by name, as a table shows them; the first is the one that counts, the more the better.
        presets: Samplers that are compared unless others are named.
    """

    rows_are: ClassVar[str]
    data_is: ClassVar[str]
    figures: ClassVar[Mapping[str, Heading]]
    presets: ClassVar[tuple[str, ...]]

    def speaks(self, model: PrismModel) -> bool:
        """Whether the model's tokens are this task's alone, so that its canvases and its files of text can be nothing else."""

    def require_model(self, model: PrismModel) -> None:
        """Refuse, in one sentence, a model that cannot be asked."""

    def rows(self, path: str | Path, limit: int | None = None) -> Sequence[Any]:
        """Read rows from a file, the first `limit` of them; what is wrong with one is found here, before any work."""

    def canvas(self, rows: Sequence[Any], model: PrismModel) -> tuple[TokenIds, TokenMask | None]:
        """Tokens with masks where an answer belongs, and the attention mask: what `RemaskingSampler.infill` takes."""

    def judge(self, rows: Sequence[Any], sequences: TokenIds, model: PrismModel) -> dict[str, Figure]:
        """The figures of some rows' answers, which are their filled canvases, on the CPU."""

    def known(self, rows: Sequence[Any], model: PrismModel) -> list[dict[str, Any]]:
        """Raw rows that say the right answer, for tokens to be judged and for training. Rows that have several are refused."""

    def symmetry(self, count: int, seed: int) -> Symmetry | None:
        """Draw a random symmetry of the task for each of some canvases; None: it has none."""

    def layout(self, length: int) -> int | None:
        """Tokens in a line when a canvas of this length is shown; None: it reads as a text."""


TASKS: Registry[Task] = Registry("task")


def task_of(model: PrismModel) -> Task | None:
    """The task whose own tokens a model speaks; None for one of texts."""
    tasks = (TASKS.from_dict({"name": name}) for name in TASKS.names())
    return next((task for task in tasks if task.speaks(model)), None)
