"""Figures per position that a rule may read, by the names in its `needs`; some remember what earlier looks gave.

A feature sees the whole look, and gives one number for each position. What it remembers lies in `State.memory` under its name,
and follows from tokens and looks alone: a position whose token is another than at the look before is a new one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from prism_plugin.core.categorical import RowStats, draw_rows, token_confidence
from prism_plugin.core.forbidding import Forbidden
from prism_plugin.decoding.looks import Seen
from prism_plugin.decoding.state import Canvas, Memory, State
from prism_plugin.errors import UnknownNameError
from prism_plugin.registry import Registry
from prism_plugin.types import FlatIndex, PerToken, TokenIds, TokenMask


@dataclass(frozen=True)
class Glance:
    """A look as features see it.

    Attributes:
        state: Before the look.
        seen: What the look gave.
        masked: Positions that may be filled.
        visible: Positions within the decider's reach that hold a token.
        drawn: What was drawn at the masked positions that were wanted; entropy and margin where a feature reads them.
        noise: Fresh uniforms; None where no feature reads them.
        forbidden_ids: Tokens that are never written.
        end_ids: Tokens that end a text, which are not written where that is too early.
    """

    state: State
    seen: Seen
    masked: TokenMask
    visible: TokenMask
    drawn: RowStats
    noise: PerToken | None
    forbidden_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def not_to_draw(self, index: FlatIndex) -> dict[str, Any]:
        """What gets no probability at flat positions, as `draw_rows` takes it."""
        return {"forbidden_ids": self.forbidden_ids, "held_back": self.state.canvas.held_back(self.end_ids, index)}

    def lay(self, index: FlatIndex, values: Tensor) -> Tensor:
        """Values at flat positions, laid out; 0 elsewhere."""
        shape = self.state.tokens.shape
        return torch.zeros(shape, dtype=values.dtype, device=values.device).view(-1).index_copy_(0, index, values).view(shape)

    @cached_property
    def visible_confidence(self) -> PerToken:
        """Probability that the model gives now to each visible token."""
        logits = self.seen.visible
        tokens = self.state.tokens.flatten()[logits.index]
        found = token_confidence(logits.rows, tokens, at=logits.at, **self.not_to_draw(logits.index))
        return self.lay(logits.index, found)

    @cached_property
    def best_visible(self) -> tuple[TokenIds, PerToken]:
        """The most probable token at each visible position, and its probability."""
        logits = self.seen.visible
        best = draw_rows(logits.rows, at=logits.at, **self.not_to_draw(logits.index))
        return self.lay(logits.index, best.candidates), self.lay(logits.index, best.confidence)


class Feature(Protocol):
    """A figure per position. A frozen dataclass without settings, registered in `FEATURES` under the name that rules read.

    Attributes:
        reads: What a look has to give for it: "noise", "quality", "entropy", "margin", "masked" (logits of all masked
            positions), "visible" (logits of visible ones, each a row of the LM head).
    """

    reads: ClassVar[frozenset[str]]

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        """What it remembers before the first look."""
        ...

    def __call__(self, at: Glance, memory: Memory) -> tuple[Tensor, Memory]:
        """The figure, [batch, length], and what is remembered from now on."""
        ...


FEATURES: Registry[Feature] = Registry("feature")


def get_features(names: frozenset[str], needed_by: str) -> dict[str, Feature]:
    """The features of some names, in alphabetical order.

    Args:
        names: What a decider needs.
        needed_by: Its name, for the message.

    Raises:
        UnknownNameError: If there is no such feature.
    """
    try:
        return {name: FEATURES.get(name)() for name in sorted(names)}
    except UnknownNameError as error:
        raise UnknownNameError(f"`needs` of {needed_by}: {error}") from error


class _Memoryless:
    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        return {}


@FEATURES.register("noise")
@dataclass(frozen=True)
class Noise(_Memoryless):
    """Uniform in [0, 1), fresh at each look."""

    reads: ClassVar[frozenset[str]] = frozenset({"noise"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.noise, memory


@FEATURES.register("entropy")
@dataclass(frozen=True)
class Entropy(_Memoryless):
    """Entropy of the model at masked positions, nats."""

    reads: ClassVar[frozenset[str]] = frozenset({"masked", "entropy"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.lay(at.seen.masked.index, at.drawn.entropy), memory


@FEATURES.register("margin")
@dataclass(frozen=True)
class Margin(_Memoryless):
    """Largest minus second largest probability at masked positions."""

    reads: ClassVar[frozenset[str]] = frozenset({"masked", "margin"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.lay(at.seen.masked.index, at.drawn.margin), memory


@FEATURES.register("quality")
@dataclass(frozen=True)
class Quality(_Memoryless):
    """Probability that the visible token is right, by the quality head."""

    reads: ClassVar[frozenset[str]] = frozenset({"quality"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.seen.quality, memory


@FEATURES.register("visible_confidence")
@dataclass(frozen=True)
class VisibleConfidence(_Memoryless):
    """Probability that the model gives now to the visible token."""

    reads: ClassVar[frozenset[str]] = frozenset({"visible"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.visible_confidence, memory


@FEATURES.register("best_visible")
@dataclass(frozen=True)
class BestVisible(_Memoryless):
    """The token that the model would write now where one stands."""

    reads: ClassVar[frozenset[str]] = frozenset({"visible"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[TokenIds, Memory]:
        return at.best_visible[0], memory


@FEATURES.register("best_visible_confidence")
@dataclass(frozen=True)
class BestVisibleConfidence(_Memoryless):
    """The probability of `best_visible`."""

    reads: ClassVar[frozenset[str]] = frozenset({"visible"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.best_visible[1], memory


class _SinceWritten:
    """Remembers the tokens of the look before, for how many looks each has stood, and a running sum."""

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        nothing = torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)
        return {"tokens": torch.full_like(canvas.tokens, -1), "looks": nothing, "sum": nothing}

    def _add(self, at: Glance, memory: Memory, values: PerToken | float) -> Memory:
        tokens = at.state.tokens
        stood = at.visible & (memory["tokens"] == tokens)
        looks = torch.where(stood, memory["looks"], 0) + at.visible
        total = torch.where(stood, memory["sum"], 0) + torch.where(at.visible, values, 0.0)
        return {"tokens": torch.where(at.visible, tokens, -1), "looks": looks, "sum": total}


@FEATURES.register("age")
@dataclass(frozen=True)
class Age(_Memoryless):
    """Share of the row's looks before this one at which the token stood there, this look counted for the one that wrote it."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        looks = at.state.num_looks.clamp(min=1).unsqueeze(-1)
        return (at.state.age + 1).masked_fill(~at.visible, 0) / looks, memory


