"""Texts and chats, through a tokenizer, to token ids: one way for the rows of training and the prompts of sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from prism_plugin.errors import Refuse


def require_text(text: Any, name: str, refuse: Refuse) -> str:
    """Check that something is a text."""
    if not isinstance(text, str):
        raise refuse(f"`{name}` must be text, found {type(text).__name__}.")
    return text


def encode(tokenizer: Any, text: str, refuse: Refuse, **options: Any) -> Mapping[str, Any]:
    """Tokenise a text. What the tokenizer cannot read is refused."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise refuse(f"a text must be valid Unicode, found {text[:60]!r}, which holds half a character; write it in UTF-8.")
    try:
        return tokenizer(text, **options)
    except Exception as error:
        # The tokenizers library raises bare Exceptions: "WordLevel error: Missing [UNK] token from the vocabulary".
        if type(error) is not Exception:
            raise
        raise refuse(
            f"the tokenizer cannot read {text[:60]!r} ({error}); use only what is in the model's vocabulary."
        ) from error


def special_ids(tokenizer: Any) -> set[int]:
    """All tokens that mean something to a program and nothing in a text; none without a tokenizer."""
    if tokenizer is None:
        return set()
    return set(tokenizer.all_special_ids) | {key for key, token in tokenizer.added_tokens_decoder.items() if token.special}


def encode_apart(tokenizer: Any, text: str, refuse: Refuse) -> tuple[list[int], list[int], list[int]]:
    """Tokenise a text with the special tokens that the tokenizer adds, told apart from the text's own.

    A text may hold special tokens itself, or be one (`<s>`), so those that are added are not found by looking for them.

    Returns:
        What is added before, the text's own tokens, and what is added after.
    """
    own = list(encode(tokenizer, text, refuse, add_special_tokens=False)["input_ids"])
    whole = encode(tokenizer, text, refuse, return_special_tokens_mask=True)
    full, added = list(whole["input_ids"]), list(whole["special_tokens_mask"])
    places = [start for start in range(len(full) - len(own) + 1) if full[start : start + len(own)] == own]
    if not own or not places:
        raise refuse(f"a text must give at least one token, found {text[:60]!r}.")
    # A tokenizer that does not say what it added is looked at for the first place where the text may be.
    start = next((place for place in places if not any(added[place : place + len(own)]) and all(added[:place])), places[0])
    return full[:start], own, full[start + len(own) :]


def require_chat(chat: Any, name: str, refuse: Refuse) -> list[dict[str, Any]]:
    """Check that something is a chat, messages with a role and a text each.

    Returns:
        The messages, without keys that hold nothing: a data set writes those where other messages have them.
    """
    listed = isinstance(chat, Sequence) and not isinstance(chat, str | bytes)
    if not listed or not all(isinstance(one, Mapping) for one in chat):
        raise refuse(f"`{name}` must list messages with role and content, found {chat!r:.60}.")
    for number, message in enumerate(chat):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise refuse(
                    f"`{key}` of `{name}[{number}]` must be text, found {type(message.get(key)).__name__}; write '' "
                    "where there is none."
                )
    return [{key: value for key, value in message.items() if value is not None} for message in chat]


def write_chat(tokenizer: Any, chat: Sequence[Mapping[str, Any]], refuse: Refuse, *, ask: bool = False) -> list[int]:
    """Write a chat by the tokenizer's template, as token ids.

    Args:
        tokenizer: Has a chat template.
        chat: Messages.
        refuse: Makes the error where the template refuses what it does not know, such as a system message, or fails.
        ask: Write the beginning of a reply after it.
    """
    try:
        return list(tokenizer.apply_chat_template(list(chat), add_generation_prompt=ask, tokenize=True, return_dict=False))
    except Exception as error:
        # A template is a program: it was seen to refuse (TemplateError), to add text to numbers, to divide by zero;
        # and what it writes may be what the tokenizer cannot read (Exception).
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        reason = str(error).rstrip(".")
        raise refuse(
            f"the tokenizer's chat template must be able to write the conversation, but refuses: {kind}{reason}; correct the "
            "template, or the messages."
        ) from error
