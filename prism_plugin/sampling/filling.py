"""`MaskFiller`: settings and a model, and the two ways to ask it for tokens by their ids."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.backbones.probe import max_row_length
from prism_plugin.backbones.spec import vocab_size_of
from prism_plugin.decoding.chance import GeneratorChance, Generators, require_generators
from prism_plugin.decoding.decide import name_of, needs_of
from prism_plugin.decoding.features import get_features
from prism_plugin.decoding.looks import PlainLook
from prism_plugin.decoding.loop import Loop, Step
from prism_plugin.decoding.state import State
from prism_plugin.errors import ConfigurationError, MissingQualityError, SamplingError
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.sampling.canvas import LaidCanvas, lay_canvas, read_request, require_min_new_tokens, require_new_tokens
from prism_plugin.sampling.particles import ParticleOutput, Watch
from prism_plugin.sampling.records import StepRecord, record_of
from prism_plugin.sampling.settings import SamplerSettings
from prism_plugin.sampling.streaming import TokenStream
from prism_plugin.types import PerRow, PerToken, TokenIds, TokenMask


@dataclass(frozen=True)
class SamplerOutput:
    """What a request gave, on the model's device.

    Attributes:
        sequences: The prompt as it was passed, padding included, then `max_new_tokens` tokens; for `infill`, the input with
            its masks filled.
        num_forward_passes: Calls of the network for each returned sequence, [batch]; a look may take several. Those of all runs
            of a trajectory count.
        num_positions: Positions computed in them, [batch]: the row's own at each call, more where a look has shadows, and fewer
            where it computes against a cache.
        num_remasked: Times that a position of the row was masked again, [batch].
        quality: The last quality, in [0, 1], that the model gave to each generated token while it stood there. NaN where
            none was seen: the prompt, padding, and tokens filled at the row's last look. None when no rule needs quality.
        trace: One `StepRecord` per look of the batch; None unless asked for. With a trajectory, row `i * n + k` of a record is
            particle `k` of the `n` of row `i`.
        particles: What the runs of a trajectory came to; None without one.
    """

    sequences: TokenIds
    num_forward_passes: PerRow
    num_positions: PerRow
    num_remasked: PerRow
    quality: PerToken | None
    trace: tuple[StepRecord, ...] | None
    particles: ParticleOutput | None = None


@dataclass(frozen=True, eq=False)
class MaskFiller(SamplerSettings):
    """What a sampler does with token ids; `RemaskingSampler` adds texts, presets and the disk, and an exported one is no more.

    Attributes:
        model: The model that is asked; it is in eval mode while sampling, and as it was afterwards.

    Raises:
        ConfigurationError: If a setting is out of range, or two settings cannot go together.
        MissingQualityError: If a rule needs the quality head and the model has none.
        UnknownNameError: If a rule needs a feature that is not registered.
    """

    model: HeadedBackbone = field(kw_only=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, HeadedBackbone):
            raise ConfigurationError(
                f"`model` must be a PrismModel, got {type(self.model).__name__}; wrap it with `attach_quality_head(...)`."
            )
        vocab_size = self._vocab_size
        for rule in self.plug_ins:
            reads = [feature.reads for feature in get_features(needs_of(rule), name_of(rule)).values()]
            elsewhere = "quality" in getattr(self.look, "gives", ())
            if any("quality" in one for one in reads) and self.model.quality_head is None and not elsewhere:
                raise MissingQualityError(
                    f"{type(rule).__name__} needs the quality head, but the model has none; attach one with "
                    "`attach_quality_head(...)`, or choose rules without it."
                )
            may_unmask = getattr(rule, "may_unmask", None)
            if may_unmask is not None:
                may_unmask(self.model)
        if self.eos_token_id is not None and self.eos_token_id >= vocab_size:
            raise ConfigurationError(
                f"`eos_token_id` must be in the model's vocabulary of {vocab_size} tokens, got {self.eos_token_id}."
            )
        if self.eos_token_id == self.model.mask_token_id:
            raise ConfigurationError(f"`eos_token_id` must not be the mask token, got {self.eos_token_id} for both.")
        if self.suppress_tokens is not None and max(self.suppress_tokens) >= self._vocab_size:
            raise ConfigurationError(
                f"`suppress_tokens` must be in the model's vocabulary of {self._vocab_size} tokens, got "
                f"{max(self.suppress_tokens)}."
            )
        self._check_blocks()
        may_look_at = getattr(self.look, "may_look_at", None)
        if may_look_at is not None:
            may_look_at(self.model)
        if self.trajectory is not None:
            self.trajectory.may_fill(self)
        if len(self._forbidden_ids) >= self._vocab_size:
            raise ConfigurationError("`suppress_tokens` must leave a token to draw, but holds all of them; leave some out.")

    def _check_blocks(self) -> None:
        """Refuse what would write into a block of the attention before those in front of it are full."""
        spec = self.model.spec
        by_blocks = spec.attention_block_length
        if by_blocks is None:
            return
        if spec.causal_context and not getattr(self.look or PlainLook(), "tells_block", False):
            raise ConfigurationError(
                f"{name_of(self.look)} does not tell a model which block is written, but {spec.model_type} sees what stands "
                "before that block causally; choose a plain look."
            )
        if spec.causal_context and self.trajectory is not None:
            raise ConfigurationError(
                f"{name_of(self.trajectory)} rates whole canvases, but {spec.model_type} sees what stands before the written "
                "block causally, so a look tells of one block; leave `trajectory` out."
            )
        if self.block_length is not None and by_blocks % self.block_length:
            raise ConfigurationError(
                f"`block_length` must divide {by_blocks}, since {spec.model_type} attends by blocks of so many positions and "
                f"has not learnt to write in one while another before it holds masks, got {self.block_length}; choose a "
                "divisor, or leave it out."
            )
        if self.decide.reach == "begun":
            reaching = self.editing if self.decider is None else self.decider
            raise ConfigurationError(
                f"{name_of(reaching)} may change tokens of blocks that later ones have read, but {spec.model_type} "
                "attends by blocks and has not learnt to write behind masks; choose what keeps to the active block."
            )

    def sample(
        self,
        input_ids: TokenIds | BatchEncoding,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        min_new_tokens: int | None = None,
        generator: Generators = None,
        on_step: Callable[[StepRecord], None] | None = None,
        return_trace: bool = False,
        streamer: Any = None,
    ) -> SamplerOutput:
        """Continue prompts.

        Args:
            input_ids: Prompts, padded on the left or on the right; a row may be all padding. Or what a tokenizer gives with
                `return_tensors="pt"`, which brings its mask.
            attention_mask: 1 for the prompts' tokens, 0 for padding; None when there is no padding.
            max_new_tokens: Tokens to generate after each prompt, >= 1.
            min_new_tokens: So many of them come before an EOS at least: none is drawn there. The EOS is the sampler's
                `eos_token_id`, and the tokenizer's.
            generator: One for the batch; one per row, so that a row's tokens do not depend on the others; or None.
            on_step: Called with the record of each look.
            return_trace: Keep the records in the output.
            streamer: Follows one row as it is filled, such as transformers' `TextDiffusionStreamer`; see `TokenStream`.

        Raises:
            SamplingError: If the request cannot be met, before any forward; or a rule breaks its contract.
        """
        require_new_tokens(max_new_tokens, min_new_tokens)
        input_ids, present = read_request(input_ids, attention_mask, self._vocab_size)
        if (input_ids == self.model.mask_token_id).any():
            raise SamplingError(
                f"a prompt must not contain the mask token (id {self.model.mask_token_id}), found it in `input_ids`; "
                "use `infill` to fill masks in place."
            )
        new = torch.full((input_ids.shape[0], max_new_tokens), self.model.mask_token_id, device=input_ids.device)
        request = torch.cat((input_ids, new), dim=1)
        editable = torch.cat((torch.zeros_like(present), torch.ones_like(new, dtype=torch.bool)), dim=1)
        present = torch.cat((present, torch.ones_like(new, dtype=torch.bool)), dim=1)
        canvas = self._lay(request, present, editable, min_new_tokens)
        return self._fill(canvas, generator, on_step, return_trace, streamer)

    def infill(
        self,
        input_ids: TokenIds | BatchEncoding,
        attention_mask: Tensor | None = None,
        *,
        min_new_tokens: int | None = None,
        generator: Generators = None,
        on_step: Callable[[StepRecord], None] | None = None,
        return_trace: bool = False,
        streamer: Any = None,
    ) -> SamplerOutput:
        """Fill the mask tokens that are in place; all other tokens stay.

        With `block_length`, blocks are counted from a row's first mask to its last; from its first token where the family
        attends by blocks. A row without masks is returned as it is and takes part in no forward.

        Args:
            input_ids: Rows with mask tokens anywhere but in padding; or what a tokenizer gives, as for `sample`.
            attention_mask: As for `sample`.
            min_new_tokens: As for `sample`: no EOS is drawn at so many of the first masks of each row.
            generator: As for `sample`.
            on_step: As for `sample`.
            return_trace: As for `sample`.
            streamer: As for `sample`.

        Raises:
            SamplingError: If the request cannot be met, before any forward; or a rule breaks its contract.
        """
        canvas = self.lay_infill(input_ids, attention_mask, min_new_tokens=min_new_tokens)
        return self._fill(canvas, generator, on_step, return_trace, streamer)

    def lay_infill(
        self, input_ids: TokenIds | BatchEncoding, attention_mask: Tensor | None = None, *, min_new_tokens: int | None = None
    ) -> LaidCanvas:
        """Lay out what `infill` would fill, and check that it can be filled. No forward is made.

        Raises:
            SamplingError: If the request cannot be met.
        """
        require_min_new_tokens(min_new_tokens)
        input_ids, present = read_request(input_ids, attention_mask, self._vocab_size)
        editable = input_ids == self.model.mask_token_id
        if not editable.any():
            raise SamplingError(
                f"`input_ids` must hold the mask token (id {self.model.mask_token_id}) where something is to be filled, found "
                "none in any row; use `sample` to continue prompts."
            )
        if (editable & ~present).any():
            raise SamplingError(
                "masks must be where `attention_mask` is 1, found the mask token in padding; pad with another token, or "
                "include these positions."
            )
        return self._lay(input_ids, present, editable, min_new_tokens)

    def loop(self, canvas: LaidCanvas, generator: Generators = None, *, watched: bool = True) -> Loop:
        """The loop of one run, whatever the trajectory, for whoever steps it: `begin`, `advance`, `finish`.

        Args:
            canvas: What is to be filled.
            generator: As for `sample`.
            watched: Draw a token at every masked position, not only where one is written.
        """
        decider = self.decide
        lengths = canvas.lengths.tolist()
        return Loop(
            model=self.model,
            decider=decider,
            schedule=self.schedule,
            num_steps=self.num_steps,
            mask_token_id=self.model.mask_token_id,
            vocab_size=self._vocab_size,
            forbidden_ids=self._forbidden_ids,
            end_ids=self._end_ids,
            chance=GeneratorChance(generator, lengths, with_uniforms=self.temperature > 0, with_noise="noise" in self.reads),
            temperature=self.temperature,
            top_p=self.top_p,
            eos_token_id=self.eos_token_id,
            fill_id=self.fill_id,
            safety=self.safety,
            look=self.look or PlainLook(),
            padded=min(lengths) < canvas.tokens.shape[1],
            draws_all=watched,
            needs=frozenset() if self.trajectory is None else self.trajectory.needs,
        )

    @property
    def _vocab_size(self) -> int:
        return vocab_size_of(self.model.get_output_embeddings())

    @property
    def _forbidden_ids(self) -> tuple[int, ...]:
        pad = None if self.model.tokenizer is None else self.model.tokenizer.pad_token_id
        unknown = set(self.model.unknown_ids) - {self.eos_token_id}
        forbidden = unknown | {self.model.mask_token_id, *(self.suppress_tokens or ())}
        return tuple(sorted(forbidden | ({pad} if pad is not None and pad not in self._end_ids else set())))

    @property
    def _end_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        of_tokenizer = None if self.model.tokenizer is None else self.model.tokenizer.eos_token_id
        return tuple(sorted({one for one in (self.eos_token_id, of_tokenizer) if one is not None}))

    @property
    def fill_id(self) -> int:
        """What stands after an EOS and in our own padding: the padding token where there is one, else the EOS token."""
        sources = (self.model.tokenizer, self.model.config)
        known = [getattr(source, "pad_token_id", None) for source in sources] + [self.eos_token_id]
        return next(
            (fill for fill in known if fill not in (None, self.model.mask_token_id)), int(self.model.mask_token_id == 0)
        )

    def _lay(self, request: TokenIds, present: TokenMask, editable: TokenMask, min_new_tokens: int | None) -> LaidCanvas:
        if min_new_tokens is not None and not self._end_ids:
            raise SamplingError(
                "`min_new_tokens` holds the EOS token back, but neither the sampler nor a tokenizer says which that is; set "
                "`eos_token_id`, or leave it out."
            )
        device = self.model.device
        request, present, editable = (tensor.to(device) for tensor in (request.long(), present, editable))
        if self.model.spec.attention_mask == "none" and not present.all():
            raise SamplingError(
                f"{self.model.spec.model_type} takes no attention mask, so the rows of a batch must be equally long, found "
                "padding; sample rows of one length together."
            )
        by_blocks = self.model.spec.attention_block_length
        block_length = self.block_length or by_blocks
        options: dict[str, Any] = {"fill_id": self.fill_id, "from_first_token": by_blocks is not None}
        canvas = lay_canvas(request, present, editable, block_length, **options)
        if min_new_tokens is not None:
            first = canvas.editable & (canvas.editable.cumsum(-1) <= min_new_tokens)
            canvas = replace(canvas, too_early=first)
        _check_length(self.model, canvas.tokens.shape[1])
        most_blocks = int(canvas.num_blocks.max())
        if self.num_steps < most_blocks:
            whose = f"`block_length` {block_length}" if self.block_length else f"{block_length}, by which the family attends,"
            raise SamplingError(
                f"`num_steps` must be at least the number of blocks, {most_blocks} of {whose} here, got {self.num_steps}; "
                f"raise `num_steps`{' or `block_length`' * (block_length != by_blocks)}."
            )
        return canvas

    def _fill(
        self,
        canvas: LaidCanvas,
        generator: Generators,
        on_step: Callable[[StepRecord], None] | None,
        return_trace: bool,
        streamer: Any,
    ) -> SamplerOutput:
        require_generators(generator, canvas.request.shape[0])
        if streamer is not None and self.trajectory is not None:
            raise SamplingError(
                f"a streamer follows one run as it is filled, but {type(self.trajectory).__name__} chooses among several when "
                "they are over; leave out the streamer, or `trajectory`."
            )
        stream = None if streamer is None else TokenStream(streamer, canvas, reaches_back=self.decide.reach == "begun")
        trace: list[StepRecord] = []
        listeners = [trace.append] * return_trace + ([] if on_step is None else [on_step])
        listeners += [] if stream is None else [stream.on_record]

        def watch(canvas: LaidCanvas, before: State, step: Step) -> None:
            record = record_of(next(number), canvas, before, step)
            for listener in listeners:
                listener(record)

        number = itertools.count()
        with evaluation_mode(self.model):
            done, particles = (self.trajectory or _one_run)(self, canvas, generator, watch if listeners else None)
        sequences = canvas.restore(done.tokens, canvas.request)
        if stream is not None:
            stream.close(sequences[0])
        return SamplerOutput(
            sequences=sequences,
            num_forward_passes=done.num_forward_passes,
            num_positions=done.num_positions,
            num_remasked=done.num_remasked,
            quality=canvas.restore(done.quality, float("nan")) if self.reads_head else None,
            trace=tuple(trace) if return_trace else None,
            particles=particles,
        )


def _one_run(sampler: MaskFiller, canvas: LaidCanvas, generator: Generators, watch: Watch | None) -> tuple[State, None]:
    """Fill a canvas once."""
    loop = sampler.loop(canvas, generator, watched=watch is not None)
    state = loop.begin(canvas)
    while (step := loop.advance(state)) is not None:
        if watch is not None:
            watch(canvas, state, step)
        state = step.state
    return loop.finish(state), None


def _check_length(model: HeadedBackbone, length: int) -> None:
    limit = max_row_length(model.plain_backbone)
    if limit is not None and length > limit:
        raise SamplingError(
            f"a row must have at most {limit} tokens, as many as {model.spec.model_type} has positions for, found "
            f"{length} with those to generate; shorten the text or `max_new_tokens`."
        )
