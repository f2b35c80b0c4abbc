import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from prism_plugin.cli.recipe import AttachSection, BackboneSection, DataSection, LoraSection, load_recipe, settings
from prism_plugin.core.drafting import DraftRule
from prism_plugin.errors import ConfigurationError, UnknownKeyError
from prism_plugin.modeling import PrismConfig
from prism_plugin.parsing_yaml import parse_yaml
from prism_plugin.reader import checked
from prism_plugin.sampling.settings import SamplerSettings
from prism_plugin.training import PrismTrainingArguments

RECIPE = """
backbone: {path: ./backbone}
data: {path: ./rows.txt}
attach: {lora: {r: 2}}
objective: {num_drafted: 3}
training: {output_dir: run, learning_rate: 1e-4, save_strategy: no}
"""


def load(tmp_path, text=RECIPE, **overrides):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return load_recipe(file, {name.replace("__", "."): value for name, value in overrides.items()})


def test_a_recipe_becomes_typed_sections(tmp_path):
    recipe = load(tmp_path)
    assert recipe.training["learning_rate"] == 1e-4, "PyYAML reads this as text"
    assert recipe.training["save_strategy"] == "no", "PyYAML reads this as false"
    assert recipe.attach.lora.r == 2
    assert recipe.objective == {"name": "prism", "num_drafted": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("-010", -10), ("+7", 7), ("0", 0), ("0o17", 15), ("0x1F", 31), ("08", 8), ("1e-4", 1e-4), ("1E5", 1e5),
        (".5", 0.5), ("5.", 5.0), ("-.inf", float("-inf")), ("010.5", 10.5), ("1_000", "1_000"), ("0b11", "0b11"),
        ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("2024-01-01", "2024-01-01"), ("12:30:45", "12:30:45"), ("on", "on"),
        ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("true", True), ("FALSE", False), ("~", None), ("null", None),
        ("", None), ("=", "="), ("0x", "0x"), ("0o8", "0o8"), ("1e", "1e"), ("-", [None]), ("'010'", "010"), ("!!int 010", 10),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(text, value):
    read = parse_yaml(text, "here")
    assert (read, type(read)) == (value, type(value))


def test_mappings_are_merged_and_their_own_keys_win():
    text = "{a: &a {x: 1, y: 2}, b: &b {<<: *a, x: 3}, c: [{<<: *b, y: 4}, {<<: [*b, {z: 5}]}, *b]}"
    b = {"x": 3, "y": 2}
    assert parse_yaml(text, "here") == {"a": {"x": 1, "y": 2}, "b": b, "c": [{"x": 3, "y": 4}, {**b, "z": 5}, b]}
    with pytest.raises(ConfigurationError, match="here is not valid YAML: x given twice"):
        parse_yaml("{a: &a {x: 1}, b: {<<: *a, x: 2, x: 3}}", "here")
    with pytest.raises(ConfigurationError, match="<< given twice"):
        parse_yaml("{a: &a {x: 1}, b: {<<: *a, <<: *a}}", "here")


def test_paths_are_relative_to_the_recipe_or_to_who_types_them(tmp_path, monkeypatch):
    recipe = load(tmp_path)
    assert Path(recipe.data.path) == tmp_path / "rows.txt"
    assert Path(recipe.training["output_dir"]) == tmp_path / "run"
    assert load(tmp_path, RECIPE.replace("./backbone", "owner/name")).backbone.path == "owner/name"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Path(load(tmp_path, training__output_dir="mine").training["output_dir"]) == elsewhere / "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.path", "tiny"), ("backbone.path", "org/name"), ("data.path", "org/name:en"), ("data.eval_path", "org/name"),
        ("data.path", "rows.jsonl"), ("data.path", "org/name/rows"), ("training.deepspeed", "ds.json"),
        ("training.fsdp_config", "ds.json"), ("training.accelerator_config", "ds.json"),
    ],
)  # fmt: skip
def test_the_working_directory_is_not_looked_into(tmp_path, monkeypatch, key, value):
    section, _, name = key.partition(".")
    written = parse_yaml(RECIPE, "RECIPE")
    written[section][name] = value
    text = yaml.safe_dump(written)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / value).parent.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)

    def found():
        recipe = load(tmp_path, text)
        return recipe.training[name] if section == "training" else getattr(getattr(recipe, section), name)

    before = found() if section != "training" and value != "rows.jsonl" and value.count("/") < 2 else None
    assert before in (value, None), "an id on the Hub"
    (elsewhere / value.partition(":")[0]).write_text("{}")
    if before is not None:
        with pytest.raises(
            ConfigurationError, match=rf"`{key}` must be a path that counts from .* but no '\w+(/\w+)?' is there, and"
        ):
            found()
    elif section == "training":
        with pytest.raises(ConfigurationError, match=f"`{key}` must name a file, but there is none at {tmp_path}/{value}"):
            found()
    else:
        assert found() == str(tmp_path / value)
    (tmp_path / value).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / value).write_text("{}")
    assert found() == str(tmp_path / value)


@pytest.mark.parametrize("value", ["''", "' '", "~nobody-of-this-name/x", '"a\\0b"'])
@pytest.mark.parametrize("key", ["backbone.path", "data.path", "training.output_dir", "training.deepspeed"])
def test_what_is_no_path_is_one_sentence(tmp_path, key, value):
    with pytest.raises(
        ConfigurationError, match=rf"^--{key}: `{key}` must (be a path, but .* is none|name a file or folder)"
    ) as raised:
        load(tmp_path, **{key.replace(".", "__"): value})
    assert "\n" not in str(raised.value)


