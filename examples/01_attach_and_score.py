"""Attach a quality head to a masked language model, rate the tokens of a text, and give the model back as it was.

An untrained head rates every token alike, at the base rate; 02_fine_tune.py trains one. The model here is a tiny BERT with
random weights; for one of yours, write `prism.load_backbone("a folder or Hub id")`.

Prints: quality by an untrained head: 0.900 at each of 11 tokens
"""

import torch

import prism_plugin as prism
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

torch.manual_seed(0)
backbone = tiny_backbone("bert")
tokenizer = tiny_tokenizer()
weights_before = [parameter.clone() for parameter in backbone.parameters()]

model = prism.attach_quality_head(backbone, prism.PrismConfig(head="mlp", base_rate=0.9), tokenizer=tokenizer)
(quality,) = model.score(["the cat sat"])
low, high = quality.min().item(), quality.max().item()
assert low == high
print(f"quality by an untrained head: {low:.3f} at each of {len(quality)} tokens")

# With their names, and where they stand in the text. On the command line: `prism-plugin score TEXT --adapter FOLDER`.
scored = model.score(["the cat sat"], return_tokens=True)
named = [f"{token!r} at {place[0]}" for token, place in zip(scored.tokens[0], scored.offsets[0], strict=True)]
print(f"the first three: {', '.join(named[:3])}")

# One forward gives both: quality everywhere, and logits only where they are asked for.
input_ids = tokenizer("the [MASK]at sat", return_tensors="pt")["input_ids"]
output = model(input_ids, logits_at=input_ids == model.mask_token_id)
print(f"quality logits {tuple(output.quality_logits.shape)}, rows of the vocabulary {tuple(output.logits.shape)}")

backbone = model.detach()
assert all(torch.equal(before, now) for before, now in zip(weights_before, backbone.parameters(), strict=True))
print(f"{type(backbone).__name__} is given back with the weights it had")
