"""What a decider may see of a look, what a schedule grants, what is decided, and the one function that writes tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from prism_plugin.errors import MissingQualityError, SamplingError
from prism_plugin.types import Figure, PerRow, PerToken, TokenIds, TokenMask


@dataclass(frozen=True, kw_only=True)
class StepView:
    """One look at the canvas. Rules read it and never write to its tensors; a test checks every registered rule.

    `masked` and `revealed` are disjoint and lie within `editable`, the positions that may be decided about: the active block,
    or all blocks begun where the decider says so.
    """

    masked: TokenMask  # holds the mask token now
    revealed: TokenMask  # holds a generated token now, and may be taken back or overwritten
    editable: TokenMask
    tokens: TokenIds  # what stands there
    candidates: TokenIds  # what would be written where masked
    confidence: PerToken  # probability of the candidate; 0 where not masked
    commit_confidence: PerToken  # probability of the token when it was written; 1 where nothing was
    step: PerRow  # steps of the block taken before this one
    num_steps: PerRow  # steps of the block in all
    total: PerRow  # editable positions to reveal in all
    times_remasked: TokenIds  # how often each position has been taken back
    features: Mapping[str, Figure] = field(default_factory=dict)  # what was asked for by `needs`, by its name
    active: TokenMask | None = None  # the active block, where blocks begun before it are editable too; None: all is active

    def require(self, name: str, rule: object) -> Figure:
        """Give a feature that `rule` reads.

        Raises:
            MissingQualityError: If it is the quality and the model has no quality head.
            SamplingError: If it is another feature that this view was made without.
        """
        if name in self.features:
            return self.features[name]
        if name == "quality":
            raise MissingQualityError(
                f"{type(rule).__name__} ranks tokens by the quality head, but the model gave no quality; attach a head with "
                "`attach_quality_head(...)`, or use CommitConfidenceRemasking."
            )
        raise SamplingError(f"{type(rule).__name__} reads `{name}`, which this view lacks; name it in the rule's `needs`.")

    def score(self, name: str, rule: object) -> PerToken:
        """Give a score of the visible tokens: "commit_confidence", or a feature.

        Raises:
            MissingQualityError: As `require`.
            SamplingError: As `require`.
        """
        return self.commit_confidence if name == "commit_confidence" else self.require(name, rule)

    # The features that rules read most, by attribute: None where nobody asked for them.

    @property
    def noise(self) -> PerToken | None:
        """Uniform in [0, 1), fresh each step; rules that want chance rank by it."""
        return self.features.get("noise")

    @property
    def entropy(self) -> PerToken | None:
        """Entropy of the model at masked positions, nats."""
        return self.features.get("entropy")

    @property
    def margin(self) -> PerToken | None:
        """Largest minus second largest probability at masked positions."""
        return self.features.get("margin")

    @property
    def quality(self) -> PerToken | None:
        """Probability that the visible token is right, by the quality head."""
        return self.features.get("quality")

    @property
    def visible_confidence(self) -> PerToken | None:
        """Probability that the model gives now to the visible token."""
        return self.features.get("visible_confidence")


@dataclass(frozen=True)
class Budget:
    """What a schedule grants at one step, per row.

    Attributes:
        remask: How many revealed positions may be taken back at most.
        target: How many shall be revealed after the step.
        refills: What is taken back is revealed again on top; otherwise it waits for looks of its own.
        edit: How many revealed positions may be overwritten at most; None: all.
    """

    remask: PerRow
    target: PerRow
    refills: bool = True
    edit: PerRow | None = None


@dataclass(frozen=True)
class Decision:
    """What happens at a look.

    Attributes:
        write: Positions that get a token: masked ones that are filled, and revealed ones that are overwritten.
        remask: Revealed positions that get the mask token; none of `write`.
        tokens: What is written, [batch, length]; None: the candidates.
    """

    write: TokenMask
    remask: TokenMask
    tokens: TokenIds | None = None


class Decider(Protocol):
    """Decides about a look, from its view alone. A frozen dataclass, so that it can be written down.

    Attributes:
        needs: Names of the features that it reads.
        reach: What it may decide about: the active block, or all blocks begun.
        blind: It reads neither candidates nor confidence and writes exactly the grant; where it takes nothing back, tokens are
            drawn only where it writes.
        repeats: It would decide the same at a second look that saw the same, so a look at a full block that changed nothing
            ends the block.
        takes_back: It may mask tokens again, so a step that grants nothing else is worth a look.

    It may also say `revises`: that it may overwrite tokens, so every step is worth a look while something stands there.
    """

    @property
    def needs(self) -> frozenset[str]: ...
    @property
    def reach(self) -> Literal["active", "begun"]: ...
    @property
    def blind(self) -> bool: ...
    @property
    def repeats(self) -> bool: ...
    @property
    def takes_back(self) -> bool: ...

    def __call__(self, view: StepView, budget: Budget) -> Decision: ...


def unmask_grant(budget: Budget, revealed_count: PerRow, remasked_count: PerRow, masked_count: PerRow) -> PerRow:
    """Say how many positions each row reveals, after the remask rule has decided.

    Args:
        budget: The schedule's grant for this step.
        revealed_count: Revealed positions before the step.
        remasked_count: Positions that this step takes back.
        masked_count: Masked positions before the step; what is taken back now is not refilled now.

    Returns:
        clamp(target - revealed + remasked, 0, masked); without what is remasked where the budget does not refill.
    """
    back = remasked_count if budget.refills else torch.zeros_like(remasked_count)
    return (budget.target - revealed_count + back).clamp(min=0).minimum(masked_count)


def apply_step(tokens: TokenIds, candidates: TokenIds, decision: Decision, mask_token_id: int) -> TokenIds:
    """Write one step's decision into a new tensor. The only place where generated tokens change.

    Args:
        tokens: Canvas before the step.
        candidates: What is written where the decision does not say.
        decision: Positions to write and to take back.
        mask_token_id: Id of the mask token.
    """
    tokens = torch.where(decision.write, candidates if decision.tokens is None else decision.tokens, tokens)
    return torch.where(decision.remask, mask_token_id, tokens)