@FEATURES.register("looks_since")
@dataclass(frozen=True)
class LooksSince(_Memoryless):
    """Looks between that which wrote the token and this one, 0 for what the last one wrote; -1 where the model wrote none."""

    reads: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.state.age.float(), memory


@FEATURES.register("mask_quality")
@dataclass(frozen=True)
class MaskQuality(_Memoryless):
    """What a head that was trained at masks says of them; the candidate's confidence, where it was not."""

    reads: ClassVar[frozenset[str]] = frozenset({"quality", "masked"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        if at.seen.judges_masks:
            return at.seen.quality, memory
        return at.lay(at.seen.masked.index, at.drawn.confidence), memory


@FEATURES.register("shadow_confidence")
@dataclass(frozen=True)
class ShadowConfidence(_Memoryless):
    """Probability of the visible token at a mask of its own that sees all but it (WINO, arXiv 2507.18578)."""

    reads: ClassVar[frozenset[str]] = frozenset({"shadow"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        logits = at.seen.shadow
        tokens = at.state.tokens.flatten()[logits.index]
        found = token_confidence(logits.rows, tokens, at=logits.at, **at.not_to_draw(logits.index))
        return at.lay(logits.index, found), memory


@FEATURES.register("context_confidence")
@dataclass(frozen=True)
class ContextConfidence(_Memoryless):
    """Probability of the visible token where it was masked with some others (`LeftOutLook`); 1 where it was not."""

    reads: ClassVar[frozenset[str]] = frozenset({"left_out"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        everywhere = torch.ones(at.state.tokens.shape, device=at.state.tokens.device)
        logits = at.seen.left_out
        if logits is None:
            return everywhere, memory
        tokens = at.state.tokens.flatten()[logits.index]
        found = token_confidence(logits.rows, tokens, at=logits.at, **at.not_to_draw(logits.index))
        return everywhere.view(-1).index_copy_(0, logits.index, found).view_as(everywhere), memory


@FEATURES.register("corrected")
@dataclass(frozen=True)
class Corrected(_Memoryless):
    """1 where the look was corrected, so that what it says of visible tokens is more than a first answer (`CorrectedLook`)."""

    reads: ClassVar[frozenset[str]] = frozenset({"corrected"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        return at.seen.corrected.float().unsqueeze(-1).expand(at.state.tokens.shape), memory


@FEATURES.register("running_confidence")
@dataclass(frozen=True)
class RunningConfidence:
    """Largest probability that the model had at any look for what it would write at the position (RCR, arXiv 2508.13148)."""

    reads: ClassVar[frozenset[str]] = frozenset({"masked"})

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        return {"largest": torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)}

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        largest = memory["largest"].maximum(at.lay(at.seen.masked.index, at.drawn.confidence))
        return largest, {"largest": largest}


@FEATURES.register("mean_quality")
@dataclass(frozen=True)
class MeanQuality(_SinceWritten):
    """Mean of the quality over the looks since the token was written, this one included."""

    reads: ClassVar[frozenset[str]] = frozenset({"quality"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        memory = self._add(at, memory, at.seen.quality)
        return memory["sum"] / memory["looks"].clamp(min=1), memory


@FEATURES.register("mean_confidence")
@dataclass(frozen=True)
class MeanConfidence(_SinceWritten):
    """Mean of the probability of the token when it was written and at each look since (FreeCorrection, arXiv 2602.02927)."""

    reads: ClassVar[frozenset[str]] = frozenset({"visible"})

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        memory = self._add(at, memory, at.visible_confidence)
        return (memory["sum"] + at.state.commit_confidence) / (memory["looks"] + 1), memory


@FEATURES.register("previous_confidence")
@dataclass(frozen=True)
class PreviousConfidence:
    """Probability that the model gave to the visible token at the look before: the one that wrote it, or the last since."""

    reads: ClassVar[frozenset[str]] = frozenset({"visible"})

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        nothing = torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)
        return {"tokens": torch.full_like(canvas.tokens, -1), "confidence": nothing}

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        stood = at.visible & (memory["tokens"] == at.state.tokens)
        before = torch.where(stood, memory["confidence"], at.state.commit_confidence)
        now = torch.where(at.visible, at.state.tokens, -1)
        return before, {"tokens": now, "confidence": at.visible_confidence}


class _Divergence:
    """Remembers the distribution of every masked position: as many numbers as positions times vocabulary."""

    reads: ClassVar[frozenset[str]] = frozenset({"masked"})

    def begin(self, canvas: Canvas, vocab_size: int) -> Memory:
        shape, device = canvas.tokens.shape, canvas.tokens.device
        infinite = torch.full(shape, float("inf"), device=device)
        return {
            "log_probabilities": torch.zeros(*shape, vocab_size, device=device),
            "known": torch.zeros(shape, dtype=torch.bool, device=device),
            "kl": infinite,
        }

    def _compare(self, at: Glance, memory: Memory) -> Memory:
        rows, index = at.seen.masked.in_order().float().clone(), at.seen.masked.index
        Forbidden.of(**at.not_to_draw(index)).write(rows)
        now = rows.log_softmax(-1)
        before = memory["log_probabilities"].flatten(0, 1)
        terms = (now.exp() * (now - before[index])).masked_fill(now.isneginf(), 0.0)
        known = memory["known"].flatten()[index]
        kl = terms.sum(-1).clamp(min=0).masked_fill(~known, float("inf"))
        everywhere = torch.full_like(memory["kl"], float("inf")).view(-1).index_copy_(0, index, kl)
        return {
            "log_probabilities": before.index_copy(0, index, now).view_as(memory["log_probabilities"]),
            "known": torch.zeros_like(memory["known"]).view(-1).index_fill_(0, index, True).view_as(memory["known"]),
            "kl": everywhere.view_as(memory["kl"]),
        }


@FEATURES.register("kl")
@dataclass(frozen=True)
class Divergence(_Divergence):
    """KL divergence, in nats, of the distribution at a masked position from that at the look before; infinite without one."""

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        memory = self._compare(at, memory)
        return memory["kl"], memory


@FEATURES.register("kl_of_two")
@dataclass(frozen=True)
class DivergenceOfTwo(_Divergence):
    """The larger of `kl` at this look and at the one before: small where the model has settled (KLASS, arXiv 2511.05664)."""

    def __call__(self, at: Glance, memory: Memory) -> tuple[PerToken, Memory]:
        following = self._compare(at, memory)
        return following["kl"].maximum(memory["kl"]), following
