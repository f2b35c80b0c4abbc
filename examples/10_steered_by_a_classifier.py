"""Steer what is written by a classifier: its log-probability is the reward of several runs, of which one is kept.

A masked model has learnt sentences about animals and about people, as many of each. A classifier of transformers tells them
apart, also while letters are missing. `BestOfN` keeps the best of four runs; `ParticleGibbs` draws from what the model writes,
weighed by the classifier (arXiv 2507.08390). Any function of tokens can stand in the classifier's place.

Prints: steered: most sentences are about animals
"""

import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

import prism_plugin as prism
from prism_plugin.data import prepare_rows
from prism_plugin.sampling import BestOfN, ParticleGibbs
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

ANIMALS, PEOPLE = ("cat", "dog", "cow", "pig"), ("man", "boy", "kid", "son")
TEXTS = [f"the {one} was {how}" for one in (*ANIMALS, *PEOPLE) for how in ("glad", "sick")]

torch.manual_seed(0)
tokenizer = tiny_tokenizer()
rows = prepare_rows([{"text": text} for text in TEXTS * 4], tokenizer, mask_token_id=tokenizer.mask_token_id)
batch = prism.PrismCollator(pad_token_id=tokenizer.pad_token_id)(list(rows))
ids, is_animal = batch["input_ids"], torch.tensor([any(one in text for one in ANIMALS) for text in TEXTS * 4]).long()

# A model that fills masks, and a classifier that has seen texts with masks too.
masked = tiny_backbone("bert", hidden_size=64)
size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
classifier = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **size))
optimizer = torch.optim.AdamW([*masked.parameters(), *classifier.parameters()], lr=3e-3)
for _ in range(250):
    t, noise = torch.rand(len(ids)) * 0.95 + 0.05, torch.rand(ids.shape)
    noised = prism.mask_tokens(ids, batch["maskable"], mask_token_id=tokenizer.mask_token_id, t=t, noise=noise)
    loss = cross_entropy(masked(noised.noised_ids).logits[noised.masked], ids[noised.masked])
    loss = loss + cross_entropy(classifier(noised.noised_ids).logits, is_animal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
classifier.eval()


@torch.no_grad()
def about_an_animal(tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability that a text is about an animal, [canvases]; masks may be among its tokens."""
    return classifier(tokens).logits.double().log_softmax(-1)[:, 1]


model = prism.attach_quality_head(masked.eval(), tokenizer=tokenizer)
request = tokenizer(["the [MASK][MASK][MASK] was [MASK][MASK][MASK][MASK]"] * 64, return_tensors="pt")
shares = {}
for name, trajectory in {
    "one run": None,
    "best of 4": BestOfN(4, by=about_an_animal),
    "particle Gibbs": ParticleGibbs(4, by=about_an_animal, beta=0.25, every=2, num_sweeps=2),
}.items():
    sampler = prism.RemaskingSampler.from_preset("random", model, num_steps=8, temperature=1.0, trajectory=trajectory)
    output = sampler.infill(request, generator=torch.Generator().manual_seed(0))
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    shares[name] = sum(any(one in text for one in ANIMALS) for text in texts) / len(texts)
    forwards = output.num_forward_passes.double().mean()
    print(f"{name}: {shares[name]:.0%} about animals, {forwards:.0f} forwards each, such as {texts[0]!r}")
if shares["one run"] < 0.7 and min(shares["best of 4"], shares["particle Gibbs"]) > 0.75:
    print("steered: most sentences are about animals")
