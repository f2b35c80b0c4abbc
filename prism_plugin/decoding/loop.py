"""The loop: look, draw, grant, decide, write, until no row has anything left to do (stations 3 to 9 of sampling).

A row is followed on its own: it has its own block, its own step in that block and its own end, all of them tensors over
the batch, so one forward serves rows that are at different places. Nothing here writes a token but `apply_step`, and the
padding after an EOS. Whoever wraps the loop steps it from outside: `begin`, `advance`, `finish`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from prism_plugin.core.categorical import RowStats, draw_rows
from prism_plugin.core.schedules import Schedule
from prism_plugin.core.view import Budget, Decider, Decision, StepView, apply_step
from prism_plugin.decoding.chance import Chance
from prism_plugin.decoding.decide import Separate, name_of, needs_of, revises
from prism_plugin.decoding.faults import IN_WORDS, Fault, fault_of
from prism_plugin.decoding.features import Feature, Glance, get_features
from prism_plugin.decoding.looks import Look, PlainLook, Seen, Want
from prism_plugin.decoding.pace import Pace
from prism_plugin.decoding.safety import Safety
from prism_plugin.decoding.state import Canvas, State, begin_state
from prism_plugin.errors import SamplingError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.types import PerRow, PerToken, TokenIds, TokenMask


@dataclass(frozen=True)
class Step:
    """One look: the rows that took part, their states before and after, what was seen of them and what was decided.

    Attributes:
        rows: Numbers of the rows, on the device.
        before: The state of these rows at the look.
        view: What the decider saw.
        decision: What it decided.
        state: Every row after the look.
    """

    rows: Tensor
    before: State
    view: StepView
    decision: Decision
    state: State


@dataclass(frozen=True)
class Loop:
    """How a model fills canvases. Pure but for the model and the chance: a state goes in, another comes out.

    Attributes:
        model: What is looked at; None where `look` knows.
        decider: What is written and taken back.
        schedule: How many of either.
        num_steps: Steps over all blocks.
        mask_token_id: Id of the mask token.
        forbidden_ids: Tokens that are never drawn; the mask token among them.
        end_ids: Tokens that end a text, which are not drawn where the canvas says that it is too early.
        chance: Where random numbers come from, by the rows' places.
        temperature: 0 takes the most probable token.
        top_p: Nucleus to sample from.
        eos_token_id: Ends a row when a closed block holds it.
        fill_id: Written after an EOS.
        safety: What is spared of remasking and editing.
        look: The call of the network.
        padded: Some row has padding, so the network is told.
        vocab_size: Columns of the logits; only features that remember whole distributions ask.
        draws_all: Draw a token at every masked position, for whoever wants to see it, also where the decider is blind.
        whole_batch: Look at every row at every step, finished ones too: so each process makes as many looks as the others.
        needs: Features that whoever steps the loop reads of the states, beside those of the decider.
    """

    model: HeadedBackbone | None
    decider: Decider
    schedule: Schedule
    num_steps: int
    mask_token_id: int
    forbidden_ids: tuple[int, ...]
    chance: Chance
    temperature: float = 0.0
    top_p: float = 1.0
    eos_token_id: int | None = None
    fill_id: int = 0
    safety: Safety = field(default_factory=Safety)
    look: Look = field(default_factory=PlainLook)
    padded: bool = True
    end_ids: tuple[int, ...] = ()
    vocab_size: int = 0
    draws_all: bool = False
    whole_batch: bool = False
    needs: frozenset[str] = frozenset()

    @cached_property
    def features(self) -> Mapping[str, Feature]:
        """What the decider needs, by name."""
        return get_features(needs_of(self.decider) | self.needs, name_of(self.decider))

    @cached_property
    def reads(self) -> frozenset[str]:
        """What a look has to give for the features."""
        return frozenset().union(*(feature.reads for feature in self.features.values()))

    @cached_property
    def pace(self) -> Pace:
        """What the schedule grants, block by block."""
        return Pace(
            self.schedule, self.num_steps, self.decider.reach == "begun", self.decider.takes_back, revises(self.decider)
        )

    @property
    def is_blind(self) -> bool:
        """Tokens are drawn only where they are written, which is decided before the look."""
        decider = self.decider
        return decider.blind and not decider.takes_back and not self.draws_all and not self.reads - {"noise"}

    def begin(self, canvas: Canvas, *, goal: PerRow | None = None) -> State:
        """The state before the first look.

        Args:
            canvas: What is to be filled.
            goal: Positions to reveal in all, where that is not every one: a canvas of one block then, which a draft leaves
                at its share.
        """
        if goal is None:
            blocks = torch.arange(int(canvas.num_blocks.max()) if len(canvas.num_blocks) else 0, device=canvas.tokens.device)
            goals = (canvas.block_of.unsqueeze(-1) == blocks).sum(1)
        else:
            goals = goal.unsqueeze(-1)
        memory = {name: feature.begin(canvas, self.vocab_size) for name, feature in self.features.items()}
        memory = {name: one for name, one in memory.items() if one}
        state = begin_state(canvas, goals, memory)
        masked = self._reach(state)[0].sum(-1)
        return replace(state, step=self.pace.seek(state, state.block, state.step, masked, torch.zeros_like(masked)))

    @torch.no_grad()  # not inference_mode: remote code caches rotary tables in its first forward, and training refuses such
    def advance(
        self, state: State, *, rows: TokenMask | None = None, given: TokenIds | None = None, look: Look | None = None
    ) -> Step | None:
        """Make one look at the rows that have something left to do. None where no row has, unless the whole batch always looks.

        Args:
            state: Where every row stands.
            rows: Which rows may move, [batch] bool; the others wait as they are. None: all.
            given: Tokens that stand for those that would be written, -1 where none does, [batch, length].
            look: In place of the loop's own, for this step.
        """
        counts, state = self._counts(state, rows)
        movers = (counts[:, 0] >= 0).nonzero().squeeze(-1)
        lookers = torch.arange(len(counts)) if self.whole_batch else movers
        if len(lookers) == 0:
            return None
        device, everyone = state.tokens.device, len(lookers) == len(counts)
        index = lookers.to(device, non_blocking=True)
        before = state if everyone else state.take(index)
        noise, uniforms = self.chance.draw(lookers, before.tokens.shape[1], device)
        moved = movers.to(device, non_blocking=True)
        moving = None  # all that look
        if len(movers) < len(lookers):
            moving = torch.zeros(len(lookers), dtype=torch.bool, device=device).index_fill(0, moved, True)
        of_movers = counts[movers].tolist()
        numbers = [sum(part) for part in zip(*of_movers, strict=True)] if of_movers else [0, 0, 0]
        widest = max((masked + visible for masked, visible, _ in of_movers), default=0)
        looked = self._look(before, [*numbers, widest], moving, noise, uniforms, look or self.look)
        given = given if given is None or everyone else given[index]
        after = self._close(self._write(before, looked, given), looked)
        if moving is not None:  # who rides along stays as it was
            after = after.take(moved)
        following = after if len(movers) == len(counts) else state.put(moved, after)
        return Step(index, before, looked.view, looked.decision, following)

    def reads_at(self, state: State, rows: TokenMask) -> TokenMask:
        """Positions whose logits the next look has to give, where only `rows` move."""
        masked, visible = (part & rows.unsqueeze(-1) for part in self._reach(state))
        if not self.is_blind:
            return masked
        noise, _ = self.chance.draw(torch.arange(len(rows)), masked.shape[1], masked.device)
        view, budget = self._blind_view(state, masked, visible, noise)
        return self.decider(view, budget).write

    def finish(self, state: State) -> State:
        """Check that all went well, and give the state with every block closed that had nothing left to do.

        Raises:
            SamplingError: If a rule broke its contract, or mask tokens are left.
        """
        _, state = self._counts(state, None)
        self.require_faultless(state)
        left = (state.canvas.editable & (state.tokens == self.mask_token_id)).sum(-1)
        if left.any():
            raise SamplingError(
                f"mask tokens are left after the last step, {int(left.max())} in `input_ids[{int(left.argmax())}]`: the "
                "schedule's target must reach `total` at a block's last step without remasking there, and the unmasking rule "
                f"must reveal at least its budget; {name_of(self.schedule)} or {self._names()['unmasking']} does not."
            )
        return state

    def require_faultless(self, state: State, among: Collection[Fault] = tuple(Fault)) -> None:
        """Check that nothing went wrong at any look.

        Args:
            state: Where every row stands.
            among: What is looked for.

        Raises:
            SamplingError: If a rule broke its contract, or a number was none.
        """
        fault = int(state.fault.amax()) if len(state.fault) else 0
        if fault and fault in among:
            raise SamplingError(IN_WORDS[Fault(fault)].format(**self._names()))

    def _names(self) -> dict[str, str]:
        decider = self.decider
        if isinstance(decider, Separate):
            return {"unmasking": name_of(decider.unmasking), "remasking": name_of(decider.remasking)}
        return dict.fromkeys(("unmasking", "remasking"), name_of(decider))

    # ---- where rows stand ----

    def _reach(self, state: State) -> tuple[TokenMask, TokenMask]:
        """What the decider may decide about in each row: masked positions, and those that hold a token."""
        block_of, block = state.canvas.block_of, state.block.unsqueeze(-1)
        within = block_of == block
        if self.decider.reach == "begun":
            within |= (block_of >= 0) & (block_of < block) & (block < state.canvas.num_blocks.unsqueeze(-1))
        is_mask = state.tokens == self.mask_token_id
        return within & is_mask, within & ~is_mask

    def _counts(self, state: State, rows: TokenMask | None) -> tuple[Tensor, State]:
        """Of each row: masked and visible positions, and those to reveal, [batch, 3] on the CPU; -1 where it is done or waits.

        Here the host waits for the device, and nowhere else in a step. A row whose next step is still sought is moved on to it
        first, into the next block if this one has none, so that no look is made that grants nothing.
        """
        while True:
            masked, visible = (part.sum(-1) for part in self._reach(state))
            budget, num_steps, _ = self.pace.grant(state, visible)
            live = (state.block < state.canvas.num_blocks) & (state.step < num_steps) & (state.fault == 0).all()
            if rows is not None:
                live &= rows
            worth = self.pace.is_worth_a_look(budget, masked, visible)
            grant = (budget.target - visible).clamp(min=0).minimum(masked)
            counts = torch.stack((masked, visible, grant, worth.long()), dim=-1).masked_fill(~live.unsqueeze(-1), -1).cpu()
            if 0 not in counts[:, 3].tolist():
                return counts[:, :3], state
            ahead = self.pace.seek(state, state.block, state.step, masked, visible)
            sought = live & ~worth
            state = self._move(state, torch.where(sought, ahead, state.step), sought & (ahead >= num_steps))

    def _move(self, at: State, step: PerRow, closed: Tensor) -> State:
        """Move rows to a step of their block; where that is closed, stop at an EOS or begin the next one."""
        canvas, block = at.canvas, torch.where(closed, at.block + 1, at.block)
        if self.eos_token_id is not None:
            _, visible = self._reach(at)
            is_eos = visible & (at.tokens == self.eos_token_id) & closed.unsqueeze(-1)
            after_eos = canvas.editable & (is_eos.cumsum(-1) > is_eos.long())
            block = torch.where(is_eos.any(-1), canvas.num_blocks, block)
            at = replace(
                at,
                tokens=at.tokens.masked_fill(after_eos, self.fill_id),
                age=at.age.masked_fill(after_eos, -1),
                quality=at.quality.masked_fill(after_eos, float("nan")),
            )
        # if the next block's first step grants nothing, `_counts` seeks the one that does
        return replace(at, block=block, step=step.masked_fill(closed, 0))

    # ---- one look ----

    def _look(
        self,
        at: State,
        counts: list[int],
        moving: Tensor | None,
        noise: PerToken | None,
        uniforms: PerToken | None,
        look: Look,
    ) -> "_Looked":
        masked, visible = self._reach(at)
        if moving is not None:
            masked, visible = masked & moving.unsqueeze(-1), visible & moving.unsqueeze(-1)
        view, budget = self._blind_view(at, masked, visible, noise)
        decided = self.decider(view, budget) if self.is_blind else None
        want = Want(
            masked=masked if decided is None else decided.write,
            num_masked=counts[0] if decided is None else counts[2],
            visible=visible if "visible" in self.reads else None,
            num_visible=counts[1],
            quality="quality" in self.reads,
            padded=self.padded,
            visible_tokens=visible,
            widest=counts[3],
            forbidden_ids=self.forbidden_ids,
        )
        seen, of_look = look(self.model, at, want, at.memory.get("look", {}))  # type: ignore[arg-type]  # None: it needs none
        drawn = self._draw(seen, at.canvas, uniforms)
        glance = Glance(at, seen, masked, visible, drawn, noise, self.forbidden_ids, self.end_ids)
        features, memory = {}, {"look": of_look} if of_look else {}
        for name, feature in self.features.items():
            features[name], remembered = feature(glance, at.memory.get(name, {}))
            memory |= {name: remembered} if remembered else {}
        index = seen.masked.index
        candidates = at.tokens.flatten().index_copy(0, index, drawn.candidates).view(at.tokens.shape)
        view = replace(view, candidates=candidates, confidence=glance.lay(index, drawn.confidence), features=features)
        decision = self.decider(view, budget) if decided is None else decided
        return _Looked(view, decision, seen, budget, memory)

    def _blind_view(self, at: State, masked: TokenMask, visible: TokenMask, noise: PerToken | None) -> tuple[StepView, Budget]:
        """What is known before the look, and what the schedule grants."""
        budget, num_steps, total = self.pace.grant(at, visible.sum(-1))
        active = at.canvas.block_of == at.block.unsqueeze(-1) if self.decider.reach == "begun" else None
        budget = self.safety.granted(budget, (masked | visible).sum(-1))
        view = StepView(
            active=active,
            masked=masked,
            revealed=self.safety.not_spared(at, visible),
            editable=masked | visible,
            tokens=at.tokens,
            candidates=at.tokens,
            confidence=torch.zeros(at.tokens.shape, device=at.tokens.device),
            commit_confidence=at.commit_confidence,
            step=at.step,
            num_steps=num_steps,
            total=total,
            times_remasked=at.times_remasked,
            features={} if noise is None else {"noise": noise},
        )
        return view, budget

    def _draw(self, seen: Seen, canvas: Canvas, uniforms: PerToken | None) -> RowStats:
        logits = seen.masked
        return draw_rows(
            logits.rows,
            at=logits.at,
            temperature=self.temperature,
            top_p=self.top_p,
            forbidden_ids=self.forbidden_ids,
            held_back=canvas.held_back(self.end_ids, logits.index),
            uniforms=None if uniforms is None else uniforms.flatten()[logits.index.to(uniforms.device)],
            want_entropy="entropy" in self.reads,
            want_margin="margin" in self.reads,
        )

    def _write(self, at: State, looked: "_Looked", given: TokenIds | None) -> State:
        view, decision, seen = looked.view, looked.decision, looked.seen
        if given is not None:
            wanted = view.candidates if decision.tokens is None else decision.tokens
            decision = replace(decision, tokens=torch.where(given >= 0, given, wanted))
        changed, quality = decision.write | decision.remask, at.quality
        if seen.quality is not None:
            judged = at.canvas.editable & (at.tokens != self.mask_token_id)
            judged = judged if seen.where is None else judged & seen.where
            quality = torch.where(judged, seen.quality, quality)
        confidence = view.features.get("refined_confidence", view.confidence)
        if decision.tokens is not None and "best_visible_confidence" in view.features:
            confidence = torch.where(view.masked, confidence, view.features["best_visible_confidence"])
        tokens = apply_step(at.tokens, view.candidates, decision, self.mask_token_id)
        edited = None if decision.tokens is None else decision.write & ~view.masked & (tokens != at.tokens)
        return replace(
            at,
            **self.safety.noted(at, decision.remask, edited),  # type: ignore[arg-type]  # parts of the state
            tokens=tokens,
            commit_confidence=torch.where(decision.write, confidence, at.commit_confidence).masked_fill(decision.remask, 1.0),
            quality=quality.masked_fill(changed, float("nan")),
            times_remasked=at.times_remasked + decision.remask,
            age=torch.where(at.age < 0, at.age, at.age + 1).masked_fill(decision.write, 0).masked_fill(decision.remask, -1),
            num_looks=at.num_looks + 1,
            num_forward_passes=at.num_forward_passes + seen.num_forwards,
            num_positions=at.num_positions + seen.positions(at.canvas),
            num_remasked=at.num_remasked + decision.remask.sum(-1),
            fault=fault_of(view, looked.decision, looked.budget, tokens, self.mask_token_id, seen.quality),
            memory=looked.memory,
        )

    def _close(self, at: State, looked: "_Looked") -> State:
        """Move each row to its next step, or out of its block where that is done.

        A block is done when no step is left that could do anything, or when a look at the full block changed nothing and the
        next one would see and do the same.
        """
        left, visible = (part.sum(-1) for part in self._reach(at))
        changed = (looked.decision.write | looked.decision.remask).any(-1)
        settled = ~looked.view.masked.any(-1) & ~changed & self.decider.repeats
        ahead = self.pace.seek(at, at.block, at.step + 1, left, visible)
        return self._move(at, ahead, (ahead >= self.pace.block_steps(at)) | (settled & (left == 0)))


@dataclass(frozen=True)
class _Looked:
    """What one look gave, and what was decided."""

    view: StepView
    decision: Decision
    seen: Seen
    budget: Budget
    memory: Mapping[str, Mapping[str, Tensor]]
