"""Our presets beside the authors' own code, on tiny models: only where `PRISM_AUTHORS` names a folder of checkouts.

docs/methods.md says how to fill it. Nothing of theirs is copied: it is run from where it lies, on models whose forward is
ours.
"""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from authors import Theirs, function_of, module_of, needs_checkouts, sure_model
from small_samplers import MASK, prompts

from prism_plugin.core import (
    BelowRemasking,
    ConfidenceUnmasking,
    EvenSchedule,
    FallenRemasking,
    KlassUnmasking,
    LowestRemasking,
    P2Decider,
    RemdmCapRemasking,
    RemdmRescaleRemasking,
    ReplacedRemasking,
    StepView,
    WinoDecider,
)
from prism_plugin.core.remasking import RemdmConfRemasking
from prism_plugin.core.schedules import even_target
from prism_plugin.core.view import Budget
from prism_plugin.decoding import Safety
from prism_plugin.sampling import RemaskingSampler

pytestmark = needs_checkouts
BATCHES = range(12)


@pytest.fixture(scope="module")
def model():
    return sure_model()


@pytest.mark.parametrize(("threshold", "verify", "block_length"), [(0.6, 0.9, 12), (0.2, 0.5, 12), (0.2, 0.9, 12)])
def test_wino(model, threshold, verify, block_length):
    decode = module_of("WINO-DLLM/LLaDA/decoding.py").decoding_wino
    ours = RemaskingSampler.from_preset(
        "wino", model, num_steps=240, threshold=threshold, verify=verify, block_length=block_length
    )
    remasked = 0
    for seed in BATCHES:
        ids, theirs = prompts(1, 5, seed), Theirs(model)
        expected, steps = decode(
            theirs, ids, gen_length=12, block_length=block_length, mask_id=MASK, threshold=threshold, threshold_back=verify
        )
        found = ours.sample(ids, max_new_tokens=12)
        assert torch.equal(found.sequences, expected)
        # theirs ends with the last mask; ours looks once more at what the look before wrote, while that may still go
        assert int(found.num_forward_passes) >= steps
        remasked += int(found.num_remasked)
    assert remasked > 0


def test_klass(model):
    decode = module_of("KLASS/src/model/llada_klass.py").stable_confident_decode
    mask_id, settled = 126336, 0
    for seed in BATCHES:
        ids, theirs = prompts(1, 5, seed), Theirs(model, mask_id, mask_id + 1)
        expected = decode(
            theirs, None, ids, gen_length=12, steps=12, block_length=12, conf_threshold=0.3, kl_threshold=0.5, alg="klass"
        )
        ours = RemaskingSampler(model, num_steps=12, unmasking=KlassUnmasking(0.3, 0.5))
        found = ours.sample(ids, max_new_tokens=12)
        assert torch.equal(found.sequences, expected[0] if isinstance(expected, tuple) else expected)
        assert int(found.num_forward_passes) == len(theirs.seen)
        settled += len(theirs.seen) < 12
    assert settled > 0


def test_rcr(model):
    generate = module_of("mdpo/src/llada/generate.py", ())
    decode = function_of(
        "mdpo/src/mdlm_generation_utils.py", "diffusion_generate", np=pytest.importorskip("numpy"),
        dists=torch.distributions, get_num_transfer_tokens_maskgit=generate.get_num_transfer_tokens_maskgit,
    )  # fmt: skip
    remasked = 0
    for seed in BATCHES:
        ids, theirs = prompts(1, 5, seed), Theirs(model)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs asks for autocast on CUDA
            expected = decode(
                theirs, ids, MASK, steps=4, gen_length=12, block_length=12, conf_alg="confidence", mode="linear", rcr=True
            )[0]
        ours = RemaskingSampler.from_preset("rcr", model, num_steps=4, planner="commit_confidence")
        found = ours.sample(ids, max_new_tokens=12)
        assert torch.equal(found.sequences[:, 5:], expected)
        remasked += int(found.num_remasked)
    assert remasked > 0


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize(("every", "most"), [(1, 1), (2, 4)])
def test_proseco(model, threshold, every, most):
    decode = module_of("proseco/llada/generate.py", ("torch.cuda.nvtx",)).generate
    corrected = 0
    for seed in BATCHES:
        ids, theirs = prompts(1, 5, seed), Theirs(model)
        expected, counted, _ = decode(
            theirs, ids, steps=12, gen_length=12, block_length=6, mask_id=MASK, threshold=threshold,
            max_corrector_steps_per_loop=most, apply_corrector_every_n_steps=every, early_eos_stopping=False,
        )  # fmt: skip
        settings = {} if threshold is None else {"threshold": threshold}
        ours = RemaskingSampler.from_preset("proseco", model, num_steps=12, block_length=6, every=every, most=most, **settings)
        found = ours.sample(ids, max_new_tokens=12, return_trace=True)
        until_full = [one for one in found.trace if (one.tokens_before[0, 5:] == MASK).any()]
        if threshold is None:  # with it, ours goes on correcting at full blocks
            assert torch.equal(found.sequences, expected)
            assert int(found.num_forward_passes) == counted["total_nfe"]
        else:
            assert len(until_full) <= counted["predictor_nfe"] + 12
        corrected += counted["corrector_nfe"]
    assert corrected > 0 or threshold


