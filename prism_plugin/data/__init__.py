"""From files and rows to what the trainer eats: reading, tokenising, marking what may be masked, padding."""

from prism_plugin.data.collator import PrismCollator
from prism_plugin.data.preparation import ROW_NUMBER, DataSettings, given_columns, prepare_rows
from prism_plugin.data.prepared import check_prepared, fingerprint, id_range, longest_row
from prism_plugin.data.reading import is_data_file, read_rows

__all__ = [
    "ROW_NUMBER",
    "DataSettings",
    "PrismCollator",
    "check_prepared",
    "fingerprint",
    "given_columns",
    "id_range",
    "is_data_file",
    "longest_row",
    "prepare_rows",
    "read_rows",
]
