"""Methods of other papers as values and short blocks, for tests that take them through all that an objective goes through."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from prism_plugin.core import (
    TERMS,
    DiffusionTerm,
    Labels,
    QualityTerm,
    RepairTerm,
    cross_entropy_at,
    draw_rows,
    draw_times,
    quality_loss_per_row,
    select_top,
)
from prism_plugin.training import CORRUPTORS, Given, Objective, masked_batch

# ---- ProSeCo (arXiv 2602.11590): the model's argmax everywhere, and what should stand there ----


@CORRUPTORS.register("argmax_everywhere")
@dataclass(frozen=True)
class ArgmaxEverywhere:
    def plan(self, batch, noise, mask_token_id):
        t = draw_times(noise("t", 1).squeeze(-1), 0.1, 1.0)
        return _Argmax(masked_batch(batch, t, noise, mask_token_id), mask_token_id)


class _Argmax:
    def __init__(self, noised, mask_token_id):
        self.noised, self.reads, self.mask_token_id = noised, noised.maskable, mask_token_id

    def fill(self, rows, row_index):
        self.best = draw_rows(rows, forbidden_ids=(self.mask_token_id,)).candidates
        self.ids = self.noised.ids.flatten().index_copy(0, row_index, self.best).view_as(self.noised.ids)

    def finish(self, ask):
        at = self.noised
        return replace(at, ids=self.ids, masked=torch.zeros_like(at.masked), drafted=at.maskable)


PROSECO = Objective(ArgmaxEverywhere(), (DiffusionTerm(weight=1.0), RepairTerm(where="all", by_time=True)))


# ---- BackPlay (arXiv 2601.06428): drafted at a noisier state, put into a cleaner one; the backbone is frozen ----


@CORRUPTORS.register("look_back")
@dataclass(frozen=True)
class LookBack:
    share: float = 0.1

    def plan(self, batch, noise, mask_token_id):
        t = draw_times(noise("t", 1).squeeze(-1), 0.1, 0.9)
        later = t + draw_times(noise("later", 1).squeeze(-1), self.share, 1.0) * (1 - t)
        cleaner, noisier = (masked_batch(batch, one, noise, mask_token_id) for one in (t, later))
        return _LookBack(noisier, cleaner, self.share, mask_token_id)


class _LookBack:
    def __init__(self, noisier, cleaner, share, mask_token_id):
        self.noised, self.cleaner, self.share, self.mask_token_id = noisier, cleaner, share, mask_token_id
        self.reads = noisier.masked

    def fill(self, rows, row_index):
        drawn, at = draw_rows(rows, forbidden_ids=(self.mask_token_id,)), self.noised
        sure = torch.zeros(at.ids.numel()).index_copy(0, row_index, drawn.confidence).view_as(at.t.new_zeros(at.ids.shape))
        self.chosen = select_top(sure, at.masked, (self.share * at.maskable.sum(-1)).ceil().long())
        self.best = at.ids.flatten().index_copy(0, row_index, drawn.candidates).view_as(at.ids)

    def finish(self, ask):
        ids = torch.where(self.chosen, self.best, self.cleaner.ids)
        return replace(self.cleaner, ids=ids, masked=self.cleaner.masked & ~self.chosen, drafted=self.chosen)


BACKPLAY = Objective(LookBack(), (QualityTerm(where="visible"),))


# ---- RemeDi (arXiv 2509.23653): masks and random tokens in one look, and a soft label at masks ----


@CORRUPTORS.register("masks_and_random_tokens")
@dataclass(frozen=True)
class MasksAndRandomTokens:
    rate: float = 0.1

    def plan(self, batch, noise, mask_token_id):
        t = draw_times(noise("t", 1).squeeze(-1), 0.1, 0.9)
        at = masked_batch(batch, t, noise, mask_token_id)
        wrong = at.visible & (noise("wrong", None) < (4 * self.rate * t * (1 - t)).unsqueeze(-1))
        other = (noise("token", None) * mask_token_id).long()  # here the mask is the last id
        return Given(noised=None, draft=replace(at, ids=torch.where(wrong, other, at.ids), drafted=wrong))


@TERMS.register("soft_quality")
@dataclass(frozen=True)
class SoftQuality:
    weight: float = 1.0
    name: ClassVar[str] = "soft_quality"
    on: ClassVar[str] = "draft"
    reads_quality: ClassVar[bool] = True

    def rows(self, at):
        return at.masked

    def labels(self, looked, at):
        right = cross_entropy_at(looked.rows.detach(), looked.row_index, at.clean_ids).neg().exp()
        return Labels(torch.where(at.masked, right, (at.ids == at.clean_ids).float()) * at.maskable, at.maskable)

    def __call__(self, looked, at):
        return quality_loss_per_row(looked.quality_logits, self.labels(looked, at))


REMEDI = Objective(MasksAndRandomTokens(), (RepairTerm(where="masked"), SoftQuality()))
METHODS = {"proseco": PROSECO, "backplay": BACKPLAY, "remedi": REMEDI}
