"""The training step of every named objective, one row and one position at a time; torch gives logits and gradients alone.

`look(ids, soft)` gives the logits and the quality logits of every position of one sequence; `soft` maps a position to the
tokens whose embeddings are mixed there and their weights.
"""

import math

import torch

from reference.categorical import inverse_cdf, softmax
from reference.noise import uniforms
from reference.training import make_draft


class Row:
    """One row on its way: what the data are, what the look at the draft sees, and its chance."""

    def __init__(self, row, seed, epoch, mask):
        self.clean, self.maskable, self.mask = row["input_ids"], row["maskable"], mask
        self.recorded = row.get("draft_ids")
        self._key = seed, epoch, row["example_id"]
        self.soft, self.noised, self.drafted = {}, None, set()

    def noise(self, name, count=None):
        seed, epoch, example_id = self._key
        return uniforms(seed, epoch, example_id, name, len(self.clean) if count is None else count)

    @property
    def may(self):
        return [place for place, may in enumerate(self.maskable) if may]

    def mask_some(self, ids, t, name="masked", exact=False):
        """Masked tokens, and the share that is masked."""
        chance = self.noise(name)
        if exact:
            count = min(max(math.ceil(t * len(self.may) - 1e-4), 1), len(self.may))
            hidden = set(sorted(self.may, key=lambda place: -chance[place])[:count])
            return [self.mask if place in hidden else token for place, token in enumerate(ids)], count / len(self.may)
        return [self.mask if self.maskable[place] and chance[place] < t else token for place, token in enumerate(ids)], t

    def masks(self, ids):
        return [place for place in self.may if ids[place] == self.mask]


def written(logits, mask, chance=None):
    """The most probable token, or one drawn by a uniform number, never the mask."""
    probabilities = softmax(logits, (mask,))
    if chance is not None:
        return inverse_cdf(probabilities, chance)
    return max(range(len(logits)), key=lambda token: probabilities[token])


def corrupt(row, kind, look, low, high, *, rules=(), visible="model", step=0.1, rate=None, mid_rate=None, exact=False, vocab=0,
            sample=False, top_k=3, mix=0.8, share=0.8):  # fmt: skip
    """Make the draft; it is left in `row.seen`, the noised tokens in `row.noised`, and t in `row.t`."""
    if kind == "recorded":
        row.seen = row.recorded
        row.noised = [
            row.mask if row.recorded[p] == row.mask and row.maskable[p] else token for p, token in enumerate(row.clean)
        ]
        row.t = max(len(row.masks(row.seen)), 1) / max(len(row.may), 1)
        row.drafted = {place for place in row.may if row.seen[place] != row.mask}
        return
    if kind == "look_back":
        t = low + (high - step - low) * row.noise("t", 1)[0]
        later = t + step + row.noise("later", 1)[0] * (high - step - t)
        (cleaner, row.t), (noisier, _) = row.mask_some(row.clean, t), row.mask_some(row.clean, later)
        logits = look(noisier)[0].tolist()
        sure = sorted(row.masks(noisier), key=lambda place: -max(softmax(logits[place], (row.mask,))))
        row.drafted = set(sure[: math.ceil(step * len(row.may) - 1e-4)])
        row.seen = [written(logits[p], row.mask) if p in row.drafted else token for p, token in enumerate(cleaner)]
        return
    row.noised, row.t = row.mask_some(row.clean, low + (high - low) * row.noise("t", 1)[0], exact=exact)
    hidden = row.masks(row.noised)
    if kind == "fill":
        flags = [place in hidden for place in range(len(row.clean))]

        def plain(ids):
            logits, quality = look(ids)
            return logits.tolist(), quality

        row.seen = make_draft(plain, row.noised, flags, rules, 0, row.noise, row.mask)
        row.drafted = {place for place in hidden if row.seen[place] != row.mask}
    elif kind == "random_tokens":
        wrong_share = rate if mid_rate is None else 4 * mid_rate * row.t
        chance, which, row.seen = row.noise("wrong"), row.noise("token"), list(row.noised)
        for place in row.may:
            if place not in hidden and chance[place] < wrong_share:
                others = [token for token in range(vocab) if token not in (row.mask, row.clean[place])]
                row.seen[place] = others[min(int(which[place] * len(others)), len(others) - 1)]
                row.drafted.add(place)
        row.noised = None
    elif kind == "soft_masks":
        logits, row.seen = look(row.noised)[0].tolist(), row.noised
        for place in hidden:
            p = softmax(logits[place], (row.mask,))
            sureness = 1 + sum(one * math.log(one) for one in p if one > 0) / math.log(len(p))
            best = sorted(range(len(p)), key=lambda token, p=p: -p[token])[:top_k]
            a = (mix if row.noise("soft", 1)[0] < share else 0.0) * sureness
            parts = [a * p[token] / sum(p[one] for one in best) for token in best]
            row.soft[place] = ([row.mask, *best], [1 - a, *parts])
    else:
        logits, chance = look(row.noised)[0].tolist(), row.noise("token/0/0")
        where = row.may if kind == "predict_all" and visible == "model" else hidden
        row.seen, row.drafted = list(row.noised), set(where)
        for place in where:
            row.seen[place] = written(logits[place], row.mask, chance[place] if sample else None)
        if kind == "remask":
            t = low + (high - low) * row.noise("t/again", 1)[0]
            row.seen, row.t = row.mask_some(row.seen, t, "masked/again", exact)
            row.drafted = {place for place in hidden if row.seen[place] != row.mask}


def cross_entropy(logits, token):
    return torch.logsumexp(logits, 0) - logits[token]


def diffusion(row, look, on="noised"):
    ids, soft = (row.noised, {}) if on == "noised" else (row.seen, row.soft)
    logits = look(ids, soft)[0]
    total = sum((cross_entropy(logits[place], row.clean[place]) for place in row.masks(ids)), torch.zeros(()))
    return total / (row.t * len(row.may))


def cap(row, look):
    logits, entropies = look(row.noised)[0], []
    for place in row.masks(row.noised):
        if int(logits[place].argmax()) == row.clean[place]:
            p = logits[place].softmax(0)
            entropies.append(-(p * p.log()).sum())
    return sum(entropies) / len(entropies) if entropies else torch.zeros(())


def quality(row, look, where="drafted", by_time=False):
    logits, judged = look(row.seen, row.soft)
    losses = []
    for place in row.may:
        target = float(row.seen[place] == row.clean[place])
        if row.seen[place] == row.mask:
            if where != "all":
                continue
            target = logits[place].detach().softmax(0)[row.clean[place]]
        elif where == "drafted" and place not in row.drafted:
            continue
        g = judged[place].sigmoid()
        losses.append(-(target * g.log() + (1 - target) * (1 - g).log()))
    total = sum(losses, torch.zeros(()))
    return total / (row.t * len(row.may) if by_time else max(len(losses), 1))


def repair(row, look, where="visible", by_time=False, errors_weigh_more=False):
    logits, losses = look(row.seen, row.soft)[0], []
    for place in row.may:
        is_mask, right = row.seen[place] == row.mask, row.seen[place] == row.clean[place]
        if {"all": False, "visible": is_mask, "masked": not is_mask, "wrong": is_mask or right}[where]:
            continue
        loss = cross_entropy(logits[place], row.clean[place])
        losses.append(-(-loss).exp() if errors_weigh_more and right else loss)
    total = sum(losses, torch.zeros(()))
    return total / (row.t * len(row.may) if by_time else max(len(losses), 1))
