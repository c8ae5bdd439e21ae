"""What one epoch costs, in minutes and in money, from a record of train_step.py.

    python benchmarks/epoch_cost.py benchmarks/results/train_step_h200_*.json [--rows 1000] [--price 3.00]

Minutes for so many rows as long as the course's own samples, at the speed measured on rows of these lengths
(padding, checkpointing and packing included; loading, evaluation and saving not). The price is for one hour of the
card, in whatever currency you pay; the default is an assumption, not a quotation. With the number of rows of a real
data set, and rows of other lengths, scale in proportion to the tokens.
"""

import argparse
import json
from pathlib import Path

from train_step import lengths_of


def costs(report, mean_tokens, rows, price):
    """Return [(model, recipe, minutes, money)] of a report's recipes, given {model: mean tokens of a row}."""
    lines = []
    for entry in report["results"]:
        if "nonpadding_tokens_per_s" in entry.get("real", {}):
            seconds = rows * mean_tokens[entry["model"]] / entry["real"]["nonpadding_tokens_per_s"]
            lines.append((entry["model"], entry["recipe"], seconds / 60, seconds / 3600 * price))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--price", type=float, default=3.00, help="of the card, an hour")
    arguments = parser.parse_args()
    means, lines = {}, []
    for path in arguments.records:
        report = json.loads(path.read_text())
        for name in {entry["model"] for entry in report["results"]} - set(means):
            lengths = lengths_of(name)
            means[name] = sum(whole for whole, _ in lengths) / len(lengths)
        lines += costs(report, means, arguments.rows, arguments.price)
    print(f"{arguments.rows:,} rows, at {arguments.price:.2f} an hour; mean tokens of a row: "
          + ", ".join(f"{name} {mean:.0f}" for name, mean in sorted(means.items())))  # fmt: skip
    print("\n| model, recipe | minutes | money |\n| --- | --: | --: |")
    for model, recipe, minutes, money in lines:
        print(f"| {model}, {recipe} | {minutes:.1f} | {money:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
