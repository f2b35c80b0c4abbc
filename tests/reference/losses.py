"""PRISM's loss (arXiv 2510.01384), example by example and token by token.

Where the authors' code divides the quality term by K times the batch size, each row is divided by its own labels here.
"""

import math


def binary_cross_entropy(logit, target):
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if target else 1 - probability)


def quality_loss(quality_logits, draft_ids, clean_ids, drafted):
    rows = []
    for logits, draft, clean, where in zip(quality_logits, draft_ids, clean_ids, drafted, strict=True):
        terms = [
            binary_cross_entropy(logit, token == right)
            for logit, token, right, judged in zip(logits, draft, clean, where, strict=True)
            if judged
        ]
        rows.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(rows) / len(rows)


def diffusion_loss(logits, clean_ids, masked, maskable, t):
    """Takes logits of every position, [batch][length][vocab]."""
    rows = []
    for row_logits, clean, where, may, time in zip(logits, clean_ids, masked, maskable, t, strict=True):
        total = 0.0
        for scores, right, is_masked in zip(row_logits, clean, where, strict=True):
            if is_masked:
                highest = max(scores)
                total += (highest + math.log(sum(math.exp(score - highest) for score in scores)) - scores[right]) / time
        rows.append(total / sum(may) if any(may) else 0.0)
    return sum(rows) / len(rows)
