"""HeadedBackbone: a backbone and a quality head behind one forward. All that looks, saving and probes know of a model."""

from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prism_plugin.backbones.call import call_arguments, one_sentence, pairs_of, require_visible_token
from prism_plugin.backbones.call_changes import CallChanges
from prism_plugin.backbones.key_values import ONE_COMPILED_CALL, Window, attending
from prism_plugin.backbones.modes import stay_in_evaluation_mode
from prism_plugin.backbones.probe import first_position, takes_positions
from prism_plugin.backbones.spec import BackboneSpec, vocab_size_of
from prism_plugin.backbones.turning import RowTurning
from prism_plugin.core.history import History
from prism_plugin.core.soft import SoftTokens, embedded
from prism_plugin.errors import BackboneError, ConfigurationError, DetachedError
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.head import QualityHead
from prism_plugin.modeling.lm_head import gathered_rows, install_row_gathering, to_row_index
from prism_plugin.modeling.output import PrismModelOutput
from prism_plugin.modeling.passthrough import BackbonePassthrough
from prism_plugin.modeling.shadowed import as_attended, shadowed
from prism_plugin.modeling.taps import in_order, install_taps, kept_taps
from prism_plugin.modeling.unknown_ids import edit_ids, unknown_ids
from prism_plugin.modeling.windowed import windowed_arguments
from prism_plugin.types import FlatIndex, TokenIds, TokenMask


