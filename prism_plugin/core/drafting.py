"""The corruptor's second half: which masked positions the model fills to make the draft that is judged."""

from dataclasses import MISSING, dataclass, fields, replace
from typing import ClassVar, Literal, get_args

import torch

from prism_plugin.core.selection import select_top
from prism_plugin.core.unmasking import UNMASKING, UnmaskingRule
from prism_plugin.core.validation import require_choice, require_int, require_number
from prism_plugin.core.view import StepView
from prism_plugin.errors import ConfigurationError
from prism_plugin.types import PerRow, Times, TokenIds, TokenMask

_WINDOW = "semi_autoregressive"
Tokens = Literal["sample", "nucleus", "argmax"]


@dataclass(frozen=True)
class WithinWindow:
    """Reveal the surest positions within a window that starts at the leftmost mask; fewer where it holds fewer, as a draft may.

    Args:
        window: Positions, >= 1.
    """

    window: int
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        position = torch.arange(view.masked.shape[-1], device=view.masked.device)
        leftmost = view.masked.to(torch.int8).argmax(-1, keepdim=True)
        return select_top(view.confidence, view.masked & (position < leftmost + self.window), budget)


@dataclass(frozen=True)
class BlockByBlock:
    """Reveal by another rule, in the order of the blocks of a family's attention, as a sampler of the family writes.

    What is granted goes to the first block that holds masks; only what that has no masks for goes on into the next.

    Args:
        rule: Chooses within the block that is not filled whole.
        blocks: The number of the block that each position is in, rising along each row.
    """

    rule: UnmaskingRule
    blocks: TokenIds

    @property
    def needs(self) -> frozenset[str]:
        """As the rule."""
        return self.rule.needs  # type: ignore[attr-defined]  # without it, this has none either

    @property
    def blind(self) -> bool:
        """As the rule."""
        return getattr(self.rule, "blind", False)

    @property
    def __name__(self) -> str:
        return type(self.rule).__name__

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        held = torch.zeros_like(self.blocks).scatter_add(1, self.blocks, view.masked.long())  # masks of each block
        through = held.cumsum(-1).gather(1, self.blocks)
        before, granted = through - held.gather(1, self.blocks), budget.unsqueeze(-1)
        whole = view.masked & (through <= granted)
        partly = view.masked & (before < granted) & ~whole
        return whole | self.rule(replace(view, masked=partly), budget - whole.sum(-1))


def _choices() -> tuple[str, ...]:
    """Names of the rules that need no settings, and of ours."""
    plain = [
        name for name in UNMASKING.names()
        if all(one.default is not MISSING or one.default_factory is not MISSING for one in fields(UNMASKING.get(name)))  # type: ignore[arg-type]  # dataclasses
    ]  # fmt: skip
    return (*plain, _WINDOW)


