"""The tables of benchmarks/README.md and benchmarks/TABLES.md, written from the records in benchmarks/results/.

    python benchmarks/tables.py            # writes both pages anew; only what stands between the marks changes

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; its name is that of a function below.
"""

import json
import re

import epoch_cost
import learning_rates
import train_step

PAGES = [train_step.PROJECT / "benchmarks" / name for name in ("README.md", "TABLES.md")]
RESULTS = train_step.PROJECT / "benchmarks" / "results"
PEERS = (
    "plain TRL + PEFT, NF4",
    "plain TRL + PEFT, NF4, eager attention",
    "Cookbook, bf16",
)  # what the recipes of one call are compared with
PRICE, ROWS = 3.00, 1000
SHOWN = {  # what a reader asks for; every recipe that was measured stands in TABLES.md
    "Cookbook, bf16": ("H100",),
    "MXFP4, one row, embedding on the CPU": ("H100",),
    "MXFP4, 4 rows, embedding on the CPU": ("H100",),
    "notebook, MXFP4, 4 rows": ("H100",),
    "notebook, MXFP4, 16 rows": ("H100",),
    "notebook, MXFP4, no checkpointing": ("H100",),
    "MXFP4, all experts, no checkpointing": ("H100",),
    "plain TRL + PEFT, NF4": ("H200",),
    "plain TRL + PEFT, NF4, eager attention": ("H100",),
    "notebook, NF4, packed": ("H200",),
    "notebook, NF4, packed, no checkpointing": ("H200",),
    "notebook, bf16, packed, no checkpointing": ("H200",),
    "notebook, NF4, 16 short rows": ("H100",),
    "notebook, NF4": ("H200",),
    "notebook, bf16": ("H200",),
    "notebook, full fine-tuning": ("H200",),
}


def reports():
    """Return the records of train_step.py."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("train_step_*.json"))]


def card(report):
    """Return a card's short name."""
    return re.sub(r"NVIDIA (\w+).*", r"\1", report["device"])


