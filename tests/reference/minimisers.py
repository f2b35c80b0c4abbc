"""What every corruptor makes of a table of sequences, one outcome at a time with its probability, and what terms learn of it.

Nothing is drawn: data, masking probability (by quadrature), masks, tokens and positions are walked over. An outcome is what the
look at the draft sees and what is known of it.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

MASK = None


@dataclass(frozen=True)
class Outcome:
    chance: float
    clean: tuple
    seen: tuple  # None at masks
    drafted: frozenset
    t: float


def nodes(low, high, count=12):
    """Places and weights of Gauss and Legendre for the mean over [low, high]."""
    at, weight = np.polynomial.legendre.leggauss(count)
    return [(low + (high - low) * (one + 1) / 2, share / 2) for one, share in zip(at, weight, strict=True)]


def masked(counts, low, high):
    """(chance, clean, hidden positions, t) of masking each token by itself."""
    total, length = sum(counts.values()), len(next(iter(counts)))
    for (t, share), (clean, count) in itertools.product(nodes(low, high), counts.items()):
        for hidden in itertools.product([False, True], repeat=length):
            chance = count / total * share
            for one in hidden:
                chance *= t if one else 1 - t
            yield chance, clean, frozenset(place for place in range(length) if hidden[place]), t


def hide(clean, places):
    return tuple(MASK if place in places else token for place, token in enumerate(clean))


def put(seen, tokens):
    """A canvas with some of its positions written, `tokens` by position."""
    return tuple(tokens.get(place, token) for place, token in enumerate(seen))


def best(proposal, seen, place):
    return max(range(len(proposal[seen][place])), key=lambda token: proposal[seen][place][token])


def fill(counts, proposal, low, high, *, num_drafted=None, num_looks=1):
    """Sampled tokens at random masks, over one or more looks; all masks where no number is given."""
    for chance, clean, hidden, t in masked(counts, low, high):
        wanted = len(hidden) if num_drafted is None else min(num_drafted, len(hidden))
        states = [(chance, hide(clean, hidden))]
        for look in range(num_looks):
            due = -(-(look + 1) * wanted // num_looks) - -(-look * wanted // num_looks)
            states = [following for state in states for following in _filled(*state, proposal, due)]
        for reached, seen in states:
            drafted = frozenset(place for place in hidden if seen[place] is not MASK)
            yield Outcome(reached, clean, seen, drafted, t)


def _filled(chance, seen, proposal, due):
    open_ = [place for place, token in enumerate(seen) if token is MASK]
    choices = list(itertools.combinations(open_, due))
    for places in choices:
        for tokens in itertools.product(range(len(proposal[seen][0])), repeat=due):
            reached = chance / len(choices)
            for place, token in zip(places, tokens, strict=True):
                reached *= proposal[seen][place][token]
            yield reached, put(seen, dict(zip(places, tokens, strict=True)))


def predict_all(counts, proposal, low, high, *, visible="model"):
    for chance, clean, hidden, t in masked(counts, low, high):
        noised = hide(clean, hidden)
        where = frozenset(range(len(clean))) if visible == "model" else hidden
        yield Outcome(chance, clean, put(noised, {place: best(proposal, noised, place) for place in where}), where, t)


def look_back(counts, proposal, low, high, *, step):
    total, length = sum(counts.values()), len(next(iter(counts)))
    number = int(np.ceil(step * length - 1e-4))
    for (t, share), (part, other), (clean, count) in itertools.product(
        nodes(low, high - step, 6), nodes(0.0, 1.0, 6), counts.items()
    ):
        later = t + step + part * (high - step - t)
        for kinds in itertools.product(("seen", "later", "hidden"), repeat=length):
            chance = count / total * share * other
            for kind in kinds:
                chance *= {"seen": 1 - later, "later": later - t, "hidden": t}[kind]
            noisier = frozenset(place for place in range(length) if kinds[place] != "seen")
            before = hide(clean, noisier)
            sure = sorted(noisier, key=lambda place, before=before: -max(proposal[before][place]))[:number]
            cleaner = hide(clean, frozenset(place for place in range(length) if kinds[place] == "hidden"))
            tokens = {place: best(proposal, before, place) for place in sure}
            yield Outcome(chance, clean, put(cleaner, tokens), frozenset(sure), t)


def random_tokens(counts, low, high, *, rate=None, mid_rate=None, letters=3):
    for chance, clean, hidden, t in masked(counts, low, high):
        wrong_share = rate if mid_rate is None else 4 * mid_rate * t
        open_ = [place for place in range(len(clean)) if place not in hidden]
        for wrong in itertools.product([False, True], repeat=len(open_)):
            places = [place for place, one in zip(open_, wrong, strict=True) if one]
            reached = chance
            for one in wrong:
                reached *= wrong_share if one else 1 - wrong_share
            others = [[token for token in range(letters) if token != clean[place]] for place in places]
            for tokens in itertools.product(*others):
                each = reached / max(np.prod([len(one) for one in others]), 1) if others else reached
                seen = put(hide(clean, hidden), dict(zip(places, tokens, strict=True)))
                yield Outcome(each, clean, seen, frozenset(places), t)


def remask(counts, proposal, low, high):
    length = len(next(iter(counts)))
    shares = [
        sum(weight * t**number * (1 - t) ** (length - number) for t, weight in nodes(low, high)) for number in range(length + 1)
    ]
    for chance, clean, hidden, _ in masked(counts, low, high):
        noised = hide(clean, hidden)
        filled = put(noised, {place: best(proposal, noised, place) for place in hidden})
        for again in itertools.product([False, True], repeat=len(clean)):
            places = frozenset(place for place, one in enumerate(again) if one)
            yield Outcome(chance * shares[len(places)], clean, hide(filled, places), hidden - places, 1.0)


def quality(outcomes, *, where="visible", by_time=False, with_drafted=False):
    """{(canvas, position): [weight, probability that its token is right]}; with what was drafted in the key if that is seen."""
    found = defaultdict(lambda: np.zeros(2))
    for one in outcomes:
        places = one.drafted if where == "drafted" else [place for place, token in enumerate(one.seen) if token is not MASK]
        for place in places:
            weight = one.chance / (one.t * len(one.seen) if by_time else len(places))
            key = (one.seen, one.drafted, place) if with_drafted else (one.seen, place)
            found[key] += (weight, weight * (one.seen[place] == one.clean[place]))
    return {key: (weight, right / weight) for key, (weight, right) in found.items() if weight > 0}


def repair(outcomes, *, where="visible", by_time=False, letters=3):
    """{(canvas, position): [weight, p(data's letter)]}."""
    found = defaultdict(lambda: np.zeros(1 + letters))
    for one in outcomes:
        places = [
            place for place, token in enumerate(one.seen)
            if where == "all" or ((token is MASK) == (where == "masked") and (where != "wrong" or token != one.clean[place]))
        ]  # fmt: skip
        for place in places:
            weight = one.chance / (one.t * len(one.seen) if by_time else len(places))
            found[one.seen, place][0] += weight
            found[one.seen, place][1 + one.clean[place]] += weight
    return {key: (one[0], one[1:] / one[0]) for key, one in found.items() if one[0] > 0}
