"""An objective is a corruptor and terms: what is learnt from a batch (stations 7 to 11 of training).

It is a pure function of (batch, epoch, seed, weights): all chance comes from `core.noise.uniforms` by example id.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from prism_plugin.backbones import attention_blocks, dropout_off, vocab_size_of
from prism_plugin.backbones.call import WRITTEN
from prism_plugin.core.corruption import Corrupted
from prism_plugin.core.labels import Labels
from prism_plugin.core.losses import mean_over_rows
from prism_plugin.core.noise import uniforms
from prism_plugin.core.terms import Looked, Term
from prism_plugin.data import require_batch
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.lm_head import may_overwrite
from prism_plugin.modeling.model import PrismModel
from prism_plugin.training.corruptors import HISTORY_HIDDEN, Corruptor, Plan
from prism_plugin.training.drafts import of_known_tokens
from prism_plugin.types import FlatIndex, PerToken, Rows, Scalar, Times, TokenIds

# Opens a part of a step that stands alone, and gives the backward for a weighted loss whose graph ends there.
Apart = Callable[[], AbstractContextManager[Callable[[Tensor], None]]]


@dataclass(frozen=True)
class TermOutput:
    """What one term gave: the loss of each row of the batch, [batch], detached; and its labels on the draft, if it judges."""

    per_row: Times
    labels: Labels | None = None

    @property
    def loss(self) -> Scalar:
        """The mean over rows, nats, before weighting."""
        return mean_over_rows(self.per_row)


@dataclass(frozen=True)
class StepOutput:
    """What one batch gave.

    Attributes:
        loss: The weighted sum of the terms; what went backward already is detached in it.
        terms: By name, in the objective's order.
        draft: What the last look saw, drafts times batch rows, all rows of draft 0 first; None where no term reads one.
        quality_logits: The head's output on `draft`; None where no term reads it.
    """

    loss: Scalar
    terms: Mapping[str, TermOutput]
    draft: Corrupted | None
    quality_logits: PerToken | None


@dataclass(frozen=True)
class Objective:
    """Corrupts a batch, looks at it, and weighs what the terms say of it. `training/presets.py` has those with a name.

    Args:
        corruptor: Makes noised tokens and a draft.
        terms: What is learnt at either look; one of each name.
        name: The preset that it is a setting of, under which it is saved; None: by its parts.

    Raises:
        ConfigurationError: If there is no term, two have one name, one reads the quality head on the noised tokens or what the
            corruptor does not give, or all weights are 0, or one is in an objective without a name.
    """

    corruptor: Corruptor
    terms: tuple[Term, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"An objective needs terms, one of each name, found {', '.join(names) or 'none'}.")
        early = [term.name for term in self.terms if term.on == "noised" and term.reads_quality]
        if early:
            raise ConfigurationError(
                f"The quality head is read on the draft, but the term `{early[0]}` would read it on the noised tokens; set its "
                '`on` to "draft".'
            )
        if not any(self.weights.values()):
            listed = " and ".join(f"`{name}`" for name in self.weights)
            raise ConfigurationError(f"{listed} {'are' if len(names) > 1 else 'is'} 0, so nothing would be learnt; raise one.")
        self._refuse_idle_terms()

    def _refuse_idle_terms(self) -> None:
        """Refuse terms that would learn nothing, whatever the data."""
        corruptor = type(self.corruptor).__name__
        for term in self.terms:
            if self.name is None and not term.weight:
                raise ConfigurationError(
                    f"The term `{term.name}` has weight 0, so it would be computed for nothing; leave it out, or give it a "
                    "weight."
                )
            if term.on == "noised" and not getattr(self.corruptor, "first_look", True):
                raise ConfigurationError(
                    f"The term `{term.name}` reads the noised tokens, but {corruptor} has one look alone, at the draft; set "
                    'its `on` to "draft" if it has one, or leave it out.'
                )
            at_masks = term.on == "draft" and getattr(term, "reads_masks", False)
            if at_masks and not getattr(self.corruptor, "leaves_masks", True):
                raise ConfigurationError(
                    f"The term `{term.name}` learns at the masks of the draft, but {corruptor} leaves none there; leave it "
                    "out, or let the draft keep some."
                )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term by its key in a recipe, `<term>_weight`."""
        return {f"{term.name}_weight": term.weight for term in self.terms}

    @property
    def reads_drafts(self) -> bool:
        """It learns from recorded drafts, the column `draft_ids`."""
        return getattr(self.corruptor, "reads_drafts", False)

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"the objective `{self.name}`" if self.name else "this objective"

    @property
    def reads_quality(self) -> bool:
        """Some term reads the quality head, which is frozen otherwise."""
        return any(term.reads_quality for term in self.terms)

    def on(self, look: str) -> tuple[Term, ...]:
        """The terms that read a look, "noised" or "draft"."""
        return tuple(term for term in self.terms if term.on == look)

    def reads_quality_of(self, look: str) -> bool:
        """Some term on a look reads the quality head."""
        return any(term.reads_quality for term in self.on(look))

    def reads_rows_of(self, look: str) -> bool:
        """Some term on a look reads rows of the LM head."""
        return any(term.rows(_EXAMPLE) is not None for term in self.on(look))

    def step(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        epoch: int,
        seed: int,
        unwrapped: PrismModel,
        apart: Apart | None = None,
    ) -> StepOutput:
        """Compute the losses of a batch.

        Args:
            model: As it is trained, maybe wrapped for several processes; looks with gradient go through it.
            batch: What `PrismCollator` makes.
            epoch: Key of the noise; the same example gets fresh noise in each.
            seed: Key of the noise.
            unwrapped: The `PrismModel` inside `model`, for looks without gradient.
            apart: How to go backward through the first look before the second is made, so that their graphs are never alive
                together: `with apart() as backward:` around the look, `backward(weighted_loss)` inside. None: one backward, of
                the returned loss.

        Raises:
            SamplingError: If the rule that chooses a draft's positions chose others than it may.
        """
        require_batch(batch, with_drafts=self.reads_drafts)
        length = batch["input_ids"].shape[1]

        def noise(name: str, count: int | None = None) -> Tensor:
            return uniforms(seed, epoch, batch["example_id"], name, length if count is None else count)

        if (block_length := unwrapped.spec.attention_block_length) is not None:
            batch = {**batch, "attention_block": attention_blocks(batch["attention_mask"], block_length)}
        within = getattr(self.corruptor, "within", None)
        if within is not None:
            batch = within(batch, noise)
        if unwrapped.spec.causal_context:
            batch = _with_written_block(batch, self.corruptor, unwrapped.spec.model_type)
        if getattr(self.corruptor, "draws_tokens", False):
            batch = {**batch, "known_ids": _known_ids(unwrapped).to(batch["input_ids"].device, non_blocking=True)}
        plan = self.corruptor.plan(batch, noise, unwrapped.mask_token_id)
        on_draft = self.on("draft")
        loss, found = self._look_at_noised(model, unwrapped, plan, apart if on_draft else None, len(batch["input_ids"]))
        if not on_draft:
            return StepOutput(loss, found, None, None)

        def ask(ids: TokenIds, attention_mask: Tensor, row_index: FlatIndex) -> Rows:
            with dropout_off(unwrapped):
                rows = unwrapped(ids, attention_mask, logits_at=row_index, with_quality=False).logits
            return of_known_tokens(rows, unwrapped.unknown_ids)

        with torch.no_grad():
            draft = self._with_shown_history(plan.finish(ask), unwrapped)
        looked = _look(model, draft, on_draft, with_history=bool(unwrapped.quality_head.reads_history))
        of_draft = {term.name: term(looked.of(term), draft) for term in on_draft}
        loss = loss + sum(term.weight * mean_over_rows(of_draft[term.name]) for term in on_draft)
        num_drafts = len(draft.ids) // max(len(batch["input_ids"]), 1)
        for term in on_draft:
            per_row = of_draft[term.name].detach().unflatten(0, (num_drafts, -1)).mean(0)
            found[term.name] = TermOutput(per_row, term.labels(looked.of(term), draft))
        return StepOutput(loss, {term.name: found[term.name] for term in self.terms}, draft, looked.shared.quality_logits)

    def _with_shown_history(self, draft: Corrupted, model: PrismModel) -> Corrupted:
        """Hide the history of some rows from a head that reads it, and of all rows from others."""
        if draft.history is None:
            return draft
        share = getattr(self.corruptor, "history_hidden", HISTORY_HIDDEN) if model.quality_head.reads_history else 1.0
        return replace(draft, history=draft.history.hidden(draft.noise("history", 1).squeeze(-1) < share))

    def _look_at_noised(
        self, model: nn.Module, unwrapped: PrismModel, plan: Plan, apart: Apart | None, batch_size: int
    ) -> tuple[Tensor, dict[str, TermOutput]]:
        """The first look: the weighted loss of its terms, and the beginning of the draft. Its logits live no longer.

        It is left out where nobody needs it: then the losses are said to be 0.
        """
        terms, at, reads = self.on("noised"), plan.noised, plan.reads
        learns = any(term.weight for term in terms)
        device = unwrapped.device
        if at is None or not (learns or reads is not None):
            nothing = torch.zeros(batch_size, device=device)
            return torch.zeros((), device=device), {term.name: TermOutput(nothing) for term in terms}
        with nullcontext() if apart is None or not learns else apart() as backward:
            with dropout_off(unwrapped), nullcontext() if learns else torch.no_grad():
                looked = _look(model if learns else unwrapped, at, terms, reads)
            if reads is not None:
                with torch.no_grad():
                    known = of_known_tokens(looked.shared.rows.detach(), unwrapped.unknown_ids)  # type: ignore[union-attr]
                    plan.fill(known, looked.shared.row_index)  # type: ignore[arg-type]  # it reads rows
                    del known
            per_row = {term.name: term(looked.of(term), at) for term in terms}
            del looked  # from here on the graph alone holds the logits, so backward lets them go before it comes to the body
            loss = sum((term.weight * mean_over_rows(per_row[term.name]) for term in terms), torch.zeros((), device=device))
            if backward is not None and loss.requires_grad:
                backward(loss)
                loss = loss.detach()
        return loss, {name: TermOutput(one.detach()) for name, one in per_row.items()}


