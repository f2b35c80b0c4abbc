"""From files and rows to what the trainer eats: reading, tokenising, marking what may be masked, padding."""

from prism_plugin.data.collator import PrismCollator, require_batch
from prism_plugin.data.columns import ROW_NUMBER, given_columns
from prism_plugin.data.lines import read_lines, read_piped_lines
from prism_plugin.data.preparation import check_columns, prepare_rows
from prism_plugin.data.prepared import check_prepared, fingerprint, id_range, longest_row
from prism_plugin.data.reading import is_data_file, read_rows
from prism_plugin.data.rows import as_dataset, require_list_of_rows
from prism_plugin.data.settings import DataSettings

__all__ = [
    "ROW_NUMBER",
    "DataSettings",
    "PrismCollator",
    "as_dataset",
    "check_columns",
    "check_prepared",
    "fingerprint",
    "given_columns",
    "id_range",
    "is_data_file",
    "longest_row",
    "prepare_rows",
    "read_lines",
    "read_piped_lines",
    "read_rows",
    "require_batch",
    "require_list_of_rows",
]
