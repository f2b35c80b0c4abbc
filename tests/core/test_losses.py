import itertools

import pytest
import torch
import torch.nn.functional as F
from reference import losses as reference

from prism_plugin.core.labels import drafted_labels
from prism_plugin.core.lm_loss import cross_entropy
from prism_plugin.core.losses import (
    diffusion_loss,
    diffusion_loss_per_row,
    prism_loss,
    quality_loss,
    quality_loss_per_row,
    share_scale,
)
from prism_plugin.errors import ConfigurationError
from prism_plugin.modeling.lm_head import may_overwrite


def random_case(batch, length, vocab=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    maskable = torch.rand(batch, length, generator=generator) < 0.8
    masked = maskable & (torch.rand(batch, length, generator=generator) < 0.6)
    clean_ids = torch.randint(vocab, (batch, length), generator=generator)
    return {
        "quality_logits": torch.randn(batch, length, generator=generator).to(dtype),
        "draft_ids": torch.randint(vocab, (batch, length), generator=generator).where(masked, clean_ids),
        "clean_ids": clean_ids,
        "maskable": maskable,
        "masked": masked,
        "drafted": masked & (torch.rand(batch, length, generator=generator) < 0.5),
        "logits": torch.randn(batch, length, vocab, generator=generator).to(dtype),
        "t": torch.rand(batch, generator=generator) * 0.9 + 0.1,
    }


def rows_of(case):
    index = case["masked"].flatten().nonzero().squeeze(-1)
    return case["logits"].flatten(0, 1)[index], index


def loss_of(case, **weights):
    labels = drafted_labels(case["draft_ids"], case["clean_ids"], case["drafted"])
    return prism_loss(case["quality_logits"], labels, *rows_of(case), case["clean_ids"], case["maskable"], case["t"], **weights)


def as_lists(case, *names):
    return [case[name].tolist() for name in names]


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 8), (3, 47), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_match_the_paper(batch, length, dtype):
    case = random_case(batch, length, dtype=dtype)
    quality = reference.quality_loss(*as_lists(case, "quality_logits", "draft_ids", "clean_ids", "drafted"))
    diffusion = reference.diffusion_loss(*as_lists(case, "logits", "clean_ids", "masked", "maskable", "t"))
    output = loss_of(case, diffusion_weight=5.0, quality_weight=0.25)
    # bfloat16 logits are exact in float32, where all arithmetic happens
    assert output.quality_loss.item() == pytest.approx(quality, rel=1e-5)
    assert output.diffusion_loss.item() == pytest.approx(diffusion, rel=1e-5)
    assert output.loss.item() == pytest.approx(0.25 * quality + 5 * diffusion, rel=1e-5)
    assert output.num_judged == case["drafted"].sum()
    assert output.num_correct == (case["drafted"] & (case["draft_ids"] == case["clean_ids"])).sum()


def test_micro_batches_of_one_row_equal_one_batch():
    case = random_case(8, 12)
    case["drafted"][3] = False
    case["masked"][5] = case["drafted"][5] = False
    rows = [{name: tensor[row : row + 1] for name, tensor in case.items()} for row in range(8)]
    assert loss_of(case).loss.item() == pytest.approx(sum(loss_of(row).loss.item() for row in rows) / 8, rel=1e-5)


def test_rows_without_labels_are_zero_and_count():
    case = random_case(2, 6)
    case["masked"][:] = case["drafted"][:] = False
    case["quality_logits"].requires_grad_()
    output = loss_of(case)
    output.loss.backward()
    assert output.loss == 0
    assert not case["quality_logits"].grad.any()
    one = random_case(1, 6)
    labels = drafted_labels(one["draft_ids"], one["clean_ids"], one["masked"])
    empty = drafted_labels(one["draft_ids"], one["clean_ids"], torch.zeros_like(one["masked"]))
    both = type(labels)(torch.cat((labels.targets, empty.targets)), torch.cat((labels.labelled, empty.labelled)))
    logits = one["quality_logits"]
    assert quality_loss(torch.cat((logits, logits)), both).item() == pytest.approx(quality_loss(logits, labels).item() / 2)


