"""The character n-gram model, as its recursion is written: counts by history, one probability after another."""

import math
from collections import Counter, defaultdict


class CharacterModel:
    def __init__(self, texts, order):
        self.order = order
        self.after = defaultdict(Counter)  # history -> what followed it
        for text in texts:
            for end in range(len(text)):
                for length in range(min(order, end + 1)):
                    self.after[text[end - length : end]][text[end]] += 1
        self.alphabet = {character for text in texts for character in text}

    def probability(self, character, history):
        lower = self.probability(character, history[1:]) if history else 1 / (len(self.alphabet) + 1)
        if history not in self.after:
            return lower
        counts = self.after[history]
        return (counts[character] + len(counts) * lower) / (counts.total() + len(counts))

    def bits(self, text, given=""):
        whole = given + text
        histories = [whole[max(end - self.order + 1, 0) : end] for end in range(len(whole))]
        costs = [-math.log2(self.probability(character, history)) for character, history in zip(whole, histories, strict=True)]
        return sum(costs[len(given) :])
