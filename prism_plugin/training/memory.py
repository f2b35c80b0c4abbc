"""How much memory a training step takes, told without weights: the step is run on tensors that have shapes and no data.

Adding up layer by layer by hand goes wrong wherever a family differs: what autograd keeps depends on which weights are frozen,
on where a dtype changes, and on the attention kernel. So the model's own forward, the real loss and the real backward run under
torch's FakeTensorMode, and a dispatch mode counts the bytes of every storage from its birth to its death. On LLaDA-8B this
takes some seconds and next to no memory.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

# Documented at docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html; there is no public path to it.
from torch._subclasses.fake_tensor import FakeTensorMode

from prism_plugin.backbones import vocab_size_of
from prism_plugin.core.categorical import chunk_slices, draw_rows
from prism_plugin.core.corruption import Corrupted
from prism_plugin.core.losses import mean_over_rows
from prism_plugin.core.noise import uniforms
from prism_plugin.core.soft import SoftTokens
from prism_plugin.core.terms import Looked, Term
from prism_plugin.core.validation import require_int, require_number
from prism_plugin.errors import BackboneError, first_line
from prism_plugin.modeling.model import PrismModel
from prism_plugin.training.corruptors import Corruptor
from prism_plugin.training.live_bytes import ACTIVATIONS, LOGITS, LiveBytes
from prism_plugin.training.objective import Objective
from prism_plugin.training.presets import get_objective

# bitsandbytes' NF4, as `load_backbone(quantization="nf4")` asks for it: half a byte a weight; for each block of 64 a scale of
# one byte; for 256 of those a float32.
_BYTES_PER_FOUR_BIT_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class StepShape:
    """What is trained at a time.

    Args:
        batch_size: Rows on one device, >= 1.
        length: Tokens of a row, >= 2.
        masked_share: Share of the positions that are masked and have a row of logits, in (0, 1]. The default is the largest
            step of a run (t = 1), which decides whether a run fits; the mean over steps is about one half.
        looks_apart: The first look goes backward before the second is made, so that their graphs are never alive together.
            False for engines that step at every backward, as DeepSpeed does.
        autocast: dtype of mixed precision (`bf16: true`), or None.
        four_bit: Hold the backbone's linear layers in NF4, except for the LM head.
        optimizer_states: Numbers that the optimizer keeps per trained weight; AdamW: 2.
    """

    batch_size: int
    length: int
    masked_share: float = 1.0
    looks_apart: bool = True
    autocast: torch.dtype | None = None
    four_bit: bool = False
    optimizer_states: int = 2

    def __post_init__(self) -> None:
        for name, minimum in (("batch_size", 1), ("length", 2), ("optimizer_states", 0)):
            require_int(self, name, minimum=minimum)
        require_number(self, "masked_share", "above 0 and at most 1", low=0.0, high=1.0, open_low=True)

    @property
    def num_masked(self) -> int:
        """Positions that are masked in the whole batch."""
        return max(1, round(self.masked_share * self.batch_size * self.length))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device. The totals are below the sums of their parts, which are not all alive at one time.

    Not counted: the CUDA context and what an allocator loses to fragments (keep 10 % free), buckets of DDP, masks of padded
    batches, and other processes' share when weights are sharded.

    Attributes:
        weights: The backbone: parameters and buffers, each storage once, so tied weights count once.
        adapter: Parameters that PEFT added.
        head: The quality head, float32.
        gradients: One per trained parameter, in its dtype.
        optimizer: `optimizer_states` numbers per trained parameter, in its dtype.
        activations: Largest amount of what the forward keeps for the backward and what both hold in passing, without
            activation checkpointing.
        activations_checkpointed: The same with it; None where the family has none.
        logits: Largest amount of rows as wide as the vocabulary: logits of the masked positions, and what their loss makes.
        logits_full: The same without gathering: a row for every position of both looks, as the authors' code makes them.
        total: Weights, adapter, head and optimizer, which stay; and the largest sum of gradients, activations and logits that
            is alive at one time of the step (at least all gradients, when the optimizer steps).
        total_checkpointed: The same with activation checkpointing.
        not_estimated: Why activations, logits and totals are None: the forward asks for values, as some routers of experts
            do. Empty where they are there.
    """

    weights: int
    adapter: int
    head: int
    gradients: int
    optimizer: int
    activations: int | None = None
    activations_checkpointed: int | None = None
    logits: int | None = None
    logits_full: int | None = None
    total: int | None = None
    total_checkpointed: int | None = None
    not_estimated: str = ""

    def in_gb(self) -> dict[str, float | None]:
        """Every part in units of 10^9 bytes, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "not_estimated"}
        return {name: None if value is None else round(value / 1e9, 4) for name, value in values.items()}


@dataclass(frozen=True)
class _Peaks:
    """Largest bytes of a step beyond what stays: of each kind, and of their sum."""

    of_kind: Counter[str]
    together: int


def estimate_memory(model: PrismModel, shape: StepShape, objective: Objective | None = None) -> MemoryEstimate:
    """Estimate the memory of training a model. Its weights are not read, so it may be on the meta device; it is not changed.

    Args:
        model: A backbone with quality head, and adapter if one is trained.
        shape: What is trained at a time.
        objective: What is learnt; PRISM's when None. Its terms say which rows of the LM head a look computes.
    """
    objective = objective or get_objective("prism")
    head = {id(parameter) for parameter in model.quality_head.parameters()}
    added = _added_by_peft(model)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}  # tied ones once
    bytes_of = {key: tensor.numel() * tensor.element_size() for key, tensor in tensors.items()}
    packed, largest = _four_bit(model) if shape.four_bit else ({}, 0)
    weights = sum(packed.get(key, size) for key, size in bytes_of.items() if key not in head | added)
    trained = sum(bytes_of[key] for key, tensor in tensors.items() if tensor.requires_grad)
    staying = MemoryEstimate(
        weights=weights,
        adapter=sum(bytes_of[key] for key in added),
        head=sum(bytes_of[key] for key in head),
        gradients=trained,
        optimizer=shape.optimizer_states * trained,
    )
    try:
        plain = _peaks(model, shape, objective, checkpointing=False)
        can_checkpoint = model.supports_gradient_checkpointing
        checkpointed = _peaks(model, shape, objective, checkpointing=True) if can_checkpoint else None
    except (BackboneError, RuntimeError, TypeError) as error:  # what fake tensors answer where values are asked for
        cause = error.__cause__ or error
        because = f"{type(cause).__name__}: {first_line(cause)}"
        return replace(staying, not_estimated=f"the forward does not run without data ({because})")
    num_drafts = getattr(objective.corruptor, "num_drafts", 1)
    return _with_step(staying, plain, checkpointed, largest, model, shape, num_drafts)


def _with_step(
    staying: MemoryEstimate,
    plain: _Peaks,
    checkpointed: _Peaks | None,
    unpacked: int,
    model: PrismModel,
    shape: StepShape,
    num_drafts: int,
) -> MemoryEstimate:
    base = staying.weights + staying.adapter + staying.head + staying.optimizer
    row_size = vocab_size_of(model.get_output_embeddings()) * (shape.autocast or model.dtype).itemsize
    positions = shape.batch_size * shape.length
    logits = plain.of_kind[LOGITS]
    return replace(
        staying,
        activations=plain.of_kind[ACTIVATIONS] + unpacked,
        activations_checkpointed=None if checkpointed is None else checkpointed.of_kind[ACTIVATIONS] + unpacked,
        logits=logits,
        logits_full=round(logits * positions / shape.num_masked) + num_drafts * positions * row_size,
        total=base + max(plain.together + unpacked, staying.gradients),
        total_checkpointed=None if checkpointed is None else base + max(checkpointed.together + unpacked, staying.gradients),
    )


def _added_by_peft(model: PrismModel) -> set[int]:
    if not isinstance(model.backbone, PeftModel):
        return set()
    marks = (str(model.backbone.base_model.prefix), "modules_to_save.", "trainable_tokens_")
    return {id(parameter) for name, parameter in model.backbone.named_parameters() if any(mark in name for mark in marks)}


def _four_bit(model: PrismModel) -> tuple[dict[int, int], int]:
    """Bytes of each weight that NF4 packs, by id; and of the largest such matrix unpacked, which is what computing needs."""
    lm_head = model.get_output_embeddings()
    linear = [module.weight for module in model.backbone.modules() if isinstance(module, nn.Linear) and module is not lm_head]
    frozen = {id(weight): weight for weight in linear if not weight.requires_grad}
    packed = {key: round(weight.numel() * _BYTES_PER_FOUR_BIT_WEIGHT) for key, weight in frozen.items()}
    return packed, max((weight.numel() * weight.element_size() for weight in frozen.values()), default=0)


def _peaks(model: PrismModel, shape: StepShape, objective: Objective, *, checkpointing: bool) -> _Peaks:
    mode, looks = FakeTensorMode(allow_non_fake_inputs=True), _looks_of(objective, shape)
    stand_in = _without_data(model, mode).train()
    with _no_reports(), mode:
        stand_in.config.use_cache = False  # transformers warns of it together with checkpointing
        if checkpointing:
            stand_in.activation_checkpointing_enable()
        else:
            stand_in.activation_checkpointing_disable()
        tracker = LiveBytes(stand_in, model.config.get_text_config(), vocab_size_of(model.get_output_embeddings()))
        with tracker:
            _step(stand_in, shape, looks)
    return _Peaks(tracker.peak, tracker.together)


@contextmanager
def _no_reports() -> Iterator[None]:
    """Fake tensors log a traceback where they fail; the estimate says it in its own words."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _without_data(model: PrismModel, mode: FakeTensorMode) -> PrismModel:
    """A copy of a model whose tensors have shapes only, on the CPU, so that autocast and attention choose as they do there.

    What modules keep beside parameters and buffers, such as LLaDA's cache of rotary tables, is copied as it is.
    """
    model.call_changes.put_back()  # what it keeps of earlier calls has data
    memo: dict[int, Any] = {id(part): part for part in (model.tokenizer, model._snapshot)}
    with mode:
        for parameter in model.parameters():
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(model, memo)


