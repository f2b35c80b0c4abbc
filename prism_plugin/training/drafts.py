"""Station 9: noised tokens and the first look's rows -> drafts, by the loop that samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prism_plugin.core.corruption import Corrupted
from prism_plugin.core.drafting import BlockByBlock, DraftRule, num_to_draft
from prism_plugin.core.forbidding import Forbidden, runs_of
from prism_plugin.core.history import History
from prism_plugin.core.schedules import EvenSchedule
from prism_plugin.core.selection import true_places
from prism_plugin.decoding import Canvas, Loop, Recalled, Seen, Separate, State, Want
from prism_plugin.decoding.decide import name_of, needs_of
from prism_plugin.decoding.faults import OF_RULES
from prism_plugin.decoding.features import get_features
from prism_plugin.decoding.looks import Logits
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.types import FlatIndex, PerRow, PerToken, Rows, TokenIds, TokenMask

# (tokens, attention mask, flat index) -> rows of logits there: a look without gradient and without dropout.
Ask = Callable[[TokenIds, Tensor, FlatIndex], Rows]


@dataclass(frozen=True)
class ExampleChance:
    """Random numbers that are a function of the example, the draft and the look.

    Attributes:
        noised: The batch, whose noise is drawn from.
        look: Number of the look, from 0.
        slots: For each row of the state, its number among drafts times rows of the batch.
        num_drafts: Drafts of each row.
        with_noise: Whether the rule reads noise.
        with_uniforms: Whether tokens are sampled.
    """

    noised: Corrupted
    look: int
    slots: Tensor
    num_drafts: int
    with_noise: bool
    with_uniforms: bool

    def draw(self, rows: Tensor, width: int, device: torch.device) -> tuple[PerToken | None, PerToken | None]:
        """Noise for positions and uniforms for tokens; see `Chance.draw`."""
        slots = self.slots if len(rows) == len(self.slots) else self.slots[rows.to(device)]
        noise = self._numbers("position")[slots] if self.with_noise else None
        return noise, self._numbers("token")[slots] if self.with_uniforms else None

    def _numbers(self, name: str) -> PerToken:
        return torch.cat([self.noised.noise(f"{name}/{draft}/{self.look}", None) for draft in range(self.num_drafts)])


@dataclass(frozen=True)
class _Asked:
    """A look through the function that an objective gives: without gradient and without dropout."""

    ask: Ask

    def __call__(
        self, model: HeadedBackbone | None, state: State, want: Want, memory: Mapping[str, Tensor]
    ) -> tuple[Seen, Mapping[str, Tensor]]:
        index = true_places(want.masked, want.num_masked)
        rows = self.ask(state.tokens, state.canvas.attention_mask, index)
        return Seen(Logits(rows, index), None, None), memory


@dataclass(frozen=True)
class _Group:
    """The drafts that follow one rule. `slots` numbers them among drafts times rows; with none, a row rides along unchanged."""

    rule: DraftRule
    slots: Tensor
    is_empty: bool
    loop: Loop
    state: State

    def advance(self, look: int, how: Recalled | _Asked) -> "_Group":
        """Make look number `look`; a row whose share grants nothing at it waits for the one that does."""
        loop = replace(self.loop, chance=replace(self.loop.chance, look=look))  # type: ignore[type-var]  # one of ours
        step = loop.advance(self.state, rows=self.state.step == look, look=how)
        return replace(self, state=step.state)  # type: ignore[union-attr]  # the whole batch looks, so there is a step


def of_known_tokens(rows: Rows, unknown_ids: tuple[int, ...]) -> Rows:
    """Logits to draw from: tokens that the tokenizer does not have are left out where they come last, and else minus infinity.

    Args:
        rows: Logits, which are left as they are.
        unknown_ids: As `HeadedBackbone.unknown_ids`.
    """
    runs = runs_of(unknown_ids)
    if len(runs) == 1 and runs[0][1] == rows.shape[-1]:
        return rows[:, : runs[0][0]]  # no copy, and what pads a vocabulary is at its end
    return Forbidden.of(unknown_ids).write(rows.clone()) if runs else rows


def require_draftable(rule: DraftRule) -> None:
    """Refuse positions that a draft's looks cannot choose: they give logits of masks, and no more.

    Raises:
        ConfigurationError: If the unmasking rule reads something else.
        UnknownNameError: If it needs a feature that is not registered.
    """
    unmasking = rule.unmasking
    reads = {one for feature in get_features(needs_of(unmasking), name_of(unmasking)).values() for one in feature.reads}
    if reads & {"quality", "visible"}:
        raise ConfigurationError(
            f"Drafts are made from the logits of masks alone, but {name_of(unmasking)} reads "
            f"{' and '.join(sorted(reads & {'quality', 'visible'}))}; choose other `positions`."
        )


class DraftMaker:
    """Fills masked positions with the model's own tokens, by one of the rules per row: the plan of the corruptor `Fill`.

    Each row follows the rule that its own draw picks, so that the rows of a batch do not depend on each other. The rows of a
    rule go through the sampler's loop together, which stops at their share of the masks. Every process makes the same looks.

    Args:
        rules: The mixture; a row follows rule `i` with probability proportional to its weight.
        num_drafts: Drafts of each noised row. All rows of draft 0 come first.
        noised: The noised batch.
        mask_token_id: Id of the mask token, which is never drafted.
        blocks: The number of the block that each position is in, where the family attends by blocks: drafts of several looks
            are written in their order, as the sampler writes. None: it sees the whole row.
    """

    def __init__(
        self,
        rules: tuple[DraftRule, ...],
        num_drafts: int,
        noised: Corrupted,
        mask_token_id: int,
        blocks: TokenIds | None = None,
    ) -> None:
        self.noised, self._num_drafts, self._blocks = noised, num_drafts, blocks
        self._batch = len(noised.ids)
        rule_of, wanted = _choose(rules, num_drafts, noised)
        self._groups = [
            self._group(rule, None if len(rules) == 1 else rule_of == number, wanted, mask_token_id)
            for number, rule in enumerate(rules)
        ]

    @property
    def reads(self) -> TokenMask:
        """Positions of the noised batch whose logits the first look has to give, for any of the drafts."""
        reads = torch.zeros_like(self.noised.masked).repeat(self._num_drafts, 1)
        for group in self._groups:
            here = group.loop.reads_at(group.state, group.state.step == 0)
            reads = reads.index_copy(0, group.slots, here | reads[group.slots])
        return reads.unflatten(0, (self._num_drafts, -1)).any(0)

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Fill what the first look is due; see `Plan.fill`."""
        in_order = len(self._groups) == self._num_drafts == 1  # each row of the state is that of the batch
        self._groups = [
            group.advance(0, Recalled(rows, row_index, None if in_order else group.slots % self._batch))
            for group in self._groups
        ]

    def finish(self, ask: Ask) -> Corrupted:
        """Make the looks after the first; see `Plan.finish`."""
        for look in range(1, max(group.rule.num_looks for group in self._groups)):
            self._groups = [
                group.advance(look, _Asked(ask)) if look < group.rule.num_looks else group for group in self._groups
            ]
        for group in self._groups:
            group.loop.require_faultless(group.state, OF_RULES)
        before = self._repeated(("clean_ids", "attention_mask", "maskable", "masked_before", "t"))
        ids, masked_before = self._repeated(("ids",))["ids"], before["masked_before"]
        history = History(torch.full_like(ids, -1), torch.ones(ids.shape, device=ids.device), torch.zeros_like(ids))
        for group in self._groups:
            if not group.is_empty:
                ids = ids.index_copy(0, group.slots, group.state.tokens)
                history = history.with_rows(group.slots, group.state.history)
        masked = masked_before & (ids == self._groups[0].loop.mask_token_id)
        drafted = masked_before & ~masked
        return Corrupted(
            ids=ids,
            masked=masked,
            drafted=drafted,
            noise=lambda name, count=None: self.noised.noise(name, count).repeat(self._num_drafts, 1),
            history=history,
            **before,
        )

    def _repeated(self, names: tuple[str, ...]) -> dict[str, Any]:
        parts = {name: getattr(self.noised, name) for name in names}
        return {name: part.repeat(self._num_drafts, *([1] * (part.ndim - 1))) for name, part in parts.items()}

    def _group(self, rule: DraftRule, chosen: Tensor | None, wanted: PerRow, mask_token_id: int) -> _Group:
        slots = torch.arange(len(wanted), device=wanted.device) if chosen is None else chosen.nonzero().squeeze(-1)
        is_empty = len(slots) == 0 and len(wanted) > 0
        if is_empty:
            slots, wanted = slots.new_zeros(1), torch.zeros_like(wanted)
        rows, noised = slots % max(self._batch, 1), self.noised
        masked = noised.masked[rows]
        canvas = Canvas(
            tokens=noised.ids[rows],
            attention_mask=noised.attention_mask[rows],
            editable=masked,
            block_of=masked.long() - 1,
            num_blocks=torch.ones_like(slots),
        )
        unmasking = rule.unmasking
        if self._blocks is not None and rule.num_looks > 1:
            unmasking = BlockByBlock(unmasking, self._blocks[rows])
        loop = Loop(
            model=None,
            decider=Separate(unmasking),
            schedule=EvenSchedule(),
            num_steps=rule.num_looks,
            mask_token_id=mask_token_id,
            forbidden_ids=(mask_token_id,),
            chance=ExampleChance(
                noised,
                0,
                slots,
                self._num_drafts,
                with_noise="noise" in needs_of(unmasking),
                with_uniforms=rule.tokens != "argmax",
            ),
            temperature=0.0 if rule.tokens == "argmax" else rule.temperature,
            top_p=rule.top_p,
            whole_batch=True,
        )
        return _Group(rule, slots, is_empty, loop, loop.begin(canvas, goal=wanted[slots]))


def _choose(rules: tuple[DraftRule, ...], num_drafts: int, noised: Corrupted) -> tuple[PerRow, PerRow]:
    """The rule of each draft of each row, and how many positions it fills; drafts times rows of the batch."""
    weights = torch.tensor([rule.weight for rule in rules], dtype=torch.float64)
    followed, counts = [], []
    for draft in range(num_drafts):
        pick, share = (noised.noise(f"{name}/{draft}", 1).squeeze(-1) for name in ("rule", "share"))
        rule_of = torch.bucketize(pick, (weights.cumsum(0) / weights.sum())[:-1].to(pick), right=True)
        wanted = torch.zeros_like(rule_of)
        for number, rule in enumerate(rules):
            wanted = torch.where(rule_of == number, num_to_draft(rule, noised.masked, share), wanted)
        followed.append(rule_of)
        counts.append(wanted)
    return torch.cat(followed), torch.cat(counts)
