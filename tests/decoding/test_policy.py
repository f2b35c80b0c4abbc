"""A learned order: what a policy computes, how its file is checked, and that samplers with it are saved whole."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prism_plugin.core import ConfidenceUnmasking, StepView
from prism_plugin.core.unmasking import UNMASKING
from prism_plugin.decoding import PolicyUnmasking, UnmaskingPolicy, gumbel, log_probability
from prism_plugin.errors import ConfigurationError, MissingQualityError, SamplingError, StoredStateError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import SAMPLER_CONFIG_NAME, RemaskingSampler, exported
from prism_plugin.testing import tiny_backbone

MASK = 31


def build_model(**sizes):
    torch.manual_seed(0)
    model = attach_quality_head(tiny_backbone(**sizes), PrismConfig(mask_token_id=MASK)).eval()
    with torch.no_grad():
        for parameter in model.plain_backbone.bert.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def model():
    return build_model()


def random_policy(seed=0, **settings):
    torch.manual_seed(seed)
    policy = UnmaskingPolicy(8, **settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return policy


@pytest.fixture
def file(model, tmp_path):
    random_policy(reads_quality=True).save(tmp_path / "policy.safetensors", model)
    return str(tmp_path / "policy.safetensors")


def request(rows=4, new=9, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.cat((torch.randint(3, 30, (rows, 4), generator=chance), torch.full((rows, new), MASK)), dim=1)


def a_view(rows=3, length=7, seed=0):
    chance = torch.Generator().manual_seed(seed)

    def numbers():
        return torch.rand(rows, length, generator=chance)

    editable = numbers() < 0.8
    masked = editable & (numbers() < 0.6)
    return StepView(
        masked=masked, revealed=editable & ~masked, editable=editable, tokens=torch.zeros(rows, length, dtype=torch.long),
        candidates=torch.zeros(rows, length, dtype=torch.long), confidence=numbers() * masked,
        commit_confidence=numbers(), step=torch.zeros(rows, dtype=torch.long), num_steps=torch.full((rows,), 4),
        total=editable.sum(-1), times_remasked=torch.zeros(rows, length, dtype=torch.long),
        features={name: numbers() for name in ("entropy", "margin", "quality", "noise")},
    )  # fmt: skip


# ---- what it computes ----


def test_before_training_it_goes_by_confidence(model, tmp_path):
    UnmaskingPolicy(8, num_positions=16).save(tmp_path / "new", model)
    by_policy, by_confidence = (
        RemaskingSampler(model, num_steps=4, unmasking=rule).infill(request(), return_trace=True)
        for rule in (PolicyUnmasking(str(tmp_path / "new")), ConfidenceUnmasking())
    )
    assert torch.equal(by_policy.sequences, by_confidence.sequences)
    for one, other in zip(by_policy.trace, by_confidence.trace, strict=True):
        assert torch.equal(one.unmasked, other.unmasked)


def test_a_trained_one_has_an_order_of_its_own_and_keeps_the_looks(model, file):
    by_policy, by_confidence = (
        RemaskingSampler(model, num_steps=4, unmasking=rule).infill(request(), return_trace=True)
        for rule in (PolicyUnmasking(file), ConfidenceUnmasking())
    )
    assert by_policy.num_forward_passes.tolist() == by_confidence.num_forward_passes.tolist() == [4] * 4
    assert not torch.equal(by_policy.trace[0].unmasked, by_confidence.trace[0].unmasked)


def test_scores_do_not_depend_on_what_lies_outside_the_block():
    policy, view, grant = random_policy(reads_quality=True), a_view(), torch.tensor([2, 3, 1])
    scores = policy(policy.features(view, grant))

    def elsewhere(tensor):
        return torch.where(view.editable, tensor, 0.9)

    features = {name: elsewhere(value) for name, value in view.features.items()}
    other = replace(view, commit_confidence=elsewhere(view.commit_confidence), features=features)
    torch.testing.assert_close(policy(policy.features(other, grant))[view.masked], scores[view.masked])


def test_a_row_without_anything_to_fill_is_finite():
    policy, view = random_policy(), a_view()
    nothing = torch.zeros_like(view.masked)
    view = replace(view, masked=nothing, editable=nothing, revealed=nothing)
    assert policy(policy.features(view, torch.zeros(3, dtype=torch.long))).isfinite().all()


def test_log_probability_is_that_of_the_orders_that_noise_draws():
    scores = torch.tensor([[1.0, -0.5, -torch.inf, 0.3]], dtype=torch.float64)
    orders = list(itertools.permutations((0, 1, 3), 2))
    exact = log_probability(scores.expand(len(orders), -1), torch.tensor(orders)).exp()
    assert math.isclose(float(exact.sum()), 1.0)
    number = 60_000
    noise = gumbel(torch.rand(number, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    drawn = (scores + noise).argsort(-1, descending=True)[:, :2]
    seen = torch.tensor([float((drawn == torch.tensor(order)).all(-1).sum()) for order in orders], dtype=torch.float64)
    chi_square = ((seen - number * exact) ** 2 / (number * exact)).sum()
    assert chi_square < 20.52  # 5 degrees of freedom, 1 in 1,000
    # noise of another scale draws other orders
    wrong = (scores + 0.9 * noise).argsort(-1, descending=True)[:, :2]
    seen = torch.tensor([float((wrong == torch.tensor(order)).all(-1).sum()) for order in orders], dtype=torch.float64)
    assert ((seen - number * exact) ** 2 / (number * exact)).sum() > 41


def test_log_probability_of_a_short_order_counts_what_is_there():
    scores = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(log_probability(scores, torch.tensor([[2, -1]])), log_probability(scores, torch.tensor([[2]])))
    torch.testing.assert_close(log_probability(scores, torch.tensor([[2]])), scores.log_softmax(-1)[:, 2])


def test_at_randomness_1_the_order_is_drawn_from_the_policy(model, tmp_path):
    policy = UnmaskingPolicy(8)
    policy.save(tmp_path / "new", model)
    rule, view = PolicyUnmasking(str(tmp_path / "new"), randomness=1.0), a_view(rows=1)
    one, count = torch.tensor([1]), torch.zeros(7)
    log_odds = view.confidence.clamp(1e-6, 1 - 1e-6).logit().masked_fill(~view.masked, -torch.inf)
    number = 4000
    for noise in torch.rand(number, 1, 7, generator=torch.Generator().manual_seed(0)):
        count += rule(replace(view, features={**view.features, "noise": noise}), one)[0]
    exact = log_odds.softmax(-1)[0]
    assert ((count / number - exact).abs() < 4 * (exact * (1 - exact) / number).sqrt() + 1e-9).all()


# ---- its file ----


def test_what_is_read_is_what_was_written(model, tmp_path):
    policy = random_policy(num_positions=20, reads_quality=True)
    policy.save(tmp_path / "policy", model)
    rule = PolicyUnmasking(str(tmp_path / "policy"))
    assert rule.policy.shape == policy.shape
    for name, tensor in policy.state_dict().items():
        assert torch.equal(rule.policy.state_dict()[name], tensor)
    assert rule.needs == {"entropy", "margin", "quality"}
    assert PolicyUnmasking(str(tmp_path / "policy"), 0.5).needs == {"entropy", "margin", "quality", "noise"}


def test_a_policy_of_another_backbone_is_refused(file):
    for sizes, what in (({"hidden_size": 64}, "hidden_size 16, but this one has 64"), ({"vocab_size": 40}, "vocab_size 32")):
        with pytest.raises(ConfigurationError, match=f"has learnt of looks of a backbone with {what}.*train one for it"):
            RemaskingSampler(build_model(**sizes), num_steps=4, unmasking=PolicyUnmasking(file))


def test_a_policy_that_reads_the_head_needs_one(model, file):
    without = attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=MASK))
    without.quality_head = None
    with pytest.raises(MissingQualityError, match="PolicyUnmasking needs the quality head"):
        RemaskingSampler(without, num_steps=4, unmasking=PolicyUnmasking(file))


@pytest.mark.parametrize("spoil", ["missing", "text", "no policy", "a weight less", "not finite", "other version"])
def test_a_file_that_holds_no_policy_is_told_by_name(model, file, tmp_path, spoil):
    path, tensors = tmp_path / "spoilt", load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    if spoil == "text":
        path.write_text("no tensors")
    elif spoil == "no policy":
        save_file(tensors, path)
    elif spoil == "a weight less":
        save_file({name: tensor for name, tensor in tensors.items() if name != "outer.bias"}, path, metadata)
    elif spoil == "not finite":
        save_file({**tensors, "outer.bias": torch.full((1,), torch.nan)}, path, metadata)
    elif spoil == "other version":
        about = {**json.loads(metadata["unmasking_policy"]), "format_version": 2}
        save_file(tensors, path, {"unmasking_policy": json.dumps(about)})
    with pytest.raises(ConfigurationError if spoil == "missing" else StoredStateError, match=r"spoilt"):
        PolicyUnmasking(str(path))


def test_settings_out_of_range(file):
    with pytest.raises(ConfigurationError, match="`randomness` of PolicyUnmasking must be a finite number of at least 0"):
        PolicyUnmasking(file, -1.0)
    with pytest.raises(ConfigurationError, match="`hidden_size` of a policy must be a multiple of 4, found 6"):
        UnmaskingPolicy(6)


def test_a_row_that_is_longer_than_it_has_learnt(model, tmp_path):
    UnmaskingPolicy(8, num_positions=12).save(tmp_path / "short", model)
    sampler = RemaskingSampler(model, num_steps=4, unmasking=PolicyUnmasking(str(tmp_path / "short")))
    with pytest.raises(SamplingError, match="rows of at most 12 positions, found one of 13"):
        sampler.infill(request())


# ---- samplers with it ----


def test_a_saved_sampler_holds_its_policy(model, file, tmp_path):
    sampler = RemaskingSampler(model, num_steps=4, unmasking=PolicyUnmasking(file))
    sampler.save_pretrained(tmp_path / "saved")
    (name,) = [path.name for path in (tmp_path / "saved").iterdir() if path.name != SAMPLER_CONFIG_NAME]
    assert json.loads((tmp_path / "saved" / SAMPLER_CONFIG_NAME).read_text())["unmasking"]["file"] == name
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = RemaskingSampler.from_pretrained(moved, model)
    assert torch.equal(loaded.infill(request()).sequences, sampler.infill(request()).sequences)
    loaded.save_pretrained(moved)  # onto the file that it was read from
    assert sorted(path.name for path in moved.iterdir()) == sorted([name, SAMPLER_CONFIG_NAME])
    RemaskingSampler(model, num_steps=4).save_pretrained(moved)
    assert [path.name for path in moved.iterdir()] == [SAMPLER_CONFIG_NAME], "the old policy stays behind"


def test_a_config_that_names_a_file_elsewhere_is_refused(model, file, tmp_path):
    sampler = RemaskingSampler(model, num_steps=4, unmasking=PolicyUnmasking(file))
    sampler.save_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / SAMPLER_CONFIG_NAME
    for wrong in (file, "../policy.safetensors", "gone.safetensors"):
        values = json.loads(config.read_text())
        values["unmasking"]["file"] = wrong
        config.write_text(json.dumps(values))
        with pytest.raises(StoredStateError, match="what `unmasking` reads must be a file beside it"):
            RemaskingSampler.from_pretrained(tmp_path / "saved", model)


def test_from_the_hub_its_file_is_fetched_too(model, file, tmp_path, monkeypatch):
    RemaskingSampler(model, num_steps=4, unmasking=PolicyUnmasking(file)).save_pretrained(tmp_path / "hub")
    fetched = []

    def cached_file(repo, name, revision=None):
        fetched.append(name)
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr(exported, "cached_file", cached_file)
    assert exported._folder("someone/sampler", None) == tmp_path / "hub"
    assert fetched[-1].startswith("unmasking-")


@pytest.mark.parametrize("how", ["file", "settings", "rule"])
def test_presets_take_it_by_name(model, file, how):
    policy = {"file": file, "settings": {"file": file, "randomness": 0.5}, "rule": PolicyUnmasking(file)}[how]
    sampler = RemaskingSampler.from_preset("prism", model, num_steps=4, policy=policy)
    assert isinstance(sampler.unmasking, PolicyUnmasking)
    assert sampler.unmasking.randomness == (0.5 if how == "settings" else 0)
    assert sampler.remasking == RemaskingSampler.from_preset("prism", model, num_steps=4).remasking


def test_presets_refuse_what_it_would_take_the_place_of(model, file):
    with pytest.raises(ConfigurationError, match="`threshold` would be ignored with `policy`"):
        RemaskingSampler.from_preset("threshold", model, num_steps=4, policy=file, threshold=0.5)
    with pytest.raises(ConfigurationError, match="`policy`: A policy is read from a file that"):
        RemaskingSampler.from_preset("confidence", model, num_steps=4, policy="nowhere")


def test_it_has_its_name():
    assert UNMASKING.get("policy") is PolicyUnmasking
