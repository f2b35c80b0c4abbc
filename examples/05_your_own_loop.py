"""Train in a plain torch loop, without `Trainer`: first a masked diffusion model, then its quality head.

`prism.mask_tokens` is a pure function that is given its randomness. `objective.step` is a function of batch, epoch and seed:
the same example gets fresh noise in each epoch, and the same noise when the epoch is run again. In the end, one letter of
each text is replaced, and the head is asked which.

Prints: the replaced letter has the lowest quality in most of the texts
"""

import torch
from peft import LoraConfig
from torch.nn.functional import cross_entropy

import prism_plugin as prism
from prism_plugin.data import prepare_rows
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

TEXTS = ["the cat sat on the mat.", "a dog ran to the door.", "rain fell all day.", "she read a long book."]

torch.manual_seed(0)
tokenizer = tiny_tokenizer()
backbone = tiny_backbone("bert", hidden_size=64)
rows = prepare_rows([{"text": text} for text in TEXTS * 8], tokenizer, mask_token_id=tokenizer.mask_token_id)
batch = prism.PrismCollator(pad_token_id=tokenizer.pad_token_id)(list(rows))

# A masked diffusion model: mask each token with probability t, guess the masked ones, weigh by 1/t.
optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-3)
for _ in range(100):
    t = torch.rand(len(rows)) * 0.95 + 0.05
    noised = prism.mask_tokens(
        batch["input_ids"],
        batch["maskable"],
        mask_token_id=tokenizer.mask_token_id,
        t=t,
        noise=torch.rand(batch["input_ids"].shape),
    )
    logits = backbone(noised.noised_ids, attention_mask=batch["attention_mask"]).logits[noised.masked]
    weight = (1 / t).unsqueeze(1).expand_as(noised.masked)[noised.masked]
    loss = (weight * cross_entropy(logits, batch["input_ids"][noised.masked], reduction="none")).sum() / batch["maskable"].sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"masked diffusion loss: {loss:.2f}")

# Its quality head, with LoRA: the backbone's own weights stay as they are.
model = prism.attach_quality_head(backbone, prism.PrismConfig(base_rate=0.5), lora=LoraConfig(r=8), tokenizer=tokenizer)
# This backbone knows its few texts by heart. Tokens drawn at a high temperature are wrong often enough to learn from.
objective = prism.get_objective("prism", num_drafted=2, temperature=3.0)
optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
for epoch in range(150):
    output = objective.step(model, batch, epoch=epoch, seed=0, unwrapped=model)
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
quality = output.terms["quality"]
right, judged = quality.labels.targets.sum(), quality.labels.labelled.sum()
print(f"quality loss: {quality.loss:.2f}, right tokens: {right:.0f} of {judged}")

# Replace one letter of each text by the next in the alphabet.
found = 0
for row, text in enumerate(TEXTS * 8):
    letters = [index for index, letter in enumerate(text) if letter.isalpha()]
    place = letters[row % len(letters)]
    replaced = text[:place] + ("a" if text[place] == "z" else chr(ord(text[place]) + 1)) + text[place + 1 :]
    (quality,) = model.score([replaced])
    found += quality.argmin().item() == place
    if row < len(TEXTS):
        print(f"  {replaced}\n  {' ' * quality.argmin().item()}^ quality {quality.min():.2f}")
print(f"found {found} of {len(rows)}")
if found > len(rows) / 2:
    print("the replaced letter has the lowest quality in most of the texts")
