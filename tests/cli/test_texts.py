"""Texts that come through a pipe, chats that are answered, and what is told of each token."""

import io
import json

import pytest
import torch

from prism_plugin.cli import main as cli
from prism_plugin.modeling import PrismModel
from prism_plugin.sampling import RemaskingSampler

CHAT = [{"role": "user", "content": "the cat"}]
TEMPLATE = "{% for m in messages %}{{ m.content }}.{% endfor %}{% if add_generation_prompt %} x{% endif %}"


@pytest.fixture
def pipe(monkeypatch):
    """Puts bytes where a pipe would be read."""
    return lambda given: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))


@pytest.fixture
def talker(writer, tmp_path):
    """The same adapter with a chat template beside its tokenizer."""
    model = PrismModel.from_pretrained(writer)
    model.tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "talker")
    RemaskingSampler.from_preset("confidence", model, num_steps=4).save_pretrained(tmp_path / "talker")
    return tmp_path / "talker"


def asked(capsys, *arguments):
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


@pytest.mark.parametrize("how", [[], ["--file", "-"]])
def test_texts_can_be_piped_in(writer, pipe, capsys, how):
    pipe("\ufeffthe [MASK]\r\n\na[MASK]\n".encode())
    rows = asked(capsys, "sample", "--adapter", writer, *how)
    assert [row["text"] for row in rows] == ["the [MASK]", "", "a[MASK]"]
    assert [row["num_forward_passes"] for row in rows] == [1, 0, 1]
    first, _ = asked(capsys, "sample", "the [MASK]", "a[MASK]", "--adapter", writer)
    assert first == rows[0]


@pytest.mark.parametrize(
    ("given", "words"), [(b"\xff", "What is piped in cannot be read: "), (b"\n", "the pipe holds no text")]
)
def test_what_is_piped_in_and_is_no_text_is_refused(writer, pipe, capsys, given, words):
    pipe(given)
    assert cli.main(["score", "--adapter", str(writer)]) == 2
    assert words in capsys.readouterr().err


def test_sample_tells_the_tokens_and_their_quality(writer, capsys):
    model = PrismModel.from_pretrained(writer)
    filled, other = asked(capsys, "sample", "the [MASK][MASK]t", "a dog", "--adapter", writer)
    for row in (filled, other):
        assert model.tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["answer"]
        torch.testing.assert_close(
            torch.tensor([row["quality"]]), model.score(torch.tensor([row["token_ids"]])), atol=1e-5, rtol=0
        )
    (continued,) = asked(capsys, "sample", "the ", "--adapter", writer, "--max-new-tokens", "3")
    whole = torch.tensor([model.tokenizer("the ")["input_ids"] + continued["token_ids"]])
    torch.testing.assert_close(torch.tensor([continued["quality"]]), model.score(whole)[:, 4:], atol=1e-5, rtol=0)


def test_chats_are_answered_as_the_sampler_answers_them(talker, tmp_path, capsys):
    file = tmp_path / "chats.jsonl"
    file.write_text(
        json.dumps(CHAT) + "\n\n" + json.dumps({"messages": [*CHAT, {"role": "assistant", "content": "a"}, *CHAT]}) + "\n"
    )
    rows = asked(capsys, "sample", "--chats", "--file", file, "--adapter", talker, "--max-new-tokens", "5")
    assert rows[0]["messages"] == CHAT
    nothing = {"num_forward_passes": 0, "num_positions": 0, "num_remasked": 0}
    assert rows[1] == {"text": "", "answer": "", "token_ids": [], "quality": [], **nothing}
    assert rows[0]["num_positions"] % rows[0]["num_forward_passes"] == 0 < rows[0]["num_positions"]
    sampler = RemaskingSampler.from_pretrained(talker)
    assert [rows[0]["answer"]] == sampler.generate([CHAT], max_new_tokens=5)
    assert [rows[2]["answer"]] == sampler.generate([rows[2]["messages"]], max_new_tokens=5)


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ("hi", "text 1 must be a chat, a JSON list of messages, but is no JSON: "),
        ("[" * 100_000, "text 1 must be a chat, a JSON list of messages, but is no JSON: it is nested too deeply."),
        ("[]", "text 1: a chat must hold a message that can be answered, found none"),
        ('"hi"', "text 1: `messages` must list messages with role and content, found 'hi'"),
        ('{"messages": [], "id": 3}', "text 1: `messages` must list messages with role and content, found {"),
        ('[{"role": "user"}]', "must be text, found NoneType"),
    ],
)
def test_what_is_no_chat_is_refused_before_a_model_is_loaded(monkeypatch, capsys, chat, words):
    monkeypatch.setattr(PrismModel, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    assert cli.main(["sample", chat, "--chats", "--adapter", "x", "--max-new-tokens", "2"]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["sample", chat, "--chats", "--adapter", "x"]) == 2
    assert "`--chats` are answered, not filled in place; give `--max-new-tokens` too" in capsys.readouterr().err


def test_score_tells_each_token_its_place_and_its_quality(writer, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the [MASK]\n\na\n")
    rows = asked(capsys, "score", "--file", tmp_path / "texts.txt", "--adapter", writer, "--batch-size", "1")
    assert [row["text"] for row in rows] == ["the [MASK]", "", "a"]
    assert [len(row["tokens"]) for row in rows] == [5, 0, 1]
    scored = PrismModel.from_pretrained(writer).score(["the [MASK]"], return_tokens=True)
    for place, one in enumerate(rows[0]["tokens"]):
        assert (one["id"], one["token"]) == (scored.input_ids[0, place], scored.tokens[0][place])
        assert (one["start"], one["end"]) == scored.offsets[0][place]
        assert one["quality"] == (None if one["token"] == "[MASK]" else pytest.approx(scored.quality[0, place].item()))
        assert one["doubted"] is False


def test_score_prints_a_table_of_each_text(writer, capsys):
    assert cli.main(["score", "ab", "c", "--adapter", str(writer), "--doubt-below", "1"]) == 0
    printed = capsys.readouterr().out
    assert "text 1: ab" in printed
    assert "text 2: c" in printed
    assert printed.count("doubted") == 3
    assert "0-1" in printed


def test_score_marks_what_is_doubted_where_there_are_no_colours(writer, capsys):
    assert cli.main(["score", "ab", "c", "--adapter", str(writer), "--text", "--doubt-below", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "?a??b?\n?c?\n"
    assert printed.err.endswith("marks: ?abc? doubted: quality below 1\n")


def test_score_colours_tokens_by_their_quality(writer, monkeypatch, capsys):
    for name in ("NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["score", "ab", "--adapter", str(writer), "--text", "--doubt-below", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "\x1b[4ma\x1b[0m\x1b[4mb\x1b[0m\n"
    assert "0.90 and above" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--doubt-below", "2"], "`--doubt-below` must be a quality in [0, 1], got 2.0"),
        (["a", "b" * 66], "text 2: A row must have at most 65 tokens, as many as bert has positions for, found 66"),
        (["a", ""], "text 2: Text 0 must give at least one token"),
    ],
)
def test_score_refuses_mistakes_in_one_sentence(writer, capsys, arguments, words):
    assert cli.main(["score", *arguments, "--adapter", str(writer)]) == 2
    assert words in capsys.readouterr().err
