"""Cross-entropy and entropy of rows as wide as a vocabulary, without a copy of them: operations, and no formulas of papers."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from prism_plugin.core.categorical import chunk_slices, log_sum_exp
from prism_plugin.types import Rows, RowTokens, RowValues


def cross_entropy(rows: Rows, targets: RowTokens, *, overwrite_rows: bool = False) -> RowValues:
    """Cross-entropy of each row of logits in nats, float32; forward and backward go through the rows a chunk at a time.

    The one tensor of the size of `rows` that is made is their gradient, in their dtype; with `overwrite_rows` not even that.

    Args:
        rows: Logits of any float type.
        targets: The right token of each row.
        overwrite_rows: The rows are the caller's to give away: backward writes their gradient over them, and they hold
            garbage afterwards. Only where nobody else reads them, in forward or for a gradient; autograd refuses a backward
            that would read what was written over.
    """
    return _ChunkedCrossEntropy.apply(rows, targets, overwrite_rows)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Rows, targets: RowTokens, overwrite: bool) -> RowValues:
        of_target = rows.gather(-1, targets.unsqueeze(-1)).squeeze(-1).float()
        log_total = log_sum_exp(rows)
        ctx.save_for_backward(rows, targets, log_total)
        ctx.overwrite = overwrite
        return log_total - of_target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: RowValues) -> tuple[Rows, None, None]:
        rows, targets, log_total = ctx.saved_tensors
        gradient = rows.detach() if ctx.overwrite else torch.empty_like(rows)
        of_loss, log_total, targets = (one.unsqueeze(-1) for one in (of_loss, log_total, targets))
        for here in chunk_slices(rows):
            # in float32 the gradient is made where it will stand; 16 bits are too few to compute in
            into = gradient[here] if rows.dtype == torch.float32 else None
            chunk = torch.sub(rows[here].float(), log_total[here], out=into).exp_().mul_(of_loss[here])
            chunk.scatter_add_(-1, targets[here], -of_loss[here])
            if into is None:
                gradient[here] = chunk
        return gradient, None, None


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
