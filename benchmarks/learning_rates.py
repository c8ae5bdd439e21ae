"""Notebook 04's experiment at many learning rates: LoRA, QLoRA and full fine-tuning, each at its best.

    python benchmarks/learning_rates.py [--workers 6] [--minutes 8] [--output FOLDER]
    python benchmarks/learning_rates.py --go-on FOLDER/learning_rates.json     # only the runs that it lacks
    python benchmarks/learning_rates.py --draw FOLDER/learning_rates.json

Rows, mask, trainer, held-out problems and scores are notebook 04's own cells, run in its rehearsal profile. What
changes from run to run is the method, the rank, the layers that get adapters, the learning rate, the batch and the
seed, which draws the order of the rows, the validation problems and the adapter's start. (The committed results were
made with the notebook of 2026-11-25: there every seed had the same validation problems.) Five rates a method, a factor of √10 apart, three
seeds each. Meant for a GPU; five processes beside two notebooks on one H100 took 47 to 156 s a run, 55 in the
median. Runs are taken in order of importance; those that the minutes do not suffice for are left out, and the first
line of the report says how many were made.
Writes learning_rates.json and a figure of accuracy and validation loss against the learning rate.
"""

import argparse
import ast
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import code_cells  # noqa: E402

NOTEBOOK = PROJECT / "NoteBooks" / "04_gemma_gsm8k.ipynb"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
RATES = {"lora": [1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2], "full": [1e-5, 3.2e-5, 1e-4, 3.2e-4, 1e-3]}
SEEDS = (1, 2, 3)
SETTINGS = {  # name: method, rank, layers with adapters, 32-bit weights, rows in a batch
    "full, 32-bit weights": ("full", 0, LINEAR, True, 2),
    "LoRA, r = 16, all layers": ("lora", 16, LINEAR, False, 2),
    "QLoRA, r = 16, all layers": ("qlora", 16, LINEAR, False, 2),
    "full, bf16 weights": ("full", 0, LINEAR, False, 2),
    "LoRA, r = 64, all layers": ("lora", 64, LINEAR, False, 2),
    "LoRA, r = 1, all layers": ("lora", 1, LINEAR, False, 2),
    "LoRA, r = 64, attention": ("lora", 64, ATTENTION, False, 2),
    "LoRA, r = 24, all layers": ("lora", 24, LINEAR, False, 2),  # as many weights as r = 64 on attention alone
    "LoRA, r = 1, attention": ("lora", 1, ATTENTION, False, 2),
    "LoRA, r = 8, all layers": ("lora", 8, LINEAR, False, 2),
    "LoRA, r = 8, attention": ("lora", 8, ATTENTION, False, 2),
    "full, 32-bit weights, batch 16": ("full", 0, LINEAR, True, 16),
    "LoRA, r = 16, all layers, batch 16": ("lora", 16, LINEAR, False, 16),
}


def jobs():
    """Return all runs as (setting, learning rate, seed), the first seed of every setting first."""
    return [(name, rate, seed) for seed in SEEDS for name, (method, *_) in SETTINGS.items()
            for rate in RATES["full" if method == "full" else "lora"]]  # fmt: skip


def prepare():
    """Return notebook 04's namespace, ready to train: its cells up to the first question, then definitions.

    `set_up` holds the two cells that follow from a run's settings: the predictions, and the order of the rows.
    """
    os.environ["PROFILE"], os.environ["MPLBACKEND"] = "rehearsal", "Agg"
    nb, defining = {"__name__": "notebook_04", "set_up": []}, False
    import IPython.display

    IPython.display.display = lambda *_, **__: None
    for source in code_cells(NOTEBOOK):
        tree = ast.parse(source)
        defined = {getattr(node, "name", "") for node in tree.body}
        assigned = {getattr(target, "id", "") for node in tree.body for target in getattr(node, "targets", [])}
        defining = defining or "answer" in defined  # from here on a model replies, or trains
        if {"predicted", "order"} & assigned:
            nb["set_up"].append(compile(tree, NOTEBOOK.name, "exec"))
            continue
        if defining:
            tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        exec(compile(tree, NOTEBOOK.name, "exec"), nb)
        if "EFFECTIVE_BATCH" in assigned:  # the parameters; each process needs a folder of its own
            nb.update(NOTEBOOK=f"learning_rates-{os.getpid()}", TRACKER="none")
    nb["free_models"]()
    return nb


