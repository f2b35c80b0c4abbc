"""Stations 3 to 9 of sampling: look, draw, grant, take back, reveal, write, until no row has anything left to do.

A row is followed on its own: it has its own block, its own step in that block and its own end, all of them tensors over
the batch, so one forward serves rows that are at different places. Nothing here writes a token but `apply_step`, and the
padding after an EOS.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from prism_plugin.core.categorical import draw_rows, token_confidence
from prism_plugin.core.remasking import NeverRemasking, RemaskingRule
from prism_plugin.core.selection import true_places
from prism_plugin.core.unmasking import UnmaskingRule
from prism_plugin.core.view import StepView, apply_step, unmask_grant
from prism_plugin.errors import SamplingError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.sampling.canvas import Canvas, share_steps
from prism_plugin.sampling.chance import Chance, Generators
from prism_plugin.sampling.settings import SamplerSettings
from prism_plugin.types import FlatIndex, PerRow, PerToken, Rows, TokenIds, TokenMask

# What a rule that does not declare its `needs`, such as a lambda, is given. Not the probability of visible tokens: that
# costs rows of the LM head.
UNDECLARED_NEEDS = frozenset({"noise", "quality", "entropy", "margin"})

_FAULTS = {
    1: "an unmasking rule may choose only among `view.masked`, but {unmasking} chose other positions; pass that mask as "
    "`eligible` to `select_top`.",
    2: "a remasking rule may choose only among `view.revealed`, but {remasking} chose other positions; pass that mask as "
    "`eligible` to `select_top`.",
    3: "a remasking rule must stay within its budget, but {remasking} took back more; choose with `select_top`.",
    4: "the model's logits must be numbers, but NaN or infinity came at a masked position; look at its weights, and load a "
    "model in bfloat16 or float32 if float16 is too narrow for it.",
}


@dataclass(frozen=True)
class StepRecord:
    """One look, for a trace; on the CPU, in the layout of the returned `sequences`, at most 34 bytes a position.

    Attributes:
        step: Number of the look, from 0; counts the forwards of the batch.
        looked: Rows that took part, [batch]; the others were done.
        tokens_before: Tokens that the network saw.
        tokens_after: Tokens after the decisions, and after the padding that follows an EOS.
        unmasked: Positions filled at this look.
        remasked: Positions masked again at this look.
        confidence: Probability of the token drawn for each masked position of the active block; NaN elsewhere.
        quality: Quality of each generated token that was visible; NaN elsewhere; None when no rule needs it.
    """

    step: int
    looked: Tensor
    tokens_before: TokenIds
    tokens_after: TokenIds
    unmasked: TokenMask
    remasked: TokenMask
    confidence: PerToken
    quality: PerToken | None


@dataclass(frozen=True)
class Progress:
    """Where every row stands. All tensors begin with the batch."""

    tokens: TokenIds
    commit_confidence: PerToken  # probability of the token when it was filled, 1 elsewhere
    quality: PerToken  # last quality seen of the token that stands there, NaN where it was not judged
    times_remasked: TokenIds
    block: PerRow
    step: PerRow  # within the block; equal to its number of steps when nothing is left to do
    num_forward_passes: PerRow
    num_remasked: PerRow
    fault: PerRow  # 0, or the number of the sentence in `_FAULTS` that says what a rule or the model did wrong

    def take(self, rows: Tensor) -> "Progress":
        """A copy of some rows."""
        return Progress(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Tensor, part: "Progress") -> "Progress":
        """A copy with some rows written back."""
        pairs = ((getattr(self, field.name), getattr(part, field.name)) for field in fields(self))
        return Progress(*(whole.index_copy(0, rows, some) for whole, some in pairs))


@dataclass(frozen=True)
class Decoder:
    """The fixed part of a request's loop: the model, the settings, and the ids that they imply.

    Attributes:
        forbidden_ids: Tokens that are never drawn; the mask token among them.
        fill_id: Token written after an EOS.
    """

    model: PrismModel
    settings: SamplerSettings
    forbidden_ids: tuple[int, ...]
    fill_id: int

    # not inference_mode: remote code caches rotary tables in its first forward, and training would refuse such tensors
    @torch.no_grad()
    def run(self, canvas: Canvas, generator: Generators, on_record: Callable[[StepRecord], None] | None) -> Progress:
        """Fill the canvas.

        Raises:
            SamplingError: If a rule breaks its contract, or mask tokens are left after the last step.
        """
        horizon = int(share_steps(self.settings.num_steps, canvas.num_blocks, torch.zeros_like(canvas.num_blocks)).max())
        progress = self._begin(canvas, horizon)
        chance = Chance(generator, canvas.lengths.tolist(), self.settings.temperature > 0, "noise" in self.needs)
        padded = bool((canvas.attention_mask == 0).any())
        # A rule of chance may take back at the next look what it left at this one; of a lambda nothing is known.
        repeats = not getattr(self.settings.remasking, "by_chance", True)
        number = 0
        while True:
            counts = self._counts(canvas, progress).cpu()  # here the host waits for the device, and nowhere else in a step
            live = (counts >= 0).all(-1).nonzero().squeeze(-1)
            if live.numel() == 0:
                break
            rows = live.to(canvas.tokens.device, non_blocking=True)
            everyone = live.numel() == counts.shape[0]
            here, before = (canvas, progress) if everyone else (canvas.take(rows), progress.take(rows))
            noise, uniforms = chance.draw(live, here.tokens.shape[1], canvas.tokens.device)
            view = self._look(here, before, counts[live].sum(0).tolist(), noise, uniforms, padded)
            reveal, remask, fault = self._decide(view)
            written = self._write(here, replace(before, fault=fault), view, reveal, remask)
            after = self._close(here, written, ~view.masked.any(-1) & repeats, horizon)
            if on_record is not None:
                on_record(_record(number, canvas, progress, rows, after, view, reveal, remask))
            progress = after if everyone else progress.put(rows, after)
            number += 1
        self._require_sound(canvas, progress)
        return progress

    @property
    def needs(self) -> frozenset[str]:
        """What the rules read of a look."""
        return needs_of(self.settings.unmasking) | needs_of(self.settings.remasking)

    def _begin(self, canvas: Canvas, horizon: int) -> Progress:
        none = torch.zeros_like(canvas.lengths)
        start = Progress(
            tokens=canvas.tokens,
            commit_confidence=torch.ones(canvas.tokens.shape, device=none.device),
            quality=torch.full(canvas.tokens.shape, float("nan"), device=none.device),
            times_remasked=torch.zeros_like(canvas.tokens),
            block=none,
            step=none,
            num_forward_passes=none,
            num_remasked=none,
            fault=none,
        )
        total = (canvas.block_of == 0).sum(-1)
        return replace(start, step=self._next_step(canvas.num_blocks, none, none, total, none, horizon))

    def _counts(self, canvas: Canvas, progress: Progress) -> Tensor:
        """Masked and revealed positions of each row's active block, [batch, 2]; -1 where the row is done."""
        live = (progress.block < canvas.num_blocks) & (progress.step < self._block_steps(canvas, progress))
        live &= (progress.fault == 0).all()
        counts = torch.stack([part.sum(-1) for part in self._active(canvas, progress)], dim=-1)
        return counts.masked_fill(~live.unsqueeze(-1), -1)

    def _block_steps(self, canvas: Canvas, progress: Progress) -> PerRow:
        return share_steps(self.settings.num_steps, canvas.num_blocks, progress.block)

    def _active(self, canvas: Canvas, progress: Progress) -> tuple[TokenMask, TokenMask]:
        """Split the active block of each row into what is masked and what is revealed."""
        active = canvas.block_of == progress.block.unsqueeze(-1)
        is_mask = progress.tokens == self.model.mask_token_id
        return active & is_mask, active & ~is_mask

    def _look(
        self, canvas: Canvas, at: Progress, counts: list[int], noise: PerToken | None, uniforms: PerToken | None, padded: bool
    ) -> StepView:
        """One forward over the live rows, and what the rules may know from it. `counts` are masked and revealed positions."""
        masked, revealed = self._active(canvas, at)
        output = self.model(
            at.tokens,
            canvas.attention_mask if padded else None,
            logits_at=self._index(masked, revealed, counts),
            with_quality="quality" in self.needs,
        )
        drawn = self._draw(output.logits, at.tokens, masked, revealed, counts, uniforms)
        capped = self.settings.max_remasks_per_position
        return StepView(
            masked=masked,
            revealed=revealed if capped is None else revealed & (at.times_remasked < capped),
            editable=masked | revealed,
            quality=output.quality_logits.float().sigmoid() if "quality" in self.needs else None,
            commit_confidence=at.commit_confidence,
            noise=noise,
            step=at.step,
            num_steps=self._block_steps(canvas, at),
            total=(masked | revealed).sum(-1),  # all of a block is masked when it begins
            times_remasked=at.times_remasked,
            **drawn,
        )

    def _index(self, masked: TokenMask, revealed: TokenMask, counts: list[int]) -> FlatIndex:
        """Positions whose logits are wanted: the masks, and after them what is revealed where a rule reads that."""
        index = true_places(masked, counts[0])
        if "visible_confidence" not in self.needs:
            return index
        return torch.cat((index, true_places(revealed, counts[1])))

    def _draw(
        self,
        rows: Rows,
        tokens: TokenIds,
        masked: TokenMask,
        revealed: TokenMask,
        counts: list[int],
        uniforms: PerToken | None,
    ) -> dict[str, Tensor]:
        """Draw a token for each masked position, and lay the figures of the rows out by position."""

        def lay(index: FlatIndex, values: Tensor) -> PerToken:
            return torch.zeros(tokens.shape, device=tokens.device).view(-1).index_copy_(0, index, values).view(tokens.shape)

        forbidden_ids = self.forbidden_ids
        index = true_places(masked, counts[0])
        laid = {}
        if "visible_confidence" in self.needs:
            visible = true_places(revealed, counts[1])
            seen = token_confidence(rows[counts[0] :], tokens.flatten()[visible], forbidden_ids=forbidden_ids)
            laid["visible_confidence"] = lay(visible, seen)
        stats = draw_rows(
            rows[: counts[0]],
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            forbidden_ids=forbidden_ids,
            uniforms=None if uniforms is None else uniforms.flatten()[index.to(uniforms.device)],
            want_entropy="entropy" in self.needs,
            want_margin="margin" in self.needs,
        )
        for name in {"confidence"} | self.needs & {"entropy", "margin"}:
            laid[name] = lay(index, getattr(stats, name))
        return {"candidates": tokens.flatten().index_copy(0, index, stats.candidates).view(tokens.shape), **laid}

    def _decide(self, view: StepView) -> tuple[TokenMask, TokenMask, PerRow]:
        """Take back first; what may be revealed follows from what was really taken back. The last is each row's fault."""
        masked_count = view.masked.sum(-1)
        revealed_count = view.editable.sum(-1) - masked_count
        budget = self.settings.schedule(view.step, view.num_steps, view.total, revealed_count)
        remask = _ask(self.settings.remasking, view, budget.remask)
        grant = unmask_grant(budget, revealed_count, remask.sum(-1), masked_count)
        reveal = _ask(self.settings.unmasking, view, grant)
        # Kept on the device, and read when the loop ends: checking here would make every step wait.
        fault = torch.zeros_like(masked_count)
        fault = fault.masked_fill(remask.sum(-1) > budget.remask, 3)
        fault = fault.masked_fill((remask & ~view.revealed).any(-1), 2)
        fault = fault.masked_fill(view.confidence.isnan().any(-1), 4)
        return reveal, remask, fault.masked_fill((reveal & ~view.masked).any(-1), 1)

    def _write(self, canvas: Canvas, at: Progress, view: StepView, reveal: TokenMask, remask: TokenMask) -> Progress:
        changed = reveal | remask
        quality = at.quality
        if view.quality is not None:
            judged = canvas.editable & (at.tokens != self.model.mask_token_id)
            quality = torch.where(judged, view.quality, quality)
        return replace(
            at,
            tokens=apply_step(at.tokens, view, reveal, remask, self.model.mask_token_id),
            commit_confidence=torch.where(reveal, view.confidence, at.commit_confidence).masked_fill(remask, 1.0),
            quality=quality.masked_fill(changed, float("nan")),
            times_remasked=at.times_remasked + remask,
            num_forward_passes=at.num_forward_passes + 1,
            num_remasked=at.num_remasked + remask.sum(-1),
        )

    def _close(self, canvas: Canvas, at: Progress, full_look: Tensor, horizon: int) -> Progress:
        """Move each row to its next step; where its block is done, stop at an EOS or begin the next block.

        A block is done when no step is left that could do anything, or when a look at the full block took nothing back and
        the next one would see and do the same.
        """
        masked, revealed = self._active(canvas, at)
        counts, following = [part.sum(-1) for part in (masked, revealed)], at.block + 1
        all_of_following = (canvas.block_of == following.unsqueeze(-1)).sum(-1)
        none = torch.zeros_like(following)
        # the schedule is asked once, about going on in the block and about beginning the next
        pairs = ((at.block, following), (at.step + 1, none), (counts[0], all_of_following), (counts[1], none))
        steps = self._next_step(canvas.num_blocks.repeat(2), *(torch.cat(pair) for pair in pairs), horizon)
        ahead, begun = steps.chunk(2)
        closed = (ahead >= self._block_steps(canvas, at)) | (full_look & (counts[0] == 0))
        block = torch.where(closed, following, at.block)
        if self.settings.eos_token_id is not None:
            is_eos = revealed & (at.tokens == self.settings.eos_token_id) & closed.unsqueeze(-1)
            after_eos = canvas.editable & (is_eos.cumsum(-1) > is_eos.long())
            block = torch.where(is_eos.any(-1), canvas.num_blocks, block)
            at = replace(
                at,
                tokens=at.tokens.masked_fill(after_eos, self.fill_id),
                quality=at.quality.masked_fill(after_eos, float("nan")),
            )
        return replace(at, block=block, step=torch.where(closed, begun, ahead))

    def _next_step(
        self, num_blocks: PerRow, block: PerRow, step: PerRow, masked_count: PerRow, revealed_count: PerRow, horizon: int
    ) -> PerRow:
        """The first step from `step` on that could reveal or take back something; the block's number of steps if none.

        Schedules are pure, so all steps of a block, at most `horizon`, can be asked at once. A step that would grant nothing
        costs no forward.
        """
        num_steps = share_steps(self.settings.num_steps, num_blocks, block)
        steps = torch.arange(horizon, device=num_steps.device).repeat(len(num_steps), 1)
        rows = (num_steps, masked_count + revealed_count, revealed_count)
        budget = self.settings.schedule(steps.flatten(), *(row.repeat_interleave(horizon) for row in rows))
        grants = (budget.target.view_as(steps) > revealed_count.unsqueeze(-1)) & (masked_count > 0).unsqueeze(-1)
        if not isinstance(self.settings.remasking, NeverRemasking):
            grants |= budget.remask.view_as(steps) > 0
        ahead = grants & (steps >= step.unsqueeze(-1))
        return torch.where(ahead, steps, horizon).amin(-1).minimum(num_steps)

    def _require_sound(self, canvas: Canvas, progress: Progress) -> None:
        fault = int(progress.fault.max())
        if fault:
            unmasking, remasking = _name(self.settings.unmasking), _name(self.settings.remasking)
            raise SamplingError(_FAULTS[fault].format(unmasking=unmasking, remasking=remasking))
        left = (canvas.editable & (progress.tokens == self.model.mask_token_id)).sum(-1)
        if left.any():
            raise SamplingError(
                f"mask tokens are left after the last step, {int(left.max())} in row {int(left.argmax())}: the schedule's "
                "target must reach `total` at a block's last step without remasking there, and the unmasking rule must reveal "
                f"at least its budget; {_name(self.settings.schedule)} or {_name(self.settings.unmasking)} does not."
            )


