"""History: what each token of a canvas has been through, for heads that read it beside the hidden state."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prism_plugin.types import PerToken, TokenIds

# What a head may read, in the order in which it is told.
HISTORY = ("age", "commit_confidence", "times_remasked")


@dataclass(frozen=True)
class History:
    """What the tokens of a canvas have been through. All are [rows, length], but for `known`.

    A position is written (by the model, `age` >= 0), given (the data's, the prompt's, or a mask), or unknown: that is said for
    the whole row, since for single positions it would tell which of them are to be judged.

    Attributes:
        age: Looks at the row since the token was written, 0 for one written at the last; -1 where the model wrote none.
        commit_confidence: Probability of the token when it was written, 1 where the model wrote none.
        times_remasked: How often the position has been taken back.
        known: Whether a row's history is known, [rows]; None: that of all rows is.
    """

    age: TokenIds
    commit_confidence: PerToken
    times_remasked: TokenIds
    known: Tensor | None = None

    @property
    def written(self) -> Tensor:
        """Positions that the model is known to have written, [rows, length] bool."""
        written = self.age >= 0
        return written if self.known is None else written & self.known.unsqueeze(-1)

    def hidden(self, where: Tensor) -> "History":
        """The same with some rows' history unknown, [rows] bool."""
        return replace(self, known=~where if self.known is None else self.known & ~where)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "History":
        """The same with every figure per position put elsewhere by `move`."""
        return replace(self, **{name: move(getattr(self, name)) for name in HISTORY})

    def with_rows(self, rows: Tensor, part: "History") -> "History":
        """The same with some rows put in place of its own; `known` stays as it is."""
        return replace(self, **{name: getattr(self, name).index_copy(0, rows, getattr(part, name)) for name in HISTORY})


def history_features(history: History | None, names: tuple[str, ...], like: Tensor) -> Tensor:
    """Numbers of about one in size that tell a head of each position's history, all 0 where it is unknown.

    Args:
        history: Of the positions; None: unknown.
        names: What is told, of `HISTORY`.
        like: Hidden states, [rows, length, hidden], for shape and device.

    Returns:
        Written or not, given or not, and one number for each name, [rows, length, 2 + names], float32.
    """
    if history is None:
        return like.new_zeros((*like.shape[:-1], 2 + len(names)), dtype=torch.float32)
    written, known = history.written, history.known
    given = ~written if known is None else ~written & known.unsqueeze(-1)
    told = {
        "age": history.age.clamp(min=0).float().log1p(),
        "commit_confidence": history.commit_confidence.float().clamp(1e-4, 1 - 1e-4).logit() / 4,
        "times_remasked": history.times_remasked.float().log1p(),
    }
    return torch.stack((written.float(), given.float(), *(told[name] * written for name in names)), dim=-1).to(like.device)
