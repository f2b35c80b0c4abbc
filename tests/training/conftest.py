from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from prism_plugin.data import PrismCollator
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.testing import tiny_backbone, tiny_tokenizer
from prism_plugin.training import PrismTrainer, PrismTrainingArguments

MASK = 31


def build_model(*, lora=True, tokenizer=None, dropout=0.0, **config):
    """A tiny real BERT that listens to its input, so that mistakes in what it is shown do not hide."""
    torch.manual_seed(0)
    adapter = LoraConfig(r=2, init_lora_weights=False, target_modules=["query", "value"]) if lora else None
    model = attach_quality_head(
        tiny_backbone(dropout=dropout), PrismConfig(mask_token_id=MASK, **config), lora=adapter, tokenizer=tokenizer
    )
    with torch.no_grad():
        for parameter in model.quality_head.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
        for parameter in model.plain_backbone.bert.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
        model.get_output_embeddings().bias[3:7] += 6  # the tokens of `make_rows`, so that some drafts are right
    return model


def make_rows(count, seed=0):
    """Prepared rows of different length, with a prompt of two tokens that may not be masked."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        length = 5 + index % 7
        ids = torch.randint(3, 7, (length,), generator=generator).tolist()
        rows.append({"example_id": index, "input_ids": ids, "maskable": [False, False] + [True] * (length - 2)})
    return rows


def recorded_rows(count, seed=0):
    """The same with drafts: a mask, a right or a wrong token at each maskable position; the last row's holds no mask."""
    generator = torch.Generator().manual_seed(seed)
    rows = make_rows(count)
    for row in rows:
        size = len(row["input_ids"])
        kind = torch.randint(0, 3, (size,), generator=generator)
        other = torch.randint(3, 7, (size,), generator=generator)
        clean, maskable = torch.tensor(row["input_ids"]), torch.tensor(row["maskable"])
        draft = torch.where(kind == 0, MASK, torch.where(kind == 1, clean, other))
        draft[-1] = other[-1]
        if row is rows[-1]:
            draft = torch.where(draft == MASK, other, draft)
        row["draft_ids"] = torch.where(maskable, draft, clean).tolist()
    return rows


def losses(output):
    """What a step gave, under the names of the reference."""
    loss = {name: term.loss for name, term in output.terms.items()}
    labels = output.terms["quality"].labels
    return SimpleNamespace(
        loss=output.loss, quality_loss=loss["quality"], diffusion_loss=loss["diffusion"],
        num_correct=labels.targets.sum(), num_judged=labels.labelled.sum(),
    )  # fmt: skip


def make_trainer(directory, *, model=None, objective=None, rows=None, eval_rows=None, **arguments):
    settings = {
        "output_dir": str(directory),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "disable_tqdm": True,
    } | arguments
    return PrismTrainer(
        model or build_model(),
        PrismTrainingArguments(**settings),
        objective=objective,
        train_dataset=make_rows(16) if rows is None else rows,
        eval_dataset=eval_rows,
    )


@pytest.fixture(scope="session")
def lab():
    """What the tests of this folder build with."""
    return SimpleNamespace(
        mask=MASK,
        build_model=build_model,
        make_rows=make_rows,
        recorded_rows=recorded_rows,
        make_trainer=make_trainer,
        losses=losses,
        collate=PrismCollator(pad_token_id=0),
        tokenizer=tiny_tokenizer(),
    )
