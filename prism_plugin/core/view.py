"""What a rule may see at one step, what a schedule grants, and the one function that writes tokens."""

from dataclasses import dataclass

import torch

from prism_plugin.errors import MissingQualityError, SamplingError
from prism_plugin.types import PerRow, PerToken, TokenIds, TokenMask


@dataclass(frozen=True, kw_only=True)
class StepView:
    """One look at the canvas. Rules read it and never write to its tensors; a test checks every registered rule.

    `masked` and `revealed` are disjoint and lie within `editable`, the positions of the active block that may be generated.
    """

    masked: TokenMask  # holds the mask token now
    revealed: TokenMask  # holds a generated token now
    editable: TokenMask
    candidates: TokenIds  # what would be written where masked
    confidence: PerToken  # probability of the candidate; 0 where not masked
    commit_confidence: PerToken  # probability of the token when it was written; 1 where nothing was
    step: PerRow  # steps of the block taken before this one
    num_steps: PerRow  # steps of the block in all
    total: PerRow  # editable positions that were masked when the block began
    times_remasked: TokenIds  # how often each position has been taken back
    noise: PerToken | None = None  # uniform in [0, 1), fresh each step; rules that want chance rank by it
    entropy: PerToken | None = None  # of the model at masked positions, nats
    margin: PerToken | None = None  # largest minus second largest probability at masked positions
    quality: PerToken | None = None  # probability that the visible token is right, by the quality head
    visible_confidence: PerToken | None = None  # probability that the model gives now to the visible token

    def require(self, name: str, rule: object) -> PerToken:
        """Give an optional field that `rule` reads.

        Raises:
            MissingQualityError: If it is the quality and the model has no quality head.
            SamplingError: If it is another field that this view was made without.
        """
        value = getattr(self, name)
        if value is not None:
            return value
        if name == "quality":
            raise MissingQualityError(
                f"{type(rule).__name__} ranks tokens by the quality head, but the model gave no quality; attach a head with "
                "`attach_quality_head(...)`, or use CommitConfidenceRemasking."
            )
        raise SamplingError(f"{type(rule).__name__} reads `{name}`, which this view lacks; name it in the rule's `needs`.")


@dataclass(frozen=True)
class Budget:
    """What a schedule grants at one step, per row.

    `remask` is how many revealed positions may be taken back at most, `target` how many shall be revealed after the step.
    """

    remask: PerRow
    target: PerRow


def unmask_grant(budget: Budget, revealed_count: PerRow, remasked_count: PerRow, masked_count: PerRow) -> PerRow:
    """Say how many positions each row reveals, after the remask rule has decided.

    Args:
        budget: The schedule's grant for this step.
        revealed_count: Revealed positions before the step.
        remasked_count: Positions that this step takes back.
        masked_count: Masked positions before the step; what is taken back now is not refilled now.

    Returns:
        clamp(target - revealed + remasked, 0, masked).
    """
    return (budget.target - revealed_count + remasked_count).clamp(min=0).minimum(masked_count)


def apply_step(tokens: TokenIds, view: StepView, reveal: TokenMask, remask: TokenMask, mask_token_id: int) -> TokenIds:
    """Write one step's decisions into a new tensor. The only place where generated tokens change.

    Args:
        tokens: Canvas before the step.
        view: What the rules saw; its candidates are written.
        reveal: Positions to write, a subset of `view.masked`.
        remask: Positions to take back, a subset of `view.revealed`.
        mask_token_id: Id of the mask token.
    """
    tokens = torch.where(reveal, view.candidates, tokens)
    return torch.where(remask, mask_token_id, tokens)
