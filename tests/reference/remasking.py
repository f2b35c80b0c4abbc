"""ReMDM's confidence-based schedule (arXiv 2503.00307) for one row."""

import math
from fractions import Fraction

from reference.schedules import even_target


def remdm_conf_probabilities(commit_confidence, revealed, step, num_steps, total, scale=1.0):
    if not any(revealed) or step == 0 or total == 0:
        return [0.0] * len(revealed)
    alpha_t = Fraction(even_target(step - 1, num_steps, total), total)
    alpha_s = Fraction(even_target(step, num_steps, total), total)
    sigma_max = min(1.0, float((1 - alpha_s) / alpha_t))
    weights = [math.exp(-c) if r else 0.0 for c, r in zip(commit_confidence, revealed, strict=True)]
    return [min(1.0, scale * sigma_max * weight / sum(weights)) for weight in weights]
