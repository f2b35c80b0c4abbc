"""Writes docs/methods.md from the registries: `python .ci/methods.py`; with `--check` it says whether the page is stale."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prism_plugin.core import DECIDERS, EDITING, REMASKING, SCHEDULES, UNMASKING
from prism_plugin.decoding import LOOKS
from prism_plugin.sampling import PRESETS, Preset, SamplerSettings
from prism_plugin.sampling.presets import preset_settings
from prism_plugin.sampling.trajectories import TRAJECTORIES, ParticleGibbs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"

# Each system of the field, where it is here, and what is not: by name, so that a name without a home is seen.
SYSTEMS = {
    "PRISM": "objective `prism`, the quality head, presets `prism*`",
    "ProSeCo": "objective `proseco`, look `corrected`, preset `proseco`",
    "DSL": "its soft corruption alone: objective `soft_masked`, look `soft`; another noise process otherwise",
    "FreeCorrection": "preset `history-mean`",
    "SR-SMC": "trajectory and preset `self_rewarding_smc` ([several runs](sampling.md#several-runs-of-a-row))",
    "BackPlay": "objective `backplay`, head `transformer`, preset `backplay`",
    "Unmasking policies": "unmasking rule `policy`, a setting of presets; an example trains one "
    "([a learned order](sampling.md#a-learned-order))",
    "PG-DLM": "trajectory and preset `particle_gibbs`",
    "MoI": "look `soft`",
    "MaPeT": "`masks: permuted_prefix` alone; the rest is pretraining of images",
    "SMART": "objective `smart`",
    "IPR": "trajectory and preset `partial_refinement`, its discrete analogue",
    "T2M": "preset `t2m`, its three detectors",
    "LLaDA2.1 T2T": "objective `t2t`, preset `t2t`",
    "CoDiLA": "`RefinedLook(CausalChecker(...))` with decider `refined`: a causal model verifies; not its trained writer",
    "ReMDM": "presets `remdm-cap`, `remdm-rescale`, `remdm-conf`, `remdm-loop`",
    "Token-Critic": "objective `token_critic`; `CriticLook`, a critic of its own, or the model's own head",
    "P2": "objective `p2_planner`, preset `p2`",
    "RemeDi": "objective `remedi`, preset `remedi`; neither its second stream nor its reinforcement learning",
    "LLaDA low-confidence, entropy, margin, random": "unmasking rules `confidence`, `entropy`, `margin`, `random`",
    "Fast-dLLM": "presets `threshold` and `factor`, look `cached`",
    "KLASS": "preset `klass`",
    "GIDD": "preset `gidd`, its self-correction; another noise process otherwise",
    "CDLM": "objective `cdlm`, preset `cdlm`",
    "CoRe": "look `left_out` with `below` at `context_confidence`, in its spirit: its own perturbation was not found",
    "RCR": "preset `rcr`",
    "CAP": "term `cap`",
    "LLaDA2.2": "the family; not its sampler, which inserts and deletes tokens",
    "WINO": "look `shadow`, preset `wino`",
    "SCOPE, D3IM": "objective `scope`; its revision is what `t2t` does with `edit_threshold` 0",
    "DMax": "objective `dmax`, look `soft`",
    "Soft-Masked Diffusion": "objective `soft_masked`, look `soft`",
}

INTRO = """# Methods

What each sampler of the field is here: one preset a method, with its published numbers. `python .ci/methods.py` writes this
page from the registries, and a test says when it is stale. How to use presets and rules: [sampling](sampling.md); what
objectives teach: [objectives](objectives.md).

