"""Put a trained adapter where it is shipped: the backbone by its relative path, the model card, a sampler.

    python -m benchmarks.ship --run runs/sudoku-9x9 --folder adapters/sudoku-9x9 --preset prism-redraft --num-steps 102

The sampler has the preset's settings in the folder's `sampler.yaml` for so many steps; its defaults where that is not there.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from prism_plugin.cli.eval import SETTINGS_FILE
from prism_plugin.evaluation.compare import read_settings, settings_for
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the `output_dir` of the training")
    parser.add_argument("--folder", type=Path, required=True, help="the adapter's folder, which holds `backbone`")
    parser.add_argument("--preset", required=True, help="of the sampler that is shipped")
    parser.add_argument("--num-steps", type=int, required=True, help="forward passes that it may use")
    parser.add_argument("--figures", type=Path, help="JSON object of figures for the model card")
    args = parser.parse_args()
    weights, tuned = args.folder / "weights", args.folder / SETTINGS_FILE
    settings = settings_for(read_settings(tuned), args.preset, args.num_steps) if tuned.exists() else {}
    model = PrismModel.from_pretrained(args.run)
    model.prism_config = replace(model.prism_config, backbone_name="../backbone")
    model.card_facts = replace(model.card_facts, base_license="apache-2.0")  # the backbone is ours
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures else None
    model.save_pretrained(weights, figures=figures)
    RemaskingSampler.from_preset(args.preset, model, num_steps=args.num_steps, **settings).save_pretrained(weights)


if __name__ == "__main__":
    main()
