"""The README.md of a saved quality head or of an exported sampler: what it is, how to load it, and what was measured."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load
from jinja2 import Environment, StrictUndefined

from prism_plugin.backbones import looks_like_path
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.config import PrismConfig

Figure = int | float | str

CARD_FILE = "README.md"
TAGS = ("prism", "masked-diffusion")


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells that no other file of a folder knows.

    Attributes:
        figures: What was measured, by name. Scalars of NumPy and torch become Python's, which YAML can hold.
        data: What the head was trained on, in words.
        base_license: Licence of the backbone, as its own card states it.
        sampler: Settings of the sampler that lies beside, as sampler_config.json holds them.

    Raises:
        ConfigurationError: If a figure is neither a number nor a text.
    """

    figures: Mapping[str, Figure] = field(default_factory=dict)
    data: str | None = None
    base_license: str | None = None
    sampler: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "figures", {name: _plain_figure(name, value) for name, value in self.figures.items()})


@dataclass(frozen=True)
class ExportFacts:
    """What the card of an exported sampler tells besides.

    Attributes:
        auto_class: Name of the transformers class that loads the backbone.
        merged: The backbone lies in the folder; otherwise it is loaded by its id.
        with_loader: The backbone's own code is for transformers 4, and the folder holds what makes it run.
        has_tokenizer: The tokenizer lies in the folder too.
    """

    auto_class: str
    merged: bool
    with_loader: bool
    has_tokenizer: bool


_TEMPLATE = """\
---
{{ metadata }}
---

# PRISM {{ "sampler" if export else "quality head" }} for {{ backbone_title }}

A per-token quality head ([PRISM](https://arxiv.org/abs/2510.01384)) on a masked diffusion language model: it gives every
token the probability that it is right, which remasking samplers use to take tokens back.

| | |
| --- | --- |
| backbone | {{ backbone_title }}{% if config.backbone_revision %}, revision `{{ config.backbone_revision }}`{% endif %} |
| licence of the backbone | {{ facts.base_license or "not stated where it was loaded from: see there" }} |
| model type | {{ config.backbone_model_type }} |
| mask token id | {{ config.mask_token_id }} |
| head | {{ config | head }} |
| trained | {{ "the backbone and the head" if config.train_backbone else "LoRA and the head" if has_adapter else "the head" }} |
{%- if config.objective %}
| objective | {{ config.objective | method }}; its settings are in prism_config.json |
{%- endif %}
{%- if facts.data %}
| data | {{ facts.data | cell }} |
{%- endif %}
{% if export %}
## Use

With transformers alone{% if not export.merged and has_adapter %}, and peft for the adapter{% endif %}; \
`custom_generate/generate.py` is the code that runs.
{%- if export.with_loader %}
The model's own code was written for transformers 4, and `custom_generate/load_backbone.py` makes it run under transformers 5;
read both, then allow them with `trust_remote_code=True`.
{%- endif %}

```python
{% if not export.has_tokenizer -%}
import torch
{% endif -%}
from transformers import {{ imported }}
{% if export.with_loader -%}
from transformers.dynamic_module_utils import get_class_from_dynamic_module

{% else %}
{% endif -%}
folder = "path {{ "" if export.with_loader else "or id " }}of this folder"
{% if export.with_loader -%}
load = get_class_from_dynamic_module("custom_generate/load_backbone.load", folder)
model = load(folder, trust_remote_code=True)
{% if has_adapter and not export.merged -%}
model.load_adapter(folder)
{% endif -%}
{% elif export.merged -%}
model = {{ export.auto_class }}.from_pretrained(folder).eval()
{% else -%}
model = {{ export.auto_class }}.from_pretrained("{{ config.backbone_name }}"{{ revision }}).eval()
{% if has_adapter -%}
model.load_adapter(folder)
{% endif -%}
{% endif -%}
generate = GenerationMixin.load_custom_generate(model, folder, trust_remote_code=True)
{% if export.has_tokenizer -%}
tokens = AutoTokenizer.from_pretrained(folder)(["a text with mask tokens"], return_tensors="pt")
print(generate(model, **tokens, sampler_path=folder))  # or continue the text: max_new_tokens=32
{% else -%}
prompts = torch.tensor([[1, 2, 3]])  # token ids
print(generate(model, prompts, max_new_tokens=32, sampler_path=folder))  # without a length, masks are filled
{% endif -%}
```
{% else %}
```python
import prism_plugin as prism

model = prism.PrismModel.from_pretrained("path or id of this folder")
{% if facts.sampler -%}
sampler = prism.RemaskingSampler.from_pretrained("path or id of this folder", model)
{% else -%}
sampler = prism.RemaskingSampler.from_preset("prism-confidence", model, num_steps=32)
{% endif -%}
```
{% endif %}
{%- if facts.sampler %}
## Sampler

| setting | value |
| --- | --- |
{%- for name, value in sampler_rows %}
| {{ name }} | {{ value }} |
{%- endfor %}
{% endif %}
## Figures
{% if facts.figures %}
| figure | measured |
| --- | --- |
{%- for name, value in facts.figures.items() %}
| {{ name | cell }} | {{ "%.4g" | format(value) if value is float else value | cell }} |
{%- endfor %}
{% else %}
None were measured when this was saved.
{% endif %}"""


