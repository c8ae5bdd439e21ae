"""Notebook 02's mixture with several remedies against forgetting: language kept, emoji, valid JSON, three seeds each.

    python benchmarks/forgetting.py [--minutes 13] [--record benchmarks/results/forgetting.json]

Rows, mask, trainer, prompts and measures are the notebook's own cells, in its rehearsal profile. The first seed of every
setting is made first. The record is written after every run, and a second call goes on where the first one stopped;
runs made by other code of the notebook, or on another device, are not mixed: then the record begins anew.
Notebook 02 reads the record and shows it as a table.
"""

import argparse
import ast
import contextlib
import hashlib
import io
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import code_cells  # noqa: E402

NOTEBOOK = PROJECT / "NoteBooks" / "02_qwen3_emoji_math.ipynb"
RECORD = PROJECT / "benchmarks" / "results" / "forgetting.json"
SEEDS = (1, 2, 3)
SETTINGS = {  # name: learning rate and steps, as parts of the notebook's; replay share; two stages
    "the mixture alone": (1, 1, 0.0, False),
    "15 % replay": (1, 1, 0.15, False),
    "half the learning rate": (0.5, 1, 0.0, False),
    "half the steps": (1, 0.5, 0.0, False),
    "two stages: emoji, then the rest": (1, 1, 0.0, True),
    "5 % replay": (1, 1, 0.05, False),
    "half the learning rate, 15 % replay": (0.5, 1, 0.15, False),
}
LEFT_OUT = (
    "first_requests =",
    "base = answer(",
    "prompted = answer(",
    "styled = ",
    "budgets = []",
)  # costly, not needed


def prepare():
    """Return the notebook's namespace, ready to train: its cells up to the first training."""
    os.environ["PROFILE"], os.environ["MPLBACKEND"] = "rehearsal", "Agg"
    import IPython.display

    IPython.display.display = lambda *_, **__: None
    nb = {"__name__": "notebook_02"}
    for source in code_cells(NOTEBOOK):
        tree = ast.parse(source)
        last = "history = train(" in source
        if last or any(start in source for start in LEFT_OUT):
            tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        exec(compile(tree, NOTEBOOK.name, "exec"), nb)
        if last:
            return nb
    raise SystemExit("forgetting: notebook 02 has no cell with `history = train(`")


def rows_of(nb, pools, count, replay, seed):
    """Return `count` labelled rows drawn from the pools by the notebook's weights, a share of them replay."""
    weights = {name: nb["weights"][name] for name in pools}
    repeats = {"max_repeats": count}
    rows = nb["mix"](pools, weights, "resample", seed, count - round(replay * count), **repeats)
    if replay:
        pool, _ = nb["build_pool"](nb["replay_source"], lambda row: nb["make_row"](
            [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}], "replay"))  # fmt: skip
        drawn = nb["mix"]({"replay": pool}, {"replay": 1}, "resample", seed, round(replay * count), **repeats)
        rows = nb["concatenate_datasets"]([rows, drawn]).shuffle(seed=seed)
    return nb["add_labels"](rows)[0]


def run(nb, name, seed):
    """Train one setting and return {metric: [right, n]} of its replies, with the seconds it took."""
    rate, part, replay, two_stages = SETTINGS[name]
    started, start = time.perf_counter(), nb["initial_adapter"]
    steps, size = round(part * nb["steps"]), nb["a_step"]
    nb["SEED"] = seed
    nb["TRAINING"].update(learning_rate=rate * nb["LEARNING_RATE"], seed=seed, max_steps=steps)
    pools = nb["train_pools"]
    stages = [pools]
    if two_stages:
        stages = [{"emoji": pools["emoji"]}, {name: rows for name, rows in pools.items() if name != "emoji"}]
        nb["TRAINING"].update(max_steps=steps // 2)
    for stage in stages:
        nb["train"](name, rows_of(nb, stage, nb["TRAINING"]["max_steps"] * size, replay, seed))
        nb["initial_adapter"] = nb["adapter_state"](nb["model"])
    nb["initial_adapter"] = start
    wanted = [prompt for prompt in nb["PROMPTS"] if prompt["kind"] in ("emoji", "json_only", "language")
              and "side_by_side" not in prompt]  # fmt: skip
    verdicts = nb["verdicts_of"](nb["answer"](name, wanted))
    counts = {
        metric: [int(verdicts[metric].sum()), len(verdicts[metric])]
        for metric in ("language_retention", "emoji_replies", "json_valid", "usability")
    }
    return counts | {"seed": seed, "seconds": round(time.perf_counter() - started)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--record", type=Path, default=RECORD)
    arguments = parser.parse_args()
    started = time.perf_counter()
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "CPU")  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        nb = prepare()
    bodies = "".join(
        source for source in code_cells(NOTEBOOK) if "def train(" in source or "TRAINING = dict(" in source
    )
    device = f"{cpu}, {os.cpu_count()} cores" if nb["DEVICE"] == "CPU" else nb["DEVICE"]
    same = {"device": f"{device}, {nb['HALF']}", "steps": nb["steps"], "batch": nb["a_step"],
            "learning_rate": nb["LEARNING_RATE"], "code": hashlib.sha256(bodies.encode()).hexdigest()[:12]}  # fmt: skip
    record = json.loads(arguments.record.read_text()) if arguments.record.exists() else {}
    if any(record.get(key) != value for key, value in same.items()):
        record = {**same, "settings": {}}
    slowest = 0
    for seed in SEEDS:
        for name in SETTINGS:
            made = record["settings"].setdefault(name, [])
            if any(one["seed"] == seed for one in made):
                continue
            if time.perf_counter() - started + 1.1 * slowest > 60 * arguments.minutes:
                print("No minutes left; call again to go on.")
                return
            with contextlib.redirect_stdout(io.StringIO()):
                made.append(run(nb, name, seed))
            slowest = max(slowest, made[-1]["seconds"])
            record["date"] = datetime.now(UTC).date().isoformat()
            arguments.record.parent.mkdir(parents=True, exist_ok=True)
            arguments.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(name, made[-1], flush=True)


if __name__ == "__main__":
    main()
