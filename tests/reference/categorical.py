"""Softmax, nucleus and inverse cumulative distribution of one row of logits, and LLaDA's step (its generate.py)."""

import math


def softmax(logits, forbidden_ids=(), temperature=1.0):
    allowed = [logit / temperature for token, logit in enumerate(logits) if token not in forbidden_ids]
    highest = max(allowed)
    total = sum(math.exp(logit - highest) for logit in allowed)
    return [
        0.0 if token in forbidden_ids else math.exp(logit / temperature - highest) / total for token, logit in enumerate(logits)
    ]


def nucleus(probabilities, top_p):
    order = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += probabilities[token]
    return [probability / mass if token in kept else 0.0 for token, probability in enumerate(probabilities)]


def inverse_cdf(probabilities, uniform):
    mass = 0.0
    for token, probability in enumerate(probabilities):
        mass += probability
        if uniform < mass:
            return token
    raise AssertionError("probabilities do not sum to 1")


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def margin(probabilities):
    first, second = sorted(probabilities, reverse=True)[:2]
    return first - second


def llada_step(tokens, logits, mask_token_id, num_unmasked):
    """Fill the `num_unmasked` masks of one sequence whose argmax has the highest probability; LLaDA's `low_confidence`."""
    candidates, confidence = [], []
    for token, row in zip(tokens, logits, strict=True):
        probabilities = softmax(row, forbidden_ids=(mask_token_id,))
        best = max(range(len(row)), key=lambda choice: probabilities[choice])
        candidates.append(best if token == mask_token_id else token)
        confidence.append(probabilities[best] if token == mask_token_id else -math.inf)
    order = sorted(range(len(tokens)), key=lambda position: (-confidence[position], position))
    filled = list(tokens)
    for position in order[:num_unmasked]:
        filled[position] = candidates[position]
    return filled