def test_settings_of_the_command_line_win(tmp_path):
    recipe = load(tmp_path, training__max_steps="7", attach__lora__r="4", objective__share="[0.1, 0.5]", attach__head="linear")
    assert recipe.training["max_steps"] == 7
    assert recipe.attach.lora.r == 4
    assert recipe.objective["share"] == [0.1, 0.5]
    assert recipe.attach.head == "linear"
    assert load(tmp_path, attach__lora="null").attach.lora is None


def test_unknown_keys_are_refused_all_at_once(tmp_path):
    text = RECIPE + "extra: {a: 1}\n"
    text = (
        text.replace("{r: 2}", "{rank: 2}").replace("num_drafted: 3", "num_draftd: 3").replace("output_dir: run", "max_stps: 1")
    )
    with pytest.raises(UnknownKeyError) as caught:
        load(tmp_path, text)
    for name in (
        "extra",
        "attach.lora.rank",
        "objective.num_draftd (did you mean 'objective.num_drafted'?)",
        "training.max_stps",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{path: ./rows.txt}", "{}"), "recipe.yaml: data needs 'path'; add it"),
        (("output_dir: run", "seed: 1"), "training needs `output_dir`, the folder for checkpoints"),
        (("1e-4", "fast"), "training: `learning_rate` must be a number, found 'fast'"),
        (("1e-4", ".nan"), "training: `learning_rate` must be a number, found nan"),
        (("1e-4", "1e-4, warmup_steps: .nan"), "training: `warmup_steps` must be a number, found nan"),
        (("lora: {r: 2}", "base_rate: .nan"), "recipe.yaml: attach: `base_rate` must be a number, found nan"),
        (("{r: 2}", "{r: 2, targets: [1]}"), "attach, `lora`: `targets` must be a list, each text or null, found"),
        (("{r: 2}", "{r: 0}"), "recipe.yaml: attach, `lora`: `r` of LoRA must be at least 1, got 0"),
        (("{r: 2}", "{r: 2, dropout: 1.0}"), r"`dropout` of LoRA must be in \[0, 1\), got 1.0"),
        (("{r: 2}", "{r: 2, alpha: 0}"), "`alpha` of LoraSection must be a number above 0, since .*, found 0"),
        (("{r: 2}", "{r: 2, alpha: .inf}"), "`alpha` of LoraSection must be a number above 0, since .*, found inf"),
        (("{r: 2}", "7"), "attach: `lora` must be a mapping of settings or null, found 7"),
        (("{path: ./rows.txt}", "{path: a, eval_share: 2.0}"), "`eval_share` must lie strictly between 0 and 1, got 2.0"),
        (("{path: ./rows.txt}", "{path: a, eval_share: 0.1, eval_path: b}"), "Evaluation rows come from `eval_share`, or from"),
        (("{path: ./rows.txt}", "{path: a, pads: masked}"), "`pads` must be .*ignored.*, found 'masked'"),
        (("num_drafted: 3", "num_drafted: 3, num_drafted: 4"), "num_drafted given twice"),
        (("{num_drafted: 3}", "[3]"), "a recipe is a mapping of sections"),
        (("{num_drafted: 3}", "{num_drafted: 3"), "is not valid YAML"),
        (("num_drafted: 3", "num_drafted: !!int three"), "is not valid YAML"),
    ],
)
def test_bad_recipes_are_one_sentence(tmp_path, change, words):
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, RECIPE.replace(*change))


@pytest.mark.parametrize("columns", ["{text: 3}", "{1: text}"])
def test_names_of_columns_are_text(tmp_path, columns):
    with pytest.raises(ConfigurationError, match="data: `columns` must be a mapping from text to text, found"):
        load(tmp_path, RECIPE.replace("{path: ./rows.txt}", f"{{path: a, columns: {columns}}}"))


def test_a_key_that_is_no_text_is_unknown(tmp_path):
    with pytest.raises(UnknownKeyError, match=r"nothing reads 1, data\.2 .*; the sections are"):
        load(tmp_path, RECIPE.replace("./rows.txt", "./rows.txt, 2: b") + "1: {a: 1}\n")


def test_a_part_of_what_is_no_mapping_cannot_be_set(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--attach\.lora\.r sets a part of `lora`, .* must be a mapping .*, found 7"):
        load(tmp_path, RECIPE.replace("{r: 2}", "7"), attach__lora__r="4")


def test_a_recipe_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match=r"The recipe .*none.yaml cannot be read"):
        load_recipe(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    "cls",
    [BackboneSection, DataSection, AttachSection, LoraSection, PrismTrainingArguments, PrismConfig, SamplerSettings, DraftRule],
)
def test_what_a_setting_may_be_is_said_in_words(cls):
    refused = []
    for one in (field.name for field in fields(cls) if field.init):
        try:
            checked(cls, {one: object()}, source="here")
        except ConfigurationError as error:
            refused.append(str(error).partition(", found")[0])
    assert refused
    assert not [words for words in refused if re.search(r"typing|Literal|Union|Optional|class|NoneType|[\[\]|]", words)]


def test_every_setting_has_a_help_text():
    missing = [name for name, text in settings().items() if not text and not name.startswith(("training.", "objective."))]
    assert missing == []
    assert len(settings()) > 100
