"""Writes the tables of docs/families.md, from the specs and from the contract's last run.

    python .ci/families.py                 write the page; with `--check`, say whether it is stale
    python .ci/families.py --run FOLDER    first run the contract, on the released code in FOLDER too, and record what passed

FOLDER is what `PRISM_REMOTE_CODE` names: checkouts with their `.git`, or with a file REVISION beside. The record is
`prism_plugin/backbones/contract.json`, where `prism-plugin doctor` looks up the code that was tested.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prism_plugin.backbones.builtin import BUILTIN_SPECS
from prism_plugin.backbones.spec import BackboneSpec
from prism_plugin.backbones.tested_code import RECORD, hash_of, recorded

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- {}: written by `python .ci/families.py` -->", "<!-- end -->"
CONTRACT = (
    "tests/backbones/test_family_contract.py",
    "tests/backbones/test_released_code.py",
    "tests/modeling/test_windows.py",
)

# Checkpoints by which people know a family, where its model type does not say.
CHECKPOINTS = {
    "llama": "Llama, trained further with attention to both sides; dLLM's A2D",
    "qwen2": "Qwen2, the same",
    "qwen3": "Qwen3, the same",
    "sdar": "SDAR-1.7B, 4B and 8B, TraDo",
    "sdar_moe": "SDAR-30B-A3B",
    "Fast_dLLM_Qwen": "Fast-dLLM v2, 1.5B and 7B",
    "nemotron_labs_diffusion": "Nemotron-Labs-Diffusion-3B and 8B",
    "stable_diffcoder": "Stable-DiffCoder-8B",
    "llada": "LLaDA-8B, LLaDA-1.5",
    "mmada": "MMaDA-8B, its text",
    "RemeDi": "RemeDi",
    "illada": "iLLaDA",
    "lladamoe": "LLaDA-MoE-7B-A1B",
    "llada2_moe": "LLaDA2.0, 2.1 and 2.2",
    "Dream": "Dream-7B, Dream-Coder-7B, DiffuCoder-7B, DreamOn-7B",
    "mdlm": "MDLM",
    "proseco": "ProSeCo",
    "dplm": "DPLM",
    "esm": "ESM-2",
}
# Engines whose released version serves it, as read in their code (SGLang 0.5.23, LMDeploy 0.18.0); none runs our rules yet.
SERVED = {"llada2_moe": "SGLang", "sdar": "SGLang, LMDeploy", "sdar_moe": "SGLang, LMDeploy"}
# Families that go by another name in the tests.
STANDINS = {"RemeDi": "remedi", "Dream": "dream"}
ALSO = {"llada2_moe": "llada21_moe"}  # other released code of a family, in the tests


def facts(spec: BackboneSpec) -> list[str]:
    """A row of the table of specs."""
    known = "" if spec.mask_token_id is None else f"{spec.mask_token_id} of {spec.mask_token_vocab_size or 'any'}"
    length = spec.attention_block_length or (spec.block_length_name and f"config.{spec.block_length_name}")
    return [
        f"`{spec.model_type}`",
        f"`{spec.final_hidden_at}`",
        spec.logits_alignment.replace("_", " "),
        known,
        spec.attention_mask
        + ("" if length is None else f", blocks of {length}")
        + (", causal before the block" if spec.causal_context else ""),
        spec.pads if spec.attention_mask != "none" else "none",
        ", ".join(spec.lora_target_modules),
        ", ".join(f"`{name}`" for name in spec.layer_classes),
        "yes" if spec.activation_checkpointing else "no",
        ", ".join(f"{path}={value}" for path, value in spec.settings_while_attached),
    ]


def in_words(spec: BackboneSpec, record: dict[str, Any]) -> list[str]:
    """A row of the table that says what can be done."""
    name = STANDINS.get(spec.model_type, spec.model_type)
    by_blocks = spec.attention_block_length or spec.block_length_name
    own_code = spec.model_type not in record["of_transformers"]
    if spec.loads_as is not None:
        load = f"as transformers' `{spec.loads_as}`; its own code is not run"
    else:
        load = "its own code, `trust_remote_code=True`" if own_code else "transformers' class"
    train = "one noised block behind clean ones" if by_blocks else "yes"
    train += "" if spec.activation_checkpointing else "; activations are kept"
    sample = "block by block" if by_blocks else "yes"
    sample += "; rows of one length" if spec.attention_mask == "none" else ""
    released = sorted(one for one in record["passed"] if one.partition(":")[0] in (name, ALSO.get(name)) and ":" in one)
    released += [f"{name}:{one}" for one in record["loops"].get(name, ())]
    on = ", ".join(dict.fromkeys(one.partition(":")[2] for one in released))
    where = ("a stand-in" if own_code else "a tiny model") + (f", and on released code: {on}" if on else "")
    return [
        f"`{spec.model_type}`",
        CHECKPOINTS.get(spec.model_type, ""),
        load,
        train,
        sample,
        "yes" if name in record["windows"] else "no",
        SERVED.get(spec.model_type, "no"),
        f"{record['passed'][name]} tests on {where}",
    ]


def table(headings: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A table in Markdown, line by line."""
    yield "| " + " | ".join(headings) + " |"
    yield "|" + " --- |" * len(headings)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def sections() -> dict[str, str]:
    """What stands between the marks, by their names."""
    record = recorded()
    headings = [
        "model type", "read at", "logits", "mask token", "attention mask", "pads in pretraining", "LoRA by default",
        "FSDP layer", "recomputes", "set while attached",
    ]  # fmt: skip
    uses = ["model type", "checkpoints", "load", "fine-tune", "sample", "cached looks", "served by", "last run of the contract"]
    said = (
        f"Last run: {record['date']}, transformers {record['transformers']}, torch {record['torch']}; all passed. Released "
        "code that was run:"
    )
    checkouts = table(["checkout", "revision"], [[name, f"`{revision}`"] for name, revision in record["checkouts"].items()])
    return {
        "uses": "\n".join(table(uses, [in_words(spec, record) for spec in BUILTIN_SPECS])),
        "specs": "\n".join(table(headings, [facts(spec) for spec in BUILTIN_SPECS])),
        "run": "\n".join([said, "", *checkouts]),
    }


