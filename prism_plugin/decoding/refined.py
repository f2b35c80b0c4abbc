"""A look after which a second opinion says what to write: block refiners, and a causal model that checks a block."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prism_plugin.backbones.spec import vocab_size_of
from prism_plugin.core.categorical import token_confidence
from prism_plugin.decoding.features import FEATURES, Glance
from prism_plugin.decoding.looks import PlainLook, Seen, Want
from prism_plugin.decoding.state import Canvas, Memory, State
from prism_plugin.errors import ConfigurationError, SamplingError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.types import PerToken, Rows, TokenIds, TokenMask


class BlockRefiner(Protocol):
    """Says what to write in a block, after it has seen what the masked model predicts there.

    It may have `may_refine(model)`, which raises a ConfigurationError where a model's tokens are none that it knows.
    """

    def __call__(self, rows: Rows, canvas: TokenIds, block: TokenMask) -> TokenIds:
        """Propose tokens.

        Args:
            rows: The masked model's logits at the masks of the block, [masks, vocabulary], in the order of `block.nonzero()`;
                -inf for what is never written.
            canvas: What stands there, masks among it, [batch, length]; each row begins at column 0, and padding follows it.
            block: The masks of each row's active block, [batch, length].

        Returns:
            Tokens to write, [batch, length], and -1 where it says nothing, which is everywhere but at `block`.
        """
        ...


@dataclass(frozen=True, eq=False)
class RefinedLook:
    """A plain look, and then a refiner's say: CoDiLA's hook (arXiv 2603.20216), for `RefinedDecider`.

    A refiner is no setting that could be saved, so a sampler that has it can't be either. `num_forward_passes` counts the calls
    of the masked model alone.

    Args:
        refiner: What is asked after each look.
    """

    refiner: BlockRefiner
    gives: ClassVar[frozenset[str]] = frozenset({"refined"})

    def may_look_at(self, model: HeadedBackbone) -> None:
        """Refuse a model whose tokens the refiner does not know."""
        may_refine = getattr(self.refiner, "may_refine", None)
        if may_refine is not None:
            may_refine(model)

    def __call__(self, model: HeadedBackbone, state: State, want: Want, memory: Memory) -> tuple[Seen, Memory]:
        seen, memory = PlainLook()(model, state, want, memory)
        rows = seen.masked.in_order().float().clone()
        rows[:, list(want.forbidden_ids)] = -torch.inf
        said = self.refiner(rows, state.tokens, want.masked)
        _require_proposal(said, want.masked, vocab_size_of(model.get_output_embeddings()), model.mask_token_id)
        more: dict[str, Any] = {"refined": said.to(state.tokens)}
        return Seen(**vars(seen) | more), memory


def _require_proposal(said: Any, block: TokenMask, vocab_size: int, mask_token_id: int) -> None:
    """Refuse what is no proposal for the masks of a block."""
    if not isinstance(said, Tensor) or said.shape != block.shape or said.is_floating_point():
        what = f"{said.dtype} of {list(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
        raise SamplingError(
            f"a block refiner must give a token id for each position of the canvas, {list(block.shape)}, or -1, but gave "
            f"{what}; return a tensor of integers of that shape."
        )
    said = said.to(block.device)
    if ((said >= 0) & ~block).any():
        raise SamplingError(
            "a block refiner may speak of the masks of the block alone, but gave a token elsewhere; put -1 there."
        )
    if ((said >= vocab_size) | (said < -1) | (said == mask_token_id)).any():
        raise SamplingError(
            f"a block refiner must give ids from 0 to {vocab_size - 1} other than the mask token, {mask_token_id}, or -1, but "
            "gave another; use the tokenizer of the masked model."
        )


@dataclass(frozen=True, eq=False)
class CausalChecker:
    """A refiner that lets a causal model check a block: the longest beginning on which both agree is written.

    The block is filled with the masked model's most probable tokens. One call of the causal model says what it would write at
    each of them. Up to the first at which it would write another, they are right for both. A slice of CoDiLA (arXiv
    2603.20216), whose causal model writes the block itself.

    Args:
        causal: A causal language model of transformers, in eval mode, of the masked model's tokens.
        tokenizer: Its tokenizer; None: only the sizes of the vocabularies are compared.
    """

    causal: PreTrainedModel
    tokenizer: Any = None

    def may_refine(self, model: HeadedBackbone) -> None:
        """Refuse a causal model of other tokens."""
        ours, theirs = vocab_size_of(model.get_output_embeddings()), vocab_size_of(self.causal.get_output_embeddings())
        if self.tokenizer is None or model.tokenizer is None:
            if ours != theirs:
                raise ConfigurationError(
                    f"A causal checker must have the masked model's vocabulary, {ours} tokens here, but has {theirs}; choose "
                    "one of the same tokenizer, or give both tokenizers if only the padding of the vocabularies differs."
                )
            return
        known = model.tokenizer.get_vocab()
        special = set(self.tokenizer.all_special_tokens)
        own = self.tokenizer.get_vocab().items()
        other = sorted(token for token, number in own if token not in special and known.get(token) != number)
        if other:
            raise ConfigurationError(
                f"A causal checker must have the masked model's tokenizer, but {len(other)} of its tokens have other ids "
                f"there, such as {other[0]!r}; choose a causal model of the same tokenizer."
            )

    @torch.no_grad()
    def __call__(self, rows: Rows, canvas: TokenIds, block: TokenMask) -> TokenIds:
        places = block.flatten().nonzero().squeeze(-1)
        filled = canvas.flatten().index_copy(0, places, rows.argmax(-1)).view(canvas.shape)
        last = vocab_size_of(self.causal.get_output_embeddings()) - 1  # a wider vocabulary's own ids say nothing to it
        logits = self.causal(filled.clamp(max=last).to(self.causal.device)).logits
        said = logits[:, :-1].argmax(-1).to(filled.device)
        # nothing stands before the first token, so nothing is said of it
        agreed = torch.cat((torch.zeros_like(block[:, :1]), said == filled[:, 1:]), dim=1)
        first = (block & ~agreed).cumsum(-1) == 0
        return torch.where(block & first, filled, -1)


@FEATURES.register("refined")
@dataclass(frozen=True)
class Refined:
    """The token that a refiner would write, -1 where it says nothing, or what may not be written (`RefinedLook`)."""

    reads: ClassVar[frozenset[str]] = frozenset({"refined"})

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        return {}

    def __call__(self, at: Glance, memory: Memory) -> tuple[TokenIds, Memory]:
        return _sayable(at), memory


@FEATURES.register("refined_confidence")
@dataclass(frozen=True)
class RefinedConfidence:
    """Probability of the token that a refiner would write, and of the candidate where it says nothing, at masked positions."""

    reads: ClassVar[frozenset[str]] = frozenset({"refined", "masked"})

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        return {}

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        logits = at.seen.masked
        said = _sayable(at).flatten()[logits.index]
        tokens = torch.where(said >= 0, said, at.drawn.candidates)
        found = token_confidence(logits.rows, tokens, at=logits.at, **at.not_to_draw(logits.index))
        return at.lay(logits.index, found), memory


def _sayable(at: Glance) -> TokenIds:
    """What a refiner would write, without what may not be written there."""
    said: Any = at.seen.refined
    early = at.state.canvas.too_early
    never = torch.isin(said, said.new_tensor(at.forbidden_ids))
    if early is not None:
        never |= torch.isin(said, said.new_tensor(at.end_ids)) & early
    sayable: TokenIds = said.masked_fill(never, -1)
    return sayable
