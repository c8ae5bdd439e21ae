"""The plumbing of the benchmarks, on small sizes: that they run the notebooks' own functions. No time is asserted."""

import json
import subprocess
import sys

from conftest import PROJECT


def test_the_pdf_benchmark_runs_the_notebook_s_own_functions(tmp_path):
    command = [sys.executable, "benchmarks/pdf_pipeline.py", "--pages", "1000", "--skip-peers", "--output", tmp_path]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode in (0, 1), finished.stderr[-2000:]
    record = json.loads((tmp_path / "pdf_pipeline.json").read_text())
    results = record["results"]
    assert finished.returncode == bool(record["over"]), finished.stderr[-2000:]
    assert results["speed"]["pages"] == 20 and results["speed"]["chunks"] > 5
    assert [size["pages"] for size in results["memory"]] == [20, 200, 1000]
    assert all(len(size["samples"]) == 20 and size["peak_bytes"] > 0 for size in results["memory"])
    assert results["parallel"]["files"] == 8 and results["parallel"]["pages"] == 80
    assert [(again["pages"], again["readings"]) for again in results["again"].values()] == [(10, 1), (10, 0), (10, 1)]
    assert all(row[0] in finished.stdout for row in record["table"])
