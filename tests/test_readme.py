"""What the pages show is run, and what they name is there."""

import json
import os
import re
import runpy
import subprocess
from dataclasses import MISSING, fields

import pytest
from pages import PAGES, ROOT, blocks, tables, text_of

from prism_plugin.cli.main import VERBS
from prism_plugin.cli.recipe import AttachSection, BackboneSection, DataSection, LoraSection, load_recipe, settings
from prism_plugin.core import DiffusionTerm, DraftRule
from prism_plugin.core.remasking import RemdmConfRemasking
from prism_plugin.core.schedules import EvenSchedule
from prism_plugin.decoding import FEATURES
from prism_plugin.modeling import PrismConfig
from prism_plugin.sampling import PRESETS, RemaskingSampler, SamplerSettings
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.training import CORRUPTORS, Fill, PrismTrainingArguments, get_objective
from prism_plugin.training.presets import PRESETS as OBJECTIVES

README = ROOT / "README.md"
METHODS = runpy.run_path(str(ROOT / ".ci" / "methods.py"))
INSTALL = "pip install -c constraints.txt -e . && prism-plugin demo"
TEST = 'pip install -c constraints.txt -e ".[test]" && pytest -n 2 --dist loadfile'
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]

# Run after the README's blocks: its training, by the recipe that it shows, on the backbone and the rows that its blocks made.
BY_RECIPE = """
import json
from pathlib import Path

from prism_plugin.cli.main import main

Path("rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows * 2))
assert main(["train", "--recipe", "recipe.yaml", "--max_steps", "2", "--dataloader_pin_memory", "false"]) == 0
print(prism.PrismModel.from_pretrained("runs/first").score(["the cat sat"]))
Path("log.json").write_text(json.dumps(trainer.state.log_history + [trainer.evaluate()]))
"""


@pytest.fixture(scope="module")
def run(scripts):
    """Runs the code of a page in a folder."""

    def run(code, folder):
        (folder / "page.py").write_text(code, encoding="utf-8")
        # torch warns of a Trainer default where there is no accelerator; a first page need not turn it off.
        ignored = "'pin_memory' argument is set as true but no accelerator is found"
        return scripts.run(folder / "page.py", folder, output=folder, ignored=ignored)

    return run


@pytest.fixture(scope="module")
def readme_log(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (recipe,) = blocks(README, "yaml")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    done = run("\n\n".join([*blocks(README, "python"), BY_RECIPE]), folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "log.json").read_text(encoding="utf-8"))


def test_there_are_blocks():
    assert len(blocks(README, "python")) >= 4
    assert {README, ROOT / "CONTRIBUTING.md"} <= set(WITH_PYTHON)


def test_first_commands_are_those_that_were_promised():
    commands = [line for block in blocks(README, "bash") for line in block.splitlines()]
    assert commands[:2] == [INSTALL, TEST]
    assert "accelerate launch -m prism_plugin.cli.train --recipe FILE [--key value]" in commands


def test_ci_finds_the_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (extraction,) = re.findall(r"^test_command=\"\$\((awk .*)\)\"$", script, flags=re.MULTILINE)
    found = subprocess.run(["bash", "-c", extraction], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == TEST
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_quick_check_of_pages_is_told():
    """Before a push, not by CI: a line too wide, a name that the pages do not know."""
    lines = [line for block in blocks(ROOT / "CONTRIBUTING.md", "bash") for line in block.splitlines()]
    (quick,) = (line.partition("#")[0].strip() for line in lines if "before pushing pages" in line)
    assert quick in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    files = quick.removeprefix("pytest ").split()
    assert {"tests/test_readme.py", "tests/test_architecture.py"} <= set(files)
    assert not [name for name in files if not (ROOT / name).is_file()]


def test_first_steps_are_twelve_lines():
    assert len([line for line in blocks(README, "python")[0].splitlines() if line]) <= 12


def test_readme_runs_and_logs_what_it_says(readme_log):
    rows = dict(tables(text_of(README, "Logged metrics"))[0])
    assert len(rows) >= 16
    logged = {key for entry in readme_log for key in entry}
    # What Trainer adds about speed, and its summary at the end.
    of_trainer = {key for key in logged if re.search(r"runtime|per_second|^total_flos$|^train_loss$|^step$", key)}
    assert logged - of_trainer == set(rows)


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page != README], ids=lambda page: page.name)
def test_blocks_run(page, run, tmp_path):
    done = run("\n\n".join(blocks(page, "python")), tmp_path)
    assert done.returncode == 0, done.stderr


def test_additions_take_under_thirty_lines():
    for block in [*blocks(ROOT / "CONTRIBUTING.md", "python"), blocks(README, "python")[-1]]:
        assert len([line for line in block.splitlines() if line.strip()]) < 30, block


def test_recipe_is_one(tmp_path):
    (text,) = blocks(README, "yaml")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", {})
    assert len(get_objective(**recipe.objective).corruptor.drafts) == 2
    assert recipe.training["output_dir"] == str(tmp_path / "runs/first")
    assert "head_learning_rate" in recipe.training


def test_the_page_of_methods_is_what_the_registries_give():
    assert METHODS["PAGE"].read_text(encoding="utf-8") == METHODS["page"](), "run `python .ci/methods.py`"


