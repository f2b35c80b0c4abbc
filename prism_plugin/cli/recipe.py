"""Recipes: a YAML file and command-line settings -> typed sections. Every unknown key is an error, all at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prism_plugin.backbones import looks_like_path
from prism_plugin.core.validation import require_number
from prism_plugin.data import DataSettings, is_data_file
from prism_plugin.errors import ConfigurationError, UnknownKeyError, did_you_mean
from prism_plugin.parsing_yaml import parse_yaml, read_yaml
from prism_plugin.reader import checked, from_mapping
from prism_plugin.training import PrismTrainingArguments
from prism_plugin.training.presets import PRESETS, settings_of


@dataclass(frozen=True, kw_only=True)
class BackboneSection:
    """Which backbone."""

    path: str = field(metadata={"help": "Folder, or Hub id, of the backbone."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let the repository's own Python code run."})
    dtype: str | None = field(default=None, metadata={"help": "dtype of the weights, such as bfloat16; None: as saved."})
    quantization: str | None = field(default=None, metadata={"help": "nf4: frozen linear layers in 4 bits; needs lora."})


@dataclass(frozen=True, kw_only=True)
class DataSection(DataSettings):
    """Which data, and how rows become tokens."""

    path: str = field(
        metadata={"help": "Local json, jsonl, csv, tsv, parquet or txt file, or Hub data set (id or id:configuration)."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of a Hub data set."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub data set."})
    eval_path: str | None = field(default=None, metadata={"help": "Where the evaluation rows are, in the same columns."})
    eval_split: str | None = field(default=None, metadata={"help": "Their split, of `eval_path` or else of `path`."})
    eval_share: float | None = field(
        default=None, metadata={"help": "Share of the rows held out for evaluation, in (0, 1), chosen once for all seeds."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_share is not None and not 0 < self.eval_share < 1:
            raise ConfigurationError(f"`eval_share` must lie strictly between 0 and 1, got {self.eval_share}.")
        if self.eval_share is not None and (self.eval_path or self.eval_split):
            raise ConfigurationError("Evaluation rows come from `eval_share`, or from `eval_path` or `eval_split`; give one.")


@dataclass(frozen=True, kw_only=True)
class LoraSection:
    """Low-rank adapters on the backbone, as in peft's LoraConfig."""

    r: int = field(default=8, metadata={"help": "Rank, >= 1."})
    alpha: float = field(default=16, metadata={"help": "Scale, > 0: updates are multiplied by alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapters' input, in [0, 1)."})
    targets: list[str] | None = field(default=None, metadata={"help": "Module names; None: the backbone's spec says."})

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigurationError(f"`r` of LoRA must be at least 1, got {self.r}.")
        require_number(self, "alpha", "a number above 0, since updates are multiplied by alpha / r", low=0, open_low=True)
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"`dropout` of LoRA must be in [0, 1), got {self.dropout}.")


@dataclass(frozen=True, kw_only=True)
class AttachSection:
    """The quality head, and what is trained with it."""

    adapter: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a trained head to start from, with its own settings; None: a fresh one."},
    )
    head: str = field(default="mlp", metadata={"help": "Kind of the quality head: mlp, linear, transformer or multi_tap."})
    head_hidden_size: int | None = field(default=None, metadata={"help": "Width of its hidden layers; None: the backbone's."})
    head_blocks: int | None = field(default=None, metadata={"help": "Blocks of a transformer head; None: 1."})
    head_num_heads: int | None = field(default=None, metadata={"help": "Attention heads of its blocks; None: of 64 columns."})
    head_taps: list[int] | None = field(default=None, metadata={"help": "Layers that a multi_tap head reads, such as [0, -1]."})
    head_history: list[str] | None = field(
        default=None, metadata={"help": "What the head reads of each token's history: age, commit_confidence, times_remasked."}
    )
    base_rate: float = field(default=0.9, metadata={"help": "Share of right tokens to expect, where the head starts."})
    mask_token_id: int | None = field(default=None, metadata={"help": "None: found in the model, tokenizer or spec."})
    logits_alignment: str | None = field(
        default=None, metadata={"help": "same_position or next_token; None: as the backbone's family has it."}
    )
    train_backbone: bool = field(default=False, metadata={"help": "Train all weights; impossible with lora."})
    lora: LoraSection | None = field(default=None, metadata={"help": "Low-rank adapters; null: none."})


