"""A look with shadows: beside the tokens, a mask for each of them that sees all but it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from prism_plugin.core.selection import true_places
from prism_plugin.decoding.looks import LOOKS, Asked, Logits, Seen, Want, history_of, told
from prism_plugin.decoding.state import Memory, State
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.shadows import require_shadows


@LOOKS.register("shadow")
@dataclass(frozen=True)
class ShadowLook:
    """Each position in reach gets a mask of its own behind the row, at its own place, that sees all but its token (WINO).

    arXiv 2507.18578. So one forward says what the model would write and how probable it finds each token without having seen
    it; nearly so, since the token still reaches its shadow through its neighbours. Shadows see each other, and no token sees
    them. A look computes as many positions more as the longest row has in reach. The backbone has to take positions and a mask
    of pairs.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"shadow"})

    def may_look_at(self, model: HeadedBackbone) -> None:
        """Refuse a model that takes no shadows."""
        require_shadows(model)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        length = state.tokens.shape[1]
        reach = want.masked | want.visible_tokens
        places = reach.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, : want.widest]
        of_tokens = want.visible_tokens.gather(1, places)
        asked = Asked.of(want)
        shadows = true_places(of_tokens, want.num_visible)
        row, column = shadows // places.shape[1], shadows % places.shape[1]
        wide = length + places.shape[1]
        of_tokens_and_masks = (asked.index // length) * wide + asked.index % length
        output = model(
            state.tokens,
            told(model, state, want),
            logits_at=torch.cat((of_tokens_and_masks, row * wide + length + column)),
            with_quality=want.quality,
            history=history_of(model, state, want),
            shadows=torch.where(reach.gather(1, places), places, -1),
        )
        shadow = Logits(output.logits[len(asked.index) :], row * length + places.flatten()[shadows])
        computed = state.canvas.attention_mask.sum(-1) + reach.sum(-1)
        seen = asked.seen(model, output.logits, output.quality_logits, shadow=shadow, num_positions=computed)
        return seen, memory