# What the field has, each of which has its place or a reason why it has none.
FIELD = """PRISM, ProSeCo, DSL, FreeCorrection, SR-SMC, BackPlay, Unmasking policies, PG-DLM, MoI, MaPeT, SMART, IPR, T2M,
LLaDA2.1 T2T, CoDiLA, ReMDM, Token-Critic, P2, RemeDi, Fast-dLLM, KLASS, GIDD, CDLM, CoRe, RCR, CAP, LLaDA2.2, WINO, DMax"""


def test_no_method_of_the_field_is_missing():
    assert set(FIELD.replace("\n", " ").split(", ")) <= METHODS["SYSTEMS"].keys()
    named = {word for where in METHODS["SYSTEMS"].values() for word in re.findall(r"preset `([\w-]+)`", where)}
    assert named <= PRESETS.keys()


def test_the_presets_of_the_readme_are_all_there():
    (table,) = tables(text_of(README, "Presets"))
    text = text_of(README, "Presets")
    assert all(f"`{name}`" in text for name in PRESETS if name not in ("random", "prism-threshold"))
    for name, _, reads in table:
        settings = SamplerSettings(num_steps=4, **preset_settings(name, {}))
        assert reads == ("yes" if "quality" in settings.reads else "no")


DEFAULTS = {
    cls.__name__: cls
    for cls in (
        DiffusionTerm, DraftRule, EvenSchedule, Fill, LoraSection, PrismConfig, PrismTrainingArguments, RemaskingSampler,
        RemdmConfRemasking,
    )
}  # fmt: skip


def test_defaults_are_those_of_the_code():
    (table,) = tables(text_of(README, "Where each default comes from"))
    assert len(table) >= 14
    for setting, default, _ in table:
        owner, name = setting.split(".")
        assert default.replace('"', "'") == repr(next(one.default for one in fields(DEFAULTS[owner]) if one.name == name))


def default_of(one):
    """How a table writes a field's default: nothing where there is none or where it is a list of rules."""
    if one.default_factory is not MISSING:
        return "{}" if one.default_factory is dict else f"{type(one.default_factory()).__name__}()"
    return "" if one.default is MISSING or one.name == "drafts" else repr(one.default)


def test_objectives_with_a_name_are_in_the_page():
    objectives, corruptors = tables(text_of(ROOT / "docs" / "training.md", "Objectives"))
    assert {row[0]: (row[1], row[2].replace("`", "")) for row in objectives} == {
        name: (CORRUPTORS.to_dict(one.corruptor)["name"], ", ".join(term.name for term in one.terms))
        for name, one in OBJECTIVES.items()
    }
    assert {row[0] for row in corruptors} == set(CORRUPTORS.names())


def test_recipe_keys_are_those_of_the_code():
    (table,) = tables(text_of(ROOT / "docs" / "training.md", "Recipe keys"))
    of_training = {"training.output_dir", "training.head_learning_rate", "training.check_alignment"}
    assert {row[0] for row in table} == {name for name in settings() if not name.startswith("training.")} | of_training
    owners = {
        "backbone": [BackboneSection], "data": [DataSection], "attach": [AttachSection], "attach.lora": [LoraSection],
        "training": [PrismTrainingArguments],
    }  # fmt: skip
    of_objectives = {"name": "prism"}
    for objective in OBJECTIVES.values():
        of_objectives |= vars(type(objective.corruptor)())
        of_objectives |= {f"{term.name}_{key}": one for term in objective.terms for key, one in vars(type(term)()).items()}
    of_objectives |= {**vars(DraftRule()), **dict.fromkeys(("corruptor", "terms", "drafts"))}
    for key, default, meaning in table:
        section, _, name = key.rpartition(".")
        if section == "objective":
            value = of_objectives[name]
            found = ["" if value is None and name in ("corruptor", "terms", "drafts") else repr(value)]
        else:
            found = [default_of(one) for cls in owners[section] for one in fields(cls) if one.name == name]
        if key not in ("objective.name", "training.output_dir"):
            assert [default] == found, key
        assert meaning


def test_features_are_those_of_the_code():
    (table,) = tables(text_of(ROOT / "docs" / "sampling.md", "What a look costs"))
    ours = [name for name in FEATURES.names() if FEATURES.get(name).__module__.startswith("prism_plugin")]
    assert sorted(row[0] for row in table) == ours


def test_sampler_settings_are_those_of_the_code():
    (table,) = tables(text_of(ROOT / "docs" / "sampling.md", "Settings of a sampler"))
    assert [row[:2] for row in table] == [[one.name, default_of(one)] for one in fields(SamplerSettings)]


def test_verbs_are_named():
    rows = dict(tables(text_of(README, "Map of files"))[0])
    for verb in VERBS:
        assert f"`{verb}`" in rows["prism_plugin/cli/"]
        assert f"prism-plugin {verb}" in README.read_text(encoding="utf-8")


def test_every_file_that_is_named_exists():
    named = re.findall(
        r"`((?:prism_plugin|tests|docs|benchmarks|adapters|examples)/[\w./-]*|\.ci/run)`", README.read_text(encoding="utf-8")
    )
    assert len(named) > 25
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = text_of(page)
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    for link in links:
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            assert (page.parent / path).exists() if path else anchor in anchors, f"{page.name}: {link}"


def test_nothing_is_too_wide():
    for page in PAGES:
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("|")]
        assert not [line for line in lines if len(line) > 140], page.name
