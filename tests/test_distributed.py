"""A notebook as two processes (gloo, one thread each) against the same notebook as one, with the same rows in a step."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT, SHORT, lift, notebook_with
from safetensors.torch import load_file

ADAPTER_TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-4  # nats; 0 was met: each process takes one of the two micro-batches that one process adds up
TINY = {  # of notebook 01: few rows, prompts and tokens, no merged copy
    **SHORT["01"], "MAX_STEPS": 3, "EVAL_STEPS": 3, "SAVE_STEPS": 3, "MAX_NEW_TOKENS": 2, "MERGE": False,
    "VALIDATION_SHARE": 0.05, "EFFECTIVE_BATCH": 4, "EXPERT_LAYERS": [], "TRACKER": "trackio",
}  # fmt: skip


def few(name, folder, count):
    """Write the shortest rows of a file in data/ into a folder; return its path from the project's root."""
    path = folder / name
    lines = sorted((PROJECT / "data" / name).read_text(encoding="utf-8").splitlines(True), key=len)
    path.write_text("".join(lines[:count]), encoding="utf-8")
    return str(path.relative_to(PROJECT))


def run_as(number, count, folder, **parameters):
    """Run a notebook as so many processes; return (finished process, run card, output folder)."""
    copy = folder / f"{number}_{count}_processes.ipynb"
    notebook_with(number, copy, parameters)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tools/distributed.py", str(copy), str(count)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    cards = sorted(PROJECT.glob(f"outputs/{number}_*/run_card.json"), key=lambda path: path.stat().st_mtime)
    if result.returncode or not cards:
        return result, None, None
    return result, json.loads(cards[-1].read_text()), cards[-1].parent


@pytest.fixture(scope="module")
def folder():
    path = PROJECT / "outputs" / "executed" / f"distributed-{os.getpid()}"
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def runs(folder):
    """Notebook 01 as one process and as two; yield {processes: (result, run card, folder)}."""
    files = {"DATASET": few("multilingual_thinking.jsonl", folder, 40),
             "HELD_OUT_PROMPTS": few("held_out_prompts.jsonl", folder, 3),
             "UNSEEN_PROMPTS": few("unseen_language_prompts.jsonl", folder, 1)}  # fmt: skip
    found = {
        count: run_as("01", count, folder, **files, **TINY, MERGE_TOLERANCE=0.3 + count / 1000) for count in (1, 2)
    }
    yield found
    for _, _, output in found.values():
        if output:
            shutil.rmtree(output)


def losses(run):
    """Return {step: training loss} of a run."""
    record = json.loads((run[2] / "adapter" / "training.json").read_text())
    return {entry["step"]: entry["loss"] for entry in record["log_history"] if "loss" in entry}


@pytest.mark.notebook
def test_two_processes_end_well_and_print_once(runs):
    for result, _, _ in runs.values():
        assert result.returncode == 0, result.stderr[-2000:]
    result, card, _ = runs[2]
    assert card["processes"] == 2 and "processes" not in runs[1][1]
    assert result.stdout.count("results go to") == 1 and result.stdout.count("[train ours") == 1
    assert "2 processes, each with 2 × 1 of a step's 4 rows" in result.stdout
    assert not result.stderr.strip(), result.stderr[-2000:]


@pytest.mark.notebook
def test_two_processes_learn_what_one_learns(runs):
    one, two = losses(runs[1]), losses(runs[2])
    assert list(one) == list(two) == [1, 2, 3]
    apart = [abs(one[step] - two[step]) for step in one]
    assert max(apart) < LOSS_TOLERANCE, (one, two)
    mine, theirs = (load_file(runs[count][2] / "adapter" / "adapter_model.safetensors") for count in (1, 2))
    assert mine.keys() == theirs.keys()
    assert any(weight.any() for name, weight in mine.items() if "lora_B" in name)
    assert max((mine[name] - theirs[name]).abs().max() for name in mine) < ADAPTER_TOLERANCE


@pytest.mark.notebook
def test_two_processes_make_one_folder(runs):
    assert runs[1][2] != runs[2][2]
    stored = [{str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
              for _, _, output in (runs[1], runs[2])]  # fmt: skip
    names = [
        {name for name in files if "rng_state" not in name and not name.startswith("trackio/")} for files in stored
    ]
    assert names[0] == names[1]


@pytest.mark.notebook
def test_a_step_that_cannot_be_shared_is_refused(folder, notebook_01):
    from types import SimpleNamespace

    namespace = lift(notebook_01, "ShareTrainer")
    namespace["PROCESSES"] = 3
    arguments = SimpleNamespace(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    with pytest.raises(namespace["NotebookError"], match="4 rows, and 3 processes cannot share them evenly"):
        namespace["ShareTrainer"](args=arguments)


@pytest.mark.long
@pytest.mark.notebook
@pytest.mark.parametrize("number", ["02", "03", "04"])
def test_the_other_notebooks_as_two_processes(number, folder):
    short = {**SHORT[number], **({"MERGE_TOLERANCE": 1.5} if number == "04" else {"MERGE": False})}
    result, card, output = run_as(number, 2, folder, **short, SEED=4321)
    assert result.returncode == 0, result.stderr[-3000:]
    assert card["processes"] == 2 and "2 processes, each with" in result.stdout
    shutil.rmtree(output)