def run(nb, name, rate, seed):
    """Train and evaluate one setting; return its figures."""
    method, rank, layers, wide, batch = SETTINGS[name]
    started = time.perf_counter()
    steps = STEPS * 2 // batch
    nb.update(LORA_RANK=rank, TARGET_MODULES=layers, SEED=seed, BATCH_SIZE=batch, EFFECTIVE_BATCH=batch, MAX_STEPS=steps,
              SAVE_STEPS=steps, EVAL_STEPS=steps, LEARNING_RATE=dict.fromkeys(("lora", "qlora", "full"), rate), BF16_RATE=1.0,
              FULL_FORMAT="32-bit" if wide else "16-bit", GRADIENT_CHECKPOINTING=False, tracker="none",
              paged=lambda *_: False, runs=[(method, "main")])  # fmt: skip
    for cell in nb["set_up"]:
        exec(cell, nb)
    model = nb["attach"](nb["load_model"](nb["MODEL_SOURCE"], method)[0], method)
    formats = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad})
    record = {"setting": name, "rate": rate, "seed": seed, "trained": nb["predicted"][method], "formats": formats,
              "steps": steps}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="learning_rates-") as checkpoints:
        trainer = nb["build_trainer"](model, method, "main", Path(checkpoints), None)
        try:
            trainer.train()
        except nb["NotebookError"] as diverged:  # the notebook's own watch over the loss
            record["diverged"] = str(diverged)
    if "diverged" not in record:
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        metrics = nb["metrics_of"](nb["answer"](model, "answer"))
        record |= {"loss_before": losses[0], "loss": losses[-1], "exact_match": metrics["exact_match"]["value"],
                   "final_line": metrics["final_line"]["value"]}  # fmt: skip
    del trainer, model
    nb["free_models"]()
    return {**record, "seconds": round(time.perf_counter() - started, 1)}


STEPS = 60  # of two rows, as in the rehearsal; other batches see the same rows


