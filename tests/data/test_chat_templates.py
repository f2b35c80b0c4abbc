"""Chat templates are programs of others: what they refuse, and how they fail, is one sentence that names the row."""

import pytest

from prism_plugin.data import prepare_rows
from prism_plugin.errors import DataFormatError
from prism_plugin.testing import tiny_tokenizer

PLAIN = "{% for m in messages %}{{ m.content }}.{% endfor %}"


def prepare(template, *roles):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return prepare_rows([{"messages": [{"role": role, "content": "a"} for role in roles]}], tokenizer, mask_token_id=31)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages[3].content.x }}", "list object has no element 3"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template, words):
    with pytest.raises(DataFormatError, match=rf"`rows\[0\]`: the tokenizer's chat template must .* refuses: {words}"):
        prepare(template, "user", "assistant")


def test_a_chat_of_an_answer_alone_is_refused():
    with pytest.raises(
        DataFormatError, match=r"`rows\[0\]`: `messages` must hold a message that the last one answers, found the answer"
    ):
        prepare(PLAIN, "assistant")


def test_a_template_may_want_a_system_message():
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN
    (row,) = prepare(template, "system", "user", "assistant")
    assert any(row["maskable"])
