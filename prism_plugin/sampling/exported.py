"""What an exported sampler runs: transformers' `custom_generate`, on the same rules as `RemaskingSampler`.

`prism_plugin.sampling.export` copies this module to the folder's `custom_generate/generate.py`, and beside it all that it
imports.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from prism_plugin.backbones.modes import evaluation_mode
from prism_plugin.backbones.probe import check_backbone
from prism_plugin.backbones.spec import device_of, lm_head_of
from prism_plugin.decoding.chance import Generators
from prism_plugin.errors import ConfigurationError, StoredStateError
from prism_plugin.modeling.attached_settings import settings_while_attached
from prism_plugin.modeling.config_file import CONFIG_FILE, HEAD_FILE, read_config, require_same_backbone
from prism_plugin.modeling.head import QualityHead
from prism_plugin.modeling.headed import HeadedBackbone
from prism_plugin.modeling.strict_files import read_tensors
from prism_plugin.sampling.about_backbone import BACKBONE_FILE, read_about_backbone
from prism_plugin.sampling.filling import MaskFiller, SamplerOutput
from prism_plugin.sampling.settings_files import SAMPLER_CONFIG_NAME, files_beside, read_settings
from prism_plugin.types import TokenIds


def generate(
    model: PreTrainedModel,
    inputs: TokenIds | None = None,
    *,
    sampler_path: str | Path | None = None,
    input_ids: TokenIds | None = None,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    generator: Generators = None,
    streamer: Any = None,
    return_dict_in_generate: bool = False,
    return_trace: bool = False,
    token_type_ids: Tensor | None = None,
    revision: str | None = None,
    **others: Any,
) -> TokenIds | SamplerOutput:
    """Continue prompts, or fill the mask tokens that are in place, with the sampler of a folder.

    Args:
        model: The folder's model, as transformers loads it; with the folder's adapter on it where there is one.
        inputs: As `input_ids`, which transformers calls so when they are given by position.
        sampler_path: The folder with sampler_config.json and the quality head, or its id on the Hub; None: where the model
            was loaded from.
        input_ids: Prompts, [batch, length], padded on the left or on the right; without `max_new_tokens`, rows with mask
            tokens.
        attention_mask: 1 for the rows' own tokens, 0 for padding; None when there is no padding.
        max_new_tokens: Tokens to generate after each prompt, >= 1; None: fill the masks that are in place.
        min_new_tokens: So many of them, or of a row's masks, come before an EOS at least.
        generator: One `torch.Generator` for the batch; one per row, so that a row's tokens do not depend on the others; None.
        streamer: Follows one row as it is filled, such as transformers' `TextDiffusionStreamer`.
        return_dict_in_generate: Return everything that is known about the run, not only the tokens.
        return_trace: Keep a record of each look; with `return_dict_in_generate` only.
        token_type_ids: What a tokenizer may give besides; zeros, which is how the model was trained.
        revision: Branch, tag or commit, where `sampler_path` is an id on the Hub.
        **others: Nothing; transformers passes what its own `generate` knows, and all of it must be None.

    Returns:
        The tokens, [batch, length], or with `return_dict_in_generate` a `SamplerOutput`.

    Raises:
        ConfigurationError: If an argument is unknown, missing, or would be ignored, or the adapter is not on the model.
        StoredStateError: If the folder is not whole, or the model is not the one that the head was trained on.
        SamplingError: If the request cannot be met.
    """
    # A model loaded with `trust_remote_code=True` has this function for its `generate`, and is called as if it had its own.
    others.pop("trust_remote_code", None)
    code = others.pop("custom_generate", None)
    unknown = sorted(name for name, value in others.items() if value is not None)
    if unknown:
        raise ConfigurationError(
            f"This sampler takes no {', '.join(map(repr, unknown))}: its settings are in {SAMPLER_CONFIG_NAME}, and a call may "
            "give input_ids, attention_mask, max_new_tokens, min_new_tokens, generator, streamer, return_dict_in_generate and "
            "return_trace."
        )
    if (inputs is None) == (input_ids is None):
        raise ConfigurationError("Token ids must be given once, as `input_ids` or by position; give one of the two.")
    if return_trace and not return_dict_in_generate:
        raise ConfigurationError("`return_trace` would be ignored without `return_dict_in_generate=True`; give both.")
    if token_type_ids is not None and token_type_ids.any():
        raise ConfigurationError("`token_type_ids` must be zeros, which is how the model was trained; leave them out.")
    tokens: Any = inputs if input_ids is None else input_ids
    where = sampler_path or code or model.name_or_path
    if not where:
        raise ConfigurationError(
            "`sampler_path` must be given, since the model does not say where it was loaded from; give the exported folder, or "
            "its id on the Hub."
        )
    with load_sampler(model, _folder(where, revision)) as sampler:
        options: dict[str, Any] = {"generator": generator, "return_trace": return_trace, "streamer": streamer}
        options["min_new_tokens"] = min_new_tokens
        if max_new_tokens is None:
            output = sampler.infill(tokens, attention_mask, **options)
        else:
            output = sampler.sample(tokens, attention_mask, max_new_tokens=max_new_tokens, **options)
    return output if return_dict_in_generate else output.sequences


def _folder(sampler_path: str | Path, revision: str | None) -> Path:
    """The folder, or where the Hub's copy of it lies; the files that are read are there afterwards."""
    if Path(sampler_path).is_dir():
        return Path(sampler_path)
    try:
        for name in (HEAD_FILE, BACKBONE_FILE, CONFIG_FILE, SAMPLER_CONFIG_NAME):
            found = cached_file(str(sampler_path), name, revision=revision)
        for name in files_beside(Path(str(found)).parent):
            cached_file(str(sampler_path), name, revision=revision)
    except OSError as error:
        raise StoredStateError(
            f"`sampler_path` must be the folder of an exported sampler, or its id on the Hub, found {str(sampler_path)!r} "
            f"({type(error).__name__}); give the path that the model was loaded from."
        ) from error
    return Path(str(found)).parent


@contextmanager
def load_sampler(model: PreTrainedModel, folder: Path) -> Iterator[MaskFiller]:
    """Give the sampler of a folder on a model; afterwards the model is as it was.

    Raises:
        ConfigurationError: If the folder's adapter is not on the model.
        StoredStateError: If the folder is not whole, or the model is not the one that the head was trained on.
    """
    config, has_adapter = read_config(folder)
    plain = getattr(model, "get_base_model", lambda: model)()
    if has_adapter and not getattr(model, "peft_config", None):
        raise ConfigurationError(
            f"The quality head in {folder} was trained with the adapter that lies beside it, but {type(model).__name__} has "
            f"none; call `model.load_adapter({str(folder)!r})` first, which needs peft."
        )
    about = read_about_backbone(folder)
    spec, tokenizer = about.spec, about.tokenizer
    require_same_backbone(config, folder, plain, spec)
    check_backbone(plain, spec)
    head = QualityHead.from_config(config)
    head.load_state_dict(read_tensors(folder / HEAD_FILE, head.state_dict()))
    head.to(device_of(lm_head_of(plain, spec)))
    settings = read_settings(folder)
    # The modes too: making a HeadedBackbone puts every module into the one of the whole.
    with evaluation_mode(model), settings_while_attached(plain, spec):
        attached = HeadedBackbone(model, head, spec=spec, prism_config=config, tokenizer=tokenizer)
        try:
            yield MaskFiller(attached, **vars(settings))
        finally:
            attached.release_backbone()
