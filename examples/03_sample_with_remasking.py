"""Generate by filling masks, with and without taking tokens back, at the same number of forward passes.

A preset names an unmasking rule, a remasking rule and a schedule; what is taken back is granted again on top, so remasking
costs no forward pass. The weights are random, so the text means nothing; how it comes about is what this shows.

Prints: at 12 forward passes each, `confidence` took back 0 tokens and `prism-confidence` 10
"""

import torch

import prism_plugin as prism
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

torch.manual_seed(0)
tokenizer = tiny_tokenizer()
model = prism.attach_quality_head(tiny_backbone("bert"), tokenizer=tokenizer)
input_ids = tokenizer("the cat ", return_tensors="pt")["input_ids"]

taken_back = {}
for preset in ("confidence", "prism-confidence"):
    sampler = prism.RemaskingSampler.from_preset(preset, model, num_steps=12)
    output = sampler.sample(input_ids, max_new_tokens=12, return_trace=True)
    print(f"\n{preset}")
    for record in output.trace:
        (ids,) = record.tokens_after.tolist()
        print("  " + "".join("_" if token == model.mask_token_id else tokenizer.decode([token]) for token in ids))
    assert output.num_forward_passes.tolist() == [12]
    taken_back[preset] = output.num_remasked.item()

print(
    f"\nat 12 forward passes each, `confidence` took back {taken_back['confidence']} tokens "
    f"and `prism-confidence` {taken_back['prism-confidence']}"
)