@dataclass(frozen=True)
class Recipe:
    """All that defines a training run. `given` is what was written, which a checkpoint is compared with."""

    backbone: BackboneSection
    data: DataSection
    attach: AttachSection
    objective: dict[str, Any]
    training: dict[str, Any]
    given: dict[str, Any]


_OF_OBJECTIVES = {
    "name": "Name of the objective, such as prism.",
    "corruptor": "Without a name: how drafts come to be, by its registered name and settings.",
    "terms": "Without a name: the losses, each by its registered name and settings.",
}
_SECTIONS: dict[str, tuple[type, ...]] = {
    "backbone": (BackboneSection,),
    "data": (DataSection,),
    "attach": (AttachSection,),
    "objective": (),
    "training": (PrismTrainingArguments,),
}


# Fields that nothing would read: a single rule has no use for a weight, and Trainer leaves the others to the script.
_UNREAD = {f"training.{name}" for name in ("do_train", "do_eval", "do_predict", "resume_from_checkpoint")}


def settings() -> dict[str, str]:
    """Every setting by its dotted name, `training.max_steps`, with its help."""
    found: dict[str, str] = {f"objective.{name}": text for name, text in _OF_OBJECTIVES.items()}
    for objective in PRESETS.values():
        found |= {f"objective.{key}": f"{text[0].upper()}{text[1:]}." for key, text in settings_of(objective).items()}
    for section, classes in _SECTIONS.items():
        for cls in classes:
            found |= {f"{section}.{one.name}": one.metadata.get("help", "") for one in fields(cls) if one.init}
    found |= {f"attach.lora.{one.name}": one.metadata["help"] for one in fields(LoraSection)}
    return {name: text for name, text in found.items() if name not in _UNREAD}


