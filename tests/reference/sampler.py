"""The sampler for one row at temperature 0, confidence order, lowest quality taken back: lists, loops and full logits."""

import math

import torch

from reference.schedules import even_budget


@torch.no_grad()
def look(model, tokens):
    """Everything the model says about one row: probabilities of all tokens at all positions, and quality."""
    output = model(torch.tensor([tokens]), logits_at=torch.ones(1, len(tokens), dtype=torch.bool))
    logits = output.logits.double()
    logits[:, model.mask_token_id] = -math.inf
    return logits.softmax(-1).tolist(), output.quality_logits.sigmoid()[0].tolist()


def sample(model, prompt, *, max_new_tokens, num_steps, num_remask=0, block_length=None, eos_token_id=None, fill_id=None):
    """Return tokens, forward passes, remasks, and the last quality seen of each token (None where there is none)."""
    mask = model.mask_token_id
    tokens = [*prompt, *[mask] * max_new_tokens]
    seen = [None] * len(tokens)
    size = block_length or max_new_tokens
    starts = list(range(len(prompt), len(tokens), size))
    num_forward_passes = num_remasked = 0
    for number, start in enumerate(starts):
        block = range(start, min(start + size, len(tokens)))
        steps = num_steps // len(starts) + (number < num_steps % len(starts))
        for step in range(steps):
            masked = [i for i in block if tokens[i] == mask]
            revealed = [i for i in block if tokens[i] != mask]
            budget, target = even_budget(step, steps, len(block), len(revealed), num_remask)
            if not budget and target <= len(revealed):
                continue
            probabilities, quality = look(model, tokens)
            num_forward_passes += 1
            if num_remask:
                seen = [quality[i] if i >= len(prompt) and tokens[i] != mask else None for i in range(len(tokens))]
            remask = sorted(revealed, key=lambda i: (quality[i], i))[:budget]
            grant = min(max(target - len(revealed) + len(remask), 0), len(masked))
            reveal = sorted(masked, key=lambda i: (-max(probabilities[i]), i))[:grant]
            for i in reveal:
                tokens[i] = probabilities[i].index(max(probabilities[i]))
            for i in remask:
                tokens[i], seen[i] = mask, None
            num_remasked += len(remask)
        ends = [i for i in block if tokens[i] == eos_token_id]
        if ends:
            for i in range(ends[0] + 1, len(tokens)):
                tokens[i], seen[i] = fill_id, None
            break
    assert mask not in tokens
    return tokens, num_forward_passes, num_remasked, seen