def table(columns, rows):
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = "| --- |" + " --: |" * (len(columns) - 1)
    return "\n".join([f"| {' | '.join(columns)} |", rule, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def compared():
    """The recipes in SHOWN: speed, against the peer's in the same call, memory."""
    rows = []
    for report in reports():
        sound = [entry for entry in report["results"] if "tokens_per_s" in entry.get("real", {})]
        peer = next((entry for entry in sound if entry["recipe"] in PEERS and len(sound) > 1), None)
        for entry in [entry for entry in sound if card(report) in SHOWN.get(entry["recipe"], ())]:
            figures = []
            for part, figure in (("even", "median_tokens_per_s"), ("real", "supervised_tokens_per_s")):
                times = f"{entry[part][figure] / peer[part][figure]:.1f}" if peer else "–"
                figures.append([f"{entry[part][figure]:,.0f}", times])
            rows.append([f"{entry['model']}, {entry['recipe']}", card(report), entry["even"]["batch"][0], *figures[0],
                         f"{entry['even']['peak_bytes'] / 2**30:.1f}", f"{train_step.matrix_share(entry, report):.0%}",
                         *figures[1]])  # fmt: skip
    return table(["model, recipe", "card", "full rows at a time", "tokens/s", "times the peer's", "peak GiB",
                  "share of the matrix rate", "supervised tokens/s on short rows", "times the peer's"], rows)  # fmt: skip


def training():
    """All figures of every recipe, one table a record."""
    found = []
    for report in [report for report in reports() if report["results"]]:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        said = f"{report['device']}, bf16 matrix product {report['tflops']:,.0f} TFLOP/s, {versions}."
        found.append(f"{said}\n\n{train_step.table_of(report)}")
    return "\n\n".join(found)


def memory():
    """The steps that were taken for the peak memory alone."""
    grids = [grid.splitlines() for grid in map(train_step.memory_table_of, reports()) if grid]
    return "\n".join([*grids[0][:2], *(line for grid in grids for line in grid[2:])])


def decoding():
    """Seconds and memory of greedy decoding, beyond the weights."""
    rows = [[f"{one['model']}, {one['loaded']}", f"{one['rows']} × ({one['prompt']:,} + {one['new']})",
             f"{one['seconds']:.0f}", f"{(one['peak_bytes'] - one['held_bytes']) / 2**30:.1f}"]
            for report in reports() for one in report.get("decoding", [])]  # fmt: skip
    return table(["model, loaded in", "rows × (prompt + new tokens)", "seconds", "GiB beyond the weights"], rows)


def profile():
    """Where one optimiser step of a recipe goes, by kind of kernel."""
    found = []
    for entry in [entry for report in reports() for entry in [*report["results"], *report.get("profiles", [])]]:
        if "kernels" not in (taken := entry.get("profile", {})):
            continue
        even = entry["even"]
        step = 1000 * even["seconds"] / even["steps"]
        kinds = train_step.kinds_of(taken["kernels"])
        kinds["kernels shorter than these"] = (
            taken["busy_ms"] - sum(ms for ms, _ in kinds.values()),
            taken["launches"] - sum(count for _, count in kinds.values()))  # fmt: skip
        kinds |= {"waiting for the next kernel": (step - taken["busy_ms"], ""), "one step": (step, taken["launches"])}
        rows = [[kind, f"{ms:.0f}", f"{ms / step:.0%}", count] for kind, (ms, count) in kinds.items()]
        found.append(table([f"{entry['model']}, {entry['recipe']}, {taken['batch']} rows",
                            "ms", "share", "launches"], rows))  # fmt: skip
    return "\n\n".join(found)


def epoch():
    """Minutes and money for so many rows as long as the samples."""
    means = {name: sum(whole for whole, _ in lengths) / len(lengths)
             for name in train_step.SHAPES for lengths in [train_step.lengths_of(name)]}  # fmt: skip
    return table(["model, recipe", "minutes", "money"],
                 [[f"{model}, {recipe}, {card(report)}", f"{minutes:.1f}", f"{money:.2f}"] for report in reports()
                  for model, recipe, minutes, money in epoch_cost.costs(report, means, ROWS, PRICE)])  # fmt: skip


def real_epoch():
    """Minutes and money for one epoch of the data sets that the full profile loads."""
    return epoch_cost.real_table(epoch_cost.real_costs(reports(), PRICE))


def rates():
    """Notebook 04's rehearsal: the median validation loss by learning rate."""
    summary = learning_rates.summarise(json.loads((RESULTS / "learning_rates.json").read_text())["runs"])
    tried = sorted({rate for entries in summary.values() for rate in entries})
    rows = []
    for name, entries in summary.items():
        seeds = sorted({entry["runs"] for entry in entries.values()})
        losses = [entries.get(rate, {}).get("loss") for rate in tried]
        rows.append([name, " to ".join(map(str, seeds)), *(f"{loss['median']:.3f}" if loss else "" for loss in losses)])
    return table(["setting", "seeds", *(f"{rate:.1e}" for rate in tried)], rows)


def full_profile():
    """Each notebook in the full profile with a model of the true shape, a few steps, from the first cell to the last."""
    rows = []
    for card in json.loads((RESULTS / "full_profile_h100.json").read_text()).values():
        phases, checks = card["phases"], card["parity"].values()
        trained = max(phase["peak_bytes"] for name, phase in phases.items() if name.startswith("train"))
        planned = f"{card['plan']['predicted_bytes'] / 2**30:.1f}" if "predicted_bytes" in card.get("plan", {}) else "–"
        whole = phases["whole notebook"]
        rows.append([f"{card['notebook'][:2]}, {card['model']['id']}", f"{whole['seconds'] / 60:.1f}", planned,
                     f"{trained / 2**30:.1f}", f"{whole['peak_bytes'] / 2**30:.1f}",
                     f"{sum(checks)} of {len(checks)}"])  # fmt: skip
    return table(["notebook, model", "minutes", "GiB planned for a step", "peak GiB in training", "peak GiB in all",
                  "checks passed"], rows)  # fmt: skip


def serving():
    """What clients of `make serve` get on a CPU, by evalscope's load test."""
    record = json.loads((RESULTS / "serving_cpu.json").read_text())
    rows = [[one["clients"], one["requests"], one["failed"], f"{one['requests_per_s']:.2f}",
             f"{one['first_token_ms'] / 1000:.1f}", f"{one['tokens_per_s']:.1f}"] for one in record["load"]]  # fmt: skip
    return table(["clients at a time", "requests", "failed", "requests/s", "seconds to the first token",
                  "tokens/s, all together"], rows)  # fmt: skip


TABLES = {make.__name__: make for make in (
    compared, training, memory, decoding, profile, epoch, real_epoch, rates, full_profile, serving)}  # fmt: skip


def fill(text):
    """Return a page with every table written anew."""
    mark = r"(<!-- table: (\w+) -->\n).*?(?=<!-- end -->)"
    return re.sub(mark, lambda found: f"{found[1]}{TABLES[found[2]]()}\n", text, flags=re.S)


def main():
    for page in PAGES:
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    main()
