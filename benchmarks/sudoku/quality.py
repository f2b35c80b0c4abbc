"""How well the head, and each free proxy, tells right from wrong tokens on the sampler's own states.

    python -m benchmarks.sudoku.quality --adapter adapters/sudoku-9x9/weights

States are all steps of confidence order, one cell a forward pass, on the test puzzles; judged are the revealed cells that
are not clues. `within` compares cells of one state, `pooled` all cells of all states.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sudoku.trials import FOLDER
from prism_plugin.core import EvenSchedule, StepView
from prism_plugin.core.calibration import auroc, brier, ece
from prism_plugin.evaluation.tasks import sudoku, sudoku_eval
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.types import PerRow, TokenIds, TokenMask

NUM_STEPS = 51
SCORES = ("quality", "visible_confidence", "commit_confidence")


class Observer:
    """A remasking rule that takes nothing back, and keeps what it sees of revealed cells."""

    needs = frozenset({"quality", "visible_confidence"})

    def __init__(self, solutions: TokenIds) -> None:
        self.solutions = solutions
        self.seen: dict[str, list[Tensor]] = {name: [] for name in (*SCORES, "correct", "state")}
        self.states = 0

    def __call__(self, view: StepView, budget: PerRow) -> TokenMask:
        revealed = view.revealed
        for name in SCORES:
            self.seen[name].append(getattr(view, name)[revealed].float())
        # at revealed positions `candidates` are the tokens that stand there
        self.seen["correct"].append((view.candidates == self.solutions)[revealed])
        rows = torch.arange(len(revealed)).unsqueeze(-1).expand_as(revealed)
        self.seen["state"].append(rows[revealed] + self.states)
        self.states += len(revealed)
        return torch.zeros_like(revealed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--data", default="test.txt", help="puzzles of adapters/sudoku-9x9/data (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first puzzles")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = PrismModel.from_pretrained(args.adapter)
    puzzles = sudoku_eval.Puzzles.solve(sudoku.read_puzzles(FOLDER / "data" / args.data)[: args.limit])
    size = sudoku_eval.BATCH_SIZE
    parts = []
    for start in range(0, len(puzzles.puzzles), size):
        observer = Observer(puzzles.solutions[start : start + size])
        # granted one, the rule is asked at each step
        sampler = RemaskingSampler(model, num_steps=NUM_STEPS, remasking=observer, schedule=EvenSchedule(num_remask=1))
        sampler.infill(puzzles.puzzles[start : start + size])
        parts.append({name: torch.cat(values) for name, values in observer.seen.items()})
        parts[-1]["state"] += start * NUM_STEPS
    seen = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    correct = seen["correct"]
    print(f"{len(puzzles.puzzles)} puzzles, {len(correct)} judged tokens, {correct.double().mean():.4f} of them right\n")
    print("| score | AUROC within a state | AUROC pooled | ECE | Brier |\n| --- | ---: | ---: | ---: | ---: |")
    for name in SCORES:
        score = seen[name]
        figures = (auroc(score, correct, seen["state"]), auroc(score, correct), ece(score, correct), brier(score, correct))
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
