"""From files and rows to what the trainer eats: reading, tokenising, marking what may be masked, padding."""

from prism_plugin.data.collator import PrismCollator, require_batch
from prism_plugin.data.columns import ROW_NUMBER, columns_of_a_kind, given_columns, require_history
from prism_plugin.data.lines import read_lines, read_piped_lines
from prism_plugin.data.origin import IN_MEMORY, Origin
from prism_plugin.data.preparation import check_columns, prepare_rows
from prism_plugin.data.prepared import check_prepared, fingerprint, foreign_mask, id_range, longest_row
from prism_plugin.data.reading import is_data_file, read_rows
from prism_plugin.data.rows import as_dataset, as_rows, require_list_of_rows
from prism_plugin.data.settings import DataSettings
from prism_plugin.data.streaming import RowStream, is_stream, stream_rows

__all__ = [
    "IN_MEMORY",
    "ROW_NUMBER",
    "DataSettings",
    "Origin",
    "PrismCollator",
    "RowStream",
    "as_dataset",
    "as_rows",
    "check_columns",
    "check_prepared",
    "columns_of_a_kind",
    "fingerprint",
    "foreign_mask",
    "given_columns",
    "id_range",
    "is_data_file",
    "is_stream",
    "longest_row",
    "prepare_rows",
    "read_lines",
    "read_piped_lines",
    "read_rows",
    "require_batch",
    "require_history",
    "require_list_of_rows",
    "stream_rows",
]