@dataclass(frozen=True)
class _Look:
    """What one look of a step does.

    Attributes:
        terms: The losses that read it.
        rows: Rows of the LM head for each row of the batch; None: no term or draft ever reads any.
        repeats: Times that the batch is looked at, for several drafts.
        draws: How a draft is drawn from its logits: "argmax" or "sample"; "": none is.
        soft_parts: Tokens in each mixture that masks are softened to; 0: none are.
    """

    terms: tuple[Term, ...]
    rows: int | None
    repeats: int = 1
    draws: str = ""
    soft_parts: int = 0

    def run(self, model: PrismModel, shape: StepShape) -> Tensor:
        """Forward and losses, by the terms' own code; their weighted sum."""
        at = _corrupted(shape.batch_size * self.repeats, shape.length, num_masked=shape.length)
        index = None if self.rows is None else torch.zeros(self.rows * len(at.ids), dtype=torch.int64)
        learns = any(term.weight for term in self.terms)
        with torch.autocast("cpu", shape.autocast) if shape.autocast else nullcontext():
            with nullcontext() if learns else torch.no_grad():
                with_quality = any(term.reads_quality for term in self.terms)
                output = model(at.ids, logits_at=index, with_quality=with_quality, soft=self._soft(at.ids))
            if self.draws:
                with torch.no_grad():  # a chunk at a time, where what the last one left is alive while the next is drawn from
                    some = output.logits.detach()[: 2 * next(chunk_slices(output.logits)).stop]
                    draw_rows(some, temperature=float(self.draws == "sample"), uniforms=torch.zeros(len(some)))
            alone = sum(term.rows(at) is not None for term in self.terms) == 1
            looked = Looked(output.logits, index, output.quality_logits, may_overwrite=alone)
            return sum((term.weight * mean_over_rows(term(looked, at)) for term in self.terms), torch.zeros(()))

    def _soft(self, ids: Tensor) -> SoftTokens | None:
        """Mixtures at every position, for which there are most rows."""
        if not self.soft_parts:
            return None
        parts = torch.zeros(ids.numel(), self.soft_parts, dtype=torch.int64)
        return SoftTokens(torch.arange(ids.numel()), parts, parts.float())


