"""A look that answers after it has read its own answer: the model corrects its draft until it stands."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prism_plugin.core.categorical import most_probable
from prism_plugin.core.selection import true_places
from prism_plugin.core.validation import require_int
from prism_plugin.decoding.looks import LOOKS, Logits, Seen, Want, history_of, looks_of_block, told
from prism_plugin.decoding.state import Memory, State
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.types import FlatIndex, Rows, TokenIds


@LOOKS.register("corrected")
@dataclass(frozen=True)
class CorrectedLook:
    """At every few looks, let the model rewrite its own draft of the whole until it says the same again (ProSeCo).

    arXiv 2602.11590, as in its LLaDA code: all masks are filled with the most probable tokens, then every position in reach is
    rewritten, up to `most` times. The last rewriting's logits are those of the look, at masks and at tokens; `CorrectedEditing`
    writes them over what stands. Each row stops where its own draft stands, and counts its own forwards. The quality is that of
    the tokens as they stood.

    Each rewriting waits for the device once, to know whether another one is wanted.

    Args:
        every: Looks of a block from one correction to the next, >= 1.
        most: Forwards of a correction, >= 1, beside the look's own.
    """

    every: int = 2
    most: int = 4
    gives: ClassVar[frozenset[str]] = frozenset({"corrected"})

    def __post_init__(self) -> None:
        require_int(self, "every", minimum=1)
        require_int(self, "most", minimum=1)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        looks = looks_of_block(state, memory)
        due = looks % self.every == 0
        masked = true_places(want.masked, want.num_masked)
        # the corrector never sees a mask: those of later blocks are filled, too
        beyond = (state.tokens == model.mask_token_id) & state.canvas.editable & ~want.masked & due.unsqueeze(-1)
        later = beyond.flatten().nonzero().squeeze(-1)
        output = model(
            state.tokens,
            told(model, state, want),
            logits_at=torch.cat((masked, later)),
            with_quality=want.quality,
            history=history_of(model, state, want),
        )
        filled = most_probable(output.logits, forbidden_ids=want.forbidden_ids)
        draft = state.tokens.flatten().index_copy(0, torch.cat((masked, later)), filled).view(state.tokens.shape)
        rewriting = _Rewriting(model, state, want, draft, due.nonzero().squeeze(-1))
        rewriting.run(self.most)
        seen = Seen(
            masked=Logits(rewriting.over(output.logits[: want.num_masked], masked), masked),
            visible=rewriting.visible(output.logits[:0]),
            quality=output.quality_logits.float().sigmoid() if want.quality else None,
            num_forwards=1 + rewriting.forwards,
            corrected=due,
            judges_masks=model.judges_masks,
        )
        return seen, {"looks": looks, "block": state.block}


class _Rewriting:
    """Rewrites the drafts of some rows of a state, and keeps the last logits of every position in reach."""

    def __init__(self, model: HeadedBackbone, state: State, want: Want, draft: TokenIds, rows: Tensor) -> None:
        self.model, self.state, self.want, self.draft, self.rows = model, state, want, draft, rows
        self.forwards = torch.zeros_like(state.block)
        among = torch.zeros_like(want.masked).index_fill(0, rows, True)
        self.reach = (want.masked | want.visible_tokens) & among
        self.index: FlatIndex = self.reach.flatten().nonzero().squeeze(-1)
        self.logits: Rows | None = None

    def run(self, most: int) -> None:
        """Rewrite until every row's draft stands, or as often as may be."""
        live = self.rows
        for _ in range(most):
            if len(live) == 0:
                return
            live = live[self._rewrite(live)]

    def _rewrite(self, live: Tensor) -> Tensor:
        """Rewrite some rows once; which of them changed."""
        draft, reach = self.draft[live], self.reach[live]
        here = reach.flatten().nonzero().squeeze(-1)
        mask = self.state.canvas.attention_mask[live] if self.want.padded else None
        logits = self.model(draft, mask, logits_at=here, with_quality=False).logits
        best = most_probable(logits, forbidden_ids=self.want.forbidden_ids)
        rewritten = draft.flatten().index_copy(0, here, best).view(draft.shape)
        if self.logits is None:
            self.logits = logits
        else:
            everywhere = (live.unsqueeze(-1) * draft.shape[1] + torch.arange(draft.shape[1], device=live.device)).flatten()
            self.logits.index_copy_(0, torch.searchsorted(self.index, everywhere[here]), logits)
        self.draft = self.draft.index_copy(0, live, rewritten)
        self.forwards = self.forwards.index_add(0, live, torch.ones_like(live))
        return (rewritten != draft).any(-1)

    def over(self, rows: Rows, index: FlatIndex) -> Rows:
        """Logits of some positions, with those of the rewriting where there are any."""
        if self.logits is None:
            return rows
        mine = self.reach.flatten()[index]
        at = torch.searchsorted(self.index, index).clamp(max=len(self.index) - 1)
        return torch.where(mine.unsqueeze(-1), self.logits.index_select(0, at), rows)

    def visible(self, none: Rows) -> Logits:
        """Logits of the tokens that were rewritten; none elsewhere."""
        if self.logits is None:
            return Logits(none, self.index[:0])
        of_tokens = self.want.visible_tokens.flatten()[self.index]
        return Logits(self.logits, self.index[of_tokens], of_tokens.nonzero().squeeze(-1))
