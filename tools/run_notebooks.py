"""Run the notebooks headless and report: what `make run` does after the set-up.

    python tools/run_notebooks.py [01 02 … or a notebook's path]

Each notebook goes through `jupyter nbconvert --to notebook --execute`; its executed copy lies in
outputs/executed/. A notebook that fails leaves the copy as far as it came, its last cell is named, and the
exit status is 1. Ctrl-C ends the notebook's kernel too.
"""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parent.parent
EXECUTED = PROJECT / "outputs" / "executed"
CELL_TIMEOUT = {"full": 7200, "rehearsal": 1800}  # seconds for one cell
HEADLINES = {  # number of the notebook: the metric shown before and after, and how it is written
    "01": ("fidelity_beyond_english", "fidelity_beyond_english", ".0%"),
    "02": ("emoji_replies", "emoji_replies", ".0%"),
    "03": ("bits_per_byte", "bits_per_byte", ".3f"),
    "04": ("exact_match", "lora.exact_match", ".0%"),
}


def choose_notebooks(texts):
    """Return the paths of the notebooks with these numbers or at these paths; all of NoteBooks/ if none is named.

    A text that is no file is divided at its spaces: `make run NOTEBOOK="01 02"` arrives as one text.
    """
    notebooks = sorted((PROJECT / "NoteBooks").glob("[0-9][0-9]_*.ipynb"))
    parts = [part for text in texts for part in ([text] if Path(text).is_file() else text.split())]
    others = [Path(part).resolve() for part in parts if part.endswith(".ipynb") and Path(part).is_file()]
    numbers = [part for part in parts if Path(part).resolve() not in others]
    chosen = [path for path in notebooks if path.name[:2] in numbers or not numbers and not others] + others
    unknown = set(numbers) - {path.name[:2] for path in notebooks}
    if unknown or not chosen:
        there = ", ".join(path.name[:2] for path in notebooks)
        raise SystemExit(f"run: there is no notebook {', '.join(sorted(unknown))}; there are {there}.")
    return chosen


def run_card(executed):
    """Return the run card that an executed notebook shows in its last output, or None."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return None
    for cell in reversed(cells):
        for output in cell.get("outputs", []):
            if "application/json" in output.get("data", {}):
                return output["data"]["application/json"]
    return None


def execute(notebook):
    """Run one notebook; return (exit status, seconds, peak resident bytes, path of the executed copy)."""
    executed = EXECUTED / f"{notebook.stem}_executed.ipynb"
    executed.unlink(missing_ok=True)
    profile = os.environ.get("PROFILE", "")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
    command += ["--config", str(PROJECT / "tools" / "nbconvert_config.py")]
    command += [f"--ExecutePreprocessor.timeout={CELL_TIMEOUT.get(profile, max(CELL_TIMEOUT.values()))}"]
    output = executed.name.replace("{", "{{").replace("}", "}}")  # nbconvert formats this name and globs the next
    command += ["--output-dir", str(EXECUTED), "--output", output, glob.escape(str(notebook))]
    environment = {**os.environ, "EXECUTED_PARTIAL": str(executed), "JUPYTER_PREFER_ENV_PATH": "1"}
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, process_group=0)  # Ctrl-C is for us to handle
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        started_here = [*psutil.Process(process.pid).children(recursive=True), process]
        for running in started_here:
            running.kill()  # at once: the kernel may be deep in a computation that nothing gentler ends
        process.wait()
        psutil.wait_procs(started_here[:-1], timeout=10)
        raise SystemExit(f"\nrun: interrupted in {notebook.name}; its kernel was ended.") from None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - started, usage.ru_maxrss * 1024, executed


def summary_row(notebook, status, seconds, peak_bytes, executed):
    """Return one line of the closing table as a list of texts."""
    card = run_card(executed) or {}
    metrics = card.get("metrics", {})
    before, after, form = HEADLINES.get(notebook.name[:2], ("", "", ""))
    if (
        card.get("device") == "CPU"
    ):  # the notebook resets its own high-water mark, the operating system's then reads low
        peak_bytes = max([peak_bytes, *(phase["peak_bytes"] for phase in card.get("phases", {}).values())])
    values = [metrics.get(when, {}).get(name, {}).get("value") for when, name in (("before", before), ("after", after))]
    change = "–" if None in values else f"{after} {values[0]:{form}} → {values[1]:{form}}"
    if status:
        change = "FAILED"
    return [
        notebook.stem[:2],
        card.get("profile", os.environ.get("PROFILE") or "–"),
        f"{seconds:.0f}",
        f"{peak_bytes / 2**30:.1f}",
        change,
        str(executed.relative_to(PROJECT)),
    ]


def main():
    if os.environ.get("PROFILE", "") not in ("", "full", "rehearsal"):
        raise SystemExit(f'run: PROFILE is "{os.environ["PROFILE"]}"; it can be "full", "rehearsal" or unset.')
    notebooks = choose_notebooks(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        EXECUTED.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"run: {EXECUTED} cannot be written ({error.strerror}). Make outputs/ writable.") from None
    table, failed = [["", "profile", "seconds", "peak GiB", "before → after", "executed copy"]], 0
    for notebook in notebooks:
        print(f"Running {os.path.relpath(notebook, PROJECT)} …", flush=True)
        status, *results = execute(notebook)
        failed += status != 0
        table.append(summary_row(notebook, status, *results))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    print()
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