def test_rows_with_nothing_maskable_are_zero():
    case = random_case(2, 6)
    for name in ("maskable", "masked", "drafted"):
        case[name][0] = False
    assert loss_of(case).loss.isfinite()


def test_a_batch_without_rows_is_zero():
    case = {name: tensor[:0] for name, tensor in random_case(1, 6).items()}
    assert loss_of(case).loss == 0


def test_unlabelled_positions_do_not_matter():
    case = random_case(3, 9)
    labels = drafted_labels(case["draft_ids"], case["clean_ids"], case["drafted"])
    spoiled = case["quality_logits"].masked_fill(~case["drafted"], float("nan")).requires_grad_()
    loss = quality_loss(spoiled, labels)
    loss.backward()
    assert loss.item() == pytest.approx(quality_loss(case["quality_logits"], labels).item())
    assert not spoiled.grad[~case["drafted"]].any()


def test_extreme_quality_logits_stay_finite():
    labels = drafted_labels(torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), torch.ones(1, 2, dtype=torch.bool))
    assert quality_loss(torch.tensor([[-200.0, 200.0]]), labels).item() == pytest.approx(200)


def test_gradients_reach_both_looks():
    case = random_case(2, 8)
    case["quality_logits"].requires_grad_()
    case["logits"].requires_grad_()
    loss_of(case).loss.backward()
    assert torch.equal(case["quality_logits"].grad != 0, case["drafted"])
    assert torch.equal(case["logits"].grad.any(-1), case["masked"])


def test_several_drafts_of_each_row_are_averaged():
    case, other = random_case(2, 8), random_case(2, 8)
    other["drafted"] = other["masked"]
    labels = [drafted_labels(each["draft_ids"], each["clean_ids"], each["drafted"]) for each in (case, other)]
    both = type(labels[0])(*(torch.cat([getattr(each, name) for each in labels]) for name in ("targets", "labelled")))
    rows, index = rows_of(case)
    output = prism_loss(case["quality_logits"].repeat(2, 1), both, rows, index, case["clean_ids"], case["maskable"], case["t"])
    expected = [quality_loss(case["quality_logits"], each).item() for each in labels]
    assert output.quality_loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert output.diffusion_loss == diffusion_loss(rows, index, case["clean_ids"], case["maskable"], case["t"])


def test_without_rows_there_is_no_diffusion_term():
    case = random_case(2, 8)
    labels = drafted_labels(case["draft_ids"], case["clean_ids"], case["drafted"])
    rest = (labels, None, None, case["clean_ids"], case["maskable"], case["t"])
    output = prism_loss(case["quality_logits"], *rest, diffusion_weight=0.0)
    assert output.diffusion_loss == 0
    assert output.loss == output.quality_loss
    with pytest.raises(ConfigurationError, match=r"diffusion term has weight 0.5 but no rows of logits; pass them or weight 0"):
        prism_loss(case["quality_logits"], *rest)


