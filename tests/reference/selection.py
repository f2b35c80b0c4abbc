"""Choosing the best positions of a row, one at a time."""


def top(scores, eligible, budget):
    chosen = [False] * len(scores)
    for _ in range(budget):
        best = None
        for position, score in enumerate(scores):
            if eligible[position] and not chosen[position] and (best is None or score > scores[best]):
                best = position
        if best is not None:
            chosen[best] = True
    return chosen