class HeadedBackbone(BackbonePassthrough):
    """A masked diffusion backbone with a per-token quality head (PRISM, arXiv 2510.01384), without attaching and the disk.

    Attributes:
        backbone: The transformers model, inside a PeftModel when there is an adapter.
        quality_head: Final hidden state -> logit that the token is right.
        spec: What is known about the backbone's family.
        prism_config: Settings of the head, with everything filled in.
        mask_token_id: Id of the mask token, in [0, vocabulary).
        tokenizer: The tokenizer given, or what an export kept of it, or None.
        has_merged_weights: The adapter was added to the backbone's weights.
        loaded_from: Folder that the head was loaded from, if it was.
        replaced_rows: Rows of new tokens that stood in the backbone before those of a folder were put there.
        call_changes: What the backbone changed about itself when it was called.
    """

    def __init__(
        self,
        backbone: nn.Module,
        quality_head: QualityHead,
        *,
        spec: BackboneSpec,
        prism_config: PrismConfig,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.quality_head = quality_head
        self.spec = spec
        self.prism_config = prism_config
        self.tokenizer = tokenizer
        self.has_merged_weights = False
        self.loaded_from: Path | None = None
        self._unknown: tuple[Any, tuple[int, ...]] = (None, ())  # of which tokenizer, and its size
        self.replaced_rows: dict[str, Tensor] = {}
        self.call_changes = CallChanges(self.plain_backbone)
        self._hooks = self._hook_backbone()
        self.train(self.plain_backbone.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "backbone" in self._modules or "quality_head" not in self._modules:
                raise
        raise DetachedError(
            f"This {type(self).__name__} gave its backbone back by `detach()`, so it can no longer be used; attach a head to "
            "that backbone again, or load what was saved before."
        )

    @property
    def mask_token_id(self) -> int:
        """Id of the mask token."""
        return self.prism_config.mask_token_id  # type: ignore[return-value]  # filled in when the head was attached

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        """Ids that the LM head can write and that are never drawn, in order; the mask token is none of them.

        Most are what pads a vocabulary to a round number, which the tokenizer does not have; without one none is known. The
        others are a family's `edit_tokens`.
        """
        vocab_size = vocab_size_of(self.get_output_embeddings())
        state = (self.tokenizer, len(self.tokenizer) if isinstance(self.tokenizer, Sized) else 0, vocab_size)
        if self._unknown[0] != state:
            edits = edit_ids(self.spec.edit_tokens, self.config, self.tokenizer)
            self._unknown = state, tuple(sorted({*unknown_ids(self.tokenizer, vocab_size), *edits}))
        return tuple(one for one in self._unknown[1] if one != self.mask_token_id)

    @property
    def judges_masks(self) -> bool:
        """The head was trained to say of a mask how likely the model is to be right there (`where: all` of a quality term)."""
        objective = self.prism_config.objective or {}
        terms = objective.get("terms") or [{"name": "quality", "where": objective.get("quality_where")}]
        return any(term.get("name") == "quality" and term.get("where") == "all" for term in terms)

    @property
    def holds_own_backbone(self) -> bool:
        """The backbone's weights are not those that it was loaded with, so they are saved with the head."""
        return self.prism_config.train_backbone or self.has_merged_weights

    @property
    def has_new_tokens(self) -> bool:
        """The backbone got tokens after it was loaded, whose rows are saved with the head."""
        return self.prism_config.backbone_resized_from is not None and not self.holds_own_backbone

    @cached_property
    def _first_position(self) -> int | None:
        """Position of a row's first token; None where the backbone takes none. Looked up once for all looks."""
        return first_position(self.plain_backbone) if takes_positions(self.plain_backbone) else None

    @property
    def _final_hidden_module(self) -> nn.Module:
        return self.plain_backbone.get_submodule(self.spec.final_hidden_at)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything, as for any module; a family that keeps evaluation mode stays in it, but for dropout."""
        super().train(mode)
        if mode and self.spec.keeps_evaluation_mode:
            stay_in_evaluation_mode(self.plain_backbone)
        return self

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        *,
        logits_at: TokenMask | FlatIndex | None = None,
        with_quality: bool = True,
        output_hidden_states: bool = False,
        history: History | None = None,
        soft: SoftTokens | None = None,
        shadows: Tensor | None = None,
        window: Window | None = None,
    ) -> PrismModelOutput:
        """Look at a canvas once. No vocabulary row is computed that was not asked for.

        Args:
            input_ids: Tokens; the mask token where nothing is revealed.
            attention_mask: True (or 1) where there is a token, False (or 0) at padding on either side, which changes nothing
                for the row; None: no padding. 2 in the block that is written, of a family with `causal_context`. A family
                that takes no mask is called without it.
            logits_at: Positions whose logits are wanted, as a bool mask [batch, length] or an int64 index [rows] into
                the flattened canvas (an index spares the device a synchronisation); None: none.
            with_quality: Compute the quality of every position. It means something where a token stands, nothing at masks.
            output_hidden_states: Return the final hidden states too.
            history: What each token has been through, for a head that reads it (`head_history`); None: unknown.
            soft: Mixtures of embeddings that the backbone sees at some positions instead of theirs, in a family that takes
                `inputs_embeds` (`modeling.soft_inputs.require_soft_inputs` tells); None: none.
            shadows: Columns of each row that get a mask of their own behind it, [batch, shadows], -1 for none; each stands at
                its column's position and sees all but its token, and no token sees it. `logits_at` is then an index into the
                rows with their shadows; quality and hidden states are the tokens' alone. Rows begin in column 0, in a family
                that takes positions and a mask of pairs (`modeling.shadows.require_shadows` tells). None: none.
            window: The positions that are computed; all see the kept keys and values of the others. What `logits_at` wants, or
                the position before it in a next-token family, must be among them; the quality is NaN elsewhere, and hidden
                states are the window's. Rows begin in column 0, in a family that computes a part as it computes the whole
                (`modeling.windows.require_windows` tells). None: all, and nothing is kept.

        Raises:
            ConfigurationError: If `input_ids` is no tensor, `logits_at` is neither a mask of its shape nor an int64 index, a
                row is all masks and the family has no logits for that, or the head does not read the history that is given.
            BackboneError: If the backbone's forward failed, never reached the module named by the spec, or gave no logits.
        """
        if not isinstance(input_ids, Tensor):
            raise ConfigurationError(f"`input_ids` must be a tensor of token ids, found {type(input_ids).__name__}; give that.")
        if history is not None and not self.quality_head.reads_history:
            raise ConfigurationError("This head reads no history (`head_history` is empty), but one is given; leave it out.")
        turning = None
        if attention_mask is not None and self.spec.attention_mask != "none" and shadows is None and window is None:
            turning = RowTurning.of(attention_mask)
        row_index = to_row_index(logits_at, input_ids, alignment=self.spec.logits_alignment, turning=turning)
        if turning is not None:
            input_ids, attention_mask = map(turning.turn, (input_ids, attention_mask))  # type: ignore[arg-type]  # both there
            history = None if history is None else history.moved(turning.turn)
            soft = None if soft is None else replace(soft, index=turning.index(soft.index))
        require_visible_token(self.spec, input_ids, attention_mask, self.mask_token_id)
        num_taps = len(self.prism_config.head_taps or ()) if with_quality else 0
        call = _Call(input_ids, attention_mask, soft, shadows, window)
        with kept_taps(num_taps) as kept:
            logits, hidden_states = self._called(call, row_index)
        quality = (
            self._judged(call, hidden_states, in_order(kept, num_taps, self.plain_backbone), history) if with_quality else None
        )
        returned = hidden_states[:, : input_ids.shape[1]] if output_hidden_states else None
        if turning is not None:
            quality, returned = (one if one is None else turning.back(one) for one in (quality, returned))
        return PrismModelOutput(None if logits_at is None else logits.squeeze(0), quality, returned)

    def _called(self, asked: "_Call", row_index: FlatIndex) -> tuple[Tensor, Tensor]:
        """One call of the backbone: the logits of some rows, and the final hidden states."""
        input_ids, mask, window = asked.input_ids, asked.attention_mask, asked.window
        attention: AbstractContextManager[Any]
        kind = (input_ids.shape[1], mask is None, self.training, torch.is_grad_enabled())
        row_index = row_index if window is None else window.rows_of(row_index)
        mode, every = None if window is None else window.compile_mode, None
        if window is None:
            arguments, attention = call_arguments(self.spec, input_ids, mask), nullcontext()
        else:
            arguments, may_see = windowed_arguments(self.spec, window, input_ids, mask, self._first_position)
            attention = attending(self.plain_backbone, self.spec, window, may_see)
        if mode is not None:  # graphs are of one size: all rows of the window, of which some are taken
            every = torch.arange(arguments["input_ids"].numel(), device=input_ids.device)
        if asked.shadows is not None:
            arguments |= shadowed(self.spec, input_ids, mask, asked.shadows, self.mask_token_id, self._first_position or 0)
            arguments["attention_mask"] = as_attended(arguments["attention_mask"], self.plain_backbone)
        if asked.soft is not None:
            arguments["inputs_embeds"] = embedded(self.get_input_embeddings(), arguments.pop("input_ids"), asked.soft)
        rows = row_index if every is None else every
        with (
            nullcontext() if mode is None else ONE_COMPILED_CALL,
            self.call_changes.watched(kind),
            gathered_rows(self._final_hidden_module, rows, compiled=mode is not None) as request,
            one_sentence(self.plain_backbone),
            attention,
        ):
            call = _call_backbone if mode is None else _compiled(mode)
            logits = getattr(call(self.backbone, arguments), "logits", None)
        if request.hidden_states is None or logits is None:
            raise BackboneError(
                f"The forward of {type(self.plain_backbone).__name__} must pass through `{self.spec.final_hidden_at}` and "
                f"return `logits`, but it did not; load the model with `{self.spec.auto_class}`, or correct its BackboneSpec."
            )
        return logits if every is None else logits.index_select(1, row_index), request.hidden_states

    def _judged(self, call: "_Call", hidden_states: Tensor, taps: Sequence[Tensor] | None, history: History | None) -> Tensor:
        """The quality's logit at every position, NaN where it was not computed."""
        window, num_tokens = call.window, call.input_ids.shape[1]
        may_see = self._may_see(call.input_ids, call.attention_mask) if self.quality_head.reads_neighbours else None
        if call.shadows is not None and taps is not None:
            taps = [one[:, :num_tokens] for one in taps]
        if window is not None and self.quality_head.reads_neighbours:
            hidden_states = window.kept_hidden_states(hidden_states)
        elif window is not None and history is not None:
            history = history.moved(window.gathered)
        # The head is where the LM head is, which `device_map` may have put elsewhere; accelerate brings the logits back.
        quality = self.quality_head(hidden_states[:, :num_tokens], may_see=may_see, taps=taps, history=history)
        quality = quality.to(call.input_ids.device)
        if window is None:
            return quality
        return window.laid(window.gathered(quality) if self.quality_head.reads_neighbours else quality)

    def _hook_backbone(self) -> list[RemovableHandle]:
        """Put hooks on the backbone as it is now."""
        taps = self.prism_config.head_taps
        on_layers = [] if taps is None else install_taps(self.plain_backbone, self.spec, taps)
        return [install_row_gathering(self._final_hidden_module), *on_layers]

    def _may_see(self, input_ids: TokenIds, attention_mask: TokenMask | None) -> Tensor | None:
        """Where a head that looks at neighbours may look, as the family's own attention does: [batch, length or 1, length]."""
        if self.spec.attention_mask == "none":
            return None
        if self.spec.attention_block_length is None:
            return None if attention_mask is None else attention_mask.bool().unsqueeze(1)
        return pairs_of(self.spec, torch.ones_like(input_ids) if attention_mask is None else attention_mask).squeeze(1)

    def release_backbone(self) -> None:
        """Take the hooks off the backbone, and put back what calls changed on it. `forward` fails from then on."""
        for hook in self._hooks:
            hook.remove()
        self.call_changes.put_back()


@dataclass(frozen=True)
class _Call:
    """What the backbone is called with; see `HeadedBackbone.forward`."""

    input_ids: TokenIds
    attention_mask: TokenMask | None
    soft: SoftTokens | None
    shadows: Tensor | None
    window: Window | None


def _call_backbone(backbone: nn.Module, arguments: dict[str, Any]) -> Any:
    return backbone(**arguments)


@cache
def _compiled(mode: str) -> Callable[[nn.Module, dict[str, Any]], Any]:
    """The call through `torch.compile`, which compiles anew for each backbone."""
    return torch.compile(_call_backbone, mode=mode)
