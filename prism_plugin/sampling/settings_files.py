"""`sampler_config.json`, and beside it the files that rules of the sampler read, such as a policy's weights."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from prism_plugin.errors import SavingError, StoredStateError, UnknownNameError
from prism_plugin.modeling.strict_files import read_json
from prism_plugin.sampling.settings import PLUG_INS, SamplerSettings, settings_from_dict
from prism_plugin.writing import write_bytes, write_text

SAMPLER_CONFIG_NAME = "sampler_config.json"
_LENGTH = 12  # hexadecimal digits of a file's name
_OURS = re.compile(rf"({'|'.join(PLUG_INS)})-[0-9a-f]{{{_LENGTH}}}\.safetensors")


def write_settings(settings: SamplerSettings, directory: str | Path) -> Path:
    """Write `sampler_config.json`, and copies of the files that its rules read.

    Files are named by what they hold, and written before the config that names them; so a failed write leaves a sampler that
    is whole, the old one. Those of a sampler that stood there before are taken away in the end.

    Raises:
        SavingError: If a file cannot be read or written.
        UnknownNameError: As `SamplerSettings.to_dict`.
    """
    folder = Path(directory)
    values, contents = _to_store(settings)
    for name, content in contents.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            write_bytes(folder / name, content)
    path = folder / SAMPLER_CONFIG_NAME
    write_text(path, json.dumps(values, indent=2) + "\n")
    for one in folder.iterdir():
        if _OURS.fullmatch(one.name) and one.name not in contents:
            one.unlink(missing_ok=True)
    return path


def stored_values(settings: SamplerSettings) -> dict[str, Any]:
    """What `sampler_config.json` holds: files by names that say what they hold, wherever they lie.

    Raises:
        SavingError: If a file cannot be read.
        UnknownNameError: As `SamplerSettings.to_dict`.
    """
    return _to_store(settings)[0]


def read_settings(directory: str | Path) -> SamplerSettings:
    """Read `sampler_config.json` from a folder.

    Raises:
        StoredStateError: If the file is missing or is not a JSON object, or a file that it names is missing or lies elsewhere;
            also as `settings_from_dict`.
    """
    folder = Path(directory)
    path = folder / SAMPLER_CONFIG_NAME
    values = _read(path)
    for setting, key, name in _named_files(values):
        if Path(name).name != name or not (folder / name).is_file():
            raise StoredStateError(
                f"{path}: what `{setting}` reads must be a file beside it, but there is no {name!r}; copy the whole folder."
            )
        values[setting] = {**values[setting], key: str(folder / name)}
    return settings_from_dict(values, source=str(path))


def files_beside(directory: str | Path) -> tuple[str, ...]:
    """Names of the files that a folder's `sampler_config.json` names.

    Raises:
        StoredStateError: If it is missing or is not a JSON object.
    """
    return tuple(name for _, _, name in _named_files(_read(Path(directory) / SAMPLER_CONFIG_NAME)))


def _to_store(settings: SamplerSettings) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is written, and what its files hold, by the names that they get."""
    values, contents = settings.to_dict(), dict[str, bytes]()
    for setting, key, name in _named_files(values):
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise SavingError(f"what `{setting}` reads is not there any more ({error}); put the file back.") from error
        stored = f"{setting}-{hashlib.sha256(content).hexdigest()[:_LENGTH]}.safetensors"
        contents[stored] = content
        values[setting] = {**values[setting], key: stored}
    return values, contents


def _named_files(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Setting, key and name of each file that rules read: of fields that have `file` in their metadata."""
    found = []
    for setting, registry in PLUG_INS.items():
        rule = values.get(setting)
        if not isinstance(rule, Mapping):
            continue
        try:
            cls: Any = registry.get(rule.get("name", ""))
        except UnknownNameError:
            continue  # told by whoever reads the settings
        keys = [one.name for one in fields(cls) if one.metadata.get("file")]
        found += [(setting, key, rule[key]) for key in keys if isinstance(rule.get(key), str)]
    return found


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "`RemaskingSampler.save_pretrained`")
