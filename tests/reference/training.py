"""PRISM's training step (arXiv 2510.01384, algorithm 1), row by row without padding, with rules mixed and rolled out."""

import math

from reference.categorical import inverse_cdf, nucleus, softmax
from reference.losses import diffusion_loss, quality_loss
from reference.noise import uniforms


def step(look, rows, rules, *, mask_token_id, num_drafts, t_range, seed, epoch):
    """Quality and diffusion loss of a batch.

    `look(ids)` gives (logits of every position, quality logits) of one sequence; a row is (example_id, clean_ids, maskable).
    """
    quality, diffusion = [], []
    for example_id, clean, maskable in rows:

        def noise(name, count=None, example_id=example_id, clean=clean):
            return uniforms(seed, epoch, example_id, name, count or len(clean))

        t = t_range[0] + (t_range[1] - t_range[0]) * noise("t", 1)[0]
        masked = [may and chance < t for may, chance in zip(maskable, noise("masked"), strict=True)]
        noised = [mask_token_id if hidden else token for token, hidden in zip(clean, masked, strict=True)]
        first, _ = look(noised)
        diffusion.append(diffusion_loss([first], [clean], [masked], [maskable], [t]))
        for draft in range(num_drafts):
            drafted = make_draft(look, noised, masked, rules, draft, noise, mask_token_id)
            _, quality_logits = look(drafted)
            filled = [here != before for here, before in zip(drafted, noised, strict=True)]
            quality.append(quality_loss([quality_logits], [drafted], [clean], [filled]))
    return sum(quality) / len(quality), sum(diffusion) / len(diffusion)


def recorded_step(look, rows, *, mask_token_id):
    """Quality and diffusion loss of recorded drafts; a row is (clean_ids, maskable, draft_ids)."""
    quality, diffusion = [], []
    for clean, maskable, draft in rows:
        masked = [may and token == mask_token_id for may, token in zip(maskable, draft, strict=True)]
        noised = [mask_token_id if hidden else token for token, hidden in zip(clean, masked, strict=True)]
        if any(masked):
            first, _ = look(noised)
            t = sum(masked) / sum(maskable)
            diffusion.append(diffusion_loss([first], [clean], [masked], [maskable], [t]))
        else:
            diffusion.append(0.0)
        _, quality_logits = look(draft)
        revealed = [may and not hidden for may, hidden in zip(maskable, masked, strict=True)]
        quality.append(quality_loss([quality_logits], [draft], [clean], [revealed]))
    return sum(quality) / len(quality), sum(diffusion) / len(diffusion)


def make_draft(look, noised, masked, rules, draft, noise, mask_token_id):
    rule = pick(rules, noise(f"rule/{draft}", 1)[0])
    tokens, available = list(noised), sum(masked)
    if rule.share is None:
        wanted = min(rule.num_drafted, available)
    else:
        low, high = rule.share
        share = low + (high - low) * noise(f"share/{draft}", 1)[0]
        wanted = min(available, max(1, math.ceil(share * available - 1e-4)))
    filled = 0
    for number in range(rule.num_looks):
        due = math.ceil((number + 1) * wanted / rule.num_looks) - filled
        logits, _ = look(tokens)
        where = [position for position, token in enumerate(tokens) if token == mask_token_id]
        if rule.window is not None and where:
            where = [position for position in where if position < where[0] + rule.window]
        candidates = {p: draw(logits[p], rule, noise(f"token/{draft}/{number}")[p], mask_token_id) for p in where}
        if rule.positions == "random":
            score = dict(enumerate(noise(f"position/{draft}/{number}")))
        else:
            score = {p: softmax(logits[p], (mask_token_id,))[candidates[p]] for p in where}
        for position in sorted(where, key=lambda p: -score[p])[:due]:
            tokens[position] = candidates[position]
            filled += 1
    return tokens


def pick(rules, chance):
    total, mass = sum(rule.weight for rule in rules), 0.0
    for rule in rules:
        mass += rule.weight / total
        if chance < mass:
            return rule
    return rules[-1]


def draw(logits, rule, chance, mask_token_id):
    if rule.tokens == "argmax":
        probabilities = softmax(logits, (mask_token_id,))
        return max(range(len(logits)), key=lambda token: probabilities[token])
    return inverse_cdf(nucleus(softmax(logits, (mask_token_id,), rule.temperature), rule.top_p), chance)