def _method_in_words(objective: Mapping[str, Any]) -> str:
    """An objective as the trainer records it: its name, or its parts'."""
    if "name" in objective:
        return str(objective["name"])
    return f"{objective['corruptor']['name']}, with the terms {', '.join(term['name'] for term in objective['terms'])}"


def _head_in_words(config: PrismConfig) -> str:
    """The kind of a head and its settings."""
    settings = {"taps": "head_taps", "blocks": "head_blocks", "history": "head_history"}
    given = {word: getattr(config, name) for word, name in settings.items() if getattr(config, name)}
    said = (f"{word} {value if isinstance(value, int) else ', '.join(map(str, value))}" for word, value in given.items())
    return "; ".join((config.head, *said))


def render_model_card(
    config: PrismConfig, *, has_adapter: bool, facts: CardFacts | None = None, export: ExportFacts | None = None
) -> str:
    """Write the model card.

    Args:
        config: Settings as they are saved; a `backbone_name` that starts with "." is a folder.
        has_adapter: A PEFT adapter was trained with the head.
        facts: What was measured and on what; where there are no figures, the card says so.
        export: For an exported sampler; None for a quality head.
    """
    facts = facts or CardFacts()
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"method": _method_in_words, "head": _head_in_words}
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")  # one cell of a table stays one
    return environment.from_string(_TEMPLATE).render(
        config=config,
        has_adapter=has_adapter,
        facts=facts,
        export=export,
        backbone_title=_title(config),
        metadata=_metadata(config, has_adapter, facts, export).to_yaml(),
        revision=f', revision="{config.backbone_revision}"' if config.backbone_revision else "",
        sampler_rows=_sampler_rows(facts.sampler or {}),
        imported=None if export is None else _imported(export),
    )


def read_facts(folder: Path) -> CardFacts:
    """Read from a folder's card what `render_model_card` wrote; nothing where there is no card of ours."""
    values = read_metadata(folder)
    found = values.get("prism_figures")
    texts = {name: values.get(key) for name, key in (("data", "prism_data"), ("base_license", "license"))}
    known: dict[str, Any] = {name: text if isinstance(text, str) else None for name, text in texts.items()}
    return CardFacts(
        figures={name: one for name, one in found.items() if isinstance(one, Figure)} if isinstance(found, dict) else {},
        **known,
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the YAML at the head of a folder's README.md; nothing where there is none that can be read."""
    try:
        return metadata_load(folder / CARD_FILE) or {}
    except (OSError, ValueError, yaml.YAMLError):  # a card is text that people write, and no setting
        return {}


def _metadata(config: PrismConfig, has_adapter: bool, facts: CardFacts, export: ExportFacts | None) -> ModelCardData:
    name = config.backbone_name
    # the Hub shows results that are numbers, and JSON has no NaN
    numbers = {key: value for key, value in facts.figures.items() if isinstance(value, int | float) and math.isfinite(value)}
    results = [
        EvalResult(
            task_type="fill-mask", dataset_type="held-out", dataset_name="held-out rows",
            metric_type=key, metric_value=value, metric_name=key,
        )
        for key, value in numbers.items()
    ]  # fmt: skip
    return ModelCardData(
        library_name="transformers" if export else "peft" if has_adapter else "prism-plugin",
        base_model=config.base_model or (None if name is None or looks_like_path(name) else name),
        license=facts.base_license,
        tags=[*TAGS, *(["custom_generate"] if export else [])],
        model_name=f"PRISM on {_title(config)}" if results else None,
        eval_results=results or None,
        prism_figures=dict(facts.figures) or None,
        prism_data=facts.data,
    )


def _plain_figure(name: str, value: Any) -> Figure:
    with suppress(AttributeError, ValueError, RuntimeError):  # no scalar of NumPy or torch
        value = value.item()
    if not isinstance(value, Figure):
        raise ConfigurationError(
            f"A figure of a model card must be a number or a text, but {name!r} is of type {type(value).__name__}; give one "
            "figure for each name."
        )
    return value


def _imported(export: ExportFacts) -> str:
    """What the lines that load an export import from transformers."""
    names = [(export.auto_class, not export.with_loader), ("AutoTokenizer", export.has_tokenizer), ("GenerationMixin", True)]
    return ", ".join(name for name, needed in names if needed)


def _sampler_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            own = ", ".join(f"{key} {setting}" for key, setting in value.items() if key != "name")
            value = f"{value['name']} ({own})" if own else value["name"]
        if value is not None and name != "format_version":
            rows.append((name, str(value)))
    return rows


def _title(config: PrismConfig) -> str:
    name, model_type, base = config.backbone_name, config.backbone_model_type, config.base_model
    if name is None:
        return f"a {model_type} model"
    if name == ".":
        return base or f"the {model_type} model in this folder"
    made = "" if base is None else f", made from {base}"
    return f"the {model_type} model in `{name}`{made}" if name.startswith(".") else name
