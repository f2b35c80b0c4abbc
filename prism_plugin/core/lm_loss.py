"""Cross-entropy and entropy of rows as wide as a vocabulary, without a copy of them: operations, and no formulas of papers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prism_plugin.core.categorical import Room, chunk_slices, is_at_hand, log_sum_exp
from prism_plugin.core.selection import true_places
from prism_plugin.types import DrawnIndex, DrawnTokens, DrawnValues, Rows, RowValues


def cross_entropy(
    rows: Rows, targets: DrawnTokens, *, at: DrawnIndex | None = None, overwrite_rows: bool = False
) -> DrawnValues:
    """Cross-entropy of each row of logits in nats, float32; forward and backward go through the rows a chunk at a time.

    The one tensor of the size of `rows` that is made is their gradient, in their dtype; with `overwrite_rows` not even that.

    Args:
        rows: Logits of any float type.
        targets: The right token of each row that is asked about.
        at: Numbers of the rows that are asked about, in ascending order; None: all. The others get no gradient, and no pass.
        overwrite_rows: The rows are the caller's to give away: backward writes their gradient over them, and they hold
            garbage afterwards. Only where nobody else reads them, in forward or for a gradient; autograd refuses a backward
            that would read what was written over.
    """
    return _ChunkedCrossEntropy.apply(rows, targets, at, overwrite_rows)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Rows, targets: DrawnTokens, at: DrawnIndex | None, overwrite: bool) -> DrawnValues:
        if at is None:
            of_target, log_total = rows.gather(-1, targets.unsqueeze(-1)).squeeze(-1).float(), log_sum_exp(rows)
        else:
            of_target, log_total = rows[at, targets].float(), log_sum_exp(rows, at)
        ctx.save_for_backward(rows, targets, log_total, *(() if at is None else (at,)))
        ctx.overwrite = overwrite
        return log_total - of_target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: DrawnValues) -> tuple[Rows, None, None, None]:
        rows, targets, log_total, *some = ctx.saved_tensors
        of_loss, log_total, targets = (one.unsqueeze(-1) for one in (of_loss, log_total, targets))
        gradient = rows.detach() if ctx.overwrite else torch.empty_like(rows)
        of_rows = _OfRows(log_total, targets, of_loss)
        if some:
            return _some_rows(rows, gradient, of_rows, some[0]), None, None, None
        for here in chunk_slices(rows):
            # in float32 the gradient is made where it will stand; 16 bits are too few to compute in
            into = gradient[here] if rows.dtype == torch.float32 else None
            chunk = of_rows.gradient(rows[here].float(), here, into)
            if into is None:
                gradient[here] = chunk
        return gradient, None, None, None


class _OfRows:
    """What the gradient of a cross-entropy needs beside the rows, a column each: w (softmax - 1 at the target)."""

    def __init__(self, log_total: Tensor, targets: Tensor, of_loss: Tensor) -> None:
        self.targets, self.of_loss = targets, of_loss
        # the weight goes into the exponent, which spares a pass over the rows: |w| softmax = exp(logit - (log_total - log |w|))
        self.shift = log_total - of_loss.abs().log()
        self.has_signs = not is_at_hand(of_loss) or bool((of_loss < 0).any())

    def gradient(self, chunk: Rows, here: slice, into: Rows | None) -> Rows:
        """Of some of the rows, in float32.

        Args:
            chunk: The rows.
            here: Which they are.
            into: Where it is made, `chunk` itself among others; None: in memory of its own.
        """
        weighted = torch.sub(chunk, self.shift[here], out=into).exp_()
        if self.has_signs:
            weighted.mul_(self.of_loss[here].sign())
        return weighted.scatter_add_(-1, self.targets[here], -self.of_loss[here])


def _some_rows(rows: Rows, gradient: Rows, of_rows: _OfRows, at: DrawnIndex) -> Rows:
    """Write the gradient of some rows, and 0 for the others."""
    room = Room()
    for here in chunk_slices(rows, len(at)):
        chunk = torch.index_select(rows, 0, at[here], out=room.of(rows, len(at[here]))).float()
        gradient.index_copy_(0, at[here], of_rows.gradient(chunk, here, chunk).to(gradient.dtype))
    others = torch.ones(len(rows), dtype=torch.bool, device=rows.device).index_fill(0, at, False)
    return gradient.index_fill_(0, true_places(others, len(rows) - len(at)), 0.0)


def entropy(rows: Rows) -> RowValues:
    """Entropy of the softmax of each row of logits in nats, float32; forward and backward go through a chunk at a time.

    The one tensor of the size of `rows` that is made is their gradient, in their dtype.

    Args:
        rows: Logits of any float type.
    """
    return _ChunkedEntropy.apply(rows)


class _ChunkedEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Rows) -> RowValues:
        log_total = log_sum_exp(rows)
        found = torch.empty_like(log_total)
        for here in chunk_slices(rows):
            log_p = rows[here].float() - log_total[here].unsqueeze(-1)
            found[here] = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)  # 0 for a token at -inf
        ctx.save_for_backward(rows, log_total, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_entropy: RowValues) -> Rows:
        rows, log_total, found = ctx.saved_tensors
        gradient = torch.empty_like(rows)
        of_entropy, log_total, found = (one.unsqueeze(-1) for one in (of_entropy, log_total, found))
        for here in chunk_slices(rows):
            log_p = (rows[here].float() - log_total[here]).clamp(min=torch.finfo(torch.float32).min)
            gradient[here] = -log_p.exp() * (log_p + found[here]) * of_entropy[here]
        return gradient
