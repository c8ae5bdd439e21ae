"""What takes too long for every commit: `make test-long`."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from conftest import PROJECT

pytestmark = pytest.mark.long


def start(path, output_dir):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
    command += ["--config", "tools/nbconvert_config.py", "--ExecutePreprocessor.timeout=1800"]
    command += ["--output-dir", str(output_dir), "--output", "executed.ipynb", str(path)]
    environment = {**os.environ, "EXECUTED_PARTIAL": str(output_dir / "partial.ipynb"), "PROFILE": "rehearsal"}
    return subprocess.Popen(command, cwd=PROJECT, env=environment, start_new_session=True)


def write(path, **parameters):
    notebook = nbformat.read(PROJECT / "NoteBooks" / "01_gpt_oss_multilingual_thinking.ipynb", as_version=4)
    index = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, path)


def test_training_killed_midway_goes_on_where_it_was(tmp_path):
    """Kill the kernel at the first checkpoint; RESUME = True continues from it, and the curve has no gap and no repeat."""
    path = PROJECT / "outputs" / "executed" / f".{tmp_path.name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "MAX_STEPS": 24,
        "EVAL_STEPS": 12,
        "SAVE_STEPS": 8,
        "MAX_NEW_TOKENS": 4,
        "SEED": 7,
        "TRACKER": "none",
    }
    try:
        write(path, **values)
        process, deadline = start(path, tmp_path), time.monotonic() + 900
        checkpoints = []
        while not checkpoints and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
            checkpoints = [
                found for found in PROJECT.glob("outputs/01_gpt*/checkpoints/ours/checkpoint-8/trainer_state.json")
                if found.stat().st_mtime > time.time() - 60 and json.loads(found.read_text())["max_steps"] == 24
            ]  # fmt: skip
        assert checkpoints, "no checkpoint appeared"
        for child in psutil.Process(process.pid).children(recursive=True):  # the kernel, in the middle of a step
            child.kill()
        process.kill()
        process.wait()
        first = json.loads(checkpoints[0].read_text())["log_history"]
        write(path, **values, RESUME=True)
        process = start(path, tmp_path)
        assert process.wait(timeout=1800) == 0
        output = checkpoints[0].parents[3]
        history = json.loads((output / "adapter" / "training.json").read_text())["log_history"]
        steps = [entry["step"] for entry in history if "loss" in entry]
        assert steps == list(range(1, 25))
        assert [entry["step"] for entry in history if "eval_loss" in entry] == [0, 12, 24]  # each once
        assert [entry for entry in history if "loss" in entry][:8] == [entry for entry in first if "loss" in entry]
        executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
        printed = "".join(o.get("text", "") for cell in executed.cells for o in cell.get("outputs", []))
        assert "going on from checkpoint-8" in printed
    finally:
        path.unlink(missing_ok=True)


def test_a_whole_set_up_killed_at_several_points_recovers(tmp_path):
    """The real lock and the checkpoints, in a fresh clone, killed while it installs and while it builds."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
    for seconds in (5, 20, 90):
        process = subprocess.Popen(["make", "setup"], cwd=clone, start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert subprocess.run(["make", "setup"], cwd=clone).returncode == 0
    verify = [".finetuning/bin/python", "tools/rehearsal.py", "--verify"]
    assert subprocess.run(verify, cwd=clone).returncode == 0
    assert not [path for path in (clone / "outputs" / "rehearsal").iterdir() if path.name.startswith(".")]
