"""An exported sampler: a folder that transformers loads and runs where prism_plugin is not installed.

    config.json, model*.safetensors                   the backbone with LoRA merged, or with `merge=False` instead
    adapter_config.json, adapter_model.safetensors    PEFT's own; the backbone is then loaded by its id
    quality_head.safetensors, prism_config.json       the head, as `PrismModel.save_pretrained` writes it
    sampler_config.json                               rules and schedule by name
    unmasking-*.safetensors                           weights of a policy, where it unmasks
    custom_generate/generate.py                       `prism_plugin/sampling/exported.py`
    custom_generate/load_backbone.py                  where the backbone's own code is for transformers 4: what makes it run
    custom_generate/*.py                              the modules that these two import, whole
    custom_generate/backbone.json                     what the code has to know about the backbone's family
    tokenizer files, README.md

The folder can be loaded by `PrismModel.from_pretrained` and `RemaskingSampler.from_pretrained` as well.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from prism_plugin.errors import ConfigurationError, SavingError
from prism_plugin.modeling.config_file import CONFIG_FILE
from prism_plugin.modeling.heads import HEADS
from prism_plugin.modeling.hub import facts_to_share, require_shareable, upload
from prism_plugin.modeling.model import PrismModel
from prism_plugin.modeling.model_card import CARD_FILE, CardFacts, ExportFacts, Figure, render_model_card
from prism_plugin.modeling.persistence import write_files
from prism_plugin.modeling.places import read_by, require_apart
from prism_plugin.modeling.trial_save import require_saveable
from prism_plugin.sampling.about_backbone import BACKBONE_FILE, about_backbone
from prism_plugin.sampling.sampler import RemaskingSampler
from prism_plugin.sampling.settings import PLUG_INS
from prism_plugin.sampling.settings_files import stored_values, write_settings
from prism_plugin.sampling.whole_modules import PACKAGE, flat_folder
from prism_plugin.writing import require_place, staged_files

CODE_FOLDER = "custom_generate"
_GENERATE = {f"{PACKAGE}.sampling.exported": "generate"}
_WITH_LOADER = {**_GENERATE, f"{PACKAGE}.sampling.exported_loading": "load_backbone"}


def export_sampler(
    sampler: RemaskingSampler, directory: str | Path, *, merge: bool = True, figures: Mapping[str, Figure] | None = None
) -> None:
    """Write a folder that transformers alone can load and run, token for token as this sampler does.

    ```python
    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    generate = GenerationMixin.load_custom_generate(model, directory, trust_remote_code=True)
    tokens = generate(model, input_ids=input_ids, sampler_path=directory)
    ```

    Args:
        sampler: Its rules must be those of this package. It and its model are left as they are.
        directory: Folder that is empty or not there. If something fails, nothing of it is left.
        merge: Write the backbone, with the adapter added to its weights, which takes memory for a second copy of a model
            with an adapter (`PrismModel.merge_and_unload` before takes none). Otherwise the adapter is written as it is, the
            backbone is loaded by its id on the Hub, and PEFT is needed.
        figures: Measured figures for the model card; None: those of the model's own card.

    Raises:
        UnknownNameError: If a rule has no name.
        ConfigurationError: If `sampler` is none, a rule is not of this package, weights cannot be merged, without merging
            nobody else could load the backbone, or the folder lies in one that the model was read from.
        BackboneError: If transformers refuses to write the backbone's config.
        SavingError: If the folder is not empty, or cannot be written.
    """
    _require_exportable(sampler, merge)
    directory = Path(directory)
    require_free_folder(directory)
    model = sampler.model
    require_apart(directory, read_by(model), "An export")
    facts = facts_to_share(model.card_facts, model.prism_config, figures, ask_hub=False)
    _write(sampler, directory, merge=merge, facts=facts)


def require_free_folder(directory: Path) -> None:
    """Check, before a model is loaded for it, that an export can be written.

    Raises:
        SavingError: If the folder is not empty, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SavingError(
            f"An export needs a folder that is empty or not there, but {str(directory)!r} is not; choose another."
        )
    require_place(directory / CONFIG_FILE, "export")


