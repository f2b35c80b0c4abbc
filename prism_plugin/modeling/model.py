"""PrismModel: what is done with a backbone and its head, and the only code that changes a user's model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from prism_plugin.backbones import (
    BackboneSpec,
    DeviceMap,
    device_of,
    evaluation_mode,
    get_backbone_spec,
    lm_head_of,
    require_ok,
    require_placement,
)
from prism_plugin.backbones.call import WRITTEN, attention_blocks
from prism_plugin.core.finite import require_numbers
from prism_plugin.errors import AdapterConfigError, ConfigurationError
from prism_plugin.modeling.attached_settings import apply_settings
from prism_plugin.modeling.config import PrismConfig
from prism_plugin.modeling.filling import filled_in, require_bare
from prism_plugin.modeling.given_settings import as_adapter, as_prism_config
from prism_plugin.modeling.head import QualityHead
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.hub import push_model
from prism_plugin.modeling.model_card import CardFacts, Figure, read_facts
from prism_plugin.modeling.new_tokens import put_rows
from prism_plugin.modeling.persistence import load_weights
from prism_plugin.modeling.places import save_into
from prism_plugin.modeling.probing import probe_model
from prism_plugin.modeling.scored import ScoredTokens, with_tokens
from prism_plugin.modeling.stored_model import load_parts, read_stored, refused_adapter
from prism_plugin.modeling.texts import rows_to_score
from prism_plugin.modeling.trial_save import require_saveable
from prism_plugin.modeling.wrapping import BackboneSnapshot, require_trainable_weights, wrap_with_adapter
from prism_plugin.types import PerToken, TokenIds, TokenMask


class PrismModel(HeadedBackbone):
    """A masked diffusion backbone with a per-token quality head: rated, saved, shared, and given back as it was.

    Made by `attach_quality_head` or `PrismModel.from_pretrained`. What it holds besides is told at `HeadedBackbone`.

    Attributes:
        card_facts: What was measured, for the model card; None: nothing.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | PeftModel,
        quality_head: QualityHead,
        *,
        spec: BackboneSpec,
        prism_config: PrismConfig,
        snapshot: BackboneSnapshot,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__(backbone, quality_head, spec=spec, prism_config=prism_config, tokenizer=tokenizer)
        self.card_facts: CardFacts | None = None
        self._snapshot = snapshot

    @overload
    def score(
        self,
        texts_or_ids: Sequence[str] | TokenIds | BatchEncoding,
        attention_mask: TokenMask | None = None,
        *,
        batch_size: int = 32,
        return_tokens: Literal[False] = False,
    ) -> PerToken: ...

    @overload
    def score(
        self,
        texts_or_ids: Sequence[str] | TokenIds | BatchEncoding,
        attention_mask: TokenMask | None = None,
        *,
        batch_size: int = 32,
        return_tokens: Literal[True],
    ) -> ScoredTokens: ...

    @torch.no_grad()
    def score(
        self,
        texts_or_ids: Sequence[str] | TokenIds | BatchEncoding,
        attention_mask: TokenMask | None = None,
        *,
        batch_size: int = 32,
        return_tokens: bool = False,
    ) -> PerToken | ScoredTokens:
        """Rate every token: the probability that it is right, given the rest. The model's mode is left as it was.

        Args:
            texts_or_ids: Texts, which are tokenised by the model's tokenizer and padded on its side; tokens, [batch, length];
                or what a tokenizer gives with `return_tensors="pt"`, which brings its mask. On which side a row is padded,
                and how long the others are, changes nothing for it but rounding.
            attention_mask: True where there is a token; only with tokens.
            batch_size: Rows per forward pass, >= 1.
            return_tokens: Give the quality with the tokens, their names and their places in the texts.

        Returns:
            Quality in [0, 1], float32; 0 at padding. With `return_tokens`, `ScoredTokens`.

        Raises:
            ConfigurationError: If there is nothing to rate, or something else than these; texts come without a tokenizer, or
                with a mask; `batch_size` is below 1, ids are outside the vocabulary, a row is longer than there are positions,
                or there is padding and the family takes no attention mask.
            NonFiniteError: If the quality of a token is no number.
        """
        if batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {batch_size}.")
        input_ids, attention_mask = rows_to_score(self, texts_or_ids, attention_mask)
        if self.spec.attention_mask == "none" and attention_mask is not None and not attention_mask.all():
            raise ConfigurationError(
                f"{self.spec.model_type} takes no attention mask, so the rows of a batch must be equally long, found padding; "
                "score rows of one length together."
            )
        batches = []
        with evaluation_mode(self):
            for start in range(0, len(input_ids), batch_size):
                rows = slice(start, start + batch_size)
                mask = None if attention_mask is None else attention_mask[rows].to(self.device)
                quality = self._rated(input_ids[rows].to(self.device), mask)
                batches.append(quality if mask is None else quality.where(mask, 0.0))
        quality = require_numbers(torch.cat(batches), "quality")
        if not return_tokens:
            return quality
        texts = None if isinstance(texts_or_ids, Tensor | BatchEncoding) else texts_or_ids
        return with_tokens(self.tokenizer, texts, input_ids, attention_mask, quality)

    def _rated(self, input_ids: TokenIds, attention_mask: TokenMask | None) -> PerToken:
        """The quality of every token by one look; with `causal_context` by one for each block, in which that is written."""
        if not self.spec.causal_context:
            return self(input_ids, attention_mask).quality_logits.sigmoid()
        present = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        block = attention_blocks(present.bool(), self.spec.attention_block_length)  # type: ignore[arg-type]  # it has blocks
        quality = torch.zeros(input_ids.shape, device=input_ids.device)
        for number in range(int(block.max()) + 1):
            here = (block == number) & present.bool()
            looked = self(input_ids, present.masked_fill(here, WRITTEN)).quality_logits.sigmoid()
            quality = torch.where(here, looked.float(), quality)
        return quality

    def merge_and_unload(self) -> PreTrainedModel:
        """Add the adapter to the backbone's weights, for good, and drop the wrapper. The head stays on this model.

        Returns:
            The backbone with changed weights; the same object if there was no adapter.
        """
        if isinstance(self.backbone, PeftModel):
            self.release_backbone()
            self.backbone = self.backbone.merge_and_unload()
            self._hooks = self._hook_backbone()
            self.has_merged_weights = True
            self.replaced_rows.clear()
            self._snapshot.kept.clear()  # what `detach` would put back are weights from before the merge
        return self.backbone

    def detach(self) -> PreTrainedModel:
        """Give the user's backbone back as it was before attaching: no adapter, no hook, old flags, modes and settings.

        Weights that were trained (`train_backbone=True`) or merged stay as they are. This model cannot be used afterwards.
        """
        backbone = self.plain_backbone
        self.release_backbone()
        self._snapshot.restore(backbone)
        if self.replaced_rows:
            put_rows(backbone, self.spec, self.prism_config.backbone_resized_from or 0, self.replaced_rows)
        del self.backbone
        return backbone

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        backbone: PreTrainedModel | str | Path | None = None,
        *,
        is_trainable: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: torch.dtype | str | None = None,
        device_map: DeviceMap | None = None,
    ) -> "PrismModel":
        """Load a saved quality head, in evaluation mode. Strict: every file, key and shape must be as it was saved.

        Args:
            path_or_id: Folder written by `save_pretrained`, or id of a repository on the Hub.
            backbone: The backbone it was trained on, or the folder or Hub id of it, where it is not where it was; None: the
                recorded one is loaded. Left as it was if loading fails.
            is_trainable: Let what was trained be trained further; otherwise everything is frozen.
            tokenizer: Takes the place of the saved one.
            revision: Branch, tag or commit of the head's repository. The backbone's is recorded.
            trust_remote_code: Allow the backbone's repository to run its own Python code.
            dtype: dtype of the backbone that is loaded, as for `load_backbone`; head and LoRA stay in float32.
            device_map: Where it goes, as for `load_backbone`. The head goes where the LM head is, an adapter where its layers
                are; an adapter cannot be on offloaded weights.

        Raises:
            StoredStateError: If the files are missing, damaged, or belong to another backbone.
            BackboneError: If the backbone cannot be loaded.
            ConfigurationError: If `backbone` is missing and not recorded, or given where the folder holds its own, or is loaded
                already and `dtype` or `device_map` is given, or if these name nothing that is there.
        """
        is_loaded = backbone is not None and not isinstance(backbone, str | Path)
        require_placement(dtype, device_map, loaded="backbone" if is_loaded else None)
        stored = read_stored(path_or_id, revision=revision)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": dtype, "device_map": device_map}
        loaded, tokenizer, config = load_parts(stored, backbone, tokenizer, **options)
        if stored.adapter is not None:
            stored.adapter.inference_mode = not is_trainable
        try:
            model = attach_quality_head(loaded, config, lora=stored.adapter, tokenizer=tokenizer)
        except AdapterConfigError as error:
            raise refused_adapter(stored, error) from error
        model.loaded_from = stored.folder
        try:
            load_weights(model, stored.folder)
        except BaseException:
            model.detach()
            raise
        if not is_trainable:
            model.requires_grad_(False)
            model.card_facts = read_facts(stored.folder)  # of these weights, and no others
        return model.eval()

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        figures: Mapping[str, Figure] | None = None,
    ) -> None:
        """Write the head, the adapter and the tokenizer into a folder; also the backbone if it was trained or merged.

        Args:
            directory: Folder, made if it is not there. If saving fails, what stood there is unchanged.
            state_dict: Weights of the whole model where they were gathered from shards; None: this model's own.
            figures: Measured figures for the model card, by name; None: those of `card_facts`.

        Raises:
            SavingError: If the folder is that of the backbone, holds files of others, or cannot be written.
        """
        save_into(self, directory, known=self.card_facts, state_dict=state_dict, figures=figures)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a PRISM quality head",
        figures: Mapping[str, Figure] | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to a repository on the Hub, made if needed. Returns the commit's address.

        Raises:
            ConfigurationError: If the backbone is known only as a local folder.
        """
        options: dict[str, Any] = {"private": private, "token": token, "commit_message": commit_message}
        return push_model(self, repo_id, known=self.card_facts, figures=figures, **options)


def attach_quality_head(
    backbone: PreTrainedModel,
    config: PrismConfig | Mapping[str, Any] | None = None,
    *,
    lora: PeftConfig | Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    probe: bool = True,
) -> PrismModel:
    """Give a pretrained masked diffusion model a quality head, and an adapter if wanted. Never touches the network.

    What is not trained is frozen: without `lora` and `train_backbone`, everything but the head. If anything is refused, the
    backbone is left as it was; `PrismModel.detach` gives it back as it was.

    Args:
        backbone: A transformers model with its LM head, whose family has a BackboneSpec.
        config: Settings of the head, or a mapping of them; None: the defaults.
        lora: Any PEFT config that adapts weights, or a mapping of LoraConfig's settings. Without `target_modules` it takes
            those of the spec.
        tokenizer: The backbone's tokenizer, used by `score`, the sampler's `generate` and saving.
        probe: Refuse a model that fails the probes of `prism_plugin.modeling.probing`: three forward passes on a few tokens.

    Returns:
        The model; its `prism_config` has everything filled in.

    Raises:
        BackboneError: If the family is unknown, or the model cannot be used as it is, or not saved where it is to be trained.
        MaskTokenError: If the mask token is unknown, outside the vocabulary, or not the tokenizer's.
        UnknownKeyError: If a mapping holds a key that is no setting.
        ConfigurationError: If settings cannot go together.
        AdapterConfigError: If PEFT refuses `lora`, or it could not be trained or loaded again.
    """
    require_bare(backbone)
    adapter, spec = as_adapter(lora), get_backbone_spec(backbone)
    config = filled_in(as_prism_config(config), backbone, spec, tokenizer)
    if config.logits_alignment is not None:
        spec = replace(spec, logits_alignment=config.logits_alignment)  # type: ignore[arg-type]  # PrismConfig checks it
    if config.train_backbone and adapter is not None:
        raise ConfigurationError("`train_backbone=True` trains all weights, which excludes `lora`; choose one of them.")
    if config.train_backbone and getattr(backbone, "is_quantized", False):
        raise ConfigurationError(
            "`train_backbone=True` needs floating-point weights, but the backbone is quantised; use `lora`."
        )
    if config.train_backbone or adapter is not None:
        require_trainable_weights(backbone)
    if config.train_backbone:
        require_saveable(backbone)
    snapshot = BackboneSnapshot.take(backbone, spec)
    try:
        for parameter in backbone.parameters():
            parameter.requires_grad_(config.train_backbone)
        wrapped = backbone if adapter is None else _with_adapter(backbone, adapter, spec, snapshot)
        apply_settings(backbone, spec)
        head = QualityHead.from_config(config).to(device_of(lm_head_of(backbone, spec)))
        model = PrismModel(wrapped, head, spec=spec, prism_config=config, snapshot=snapshot, tokenizer=tokenizer)
    except BaseException:
        snapshot.restore(backbone)
        raise
    try:
        require_ok(probe_model(model) if probe else [])
    except BaseException:
        model.detach()
        raise
    return model


def _with_adapter(backbone: PreTrainedModel, lora: PeftConfig, spec: BackboneSpec, snapshot: BackboneSnapshot) -> PeftModel:
    """As `wrap_with_adapter`; what is refused there is about the adapter's config."""
    try:
        return wrap_with_adapter(backbone, lora, spec, snapshot)
    except ConfigurationError as error:
        raise AdapterConfigError(str(error)) from error
