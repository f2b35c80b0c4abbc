"""What the quality head and its free proxies say of tokens whose answer is known: on training drafts, on a sampler's states.

A token is right when it is the data's token at its position. Where a task has one solution, such as a Sudoku, that is the
truth; in free text another token may do as well, and "right" means "what the data says", which is what the head is trained to
predict. Only tokens that the model wrote are judged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import datasets
import torch
from torch import Tensor

from prism_plugin.backbones import evaluation_mode
from prism_plugin.core.categorical import token_confidence
from prism_plugin.core.finite import require_numbers
from prism_plugin.core.remasking import NeverRemasking
from prism_plugin.core.unmasking import ConfidenceUnmasking
from prism_plugin.core.view import Budget, Decider, Decision, StepView
from prism_plugin.data import IN_MEMORY, Origin, as_dataset
from prism_plugin.decoding.decide import needs_of
from prism_plugin.errors import ConfigurationError, DataFormatError, SamplingError
from prism_plugin.evaluation.known_rows import masked_request, require_share
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler, StepRecord
from prism_plugin.training import Objective
from prism_plugin.training.checks import collator_of
from prism_plugin.training.corruptors import Corruptor
from prism_plugin.training.given_rows import check_recorded, wants_history
from prism_plugin.training.trainer import EVALUATION_EPOCH
from prism_plugin.types import PerRow, TokenIds, TokenMask

SCORES: Mapping[str, str] = {
    "quality": "what the quality head says",
    "mean_quality": "mean of that over the looks since the token was written, this one included",
    "visible_confidence": "probability that the language model gives now to the token that it sees there",
    "commit_confidence": "probability that it gave to the token when it wrote it",
    "mean_confidence": "mean of that and of what it gave at each look since, as FreeCorrection has it (arXiv 2602.02927)",
    "age": "share of the looks so far at which the token stood there; the model has no say in it",
}
# An age ranks tokens and says nothing of how many are right, so it is neither well nor badly calibrated.
PROBABILITIES = frozenset(SCORES) - {"age"}


@dataclass(frozen=True)
class JudgedTokens:
    """Tokens that the model wrote, each as one look saw it. All tensors are [count], on the CPU.

    Attributes:
        scores: Numbers in [0, 1] by the names of `SCORES`, higher where a token is to be trusted more. Those of
            `PROBABILITIES` are meant as the probability that the token is right.
        correct: Which tokens are the data's.
        row: Row of the data.
        state: One number for the tokens that one look saw in one row.
        masked_share: Share of the row's maskable positions that held the mask in that state, in [0, 1).
        step: Number of the look, from 0; None on drafts, which are looked at once.
    """

    scores: Mapping[str, Tensor]
    correct: Tensor
    row: Tensor
    state: Tensor
    masked_share: Tensor
    step: Tensor | None

    @property
    def quality_logits(self) -> Tensor:
        """Logits of the head's quality, float64, finite."""
        return self.scores["quality"].double().logit(eps=1e-7)

    def where(self, chosen: Tensor) -> "JudgedTokens":
        """Only the tokens that a bool mask chooses."""
        return replace(
            self,
            scores={name: score[chosen] for name, score in self.scores.items()},
            correct=self.correct[chosen],
            row=self.row[chosen],
            state=self.state[chosen],
            masked_share=self.masked_share[chosen],
            step=None if self.step is None else self.step[chosen],
        )


@dataclass
class _Gathered:
    """Judged tokens in the making."""

    parts: list[dict[str, Tensor]] = field(default_factory=list)
    num_states: int = 0

    def add(
        self,
        judged: TokenMask,
        correct: TokenMask,
        rows: PerRow,
        masked_share: Tensor,
        step: int | None,
        scores: Mapping[str, Tensor],
    ) -> None:
        """Add the judged positions of some states, [states, length] each; `rows` and `masked_share` are [states]."""
        states = torch.arange(len(judged)) + self.num_states
        self.num_states += len(judged)
        judged = judged.cpu()
        part = {name: score.cpu().float()[judged] for name, score in scores.items()}
        for name, values in (("row", rows), ("state", states), ("masked_share", masked_share)):
            part[name] = values.cpu().unsqueeze(-1).expand(judged.shape)[judged]
        part["correct"] = correct.cpu()[judged]
        if step is not None:
            part["step"] = torch.full_like(part["row"], step)
        self.parts.append(part)

    def joined(self) -> JudgedTokens:
        whole = {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}
        scores = {name: require_numbers(whole.pop(name), name) for name in SCORES if name in whole}
        return JudgedTokens(scores=scores, step=whole.pop("step", None), **whole)


