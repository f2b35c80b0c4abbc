"""What a token looks like: the text that it adds to a sentence, made fit for a terminal and a page."""

from collections.abc import Iterable
from typing import Any


def token_pieces(tokenizer: Any, token_ids: Iterable[int]) -> dict[int, str]:
    """Find the text that each token adds behind another one, spaces included; its number where there is no tokenizer.

    Decoding a token by itself loses the space before a word (SentencePiece) or adds none (WordPiece), so it is decoded
    behind an anchor, a token that is a word, and the anchor's own text is cut off. A token that adds nothing is shown by its
    name in the vocabulary. What cannot be shown is replaced: see `printable`.

    Args:
        tokenizer: A transformers tokenizer, or None.
        token_ids: Ids, repeated or not.
    """
    wanted = sorted(set(token_ids))
    if tokenizer is None:
        return {token: f" {token}" for token in wanted}
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    anchor = next((token for token in range(len(tokenizer)) if tokenizer.decode([token], **options).strip().isalnum()), None)
    before = [] if anchor is None else [anchor]
    prefix = tokenizer.decode(before, **options)
    pieces = {}
    for token in wanted:
        text = tokenizer.decode([*before, token], **options)
        text = text.removeprefix(prefix) if text.startswith(prefix) else tokenizer.decode([token], **options)
        pieces[token] = printable(text or tokenizer.convert_ids_to_tokens(token))
    return pieces


def printable(text: str) -> str:
    """Replace control characters by their pictures (U+2400 on) and lone surrogates by U+FFFD; line breaks and tabs stay."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    # C1 controls move a terminal's cursor too, and a lone surrogate (an argument that was not UTF-8) fits into no file
    return "\ufffd" if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 else character