def _looks_of(objective: Objective, shape: StepShape) -> tuple[_Look, ...]:
    """The looks of a step: the corruptor is asked about a row of the shape's length, the terms about its masks."""
    length, masked = shape.length, max(1, round(shape.masked_share * shape.length))
    row = torch.zeros(1, length, dtype=torch.int64)
    batch = {"input_ids": row, "draft_ids": row, "attention_mask": row + 1, "maskable": row == 0, "example_id": row[:, 0]}
    batch["known_ids"] = torch.arange(2)
    at, corruptor = _corrupted(1, length, masked), objective.corruptor
    plan = corruptor.plan(batch, at.noise, mask_token_id=1)
    looks, on_noised, on_draft = [], objective.on("noised"), objective.on("draft")
    # a draft reads visible tokens all or none
    writes_all = plan.noised is None or (plan.reads is not None and bool((plan.reads & ~plan.noised.masked).any()))
    if plan.noised is not None and (plan.reads is not None or any(term.weight for term in on_noised)):
        rows = _num_rows(on_noised, at)
        if plan.reads is not None:
            share = plan.reads.sum().item() / max(plan.noised.masked.sum().item(), 1)
            rows = length if writes_all else min(masked, (rows or 0) + max(1, round(share * masked)))
        looks.append(_Look(on_noised, rows, draws="" if plan.reads is None else _how_drawn(corruptor)))
    repeats = getattr(corruptor, "num_drafts", 1)
    if on_draft and any(rule.num_looks > 1 for rule in getattr(corruptor, "drafts", ())):  # one of them stands for all
        looks.append(_Look((), masked, repeats, draws=_how_drawn(corruptor)))
    if on_draft:
        num_wrong = length if writes_all or plan.reads is None else masked
        none, all_of_them = (_num_rows(on_draft, _corrupted(1, length, left, num_wrong)) for left in (0, masked))
        rows = None if none is None or all_of_them is None else max(none, all_of_them)
        soft_parts = 1 + getattr(corruptor, "top_k", 1) if getattr(corruptor, "soft_inputs", False) else 0
        looks.append(_Look(on_draft, rows, repeats, soft_parts=soft_parts))
    return tuple(looks)


