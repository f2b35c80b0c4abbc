"""A look at which a second model judges what the first would write."""

from dataclasses import dataclass
from typing import ClassVar

from prism_plugin.backbones.spec import vocab_size_of
from prism_plugin.core.categorical import most_probable
from prism_plugin.decoding.looks import Asked, Seen, Want, told
from prism_plugin.decoding.state import Memory, State
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.headed import HeadedBackbone


@dataclass(frozen=True, eq=False)
class CriticLook:
    """All masks are filled with the most probable tokens, and a critic of its own judges the whole (Token-Critic).

    arXiv 2209.04439. The qualities that rules and deciders read are the critic's, at masks too: there they are about what would
    be written. With `RemediDecider`, what it rates highest is kept or filled, and the rest is masked. A look takes two
    forwards. The critic is a model with a head, such as the objective `token_critic` trains. It is no setting that could be
    saved, so a sampler that has it can't be either.

    Args:
        critic: Judges; of the same vocabulary and mask token as the model that writes.
    """

    critic: HeadedBackbone
    gives: ClassVar[frozenset[str]] = frozenset({"quality"})
    greedy: ClassVar[bool] = True

    def may_look_at(self, model: HeadedBackbone) -> None:
        """Refuse a critic that reads other tokens."""
        if self.critic.mask_token_id != model.mask_token_id or self._vocab_size(self.critic) != self._vocab_size(model):
            raise ConfigurationError(
                f"A critic must read the tokens of the model that writes, of {self._vocab_size(model)} with the mask "
                f"{model.mask_token_id}, but it has {self._vocab_size(self.critic)} with the mask {self.critic.mask_token_id}; "
                "choose a critic of the same tokenizer."
            )

    @staticmethod
    def _vocab_size(model: HeadedBackbone) -> int:
        return vocab_size_of(model.get_output_embeddings())

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        asked = Asked.of(want)
        mask = told(model, state, want)
        output = model(state.tokens, mask, logits_at=asked.index, with_quality=False)
        filled = most_probable(output.logits[: want.num_masked], forbidden_ids=want.forbidden_ids)
        draft = state.tokens.flatten().index_copy(0, asked.masked, filled).view(state.tokens.shape)
        judged = self.critic(draft.to(self.critic.device), None if mask is None else mask.to(self.critic.device))
        quality_logits = judged.quality_logits.to(state.tokens.device)
        return asked.seen(model, output.logits, quality_logits, num_forwards=2, judges_masks=True), memory
