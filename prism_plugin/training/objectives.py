"""Objectives: what is learnt from a batch. One corruptor, label rules, and weighted terms (stations 7 to 11 of training).

An objective is a pure function of (batch, epoch, seed, weights): all chance comes from `core.noise.uniforms` by example id.
What two objectives share stands here too: the first look, which may go backward by itself, and the second.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prism_plugin.core.corruption import MaskedTokens, draw_times, mask_tokens
from prism_plugin.core.drafting import Draft, DraftRule
from prism_plugin.core.labels import QualityLabels, drafted_labels
from prism_plugin.core.losses import PrismLossOutput, diffusion_loss_per_row, quality_loss, share_scale, weigh
from prism_plugin.core.noise import uniforms
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.errors import ConfigurationError, UnknownKeyError
from prism_plugin.modeling.dropout import dropout_off
from prism_plugin.modeling.model import PrismModel
from prism_plugin.registry import Registry, from_mapping
from prism_plugin.training.drafts import DraftMaker, Noise
from prism_plugin.types import FlatIndex, PerToken, Rows, Times, TokenIds


@dataclass(frozen=True)
class StepOutput:
    """What one batch gave.

    With several drafts, `quality_logits`, `labels` and `draft` hold all rows of draft 0, then those of draft 1, and so on.
    """

    losses: PrismLossOutput
    quality_logits: PerToken
    labels: QualityLabels
    draft: Draft
    diffusion_per_row: Times  # the terms whose mean is the diffusion loss, [batch], detached


# Opens a part of a step that stands alone, and gives the backward for a weighted loss whose graph ends there.
Apart = Callable[[], AbstractContextManager[Callable[[Tensor], None]]]


class Objective(Protocol):
    """Turns a collated batch into losses. A dataclass, so that it can be written down with the checkpoint.

    One that reads recorded drafts, the column `draft_ids`, says so by a class variable `reads_drafts` that is True; others get
    no rows that have them.
    """

    diffusion_weight: float
    quality_weight: float

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
            apart: How to go backward through one look before the next is made, so that their graphs are never alive
                together: `with apart() as backward:` around the look, `backward(weighted_loss)` inside. What went backward
                must be detached in the losses that are returned. None, or left alone: one backward, of the returned loss.
        """
        ...


OBJECTIVES: Registry[Objective] = Registry("objective")


def check_weights(objective: Objective) -> None:
    """Refuse weights of the two terms that are out of range.

    Raises:
        ConfigurationError: If one is no number of 0 or more, or both are 0.
    """
    for name in ("diffusion_weight", "quality_weight"):
        require_number(objective, name, "0 or more", low=0.0)
    if not objective.quality_weight + objective.diffusion_weight:
        raise ConfigurationError("`quality_weight` and `diffusion_weight` are both 0, so nothing would be learnt; raise one.")


def logits_without_dropout(
    model: nn.Module, unwrapped: PrismModel, tokens: TokenIds, attention_mask: Tensor, row_index: FlatIndex
) -> Rows:
    """The first look: logits at some positions, with dropout off as it will be when sampling."""
    with dropout_off(unwrapped):
        return model(tokens, attention_mask=attention_mask, logits_at=row_index, with_quality=False).logits


def diffusion_apart(look: Callable[[], Times], weight: float, apart: Apart | None) -> tuple[Tensor, Times]:
    """Make the first look, and go backward through it before anything else is looked at, where `apart` says how.

    Args:
        look: Gives the diffusion terms, one per row.
        weight: Of the diffusion loss.
        apart: As for `Objective.step`.

    Returns:
        The mean of the terms, detached if it went backward; and the terms, detached.
    """
    with nullcontext() if apart is None else apart() as backward:
        per_row = look()
        diffusion = per_row.sum() / max(len(per_row), 1)
        if backward is not None and diffusion.requires_grad:
            backward(weight * diffusion)
            diffusion = diffusion.detach()
    return diffusion, per_row.detach()


def judge_draft(
    objective: Objective,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    draft: Draft,
    diffusion: Tensor,
    diffusion_per_row: Times,
) -> StepOutput:
    """The second look: ask the head which of the drafted tokens are right, and put the two terms together."""
    num_drafts = len(draft.draft_ids) // max(len(batch["input_ids"]), 1)
    labels = drafted_labels(draft.draft_ids, batch["input_ids"].repeat(num_drafts, 1), draft.drafted)
    quality_logits = model(draft.draft_ids, batch["attention_mask"].repeat(num_drafts, 1)).quality_logits
    weights = {"diffusion_weight": objective.diffusion_weight, "quality_weight": objective.quality_weight}
    losses = weigh(quality_loss(quality_logits, labels), diffusion, labels, **weights)
    return StepOutput(losses, quality_logits, labels, draft, diffusion_per_row)