@dataclass(frozen=True)
class DraftRule:
    """How a draft is made from noised tokens: how many positions are filled, which, with which tokens, in how many looks.

    The label of a drafted position is exact for one drafted position per row and biased for more (PRISM, arXiv 2510.01384),
    whatever the tokens.

    Args:
        num_drafted: Masked positions filled per row, >= 1; None when `share` says it. Default: --K of the authors'
            PRISM_llada/train.py.
        share: Lowest and highest share of the row's masked positions to fill, drawn uniformly per row, rounded up to at
            least one position; 0 <= lowest <= highest <= 1.
        num_looks: Forward passes over which the positions are filled, evenly. 1 is PRISM's draft; more roll the model's own
            sampler out, so that wrong tokens agree with each other as they do when sampling. Where a family attends by blocks,
            they are filled in the blocks' order, as its sampler does.
        positions: Name of the unmasking rule that chooses them, any that is registered and has no settings, such as "random",
            "confidence", "margin" or "entropy"; or "semi_autoregressive", by highest confidence within a window.
        window: Positions, >= 1: the window starts at the row's leftmost masked position. Only and always for
            `semi_autoregressive`; where it holds fewer masked positions than are to be filled, fewer are filled.
        tokens: Drawn from the model's distribution, from its nucleus, or the most probable.
        top_p: Mass of the nucleus, in (0, 1); only and always for `nucleus`.
        temperature: > 0; divides the logits before drawing, so it stays at 1 for `argmax`.
        weight: Weight of this rule in a mixture, > 0; shares are weights over their sum.
    """

    num_drafted: int | None = 8
    share: tuple[float, float] | None = None
    num_looks: int = 1
    positions: str = "random"
    window: int | None = None
    tokens: Tokens = "sample"
    top_p: float = 1.0
    temperature: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_choice(self, "positions", _choices())
        require_choice(self, "tokens", get_args(Tokens))
        require_int(self, "num_looks", minimum=1)
        require_number(self, "temperature", "a number above 0", low=0, open_low=True)
        require_number(self, "top_p", "a mass in (0, 1]", low=0, high=1, open_low=True)
        require_number(self, "weight", "a number above 0", low=0, open_low=True)
        self._check_count()
        self._check_choices()

    @property
    def unmasking(self) -> UnmaskingRule:
        """The rule that chooses the positions."""
        if self.positions == _WINDOW:
            return WithinWindow(self.window)  # type: ignore[arg-type]  # there with these positions: `_check_choices`
        return UNMASKING.get(self.positions)()

    def _check_count(self) -> None:
        if (self.num_drafted is None) == (self.share is None):
            raise ConfigurationError(
                f"A DraftRule needs either `num_drafted` or `share`, found num_drafted={self.num_drafted} and "
                f"share={self.share}; set the other to None."
            )
        if self.share is None:
            require_int(self, "num_drafted", minimum=1)
            if self.num_drafted < self.num_looks:  # type: ignore[operator]  # an integer, as was just required
                raise ConfigurationError(
                    f"A DraftRule fills at least one position per look, found num_drafted={self.num_drafted} in "
                    f"num_looks={self.num_looks}; lower num_looks."
                )
            return
        pair = tuple(self.share) if isinstance(self.share, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(end, int | float) for end in pair) or not 0 <= pair[0] <= pair[1] <= 1:
            raise ConfigurationError(
                f"`share` of DraftRule must be two numbers, 0 <= lowest <= highest <= 1, found {self.share!r}."
            )
        object.__setattr__(self, "share", pair)  # files hold lists; a frozen rule holds a tuple

    def _check_choices(self) -> None:
        if (self.positions == _WINDOW) != (self.window is not None):
            raise ConfigurationError(
                f"`window` of DraftRule belongs to semi_autoregressive positions and they need it, found window={self.window} "
                f"with positions={self.positions!r}."
            )
        if self.window is not None:
            require_int(self, "window", minimum=1)
        if (self.tokens == "nucleus") != (self.top_p < 1):
            raise ConfigurationError(
                f"`top_p` of DraftRule below 1 belongs to nucleus tokens and they need it, found top_p={self.top_p} with "
                f"tokens={self.tokens!r}."
            )
        if self.tokens == "argmax" and self.temperature != 1:
            raise ConfigurationError(
                f"`temperature` of DraftRule does not change argmax tokens, found {self.temperature}; leave it at 1."
            )


def num_to_draft(rule: DraftRule, masked: TokenMask, noise: Times) -> PerRow:
    """Say how many positions of each row the draft fills, over all its looks.

    Args:
        rule: The draft rule.
        masked: Masked positions of the noised tokens.
        noise: Uniform in [0, 1), one per row; used for a `share`.

    Returns:
        At most the masked positions of the row, at least 1 where there are any.
    """
    available = masked.sum(-1)
    if rule.share is None:
        return available.clamp(max=rule.num_drafted)
    lowest, highest = rule.share
    # less a little before rounding up, so that float32 does not turn 0.1 of 10 positions into 2
    wanted = ((lowest + (highest - lowest) * noise) * available - 1e-4).ceil().long()
    return wanted.clamp(min=1).minimum(available)
