"""Write a remasking rule: first as a lambda, then as a registered dataclass that can be saved with the sampler.

A rule looks at a `StepView` and marks positions; it never touches the tokens. `view.revealed` is where something may be taken
back, `budget` how much of it per row.

Prints: sampler_config.json names the rule: {'name': 'doubted_by_both', 'head_share': 0.5}
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

import prism_plugin as prism
from prism_plugin.core import REMASKING, ConfidenceUnmasking, EvenSchedule, StepView, select_top
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.types import PerRow, TokenMask

torch.manual_seed(0)
tokenizer = tiny_tokenizer()
model = prism.attach_quality_head(tiny_backbone("bert"), tokenizer=tokenizer)
schedule = EvenSchedule(num_remask=1)

# Good for an experiment: works in every call, but has no name to save.
sampler = prism.RemaskingSampler(
    model,
    num_steps=8,
    unmasking=ConfidenceUnmasking(),
    remasking=lambda view, budget: select_top(-view.quality * view.commit_confidence, view.revealed, budget),
    schedule=schedule,
)
print(sampler.generate(["the cat "], max_new_tokens=8))


@REMASKING.register("doubted_by_both")
@dataclass(frozen=True)
class DoubtedByBoth:
    """Take back what the head rates low now and the language model was unsure of when it wrote it.

    Args:
        head_share: Weight of the head in the weighted geometric mean of the two probabilities, in [0, 1].
    """

    head_share: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"quality"})  # what the sampler has to compute for this rule

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        trust = view.require("quality", self) ** self.head_share * view.commit_confidence ** (1 - self.head_share)
        return select_top(-trust, view.revealed, budget)


sampler = prism.RemaskingSampler(model, num_steps=8, remasking=DoubtedByBoth(), schedule=schedule)
with tempfile.TemporaryDirectory() as folder:
    sampler.save_pretrained(folder)
    written = json.loads((Path(folder) / "sampler_config.json").read_text(encoding="utf-8"))
    loaded = prism.RemaskingSampler.from_pretrained(folder, model)

input_ids = tokenizer("the cat ", return_tensors="pt")["input_ids"]
same = [one.sample(input_ids, max_new_tokens=8).sequences for one in (sampler, loaded)]
assert torch.equal(*same)
print(f"sampler_config.json names the rule: {written['remasking']}")
