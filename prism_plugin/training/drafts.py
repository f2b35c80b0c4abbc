"""Station 9: noised tokens and the first look's rows -> drafts. The only place where training reads the model's own tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from prism_plugin.core.categorical import draw_rows
from prism_plugin.core.corruption import MaskedTokens
from prism_plugin.core.drafting import Draft, DraftRule, draft_positions, num_to_draft
from prism_plugin.modeling.model import PrismModel, dropout_off
from prism_plugin.types import PerRow, PerToken, Rows, TokenIds, TokenMask

Noise = Callable[..., Tensor]  # (name of the draw, numbers per row) -> uniforms [batch, numbers]


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


def make_drafts(
    model: PrismModel,
    rules: tuple[DraftRule, ...],
    num_drafts: int,
    noised: MaskedTokens,
    attention_mask: Tensor,
    rows: Rows,
    noise: Noise,
) -> Draft:
    """Fill masked positions with the model's own tokens, by one of the rules per row.

    Each row follows the rule that its own draw picks, so that the rows of a batch do not depend on each other.

    Args:
        model: Looked at again, without gradient and dropout, by rules with more than one look.
        rules: The mixture; a row follows rule `i` with probability proportional to its weight.
        num_drafts: Drafts of each noised row.
        noised: The noised batch.
        attention_mask: [batch, length].
        rows: Logits of the first look at `noised.masked`, row-major, detached.
        noise: Uniforms of each row by name.

    Returns:
        Drafts with `num_drafts` times the rows of the batch, all rows of draft 0 first.
    """
    looks = max(rule.num_looks for rule in rules)
    parts = [
        _fill(rules, 0, _start(rules, noised, draft, noise), rows, model.mask_token_id, *_chance((draft,), 0, noise))
        for draft in range(num_drafts)
    ]
    state = _State(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(_State)))
    attention_mask = attention_mask.repeat(num_drafts, 1)
    for look in range(1, looks):
        going_on = torch.stack([state.rule_of == index for index, rule in enumerate(rules) if rule.num_looks > look]).any(0)
        active = (going_on & state.masked.any(-1)).nonzero().squeeze(-1)
        # At least one row, so that every rank makes the same number of looks: sharded weights are gathered together.
        active = active if active.numel() else torch.zeros_like(state.rule_of[:1])
        here = state.take(active)
        index = here.masked.flatten().nonzero().squeeze(-1)
        with dropout_off(model):
            seen = model(here.tokens, attention_mask[active], logits_at=index, with_quality=False).logits
        chance = (one[active] for one in _chance(range(num_drafts), look, noise))
        state = state.put(active, _fill(rules, look, here, seen, model.mask_token_id, *chance))
    return Draft(draft_ids=state.tokens, drafted=state.drafted, confidence=state.confidence)


def _chance(drafts: Iterable[int], look: int, noise: Noise) -> tuple[PerToken, PerToken]:
    """Uniforms that choose positions, and uniforms that draw tokens, for the rows of some drafts."""
    position, token = (torch.cat([noise(f"{name}/{draft}/{look}") for draft in drafts]) for name in ("position", "token"))
    return position, token


def _start(rules: tuple[DraftRule, ...], noised: MaskedTokens, draft: int, noise: Noise) -> _State:
    pick, share = noise(f"rule/{draft}", 1).squeeze(-1), noise(f"share/{draft}", 1).squeeze(-1)
    weights = torch.tensor([rule.weight for rule in rules], dtype=torch.float64)
    edges = (weights.cumsum(0) / weights.sum())[:-1].to(pick)
    rule_of = torch.bucketize(pick, edges, right=True)
    wanted = torch.zeros_like(rule_of)
    for index, rule in enumerate(rules):
        wanted = torch.where(rule_of == index, num_to_draft(rule, noised.masked, share), wanted)
    return _State(
        tokens=noised.noised_ids,
        masked=noised.masked,
        drafted=torch.zeros_like(noised.masked),
        confidence=torch.zeros(noised.masked.shape, device=noised.masked.device),
        rule_of=rule_of,
        wanted=wanted,
    )


def _fill(
    rules: tuple[DraftRule, ...],
    look: int,
    state: _State,
    rows: Rows,
    mask_token_id: int,
    position_noise: PerToken,
    token_noise: PerToken,
) -> _State:
    """Fill what look number `look` is due, given its rows at `state.masked`."""
    masked = state.masked
    filled = state.drafted.sum(-1)
    for index, rule in enumerate(rules):
        if look >= rule.num_looks:
            continue
        due = -(-(look + 1) * state.wanted // rule.num_looks) - filled
        budget = torch.where(state.rule_of == index, due, 0).clamp(min=0)
        reach = masked & (budget > 0).unsqueeze(-1)
        if rule.positions == "random":  # chosen without looking, so that only these rows are drawn
            reach = draft_positions(rule, reach, budget, torch.zeros_like(position_noise), position_noise)
        drawn = draw_rows(
            rows[reach[masked]],
            temperature=0.0 if rule.tokens == "argmax" else rule.temperature,
            top_p=rule.top_p,
            forbidden_ids=(mask_token_id,),
            uniforms=token_noise[reach],
        )
        candidates = state.tokens.masked_scatter(reach, drawn.candidates)
        confidence = torch.zeros_like(position_noise).masked_scatter(reach, drawn.confidence)
        state = state.write(draft_positions(rule, reach, budget, confidence, position_noise), candidates, confidence)
    return state
