"""Stations 3 to 9 of sampling: look, draw, grant, take back, reveal, write, until no row has anything left to do.

A row is followed on its own: it has its own block, its own step in that block and its own end, all of them tensors over
the batch, so one forward serves rows that are at different places. Nothing here writes a token but `apply_step`, and the
padding after an EOS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from prism_plugin.core.categorical import draw_rows, token_confidence
from prism_plugin.core.remasking import NeverRemasking, RemaskingRule
from prism_plugin.core.unmasking import UnmaskingRule
from prism_plugin.core.view import StepView, apply_step, unmask_grant
from prism_plugin.errors import SamplingError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.sampling.canvas import Canvas, share_steps
from prism_plugin.sampling.settings import SamplerSettings
from prism_plugin.types import PerRow, PerToken, Rows, TokenIds, TokenMask

# What a rule that does not declare its `needs`, such as a lambda, is given. Not the probability of visible tokens: that
# costs rows of the LM head.
UNDECLARED_NEEDS = frozenset({"quality", "entropy", "margin"})

_FAULTS = {
    1: "an unmasking rule may choose only among `view.masked`, but {unmasking} chose other positions; pass that mask as "
    "`eligible` to `select_top`.",
    2: "a remasking rule may choose only among `view.revealed`, but {remasking} chose other positions; pass that mask as "
    "`eligible` to `select_top`.",
    3: "a remasking rule must stay within its budget, but {remasking} took back more; choose with `select_top`.",
}

Generators = torch.Generator | Sequence[torch.Generator] | None


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


@dataclass
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
    fault: PerRow  # 0, or the number of the sentence in `_FAULTS` that says what a rule did wrong

    def take(self, rows: Tensor) -> "Progress":
        """A copy of some rows."""
        return Progress(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Tensor, part: "Progress") -> None:
        """Write some rows back."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(part, field.name)


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
        progress = self._begin(canvas)
        padded = bool((canvas.attention_mask == 0).any())
        needs = needs_of(self.settings.unmasking) | needs_of(self.settings.remasking)
        # A rule of chance may take back at the next look what it left at this one; of a lambda nothing is known.
        repeats = not getattr(self.settings.remasking, "by_chance", True)
        number = 0
        while True:
            rows = self._live(canvas, progress).nonzero().squeeze(-1)  # here the host waits for the device
            if rows.numel() == 0:
                break
            here, before = canvas.take(rows), progress.take(rows)
            noise, uniforms = draw_noise(generator, rows, here.lengths, here.tokens.shape[1], self.settings.temperature > 0)
            view = self._look(here, before, noise, uniforms, needs, padded)
            reveal, remask, fault = self._decide(view)
            written = self._write(here, replace(before, fault=fault), view, reveal, remask)
            after = self._close(here, written, full_look=~view.masked.any(-1) & repeats)
            if on_record is not None:
                on_record(_record(number, canvas, progress, rows, after, view, reveal, remask))
            progress.put(rows, after)
            number += 1
        self._require_sound(canvas, progress)
        return progress

    def _begin(self, canvas: Canvas) -> Progress:
        none = torch.zeros_like(canvas.lengths)
        start = Progress(
            tokens=canvas.tokens.clone(),
            commit_confidence=torch.ones(canvas.tokens.shape, device=none.device),
            quality=torch.full(canvas.tokens.shape, float("nan"), device=none.device),
            times_remasked=torch.zeros_like(canvas.tokens),
            block=none.clone(),
            step=none.clone(),
            num_forward_passes=none.clone(),
            num_remasked=none.clone(),
            fault=none.clone(),
        )
        return replace(start, step=self._next_step(canvas, start))

    def _live(self, canvas: Canvas, progress: Progress) -> Tensor:
        unfinished = (progress.block < canvas.num_blocks) & (progress.step < self._block_steps(canvas, progress))
        return unfinished & (progress.fault == 0).all()

    def _block_steps(self, canvas: Canvas, progress: Progress) -> PerRow:
        return share_steps(self.settings.num_steps, canvas.num_blocks, progress.block)

    def _active(self, canvas: Canvas, progress: Progress) -> tuple[TokenMask, TokenMask]:
        """Split the active block of each row into what is masked and what is revealed."""
        active = canvas.block_of == progress.block.unsqueeze(-1)
        is_mask = progress.tokens == self.model.mask_token_id
        return active & is_mask, active & ~is_mask

    def _look(
        self, canvas: Canvas, at: Progress, noise: PerToken, uniforms: PerToken | None, needs: frozenset[str], padded: bool
    ) -> StepView:
        """One forward over the live rows, and what the rules may know from it."""
        masked, revealed = self._active(canvas, at)
        wanted = masked | revealed if "visible_confidence" in needs else masked
        index = wanted.flatten().nonzero().squeeze(-1)
        output = self.model(
            at.tokens,
            canvas.attention_mask if padded else None,
            logits_at=index,
            with_quality="quality" in needs,
        )
        drawn = self._draw(output.logits, index, at.tokens, masked, uniforms, needs)
        capped = self.settings.max_remasks_per_position
        return StepView(
            masked=masked,
            revealed=revealed if capped is None else revealed & (at.times_remasked < capped),
            editable=masked | revealed,
            quality=output.quality_logits.float().sigmoid() if "quality" in needs else None,
            commit_confidence=at.commit_confidence,
            noise=noise,
            step=at.step,
            num_steps=self._block_steps(canvas, at),
            total=(masked | revealed).sum(-1),  # all of a block is masked when it begins
            **drawn,
        )

    def _draw(
        self,
        rows: Rows,
        index: Tensor,
        tokens: TokenIds,
        masked: TokenMask,
        uniforms: PerToken | None,
        needs: frozenset[str],
    ) -> dict[str, Tensor]:
        """Draw a token for each masked position, and lay the figures of the rows out by position."""
        names = {"confidence"} | needs & {"entropy", "margin", "visible_confidence"}
        laid = {name: torch.zeros(tokens.shape, device=tokens.device) for name in names}
        candidates = tokens.clone()
        at_mask = masked.flatten()[index]
        if "visible_confidence" in needs:
            visible = index[~at_mask]
            laid["visible_confidence"].view(-1)[visible] = token_confidence(
                rows[~at_mask], tokens.flatten()[visible], forbidden_ids=self.forbidden_ids
            )
            rows, index = rows[at_mask], index[at_mask]
        stats = draw_rows(
            rows,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            forbidden_ids=self.forbidden_ids,
            uniforms=None if uniforms is None else uniforms.flatten()[index],
            want_entropy="entropy" in needs,
            want_margin="margin" in needs,
        )
        candidates.view(-1)[index] = stats.candidates
        for name in laid.keys() - {"visible_confidence"}:
            laid[name].view(-1)[index] = getattr(stats, name).float()
        return {"candidates": candidates, **laid}

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

    def _close(self, canvas: Canvas, at: Progress, full_look: Tensor) -> Progress:
        """Move each row to its next step; where its block is done, stop at an EOS or begin the next block.

        A block is done when no step is left that could do anything, or when a look at the full block took nothing back and
        the next one would see and do the same.
        """
        masked, revealed = self._active(canvas, at)
        at = replace(at, step=self._next_step(canvas, replace(at, step=at.step + 1)))
        closed = (at.step >= self._block_steps(canvas, at)) | (full_look & ~masked.any(-1))
        block = torch.where(closed, at.block + 1, at.block)
        if self.settings.eos_token_id is not None:
            is_eos = revealed & (at.tokens == self.settings.eos_token_id) & closed.unsqueeze(-1)
            after_eos = canvas.editable & (is_eos.cumsum(-1) > is_eos.long())
            block = torch.where(is_eos.any(-1), canvas.num_blocks, block)
            at = replace(
                at,
                tokens=at.tokens.masked_fill(after_eos, self.fill_id),
                quality=at.quality.masked_fill(after_eos, float("nan")),
            )
        at = replace(at, block=block, step=at.step.masked_fill(closed, 0))
        return replace(at, step=self._next_step(canvas, at))

    def _next_step(self, canvas: Canvas, at: Progress) -> PerRow:
        """The first step from `at.step` on that could reveal or take back something; the block's number of steps if none.

        Schedules are pure, so all steps of a block can be asked at once. A step that would grant nothing costs no forward.
        """
        masked, revealed = self._active(canvas, at)
        masked_count, revealed_count = masked.sum(-1), revealed.sum(-1)
        num_steps = self._block_steps(canvas, at)
        horizon = self.settings.num_steps
        steps = torch.arange(horizon, device=num_steps.device).repeat(len(num_steps), 1)
        rows = (num_steps, masked_count + revealed_count, revealed_count)
        budget = self.settings.schedule(steps.flatten(), *(row.repeat_interleave(horizon) for row in rows))
        grants = (budget.target.view_as(steps) > revealed_count.unsqueeze(-1)) & (masked_count > 0).unsqueeze(-1)
        if not isinstance(self.settings.remasking, NeverRemasking):
            grants |= budget.remask.view_as(steps) > 0
        ahead = grants & (steps >= at.step.unsqueeze(-1))
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