def test_t2t_of_llada21(model):
    names = ("dllm", "dllm.core", "dllm.core.samplers", "dllm.core.samplers.base")
    sys.modules.update({name: ModuleType(name) for name in names})
    config = type("BaseSamplerConfig", (), {"return_dict": False})
    plain = {"BaseSampler": object, "BaseSamplerConfig": config, "BaseSamplerOutput": object}
    vars(sys.modules[names[3]]).update(plain)
    try:
        theirs = module_of("dllm/dllm/pipelines/llada21/sampler.py")
    finally:
        for name in names:
            sys.modules.pop(name, None)
    edits = 0
    for seed in BATCHES:
        ids, fake = prompts(1, 4, seed), Theirs(model)
        sampler = SimpleNamespace(model=fake, tokenizer=SimpleNamespace(mask_token_id=MASK, eos_token_id=1))
        config = theirs.LLaDA21SamplerConfig(max_new_tokens=12, block_size=16, threshold=0.6, editing_threshold=0.5)
        expected = theirs.LLaDA21Sampler.sample(sampler, [ids[0]], config, return_dict=False)
        ours = RemaskingSampler.from_preset("t2t", model, num_steps=40, threshold=0.6, edit_threshold=0.5)
        trace = ours.sample(ids, max_new_tokens=12, return_trace=True).trace
        # theirs stops at the 16th look after the last mask, where tokens of this model may flip to and fro for ever
        assert len(trace) >= len(fake.seen)
        for theirs_saw, record in zip(fake.seen, trace, strict=False):
            assert torch.equal(record.tokens_before, theirs_saw)
        assert torch.equal(trace[len(fake.seen) - 1].tokens_after, expected)
        edits += sum(int((one.unmasked & (one.tokens_before != MASK)).sum()) for one in trace)
    assert edits > 0


def view_of(tokens, masked, rows, before):
    """A view of one block, from logits of two looks."""
    p, was = rows.softmax(-1), before.softmax(-1)
    best = p.max(-1)
    own, then = (one.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for one in (p, was))
    count = torch.zeros(1, dtype=torch.long)
    return StepView(
        masked=masked, revealed=~masked, editable=masked | ~masked, tokens=tokens, candidates=best.indices,
        confidence=best.values * masked, commit_confidence=then, step=count, num_steps=count + 9, total=count + tokens.shape[1],
        times_remasked=torch.zeros_like(tokens),
        features={"visible_confidence": own, "previous_confidence": then, "best_visible": best.indices,
                  "best_visible_confidence": best.values},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (BelowRemasking(0.1, "visible_confidence"), "low_prob"),
        (ReplacedRemasking(0.2), "t2t_remask"),
        (FallenRemasking(0.05), "logit_diff"),
    ],
)
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_detectors_of_t2m(rule, name, share):
    path = "remasked_DLM/remask/modeling_remask.py"
    methods = ("_token_edit_step", "_get_editable_mask", "_remask_low_prob", "_remask_t2t", "_remask_logit_diff")
    theirs = SimpleNamespace(
        remask_strategy=name, remask_threshold=rule.threshold, max_remask_per_pos=9, max_remask_ratio=share, _prev_logits=None,
        _remask_counts=None, _batch_prev_logits={}, _batch_remask_counts={},
    )  # fmt: skip
    for method in (*methods, "_get_remask_counts", "_reset_remask_state"):
        setattr(theirs, method, function_of(path, method).__get__(theirs))
    fired = 0
    for seed in range(30):
        noise = torch.Generator().manual_seed(seed)
        before, rows = (2 * torch.randn(1, 16, 32, generator=noise) for _ in range(2))
        tokens = torch.randint(0, 31, (1, 16), generator=noise)
        masked = torch.rand(1, 16, generator=noise) < 0.3
        canvas = tokens.masked_fill(masked, MASK)
        x0_p, x0 = rows.softmax(-1).max(-1)
        theirs._prev_logits, theirs._remask_counts = before, None
        written = canvas.clone()
        theirs._token_edit_step(
            written, x0, x0_p, rows, torch.zeros_like(masked), canvas, masked, torch.zeros(16, dtype=torch.bool), 0.5, 16, MASK
        )
        view = view_of(canvas.masked_fill(masked, 0), masked, rows, before)
        budget = Safety(share=share).granted(Budget(torch.tensor([99]), torch.tensor([16])), (~masked).sum(-1))
        found = rule(view, budget.remask)
        assert torch.equal(found, (written == MASK) & ~masked)
        fired += int(found.sum())
    assert fired > 30


