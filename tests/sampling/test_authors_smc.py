"""Self-rewarding SMC beside the authors' own code, at the same draws."""

from types import SimpleNamespace

import pytest
import torch
from authors import Theirs, function_of, needs_checkouts, sure_model
from small_samplers import MASK, prompts

from prism_plugin.core import ThresholdUnmasking
from prism_plugin.sampling import RemaskingSampler, SelfRewardingSMC

pytestmark = needs_checkouts


@pytest.fixture(scope="module")
def model():
    return sure_model()


class Draws:
    """Uniforms of each slot at each look, and of each resampling: the same for theirs and for ours."""

    def __init__(self, seed, particles, block_of, theirs):
        self.row, self.block_of, self.theirs = torch.Generator().manual_seed(seed), block_of, theirs
        seeds = [int(torch.randint(2**62, (1,), generator=self.row)) for _ in range(particles)]
        self.slots = [torch.Generator().manual_seed(one) for one in seeds]

    def gumbel(self, logits, temperature):
        """In place of their noise: the token that ours draws at the slot's uniform stands out."""
        assert temperature == 1.0
        blocks = torch.where(self.theirs.seen[-1] == MASK, self.block_of, len(self.block_of)).amin(-1)
        uniforms = torch.zeros(logits.shape[:2], dtype=torch.float64)
        for slot in (blocks == blocks.min()).nonzero().flatten().tolist():  # the others are done with the block, and wait
            uniforms[slot] = torch.rand(logits.shape[1], generator=self.slots[slot], dtype=torch.float64)
        edges = logits.double().softmax(-1).cumsum(-1)
        drawn = (edges <= uniforms.unsqueeze(-1)).sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, drawn, 1.0)

    def multinomial(self, weights, num_samples, replacement):
        places = torch.rand(num_samples, generator=self.row, dtype=torch.float64)
        edges = weights.double().cumsum(-1)
        return torch.searchsorted(edges / edges[-1], places, right=True).unsqueeze(-1)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_smc_moves_weighs_and_resamples_as_theirs_does(model, seed, threshold, monkeypatch):
    """Every canvas, look by look, in 3 blocks; theirs resamples after the last one too, where ours is done."""
    path = "self-rewarding-smc/llada/generate_smc.py"
    particles, prompt, new, block = 8, 4, 24, 8
    ids = prompts(1, prompt, seed=seed)
    theirs = Theirs(model)
    draws = Draws(seed, particles, (torch.arange(prompt + new) - prompt) // block, theirs)
    fake = SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")})
    fake.multinomial = draws.multinomial
    names = {"np": __import__("numpy"), "add_gumbel_noise": draws.gumbel}
    tokens = function_of(path, "get_num_transfer_tokens")
    transfer = function_of(path, "get_transfer_index", **names)
    names |= {"get_num_transfer_tokens": tokens, "get_transfer_index": transfer, "print": lambda *_: None}
    generate = function_of(path, "generate", **names)
    generate.__globals__["torch"] = fake
    with torch.no_grad():
        generate(theirs, ids, steps=new, gen_length=new, block_length=block, temperature=1.0, threshold=threshold,
                 mask_id=MASK, num_particles=particles)  # fmt: skip

    sampler = RemaskingSampler(
        model, num_steps=new, unmasking=ThresholdUnmasking(threshold), temperature=1.0, block_length=block,
        trajectory=SelfRewardingSMC(particles, resampling="multinomial"),
    )  # fmt: skip
    request = torch.cat((ids, torch.full((1, new), MASK)), dim=1)
    ours = sampler.infill(request, generator=[torch.Generator().manual_seed(seed)], return_trace=True)
    looked = [record.tokens_before for record in ours.trace]
    assert len(looked) == len(theirs.seen)
    assert all(torch.equal(*pair) for pair in zip(looked, theirs.seen, strict=True))
    RESAMPLED.extend(bool((one.ancestors != torch.arange(particles)).any()) for one in ours.particles.weighings)


RESAMPLED = []


def test_some_of_them_were_resampled():
    assert sum(RESAMPLED) >= 5