def page() -> str:
    """The page as it is to be."""
    text = PAGE.read_text(encoding="utf-8")
    for name, section in sections().items():
        begin = BEGIN.format(name)
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"docs/families.md has no place for {name!r}: {begin} and {END}.")
        text = pattern.sub(lambda _, whole=f"{begin}\n{section}\n{END}": whole, text)
    return text


def run(folder: Path) -> dict[str, Any]:
    """Run the contract, and give what is to be recorded; stops where a test fails."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        environment = {**os.environ, "PRISM_REMOTE_CODE": str(folder.resolve()), "HF_HUB_OFFLINE": "1"}
        asked = [sys.executable, "-m", "pytest", "-q", "-m", "", "-W", "default", f"--junitxml={report}", *CONTRACT]
        if subprocess.run(asked, cwd=ROOT, env=environment, check=False).returncode:
            sys.exit("The contract did not pass, so nothing was recorded.")
        cases = [case for case in ElementTree.parse(report).getroot().iter("testcase") if case.find("skipped") is None]
    named = [(case.get("classname", "").rpartition(".")[2], case.get("name", "")) for case in cases]
    parameters = [(module, *name.rstrip("]").partition("[")[::2]) for module, name in named]
    families = {re.sub(r"-(frozen|lora)$", "", name) for module, test, name in parameters if test == "test_sampling"}
    passed = Counter(re.sub(r"-(frozen|lora)$", "", name) for module, _, name in parameters if module == "test_family_contract")
    loops = {name.rpartition("-")[0] for _, test, name in parameters if test == "test_its_own_loop_writes_the_same_tokens"}
    windows = [name for _, test, name in parameters if test.startswith(("test_a_window_of", "test_so_it_does_in_code"))]
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ["PRISM_REMOTE_CODE"] = str(folder)
    from remote_families import STANDIN_FAMILIES, checked_out_families  # it reads the environment

    code = {
        hash_of(family.root / file): f"{name.partition(':')[2]}: {file}"
        for name, family in checked_out_families().items()
        for file in family.files
    }
    folders = {"sdar": "SDAR", "Fast_dLLM_Qwen": "Fast_dLLM_v2_7B", "stable_diffcoder": "Stable-DiffCoder-8B-Instruct"}
    own_code = {STANDINS.get(spec.model_type, spec.model_type) for spec in BUILTIN_SPECS} & STANDIN_FAMILIES.keys()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        **{name: importlib.metadata.version(name).partition("+")[0] for name in ("torch", "transformers")},
        "passed": {name: passed[name] for name in sorted(families)},
        "of_transformers": sorted(
            spec.model_type for spec in BUILTIN_SPECS if STANDINS.get(spec.model_type, spec.model_type) not in own_code
        ),
        "windows": sorted(windows),
        "loops": {name: [folders[name]] for name in sorted(loops)},
        "checkouts": {one.name: revision_of(one) for one in sorted(folder.iterdir()) if one.is_dir()},
        "code": dict(sorted(code.items(), key=lambda pair: pair[1])),
    }


def revision_of(checkout: Path) -> str:
    """The commit of a checkout."""
    if (checkout / "REVISION").is_file():
        return (checkout / "REVISION").read_text(encoding="utf-8").strip()
    asked = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run the contract on the released code in it, and record")
    parser.add_argument("--check", action="store_true", help="say whether the page is stale")
    args = parser.parse_args()
    if args.run is not None:
        RECORD.write_text(json.dumps(run(args.run), indent=1) + "\n", encoding="utf-8")
        recorded.cache_clear()
    if not args.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/families.md is stale: run `python .ci/families.py`.")


if __name__ == "__main__":
    main()
