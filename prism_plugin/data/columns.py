"""The columns of raw rows: which kind of row they make, what they are called, and that none is lost in silence."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets

from prism_plugin.core.history import HISTORY
from prism_plugin.data.origin import Origin
from prism_plugin.errors import DataFormatError

KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "input_ids": ("input_ids",),
}
DRAFT_COLUMN = "draft_ids"
# What rows of `input_ids` may bring besides.
BESIDE_IDS = ("labels", "maskable", "attention_mask", "token_type_ids", DRAFT_COLUMN)
# What a row is called in errors where its index is another than in the file, as after a split.
ROW_NUMBER = "row_number"
# Where a row is from and what it is called, which changes nothing of what is learnt; the indices that pandas writes; and the
# history of a recorded draft, which tells how it was made.
HARMLESS_COLUMNS = frozenset(
    {"id", "idx", "index", "uid", "uuid", "url", "source", "timestamp", "date", "language", "license", "meta", "metadata"}
    | {"", "Unnamed: 0", "__index_level_0__", ROW_NUMBER}
    | set(HISTORY)
)


def given_columns(rows: datasets.Dataset) -> list[str]:
    """The columns that the data came with."""
    return [name for name in rows.column_names if name != ROW_NUMBER]


def renamed(columns: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """Check how columns are to be renamed.

    Args:
        columns: Of the data.
        names: Our name -> the data's own.

    Returns:
        The data's own name -> our name.

    Raises:
        DataFormatError: If a column is not there, or its new name is taken.
    """
    if missing := sorted(set(names.values()) - set(columns)):
        raise DataFormatError(f"The data has no column {', '.join(missing)}; it has {', '.join(columns)}.")
    if taken := sorted(ours for ours, theirs in names.items() if ours != theirs and ours in columns):
        raise DataFormatError(f"The data already has a column {', '.join(taken)}; `columns` cannot give its name to another.")
    return {theirs: ours for ours, theirs in names.items()}


def columns_of_a_kind(names: Collection[str]) -> bool:
    """Whether some names are, or hold, the columns of a kind of row."""
    return any(set(columns) <= set(names) for columns in KINDS.values())


def kind_of(columns: Sequence[str]) -> str:
    """The kind of row that columns make.

    Raises:
        DataFormatError: If they make none, or several.
    """
    kinds = [kind for kind, names in KINDS.items() if set(names) <= set(columns)]
    expected = " or ".join("+".join(names) for names in KINDS.values())
    if len(kinds) != 1:
        found = "several of them" if kinds else "none"
        raise DataFormatError(
            f"Rows need the columns {expected}, and only one of these; found {found} in {', '.join(columns)}. "
            "Rename with `columns`, or drop what is not meant."
        )
    return kinds[0]


def columns_read(kind: str) -> tuple[str, ...]:
    """The columns that rows of a kind are made of, those included that they may lack."""
    return (*KINDS[kind], *(BESIDE_IDS if kind == "input_ids" else (DRAFT_COLUMN,)))


def require_history(columns: Collection[str], origin: Origin) -> None:
    """Check that rows tell what the tokens of their recorded drafts have been through.

    Raises:
        DataFormatError: If they do not, or not whole.
    """
    if missing := [name for name in HISTORY if name not in columns]:
        raise DataFormatError(
            f"A head with `head_history` needs the columns {', '.join(HISTORY)} beside `{DRAFT_COLUMN}`, but {origin} has no "
            f"{', '.join(missing)}; record with `history: true`, or attach without `head_history`."
        )


# What a recorded draft's history may hold: types, range, and that in words.
_HISTORY_VALUES: dict[str, tuple[tuple[type, ...], float, float, str]] = {
    "age": ((int,), -1, 2**31 - 1, "integers of at least -1"),
    "commit_confidence": ((int, float), 0, 1 + 1e-6, "probabilities in [0, 1]"),  # which rounding may exceed
    "times_remasked": ((int,), 0, 2**31 - 1, "integers of at least 0"),
}


def history_fault(name: str, values: Any, length: int) -> str | None:
    """What is wrong with a column of a recorded draft's history, in words; None if nothing is.

    Args:
        name: The column, of `HISTORY`.
        values: What a row holds there.
        length: Tokens of the row.
    """
    if not isinstance(values, list) or len(values) != length:
        count = len(values) if isinstance(values, list) else repr(values)[:60]
        return f"{length} `input_ids` need a list of as many `{name}`, found {count}."
    kinds, low, high, in_words = _HISTORY_VALUES[name]
    wrong = [one for one in values if type(one) not in kinds or not low <= one <= high]
    return f"`{name}` must hold {in_words}, found {wrong[0]!r}." if wrong else None


def refuse_unread(columns: Collection[str], read: Collection[str], what: str, cure: str) -> None:
    """Refuse columns that nothing reads, but for those that are harmless by their name.

    Args:
        columns: Of the rows.
        read: Those that are read.
        what: The rows, in words.
        cure: What to do, in words.

    Raises:
        DataFormatError: If there is one.
    """
    unread = [name for name in columns if name not in read and name not in HARMLESS_COLUMNS]
    if unread:
        listed = ", ".join(f"`{name}`" for name in unread)
        raise DataFormatError(f"Nothing reads {listed} of {what}, which would be lost in silence; {cure}.")