def _how_drawn(corruptor: Corruptor) -> str:
    """Sampling takes more memory than the most probable token, and softening masks about as much as sampling."""
    rules = getattr(corruptor, "drafts", (corruptor,))
    is_soft = getattr(corruptor, "soft_inputs", False)
    return "sample" if is_soft or any(getattr(rule, "tokens", "argmax") != "argmax" for rule in rules) else "argmax"


def _num_rows(terms: tuple[Term, ...], at: Corrupted) -> int | None:
    wanted = [mask for mask in (term.rows(at) for term in terms) if mask is not None]
    return int(torch.stack(wanted).any(0).sum()) if wanted else None


def _corrupted(batch: int, length: int, num_masked: int, num_wrong: int = 0) -> Corrupted:
    """Rows whose first positions are masked, and wrong tokens stand at the first others; without data in a fake mode."""
    clean_ids, place = torch.zeros(batch, length, dtype=torch.int64), torch.arange(length).expand(batch, -1)
    masked = place < num_masked
    everywhere = torch.ones_like(masked)
    return Corrupted(
        ids=(place < num_wrong).long(), clean_ids=clean_ids, attention_mask=everywhere.long(), maskable=everywhere,
        masked=masked, masked_before=masked, drafted=everywhere, t=torch.ones(batch),
        noise=lambda name, count=None: uniforms(0, 0, torch.arange(batch), name, length if count is None else count),
    )  # fmt: skip


def _step(model: PrismModel, shape: StepShape, looks: tuple[_Look, ...]) -> None:
    """One micro-batch forward and backward, in the order of `Objective.step`."""
    loss = torch.zeros(())
    for look in looks:
        if shape.looks_apart and loss.requires_grad:
            loss.backward()
            loss = loss.detach()
        loss = loss + look.run(model, shape)
    loss.backward()