@torch.no_grad()
def judge_drafts(
    model: PrismModel,
    objective: Objective,
    rows: datasets.Dataset | Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 32,
    seed: int = 0,
    on_batch: Callable[[], None] | None = None,
) -> JudgedTokens:
    """Judge what the objective labels in its own drafts: the states that the head was trained on, with noise of their own.

    Recorded drafts are judged as they are. A head that reads history is shown that of every row; for others that of recorded
    drafts is not kept, so the scores that need it are left out.

    Args:
        model: Backbone with a quality head; its mode is left as it was.
        objective: How drafts are made, or that they were recorded.
        rows: Prepared rows.
        batch_size: Rows at once.
        seed: Of the drafts. With equal weights and rows the result is the same, whatever the batch size.
        on_batch: Called after each batch.

    Raises:
        ConfigurationError: If no term of the objective judges tokens.
        DataFormatError: If no draft filled a token, or objective and recorded drafts do not go together.
        NonFiniteError: If the model has no number for a token.
    """
    rows = as_dataset(rows)
    if not objective.reads_quality_of("draft"):
        raise _no_labels(objective)
    check_recorded(objective, rows.column_names, IN_MEMORY, with_history=wants_history(model))
    # no loss is read: what terms on the noised tokens read of the LM head is not computed, and weights say nothing
    terms = tuple(replace(term, weight=1.0) for term in objective.on("draft"))
    judging = replace(objective, corruptor=_showing_history(objective.corruptor), terms=terms, name=None)
    gathered, forbidden = _Gathered(), (model.mask_token_id, *model.unknown_ids)
    with evaluation_mode(model):
        for batch in _batches(model, rows, batch_size):
            step = judging.step(model, batch, epoch=EVALUATION_EPOCH, seed=seed, unwrapped=model)
            draft, labels = step.draft, next((one.labels for one in step.terms.values() if one.labels is not None), None)
            if labels is None:
                raise _no_labels(objective)
            judged = labels.labelled & ~draft.masked
            index = judged.flatten().nonzero().squeeze(-1)
            seen = model(draft.ids, draft.attention_mask, logits_at=index, with_quality=False).logits
            now = token_confidence(seen, draft.ids.flatten()[index], forbidden_ids=forbidden)
            visible = torch.zeros(judged.shape, device=now.device).flatten().index_copy(0, index, now).view_as(judged)
            scores = {"quality": step.quality_logits.sigmoid(), "visible_confidence": visible}
            if draft.history is not None:
                scores["commit_confidence"] = draft.history.commit_confidence
                if not objective.reads_drafts:  # of recorded ones it is not known what the model gave in between
                    scores["mean_confidence"] = (visible + draft.history.commit_confidence) / 2
            gathered.add(
                judged,
                labels.targets == 1,
                batch["example_id"].repeat(len(judged) // len(batch["input_ids"])),
                _masked_share(draft.ids, draft.maskable, model.mask_token_id),
                None,
                scores,
            )
            if on_batch is not None:
                on_batch()
    answers = gathered.joined()
    if not answers.correct.numel():
        raise DataFormatError(
            f"No draft of the {len(rows)} rows filled a token, so nothing could be judged; give longer rows, or drafts from "
            "noisier ones (`t_min`)."
        )
    return answers


def _showing_history(corruptor: Corruptor) -> Corruptor:
    """The same corruptor, which hides no history from a head that reads it."""
    hides = any(field.name == "history_hidden" for field in fields(corruptor))
    return replace(corruptor, history_hidden=0.0) if hides else corruptor


def _no_labels(objective: Objective) -> ConfigurationError:
    return ConfigurationError(
        f"To judge drafts, an objective needs a term that labels their tokens for the quality head, but {objective.title} has "
        "none; take another, such as `prism`."
    )


class _Watch:
    """A decider that does what another does, and keeps the view. So the sampler is watched, and not changed."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self.needs = needs_of(decider) | (frozenset(SCORES) - {"commit_confidence"})
        self.reach, self.repeats, self.takes_back, self.blind = decider.reach, decider.repeats, decider.takes_back, False
        self.view: StepView | None = None

    def __call__(self, view: StepView, budget: Budget) -> Decision:
        self.view = view
        return self.decider(view, budget)


def _take_note(
    record: StepRecord, view: StepView, batch: Mapping[str, Tensor], mask_token_id: int, gathered: _Gathered
) -> None:
    """Judge the tokens that could have been taken back at a look."""
    rows = record.looked.nonzero().squeeze(-1)
    scores = {name: view.commit_confidence if name == "commit_confidence" else view.features[name] for name in SCORES}
    gathered.add(
        view.revealed,
        record.tokens_before[rows] == batch["input_ids"][rows],
        batch["example_id"][rows],
        _masked_share(record.tokens_before, batch["maskable"], mask_token_id)[rows],
        record.step,
        scores,
    )


def judge_states(
    sampler: RemaskingSampler,
    rows: datasets.Dataset | Sequence[Mapping[str, Any]],
    *,
    masked: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    on_look: Callable[[], None] | None = None,
    origin: Origin = IN_MEMORY,
) -> JudgedTokens:
    """Let a sampler fill rows whose tokens are known, and judge at each look the tokens that it could have taken back.

    Args:
        sampler: Does what it always does; only the quality and the probability of visible tokens are computed besides.
        rows: Prepared rows.
        masked: Share of each row's maskable positions that the sampler is to fill, in (0, 1]; the data stand in the others.
        batch_size: Rows at once.
        seed: Of the positions and the sampler's draws, by row: the batch size changes nothing but rounding.
        on_look: Called after each look at a batch.
        origin: What the rows are called in errors.

    Raises:
        ConfigurationError: If `masked` is out of range.
        DataFormatError: If the sampler would see no token of a row that says which answer is right, or the rows have recorded
            drafts, which the sampler would not look at.
        SamplingError: If no look shows a revealed token; also as `RemaskingSampler.infill`.
    """
    require_share(masked)
    rows = as_dataset(rows)
    if "draft_ids" in rows.column_names:
        raise DataFormatError(
            "The rows have recorded drafts (`draft_ids`), which a sampler that starts from masks would ignore; drop the "
            "column, or judge them with `judge_drafts`."
        )
    model, gathered = sampler.model, _Gathered()
    # all of them, so that a row that cannot be judged is found before any work
    requests = [(batch, masked_request(model, batch, masked, seed, origin)) for batch in _batches(model, rows, batch_size)]
    for batch, input_ids in requests:
        watch = _Watch(sampler.decide)
        on_cpu = {name: batch[name].cpu() for name in ("input_ids", "maskable", "example_id")}

        def on_step(record: StepRecord, watch: _Watch = watch, batch: Mapping[str, Tensor] = on_cpu) -> None:
            _take_note(record, watch.view, batch, model.mask_token_id, gathered)
            if on_look is not None:
                on_look()

        generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in on_cpu["example_id"].tolist()]
        watched = replace(sampler, unmasking=ConfidenceUnmasking(), remasking=NeverRemasking(), editing=None, decider=watch)
        watched.infill(input_ids, batch["attention_mask"], generator=generators, on_step=on_step)
    judged = gathered.joined()
    if not judged.correct.numel():
        raise SamplingError(
            f"The sampler showed no revealed token in any of its {gathered.num_states} looks, so nothing could be judged; give "
            "it more steps."
        )
    return judged


def _batches(model: PrismModel, rows: datasets.Dataset, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of rows, shortest first; of one length each where the family takes no attention mask."""
    collate = collator_of(model)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(rows)), key=lambda index: lengths[index])
    start = 0
    while start < len(order):
        chosen = order[start : start + batch_size]
        if model.spec.attention_mask == "none":
            chosen = [index for index in chosen if lengths[index] == lengths[chosen[0]]]
        yield {name: tensor.to(model.device) for name, tensor in collate([rows[index] for index in chosen]).items()}
        start += len(chosen)


def _masked_share(tokens: TokenIds, maskable: TokenMask, mask_token_id: int) -> Tensor:
    return ((tokens == mask_token_id) & maskable).sum(-1) / maskable.sum(-1)