def _ask(rule: UnmaskingRule | RemaskingRule, view: StepView, budget: PerRow) -> TokenMask:
    answer = rule(view, budget)
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.shape != view.masked.shape:
        found = f"{answer.dtype} of shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise SamplingError(
            f"a rule must return a bool mask of shape {list(view.masked.shape)}, but {_name(rule)} returned {found}; "
            "choose with `select_top`."
        )
    return answer


def needs_of(rule: UnmaskingRule | RemaskingRule) -> frozenset[str]:
    """What a rule reads of a look beyond the candidates and their confidence."""
    return getattr(rule, "needs", UNDECLARED_NEEDS)


def _name(plug_in: object) -> str:
    return getattr(plug_in, "__name__", type(plug_in).__name__)


def _record(
    number: int, canvas: Canvas, before: Progress, rows: Tensor, after: Progress, view: StepView, reveal: Tensor, remask: Tensor
) -> StepRecord:
    def lay(part: Tensor, full: Tensor, outside: Tensor | float | bool) -> Tensor:
        return canvas.restore(full.index_put((rows,), part), outside).cpu()

    nothing = torch.zeros_like(canvas.editable)
    unknown = torch.full_like(before.quality, float("nan"))
    quality = None
    if view.quality is not None:
        begun = canvas.editable & (canvas.block_of <= before.block.unsqueeze(-1))
        seen = begun[rows] & ~view.masked
        quality = lay(view.quality.masked_fill(~seen, float("nan")), unknown, float("nan"))
    return StepRecord(
        step=number,
        looked=torch.zeros_like(before.block, dtype=torch.bool).index_fill(0, rows, True).cpu(),
        tokens_before=canvas.restore(before.tokens, canvas.request).cpu(),
        tokens_after=lay(after.tokens, before.tokens, canvas.request),
        unmasked=lay(reveal, nothing, False),
        remasked=lay(remask, nothing, False),
        confidence=lay(view.confidence.masked_fill(~view.masked, float("nan")), unknown, float("nan")),
        quality=quality,
    )
