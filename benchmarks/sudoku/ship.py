"""Put a trained Sudoku adapter where it is shipped: the backbone by its relative path, the model card, the sampler.

    python -m benchmarks.sudoku.ship --run runs/sudoku-9x9

The sampler is `prism-redraft` with at most 102 forward passes, as good on the validation puzzles as with 204.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from benchmarks.sudoku import FOLDER
from prism_plugin.evaluation.compare import read_settings
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

PRESET, NUM_STEPS = "prism-redraft", 102


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the `output_dir` of the training")
    parser.add_argument("--figures", type=Path, help="JSON object of figures for the model card")
    args = parser.parse_args()
    model = PrismModel.from_pretrained(args.run)
    model.prism_config = replace(model.prism_config, backbone_name="../backbone")
    model.card_facts = replace(model.card_facts, base_license="apache-2.0")  # the backbone is ours
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures else None
    model.save_pretrained(FOLDER / "weights", figures=figures)
    settings = read_settings(FOLDER / "sampler.yaml")[PRESET][NUM_STEPS]
    RemaskingSampler.from_preset(PRESET, model, num_steps=NUM_STEPS, **settings).save_pretrained(FOLDER / "weights")


if __name__ == "__main__":
    main()
