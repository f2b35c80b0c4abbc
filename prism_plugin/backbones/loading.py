"""The only `from_pretrained` of a backbone and of its tokenizer."""

import copy
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import cached_file

from prism_plugin.backbones.compat import finish_loading, patch_config_class, patch_model_class, transformers_4_names
from prism_plugin.backbones.devices import DeviceMap, require_placement
from prism_plugin.backbones.quantization import quantization_config
from prism_plugin.backbones.spec import FAMILY, BackboneSpec, find_spec, get_spec_by_model_type
from prism_plugin.errors import BackboneError, PrismError, UnreachableBackboneError, first_line
from prism_plugin.reader import fits

# What is read of a config.json before transformers reads it.
_STATED: dict[str, Any] = {"model_type": str, "architectures": list[str], "auto_map": dict[str, Any]}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
# In this order, after the spec's own, since what a repository calls its `AutoModel` may lack the LM head.
_AUTO_CLASSES = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")


def load_backbone(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a pretrained masked diffusion model with its LM head, in evaluation mode.

    Code that a repository brings along for transformers 4 (LLaDA, Dream, MDLM, ...) is made to run under this version. Every
    parameter is allocated once, and none is initialised at random first.

    Args:
        name_or_path: A Hugging Face folder, or the id of a repository on the Hub.
        revision: Branch, tag or commit of the repository.
        trust_remote_code: Allow the repository's own Python code to run.
        dtype: dtype of the weights; None takes the one they were saved in.
        device_map: Where the weights go, as transformers has it: a device such as "cuda:1" for all of them, "auto" to share
            them out over the accelerators and offload what does not fit, or a mapping of modules; None: the CPU, with
            `quantization` the accelerator.
        quantization: "nf4" turns the linear layers into 4 bits while they are loaded, for LoRA and a head on top (QLoRA); what
            is left is in `dtype`, bfloat16 when None. Needs bitsandbytes.

    Raises:
        ConfigurationError: If torch has no such dtype, or the machine no such device.
        BackboneError: If there is no such model, it cannot be read, lacks weights, brings code that it was not allowed to run,
            or its model type has no registered spec.
    """
    require_placement(dtype, device_map)
    where, options = _checked_location(name_or_path), {"revision": revision, "trust_remote_code": trust_remote_code}
    tensors: dict[str, Any] = {"dtype": dtype or "auto", "device_map": device_map}
    if quantization is not None:
        tensors |= {"dtype": dtype or torch.bfloat16, "quantization_config": quantization_config(quantization, dtype)}
    return _make(where, options, functools.partial(_load_weights, tensors=tensors))


def build_backbone(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
) -> PreTrainedModel:
    """Build a backbone without its weights, on the meta device: for counting, not for calling. Reads the config alone.

    Args:
        name_or_path: A folder with a config.json, or the id of a repository on the Hub.
        revision: Branch, tag or commit of the repository.
        trust_remote_code: Allow the repository's own Python code to run.
        dtype: dtype of the weights; None takes the one that the config names.

    Raises:
        BackboneError: As `load_backbone`, weights apart.
    """
    where, options = _checked_location(name_or_path), {"revision": revision, "trust_remote_code": trust_remote_code}
    return _make(where, options, functools.partial(_without_weights, dtype=dtype))


def _make(where: str, options: dict[str, Any], make: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Find out what a repository holds, and let `make` make the model, with the code that is to be used."""
    stated = _read_config(where, options["revision"])
    model_type, auto_map = stated.get("model_type") or "", stated.get("auto_map") or {}
    spec = find_spec(model_type, stated.get("architectures"), stated)
    adapted = spec is not None and (spec.loads_as is not None or model_type in spec.adapted_model_types)
    has_own_code = model_type in CONFIG_MAPPING_NAMES  # what transformers brings, not what was registered since
    prefers_own_code = (spec is not None and spec.prefers_own_code) or not options["trust_remote_code"]
    runs_remote_code = bool(auto_map) and not (adapted or (has_own_code and prefers_own_code))
    if runs_remote_code and not options["trust_remote_code"]:
        raise BackboneError(
            f"{where!r} is a {model_type!r} model that brings its own Python code, which runs only with your consent; read "
            "that code, then pass `trust_remote_code=True`."
        )
    options = {**options, "trust_remote_code": runs_remote_code}
    auto_class = _auto_class(where, stated, spec, runs_remote_code)
    with _one_sentence(where, model_type):
        if not runs_remote_code:
            config = _adapted(where, stated, spec) if adapted and spec else AutoConfig.from_pretrained(where, **options)
            return make(where, getattr(transformers, auto_class), config, options)
        layers = None if spec is None else spec.layer_classes
        return _with_remote_code(where, auto_class, auto_map, layers, options, make)


def read_weights(folder: Path, backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Read the weights of a folder that a backbone was saved in. No code out of the folder runs: the class is the backbone's.

    Args:
        folder: Where the backbone was saved after it was trained.
        backbone: The one that shall take them. It is not changed; two copies are in memory for a moment.

    Raises:
        BackboneError: If they cannot be read, or one is missing.
    """
    with _one_sentence(str(folder), backbone.config.model_type):
        as_auto_class, config = _AsAutoClass(type(backbone)), copy.deepcopy(backbone.config)
        return _load_weights(str(folder), as_auto_class, config, {}, tensors={"dtype": backbone.dtype}).state_dict()


@contextmanager
def _one_sentence(where: str, model_type: str) -> Iterator[None]:
    """What transformers, and code of a repository, raise while a model is loaded becomes a BackboneError."""
    try:
        yield
    except StrictDataclassError as error:
        told = " ".join(str(error).split())
        raise BackboneError(
            f"The config.json of {where!r} must hold values of the types that transformers wants: {told}."
        ) from error
    except ImportError as error:
        raise BackboneError(f"The code of {where!r} could not be imported ({first_line(error)}).") from error
    except PrismError:
        raise
    except Exception as error:  # code of a repository may raise anything
        cause = first_line(error)
        if "ignore_mismatched_sizes" in cause:  # transformers speaks of a report that it printed
            cause = "their shapes are not those that its config.json describes"
        raise BackboneError(f"The weights of the {model_type!r} backbone {where!r} could not be loaded ({cause}).") from error


# What a config.json says that is no business of another class.
_OF_ITS_OWN_CODE = ("model_type", "architectures", "auto_map", "attn_implementation")


def _adapted(where: str, stated: Mapping[str, Any], spec: BackboneSpec) -> PreTrainedConfig:
    """The config of the class that a checkpoint was adapted from, attending to both sides."""
    sizes = {key: value for key, value in stated.items() if key not in _OF_ITS_OWN_CODE}
    config = AutoConfig.for_model(spec.loads_as or spec.model_type, **sizes)
    config.is_causal, config.name_or_path = False, where
    if spec.loads_as is not None:
        setattr(config, FAMILY, spec.model_type)
        spec.of_config(config)  # raises before any weight is read
    return config


def _auto_class(where: str, stated: Mapping[str, Any], spec: BackboneSpec | None, runs_remote_code: bool) -> str:
    """The auto class that loads the model with its LM head: by the spec, by the repository's code, or by the class it names."""
    auto_map, model_type = stated.get("auto_map") or {}, stated.get("model_type", "")
    preferred = () if spec is None else (spec.auto_class,)
    if runs_remote_code:
        wanted = (*preferred, *_AUTO_CLASSES)
        found = next((name for name in wanted if name in auto_map), wanted[0])
        if not {"AutoConfig", found} <= auto_map.keys():
            raise BackboneError(
                f"The config of {where!r} must say in `auto_map` which classes AutoConfig and {found} are, found "
                f"{sorted(auto_map)}."
            )
        return found
    if spec is not None:
        return spec.auto_class
    named = set(stated.get("architectures") or ())
    tables = {
        "AutoModelForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    known = {name: table[model_type] for name, table in tables.items() if model_type in table}
    # Models that are in both tables, as BERT is, say which class they were saved from.
    if not known:
        get_spec_by_model_type(model_type)  # raises, with what is known
    return next((name for name, one in known.items() if one in named), next(iter(known)))


def _with_remote_code(
    where: str,
    auto_class: str,
    auto_map: Mapping[str, str],
    layers: tuple[str, ...] | None,
    options: dict[str, Any],
    make: Callable[..., PreTrainedModel],
) -> PreTrainedModel:
    revision = options["revision"]
    with transformers_4_names():
        # Not through the auto classes: LLaDA registers its config for all of "llada", which LLaDA-MoE calls itself too.
        config_class = get_class_from_dynamic_module(auto_map["AutoConfig"], where, revision=revision)
        model_class = get_class_from_dynamic_module(auto_map[auto_class], where, revision=revision)
        config_class.register_for_auto_class()  # so that saving writes the code and the `auto_map`
        model_class.register_for_auto_class(auto_class)
        patch_model_class(model_class)
        patch_config_class(config_class)
        if layers:  # MDLM names none, so that `device_map="auto"` could put half a layer on one device, half on another
            model_class._no_split_modules = list(layers)
        backbone = make(where, _AsAutoClass(model_class), config_class.from_pretrained(where, revision=revision), options)
    finish_loading(backbone)
    return backbone


@dataclass(frozen=True)
class _AsAutoClass:
    """A class out of a repository, asked for models as an auto class is."""

    model_class: type[PreTrainedModel]

    def from_pretrained(self, where: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        # Dream's own takes whatever comes back for the model, and reads its generation settings as transformers 4 did.
        return PreTrainedModel.from_pretrained.__func__(self.model_class, where, **options)

    def from_config(self, config: PreTrainedConfig, *, trust_remote_code: bool, dtype: torch.dtype) -> PreTrainedModel:
        return self.model_class._from_config(config, dtype=dtype)


def _load_weights(
    where: str, auto_class: Any, config: PreTrainedConfig, options: dict[str, Any], *, tensors: dict[str, Any]
) -> PreTrainedModel:
    spec = find_spec(config.model_type, (), vars(config))
    if spec is not None and spec.weight_names:
        options = {**options, "key_mapping": {f"^{re.escape(one)}": other for one, other in spec.weight_names}}
    backbone, info = auto_class.from_pretrained(where, config=config, output_loading_info=True, **options, **tensors)
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random numbers
        raise BackboneError(
            f"{where!r} must hold every weight of {type(backbone).__name__}, but {len(missing)} are missing, "
            f"`{missing[0]}` first; take a checkpoint that was saved with its LM head."
        )
    return backbone


def _without_weights(
    where: str, auto_class: Any, config: PreTrainedConfig, options: dict[str, Any], *, dtype: torch.dtype | str | None
) -> PreTrainedModel:
    asked = dtype or getattr(config, "dtype", None) or torch.float32
    dtype = asked if isinstance(asked, torch.dtype) else getattr(torch, asked)
    with torch.device("meta"):
        backbone = auto_class.from_config(config, trust_remote_code=options["trust_remote_code"], dtype=dtype)
    # Code of a repository may name a device, and leave parts in float32, as it would when loading.
    return backbone.to(device="meta", dtype=dtype).eval()


def _read_config(where: str, revision: str | None) -> dict[str, Any]:
    """What config.json says, before any code of the repository may run."""
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        raise BackboneError(f"The folder {where!r} must hold a transformers model, but it has no config.json.")
    try:
        stated = PreTrainedConfig.get_config_dict(where, revision=revision)[0]
        if not isinstance(stated, dict):
            raise ValueError(f"it must be a JSON object, found a {type(stated).__name__}")
        for name, kind in _STATED.items():
            if stated.get(name) is not None and not fits(stated[name], kind):
                raise ValueError(f"`{name}` cannot be {stated[name]!r:.60}")
        return stated
    except (OSError, ValueError, TypeError, RecursionError) as error:  # the last two: `null`, and brackets without end
        if isinstance(error.__cause__, GatedRepoError):
            raise BackboneError(
                f"{where!r} is gated on the Hub: ask for access on its page, and log in with `hf auth login`."
            ) from error
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise UnreachableBackboneError(
                f"There is no {where!r} on the Hub that you may see; correct the id, or log in with `hf auth login`."
            ) from error
        raise UnreachableBackboneError(
            f"No config of a transformers model could be read from {where!r} ({first_line(error)}); "
            "give a folder with a config.json, or a Hub id that can be reached or is cached."
        ) from error


def stated_config(name_or_path: str | None, revision: str | None = None) -> dict[str, Any]:
    """What the config.json of a folder, or of a repository that is in the cache, says; nothing where there is none.

    Args:
        name_or_path: The folder, or the id; None: there is none.
        revision: Branch, tag or commit of the repository.
    """
    if not name_or_path:
        return {}
    try:
        stated = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, local_files_only=True)[0]
    except (OSError, ValueError):
        return {}
    return stated if isinstance(stated, dict) else {}


def has_weights(name_or_path: str | Path) -> bool:
    """Whether a folder holds weights; of a repository on the Hub it is taken for granted.

    Raises:
        BackboneError: If it is a path and no folder is there.
    """
    folder = Path(_checked_location(name_or_path))
    return not folder.is_dir() or any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin"))


def load_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that lies beside a model, or return None when there is none.

    Args:
        name_or_path: A Hugging Face folder, or the id of a repository on the Hub.
        revision: Branch, tag or commit of the repository.
        trust_remote_code: Allow the repository's own Python code to run.

    Raises:
        BackboneError: If tokenizer files are there but cannot be read, or the repository cannot be reached.
    """
    where = _checked_location(name_or_path)
    try:
        if not any(_has_file(where, name, revision) for name in TOKENIZER_FILES):
            return None
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # code that a repository brings along for its tokenizer may raise anything
        raise BackboneError(f"The tokenizer in {where!r} could not be read ({first_line(error)}).") from error


def _has_file(where: str, name: str, revision: str | None) -> bool:
    if Path(where).is_dir():
        return (Path(where) / name).is_file()
    # Offline or unreachable still raises; only a repository that is known not to have the file gives None.
    return cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False) is not None


def looks_like_path(name: str) -> bool:
    """Whether a name can only be one of a folder, there or not: no id on the Hub is written like it."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _checked_location(name_or_path: str | Path) -> str:
    """Tell a folder that is not there from a Hub id, before anything asks the network about a path."""
    where, path = str(name_or_path), Path(name_or_path)
    if (isinstance(name_or_path, Path) or looks_like_path(where)) and not path.is_dir():
        raise UnreachableBackboneError(f"{where!r} must be a folder with a transformers model, but there is no such folder.")
    return where
