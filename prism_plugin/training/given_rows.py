"""Rows as people have them -> rows that a model can be trained or judged on; what cannot be is refused before any work."""

from collections.abc import Collection, Mapping
from typing import Any

import datasets

from prism_plugin.backbones import max_row_length, vocab_size_of
from prism_plugin.data import (
    Origin,
    RowStream,
    as_rows,
    check_prepared,
    columns_of_a_kind,
    foreign_mask,
    id_range,
    is_stream,
    longest_row,
    prepare_rows,
    require_history,
    require_list_of_rows,
    stream_rows,
)
from prism_plugin.errors import ConfigurationError, DataFormatError
from prism_plugin.modeling.model import PrismModel
from prism_plugin.training.arguments import PrismTrainingArguments
from prism_plugin.training.objective import Objective


def check_recorded(objective: Objective, columns: Collection[str], origin: Origin, *, with_history: bool = False) -> None:
    """Refuse recorded drafts that the objective would ignore, and rows without those, or the history, that is read.

    Args:
        objective: Reads them if it says so by `reads_drafts`.
        columns: Of the rows.
        origin: What the rows are called in errors.
        with_history: The head reads the history of recorded drafts.

    Raises:
        DataFormatError: If one has `draft_ids` and the other has no use for it, or the other way round; or if the history is
            missing.
    """
    reads, title = objective.reads_drafts, objective.title
    if reads and "draft_ids" not in columns:
        raise DataFormatError(
            f"{title[0].upper()}{title[1:]} learns from recorded drafts, the column `draft_ids`, but {origin} has none; record "
            "them with a sampler, or train with the objective `prism`, which makes its own."
        )
    if not reads and "draft_ids" in columns:
        raise DataFormatError(
            f"{origin} has recorded drafts, the column `draft_ids`, which {title} would ignore; train with "
            "the objective `prism_recorded`, or drop the column."
        )
    if reads and with_history:
        require_history(columns, origin)


def wants_history(model: PrismModel) -> bool:
    """Tell whether the history of recorded drafts is to be kept, since the head reads it."""
    return bool(model.quality_head.reads_history)


def to_train_on(rows: Any, model: PrismModel, args: PrismTrainingArguments, objective: Objective) -> Any:
    """Prepare what was given as `train_dataset`, a stream too.

    Raises:
        DataFormatError: As `as_prepared`.
        ConfigurationError: If a stream comes without what it needs to be trained on.
    """
    origin = Origin("train_dataset")
    if not is_stream(rows):
        return as_prepared(rows, model, origin, objective)
    if args.max_steps < 1:
        raise ConfigurationError("A stream has no length, so `max_steps` must say how long to train on it; set it.")
    if args.dataloader_num_workers:
        raise ConfigurationError(
            "A stream is read by the process that trains, so `dataloader_num_workers` must be 0, found "
            f"{args.dataloader_num_workers}; leave it out."
        )
    return _stream(rows, model, origin, objective)


def to_evaluate_on(rows: Any, model: PrismModel, objective: Objective, name: str = "eval_dataset") -> Any:
    """Prepare rows to evaluate on, or a dict of several data sets by name. A stream is read once, whole.

    Args:
        rows: As for `as_prepared`, or a dict of those.
        model: Whose tokenizer and positions count.
        objective: What is measured.
        name: What the rows are called in errors.

    Raises:
        DataFormatError: As `as_prepared`.
    """
    if not isinstance(rows, dict):
        return as_prepared(rows, model, Origin(name), objective)
    if not rows or columns_of_a_kind(rows):
        require_list_of_rows(rows, Origin(name))  # which a dict of columns is not
    return {key: as_prepared(part, model, Origin(f"{name}[{key!r}]"), objective) for key, part in rows.items()}


