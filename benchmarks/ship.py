"""Put a trained adapter where it is shipped: the backbone by its relative path, the model card, a sampler.

    python -m benchmarks.ship --run runs/sudoku-9x9 --folder adapters/sudoku-9x9 --preset prism-redraft --num-steps 102

The sampler has the preset's settings in the folder's `sampler.yaml` for so many steps; its defaults where that is not there. A
head that was trained on a merged model goes onto the adapter that was merged, by `--onto`, and into a folder of its own, by
`--to`:

    python -m benchmarks.ship --run runs/study/deep --onto adapters/sudoku-9x9/weights --folder adapters/sudoku-9x9 --to deep \
        --preset prism-redraft --num-steps 102
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from prism_plugin.cli.eval import SETTINGS_FILE
from prism_plugin.evaluation.compare import read_settings, settings_for
from prism_plugin.modeling import PrismModel
from prism_plugin.modeling.config import HEAD_SETTINGS
from prism_plugin.sampling import RemaskingSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the `output_dir` of the training")
    parser.add_argument("--folder", type=Path, required=True, help="the adapter's folder, which holds `backbone`")
    parser.add_argument("--preset", required=True, help="of the sampler that is shipped")
    parser.add_argument("--num-steps", type=int, required=True, help="forward passes that it may use")
    parser.add_argument("--onto", type=Path, help="the adapter that was merged into the backbone of the run")
    parser.add_argument("--to", default="weights", help="name of the folder that is written (default: %(default)s)")
    parser.add_argument("--figures", type=Path, help="JSON object of figures for the model card")
    args = parser.parse_args()
    weights, tuned = args.folder / args.to, args.folder / SETTINGS_FILE
    settings = settings_for(read_settings(tuned), args.preset, args.num_steps) if tuned.exists() else {}
    model = PrismModel.from_pretrained(args.run)
    if args.onto is not None:
        model = with_head_of(args.onto, model)
    model.prism_config = replace(model.prism_config, backbone_name="../backbone")
    model.card_facts = replace(model.card_facts, base_license="apache-2.0")  # the backbone is ours
    figures = json.loads(args.figures.read_text(encoding="utf-8")) if args.figures else None
    model.save_pretrained(weights, figures=figures)
    RemaskingSampler.from_preset(args.preset, model, num_steps=args.num_steps, **settings).save_pretrained(weights)


def with_head_of(adapter: Path, trained: PrismModel) -> PrismModel:
    """An adapter with the head that was trained on what it makes of the backbone.

    Raises:
        SystemExit: If the head was trained on other weights.
    """
    merged = PrismModel.from_pretrained(adapter)
    merged.merge_and_unload()
    others = trained.plain_backbone.state_dict()
    for name, tensor in merged.plain_backbone.state_dict().items():
        if not torch.allclose(tensor, others[name], atol=1e-6):
            raise SystemExit(f"the head must be trained on {adapter} merged into its backbone, but {name} is another there.")
    model, config = PrismModel.from_pretrained(adapter), trained.prism_config
    own = {name: getattr(config, name) for name in ("head", "head_history", "base_rate", "objective", *HEAD_SETTINGS)}
    model.quality_head, model.prism_config = trained.quality_head, replace(model.prism_config, **own)
    model.card_facts = trained.card_facts
    return model


if __name__ == "__main__":
    main()