def _known_ids(model: PrismModel) -> Tensor:
    """The tokens that a text may hold, in ascending order: all of the LM head's but the mask and those the tokenizer lacks."""
    return _all_but(vocab_size_of(model.get_output_embeddings()), (*model.unknown_ids, model.mask_token_id))


@lru_cache(maxsize=8)
def _all_but(size: int, left_out: tuple[int, ...]) -> Tensor:
    kept = torch.ones(size, dtype=torch.bool)
    kept[torch.tensor([one for one in left_out if one < size], dtype=torch.int64)] = False
    return kept.nonzero().squeeze(-1)


def _example() -> Corrupted:
    """A row of one mask and one token, on which terms say whether they read logits at all."""
    ids, masked = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[True, False]])
    everywhere = torch.ones_like(masked)
    return Corrupted(
        ids=ids, clean_ids=ids, attention_mask=everywhere.long(), maskable=everywhere, masked=masked, masked_before=everywhere,
        drafted=~masked, t=torch.ones(1), noise=lambda name, count=None: torch.zeros(1, 2 if count is None else count),
    )  # fmt: skip


_EXAMPLE = _example()


def _look(
    model: nn.Module, at: Corrupted, terms: tuple[Term, ...], also: Tensor | None = None, *, with_history: bool = False
) -> "_OneLook":
    """One forward for all terms of a look, with logits where a term, or the draft (`also`), reads them."""
    read_by = {term.name: mask for term in terms if (mask := term.rows(at)) is not None}
    read_by_terms = list(read_by.values())
    wanted = read_by_terms if also is None else [*read_by_terms, also]
    row_index = torch.stack(wanted).any(0).flatten().nonzero().squeeze(-1) if wanted else None
    with_quality = any(term.reads_quality for term in terms)
    more: dict[str, Any] = {"history": at.history} if with_quality and with_history else {}
    if at.soft is not None:
        more["soft"] = at.soft
    output = model(at.ids, at.attention_mask, logits_at=row_index, with_quality=with_quality, **more)
    alone = len(read_by_terms) == 1 and output.logits is not None and may_overwrite(output.logits)
    looked = Looked(output.logits, row_index, output.quality_logits, may_overwrite=alone)
    return _OneLook(looked, {} if row_index is None or len(wanted) == 1 else _own_rows(read_by, row_index))


