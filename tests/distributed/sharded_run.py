"""Trains a tiny model whose weights FSDP2 shards over two CPU processes; started by test_sharding.py under torchrun.

accelerate trains with DDP on a CPU, whatever it is told about FSDP. Told through its state, it takes the path it takes on GPUs:
`fully_shard` on a mesh, here of gloo processes.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import set_seed

sys.path.append(str(Path(__file__).parents[1]))
from shifted import ROWS, trained_backbone

import prism_plugin as prism
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training.sharding import gather_trained

# With Adam's own 1e-8, a gradient next to zero moves its weight by the whole learning rate, to the side that rounding chooses.
ADAM_EPSILON = 1e-2
TEXTS = ["the cat sat on the mat.", "a dog ran.", "rain fell all day.", "she read a long book."]


HEADS = {
    "blocks": {"head": "transformer", "head_blocks": 1, "head_history": ("age",)},
    "taps": {"head": "multi_tap", "head_taps": (0, -1)},
}


def make_trainer(output_dir, *, train_backbone=False, backbone=None, rows=None, head=None):
    """A Llama-shaped model that attends to both sides: frozen bfloat16 weights, LoRA and head in float32; or all trained."""
    set_seed(0)
    backbone = backbone or tiny_backbone("llama")
    if not train_backbone:
        backbone = backbone.to(torch.bfloat16)
    model = prism.attach_quality_head(
        backbone,
        prism.PrismConfig(base_rate=0.5, train_backbone=train_backbone, **HEADS.get(head, {})),
        lora=None if train_backbone else LoraConfig(r=4),
        tokenizer=tiny_tokenizer(),
    )
    args = prism.PrismTrainingArguments(
        str(output_dir),
        max_steps=4,
        save_steps=2,
        # One process takes as micro-batches what two take side by side: the same rows in the same shapes.
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2 // int(os.environ.get("WORLD_SIZE", "1")),
        learning_rate=1e-2,
        adam_epsilon=ADAM_EPSILON,
        activation_checkpointing=not train_backbone,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    objective = prism.get_objective("prism", num_drafted=2, t_min=0.2)
    return prism.PrismTrainer(model, args, objective=objective, train_dataset=rows or [{"text": text} for text in TEXTS * 4])


def shard(trainer):
    """What accelerate's state says on GPUs under the config file that the recipes bring."""
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        state_dict_type="FULL_STATE_DICT",
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
    )
    trainer.is_fsdp_enabled = True
    return trainer


def run(output_dir, checkpoint=None, *, train_backbone=False, head=None):
    """Train, and say what was gathered and what was sharded."""
    trainer = shard(make_trainer(output_dir, train_backbone=train_backbone, head=head))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    whole = {name for name, parameter in trainer.model.named_parameters() if not isinstance(parameter, DTensor)}
    gathered = gather_trained(trainer.model)
    if trainer.is_world_process_zero():
        told = {"whole": sorted(whole), "gathered": sorted(gathered)}
        (output_dir / "told.json").write_text(json.dumps(told), encoding="utf-8")


def diverge(output_dir, *, sharded):
    """Train with a loss that is infinite on the second process at step 3, and note what each process is told."""
    trainer = make_trainer(output_dir)
    if sharded:
        shard(trainer)
    compute_loss, process = trainer.compute_loss, trainer.args.process_index

    def late_on_one(*args, **options):
        loss = compute_loss(*args, **options)
        return loss + float("inf") if (process, trainer.state.global_step) == (1, 2) else loss

    trainer.compute_loss = late_on_one
    try:
        trainer.train()
    except prism.PrismError as error:
        (output_dir / f"told-{process}.txt").write_text(str(error), encoding="utf-8")


def shift(output_dir, *, sharded):
    """Train on logits that are about the next position, which only the rows of the first process show."""
    trainer = make_trainer(output_dir, backbone=trained_backbone(shifted=True), rows=ROWS)
    if sharded:
        shard(trainer)
    collate, process = trainer.data_collator, trainer.args.process_index

    def few_to_mask_on_one(rows):
        batch = collate(rows)
        few = torch.arange(batch["input_ids"].shape[1]) < 4  # fewer tokens than a verdict needs
        return batch if process == 0 else {**batch, "maskable": batch["maskable"] & few}

    trainer.data_collator = few_to_mask_on_one
    try:
        trainer.train()
    except prism.PrismError as error:
        output_dir.mkdir(exist_ok=True)
        (output_dir / f"told-{process}.txt").write_text(str(error), encoding="utf-8")


def main():
    folder = Path(sys.argv[1])
    shift(folder / "shifted-ddp", sharded=False)
    diverge(folder / "diverged-ddp", sharded=False)  # first: what `shard` tells accelerate stays told
    run(folder / "run")
    run(folder / "resumed", str(folder / "run" / "checkpoint-2"))
    for head in HEADS:
        run(folder / head, head=head)
    run(folder / "all", train_backbone=True)
    run(folder / "all-resumed", str(folder / "all" / "checkpoint-2"), train_backbone=True)
    diverge(folder / "diverged-fsdp", sharded=True)
    shift(folder / "shifted-fsdp", sharded=True)


if __name__ == "__main__":
    main()
