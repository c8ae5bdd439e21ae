"""Notebook 01's rehearsal with other seeds, rates, steps and rows: what holds, and what a change of language costs.

    python benchmarks/variations.py [--at-once N] [--only NAME …]

Each variation is the notebook itself with values injected behind its parameters, run to its end on this machine; what
its replies show is counted with the notebook's own reader and written to outputs/benchmarks/variations.json.

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
from notebook_code import lift, write_with_parameters  # noqa: E402

NOTEBOOK = next((PROJECT / "NoteBooks").glob("01_*.ipynb"))
FOREIGN = "outputs/benchmarks/questions_not_in_english.jsonl"
VARIATIONS = {
    **{f"as here, seed {seed}": {"SEED": seed} for seed in (42, 1, 2)},
    **{f"learning rate 1e-3, seed {seed}": {"SEED": seed, "LEARNING_RATE": 1e-3} for seed in (42, 1)},
    "learning rate 5e-4, seed 42": {"LEARNING_RATE": 5e-4},
    "40 steps, seed 42": {"MAX_STEPS": 40},
    "160 steps, seed 42": {"MAX_STEPS": 160},
    **{f"rows without English questions, seed {seed}": {"SEED": seed, "DATASET": FOREIGN} for seed in (42, 1)},
}


def write_foreign_rows():
    """Write the training rows whose question is not in English; return how many."""
    detect = lift(NOTEBOOK, "LANGUAGES", "detector", "detect_language")["detect_language"]
    rows = [json.loads(line) for line in (PROJECT / "data" / "multilingual_thinking.jsonl").read_text().splitlines()]
    foreign = [row for row in rows if detect(row["user"]) != "English"]
    (PROJECT / FOREIGN).write_text("".join(json.dumps(row) + "\n" for row in foreign))
    return len(foreign)


def count(replies):
    """Return {model: {"parsed", "faithful beyond English", "answered as asked", …}} of a run's replies.jsonl."""
    found, skip = {}, ("unsloth", "trl", "transformers", "peft")
    nb = lift(NOTEBOOK, "parse_harmony", "LANGUAGES", "detector", "detect_language", without=skip)
    for row in replies:
        if row["reasoning_language"] == "Portuguese":
            continue
        parsed, counts = nb["parse_harmony"](row["reply"]), found.setdefault(row["model"], dict.fromkeys(
            ("prompts", "parsed", "beyond English", "faithful", "foreign", "foreign answered as asked", "answered as asked"), 0))  # fmt: skip
        as_asked = nb["detect_language"](parsed["final"]) == row["user_language"]
        counts["prompts"] += 1
        counts["parsed"] += parsed["fault"] is None
        counts["answered as asked"] += as_asked
        if row["reasoning_language"] != "English":
            counts["beyond English"] += 1
            counts["faithful"] += nb["detect_language"](parsed["analysis"]) == row["reasoning_language"]
        if row["user_language"] != "English":
            counts["foreign"] += 1
            counts["foreign answered as asked"] += as_asked
    return found


def start(name, folder):
    """Start one variation's notebook; return the process."""
    stem = name.replace(" ", "_").replace(",", "")
    copy = folder / f"{stem}.ipynb"
    values = {"TRACKER": "none", "MERGE": False, "NOTEBOOK": f"benchmarks/{stem}", **VARIATIONS[name]}
    write_with_parameters(NOTEBOOK, copy, values)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
    command += ["--ExecutePreprocessor.timeout=3600", "--output-dir", str(folder / "executed"), str(copy)]
    return subprocess.Popen(
        command, env={**os.environ, "PROFILE": "rehearsal"}
    ), PROJECT / "outputs" / "benchmarks" / stem


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-once", type=int, default=1, help="how many notebooks run side by side")
    parser.add_argument("--only", nargs="+", choices=VARIATIONS, default=list(VARIATIONS), metavar="NAME")
    arguments = parser.parse_args()
    folder = PROJECT / "outputs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{write_foreign_rows()} rows have a question that is not in English")
    waiting, running, record = list(arguments.only), {}, {"runs": {}}
    while waiting or running:
        while waiting and len(running) < arguments.at_once:
            name = waiting.pop(0)
            running[name] = start(name, folder)
        for name, (process, output) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                print(f"{name}: failed")
                continue
            card = json.loads((output / "run_card.json").read_text())
            replies = [json.loads(line) for line in (output / "replies.jsonl").read_text().split("\n") if line]
            record |= {"device": card["device"], "started": card["started"], "versions": card["versions"]}
            record["runs"][name] = {"values": VARIATIONS[name], "counts": count(replies)}
            (folder / "variations.json").write_text(json.dumps(record, indent=1) + "\n")
            print(f"{name}: {record['runs'][name]['counts']['tuned']}", flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main()
