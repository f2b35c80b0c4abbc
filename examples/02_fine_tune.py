"""Fine-tune a quality head and LoRA with `PrismTrainer`, save them, and load them onto the backbone again.

A backbone with random weights writes mostly wrong tokens. That is what the head learns here: from the 0.9 that it starts at,
its quality falls to the share of drafted tokens that are right. 05_your_own_loop.py trains a backbone that is worth judging.

Prints: the quality loss fell, and the loaded model rates as the trained one does
"""

import tempfile

import torch
from peft import LoraConfig

import prism_plugin as prism
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

TEXTS = ["the cat sat on the mat.", "a dog ran to the door.", "rain fell all day.", "she read a long book."]

torch.manual_seed(0)
backbone = tiny_backbone("bert")
model = prism.attach_quality_head(backbone, lora=LoraConfig(r=4), tokenizer=tiny_tokenizer())
rows = [{"text": text} for text in TEXTS * 8]

with tempfile.TemporaryDirectory() as folder:
    args = prism.PrismTrainingArguments(
        folder,
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=1e-3,  # of LoRA
        head_learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    # Two masked positions are filled by the model and judged. One is exact and slow, more are faster: 06_exact_posterior.py.
    objective = prism.get_objective("prism", num_drafted=2)
    trainer = prism.PrismTrainer(model, args, objective=objective, train_dataset=rows, eval_dataset=rows[: len(TEXTS)])
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("eval_quality_loss", "eval_base_rate"):
        print(f"{name}: {before[name]:.3f} -> {after[name]:.3f}")

    model.save_pretrained(folder)  # head, LoRA and tokenizer; not the backbone, which was frozen
    quality = model.score(TEXTS)
    loaded = prism.PrismModel.from_pretrained(folder, backbone=model.detach())

if after["eval_quality_loss"] < before["eval_quality_loss"] and torch.equal(loaded.score(TEXTS), quality):
    print("the quality loss fell, and the loaded model rates as the trained one does")