def push_export_to_hub(
    sampler: RemaskingSampler,
    repo_id: str,
    *,
    merge: bool = True,
    figures: Mapping[str, Figure] | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload a PRISM sampler",
) -> str:
    """Upload what `export_sampler` writes to a repository on the Hub, made if needed. Returns the commit's address.

    Args:
        sampler: As for `export_sampler`.
        repo_id: The repository.
        merge: As for `export_sampler`.
        figures: As for `export_sampler`.
        private: Whether a new repository is private; None: as the account has it.
        token: Of the Hub; None: the one that is logged in.
        commit_message: Of the upload.

    Raises:
        PrismError: As for `export_sampler`.
    """
    _require_exportable(sampler, merge)
    model = sampler.model
    facts = facts_to_share(model.card_facts, model.prism_config, figures, ask_hub=True, token=token)
    write = partial(_write, sampler, merge=merge, facts=facts)
    return upload(write, repo_id, private=private, token=token, commit_message=commit_message)


@cache
def exported_code(*, with_loader: bool) -> Mapping[str, str]:
    """The files of `custom_generate/`, by name: the same for every export of this version of the package.

    Args:
        with_loader: `load_backbone.py` too, with what it imports.
    """
    return flat_folder(_WITH_LOADER if with_loader else _GENERATE)


def _has_remote_code(model: PrismModel) -> bool:
    return type(model.plain_backbone).__module__.startswith("transformers_modules.")


def _require_exportable(sampler: RemaskingSampler, merge: bool) -> None:
    if not isinstance(sampler, RemaskingSampler):
        raise ConfigurationError(
            f"An export is made of a RemaskingSampler, got {type(sampler).__name__}; make one with "
            "`RemaskingSampler.from_preset(...)`."
        )
    sampler.to_dict()  # a rule without a name is refused here
    model = sampler.model
    plug_ins: tuple[tuple[str, Any], ...] = (
        *(("rules", type(rule)) for rule in (getattr(sampler, name) for name in PLUG_INS) if rule is not None),
        ("kinds of heads", HEADS[model.prism_config.head]),
    )
    for what, one in plug_ins:
        if one.__module__.split(".")[0] != PACKAGE:
            raise ConfigurationError(
                f"An export holds the {what} of {PACKAGE} only, since it runs where other modules are not there, but "
                f"{one.__name__} is of {one.__module__}; choose one of {PACKAGE}."
            )
    backbone_class = type(model.plain_backbone)
    if not (_has_remote_code(model) or backbone_class.__module__.startswith("transformers.")):
        raise ConfigurationError(
            f"An export is loaded by transformers alone, which does not know {backbone_class.__name__} of "
            f"{backbone_class.__module__}; use a class of transformers, or one that a checkpoint brings along."
        )
    if merge and model.is_quantized and isinstance(model.backbone, PeftModel):
        raise ConfigurationError(
            "An adapter cannot be merged into a quantised backbone without loss; load the backbone unquantised, or export with "
            "`merge=False`."
        )
    if merge:
        require_saveable(model.plain_backbone)
        return
    if model.holds_own_backbone or model.prism_config.backbone_name is None:
        raise ConfigurationError(
            "`merge=False` leaves the backbone to be loaded by its id, but this one has none, or its weights were trained or "
            "merged; export with `merge=True`."
        )
    if model.has_new_tokens:
        raise ConfigurationError(
            "`merge=False` leaves the backbone to be loaded by its id, which has no rows for tokens that this one got since; "
            "export with `merge=True`."
        )
    require_shareable(model.prism_config)


def _write(sampler: RemaskingSampler, directory: Path, *, merge: bool, facts: CardFacts) -> None:
    model = sampler.model
    has_adapter = isinstance(model.backbone, PeftModel)
    with staged_files(directory, marker=CONFIG_FILE) as stage:
        if merge and has_adapter:
            written = copy.deepcopy(model)
            written.merge_and_unload()
        else:
            written = model
        config = write_files(written, stage, directory, with_backbone=merge)
        write_settings(sampler, stage)
        with_loader = _has_remote_code(model)
        (stage / CODE_FOLDER).mkdir()
        for name, text in exported_code(with_loader=with_loader).items():
            (stage / CODE_FOLDER / name).write_text(text, encoding="utf-8")
        (stage / BACKBONE_FILE).write_text(about_backbone(model.spec, model.tokenizer, model.unknown_ids), encoding="utf-8")
        card = render_model_card(
            config,
            has_adapter=has_adapter or model.has_merged_weights,
            facts=replace(facts, sampler=stored_values(sampler)),
            export=ExportFacts(
                model.spec.auto_class,
                merged=merge,
                with_loader=with_loader,
                has_tokenizer=model.tokenizer is not None,
            ),
        )
        (stage / CARD_FILE).write_text(card, encoding="utf-8")