def test_per_row_losses_average_to_the_loss():
    case = random_case(4, 9)
    labels = drafted_labels(case["draft_ids"], case["clean_ids"], case["drafted"])
    rest = (*rows_of(case), case["clean_ids"], case["maskable"], case["t"])
    quality, diffusion = quality_loss_per_row(case["quality_logits"], labels), diffusion_loss_per_row(*rest)
    assert quality.shape == diffusion.shape == (4,)
    assert quality.mean().item() == pytest.approx(quality_loss(case["quality_logits"], labels).item())
    assert diffusion.mean().item() == pytest.approx(diffusion_loss(*rest).item())
    for row in range(4):
        one = {name: tensor[row : row + 1] for name, tensor in case.items()}
        assert diffusion[row].item() == pytest.approx(loss_of(one).diffusion_loss.item(), rel=1e-5)
        assert quality[row].item() == pytest.approx(loss_of(one).quality_loss.item(), rel=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("vocab", [7, 300])
@pytest.mark.parametrize("weights", ["positive", "of every sign"])
def test_cross_entropy_is_torchs(dtype, atol, overwrite, vocab, weights, monkeypatch):
    monkeypatch.setattr("prism_plugin.core.categorical._CHUNK_ENTRIES_CPU", 3 * vocab)  # several chunks, the last ragged
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(11, 8, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, 8, generator=generator).to(dtype)
    targets, scale = torch.randint(vocab, (11,), generator=generator), torch.rand(11, generator=generator)
    scale[2] = 0.0
    if weights == "of every sign":
        scale[::3] *= -1
    ours = cross_entropy(F.linear(hidden, weight), targets, overwrite_rows=overwrite)
    theirs = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (gradient,), (expected,) = (torch.autograd.grad((loss * scale).sum(), hidden) for loss in (ours, theirs))
    torch.testing.assert_close(gradient, expected, atol=atol * 8, rtol=atol)


def test_logits_are_overwritten_only_when_asked_and_only_where_nothing_needs_them():
    hidden, weight, targets = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4), torch.arange(5)
    bias = torch.randn(9)
    for overwrite, make in [
        (True, lambda: F.linear(hidden.unsqueeze(0), weight).squeeze(0)),
        (True, lambda: F.linear(hidden, weight, bias)),
        (True, lambda: F.linear(hidden.unsqueeze(0), weight).squeeze(0) + bias),
        (False, lambda: torch.tanh(F.linear(hidden, weight))),  # its gradient is made from its output
        (False, lambda: torch.tanh(F.linear(hidden, weight).unsqueeze(0)).squeeze(0)),
        (True, lambda: 3 * torch.tanh(F.linear(hidden, weight) / 3)),  # the product's result is another memory than tanh's
    ]:
        for asked in (False, True):
            rows = make()
            before = rows.detach().clone()
            (found,) = torch.autograd.grad(
                cross_entropy(rows, targets, overwrite_rows=asked and may_overwrite(rows)).sum(), hidden
            )
            (expected,) = torch.autograd.grad(F.cross_entropy(make(), targets, reduction="sum"), hidden)
            torch.testing.assert_close(found, expected)
            assert torch.equal(rows, before) != (asked and overwrite)


def test_going_backward_twice_through_overwritten_logits_is_an_error():
    hidden = torch.randn(5, 4, requires_grad=True)
    loss = cross_entropy(F.linear(hidden, torch.randn(9, 4)), torch.arange(5), overwrite_rows=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cross_entropy_of_no_rows():
    rows = torch.zeros(0, 9, requires_grad=True)
    loss = cross_entropy(rows, torch.zeros(0, dtype=torch.long))
    loss.sum().backward()
    assert loss.shape == (0,)
    assert rows.grad.shape == (0, 9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_share_of_the_terms_is_unbiased_with_the_variance_that_is_stated(share, count):
    masked = torch.tensor([True] * count + [False] * 2)
    terms = torch.rand(count + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    orders = torch.tensor(list(itertools.permutations(range(count)))) / count  # every order of the uniforms, equally likely
    noise = torch.cat((orders, torch.zeros(len(orders), 2)), dim=1)
    scale = share_scale(masked.expand(len(orders), -1), share, noise)
    estimates = (scale * terms).sum(-1)
    chosen = -(-count * round(100 * share) // 100)
    assert ((scale > 0).sum(-1) == chosen).all()
    assert not scale[:, count:].any()
    assert estimates.mean().item() == pytest.approx(terms[masked].sum().item())
    spread = terms[masked].var().item() if count > 1 else 0.0
    stated = count**2 * (1 - chosen / count) * spread / chosen
    assert estimates.var(correction=0).item() == pytest.approx(stated, rel=1e-5, abs=1e-12)
