"""Station 9: noised tokens and the first look's rows -> drafts. The only place where training reads the model's own tokens."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from prism_plugin.core.categorical import draw_rows
from prism_plugin.core.corruption import Corrupted
from prism_plugin.core.drafting import DraftRule, draft_positions, num_to_draft
from prism_plugin.types import FlatIndex, PerRow, PerToken, Rows, TokenIds, TokenMask


@dataclass(frozen=True)
class _State:
    """A draft in the making. `rule_of` says which rule each row follows, `wanted` how many positions it shall fill."""

    tokens: TokenIds
    masked: TokenMask
    drafted: TokenMask
    confidence: PerToken
    rule_of: PerRow
    wanted: PerRow

    def write(self, chosen: TokenMask, candidates: TokenIds, confidence: PerToken) -> "_State":
        return replace(
            self,
            tokens=torch.where(chosen, candidates, self.tokens),
            masked=self.masked & ~chosen,
            drafted=self.drafted | chosen,
            confidence=torch.where(chosen, confidence, self.confidence),
        )

    def take(self, rows: Tensor) -> "_State":
        return _State(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Tensor, part: "_State") -> "_State":
        pairs = ((getattr(self, field.name), getattr(part, field.name)) for field in fields(self))
        return _State(*(whole.index_copy(0, rows, some) for whole, some in pairs))


class DraftMaker:
    """Fills masked positions with the model's own tokens, by one of the rules per row: the plan of the corruptor `Fill`.

    Each row follows the rule that its own draw picks, so that the rows of a batch do not depend on each other.

    Args:
        rules: The mixture; a row follows rule `i` with probability proportional to its weight.
        num_drafts: Drafts of each noised row. All rows of draft 0 come first.
        noised: The noised batch.
        mask_token_id: Id of the mask token, which is never drafted.
    """

    def __init__(self, rules: tuple[DraftRule, ...], num_drafts: int, noised: Corrupted, mask_token_id: int) -> None:
        self.noised = noised
        self._rules, self._num_drafts, self._mask_token_id = rules, num_drafts, mask_token_id
        parts = [_start(rules, noised, draft) for draft in range(num_drafts)]
        self._state = _State(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(_State)))

    @property
    def reads(self) -> TokenMask:
        """Positions of the noised batch whose logits the first look has to give, for any of the drafts."""
        position_noise, _ = self._chance(0)
        reaches = [reach for _, reach, _ in _reaches(self._rules, 0, self._state, position_noise)]
        return torch.stack(reaches).any(0).unflatten(0, (self._num_drafts, -1)).any(0)

    def fill(self, rows: Rows, row_index: FlatIndex) -> None:
        """Fill what the first look is due; see `Plan.fill`."""
        self._state = self._fill(0, self._state, rows, row_index, *self._chance(0))

    def finish(self, ask: Callable[[TokenIds, Tensor, FlatIndex], Rows]) -> Corrupted:
        """Make the looks after the first, at the rows that have something left to fill; see `Plan.finish`."""
        many = {
            name: getattr(self.noised, name).repeat(self._num_drafts, *([1] * (getattr(self.noised, name).ndim - 1)))
            for name in ("clean_ids", "attention_mask", "maskable", "masked_before", "t")
        }
        for look in range(1, max(rule.num_looks for rule in self._rules)):
            state = self._state
            longer = [state.rule_of == index for index, rule in enumerate(self._rules) if rule.num_looks > look]
            active = (torch.stack(longer).any(0) & state.masked.any(-1)).nonzero().squeeze(-1)
            # At least one row, so that every rank makes the same number of looks: sharded weights are gathered together.
            active = active if active.numel() else torch.zeros_like(state.rule_of[:1])
            here = state.take(active)
            index = here.masked.flatten().nonzero().squeeze(-1)
            rows = ask(here.tokens, many["attention_mask"][active], index)
            chance = (one[active] for one in self._chance(look))
            self._state = state.put(active, self._fill(look, here, rows, index, *chance))
        done = self._state
        return Corrupted(
            ids=done.tokens,
            masked=done.masked,
            drafted=done.drafted,
            noise=lambda name, count=None: self.noised.noise(name, count).repeat(self._num_drafts, 1),
            history={"commit_confidence": done.confidence},
            **many,
        )

    def _chance(self, look: int) -> tuple[PerToken, PerToken]:
        """Uniforms that choose positions, and uniforms that draw tokens."""
        drafts = range(self._num_drafts)
        position, token = (
            torch.cat([self.noised.noise(f"{name}/{draft}/{look}", None) for draft in drafts]) for name in ("position", "token")
        )
        return position, token

    def _fill(
        self, look: int, state: _State, rows: Rows, row_index: FlatIndex, position_noise: PerToken, token_noise: PerToken
    ) -> _State:
        """Fill what look number `look` is due."""
        size = state.masked.shape
        # the drafts share the first look, so a position of any draft has the row of that position in the noised batch
        looked_at = state.masked.numel() if look else state.masked.numel() // self._num_drafts
        row_of = torch.zeros(looked_at, dtype=torch.int64, device=rows.device)
        row_of[row_index] = torch.arange(row_index.shape[0], device=rows.device)
        for rule, reach, budget in _reaches(self._rules, look, state, position_noise):
            where = reach.flatten().nonzero().squeeze(-1)
            all_in_order = looked_at == reach.numel() and where.shape == row_index.shape  # then rows need not be copied
            drawn = draw_rows(
                rows,
                at=None if all_in_order else row_of[where % looked_at],
                temperature=0.0 if rule.tokens == "argmax" else rule.temperature,
                top_p=rule.top_p,
                forbidden_ids=(self._mask_token_id,),
                uniforms=token_noise.flatten()[where],
            )
            candidates = state.tokens.flatten().index_copy(0, where, drawn.candidates).view(size)
            confidence = torch.zeros_like(position_noise).flatten().index_copy(0, where, drawn.confidence).view(size)
            state = state.write(draft_positions(rule, reach, budget, confidence, position_noise), candidates, confidence)
        return state


def _start(rules: tuple[DraftRule, ...], noised: Corrupted, draft: int) -> _State:
    pick, share = (noised.noise(f"{name}/{draft}", 1).squeeze(-1) for name in ("rule", "share"))
    weights = torch.tensor([rule.weight for rule in rules], dtype=torch.float64)
    edges = (weights.cumsum(0) / weights.sum())[:-1].to(pick)
    rule_of = torch.bucketize(pick, edges, right=True)
    wanted = torch.zeros_like(rule_of)
    for index, rule in enumerate(rules):
        wanted = torch.where(rule_of == index, num_to_draft(rule, noised.masked, share), wanted)
    return _State(
        tokens=noised.ids,
        masked=noised.masked,
        drafted=torch.zeros_like(noised.masked),
        confidence=torch.zeros(noised.masked.shape, device=noised.masked.device),
        rule_of=rule_of,
        wanted=wanted,
    )


def _reaches(
    rules: tuple[DraftRule, ...], look: int, state: _State, position_noise: PerToken
) -> list[tuple[DraftRule, TokenMask, PerRow]]:
    """Per rule that makes this look: positions for which a token has to be drawn, and how many are filled in each row."""
    reaches = []
    for index, rule in enumerate(rules):
        if look >= rule.num_looks:
            continue
        due = -(-(look + 1) * state.wanted // rule.num_looks) - state.drafted.sum(-1)
        budget = torch.where(state.rule_of == index, due, 0).clamp(min=0)
        reach = state.masked & (budget > 0).unsqueeze(-1)
        if rule.positions == "random":  # chosen without looking, so that only these rows are drawn
            reach = draft_positions(rule, reach, budget, torch.zeros_like(position_noise), position_noise)
        reaches.append((rule, reach, budget))
    return reaches
