"""A refiner's say is written, and a causal model checks a block: the longest beginning on which both agree."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prism_plugin.core import NeverRemasking, RefinedDecider
from prism_plugin.decoding import CausalChecker, RefinedLook
from prism_plugin.errors import ConfigurationError, SamplingError, UnknownNameError
from prism_plugin.modeling import PrismConfig, attach_quality_head
from prism_plugin.sampling import RemaskingSampler
from prism_plugin.testing import tiny_backbone, tiny_tokenizer

MASK, PROMPT, NEW = 31, 4, 12


def causal_model(vocab_size=32):
    torch.manual_seed(2)
    sizes = {"vocab_size": vocab_size, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return attach_quality_head(tiny_backbone(), PrismConfig(mask_token_id=MASK), tokenizer=tiny_tokenizer()).eval()


@pytest.fixture(scope="module")
def checker(model):
    """A causal model that agrees here and there: its output is the masked model's, by the token before."""
    torch.manual_seed(0)
    ids = request(64)
    sampler = RemaskingSampler(model, num_steps=NEW)
    texts = sampler.infill(ids).sequences
    causal = causal_model()
    optimizer = torch.optim.AdamW(causal.parameters(), lr=1e-2)
    causal.train()
    for _ in range(60):
        optimizer.zero_grad()
        logits = causal(texts).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten()).backward()
        optimizer.step()
    return CausalChecker(causal.eval(), tiny_tokenizer())