@OBJECTIVES.register("prism")
@dataclass(frozen=True)
class PrismObjective:
    """Fill some masks, ask the head which of the filled tokens are right (PRISM, arXiv 2510.01384).

    Args:
        drafts: How a draft is made; with several rules, each example picks one by its weight in each epoch.
        num_drafts: Drafts per noised sequence, >= 1. They share the first look; the second has that many times the rows.
        diffusion_weight: The paper's lambda, >= 0: weight of the masked diffusion cross-entropy that keeps the language
            model in place. Default: --reg_coeff of the authors' PRISM_llada/train.py. 0 where the backbone is frozen.
        quality_weight: Weight of the quality cross-entropy, >= 0.
        diffusion_share: Share of each row's masked positions at which the diffusion term is computed, in (0, 1], rounded up;
            the others are estimated from them, without bias and with the variance that `share_scale` states. Below 1 it saves
            rows of the LM head where drafts take random positions; other drafts read all of them.
        t_min: Smallest masking probability, > 0.
        t_max: Largest masking probability, <= 1.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    drafts: tuple[DraftRule, ...] = (DraftRule(),)
    num_drafts: int = 1
    diffusion_weight: float = 0.5
    quality_weight: float = 1.0
    diffusion_share: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.drafts, tuple | list) or not all(isinstance(rule, DraftRule) for rule in self.drafts):
            raise ConfigurationError(f"`drafts` is a tuple of DraftRule, found {self.drafts!r}.")
        if not self.drafts:
            raise ConfigurationError("`drafts` needs at least one DraftRule, found none.")
        require_int(self, "num_drafts", minimum=1)
        check_weights(self)
        require_number(self, "diffusion_share", "a share in (0, 1]", low=0, high=1, open_low=True)
        for name in ("t_min", "t_max"):
            require_number(self, name, "a finite number", low=-math.inf)
        draw_times(torch.zeros(1), self.t_min, self.t_max)

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
        """Two looks, two terms; see `Objective.step`."""
        clean_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        length, mask_token_id = clean_ids.shape[1], unwrapped.mask_token_id

        def noise(name: str, count: int = length) -> Tensor:
            return uniforms(seed, epoch, batch["example_id"], name, count)

        t = draw_times(noise("t", 1).squeeze(-1), self.t_min, self.t_max)
        noised = mask_tokens(clean_ids, batch["maskable"], mask_token_id=mask_token_id, t=t, noise=noise("masked"))
        maker = DraftMaker(self.drafts, self.num_drafts, noised, mask_token_id, noise)
        look = partial(self._look_once, model, unwrapped, batch, noised, maker, noise)
        diffusion, diffusion_per_row = diffusion_apart(look, self.diffusion_weight, apart)
        with torch.no_grad():
            draft = maker.finish(unwrapped, attention_mask)
        return judge_draft(self, model, batch, draft, diffusion, diffusion_per_row)

    def _look_once(
        self,
        model: nn.Module,
        unwrapped: PrismModel,
        batch: Mapping[str, Tensor],
        noised: MaskedTokens,
        maker: DraftMaker,
        noise: Noise,
    ) -> Times:
        """The first look: diffusion losses per row, and the beginning of the drafts. Its logits live no longer than that."""
        scale, positions = None, noised.masked
        if self.diffusion_share < 1:
            scale = share_scale(noised.masked, self.diffusion_share, noise("diffusion"))
            positions = (scale > 0) | maker.reads
        row_index = positions.flatten().nonzero().squeeze(-1)
        looked_by = model if self.diffusion_weight else unwrapped
        with nullcontext() if self.diffusion_weight else torch.no_grad():
            rows = logits_without_dropout(looked_by, unwrapped, noised.noised_ids, batch["attention_mask"], row_index)
        with torch.no_grad():
            maker.first_look(rows, row_index)
        terms = (row_index, batch["input_ids"], batch["maskable"], noised.t)
        return diffusion_loss_per_row(rows, *terms, scale=scale, overwrite_rows=True)


_DRAFT_FIELDS = frozenset(field.name for field in fields(DraftRule)) - {"weight"}


def get_objective(name: str, *, source: str = "objective", **settings: Any) -> Objective:
    """Build an objective by name.

    Settings of a `DraftRule` may be given beside the objective's own, and then make its only rule:
    `get_objective("prism", num_drafted=4, positions="confidence", diffusion_weight=5.0)`. `drafts` may be mappings.

    Args:
        name: A registered name; "prism" is.
        source: Where the settings were read, for error messages.
        settings: Fields of the objective.

    Raises:
        UnknownNameError: If no objective has that name.
        UnknownKeyError: If a setting is unknown.
        ConfigurationError: If a value is out of range, or a rule is given both ways.
    """
    cls = OBJECTIVES.get(name)
    own = {field.name for field in fields(cls)}
    short_forms = _DRAFT_FIELDS if "drafts" in own else frozenset()
    unknown = sorted(set(settings) - own - short_forms)
    if unknown:
        known = ", ".join(sorted(own | short_forms))
        raise UnknownKeyError(f"{source}: the objective {name!r} has no {', '.join(map(repr, unknown))}; known: {known}.")
    short = {key: value for key, value in settings.items() if key in _DRAFT_FIELDS - own}
    settings = {key: value for key, value in settings.items() if key not in short}
    if short and "drafts" in settings:
        raise ConfigurationError(f"{source}: give `drafts` or the settings of one ({', '.join(sorted(short))}), not both.")
    if short:
        settings["drafts"] = (_draft_rule(short, source),)
    elif "drafts" in settings:
        given = settings["drafts"]
        if not isinstance(given, list | tuple):
            raise ConfigurationError(f"{source}: `drafts` is a list of draft rules, found {given!r}.")
        settings["drafts"] = tuple(_draft_rule(one, f"{source}.drafts") for one in given)
    return from_mapping(cls, settings, source=source)


def objective_to_dict(objective: Objective) -> dict[str, Any]:
    """Write an objective as what `get_objective` takes, ready for JSON; every setting is named."""
    written = OBJECTIVES.to_dict(objective)
    if "drafts" in written:
        rules = [asdict(rule) for rule in written["drafts"]]
        written["drafts"] = [{**rule, "share": rule["share"] and list(rule["share"])} for rule in rules]
    return written


def _draft_rule(given: DraftRule | Mapping[str, Any], source: str) -> DraftRule:
    if isinstance(given, DraftRule):
        return given
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{source}: a draft rule is a mapping of settings, found {given!r}.")
    given = dict(given)
    if given.get("share") is not None:
        given.setdefault("num_drafted", None)
        given["share"] = tuple(given["share"]) if isinstance(given["share"], list) else given["share"]
    return from_mapping(DraftRule, given, source=source)
