import datasets
import pytest
from tokenizers.processors import TemplateProcessing

from prism_plugin.data import DataSettings, Origin, check_prepared, fingerprint, prepare_rows
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.testing import tiny_tokenizer

MASK, EOS = 31, 1
CHAT = (
    "{% for m in messages %}{{ m.role[0] }}.{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a.{% endif %}"
)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def prepare(rows, tokenizer=None, **settings):
    return list(prepare_rows(rows, tokenizer, mask_token_id=MASK, settings=DataSettings(**settings)))


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_text_is_maskable_as_a_whole(tokenizer):
    first, second = prepare([{"text": "ab"}, {"text": "c."}], tokenizer)
    assert first == {"example_id": 0, "input_ids": ids(tokenizer, "ab"), "maskable": [True, True]}
    assert second["example_id"] == 1


def test_special_tokens_that_the_tokenizer_adds_are_not_maskable(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[EOS] [EOS] $A [EOS]", special_tokens=[("[EOS]", EOS)]
    )
    (row,) = prepare([{"text": "ab"}], tokenizer)
    assert row["input_ids"] == [EOS, EOS, *ids(tokenizer, "ab"), EOS]
    assert row["maskable"] == [False, False, True, True, False]
    (row,) = prepare([{"prompt": "a", "completion": "bc"}], tokenizer, append_eos=True)
    assert row["input_ids"] == [EOS, EOS, *ids(tokenizer, "abc"), EOS, EOS]
    assert row["maskable"] == [False, False, False, True, True, True, False]


def test_only_the_completion_is_maskable(tokenizer):
    (row,) = prepare([{"prompt": "abc", "completion": "de"}], tokenizer)
    assert row["input_ids"] == ids(tokenizer, "abcde")
    assert row["maskable"] == [False, False, False, True, True]


def test_only_the_last_message_is_maskable(tokenizer):
    tokenizer.chat_template = CHAT
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "yz"},
    ]
    (row,) = prepare([{"messages": chat}], tokenizer)
    turns = ("u.hi", "a.ho", "u.x", "a.yz")
    assert row["input_ids"] == [token for turn in turns for token in (*ids(tokenizer, turn), EOS)]
    assert sum(row["maskable"]) == 3
    assert row["maskable"][-3:] == [True, True, True]


@pytest.mark.parametrize("added", ["[UNK]a.", "{% if add_generation_prompt %}[UNK]a.{% endif %}", ""])
def test_a_reply_that_nobody_asked_for_is_not_begun(tokenizer, added):
    """LLaDA's template ends with the beginning of another reply, whatever it is told; the model shall not learn that."""
    tokenizer.chat_template = "{% for m in messages %}[UNK]{{ m.role[0] }}.{{ m.content }}[EOS]{% endfor %}" + added
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yz"}]
    (row,) = prepare([{"messages": chat}], tokenizer)
    begun = ids(tokenizer, "[UNK]a.")
    reply = [*([] if added else begun), *ids(tokenizer, "yz"), EOS]
    assert row["input_ids"] == [*ids(tokenizer, "[UNK]u.hi"), EOS, *(begun if added else []), *reply]
    assert row["maskable"] == [False] * (len(row["input_ids"]) - len(reply)) + [True] * len(reply)


def test_tokenised_rows_take_labels_or_maskable_or_neither():
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}]
    assert prepare(rows)[0]["maskable"] == [False, True, True]
    assert prepare([{"input_ids": [3, 4], "maskable": [False, True]}])[0]["maskable"] == [False, True]
    assert prepare([{"input_ids": [3, 4]}])[0]["maskable"] == [True, True]


RECORDED = {"input_ids": [3, 4, 5, 6], "maskable": [False, True, True, True], "draft_ids": [3, MASK, 7, MASK]}


