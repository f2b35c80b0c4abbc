"""Features with memory against a slow account of the whole run, look by look."""

from dataclasses import dataclass, field

import pytest
import torch
from sampling.small_samplers import MASK, build_model, generators, prompts

from prism_plugin.core import EvenSchedule, QualityRemasking, RandomUnmasking
from prism_plugin.decoding import FEATURES, Separate
from prism_plugin.sampling import RemaskingSampler

# All but the first three are of other looks.
OTHERS = {
    "noise", "entropy", "margin", "shadow_confidence", "corrected", "context_confidence", "refined", "refined_confidence",
}  # fmt: skip
REMEMBERED = frozenset(FEATURES.names()) - OTHERS


@dataclass
class Watching:
    """What another decider does, with every feature asked for, and the views kept."""

    decider: Separate
    views: list = field(default_factory=list)
    reach = "active"
    blind = False
    repeats = False
    takes_back = True

    @property
    def needs(self):
        return self.decider.needs | REMEMBERED

    def __call__(self, view, budget):
        self.views.append(view)
        return self.decider(view, budget)


@pytest.fixture(scope="module")
def watched():
    """A run that takes tokens back, and of each look its view, tokens, probabilities and quality by plain forwards."""
    model = build_model()
    watching = Watching(Separate(RandomUnmasking(), QualityRemasking()))
    sampler = RemaskingSampler(model, num_steps=9, decider=watching, schedule=EvenSchedule(3), temperature=1.0)
    output = sampler.sample(prompts(2, 4), max_new_tokens=10, generator=generators(0, 1), return_trace=True)
    looks = []
    for view, record in zip(watching.views, output.trace, strict=True):
        with torch.no_grad():
            seen = model(record.tokens_before, logits_at=torch.ones_like(record.tokens_before, dtype=torch.bool))
        rows = seen.logits.float()
        rows[:, MASK] = -torch.inf
        looks.append((view, record, rows.log_softmax(-1).view(2, 14, -1), seen.quality_logits.sigmoid()))
    assert output.num_remasked.sum() > 5
    return looks


def history(looks, number, row, place):
    """Looks at which the token that stands at a place has stood, this one last; and the look that wrote it."""
    token = int(looks[number][1].tokens_before[row, place])
    first = number
    while first > 0 and int(looks[first - 1][1].tokens_before[row, place]) == token:
        first -= 1
    return list(range(first, number + 1)), first - 1


def test_what_is_remembered_is_what_the_looks_gave(watched):
    checked = 0
    for number, (view, record, log_probabilities, _) in enumerate(watched):
        for row in range(2):
            for place in range(4, 14):
                found = {name: view.features[name][row, place].item() for name in REMEMBERED}
                token = int(record.tokens_before[row, place])
                if token == MASK:
                    before = watched[number - 1] if number else None
                    if before is None or int(before[1].tokens_before[row, place]) != MASK:
                        assert found["kl"] == float("inf")
                        continue
                    now, then = log_probabilities[row, place], before[2][row, place]
                    kl = sum(float(p.exp() * (p - q)) for p, q in zip(now, then, strict=True) if p.exp() > 0)
                    assert found["kl"] == pytest.approx(kl, abs=1e-5)
                    continue
                looks, written_at = history(watched, number, row, place)
                written = watched[written_at][1].confidence[row, place].item()
                probabilities = [watched[look][2][row, place, token].exp().item() for look in looks]
                qualities = [watched[look][3][row, place].item() for look in looks]
                best = log_probabilities[row, place]
                expected = {
                    "visible_confidence": probabilities[-1],
                    "previous_confidence": probabilities[-2] if len(looks) > 1 else written,
                    "mean_confidence": (sum(probabilities) + written) / (len(looks) + 1),
                    "quality": qualities[-1],
                    "mean_quality": sum(qualities) / len(looks),
                    "age": len(looks) / max(number, 1),
                    "best_visible": best.argmax().item(),
                    "best_visible_confidence": best.max().exp().item(),
                }
                assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
                checked += 1
    assert checked > 60


def test_two_looks_that_settled(watched):
    before = None
    for view, *_ in watched:
        kl = view.features["kl"]
        expected = kl if before is None else kl.maximum(before)
        if before is None:
            assert view.features["kl_of_two"].isinf().all()
        else:
            assert torch.equal(view.features["kl_of_two"], expected)
        before = kl