def work(folder, deadline):
    """Take runs from the folder until none is left or the time is up; append their figures to a file of one's own."""
    with contextlib.redirect_stdout(io.StringIO()):
        nb = prepare()
    results = folder / f"results-{os.getpid()}.jsonl"
    for number, job in enumerate(jobs()):
        if time.time() > deadline:
            break
        try:
            (folder / f"taken-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            record = run(nb, *job)
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def summarise(records):
    """Return {setting: {rate: {"runs", "loss", "exact_match", …: median, low, high}}} over the seeds."""
    table = {}
    for record in records:
        table.setdefault(record["setting"], {}).setdefault(record["rate"], []).append(record)
    summary = {}
    for name in (name for name in SETTINGS if name in table):
        summary[name] = {}
        for rate, runs in sorted(table[name].items()):
            sound = [one for one in runs if "diverged" not in one and math.isfinite(one["loss"])]
            entry = summary[name][rate] = {"runs": len(runs), "diverged": len(runs) - len(sound)}
            for figure in ("loss", "exact_match", "final_line") if sound else ():
                values = [one[figure] for one in sound]
                entry[figure] = {"median": statistics.median(values), "mean": statistics.mean(values),
                                 "low": min(values), "high": max(values)}  # fmt: skip
    return summary


def best(entries, figure="loss"):
    """Return (rate, its entry) with the lowest median loss, or the highest mean exact match."""
    sound = {rate: entry for rate, entry in entries.items() if figure in entry}
    if figure == "loss":
        return min(sound.items(), key=lambda item: item[1]["loss"]["median"])
    return max(sound.items(), key=lambda item: (item[1][figure]["mean"], -item[1]["loss"]["median"]))


def table_of(summary, records):
    """Return the Markdown table: every setting at the rate with its lowest validation loss."""
    trained = {record["setting"]: record["trained"] for record in records}
    lines = ["| setting | weights trained | best rate by loss | validation loss (range of seeds) | exact match there "
             "(range) | best rate by exact match | exact match |", "| --- | --: | --: | --- | --- | --: | --: |"]  # fmt: skip
    for name, entries in summary.items():
        rate, entry = best(entries)
        other, at_other = best(entries, "exact_match")
        loss, match = entry["loss"], entry["exact_match"]
        lines.append(f"| {name} | {trained[name]:,} | {rate:.1e} | {loss['median']:.3f} ({loss['low']:.3f} to "
                     f"{loss['high']:.3f}) | {match['mean']:.0%} ({match['low']:.0%} to {match['high']:.0%}) | "
                     f"{other:.1e} | {at_other['exact_match']['mean']:.0%} |")  # fmt: skip
    return "\n".join(lines)


def draw(summary, path, device):
    """Draw accuracy and validation loss against the learning rate, a line a setting, the seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MultipleLocator

    groups = {"methods": [name for name in summary if "full" in name or "r = 16" in name],
              "ranks and layers": [name for name in summary if name.startswith("LoRA") and "batch" not in name]}  # fmt: skip
    figure, panes = plt.subplots(2, 2, figsize=(13, 8), sharex=True)
    for column, (title, names) in enumerate(groups.items()):
        for name in names:
            entries = {rate: entry for rate, entry in summary[name].items() if "loss" in entry}
            for row, (key, middle) in enumerate((("loss", "median"), ("exact_match", "mean"))):
                rates = list(entries)
                style = "--" if "attention" in name or "batch" in name else "-"
                (line,) = panes[row, column].plot(rates, [entries[rate][key][middle] for rate in rates], style,
                                                  marker="o", markersize=3, label=name)  # fmt: skip
                panes[row, column].fill_between(rates, [entries[rate][key]["low"] for rate in rates],
                                                [entries[rate][key]["high"] for rate in rates],
                                                color=line.get_color(), alpha=0.12)  # fmt: skip
        panes[0, column].set(title=title, xscale="log", yscale="log", ylabel="validation loss")
        panes[1, column].set(xlabel="learning rate", ylabel="exact match")
        panes[1, column].yaxis.set_major_locator(MultipleLocator(0.05))
        panes[1, column].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panes[0, column].legend(fontsize=8)
    seeds = max(entry["runs"] for entries in summary.values() for entry in entries.values())
    said = "one seed" if seeds == 1 else f"bands: {seeds} seeds"
    figure.suptitle(f"The rehearsal of notebook 04 at many learning rates ({device}, 135M stand-in, {said})")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=6, help="processes that share the device")
    parser.add_argument("--minutes", type=float, default=8, help="no run begins after so many minutes")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks")
    parser.add_argument("--draw", type=Path, help="draw and tabulate a file of results, without a run")
    parser.add_argument("--go-on", type=Path, help="keep the runs of this file, and make those that it lacks")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        work(Path(arguments.child[0]), float(arguments.child[1]))
        return 0
    if arguments.draw:
        report = json.loads(arguments.draw.read_text())
        records, folder = report["runs"], arguments.draw.parent
    else:
        folder, deadline = Path(tempfile.mkdtemp(prefix="learning_rates-")), time.time() + 60 * arguments.minutes
        earlier = json.loads(arguments.go_on.read_text())["runs"] if arguments.go_on else []
        known = {(record["setting"], record["rate"], record["seed"]) for record in earlier}
        for number, job in enumerate(jobs()):
            if job in known:
                (folder / f"taken-{number}").touch()
        command = [sys.executable, __file__, "--workers", str(arguments.workers), "--child", str(folder), str(deadline)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // arguments.workers))}
        workers = [subprocess.Popen(command, env=environment) for _ in range(arguments.workers)]
        failed = [worker.wait() for worker in workers]
        records = earlier + [json.loads(line) for path in sorted(folder.glob("results-*")) for line in path.open()]
        if not records:
            raise SystemExit(f"learning_rates: no run was finished (exit statuses {failed}).")
        import importlib.metadata

        import torch

        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
        versions = {
            name: importlib.metadata.version(name) for name in ("unsloth", "torch", "transformers", "peft", "trl")
        }
        for record in records[len(earlier) :]:
            record["device"] = device
        devices = sorted({record.get("device", device) for record in records})
        report = {"device": " and ".join(devices), "versions": versions, "steps": STEPS, "planned": len(jobs()), "made": len(records),
                  "workers_failed": sum(map(bool, failed)), "runs": records}  # fmt: skip
        folder = arguments.output
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "learning_rates.json").write_text(json.dumps(report, indent=0) + "\n")
    summary = summarise(records)
    draw(summary, folder / "learning_rates.png", report["device"])
    print(f"{report['made']} of {report['planned']} runs, {report['device']}\n\n{table_of(summary, records)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