def test_recorded_drafts_go_with_their_tokens():
    (row,) = prepare([RECORDED])
    assert row == {"example_id": 0, **RECORDED}
    (row,) = prepare([RECORDED], max_length=3)
    assert (row["input_ids"], row["draft_ids"]) == ([3, 4, 5], [3, MASK, 7])
    short = {"input_ids": [3], "maskable": [True], "draft_ids": [4]}
    (row,) = prepare([RECORDED, short], max_length=3, overlong="drop")
    assert row == {"example_id": 1, **short}
    renamed = {"canvas" if name == "draft_ids" else name: values for name, values in RECORDED.items()}
    (row,) = prepare([renamed], columns={"draft_ids": "canvas"})
    assert row["draft_ids"] == RECORDED["draft_ids"]
    assert "draft_ids" not in prepare([renamed], unread_columns="ignored")[0]


@pytest.mark.parametrize(
    ("changed", "settings", "words"),
    [
        ({"draft_ids": [3, MASK]}, {}, r"`rows\[1\]`: `draft_ids` must be as long as `input_ids`, found 2 and 4"),
        ({"draft_ids": None}, {}, r"`rows\[1\]`: `draft_ids` must be as long as `input_ids`, found 0 and 4"),
        ({"draft_ids": [4, 4, 5, 6]}, {}, r"`rows\[1\]`: `draft_ids` must equal .* not maskable, found 4 for 3 at"),
        ({"draft_ids": [3, MASK, MASK, MASK]}, {}, r"`rows\[1\]`: `draft_ids` must hold a token .* all 3 are masked"),
        ({}, {"max_length": 2}, r"`rows\[0\]`: `draft_ids` must hold a token at one maskable .* all 1 are masked"),
        ({}, {"append_eos": True}, "`append_eos` adds tokens to `input_ids` that the recorded `draft_ids` do not have"),
        ({}, {"pads": "supervised", "max_length": 9}, "`pads: supervised` adds tokens to `input_ids` that the recorded"),
    ],
)
def test_recorded_drafts_that_cannot_be_used_are_named(tokenizer, changed, settings, words):
    with pytest.raises((DataFormatError, ConfigurationError), match=words):
        prepare([RECORDED, {**RECORDED, **changed}], tokenizer, **settings)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("text", {"text": "ab"}),
        ("completion", {"prompt": "a", "completion": "b"}),
        ("messages", {"messages": [{"role": "assistant", "content": "a"}]}),
    ],
)
def test_recorded_drafts_are_for_rows_of_tokens(tokenizer, kind, row):
    with pytest.raises(DataFormatError, match=f"`draft_ids` goes with `input_ids`, .* these rows are of kind `{kind}`"):
        prepare([{**row, "draft_ids": [3, 4]}], tokenizer)


def test_columns_are_renamed_and_none_is_lost_in_silence(tokenizer):
    (row,) = prepare([{"content": "ab", "url": "x", "": 0}], tokenizer, columns={"text": "content"})
    assert row["input_ids"] == ids(tokenizer, "ab")
    alpaca = [{"instruction": "ab", "input": "c", "output": "d"}]
    columns = {"prompt": "instruction", "completion": "output"}
    with pytest.raises(
        DataFormatError, match=r"Nothing reads `input` of rows of kind `completion`, .* `unread_columns: ignored`"
    ):
        prepare(alpaca, tokenizer, columns=columns)
    (row,) = prepare(alpaca, tokenizer, columns=columns, unread_columns="ignored")
    assert row["input_ids"] == ids(tokenizer, "abd")


@pytest.mark.parametrize("name", ["attention_mask", "maskable", "labels", "special_tokens_mask", "position_ids"])
def test_what_speaks_of_tokens_is_read_or_refused(tokenizer, name):
    """A column that says which tokens count must not be lost, neither beside a text nor, where none reads it, beside ids."""
    with pytest.raises(DataFormatError, match=f"Nothing reads `{name}` of rows of kind `text`"):
        prepare([{"text": "ab", name: [1, 0]}], tokenizer)
    if name in ("special_tokens_mask", "position_ids"):
        with pytest.raises(DataFormatError, match=f"Nothing reads `{name}` of rows of kind `input_ids`"):
            prepare([{"input_ids": [3, 4], name: [1, 0]}])