@pytest.mark.parametrize("name", ["remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop"])
def test_rates_of_remdm(name):
    """The probability that a token is masked again, where alpha is the share that is revealed."""
    drawn = []

    def sample_categorical(probabilities):
        drawn.append(probabilities)
        return x

    update = function_of("remdm/diffusion.py", "_ddpm_caching_update", _sample_categorical=sample_categorical)
    eta = {"remdm-cap": 0.04, "remdm-rescale": 0.3, "remdm-loop": 0.02}.get(name, 1.0)
    sampling = SimpleNamespace(sampler=name, eta=eta, nucleus_p=1.0, t_on=0.55, t_off=0.05, alpha_on=0.9)
    length, steps = 40, 20
    seen = 0
    for step in range(1, steps - 1):
        share = step / steps
        revealed = length * step // steps
        x = torch.where(torch.arange(length) < revealed, 3, MASK).unsqueeze(0)
        p = torch.rand(1, length, 32, generator=torch.Generator().manual_seed(step)).softmax(-1)
        model = SimpleNamespace(
            config=SimpleNamespace(noise=SimpleNamespace(type="loglinear"), sampling=sampling), noise=lambda t: (t, None),
            mask_index=MASK, time_conditioning=False,
        )  # fmt: skip
        commit = torch.rand(1, length, generator=torch.Generator().manual_seed(step))
        conf = torch.where(x == MASK, -torch.inf, -commit)
        drawn.clear()
        update(model, x, torch.tensor([1 - share]), 1 / steps, p_x0=p.clone(), conf=conf)
        stands = x != MASK
        theirs = drawn[0][..., MASK].clamp(0, 1)
        if name == "remdm-loop":
            if not 0.051 < 1 - share < 0.549:
                continue
            rate = min(eta, (1 - 0.9) / 0.9)
            torch.testing.assert_close(theirs[stands], torch.full_like(theirs[stands], rate))
            seen += 1
            continue
        count = torch.tensor([step])
        target = even_target(count, torch.tensor([steps]), torch.tensor([length]))
        view = SimpleNamespace(
            revealed=stands, commit_confidence=commit.masked_fill(~stands, 1.0), step=count, num_steps=torch.tensor([steps]),
            total=torch.tensor([length]),
        )  # fmt: skip
        budget = stands.sum(-1).minimum(length - target)
        if name == "remdm-conf":
            expected = RemdmConfRemasking().probabilities(view)
        else:
            most = budget / stands.sum(-1)
            expected = (most.clamp(max=eta) if name == "remdm-cap" else most * eta).unsqueeze(-1).expand(1, length)
        torch.testing.assert_close(theirs[stands], expected[stands].float(), atol=1e-5, rtol=1e-4)
        seen += 1
    assert seen > 5
    assert RemdmCapRemasking(0.04).eta == 0.04
    assert RemdmRescaleRemasking(0.3).eta == 0.3


def test_history_mean_of_freecorrection():
    names = {"Optional": __import__("typing").Optional}
    noise = function_of("FreeCorrection/utils/generation_utils.py", "gumbel_noise", math=__import__("math"), **names)
    choose = function_of("FreeCorrection/utils/generation_utils.py", "mask_by_random_topk", gumbel_noise=noise, **names)
    for seed in range(20):
        mean = torch.rand(1, 30, generator=torch.Generator().manual_seed(seed))
        everywhere, count = torch.ones(1, 30, dtype=torch.bool), torch.tensor([5])
        expected = choose(count.clone(), mean, temperature=0.0)
        view = SimpleNamespace(revealed=everywhere, score=lambda name, rule, mean=mean: mean)
        assert torch.equal(LowestRemasking("mean_confidence")(view, count), expected)


def test_everything_that_is_compared_is_a_preset_or_a_rule():
    assert (WinoDecider().threshold, WinoDecider().verify) == (0.6, 0.9)
    assert P2Decider(planner="commit_confidence").needs == frozenset()
    assert ConfidenceUnmasking().needs == frozenset()
    assert EvenSchedule().num_remask == 0
