"""Trains a tiny model a few steps by an objective; in one process, or as one of two."""

import json

import datasets
from safetensors.torch import save_file
from training.conftest import build_model, make_rows, make_trainer, recorded_rows
from training_methods import METHODS

from prism_plugin.training import get_objective

OBJECTIVES = {
    "prism": get_objective("prism", t_min=0.2, drafts=[{"num_drafted": 2}, {"share": [0.2, 0.8], "num_looks": 2}]),
    "prism_recorded": get_objective("prism_recorded"),
    "streamed": get_objective("prism", t_min=0.2),
    **METHODS,
}


def train(folder, name, *, batch_size, accumulation):
    """Train, and write down what was logged and learnt, if this is the main process."""
    rows = recorded_rows(16) if name == "prism_recorded" else make_rows(16)
    if name == "streamed":  # ten rows, read again in the third step
        rows = datasets.IterableDataset.from_generator(lambda: iter(make_rows(10))).shuffle(seed=0, buffer_size=5)
    trainer = make_trainer(
        folder,
        model=build_model(lora=name != "backplay"),
        objective=OBJECTIVES[name],
        rows=rows,
        max_steps=3,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",  # Adam would move a weight whose gradient is next to zero to the side that rounding chooses
    )
    trainer.train()
    if trainer.is_world_process_zero():
        logs = [log for log in trainer.state.log_history if "loss" in log]
        learnt = {name: one.detach() for name, one in trainer.model.named_parameters() if one.requires_grad}
        (folder / f"{name}.json").write_text(json.dumps(logs), encoding="utf-8")
        save_file(learnt, folder / f"{name}.safetensors")


def train_all(folder):
    """Train by each objective in turn, as one of two processes."""
    for name in OBJECTIVES:
        train(folder, name, batch_size=1, accumulation=2)
