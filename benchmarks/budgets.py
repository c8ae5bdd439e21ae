"""Measure the budgets in a fresh clone: set-up, second set-up, notebooks, tests.

    python benchmarks/budgets.py [--keep FOLDER]

Clones the committed tree, so uncommitted changes are not measured. Takes about a quarter of an hour on 2 cores.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
BUDGETS = {"make setup": 480, "make setup, again": 3, "notebook 01": 420, "tests without the notebooks": 600}  # seconds
MEMORY_BUDGET = 4 * 2**30  # resident bytes of a notebook's run


def timed(command, folder, environment=None):
    """Run a command in a folder; return (exit status, seconds, peak resident bytes of its largest process)."""
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **(environment or {})})
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="clone into this folder and leave it there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = arguments.keep or Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
        results = {
            "make setup": timed(["make", "setup"], clone),
            "make setup, again": timed(["make", "setup"], clone),
            "notebook 01": timed(["make", "run", "NOTEBOOK=01"], clone, {"PROFILE": "rehearsal"}),
            "tests without the notebooks": timed(
                [".finetuning/bin/python", "-m", "pytest", "tests", "-m", "not long and not notebook"], clone
            ),
        }
    report = {
        name: {"exit_status": status, "seconds": round(seconds, 1), "budget_seconds": BUDGETS[name], "peak_bytes": peak}
        for name, (status, seconds, peak) in results.items()
    }
    folder = PROJECT / "outputs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "budgets.json").write_text(json.dumps(report, indent=1) + "\n")
    print("\n| | seconds | budget | peak GiB |\n| --- | --- | --- | --- |")
    for name, entry in report.items():
        print(f"| {name} | {entry['seconds']} | {entry['budget_seconds']} | {entry['peak_bytes'] / 2**30:.1f} |")
    over = [
        name for name, entry in report.items() if entry["seconds"] > entry["budget_seconds"] or entry["exit_status"]
    ]
    if report["notebook 01"]["peak_bytes"] > MEMORY_BUDGET:
        over.append("notebook 01 (memory)")
    print("over budget or failed:", ", ".join(over) or "none")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
