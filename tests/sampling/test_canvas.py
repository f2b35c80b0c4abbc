import pytest
import torch
from transformers import BatchEncoding

from prism_plugin.decoding.pace import share_steps
from prism_plugin.errors import SamplingError
from prism_plugin.sampling.canvas import lay_canvas, read_request


def random_request(seed, batch=4, length=9):
    """Rows whose own tokens are anywhere, some of them editable, one row without any of the latter."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 30, (batch, length), generator=generator)
    present = torch.rand(batch, length, generator=generator) < 0.7
    editable = present & (torch.rand(batch, length, generator=generator) < 0.5)
    editable[1] = False
    return ids, present, editable


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_length", [None, 1, 2, 4, 100])
def test_the_canvas_is_each_rows_own_tokens_and_its_blocks(seed, block_length):
    ids, present, editable = random_request(seed)
    canvas = lay_canvas(ids, present, editable, block_length)
    for row in range(len(ids)):
        own = ids[row][present[row]].tolist()
        width = len(own)
        assert canvas.lengths[row] == width
        assert canvas.tokens[row, :width].tolist() == own
        assert canvas.attention_mask[row].tolist() == [1] * width + [0] * (canvas.tokens.shape[1] - width)
        columns = editable[row][present[row]].nonzero().flatten().tolist()
        assert canvas.editable[row].nonzero().flatten().tolist() == columns
        chunks = [(column - columns[0]) // (block_length or width) for column in columns]
        numbers = [sorted(set(chunks)).index(chunk) for chunk in chunks]
        assert canvas.block_of[row][canvas.editable[row]].tolist() == numbers
        assert (canvas.block_of[row][~canvas.editable[row]] == -1).all()
        assert canvas.num_blocks[row] == len(set(chunks))
    assert canvas.tokens.shape[1] == present.sum(-1).max()


def test_restoring_gives_the_request_back():
    ids, present, editable = random_request(0)
    canvas = lay_canvas(ids, present, editable, None)
    assert torch.equal(canvas.restore(canvas.tokens, ids), ids)
    assert torch.equal(canvas.restore(canvas.editable, False), editable)
    assert torch.equal(canvas.restore(canvas.tokens, -1), ids.masked_fill(~present, -1))
    part = canvas.take(torch.tensor([2, 0]))
    assert torch.equal(part.restore(part.tokens, ids[[2, 0]]), ids[[2, 0]])


@pytest.mark.parametrize(("num_steps", "num_blocks"), [(7, 3), (3, 3), (9, 3), (5, 1)])
def test_steps_are_shared_remainder_first(num_steps, num_blocks):
    shares = [int(share_steps(num_steps, torch.tensor([num_blocks]), torch.tensor([block]))) for block in range(num_blocks)]
    assert sum(shares) == num_steps
    assert shares == sorted(shares, reverse=True)
    assert max(shares) - min(shares) <= 1


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("input_ids", "attention_mask", "words"),
    [
        (IDS[0], None, r"shape \[batch, length\].*int64 of shape \[3\].*unsqueeze"),
        (IDS.float(), None, "must be integer ids.*float32"),
        (IDS[:0], None, "at least one row"),
        (IDS.tolist(), None, "`input_ids` must be a tensor of token ids, .* or what a tokenizer gives .* got list"),
        (IDS.numpy(), None, "`input_ids` must be a tensor of token ids, .* got ndarray"),
        ({"input_ids": IDS}, None, "`input_ids` must be a tensor of token ids, .* got dict"),
        (["ab"], None, "`input_ids` must be a tensor of token ids, .* got list"),
        (None, None, "`input_ids` must be a tensor of token ids, .* got NoneType"),
        (BatchEncoding({"input_ids": IDS}), torch.ones(2, 3), "the BatchEncoding brings its own `attention_mask`"),
        (
            BatchEncoding({"input_ids": [[1, 2]]}),
            None,
            "a BatchEncoding must hold tensors; call the tokenizer with",
        ),
        (BatchEncoding({"attention_mask": IDS}), None, "a BatchEncoding must hold `input_ids`, .* but there is none"),
        (BatchEncoding({"input_ids": IDS, "labels": IDS}), None, "but nothing reads its 'labels'"),
        (BatchEncoding({"input_ids": IDS, "token_type_ids": IDS}), None, "`token_type_ids` must be zeros"),
        (IDS, [[1, 1, 1], [1, 1, 0]], r"`attention_mask` must be a tensor with the shape of `input_ids`, \[2, 3\], got list"),
        (IDS + 4, None, "in the model's vocabulary, 0 to 9, found 10"),
        (IDS - 2, None, "in the model's vocabulary, 0 to 9, found -1"),
        (IDS, torch.ones(2, 2), r"shape of `input_ids`, \[2, 3\], got float32 of shape \[2, 2\]"),
        (IDS, torch.tensor([[1, 1, 1], [1, 2, 1]]), "must hold 1 for the row's own tokens and 0 for padding"),
        (IDS, torch.tensor([[1, 1, 1], [1, 0, 1]]), "left or on the right only, but `attention_mask\\[1\\]` has padding"),
    ],
)
def test_bad_requests_are_refused(input_ids, attention_mask, words):
    with pytest.raises(SamplingError, match=words):
        read_request(input_ids, attention_mask, vocab_size=10)


def test_padding_may_hold_anything_and_stand_on_either_side():
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    _, present = read_request(torch.tensor([[-100, 2, 3], [4, 5, 99]]), mask, vocab_size=10)
    assert torch.equal(present, mask.bool())