def test_padding_of_tokenised_rows_is_cut_off_on_either_side():
    padded = [
        {"input_ids": [3, 4, 0, 0], "attention_mask": [1, 1, 0, 0], "token_type_ids": [0, 0, 0, 0]},
        {"input_ids": [MASK, 0, 5, 6], "attention_mask": [0, 0, 1, 1], "labels": [MASK, -100, -100, 6]},
        {"input_ids": [0, 7, 0], "attention_mask": [False, True, False], "maskable": [1, 1, 1]},
        {"input_ids": [8, 0]},
    ]
    rows = prepare(padded)
    assert [row["input_ids"] for row in rows] == [[3, 4], [5, 6], [7], [8, 0]]
    assert [row["maskable"] for row in rows] == [[True, True], [False, True], [True], [True, True]]
    (row,) = prepare([{"input_ids": [0, 3, 4], "attention_mask": [0, 1, 1], "draft_ids": [9, MASK, 5]}])
    assert (row["input_ids"], row["draft_ids"]) == ([3, 4], [MASK, 5])


def test_a_tokenizers_own_padding_trains_the_same_rows(tokenizer):
    texts = ["ab", "abcd"]
    encoded = datasets.Dataset.from_dict(dict(tokenizer(texts, padding=True))).with_format("torch")
    assert prepare(encoded) == prepare([{"text": text} for text in texts], tokenizer)
    apart = prepare_rows([tokenizer(text) for text in texts], mask_token_id=MASK)
    assert list(apart) == prepare([{"text": text} for text in texts], tokenizer)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("rows.jsonl", "`rows` must be a list of rows, .* found str; read a file with `prism_plugin.data.read_rows`"),
        ({"text": ["ab"]}, "`rows` must be a list of rows, .* found dict; of columns by name make a data set"),
        ((row for row in [{"text": "ab"}]), "`rows` must be a list of rows, .* found generator"),
        ([{"text": "ab"}, None], r"`rows\[1\]` must be a mapping of column names to values, .* found NoneType"),
        (["ab", {"text": "ab"}], r"`rows\[0\]` must be a mapping of column names to values, .* found str"),
        ([{"text": "ab"}, {"text": 7}], r"`rows\[1\]`: `text` must be text, found int"),
        ([{"text": b"ab"}], r"`rows\[0\]`: `text` must be text, found bytes"),
        ([{"text": "ab", 1: 2}], "`rows` must hold texts, numbers, and lists and mappings of them"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(tokenizer, rows, words):
    with pytest.raises(DataFormatError, match=words):
        prepare(rows, tokenizer)


def test_long_rows_are_cut_dropped_or_refused_and_it_is_said(tokenizer, caplog):
    rows = [{"text": "abcdef"}, {"text": "ab"}]
    assert [len(row["input_ids"]) for row in prepare(rows, tokenizer, max_length=4)] == [4, 2]
    assert caplog.messages == ["`rows`: 1 of 2 rows are longer than `max_length` 4, and were cut to it (`overlong: truncate`)."]
    dropped = prepare(rows, tokenizer, max_length=4, overlong="drop")
    assert caplog.messages[1].endswith("and were left out (`overlong: drop`).")
    assert [row["example_id"] for row in dropped] == [1]
    with pytest.raises(DataFormatError, match=r"`rows\[0\]`: the row has 6 tokens, more than `max_length` 4"):
        prepare(rows, tokenizer, max_length=4, overlong="error")
    with pytest.raises(DataFormatError, match="`rows`: all 2 rows are longer than `max_length` 1; raise it"):
        prepare(rows, tokenizer, max_length=1, overlong="drop")


def test_supervised_pads_are_written_as_eos_and_maskable(tokenizer):
    rows = [{"prompt": "a", "completion": "bc"}, {"prompt": "abcd", "completion": "ef"}]
    short, long = prepare(rows, tokenizer, pads="supervised", max_length=5)
    assert short["input_ids"] == [*ids(tokenizer, "abc"), EOS, EOS]
    assert short["maskable"] == [False, True, True, True, True]
    assert long["maskable"] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "`rows` holds no row"),
        ([{"body": "ab"}], r"Rows need the columns text or prompt\+completion or messages or input_ids.*found none in body"),
        ([{"text": "ab", "input_ids": [3]}], "found several of them in text, input_ids"),
        ([{"text": "ab"}, {"text": None}], r"`rows\[1\]`: `text` must be text, found NoneType"),
        ([{"text": "ab"}, {"text": ""}], r"`rows\[1\]`: the row is empty; remove it"),
        ([{"text": ""}], r"`rows\[0\]`: a text must give at least one token, found ''"),
        ([{"text": "a[MASK]b"}], r"`rows\[0\]`: data must not contain the mask token \(id 31\); it does"),
        ([{"prompt": "abc", "completion": ""}, {"prompt": "a", "completion": "b"}], r"`rows\[0\]`: a text must give at"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "abc", "completion": ""}], r"`rows\[1\]`: nothing may be masked in"),
        ([{"input_ids": [3, 4], "labels": [3]}], r"`rows\[0\]`: 2 `input_ids` need a list of as many `labels`, found 1"),
        ([{"input_ids": [3, 4], "labels": [3, 5]}], r"`rows\[0\]`: a label must be its token's id, or -100 where not maskable"),
        ([{"input_ids": [3], "labels": [3], "maskable": [True]}], r"`rows\[0\]`: give `labels` or `maskable`, not both"),
        ([{"input_ids": ["a"]}], r"`rows\[0\]`: `input_ids` must list token ids, integers of at least 0, found 'a'"),
        ([{"input_ids": [3, 1.5]}], r"`rows\[0\]`: `input_ids` must list token ids, integers of at least 0, found 3.0"),
        ([{"input_ids": [3]}, {"input_ids": [3, -1]}], r"`rows\[1\]`: `input_ids` must list token ids.* found -1"),
        ([{"input_ids": [2**40]}], r"`rows\[0\]`: `input_ids` must list token ids.* found 1099511627776"),
        ([{"input_ids": 7}], r"`rows\[0\]`: `input_ids` must list token ids, integers of at least 0, found 7"),
        ([{"input_ids": [3], "labels": 3}], r"`rows\[0\]`: 1 `input_ids` need a list of as many `labels`, found 3"),
        ([{"input_ids": [True, 3]}], r"`rows\[0\]`: `input_ids` must list token ids, integers of at least 0, found True"),
        ([{"input_ids": [3, 4, 5], "maskable": [2, 0, 1]}], r"`rows\[0\]`: `maskable` must hold true or false, .* found 2"),
        ([{"input_ids": [3], "maskable": [0.5]}], r"`rows\[0\]`: `maskable` must hold true or false, or 1 or 0, found 0.5"),
        ([{"input_ids": [3], "maskable": ["no"]}], r"`rows\[0\]`: `maskable` must hold true or false, or 1 or 0, found 'no'"),
        ([{"input_ids": [3, 4], "attention_mask": [1]}], r"`rows\[0\]`: 2 `input_ids` need a list of as many `attention_mask`"),
        ([{"input_ids": [3, 4], "attention_mask": [1, 7]}], r"`rows\[0\]`: `attention_mask` must hold true or false"),
        (
            [{"input_ids": [0, 3, 4, 5], "attention_mask": [0, 1, 0, 1]}],
            r"`rows\[0\]`: `attention_mask` must pad on the left or on the right only, .* between tokens at position 2",
        ),
        ([{"input_ids": [3, 4], "attention_mask": [0, 0]}], r"`rows\[0\]`: the row is empty; remove it"),
        ([{"input_ids": [3, 4], "token_type_ids": [0, 1]}], r"`rows\[0\]`: `token_type_ids` must be zeros"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}],
            r"`rows\[0\]`: `content` of `messages\[1\]` must be text, found NoneType; write '' where there is none",
        ),
        (
            [{"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]}],
            r"`rows\[0\]`: `content` of `messages\[0\]` must be text, found list",
        ),
        ([{"messages": ["a"]}], r"`rows\[0\]`: `messages` must list messages with role and content, found \['a'\]"),
        ([{"messages": "a"}], r"`rows\[0\]`: `messages` must list messages with role and content, found 'a'"),
        ([{"messages": []}], r"`rows\[0\]`: `messages` must end with a message whose role is assistant"),
        ([{"messages": [{"role": "user", "content": "a"}]}], r"`rows\[0\]`: `messages` must end with a message whose role"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tokenizer, rows, words):
    tokenizer.chat_template = CHAT
    with pytest.raises(DataFormatError, match=words):
        prepare(rows, tokenizer)


def test_a_key_that_other_messages_have_is_not_there(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{% if m.name is defined %}.{% endif %}{{ m.content }}{% endfor %}"
    chat = [{"role": "user", "name": "ab", "content": "a"}, {"role": "assistant", "content": "b"}]
    (row,) = prepare([{"messages": chat}], tokenizer)
    assert row["input_ids"] == ids(tokenizer, ".ab")


def test_special_tokens_in_the_first_text_are_its_own(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[EOS] $A [UNK]", special_tokens=[("[EOS]", EOS), ("[UNK]", 2)]
    )
    first, second = prepare([{"text": "[EOS]"}, {"text": "ab"}], tokenizer)
    assert (first["input_ids"], first["maskable"]) == ([EOS, EOS, 2], [False, True, False])
    assert second["input_ids"] == [EOS, *ids(tokenizer, "ab"), 2]


def test_null_is_no_text_in_a_chat_of_two_columns(tokenizer):
    tokenizer.chat_template = CHAT
    with pytest.raises(DataFormatError, match=r"`rows\[1\]`: `completion` must be text, found NoneType"):
        prepare([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], tokenizer, as_chat=True)


def test_a_template_that_refuses_the_conversation_is_one_sentence(tokenizer):
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
    rows = [{"messages": [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]}]
    with pytest.raises(
        DataFormatError, match=r"`rows\[0\]`: the tokenizer's chat template must be able .* refuses: no system role"
    ):
        prepare(rows, tokenizer)


def test_a_row_is_called_by_its_number_where_it_has_one(tokenizer):
    """As after a split; and in a file rows are counted from 1, as lines are."""
    rows = [{"text": "ab", "row_number": 7}, {"text": "", "row_number": 2}]
    with pytest.raises(DataFormatError, match=r"rows\.txt, row 3: the row is empty"):
        prepare_rows(rows, tokenizer, mask_token_id=MASK, origin=Origin("rows.txt", counted=True))
    with pytest.raises(DataFormatError, match=r"`rows\[2\]`: the row is empty"):
        prepare(rows, tokenizer)
    for wrong, words in (
        ("", r"`rows\[2\]`: a text must give at least one token"),
        (None, r"`rows\[2\]`: `text` must be text"),
    ):
        with pytest.raises(DataFormatError, match=words):
            prepare([{"text": wrong, "row_number": 2}], tokenizer)
    with pytest.raises(DataFormatError, match=r"found none in body\. Rename"):
        prepare([{"body": "ab", "row_number": 7}], tokenizer)
    assert set(prepare(rows[:1], tokenizer)[0]) == {"example_id", "input_ids", "maskable"}


def test_a_template_that_rewrites_the_conversation_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer.chat_template = "{{ messages[-1].content }}{% if add_generation_prompt %}z{% endif %}"
    with pytest.raises(DataFormatError, match="the chat template must write the conversation as the prompt followed by"):
        prepare([{"messages": chat}], tokenizer)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 0}, "`max_length` must be at least 1, got 0"),
        ({"overlong": "cut"}, "`overlong` of DataSettings must be one of truncate, drop, error, found 'cut'"),
        ({"overlong": "drop"}, "`overlong: drop` compares rows with `max_length`, which is not set"),
        ({"pads": "masked"}, "`pads` of DataSettings must be one of ignored, supervised, found 'masked'"),
        ({"pads": "supervised"}, "`pads: supervised` fills rows to `max_length`, which is not set"),
        ({"unread_columns": "dropped"}, "`unread_columns` of DataSettings must be one of refused, ignored, found 'dropped'"),
        ({"columns": {"txt": "content"}}, "`columns` may rename attention_mask, .*; found txt"),
    ],
)
def test_bad_settings_are_one_sentence(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        DataSettings(**settings)


def test_what_the_tokenizer_lacks_is_said(tokenizer):
    with pytest.raises(ConfigurationError, match="Rows of kind `text` need a tokenizer, found none"):
        prepare([{"text": "ab"}])
    with pytest.raises(ConfigurationError, match="Rows with `messages` need a tokenizer with a chat template"):
        prepare([{"messages": [{"role": "assistant", "content": "a"}]}], tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="`append_eos` needs the tokenizer's EOS token"):
        prepare([{"text": "ab"}], tokenizer, append_eos=True)


def test_renaming_must_find_its_columns(tokenizer):
    with pytest.raises(DataFormatError, match="The data has no column body; it has text"):
        prepare([{"text": "ab"}], tokenizer, columns={"text": "body"})
    with pytest.raises(DataFormatError, match="The data already has a column text"):
        prepare([{"text": "ab", "body": "c"}], tokenizer, columns={"text": "body"})


def test_rows_that_are_not_prepared_are_refused():
    with pytest.raises(DataFormatError, match="`input_ids` and `maskable` of a row must be equally long, found 2 and 1"):
        check_prepared({"example_id": 0, "input_ids": [1, 2], "maskable": [True]}, "rows")
    with pytest.raises(DataFormatError, match="`input_ids` and `draft_ids` of a row must be equally long, found 1 and 2"):
        check_prepared({"example_id": 0, "input_ids": [1], "maskable": [True], "draft_ids": [1, 2]}, "rows")
    with pytest.raises(DataFormatError, match="Nothing reads `position_ids` of prepared rows"):
        check_prepared({"example_id": 0, "input_ids": [1], "maskable": [True], "position_ids": [1]}, "rows")


def test_the_fingerprint_is_one_of_contents():
    rows = [{"input_ids": [3, 4]}, {"input_ids": [5]}]
    one = prepare_rows(rows, mask_token_id=MASK)
    assert fingerprint(one) == fingerprint(datasets.concatenate_datasets([one.select([0]), one.select([1])]))
    assert fingerprint(one) != fingerprint(prepare_rows(rows[::-1], mask_token_id=MASK))
    assert fingerprint(one) != fingerprint(prepare_rows([{"input_ids": [3]}, {"input_ids": [4, 5]}], mask_token_id=MASK))
    assert fingerprint(one).startswith("2cde77810e10998f"), "runs that were begun before could not be resumed"
    first, second = (
        prepare_rows([{"input_ids": [3, 4], "draft_ids": draft}], mask_token_id=MASK) for draft in ([3, MASK], [MASK, 4])
    )
    assert fingerprint(first) != fingerprint(second)


def test_prompt_and_completion_as_a_chat_are_the_rows_of_that_chat():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    chat = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]
    (of_chat,) = prepare([{"messages": chat}], tokenizer)
    (row,) = prepare([{"prompt": "a cat", "completion": "sat"}], tokenizer, as_chat=True)
    assert row == of_chat


def test_as_chat_is_refused_where_it_would_be_ignored_or_cannot_be():
    with pytest.raises(ConfigurationError, match="`as_chat` is for rows with `prompt` and `completion`, found the kind `text`"):
        prepare([{"text": "a cat"}], tiny_tokenizer(), as_chat=True)
    with pytest.raises(ConfigurationError, match="Rows with `as_chat` need a tokenizer with a chat template"):
        prepare([{"prompt": "a", "completion": "b"}], tiny_tokenizer(), as_chat=True)
