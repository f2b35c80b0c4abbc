"""Results as pictures, tables and pages; this level lays out and measures nothing."""

from prism_plugin.report.page import require_page_path, trace_page, write_trace_page
from prism_plugin.report.trace import Generation, Look, trace_generation, trace_runs

__all__ = [
    "Generation",
    "Look",
    "require_page_path",
    "trace_generation",
    "trace_page",
    "trace_runs",
    "write_trace_page",
]
