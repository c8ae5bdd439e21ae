"""What one epoch costs, in minutes and in money, from a record of train_step.py.

    python benchmarks/epoch_cost.py benchmarks/results/train_step_*.json [--rows 1000] [--price 3.00]

First for so many rows as long as the course's own samples, at the speed measured on rows of these lengths (padding,
checkpointing and packing included; loading, evaluation and saving not). Then for the data sets that the full profile
loads: their tokens are estimated from what their public pages say of their size (`REAL`), and the two times are at
the speed of rows that fill the context, and at the speed of rows as short as our samples. The price is for one hour
of the card, in whatever currency you pay; the default is an assumption, not a quotation.
"""

import argparse
import json
from pathlib import Path

from train_step import PROJECT, lengths_of, turns_of

REAL = {  # data set: the model it is for, rows, bytes, what the bytes are of, the course's samples in the same columns
    "Multilingual-Thinking": ("gpt-oss-20b", 1000, 8_900_623, "Arrow", "multilingual_thinking.jsonl"),
    "CMATH": ("Qwen3-4B", 1698, None, None, "cmath.jsonl"),
    "MAWPS": ("Qwen3-4B", 1772, None, None, "mawps.jsonl"),
    "DPO-zh-en-emoji, the part used": ("Qwen3-4B", None, 5_570_000, "JSONL", "emoji_chat.jsonl"),
    "GSM8K, main": ("gemma-2-9b", 7473, 3_963_202, "Arrow", "gsm8k.jsonl"),
}
RECIPES = {  # what the notebook does with it
    "Qwen3-4B": ["notebook, NF4, packed"],
    "gpt-oss-20b": ["notebook, MXFP4, 16 rows", "notebook, MXFP4, no checkpointing", "notebook, 4 bits"],
    "gemma-2-9b": ["notebook, NF4", "notebook, bf16", "notebook, full fine-tuning"],
}


def costs(report, mean_tokens, rows, price):
    """Return [(model, recipe, minutes, money)] of a report's recipes, given {model: mean tokens of a row}."""
    lines = []
    for entry in report["results"]:
        if "nonpadding_tokens_per_s" in entry.get("real", {}):
            seconds = rows * mean_tokens[entry["model"]] / entry["real"]["nonpadding_tokens_per_s"]
            lines.append((entry["model"], entry["recipe"], seconds / 60, seconds / 3600 * price))
    return lines


def in_chinese(row):
    """Return the turns of an emoji row with the answer that the full profile learns."""
    return turns_of({"question": row["question"], "answer": row["answer_zh"]})


def real_tokens(name):
    """Return the tokens of one epoch of a data set in REAL, an estimate.

    Where the bytes are known, the words grow with them and the template's own tokens do not: a row has the tokens of
    a row of our samples, less those of the template around single words, times the ratio of the bytes, plus those of
    the template. Where only the rows are known, they are taken to be as long as our samples.
    """
    import pyarrow

    model, rows, size, kind, file = REAL[name]
    text = (PROJECT / "data" / file).read_bytes()
    ours = [json.loads(line) for line in text.splitlines()]
    turns = in_chinese if "emoji" in name else turns_of
    mean = sum(tokens for tokens, _ in lengths_of(model, [file], turns)) / len(ours)
    if size is None:
        return rows * mean
    if kind == "JSONL":  # the same text between the braces: tokens grow with the file
        return mean * len(ours) * size / len(text)

    def empty(row):
        said = turns(row)
        return [{key: value if key == "role" else "." for key, value in turn.items()} for turn in said]

    template = sum(tokens for tokens, _ in lengths_of(model, [file], empty)) / len(ours)
    bytes_of_ours = pyarrow.Table.from_pylist(ours).nbytes / len(ours)
    return rows * (template + (mean - template) * size / rows / bytes_of_ours)


def real_costs(reports, price):
    """Return [(data set, model, recipe, tokens, (minutes, money) at full length, the same at the samples' lengths)]."""
    entries = {(entry["model"], entry["recipe"]): entry for report in reports for entry in report["results"]}
    lines = []
    for name, (model, *_) in REAL.items():
        tokens = real_tokens(name)
        for recipe in RECIPES[model]:
            speeds = [entries[model, recipe][rows]["nonpadding_tokens_per_s"] for rows in ("even", "real")]
            ends = [(tokens / speed / 60, tokens / speed / 3600 * price) for speed in speeds]
            lines.append((name, model, recipe, tokens, *ends))
    return lines


def real_table(lines):
    """Return the Markdown table of real_costs."""
    table = ["| data set | model, recipe | tokens | minutes | money |", "| --- | --- | --: | --: | --: |"]
    for name, model, recipe, tokens, (fast, little), (slow, much) in lines:
        table.append(f"| {name} | {model}, {recipe} | {tokens / 1e6:.2f} million | {fast:.1f} to {slow:.1f} | "
                     f"{little:.2f} to {much:.2f} |")  # fmt: skip
    return "\n".join(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--price", type=float, default=3.00, help="of the card, an hour")
    arguments = parser.parse_args()
    reports = [json.loads(path.read_text()) for path in arguments.records]
    means, lines = {}, []
    for report in reports:
        for name in {entry["model"] for entry in report["results"]} - set(means):
            lengths = lengths_of(name)
            means[name] = sum(whole for whole, _ in lengths) / len(lengths)
        lines += costs(report, means, arguments.rows, arguments.price)
    print(f"{arguments.rows:,} rows, at {arguments.price:.2f} an hour; mean tokens of a row: "
          + ", ".join(f"{name} {mean:.0f}" for name, mean in sorted(means.items())))  # fmt: skip
    print("\n| model, recipe | minutes | money |\n| --- | --: | --: |")
    for model, recipe, minutes, money in lines:
        print(f"| {model}, {recipe} | {minutes:.1f} | {money:.2f} |")
    measured = {(entry["model"], entry["recipe"]) for report in reports for entry in report["results"]}
    if measured >= {(model, recipe) for model, names in RECIPES.items() for recipe in names}:
        print(f"\nOne epoch of the real data sets:\n\n{real_table(real_costs(reports, arguments.price))}")
    else:
        print("\nThe real data sets are left out: the records lack a recipe of one of the notebooks.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
