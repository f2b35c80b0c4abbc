"""Raw rows -> prepared rows: `example_id`, `input_ids`, and `maskable`, the positions that training may corrupt.

Four kinds of row, told apart by their columns:

- `text`: every token is maskable, except the special tokens that the tokenizer adds.
- `prompt` and `completion`: the completion is maskable.
- `messages`, a chat: the last message is maskable, as the tokenizer's chat template writes it.
- `input_ids`, with `maskable` or `labels` (-100 where not maskable, as in dLLM) or neither (everything is maskable). These
  rows may bring `attention_mask`, whose zeros are padding and are cut off, and `draft_ids`, recorded drafts: what a sampler's
  canvas held at some moment, mask tokens included.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from prism_plugin.core.history import HISTORY
from prism_plugin.data.columns import (
    DRAFT_COLUMN,
    KINDS,
    ROW_NUMBER,
    columns_read,
    given_columns,
    history_fault,
    kind_of,
    refuse_unread,
    renamed,
    require_history,
)
from prism_plugin.data.origin import IN_MEMORY, Origin
from prism_plugin.data.rows import as_dataset
from prism_plugin.data.settings import DataSettings
from prism_plugin.errors import ConfigurationError, DataFormatError, Refuse
from prism_plugin.tokenizing import encode, encode_apart, require_chat, require_text, special_ids, write_chat

_IGNORED_LABEL = -100

logger = logging.get_logger(__name__)


def prepare_rows(
    rows: datasets.Dataset | Sequence[Mapping[str, Any] | str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    mask_token_id: int,
    settings: DataSettings | None = None,
    origin: Origin = IN_MEMORY,
    with_history: bool = False,
) -> datasets.Dataset:
    """Tokenise rows and mark what may be masked; each row's index becomes its `example_id`.

    Args:
        rows: Raw rows of one of the four kinds above: a data set, a list of mappings or of texts, or a DataFrame.
        tokenizer: Needed by all kinds but `input_ids`.
        mask_token_id: Id of the mask token, which data must not contain.
        settings: Defaults when None. How many rows are longer than `max_length` is logged as a warning.
        origin: What the rows are called in errors: an argument, or their file.
        with_history: Keep what the tokens of recorded drafts have been through, for a head that reads it.

    Returns:
        A data set with the columns `example_id`, `input_ids` and `maskable`, and `draft_ids` if the rows have it, and its
        history (`age`, `commit_confidence`, `times_remasked`) if that is wanted.

    Raises:
        DataFormatError: If there is no row, the columns fit no kind, or a row cannot be used; the row is named.
        ConfigurationError: If the settings ask for what the tokenizer does not have.
    """
    settings = settings or DataSettings()
    rows = as_dataset(rows, origin)
    if not len(rows):
        raise DataFormatError(f"{origin} holds no row; training needs at least one.")
    kind = check_columns(given_columns(rows), settings)
    rows = rows.rename_columns(renamed(given_columns(rows), settings.columns))
    encoder = RowEncoder(kind, tokenizer, settings, mask_token_id, rows[0], origin, with_history=with_history)
    id_columns = ["input_ids", *([DRAFT_COLUMN] if encoder.with_drafts else [])]
    history = dict(zip(HISTORY, ("int32", "float32", "int32"), strict=True)) if encoder.with_history else {}
    wanted = [name for name in (*columns_read(kind), *history, ROW_NUMBER) if name in rows.column_names]
    prepared = rows.select_columns(wanted).map(
        encoder,
        with_indices=True,
        remove_columns=wanted,
        features=datasets.Features(
            {
                "example_id": datasets.Value("int64"),
                **{name: datasets.List(datasets.Value("int32")) for name in id_columns},
                "maskable": datasets.List(datasets.Value("bool")),
                **{name: datasets.List(datasets.Value(kind_of_value)) for name, kind_of_value in history.items()},
            }
        ),
        # A cached result would outlive a change of this code: the cache's key names our class, not what it does.
        load_from_cache_file=False,
        desc="Preparing rows",
    )
    if settings.overlong == "drop":
        if encoder.num_overlong == len(rows):
            raise DataFormatError(
                f"{origin}: all {len(rows)} rows are longer than `max_length` {settings.max_length}; raise it."
            )
        prepared = prepared.filter(lambda ids: [len(one) > 0 for one in ids], batched=True, input_columns="input_ids")
    if encoder.num_overlong:
        logger.warning(
            f"{origin}: {encoder.num_overlong} of {len(rows)} rows are longer than `max_length` {settings.max_length}, and "
            f"{overlong_rows_are(settings)}."
        )
    return prepared


def overlong_rows_are(settings: DataSettings) -> str:
    """What happened to rows that are longer than `max_length`, in words."""
    return {"truncate": "were cut to it (`overlong: truncate`)", "drop": "were left out (`overlong: drop`)"}[settings.overlong]


def _unasked_header(tokenizer: Any) -> list[int]:
    """The beginning of one more reply, where a chat template writes it after the last message though nobody asked for it.

    LLaDA's does, as Llama 3's did (https://github.com/NVIDIA-NeMo/Automodel/pull/3228), and a model must not learn to write it.
    It follows the first special token after a message, which ends that, and holds a special token itself.
    """

    def write(*contents: str, asked: bool) -> list[int]:
        chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=False)]
        return write_chat(tokenizer, chat, DataFormatError, ask=asked)

    try:
        prompt, asked, whole = write("a", asked=False), write("a", asked=True), write("a", "b", asked=False)
    except DataFormatError:  # it wants other chats than these, such as one with a system message; the rows will tell
        return []
    if prompt != asked:
        return []
    # Behind contents that differ, a prompt and a whole chat end alike: with the end of a message, and that beginning.
    backwards = zip(reversed(prompt), reversed(whole), strict=False)
    ending = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], backwards)][::-1]
    if len(whole) != len(prompt) + 1 + len(ending):  # the prompt is not followed by the reply's one letter: it has no beginning
        return []
    special = special_ids(tokenizer)
    places = [index for index, token in enumerate(ending) if token in special]
    return ending[places[0] + 1 :] if len(places) > 1 else []


def check_columns(columns: Sequence[str], settings: DataSettings) -> str:
    """Check the columns of raw rows, and say which kind of row they make.

    Raises:
        DataFormatError: If they fit no kind, or nothing reads one of them.
    """
    names = renamed(columns, settings.columns)
    ours = [names.get(name, name) for name in columns]
    kind = kind_of(ours)
    if settings.unread_columns == "refused":
        cure = "rename with `columns`, drop what is not meant, or set `unread_columns: ignored`"
        refuse_unread(ours, columns_read(kind), f"rows of kind `{kind}`", cure)
    return kind


class RowEncoder:
    """One raw row and its example id -> one prepared row. A class, so that what never changes is looked up once.

    Args:
        kind: Of the rows, as `check_columns` tells it.
        tokenizer: As for `prepare_rows`.
        settings: As for `prepare_rows`.
        mask_token_id: As for `prepare_rows`.
        sample: The first row.
        origin: What rows are called in errors.
        with_history: As for `prepare_rows`.

    Attributes:
        num_overlong: Rows so far that are longer than `max_length`, and so were cut or are to be left out.

    Raises:
        ConfigurationError: If the settings ask for what the tokenizer does not have.
        DataFormatError: If the first row cannot be used.
    """

    def __init__(
        self,
        kind: str,
        tokenizer: Any,
        settings: DataSettings,
        mask_token_id: int,
        sample: Mapping[str, Any],
        origin: Origin,
        *,
        with_history: bool = False,
    ) -> None:
        self.origin, self.num_overlong = origin, 0
        self.kind, self.tokenizer, self.settings, self.mask_token_id = kind, tokenizer, settings, mask_token_id
        self.eos_token_id: Any = None if tokenizer is None else tokenizer.eos_token_id
        self.with_drafts = DRAFT_COLUMN in sample
        self.with_history = with_history and self.with_drafts
        if self.with_drafts:
            self._check_drafts_suit()
        if self.with_history:
            require_history(sample, origin)
        if tokenizer is None and kind != "input_ids":
            raise ConfigurationError(f"Rows of kind `{kind}` need a tokenizer, found none; pass one or give `input_ids`.")
        if (settings.append_eos or settings.pads == "supervised") and self.eos_token_id is None:
            setting = "append_eos" if settings.append_eos else "pads: supervised"
            raise ConfigurationError(f"`{setting}` needs the tokenizer's EOS token, and there is none; set `eos_token` on it.")
        if settings.as_chat and kind != "completion":
            raise ConfigurationError(f"`as_chat` is for rows with `prompt` and `completion`, found the kind `{kind}`; drop it.")
        is_chat = kind == "messages" or settings.as_chat
        if is_chat and tokenizer.chat_template is None:
            asked = "Rows with `as_chat`" if settings.as_chat else "Rows with `messages`"
            raise ConfigurationError(f"{asked} need a tokenizer with a chat template, found none; set one.")
        self.unasked = _unasked_header(tokenizer) if is_chat else []
        self.leading, self.trailing = ([], []) if is_chat or kind == "input_ids" else self._added_specials(sample)

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        return {"example_id": index, **self._encode(row, self._refusing(row, index))}

    def _refusing(self, row: Mapping[str, Any], index: int) -> Refuse:
        """Makes the error of what is wrong with a row, named as its reader finds it."""
        return lambda words: DataFormatError(f"{self.origin.row(row.get(ROW_NUMBER, index))}: {words}")

    def _encode(self, row: Mapping[str, Any], refuse: Refuse) -> dict[str, Any]:
        ids, maskable = getattr(self, f"_{self.kind}")(row, refuse)
        if self.mask_token_id in ids:
            raise refuse(f"data must not contain the mask token (id {self.mask_token_id}); it does.")
        draft = self._draft(row, ids, maskable, refuse) if self.with_drafts else []
        ids, maskable = self._fit(ids, maskable, refuse)
        if ids and not any(maskable):
            raise refuse(
                f"nothing may be masked in its {len(ids)} tokens; raise `max_length`, set `overlong: drop`, or remove it."
            )
        prepared = {"input_ids": ids, "maskable": maskable}
        if not self.with_drafts:
            return prepared
        draft = draft[: len(ids)]
        if ids and not any(may and token != self.mask_token_id for may, token in zip(maskable, draft, strict=True)):
            raise refuse(
                f"`{DRAFT_COLUMN}` must hold a token at one maskable position at least, which can be judged, but "
                f"all {sum(maskable)} are masked; remove the row."
            )
        history = self._of_history(row, len(ids), refuse) if self.with_history else {}
        return {**prepared, DRAFT_COLUMN: draft, **history}

    def _of_history(self, row: Mapping[str, Any], kept: int, refuse: Refuse) -> dict[str, list[Any]]:
        """What the tokens of a recorded draft have been through, checked: of the first `kept` tokens of the row's own."""
        length, found = len(row["input_ids"]), {}
        for name in HISTORY:
            values = row[name]
            if fault := history_fault(name, values, length):
                raise refuse(fault)
            found[name] = values[self._own(row, length, refuse)][:kept]
        return found

    def _check_drafts_suit(self) -> None:
        if self.kind != "input_ids":
            raise DataFormatError(
                f"`{DRAFT_COLUMN}` goes with `input_ids`, which it is compared with, but these rows are of kind "
                f"`{self.kind}`; give `input_ids`, or drop it."
            )
        if self.settings.append_eos or self.settings.pads == "supervised":
            setting = "append_eos" if self.settings.append_eos else "pads: supervised"
            raise ConfigurationError(
                f"`{setting}` adds tokens to `input_ids` that the recorded `{DRAFT_COLUMN}` do not have; leave it out."
            )

    def _draft(self, row: Mapping[str, Any], ids: list[int], maskable: list[bool], refuse: Refuse) -> list[int]:
        """The recorded draft of a row, checked against its right tokens."""
        draft, length = self._ids(row, DRAFT_COLUMN, refuse), len(row["input_ids"] or ())
        if len(draft) != length:
            raise refuse(f"`{DRAFT_COLUMN}` must be as long as `input_ids`, found {len(draft)} and {length}.")
        draft = draft[self._own(row, length, refuse)]
        changed = [at for at, may in enumerate(maskable) if not may and draft[at] != ids[at]]
        if changed:
            raise refuse(
                f"`{DRAFT_COLUMN}` must equal `input_ids` where tokens are not maskable, found "
                f"{draft[changed[0]]} for {ids[changed[0]]} at position {changed[0]}."
            )
        return draft

    def _fit(self, ids: list[int], maskable: list[bool], refuse: Refuse) -> tuple[list[int], list[bool]]:
        longest = self.settings.max_length
        if not ids:
            raise refuse("the row is empty; remove it.")
        if longest is None:
            return ids, maskable
        if len(ids) > longest:
            if self.settings.overlong == "error":
                raise refuse(f"the row has {len(ids)} tokens, more than `max_length` {longest}; raise it, or shorten the row.")
            self.num_overlong += 1
            if self.settings.overlong == "drop":
                return [], []
        ids, maskable = ids[:longest], maskable[:longest]
        if self.settings.pads == "supervised":
            fill = longest - len(ids)
            ids, maskable = ids + [self.eos_token_id] * fill, maskable + [True] * fill
        return ids, maskable

    def _added_specials(self, sample: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """The special tokens that this tokenizer puts before and after a text, read off one text of the data."""
        column, refuse = KINDS[self.kind][-1], self._refusing(sample, 0)
        text = require_text(sample[column], column, refuse)
        leading, _, trailing = encode_apart(self.tokenizer, text, refuse)
        return leading, trailing

    def _wrap(self, prompt: list[int], completion: list[int]) -> tuple[list[int], list[bool]]:
        if self.settings.append_eos:
            completion = [*completion, self.eos_token_id]
        ids = [*self.leading, *prompt, *completion, *self.trailing]
        fixed = len(self.leading) + len(prompt)
        return ids, [False] * fixed + [True] * len(completion) + [False] * len(self.trailing)

    def _tokens(self, text: Any, column: str, refuse: Refuse) -> list[int]:
        require_text(text, column, refuse)
        return encode(self.tokenizer, text, refuse, add_special_tokens=False)["input_ids"]

    def _text(self, row: Mapping[str, Any], refuse: Refuse) -> tuple[list[int], list[bool]]:
        return self._wrap([], self._tokens(row["text"], "text", refuse))

    def _completion(self, row: Mapping[str, Any], refuse: Refuse) -> tuple[list[int], list[bool]]:
        if self.settings.as_chat:
            told = {name: require_text(row[name], name, refuse) for name in KINDS["completion"]}
            roles = {"user": told["prompt"], "assistant": told["completion"]}
            return self._messages({"messages": [{"role": role, "content": text} for role, text in roles.items()]}, refuse)
        # Tokenised apart, since that is how they meet at sampling time: the prompt is given, the rest is generated.
        return self._wrap(*(self._tokens(row[column], column, refuse) for column in ("prompt", "completion")))

    def _messages(self, row: Mapping[str, Any], refuse: Refuse) -> tuple[list[int], list[bool]]:
        messages = require_chat(row["messages"], "messages", refuse)
        if not messages or messages[-1]["role"] != "assistant":
            raise refuse("`messages` must end with a message whose role is assistant.")
        if len(messages) == 1:
            raise refuse(
                "`messages` must hold a message that the last one answers, found the answer alone; add it, or give `text`."
            )
        prompt = write_chat(self.tokenizer, messages[:-1], refuse, ask=True)
        ids = write_chat(self.tokenizer, messages, refuse)
        if ids[: len(prompt)] != prompt:
            raise refuse(
                "the chat template must write the conversation as the prompt followed by the reply, and does "
                "not; give `prompt` and `completion` instead."
            )
        if self.unasked and ids[-len(self.unasked) :] == self.unasked:
            ids = ids[: -len(self.unasked)]
        if self.settings.append_eos:
            ids = [*ids, self.eos_token_id]
        return ids, [False] * len(prompt) + [True] * (len(ids) - len(prompt))

    def _ids(self, row: Mapping[str, Any], column: str, refuse: Refuse) -> list[int]:
        ids = [] if row[column] is None else row[column]
        listed = isinstance(ids, list)
        wrong = [one for one in ids if type(one) is not int or not 0 <= one < 2**31] if listed else [ids]
        if wrong:
            raise refuse(f"`{column}` must list token ids, integers of at least 0, found {wrong[0]!r}.")
        return ids

    def _flags(self, row: Mapping[str, Any], column: str, length: int, refuse: Refuse) -> list[bool] | None:
        """A column that says yes or no to each token; None where the row has none."""
        flags = row.get(column)
        if flags is None:
            return None
        if not isinstance(flags, list) or len(flags) != length:
            found = len(flags) if isinstance(flags, list) else repr(flags)[:60]
            raise refuse(f"{length} `input_ids` need a list of as many `{column}`, found {found}.")
        wrong = [one for one in flags if type(one) not in (bool, int) or one not in (0, 1)]
        if wrong:
            raise refuse(f"`{column}` must hold true or false, or 1 or 0, found {wrong[0]!r}.")
        return [bool(one) for one in flags]

    def _own(self, row: Mapping[str, Any], length: int, refuse: Refuse) -> slice:
        """Where the tokens stand that are the row's own; `attention_mask` says what is padding."""
        mask = self._flags(row, "attention_mask", length, refuse)
        if mask is None or not any(mask):
            return slice(length if mask is None else 0)
        own = slice(mask.index(True), length - mask[::-1].index(True))
        if not all(mask[own]):
            raise refuse(
                "`attention_mask` must pad on the left or on the right only, found padding between tokens at "
                f"position {own.start + mask[own].index(False)}; pad at the ends, or make two rows."
            )
        return own

    def _input_ids(self, row: Mapping[str, Any], refuse: Refuse) -> tuple[list[int], list[bool]]:
        ids = self._ids(row, "input_ids", refuse)
        own, labels = self._own(row, len(ids), refuse), row.get("labels")
        maskable = self._flags(row, "maskable", len(ids), refuse)
        if any(row.get("token_type_ids") or ()):
            raise refuse("`token_type_ids` must be zeros, which is how the model is called; leave the column out.")
        if labels is not None and maskable is not None:
            raise refuse("give `labels` or `maskable`, not both.")
        if labels is not None:
            if not isinstance(labels, list) or len(labels) != len(ids):
                found = len(labels) if isinstance(labels, list) else repr(labels)[:60]
                raise refuse(f"{len(ids)} `input_ids` need a list of as many `labels`, found {found}.")
            maskable = [label != _IGNORED_LABEL for label in labels]
            if any(label not in (_IGNORED_LABEL, token) for label, token in zip(labels[own], ids[own], strict=True)):
                raise refuse(f"a label must be its token's id, or {_IGNORED_LABEL} where not maskable.")
        ids, maskable = ids[own], [True] * len(ids[own]) if maskable is None else maskable[own]
        if self.settings.append_eos:
            ids, maskable = [*ids, self.eos_token_id], [*maskable, True]
        return ids, maskable
