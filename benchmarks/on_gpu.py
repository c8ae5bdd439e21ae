"""Everything that this course measures on a GPU, one step after another; `make benchmark` calls it.

    python benchmarks/on_gpu.py [--list] [--only STEP …]

A step is a command of its own. What it prints goes to outputs/benchmarks/STEP.log, its record beside it; a step that
fails is told in the table at the end and does not stop the others. The full profile runs against the stand-in Hub
with models of the true shape and random weights, for a few steps (`FEW`). A model is then on the disk twice, in the
stand-in Hub and in the cache of what was fetched from it: 26 GB for gpt-oss-20b.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import write_with_parameters  # noqa: E402
from run_notebooks import EXECUTED, run_card  # noqa: E402
from stand_in_hub import parameters  # noqa: E402

RECORDS = Path("outputs/benchmarks")
FEW = {  # values that limit the time of a run in the full profile, and nothing else
    "01": {"MAX_STEPS": 3, "EVAL_STEPS": 3, "SAVE_STEPS": 3, "MAX_NEW_TOKENS": 8, "TRACKER": "none"},
    "02": {"MAX_STEPS": 3, "PROBE_STEPS": 3, "LIMIT": 3,
           "MAX_NEW_TOKENS": dict.fromkeys(["emoji", "cmath", "mawps", "json_only", "tool_calls", "language"], 6)},
    "03": {"MAX_STEPS": 3, "EVAL_STEPS": 3, "MAX_NEW_TOKENS": 8, "RECITED": 2, "TRACKER": "none"},
    "04": {"MAX_STEPS": 3, "LIMIT": 8, "MAX_NEW_TOKENS": 8, "MERGE_TOLERANCE": 1.0},
}  # fmt: skip
AT_FULL_SHAPE = {
    "04": {"RUNS": ["lora main", "qlora main", "full main"], "MERGE": False, "SAVE_STEPS": 0}
}  # for the disk
KEPT = ("notebook", "started", "device", "versions", "model", "plan", "trainable_parameters", "phases", "parity")


def steps():
    """Return {step: its command}, in the order in which they run."""
    commands = {
        "train_step": ["benchmarks/train_step.py"],
        "epoch_cost": ["benchmarks/epoch_cost.py", f"{RECORDS}/train_step.json"],
        "learning_rates": ["benchmarks/learning_rates.py", "--minutes", "90"],
        "rehearsals": ["tools/run_notebooks.py"],
        "same_text": ["benchmarks/same_text.py"],
        "generation": ["benchmarks/generation.py"],
    }
    for number in FEW:
        commands[f"full_{number}"] = [
            "tools/stand_in_hub.py", "outputs/stand-in-hub", "--full", "--models", parameters(number)["MODEL"], "--",
            sys.executable, "tools/run_notebooks.py", f"{RECORDS}/{number}_few_steps.ipynb",
        ]  # fmt: skip
    return {name: [sys.executable, *command] for name, command in commands.items()}


def keep_card(number):
    """Put what a run in the full profile says of time, memory and checks into outputs/benchmarks/full_profile.json."""
    card, record = run_card(EXECUTED / f"{number}_few_steps_executed.ipynb"), PROJECT / RECORDS / "full_profile.json"
    if card:
        kept = json.loads(record.read_text()) if record.exists() else {}
        kept[number] = {name: card[name] for name in KEPT if name in card}
        record.write_text(json.dumps(kept, indent=1) + "\n")


def run(name, command):
    """Run a step, its output in its log; return (exit status, seconds)."""
    started = time.monotonic()
    if name.startswith("full_"):
        number = name.removeprefix("full_")
        original = next((PROJECT / "NoteBooks").glob(f"{number}_*.ipynb"))
        write_with_parameters(original, PROJECT / command[-1], FEW[number] | AT_FULL_SHAPE.get(number, {}))
    environment = os.environ | ({"PROFILE": "rehearsal"} if name == "rehearsals" else {})
    with (PROJECT / RECORDS / f"{name}.log").open("w") as log:
        status = subprocess.run(command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if name.startswith("full_"):
        keep_card(number)
    return status, time.monotonic() - started


def main():
    commands = steps()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the steps and their commands, and run none")
    parser.add_argument("--only", nargs="+", choices=list(commands), metavar="STEP", help="only these steps")
    arguments = parser.parse_args()
    chosen = {name: command for name, command in commands.items() if name in (arguments.only or commands)}
    if arguments.list:
        for name, command in chosen.items():
            print(f"{name:15} python {' '.join('python' if part == sys.executable else part for part in command[1:])}")
        return 0
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("on_gpu: PyTorch finds no GPU here, and these benchmarks measure one. --list shows them.")
    (PROJECT / RECORDS).mkdir(parents=True, exist_ok=True)
    results = {}
    for name, command in chosen.items():
        print(f"{name} … its output is in {RECORDS}/{name}.log", flush=True)
        results[name] = run(name, command)
    print("\nstep             seconds  status")
    for name, (status, seconds) in results.items():
        print(f"{name:15}  {seconds:7.0f}  {'ended well' if status == 0 else f'exit status {status}, see its log'}")
    return 1 if any(status for status, _ in results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