def load_recipe(path: Path, overrides: Mapping[str, str]) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file. Paths in it are relative to its folder, and to nothing else.
        overrides: Dotted name -> YAML text, from the command line; they win. Paths are relative to the working directory.

    Raises:
        ConfigurationError: If the file cannot be read, or a value has the wrong type or is out of range.
        UnknownKeyError: If there are keys that nothing would read; names all of them.
    """
    written = _read(path)
    for name in ("backbone", "data", "attach", "training"):
        written[name] = _anchored(name, written.get(name) or {}, path)
    for dotted, text in overrides.items():
        value = parse_yaml(text, f"--{dotted}")
        _put(written, dotted, _anchored_value(dotted, value, Path.cwd(), f"--{dotted}"))
    _refuse_unknown(written, path)
    sections = {name: written.get(name) or {} for name in _SECTIONS}
    _refuse_two_heads(sections["attach"], path)
    training = checked(PrismTrainingArguments, sections["training"], source=f"{path}: training")
    if not training.get("output_dir"):
        raise ConfigurationError(f"{path}: training needs `output_dir`, the folder for checkpoints and the result; add it.")
    return Recipe(
        backbone=from_mapping(BackboneSection, sections["backbone"], source=f"{path}: backbone"),
        data=from_mapping(DataSection, sections["data"], source=f"{path}: data"),
        attach=from_mapping(AttachSection, sections["attach"], source=f"{path}: attach"),
        objective=sections["objective"] if "corruptor" in sections["objective"] else {"name": "prism", **sections["objective"]},
        training=training,
        given=written,
    )


def _read(path: Path) -> dict[str, Any]:
    written = read_yaml(path, "The recipe")
    if not isinstance(written, dict) or not all(isinstance(one, dict | None) for one in written.values()):
        raise ConfigurationError(f"{path}: a recipe is a mapping of sections ({', '.join(_SECTIONS)}), each a mapping.")
    return {name: dict(one or {}) for name, one in written.items()}


def _put(written: dict[str, Any], dotted: str, value: Any) -> None:
    *owners, name = dotted.split(".")
    for owner in owners:
        inside = written.get(owner)
        if not isinstance(inside, Mapping | None):
            raise ConfigurationError(f"--{dotted} sets a part of `{owner}`, which must be a mapping then, found {inside!r}.")
        written[owner] = dict(inside or {})
        written = written[owner]
    written[name] = value


def _refuse_unknown(written: Mapping[str, Any], path: Path) -> None:
    known = settings()
    unknown = [str(name) for name in written if name not in _SECTIONS]
    for section in set(written) & set(_SECTIONS):
        unknown += [f"{section}.{key}" for key in written[section] if f"{section}.{key}" not in known]
    lora = (written.get("attach") or {}).get("lora")
    if isinstance(lora, Mapping):
        unknown += [f"attach.lora.{key}" for key in lora if f"attach.lora.{key}" not in known]
    if unknown:
        told = [f"{name}{did_you_mean(name, known)}" for name in sorted(unknown)]
        raise UnknownKeyError(
            f"{path}: nothing reads {', '.join(told)}; the sections are {', '.join(_SECTIONS)}, and --help lists their keys."
        )


def _refuse_two_heads(attach: Mapping[str, Any], path: Path) -> None:
    ignored = [f"attach.{name}" for name, value in attach.items() if name != "adapter" and value is not None]
    if attach.get("adapter") is not None and ignored:
        raise ConfigurationError(
            f"{path}: `attach.adapter` brings its own head and LoRA, so {', '.join(ignored)} would be ignored; leave one out."
        )


_FOUND_OR_ID = {"backbone.path", "data.path", "data.eval_path", "attach.adapter"}
CONFIG_FILES = ("deepspeed", "fsdp_config", "accelerator_config")  # settings of `training` that may name a file


def _anchored(section: str, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    base = path.resolve().parent
    return {key: _anchored_value(f"{section}.{key}", value, base, str(path)) for key, value in values.items()}


def _anchored_value(dotted: str, value: Any, base: Path, source: str) -> Any:
    """Make a path absolute. Only `base` is looked into; what is not there and may be an id on the Hub is taken for one."""
    section, _, name = dotted.partition(".")
    names_config = section == "training" and name in CONFIG_FILES
    if not isinstance(value, str) or not (names_config or dotted in _FOUND_OR_ID or dotted == "training.output_dir"):
        return value
    if names_config and value.startswith("{"):
        return value  # JSON, which transformers reads
    if not value.strip() or "\0" in value:
        raise ConfigurationError(f"{source}: `{dotted}` must name a file or folder, found {value!r}; write its name.")
    try:
        place = base / Path(value).expanduser()
        is_there = place.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, no such user's home
        raise ConfigurationError(f"{source}: `{dotted}` must be a path, but {value!r} is none: {error}") from error
    if names_config and not place.is_file():
        raise ConfigurationError(f"{source}: `{dotted}` must name a file, but there is none at {place}; correct the path.")
    hub_id = value.partition(":")[0]  # a data set's configuration comes after it
    if is_there or dotted not in _FOUND_OR_ID or looks_like_path(hub_id) or _names_file(dotted, value):
        return str(place)
    if Path(hub_id).exists():  # transformers and datasets look here before they ask the Hub
        raise ConfigurationError(
            f"{source}: `{dotted}` must be a path that counts from {base} or an id on the Hub, but no {hub_id!r} is there, and "
            "the working directory holds one that would be read instead of the Hub's; write its whole path, or start elsewhere."
        )
    return value


def _names_file(dotted: str, value: str) -> bool:
    return dotted.startswith("data.") and is_data_file(value)
