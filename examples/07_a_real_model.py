"""Put a quality head on a trained model that nobody here made: AntiBERTy, a BERT of 26 M parameters for antibody sequences.

    pip install --no-deps antiberty==0.1.3 abstar==0.8.0 && python examples/07_a_real_model.py

`antiberty` (PyPI, MIT licence, Copyright 2023 Jeffrey Ruffolo; arXiv 2112.07782) brings the weights and the vocabulary, trained
on 558 M sequences. `abstar` (PyPI, MIT licence, brineylab at Scripps) brings the data, a file of 1,000 sequenced human heavy
chains, of which 770 different ones can be read to their end. Both packages are only read, none of their code is run, and
without them this example says so and stops.

A share of each chain is masked and filled by the model itself at random places, by sampling. The head learns which of the
filled residues are those of the chain; LoRA keeps the model in place. Then, on chains that were held out, the head is compared
with what can be had without one: the probability of a residue when it was written, and the one it has now that it stands there.

Figures of one run, 6 minutes of processor time (AUROC: how often a right residue is rated above a wrong one; 0.5 is chance):

    before   right 0.700   AUROC   quality 0.500, when written 0.887, standing 0.877   recovered in 8 passes 0.695
    after    right 0.682   AUROC   quality 0.872, when written 0.914, standing 0.904   recovered 0.674; by the head 0.714

So after 40 steps the head does not rank as well as the model's own probabilities do; 120 steps gave 0.907 against 0.930 and
0.927 in a trial. Taking back what it doubts recovers 4 % more of the masked residues in the same number of passes. The chains
are not known to be apart from what AntiBERTy was trained on; "held out" is about the head and LoRA.

Prints: the head tells right residues from wrong ones on held-out chains
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import BertTokenizer

import prism_plugin as prism
from prism_plugin.core import EvenSchedule, RandomUnmasking, StepView, auroc
from prism_plugin.types import PerRow, TokenIds, TokenMask

SCORES = ("quality", "commit_confidence", "visible_confidence")
NUM_STEPS, SHARE, NUM_HELD_OUT = 8, 0.5, 32
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"  # the standard code, bases in the order TCAG
CODE = dict(zip(map("".join, product("TCAG", repeat=3)), AMINO_ACIDS, strict=True))


def package_folder(name: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    found = find_spec(name)
    return None if found is None else Path(found.submodule_search_locations[0])


def read_chains(fasta: Path) -> list[str]:
    """Translate DNA in the reading frame in which a chain ends as heavy chains do, with W?G?????VSS."""
    chains = set()
    for record in fasta.read_text(encoding="utf-8").split(">")[1:]:
        dna = "".join(record.splitlines()[1:]).upper()
        for frame in range(3):
            protein = "".join(CODE.get(dna[i : i + 3], "*") for i in range(frame, len(dna) - 2, 3))
            chains |= {match[0] for match in re.finditer(r"[A-Z]{80,}W[GS][A-Z]G[A-Z]{4}VSS", protein)}
    return sorted(chains)


class Observer:
    """A remasking rule that takes nothing back, and keeps how each filled residue is rated while the model goes on."""

    needs = frozenset({"quality", "visible_confidence"})

    def __init__(self, clean_ids: TokenIds) -> None:
        self.clean_ids = clean_ids
        self.seen = {name: [] for name in (*SCORES, "correct")}

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        for name in SCORES:
            self.seen[name].append(getattr(view, name)[view.revealed])
        self.seen["correct"].append((view.candidates == self.clean_ids)[view.revealed])
        return torch.zeros_like(view.revealed)


def measure(model: prism.PrismModel, chains: Sequence[str], title: str) -> float:
    """Mask a share of the chains, let the model fill them, and print how well each score tells right from wrong."""
    encoded = model.tokenizer(list(chains), padding=True, return_tensors="pt")
    clean_ids, present = encoded["input_ids"], encoded["attention_mask"]
    residues = ~torch.isin(clean_ids, torch.tensor(model.tokenizer.all_special_ids))
    chosen = residues & (torch.rand(clean_ids.shape, generator=torch.Generator().manual_seed(0)) < SHARE)
    masked_ids = clean_ids.masked_fill(chosen, model.mask_token_id)
    observer = Observer(clean_ids)
    samplers = {
        # granted one, the observer is asked at each step
        "random order": prism.RemaskingSampler(
            model, num_steps=NUM_STEPS, unmasking=RandomUnmasking(), remasking=observer, temperature=1.0,
            schedule=EvenSchedule(num_remask=1),
        ),
        "the same, taking back 4 a step by the head": prism.RemaskingSampler.from_preset("prism", model, num_steps=NUM_STEPS),
    }  # fmt: skip
    recovered = {}
    for name, sampler in samplers.items():
        filled = sampler.infill(masked_ids, present, generator=torch.Generator().manual_seed(0)).sequences
        recovered[name] = (filled == clean_ids)[chosen].double().mean().item()
    seen = {name: torch.cat(parts) for name, parts in observer.seen.items()}
    found = {name: auroc(seen[name], seen["correct"]) for name in SCORES}
    print(f"{title}: {len(seen['correct'])} residues judged, {seen['correct'].double().mean():.3f} of them right")
    print("  AUROC   " + ", ".join(f"{name} {figure:.3f}" for name, figure in found.items()))
    print("  recovered in 8 passes   " + ", ".join(f"{name} {share:.3f}" for name, share in recovered.items()), flush=True)
    return found["quality"]


def main(model_folder: Path, data_folder: Path) -> None:
    """Attach, measure, fine-tune, measure again."""
    torch.manual_seed(0)
    chains = [" ".join(chain) for chain in read_chains(data_folder / "test_data" / "test_1k.fasta")]
    order = torch.randperm(len(chains)).tolist()
    held_out, training = ([chains[i] for i in part] for part in (order[:NUM_HELD_OUT], order[NUM_HELD_OUT:]))
    tokenizer = BertTokenizer(vocab=str(model_folder / "vocab.txt"), do_lower_case=False)
    backbone = prism.load_backbone(model_folder / "AntiBERTy_md_smooth")
    # Adapters in the upper half only: the backward pass stops there.
    lora = LoraConfig(r=8, target_modules=["query", "key", "value"], layers_to_transform=[4, 5, 6, 7], layers_pattern="layer")
    model = prism.attach_quality_head(backbone, prism.PrismConfig(base_rate=0.7), lora=lora, tokenizer=tokenizer)
    measure(model, held_out, "untrained head")
    with tempfile.TemporaryDirectory() as folder:
        args = prism.PrismTrainingArguments(
            folder,
            max_steps=40,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            head_learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"text": chain} for chain in training]
        objective = prism.get_objective("prism", t_min=0.1, t_max=0.8, drafts=[{"share": [0.1, 1.0], "num_looks": 2}])
        prism.PrismTrainer(model, args, objective=objective, train_dataset=rows).train()
    if measure(model, held_out, "after 40 steps") > 0.8:
        print("the head tells right residues from wrong ones on held-out chains")


if __name__ == "__main__":
    weights, data = package_folder("antiberty"), package_folder("abstar")
    if weights is None or data is None:
        print("skipped: this example needs `pip install --no-deps antiberty==0.1.3 abstar==0.8.0`")
        sys.exit()
    main(weights / "trained_models", data)
