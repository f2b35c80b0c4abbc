"""How well the head, and each free proxy, tells right from wrong tokens on the sampler's own states.

    python -m benchmarks.sudoku.quality --adapter adapters/sudoku-9x9/weights

States are all steps of confidence order, one cell a forward pass, on the test puzzles; judged are the revealed cells that
are not clues. `within` compares cells of one state, `pooled` all cells of all states. The same with tables by masks and by
step, and with a picture: `prism-plugin eval quality --on states --preset confidence --num-steps 51`.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.sudoku import FOLDER
from prism_plugin.data import prepare_rows
from prism_plugin.evaluation.calibration import measure
from prism_plugin.evaluation.compare import BATCH_SIZE
from prism_plugin.evaluation.quality import judge_states
from prism_plugin.evaluation.tasks import Sudoku
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

NUM_STEPS = 51


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--data", default="test.txt", help="puzzles of adapters/sudoku-9x9/data (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first puzzles")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampler = RemaskingSampler.from_preset("confidence", PrismModel.from_pretrained(args.adapter), num_steps=NUM_STEPS)
    task = Sudoku()
    known = task.known(task.rows(FOLDER / "data" / args.data, args.limit), sampler.model)
    rows = prepare_rows(known, mask_token_id=sampler.model.mask_token_id)
    figures = measure(judge_states(sampler, rows, batch_size=BATCH_SIZE))
    print(f"{len(rows)} puzzles, {figures.tokens} judged tokens, {figures.right:.4f} of them right\n")
    print("| score | AUROC within a state | AUROC pooled | ECE | Brier |\n| --- | ---: | ---: | ---: | ---: |")
    for name, one in figures.scores.items():
        cells = (f"{figure:.3f}" if figure == figure else "" for figure in (one.auroc_within, one.auroc, one.ece, one.brier))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
