"""What is judged in training with drafted tokens, by walking every way in which it can come about, one at a time."""

import itertools
from collections import defaultdict


def mask_probability(count, length, t_min, t_max, points=20_000):
    """The probability that these `count` positions are masked and no other, by the midpoint rule over t."""
    width = (t_max - t_min) / points
    times = (t_min + (index + 0.5) * width for index in range(points))
    return sum(t**count * (1 - t) ** (length - count) for t in times) / points


def judged_states(counts, proposal, num_drafted, t_min, t_max):
    """Walk over clean sequences, masks, drafted positions and drafted letters.

    Args:
        counts: Mapping from each sequence, a tuple of letters, to its count.
        proposal: Mapping from a canvas, with None at masks, to a list over positions of lists over letters.
        num_drafted: k.
        t_min: Smallest masking probability.
        t_max: Largest masking probability.

    Returns:
        Mapping from (draft, position) to [share of the loss, part of it with a right letter], not normalised.
    """
    length, letters = len(next(iter(counts))), 1 + max(max(clean) for clean in counts)
    of_masks = [mask_probability(count, length, t_min, t_max) for count in range(length + 1)]
    states = defaultdict(lambda: [0.0, 0.0])
    for clean, count in counts.items():
        for masked in itertools.product([False, True], repeat=length):
            noised = tuple(None if hidden else token for token, hidden in zip(clean, masked, strict=True))
            places = [place for place in range(length) if masked[place]]
            choices = list(itertools.combinations(places, min(num_drafted, len(places))))
            for drafted in choices:
                for tokens in itertools.product(range(letters), repeat=len(drafted)):
                    chance = count / sum(counts.values()) * of_masks[len(places)] / len(choices)
                    draft = list(noised)
                    for place, token in zip(drafted, tokens, strict=True):
                        draft[place] = token
                        chance *= proposal[noised][place][token]
                    for place in drafted:
                        state = states[tuple(draft), place]
                        state[0] += chance / len(drafted)
                        state[1] += chance / len(drafted) * (draft[place] == clean[place])
    return states