A preset works on any attached model that can make its look. "Head" says whether it reads the quality head. A look costs one
forward over the whole canvas and an LM-head row at each mask of the active block, unless its row says more. What each does on
one model and task: [all of them on Sudoku](../adapters/sudoku-9x9/README.md#every-sampler-of-the-field).
"""


BESIDE = """
## Beside the authors' code

`tests/sampling/test_authors_code.py` and `test_authors_smc.py` run the authors' own code beside ours on tiny models. Without
a folder of checkouts they are skipped:

```bash
mkdir authors && cd authors
git clone https://github.com/Feng-Hong/WINO-DLLM && git clone https://github.com/shkim0116/KLASS
git clone https://github.com/autonomousvision/mdpo && git clone https://github.com/kuleshov-group/proseco
git clone https://github.com/kuleshov-group/remdm && git clone https://github.com/synsis/remasked_DLM
git clone https://github.com/huge123/FreeCorrection && git clone https://github.com/ZHZisZZ/dllm
git clone https://github.com/Algolzw/self-rewarding-smc
PRISM_AUTHORS=$PWD pytest ../tests/sampling -k authors
```

"""

# Of each comparison: the presets, the authors' function, its revision, and what is the same.
COMPARED = [
    ("`wino`", "`decoding_wino`", "9549a1d", "every token, with and without remasks"),
    (
        "`klass`", "`stable_confident_decode`", "ad87ecb",
        "every token and the number of looks, in one block; in later ones theirs compares the first look with one of the block "
        "before",
    ),
    (
        "`rcr`, `planner: commit_confidence`", "`diffusion_generate`", "e6ae439",
        "every token, in one block and where its float steps round as integers do; with more, theirs takes back tokens of "
        "earlier blocks",
    ),
    ("`proseco`", "`generate` (LLaDA)", "69fe45d", "every token and the number of forwards"),
    (
        "`t2t`", "`LLaDA21Sampler` of dLLM", "ca17675",
        "every canvas, look by look, until theirs stops at 16 looks after the last mask",
    ),
    (
        "`t2m`, three detectors", "`_token_edit_step`", "1fe25ab",
        "every token that is taken back, with and without the cap; of a batch theirs looks at the first row alone",
    ),
    (
        "`remdm-cap`, `-rescale`, `-conf`, `-loop`", "`_ddpm_caching_update`", "f830d65",
        "the probability that a token is masked again; ours reveals as many as the even line says, theirs a number by chance",
    ),
    (
        "`self_rewarding_smc` at block ends", "`generate` (LLaDA)", "07b50aa",
        "every canvas of every particle, look by look, at the same draws, so who is resampled from whom; theirs resamples "
        "after the last block as well, and may lose the best",
    ),
    ("`history-mean`", "`mask_by_random_topk`", "17fc37a", "which tokens are taken back, by the same means"),
]  # fmt: skip


def first_sentence(documented: object) -> str:
    """What a docstring says first."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split()).rstrip(".").replace("|", "\\|")


def cost_of(settings: SamplerSettings) -> str:
    """What a look of a sampler costs beyond a forward and the rows at masks."""
    more = []
    if "visible" in settings.reads:
        more.append("rows at tokens")
    name = "plain" if settings.look is None else LOOKS.to_dict(settings.look)["name"]
    if name == "corrected":
        more = [f"every {settings.look.every} looks up to {settings.look.most} forwards more"]
    if name == "shadow":
        more.append("as many positions more as the block has, and rows at tokens")
    if isinstance(settings.trajectory, ParticleGibbs):
        more.append("a run for each particle but the reference, in each sweep")
    elif settings.trajectory is not None:
        many = getattr(settings.trajectory, "num_particles", 1) > 1
        more.append("a run for each particle" if many else "up to as many looks more in each round")
    if settings.decide.blind:
        more.append("rows only where a token is written")
    return "; ".join(more) or "nothing more"


def parts_of(preset: Preset) -> str:
    """The rules of a preset, by their names on disk."""
    if preset.decider is not None:
        return f"decider `{DECIDERS.to_dict(preset.decider)['name']}`"
    parts = [f"`{UNMASKING.to_dict(preset.unmasking)['name']}`"]
    remasking = REMASKING.to_dict(preset.remasking)["name"]
    parts += [] if remasking == "never" else [f"takes back `{remasking}`"]
    parts += [] if preset.editing is None else [f"overwrites `{EDITING.to_dict(preset.editing)['name']}`"]
    parts += [] if preset.trajectory is None else [f"runs `{TRAJECTORIES.to_dict(preset.trajectory)['name']}`"]
    return ", ".join(parts)


def numbers_of(preset: Preset) -> dict[str, Any]:
    """What a preset's settings are where nobody gives others, but for those that bound nothing."""
    found = dict(preset.defaults)
    for name, change in preset.takes.items():
        part = getattr(preset, change.part)
        if change.instead is None and hasattr(part, change.field):
            found[name] = getattr(part, change.field)
    return {name: value for name, value in found.items() if value is not None and value != 2**31 - 1}


def value_in_words(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def presets() -> Iterator[str]:
    yield "| preset | rules | schedule | numbers | head | a look costs more | from, and what differs |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, preset in PRESETS.items():
        settings = SamplerSettings(num_steps=8, **preset_settings(name, {}))
        numbers = ", ".join(f"{key} {value_in_words(value)}" for key, value in preset.defaults.items() if value != 2**31 - 1)
        head = "yes" if settings.reads_head else "no"
        schedule = SCHEDULES.to_dict(preset.schedule)["name"]
        yield (
            f"| `{name}` | {parts_of(preset)} | `{schedule}` | {numbers or 'none'} | {head} | {cost_of(settings)} | "
            f"{preset.source} |"
        )


def registry(kinds: Mapping[str, Any]) -> Iterator[str]:
    for heading, one in kinds.items():
        yield f"\n## {heading}\n"
        yield "| name | class | what it does |"
        yield "| --- | --- | --- |"
        for name in one.names():
            if one.get(name).__module__.startswith("prism_plugin."):
                yield f"| `{name}` | `{one.get(name).__name__}` | {first_sentence(one.get(name))} |"


def page() -> str:
    lines = [INTRO, "## Presets\n", *presets()]
    lines += registry({
        "Unmasking rules: which masks to fill": UNMASKING,
        "Remasking rules: which tokens to take back": REMASKING,
        "Editing rules: which tokens to overwrite": EDITING,
        "Deciders: masks and tokens on one scale": DECIDERS,
        "Schedules: how many, at each step": SCHEDULES,
        "Looks: how the network is asked": LOOKS,
        "Trajectories: several runs of a row": TRAJECTORIES,
    })  # fmt: skip
    lines += ["\n## Where each system of the field is\n", "| system | here |", "| --- | --- |"]
    lines += [f"| {name} | {where} |" for name, where in SYSTEMS.items()]
    lines += [BESIDE, "| preset | theirs | revision | the same |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in COMPARED]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    written = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if "--check" in sys.argv:
        sys.exit(0 if written == page() else "docs/methods.md is not what the registries give; run `python .ci/methods.py`.")
    PAGE.write_text(page(), encoding="utf-8")
