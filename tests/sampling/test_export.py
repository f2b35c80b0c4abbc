"""An exported sampler, run where prism_plugin cannot be imported, gives the tokens that the sampler gives here."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from remote_families import STANDIN_FAMILIES, checked_out_families
from small_samplers import MASK, generators, prompts

from prism_plugin.backbones import load_backbone
from prism_plugin.core import (
    DECIDERS,
    EDITING,
    REMASKING,
    SCHEDULES,
    UNMASKING,
    BelowRemasking,
    EvenSchedule,
    LoopSchedule,
    NeverRemasking,
    QualityRemasking,
    QualityThresholdRemasking,
    RedraftUnmasking,
    RefineSchedule,
    ThresholdUnmasking,
)
from prism_plugin.decoding import LOOKS, CachedLook, GuidedLook, LeftOutLook, SoftLook, UnmaskingPolicy
from prism_plugin.evaluation.tasks import sudoku
from prism_plugin.modeling import PrismConfig, PrismModel, attach_quality_head
from prism_plugin.sampling import PRESETS, RemaskingSampler, export_sampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

ROOT = Path(__file__).parents[2]
NEW = 6
PROMPTS = {"input_ids": prompts(3, 5), "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])}
HOLES = {"input_ids": prompts(2, 9, seed=1).index_fill(1, torch.tensor([1, 4, 5, 8]), MASK)}


def listening(model):
    """Let the head, the adapter and the context decide: fresh ones say nearly the same everywhere."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * (1 if "quality_head" in name else 0.3)
        elif parameter.ndim == 2:
            parameter.data *= 3
    return model


def text_model(family, **options):
    backbone = tiny_backbone(family)
    return listening(attach_quality_head(backbone, PrismConfig(**options), lora=LoraConfig(r=2), tokenizer=tiny_tokenizer()))


def with_rule(model, kind, name):
    """A sampler in which the rule of that name decides something."""
    arguments = {"threshold": {"threshold": 0.5}, "quality_threshold": {"threshold": 0.6}, "remdm_conf": {"scale": 3.0},
                 "loop": {"num_remask": 2, "draft_share": 0.5}, "refine": {"num_remask": 3, "num_rounds": 2},
                 "even": {"num_remask": 1}, "redraft": {"threshold": 0.6}, "remdm_cap": {"eta": 0.5},
                 "remdm_rescale": {"eta": 0.9}, "lowest": {"score": "mean_quality"},
                 "below": {"threshold": 0.6, "score": "mean_confidence"}, "replaced": {"threshold": 0.1},
                 "fallen": {"threshold": 0.0}, "backtrack": {"threshold": 0.6}, "factor": {"factor": 2.0},
                 "klass": {"threshold": 0.1, "divergence": 1.0}, "plateau": {"num_remask": 2}, "own_pace": {"num_remask": 2},
                 "caps": {"caps": (2, 1), "begin": 0.2}, "rollback": {"num_remask": 2, "draft_share": 0.5}}  # fmt: skip
    registry = {"unmasking": UNMASKING, "remasking": REMASKING, "schedule": SCHEDULES}[kind]
    settings = {"min_steps": 1} if (kind, name) == ("schedule", "redraft") else arguments.get(name, {})
    rules = {"remasking": QualityRemasking(), "schedule": EvenSchedule(2), kind: registry.get(name)(**settings)}
    if name == "redraft":
        rules["unmasking"] = RedraftUnmasking(0.0, paces=(3, 2))
    if isinstance(rules["remasking"], NeverRemasking):
        rules["schedule"] = EvenSchedule()
    return RemaskingSampler(model, num_steps=6, temperature=1.0, **rules)


BOTH = ("random", "remdm-conf", "prism", "confidence", "threshold", "prism-refine", "redraft", "prism-redraft")


def samplers_of(model, folder):
    """Every preset, some at both temperatures, every rule that has a name, and the other settings."""
    for name in PRESETS:
        # with chance and without; those of other papers by turns, since what they share is exported once
        draws = len(name) % 2 or PRESETS[name].trajectory is not None
        for temperature in (0.0, 1.0) if name in BOTH else (float(draws),):
            quick = {"threshold": 0.0, "min_steps": 1} if "redraft" in name else {}  # a draft, a look at it, and time for more
            yield RemaskingSampler.from_preset(name, model, num_steps=6, temperature=temperature, **quick)
    for kind, registry in (("unmasking", UNMASKING), ("remasking", REMASKING), ("schedule", SCHEDULES)):
        for name in registry.names():
            if registry.get(name).__module__.startswith("prism_plugin.") and name != "policy":
                yield with_rule(model, kind, name)
    yield RemaskingSampler(
        model, num_steps=8, unmasking=ThresholdUnmasking(0.4), remasking=QualityThresholdRemasking(0.7),
        schedule=LoopSchedule(2, 0.5), temperature=0.7, top_p=0.9, block_length=3, eos_token_id=1, max_remasks_per_position=1,
    )  # fmt: skip
    yield RemaskingSampler(model, num_steps=6, remasking=QualityRemasking(), schedule=RefineSchedule(3, 2))
    safe = {"max_change_share": 0.3, "tabu_length": 2, "remask_neighbours": 1, "max_remasks_per_position": 2}
    yield RemaskingSampler(model, num_steps=8, remasking=QualityRemasking(), schedule=EvenSchedule(3), **safe)
    doubting = BelowRemasking(0.5, "context_confidence")
    yield RemaskingSampler(model, num_steps=6, remasking=doubting, schedule=EvenSchedule(2), look=LeftOutLook(2, 2))
    policy = UnmaskingPolicy(8, num_positions=32, reads_quality=True)
    torch.nn.init.normal_(policy.outer.weight)
    policy.save(folder / "policy.safetensors", model)
    yield RemaskingSampler.from_preset("prism", model, num_steps=6, policy=folder / "policy.safetensors")
    for look in (GuidedLook(1.5), SoftLook(), CachedLook(every=3, widths=(4, 8))):
        yield RemaskingSampler(model, num_steps=6, remasking=QualityRemasking(), schedule=EvenSchedule(1), look=look)


