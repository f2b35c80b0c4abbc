"""Station 1 of sampling: texts and chats, through a tokenizer, to rows whose new tokens are masks in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prism_plugin.backbones import pad_rows
from prism_plugin.errors import SamplingError
from prism_plugin.modeling.texts import require_texts
from prism_plugin.sampling.canvas import require_new_tokens
from prism_plugin.tokenizing import encode_apart, require_chat, write_chat
from prism_plugin.types import TokenIds, TokenMask

Chat = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LaidPrompts:
    """Prompts with masks where tokens are to be generated, for `infill`.

    Attributes:
        input_ids: Prompt, masks, and what the tokenizer puts at the end of a text; padded on the right.
        attention_mask: Bool; the rows' own tokens.
        starts: Where each row's masks begin.
    """

    input_ids: TokenIds
    attention_mask: TokenMask
    starts: list[int]

    def new_tokens(self, sequences: TokenIds, max_new_tokens: int) -> list[list[int]]:
        """The ids that stand in `sequences` where the masks were."""
        rows = zip(sequences.tolist(), self.starts, strict=True)
        return [row[start : start + max_new_tokens] for row, start in rows]


def lay_prompts(
    tokenizer: Any, prompts: Sequence[str | Chat], *, max_new_tokens: int, mask_token_id: int, pad_token_id: int
) -> LaidPrompts:
    """Encode prompts and put masks after each; a text's trailing special tokens (BERT's `[SEP]`) follow them.

    Raises:
        SamplingError: If there is no tokenizer, no prompt, something else than texts and chats, a chat and no chat template, a
            text that the tokenizer cannot read, or a mask token in a prompt.
    """
    if tokenizer is None:
        raise SamplingError(
            "`generate` needs a tokenizer, but the model has none; attach the head with `tokenizer=...`, or use `sample`."
        )
    require_texts(prompts, "prompts", "text or chat", SamplingError)
    require_new_tokens(max_new_tokens)
    encoded = [_encode_prompt(tokenizer, prompt, number) for number, prompt in enumerate(prompts)]
    if any(mask_token_id in before for before, _ in encoded):
        raise SamplingError(
            "a prompt must not contain the mask token, found it in `prompts`; leave it out, or fill it in place with `infill`."
        )
    rows = [before + [mask_token_id] * max_new_tokens + after for before, after in encoded]
    input_ids, attention_mask = pad_rows(rows, pad_token_id)
    return LaidPrompts(input_ids, attention_mask, starts=[len(before) for before, _ in encoded])


def _encode_prompt(tokenizer: Any, prompt: str | Chat, number: int) -> tuple[list[int], list[int]]:
    """Token ids before and after the tokens to generate."""
    if isinstance(prompt, str):
        leading, own, trailing = encode_apart(tokenizer, prompt, SamplingError)
        return leading + own, trailing
    if isinstance(prompt, Mapping | bytes) or not isinstance(prompt, Sequence) or not len(prompt):
        raise SamplingError(
            f"`prompts[{number}]` must be a text, or a chat, which is a list of messages, got {type(prompt).__name__}; use "
            "`sample` for token ids."
        )
    chat = require_chat(prompt, f"prompts[{number}]", SamplingError)
    if tokenizer.chat_template is None:
        raise SamplingError(
            "a chat needs a tokenizer with a chat template, found none; set `tokenizer.chat_template`, or put a "
            "chat_template.jinja beside the tokenizer's files."
        )
    return write_chat(tokenizer, chat, SamplingError, ask=True), []
