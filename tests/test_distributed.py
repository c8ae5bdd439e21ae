"""A notebook as two processes (gloo, one thread each) against the same notebook as one, with the same rows in a step."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT, SHORT, notebook_with
from safetensors.torch import load_file

LOSS_TOLERANCE = 0.02  # nats; bfloat16 rounds otherwise when rows are padded otherwise
TINY = {  # of notebook 01: few rows, prompts and tokens, no merged copy
    **SHORT["01"], "MAX_STEPS": 3, "EVAL_STEPS": 3, "SAVE_STEPS": 3, "MAX_NEW_TOKENS": 2, "MERGE": False,
    "VALIDATION_SHARE": 0.05, "EFFECTIVE_BATCH": 4, "LEARNING_RATE": 1e-3, "TRACKER": "trackio",
}  # fmt: skip


def few(name, folder, count):
    """Write the first rows of a file in data/ into a folder; return its path from the project's root."""
    path = folder / name
    path.write_text("".join((PROJECT / "data" / name).open(encoding="utf-8").readlines()[:count]), encoding="utf-8")
    return str(path.relative_to(PROJECT))


def run_as(number, count, folder, **parameters):
    """Run a notebook as so many processes; return (finished process, run card, output folder)."""
    copy = folder / f"{number}_{count}_processes.ipynb"
    notebook_with(number, copy, parameters)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "tools/distributed.py", str(copy), str(count)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    if result.returncode:
        return result, None, None
    place = next(line for line in result.stdout.splitlines() if "results go to" in line or "outputs/" in line)
    output = PROJECT / place[place.index("outputs/") :].split()[0].rstrip(";,.")
    return result, json.loads((output / "run_card.json").read_text()), output


@pytest.fixture(scope="module")
def folder():
    path = PROJECT / "outputs" / "executed" / f"distributed-{os.getpid()}"
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def runs(folder):
    """Notebook 01 as one process and as two; yield {processes: (result, run card, folder)}."""
    files = {"DATASET": few("multilingual_thinking.jsonl", folder, 60),
             "HELD_OUT_PROMPTS": few("held_out_prompts.jsonl", folder, 3),
             "UNSEEN_PROMPTS": few("unseen_language_prompts.jsonl", folder, 1)}  # fmt: skip
    found = {count: run_as("01", count, folder, **files, **TINY, MERGE_TOLERANCE=0.3 + count / 1000) for count in (1, 2)}
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
    way = sum(weight.float().square().sum() for name, weight in mine.items() if "lora_B" in name).sqrt()
    off = sum((mine[name].float() - theirs[name].float()).square().sum() for name in mine if "lora_B" in name).sqrt()
    print(f"losses {apart}, adapters {off / way:.3f} apart")
    assert off < 0.35 * way, f"adapters are {off / way:.2f} of their way apart"


@pytest.mark.notebook
def test_two_processes_make_one_folder(runs):
    assert runs[1][2] != runs[2][2]
    stored = [{str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
              for _, _, output in (runs[1], runs[2])]  # fmt: skip
    names = [{name for name in files if "rng_state" not in name and not name.startswith("trackio/")} for files in stored]
    assert names[0] == names[1]


def test_a_step_that_cannot_be_shared_is_refused(folder):
    pass