def request(rows=3, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.cat((torch.randint(3, 30, (rows, PROMPT), generator=chance), torch.full((rows, NEW), MASK)), dim=1)


def refined(model, refiner, **settings):
    look = RefinedLook(refiner)
    return RemaskingSampler(model, decider=RefinedDecider(), look=look, **{"num_steps": NEW, "block_length": 6, **settings})


@torch.no_grad()
def slow_fill(model, causal, row, block):
    """Literally: fill a block with the most probable tokens, read from its beginning, write while both agree, or the surest."""
    row, looks = row.clone(), 0
    for start in range(PROMPT, PROMPT + NEW, block):
        while (row[start : start + block] == MASK).any():
            looks += 1
            places = [at for at in range(start, start + block) if row[at] == MASK]
            logits = model.plain_backbone(row[None]).logits[0]
            logits[:, [0, MASK]] = -torch.inf
            best, probability = logits.argmax(-1), logits.softmax(-1)
            filled = row.clone()
            filled[places] = best[places]
            said = causal(filled[None]).logits[0].argmax(-1)
            agreed = []
            for at in places:
                if said[at - 1] != filled[at]:
                    break
                agreed.append(at)
            if not agreed:
                agreed = [max(places, key=lambda at: float(probability[at, best[at]]))]
            row[agreed] = best[agreed]
    return row, looks


def test_what_is_written_is_what_both_agree_on(model, checker):
    ids = request()
    output = refined(model, checker).infill(ids, return_trace=True)
    looks = []
    for number, row in enumerate(ids):
        expected, count = slow_fill(model, checker.causal, row, 6)
        assert torch.equal(output.sequences[number], expected)
        looks.append(count)
    assert output.num_forward_passes.tolist() == looks
    assert max(looks) < NEW, "several were agreed on at a look"
    assert torch.equal(output.sequences[:, :PROMPT], ids[:, :PROMPT])
    assert not (output.sequences == MASK).any()


def test_a_row_does_not_depend_on_the_others(model, checker):
    ids = request(4, seed=1)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    together = refined(model, checker).infill(ids, mask).sequences
    for row in range(4):
        own = mask[row].bool()
        assert torch.equal(refined(model, checker).infill(ids[row : row + 1, own]).sequences[0], together[row, own])


def test_only_the_longest_beginning_is_said(model):
    class Fixed:
        def __init__(self, following):
            self.following = following
            self.device = torch.device("cpu")

        def get_output_embeddings(self):
            return torch.nn.Linear(1, 32)

        def __call__(self, ids):
            logits = torch.nn.functional.one_hot(self.following.expand(len(ids), -1), 32).float()
            return type("Output", (), {"logits": logits})

    canvas = torch.tensor([[5, MASK, 7, MASK, MASK, MASK]])
    rows = torch.nn.functional.one_hot(torch.tensor([6, 8, 9, 10]), 32).float()
    block = canvas == MASK
    said = CausalChecker(Fixed(torch.tensor([6, 20, 8, 11, 10, 0])))(rows, canvas, block)
    assert said.tolist() == [[-1, 6, -1, 8, -1, -1]], (
        "what it says of the token that stands, and of the one behind, is not asked"
    )
    first = torch.tensor([[MASK, MASK, 7, 7, 7, 7]])
    said = CausalChecker(Fixed(torch.tensor([8, 0, 0, 0, 0, 0])))(rows[:2], first, first == MASK)
    assert said.tolist() == [[-1] * 6], "nothing stands before the first token"


def test_a_refiner_of_your_own_is_written_with_its_probability(model):
    def always_nine(rows, canvas, block):
        assert rows.shape == (int(block.sum()), 32)
        assert rows[:, [0, MASK]].isneginf().all(), "what is never written"
        return torch.where(block & (block.cumsum(-1) <= 2), 9, -1)

    output = refined(model, always_nine).infill(request(2), return_trace=True)
    assert (output.sequences[:, PROMPT:] == 9).all()
    assert output.num_forward_passes.tolist() == [6, 6]
    assert output.trace[0].unmasked[0].nonzero().flatten().tolist() == [PROMPT, PROMPT + 1]
    sampler = refined(model, always_nine)
    canvas = sampler.lay_infill(request(2))
    loop = sampler.loop(canvas, watched=False)
    state = loop.advance(loop.begin(canvas)).state
    with torch.no_grad():
        logits = model.plain_backbone(request(2)).logits[:, PROMPT : PROMPT + 2]
    logits[..., [0, MASK]] = -torch.inf
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(state.commit_confidence[:, PROMPT : PROMPT + 2], probabilities[..., 9])
    assert not torch.allclose(probabilities[..., 9], probabilities.amax(-1))


def test_what_may_not_be_written_is_left_to_the_model(model):
    sampler = refined(model, lambda rows, canvas, block: torch.where(block, 9, -1), suppress_tokens=(9,))
    assert not (sampler.infill(request(2)).sequences[:, PROMPT:] == 9).any()
    ends = refined(model, lambda rows, canvas, block: torch.where(block, 1, -1), eos_token_id=1)
    output = ends.infill(request(2), min_new_tokens=5)
    assert not (output.sequences[:, PROMPT : PROMPT + 5] == 1).any()
    assert (output.sequences[:, PROMPT + 5] == 1).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda block: None, "must give a token id for each position of the canvas, .2, 16., or -1, but gave NoneType"),
        (lambda block: torch.zeros(2, 3, dtype=torch.int64), "but gave torch.int64 of .2, 3.; return a tensor of integers"),
        (lambda block: torch.where(block, 9.0, -1.0), "but gave torch.float32 of .2, 16."),
        (lambda block: torch.where(block, -1, 9), "may speak of the masks of the block alone, but gave a token elsewhere"),
        (lambda block: torch.where(block, 32, -1), "must give ids from 0 to 31 other than the mask token, 31, or -1"),
        (lambda block: torch.where(block, MASK, -1), "other than the mask token, 31, or -1, but gave another"),
    ],
)
def test_what_is_no_proposal_is_one_sentence(model, said, message):
    with pytest.raises(SamplingError, match=message):
        refined(model, lambda rows, canvas, block: said(block)).infill(request(2))


def test_a_checker_of_another_tokenizer_is_one_sentence(model):
    with pytest.raises(ConfigurationError, match="must have the masked model's vocabulary, 32 tokens here, but has 40; choose"):
        refined(model, CausalChecker(causal_model(40)))
    other = tiny_tokenizer()
    vocabulary = other.get_vocab()
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    other.get_vocab = lambda: swapped
    with pytest.raises(ConfigurationError, match="must have the masked model's tokenizer, but 2 of its tokens have other ids"):
        refined(model, CausalChecker(causal_model(), other))
    refined(model, CausalChecker(causal_model(40), tiny_tokenizer()))  # padded to another size


def test_the_look_and_its_decider_go_together(model):
    with pytest.raises(ConfigurationError, match=r"RefinedDecider reads what another look gives.*`look=RefinedLook.refiner.`"):
        RemaskingSampler(model, num_steps=4, decider=RefinedDecider())
    with pytest.raises(ConfigurationError, match=r"`look` is RefinedLook, but nothing reads.*`decider=RefinedDecider"):
        RemaskingSampler(model, num_steps=4, remasking=NeverRemasking(), look=RefinedLook(lambda *_: None))


def test_a_refiner_is_not_saved(model, tmp_path):
    with pytest.raises(UnknownNameError, match="Only a registered look can be saved, found RefinedLook"):
        refined(model, lambda rows, canvas, block: torch.where(block, 9, -1)).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