class Cases:
    """What the other process is asked, and what it must answer."""

    def __init__(self, folder):
        self.folder, self.asked, self.expected = folder, [], []

    def add(self, kind, folder, samplers, requests, **how):
        """Ask each sampler every request, on the model in `folder`; its settings come from folders of their own."""
        self.asked.append({"kind": kind, "folder": str(folder), "requests": [], **how})
        self.expected.append([])
        for number, sampler in enumerate(samplers):
            path = self.folder / f"{folder.name}-{number}"
            keep = ("prism_config.json", "quality_head.safetensors", "custom_generate", "adapter_config.json")
            path.mkdir()
            for name in keep:
                if (folder / name).exists():
                    (path / name).symlink_to(folder / name)
            sampler.save_pretrained(path)
            for request in requests:
                self._ask(sampler, path, **request)

    def _ask(self, sampler, path, *, input_ids, attention_mask=None, max_new_tokens=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seeds = list(range(len(input_ids)))
        request = {"input_ids": input_ids.tolist(), "attention_mask": mask.tolist(), "seeds": seeds, "sampler": str(path)}
        if max_new_tokens is None:
            output = sampler.infill(input_ids, mask, generator=generators(*seeds))
        else:
            output = sampler.sample(input_ids, mask, max_new_tokens=max_new_tokens, generator=generators(*seeds))
            request["max_new_tokens"] = max_new_tokens
        self.asked[-1]["requests"].append(request)
        names = ("sequences", "num_forward_passes", "num_remasked")
        self.expected[-1].append({name: getattr(output, name).tolist() for name in names})

    def answers(self):
        (self.folder / "cases.json").write_text(json.dumps(self.asked))
        command = [sys.executable, Path(__file__).with_name("without_us.py"), "cases.json", "answers.json"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(self.folder / "cache")}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads((self.folder / "answers.json").read_text())


REMOTE = {**STANDIN_FAMILIES, **checked_out_families()}
HISTORY = ("age", "commit_confidence", "times_remasked")
HEADS = {
    "linear-history": {"head": "linear", "head_history": ("age",)},
    "mlp-history": {"head_history": HISTORY},
    "transformer": {"head": "transformer", "head_blocks": 2, "head_history": HISTORY},
    "multi-tap": {"head": "multi_tap", "head_taps": (0, -1)},
}
REQUESTS = [{**PROMPTS, "max_new_tokens": NEW}, HOLES]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exports")
    cases = Cases(folder)
    for family, kind, auto_class in (
        ("bert", "call", "AutoModelForMaskedLM"),
        ("llama", "method", "AutoModelForCausalLM"),
        ("sdar", "method", "AutoModelForCausalLM"),
        ("Fast_dLLM_Qwen", "call", "AutoModelForCausalLM"),
        ("nemotron_labs_diffusion", "method", "AutoModelForCausalLM"),
    ):
        scaling = {"quality_temperature": 0.5, "quality_bias": 0.3} if family == "bert" else {}
        model = text_model(family, **scaling)
        export_sampler(RemaskingSampler.from_preset("prism", model, num_steps=6), folder / family)
        model.merge_and_unload()
        samplers = samplers_of(model, folder) if family == "bert" else [
            RemaskingSampler.from_preset("prism-confidence", model, num_steps=6),
            RemaskingSampler.from_preset("prism", model, num_steps=10, block_length=2),
        ]  # fmt: skip
        cases.add(kind, folder / family, samplers, REQUESTS, auto_class=auto_class)
    for name, head in HEADS.items():
        model = text_model("bert", **head)
        sampler = RemaskingSampler.from_preset("prism-confidence", model, num_steps=6)
        export_sampler(sampler, folder / name)
        model.merge_and_unload()
        cases.add("call", folder / name, [sampler], REQUESTS, auto_class="AutoModelForMaskedLM")
    add_sudoku(cases, folder / "sudoku")
    for name, family in REMOTE.items():
        add_remote(cases, family, folder / name)
    add_unmerged(cases, folder / "unmerged")  # the last: no other may need peft
    return cases, cases.answers()


def add_sudoku(cases, folder):
    model = PrismModel.from_pretrained(ROOT / "adapters" / "sudoku-9x9" / "weights")
    sampler = RemaskingSampler.from_pretrained(ROOT / "adapters" / "sudoku-9x9" / "weights", model)
    export_sampler(sampler, folder)
    model.merge_and_unload()
    puzzles = sudoku.read_puzzles(ROOT / "adapters" / "sudoku-9x9" / "data" / "test.txt")[:4]
    sampled = RemaskingSampler.from_preset("prism", model, num_steps=17)
    cases.add("call", folder, [sampler, sampled], [{"input_ids": puzzles}], auto_class="AutoModelForMaskedLM")


def add_remote(cases, family, folder):
    base = folder.with_name(f"{folder.name}-base")
    family.save(base)
    with family.described() if family.spec_changes else nullcontext():
        backbone = load_backbone(base, trust_remote_code=True)
        model = listening(attach_quality_head(backbone, PrismConfig(mask_token_id=MASK), lora=LoraConfig(r=2)))
        sampler = RemaskingSampler.from_preset("prism", model, num_steps=6)
        export_sampler(sampler, folder)
        model.merge_and_unload()
        # Some take no mask, so their rows are whole; the others are asked ragged ones too.
        ragged = {**PROMPTS, "max_new_tokens": NEW}
        whole = {"input_ids": PROMPTS["input_ids"], "max_new_tokens": NEW}
        cases.add("remote", folder, [sampler], [whole if model.spec.attention_mask == "none" else ragged, HOLES])


def add_unmerged(cases, folder):
    base = folder.with_name("unmerged-base")
    model = text_model("bert", backbone_name="someone/tiny", backbone_revision="abc")
    plain = {name: tensor for name, tensor in model.plain_backbone.state_dict().items() if "lora" not in name}
    plain = {name.replace(".base_layer", ""): tensor for name, tensor in plain.items()}
    stands_for_the_hub = tiny_backbone("bert")
    stands_for_the_hub.load_state_dict(plain)
    stands_for_the_hub.save_pretrained(base)
    sampler = RemaskingSampler.from_preset("prism", model, num_steps=6)
    export_sampler(sampler, folder, merge=False)
    cases.add("adapter", folder, [sampler], REQUESTS, auto_class="AutoModelForMaskedLM", base=str(base))


NAMES = ["bert", "llama", "sdar", "Fast_dLLM_Qwen", "nemotron_labs_diffusion", *HEADS, "sudoku", *REMOTE, "unmerged"]


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_the_same_tokens_without_us(cases, place):
    asked, found = cases
    assert found[place] == asked.expected[place]
    assert sum(sum(answer["num_remasked"]) for answer in found[place]) > 0, "nothing was taken back, so little was compared"
    assert len(found[place]) >= 2


def test_all_presets_and_all_rules_were_among_them(cases):
    settings = [json.loads((Path(request["sampler"]) / "sampler_config.json").read_text())
                for request in cases[0].asked[0]["requests"]]  # fmt: skip
    kinds = {"unmasking": UNMASKING, "remasking": REMASKING, "schedule": SCHEDULES, "decider": DECIDERS, "editing": EDITING}
    for kind, registry in (*kinds.items(), ("look", LOOKS)):
        ours = {name for name in registry.names() if registry.get(name).__module__.startswith("prism_plugin.")}
        # a refiner is no setting that could be saved, so nothing that reads one is exported
        assert {one[kind]["name"] for one in settings if kind in one} == ours - {"plain", "refined"}
    assert len(settings) >= 2 * (len(PRESETS) + len(BOTH) + 14)


def test_every_sampler_that_may_redraft_did(cases):
    (cases, answers), redrafted = cases, []
    for request, answer in zip(cases.asked[0]["requests"], answers[0], strict=True):
        config = json.loads((Path(request["sampler"]) / "sampler_config.json").read_text())
        if config["schedule"]["name"] == "redraft":
            redrafted.append(sum(answer["num_remasked"]))
    assert len(redrafted) >= 10
    assert min(redrafted) > 0


def test_our_own_loading_takes_the_folder_too(cases):
    folder = cases[0].folder / "bert"
    sampler = RemaskingSampler.from_pretrained(folder)
    request = cases[0].asked[0]["requests"][0]
    sampler = replace(sampler, **vars(RemaskingSampler.from_pretrained(request["sampler"], sampler.model)))
    again = sampler.sample(**PROMPTS, max_new_tokens=NEW, generator=generators(*request["seeds"]))
    assert again.sequences.tolist() == cases[1][0][0]["sequences"]


def test_the_card_of_an_export_with_code_of_its_own_loads_it(cases):
    folder = cases[0].folder / next(iter(STANDIN_FAMILIES))
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    found = {}
    exec(code.replace("path of this folder", str(folder)), found)
    assert type(found["model"]).__module__.startswith("transformers_modules.")
