"""A decoder that attends to both sides, really trained to fill masks, its logits about the next position or about their own."""

import torch
from torch.nn.functional import cross_entropy

from prism_plugin.testing import tiny_backbone

ROWS = [{"input_ids": (3 + (start + torch.arange(24)) % 26).tolist()} for start in range(26)]  # runs of the alphabet


def trained_backbone(*, shifted, steps=40):
    """A tiny Mistral with mask token 31."""
    torch.manual_seed(0)
    backbone = tiny_backbone("mistral", hidden_size=32).train()
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    clean = torch.tensor([row["input_ids"] for row in ROWS])
    for _ in range(steps):
        masked = torch.rand(clean.shape) < 0.1 + 0.5 * torch.rand(len(clean), 1)
        masked[:, 0] = False
        logits = backbone(input_ids=clean.masked_fill(masked, 31)).logits
        about = logits[:, :-1][masked[:, 1:]] if shifted else logits[masked]
        optimizer.zero_grad()
        cross_entropy(about, clean[masked]).backward()
        optimizer.step()
    return backbone.eval()
