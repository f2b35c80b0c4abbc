"""Rows padded on the left, turned so that each begins in column 0: at the absolute positions of the row alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_plugin.types import FlatIndex, PerRow, TokenMask


@dataclass(frozen=True)
class RowTurning:
    """How far each row of a batch is turned to the left. Nothing waits for the device, and no row is left out.

    A learnt table of positions counts columns, so a text that is padded on the left would be read at other positions next to a
    longer one. A row that begins in column 0 stays as it is.

    Attributes:
        shift: Columns of padding before each row.
        length: Columns of the batch.
    """

    shift: PerRow
    length: int

    @classmethod
    def of(cls, attention_mask: TokenMask) -> "RowTurning":
        """The turning that brings each row's first token to column 0."""
        return cls(attention_mask.bool().to(torch.int8).argmax(-1), attention_mask.shape[-1])

    def turn(self, values: Tensor) -> Tensor:
        """Turn one value for each position, [batch, length]."""
        return values.gather(1, self._columns(1).to(values.device))

    def index(self, index: FlatIndex) -> FlatIndex:
        """Where flat positions of the batch stand in the turned one."""
        index = index.to(self.shift.device)
        row, column = index // self.length, index % self.length
        return row * self.length + (column - self.shift[row]) % self.length

    def back(self, values: Tensor) -> Tensor:
        """Turn values for each position back, [batch, length] or with more dimensions behind."""
        columns = self._columns(-1).to(values.device)
        return values.gather(1, columns.view(*columns.shape, *([1] * (values.ndim - 2))).expand_as(values))

    def _columns(self, sign: int) -> Tensor:
        columns = torch.arange(self.length, device=self.shift.device)
        return (columns + sign * self.shift.unsqueeze(-1)) % self.length