def draw_noise(
    generator: Generators, rows: Tensor, lengths: PerRow, width: int, with_uniforms: bool
) -> tuple[PerToken, PerToken | None]:
    """Draw one look's noise for the rules, and uniforms for the tokens if they are sampled.

    With one generator per row, a row's draws depend on its own length and looks only, not on padding or on other rows.

    Args:
        generator: One for all rows, one per row of the batch, or None for the device's default.
        rows: Numbers of the rows that look, as in the batch.
        lengths: Own tokens of these rows.
        width: Length of the canvas.
        with_uniforms: Whether tokens are sampled.

    Returns:
        Noise in float32 and uniforms in float64, both in [0, 1), [rows, width].
    """
    kinds = (torch.float32, torch.float64)[: 1 + with_uniforms]
    if isinstance(generator, Sequence):
        drawn = [torch.zeros(len(rows), width, dtype=kind, device=rows.device) for kind in kinds]
        for number, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
            for kind, into in zip(kinds, drawn, strict=True):
                into[number, :length] = _uniform(generator[row], (length,), kind, rows.device)
    else:
        drawn = [_uniform(generator, (len(rows), width), kind, rows.device) for kind in kinds]
    return drawn[0], drawn[1] if with_uniforms else None


def _uniform(generator: torch.Generator | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=dtype, device=source).to(device)


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
