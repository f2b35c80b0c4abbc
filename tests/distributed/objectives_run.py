"""Trains a tiny model a few steps by an objective; in one process, or as one of two."""

import json
import warnings

import datasets
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from training.conftest import build_model, make_rows, make_trainer, recorded_rows
from training_methods import FROZEN, METHODS
from transformers import LongformerConfig, LongformerForMaskedLM

from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.training import get_objective

IDLE = {"idle layers": LoraConfig(r=2, target_modules=["query", "query_global"]), "idle layers, all weights": None}

OBJECTIVES = {
    "prism": get_objective("prism", t_min=0.2, drafts=[{"num_drafted": 2}, {"share": [0.2, 0.8], "num_looks": 2}]),
    "prism_recorded": get_objective("prism_recorded"),
    "streamed": get_objective("prism", t_min=0.2),
    **METHODS,
    "history": get_objective("prism", t_min=0.2, share=[0.3, 0.9], num_looks=2, quality_where="visible"),
    **dict.fromkeys(IDLE, get_objective("prism", t_min=0.2)),
}
HEADS = {
    "history": {"head": "transformer", "head_history": ("age", "commit_confidence")},
    "remedi": {"head": "multi_tap", "head_taps": (0, -1)},
}


def with_idle_layers(lora):
    """A Longformer, whose layers for global attention are never called here; with LoRA on some, or trained whole."""
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, attention_window=4,
        max_position_embeddings=66, pad_token_id=0, bos_token_id=1, eos_token_id=1, sep_token_id=1, initializer_range=0.25,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    backbone = LongformerForMaskedLM(config).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No BackboneSpec is registered")
        return attach_quality_head(backbone, PrismConfig(mask_token_id=31, train_backbone=lora is None), lora=lora)


def train(folder, name, *, batch_size, accumulation):
    """Train, and write down what was logged and learnt, if this is the main process."""
    rows = recorded_rows(16) if name == "prism_recorded" else make_rows(16)
    if name == "streamed":  # ten rows, read again in the third step
        rows = datasets.IterableDataset.from_generator(lambda: iter(make_rows(10))).shuffle(seed=0, buffer_size=5)
    trainer = make_trainer(
        folder,
        model=with_idle_layers(IDLE[name]) if name in IDLE else build_model(lora=name not in FROZEN, **HEADS.get(name, {})),
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