def _with_written_block(batch: Mapping[str, Tensor], corruptor: Corruptor, family: str) -> Mapping[str, Tensor]:
    """The batch with a mask that says which block is written: the one of each row that is left to be masked.

    Raises:
        ConfigurationError: If the corruptor may leave more than one.
    """
    if getattr(corruptor, "noised_blocks", "all") == "all":
        raise ConfigurationError(
            f"{family} sees what stands before a block causally, so one block of a row is trained at a time; leave "
            "`noised_blocks` at auto, and choose an objective that makes its drafts from clean rows."
        )
    block, present = batch["attention_block"], batch["attention_mask"].long()
    written = (block == block.masked_fill(~batch["maskable"], -1).amax(-1, keepdim=True)) & present.bool()
    return {**batch, "attention_mask": present.masked_fill(written, WRITTEN)}


@dataclass(frozen=True)
class _OneLook:
    """What a look gave, and which of its rows each term reads, by name, where those are not all."""

    shared: Looked
    own: Mapping[str, Tensor]

    def of(self, term: Term) -> Looked:
        """What a term is given."""
        return replace(self.shared, wanted=self.own.get(term.name))


def _own_rows(read_by: Mapping[str, Tensor], row_index: FlatIndex) -> dict[str, Tensor]:
    counts = torch.stack([mask.sum() for mask in read_by.values()]).tolist() if read_by else []
    fewer = [name for name, count in zip(read_by, counts, strict=True) if count < len(row_index)]
    return {name: read_by[name].flatten()[row_index].nonzero().squeeze(-1) for name in fewer}
