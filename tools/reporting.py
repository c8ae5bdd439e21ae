"""An ExecutePreprocessor for nbconvert that says where it is, keeps what ran when a cell fails, and joins streams.

`tools/nbconvert_config.py` puts it in the place of nbconvert's own; the command line stays
`jupyter nbconvert --to notebook --execute`.
"""

import os
import re
import sys
import time

import nbformat
from nbconvert.preprocessors import CellExecutionError, CoalesceStreamsPreprocessor, ExecutePreprocessor


class ReportingExecutePreprocessor(ExecutePreprocessor):
    """Print each section's heading with the seconds so far; on an error, save the partly executed notebook.

    Neighbouring pieces of one stream become one output, so that a streamed reply stands on one line.
    The environment variable `EXECUTED_PARTIAL` names the file that a failed run is written to.
    """

    def preprocess(self, nb, resources=None, km=None):
        self.started, self.section = time.monotonic(), "the opening"
        try:
            return super().preprocess(nb, resources, km)
        except Exception as error:
            partial = os.environ.get("EXECUTED_PARTIAL")
            if partial:
                nbformat.write(nb, partial)
            index = getattr(self, "cell_index", None)
            code = sum(cell.cell_type == "code" for cell in nb.cells[: (index or 0) + 1])
            kind = "failed" if isinstance(error, CellExecutionError) else f"stopped ({type(error).__name__})"
            print(f"  code cell {code} of section “{self.section}” {kind}", file=sys.stderr, flush=True)
            if isinstance(error, CellExecutionError):  # the cell's own traceback, not nbconvert's around it
                raise SystemExit(f"\n{error}") from None
            raise

    def preprocess_cell(self, cell, resources, index):
        self.cell_index = index
        headings = re.findall(r"^##? (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else []
        for self.section in headings:
            print(f"  {time.monotonic() - self.started:6.0f} s  {self.section}", file=sys.stderr, flush=True)
        try:
            return super().preprocess_cell(cell, resources, index)
        finally:
            CoalesceStreamsPreprocessor().preprocess_cell(cell, resources, index)