def as_prepared(rows: Any, model: PrismModel, origin: Origin, objective: Objective | None = None) -> Any:
    """Prepare raw rows, and check that the model can read the longest one.

    Args:
        rows: Raw or prepared rows, or any data set of prepared rows, whose lengths are then not checked; None stays None. A
            stream is read to its end.
        model: Whose tokenizer and positions count.
        origin: What the rows are called in errors.
        objective: What learns from them, where something does; recorded drafts are there for it, or not at all.

    Raises:
        DataFormatError: If there is no row, one cannot be used, one is longer than the model has positions for, or
            objective and recorded drafts do not go together.
    """
    if rows is None:
        return None
    if is_stream(rows):
        return as_prepared(list(_stream(rows, model, origin, objective).once()), model, origin)
    rows = as_rows(rows, origin)
    _require_rows(rows, origin)
    if not len(rows):
        raise DataFormatError(f"{origin} holds no row; pass None or give it at least one.")
    whole = isinstance(rows, datasets.Dataset | list | tuple)
    if not whole:
        check_prepared(rows[0], origin)
    if objective is not None:
        for columns in _columns(rows):
            check_recorded(objective, columns, origin, with_history=wants_history(model))
    if whole and "example_id" not in rows[0]:
        rows = prepare_rows(
            rows, model.tokenizer, mask_token_id=model.mask_token_id, origin=origin, with_history=wants_history(model)
        )
    if whole:
        check_prepared(rows[0], origin)
        _check_readable(rows, model, origin)
        _check_visible(rows, model, origin)
        _check_masks(rows, model, origin)
    return rows


def _stream(rows: Any, model: PrismModel, origin: Origin, objective: Objective | None) -> RowStream:
    """A stream whose every row is looked at as `as_prepared` looks at all of them."""

    stream = rows
    if not isinstance(rows, RowStream):
        stream = stream_rows(
            rows, model.tokenizer, mask_token_id=model.mask_token_id, origin=origin, with_history=wants_history(model)
        )

    def check(row: Mapping[str, Any], index: int) -> None:
        if objective is not None:
            check_recorded(objective, row.keys(), stream.origin, with_history=wants_history(model))
        _check_readable([row], model, stream.origin)
        _check_visible([row], model, stream.origin, first=index)

    stream.check = check
    stream.look()
    return stream


def _columns(rows: Any) -> Collection[Collection[str]]:
    """The sets of columns that rows have: those of a list may differ, of other data sets one row stands for all."""
    return {frozenset(row) for row in rows} if isinstance(rows, list | tuple) else [rows[0].keys()]


def _require_rows(rows: Any, origin: Origin) -> None:
    """Refuse what is no data set that can be read by index: files, dicts of splits, iterators."""
    readable = hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
    if isinstance(rows, list | tuple | str | bytes | Mapping) or not readable:
        require_list_of_rows(rows, origin)


def _check_readable(rows: Any, model: PrismModel, origin: Origin) -> None:
    """Check lengths and ids against the model's tables."""
    limit = max_row_length(model.plain_backbone)
    if limit is not None and longest_row(rows) > limit:
        raise DataFormatError(
            f"A row of {origin} must have at most {limit} tokens, as many as {model.spec.model_type} has positions for, found "
            f"{longest_row(rows)}; set `max_length`."
        )
    vocabulary, (smallest, largest) = vocab_size_of(model.get_output_embeddings()), id_range(rows)
    if smallest < 0 or largest >= vocabulary:
        raise DataFormatError(
            f"The tokens of {origin} must lie in the model's vocabulary, 0 to {vocabulary - 1}, found "
            f"{smallest if smallest < 0 else largest}; use the tokenizer that belongs to the model."
        )


def _check_masks(rows: Any, model: PrismModel, origin: Origin) -> None:
    """Check that recorded drafts were made with the model's own mask token."""
    if "draft_ids" not in rows[0]:
        return
    foreign = foreign_mask(rows, model.mask_token_id)
    if foreign is not None:
        raise DataFormatError(
            f"The recorded drafts of {origin} must hold the model's mask token {model.mask_token_id} where nothing was "
            f"written, but no draft holds it, and {foreign}, which no row of the data holds, makes most of what differs from "
            "the data; record them with this model's mask token, or attach with `mask_token_id`."
        )


def _check_visible(rows: Any, model: PrismModel, origin: Origin, first: int = 0) -> None:
    if not model.spec.needs_visible_token:
        return
    index = next((index for index, row in enumerate(rows, first) if all(row["maskable"])), None)
    if index is not None:
        raise DataFormatError(
            f"{origin.row(index)} must hold a token that is never masked, since a {model.spec.model_type} has no logits for "
            "masks alone, but is maskable throughout; add special tokens, or give `maskable`."
        )
