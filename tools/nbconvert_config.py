"""nbconvert's configuration for `make run`: progress by section, a partial copy of a failed run, clean outputs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

c = get_config()  # noqa: F821 (traitlets provides it)
c.NotebookExporter.default_preprocessors = ["reporting.ReportingExecutePreprocessor"]
c.ExecutePreprocessor.enabled = True
c.ExecutePreprocessor.record_timing = False
c.ExecutePreprocessor.store_widget_state = False
c.KernelManager.transport_encryption = "auto"  # else each kernel warns that its ports are not encrypted
