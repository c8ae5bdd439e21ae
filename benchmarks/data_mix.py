"""Measure the data steps of notebook 02 on synthetic rows: seconds per row and resident memory.

    python benchmarks/data_mix.py [--sizes 10000 100000 1000000]

Each size runs in a process of its own, so that its peak resident memory is its own. The functions are those of the
notebook, lifted out of it: normalise and pool, deduplicate, write the pools, split, mix, export. Three raw schemas,
two per cent exact copies. Budgets: time per row flat within 20 %, 10⁶ rows within 120 s and 2 GB resident on 2 cores.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import lift  # noqa: E402

NOTEBOOK = PROJECT / "NoteBooks" / "02_qwen3_emoji_math.ipynb"
HEAVY = {"unsloth", "torch", "transformers", "trl", "peft", "matplotlib", "lingua", "IPython", "safetensors", "bitsandbytes", "math_verify", "scipy"}  # fmt: skip
NAMES = """FEATURES MESSAGE HIDDEN ARABIC CHINESE MEASURE NUMBER MAX_REPEATS LONGEST_ANSWER RowError make_row digest
    question_key clean_text field cut_at_sentence value_of numbers_in parse_number as_number fill_placeholders evaluate
    replace_folder normalize_emoji normalize_cmath normalize_mawps build_pool deduplicate split_pools normalize_weights mix export_mixture""".split()
STEPS = ["normalise", "deduplicate", "write pools", "split", "mix", "export"]
BUDGET = {"seconds": 120, "bytes": 2e9, "spread": 0.20}


def synthetic_rows(source, count, seed):
    """Yield raw rows of one source; two in a hundred repeat an earlier row."""
    generator = random.Random(f"{source}{seed}")
    words = "river basil ladder orchestra winter puzzle lantern ferry garden copper violet market".split()

    def row(i):
        noun, other = generator.choice(words), generator.choice(words)
        if source == "emoji":
            return {
                "question": f"How do I look after a {noun} near the {other}, case {i}?",
                "answer_zh": f"第{i}个问题！🌿 先看看{noun}，再慢慢来。🎉",
                "answer_en": f"Start with the {noun}! 🌿 Then see to the {other}, step {i}, and take your time. 🎉",
            }
        if source == "cmath":
            return {
                "grade": i % 6 + 1,
                "question": f"第{i}组有{i % 90 + 10}个{noun}，又来了{i % 7 + 2}个，一共有多少个？",
                "golden": str(i % 90 + 10 + i % 7 + 2),
                "reasoning_step": 1,
                "num_digits": 2,
            }
        return {
            "Question": f"Group {i} had N_00 {noun}s and found N_01 more by the {other}. How many are there now?",
            "Numbers": f"{i % 90 + 10}.0 {i % 7 + 2}.0",
            "Equation": "N_00 + N_01",
            "Answer": float(i % 90 + 10 + i % 7 + 2),
        }

    last = row(0)
    for i in range(count):
        if i % 50 != 49:
            last = row(i)
        yield last


def peak_bytes():
    """Return this process's peak resident memory in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(size):
    """Run all steps on `size` rows; return {"rows", "seconds": {step: s}, "peak_bytes", "mixture"}."""
    nb, seconds = lift(NOTEBOOK, *NAMES, without=HEAVY), {}
    nb |= {"ANSWER_LANGUAGE": "en", "tokenizer": SimpleNamespace(added_tokens_decoder={})}
    base = peak_bytes()
    folder = Path(tempfile.mkdtemp(prefix="data_mix-"))
    names = {"emoji": nb["normalize_emoji"], "cmath": nb["normalize_cmath"], "mawps": nb["normalize_mawps"]}

    def timed(step, function):
        started = time.perf_counter()
        result = function()
        seconds[step] = time.perf_counter() - started
        return result

    try:
        pools = timed(
            "normalise",
            lambda: {
                name: nb["build_pool"](synthetic_rows(name, size // 3, 0), normalize)[0]
                for name, normalize in names.items()
            },
        )
        seen = set()
        pools = timed("deduplicate", lambda: {name: nb["deduplicate"](rows, seen) for name, rows in pools.items()})
        timed("write pools", lambda: [rows.save_to_disk(folder / "pools" / name) for name, rows in pools.items()])
        train, _ = timed("split", lambda: nb["split_pools"](pools, 0.02, 100, 42))
        weights = {"cmath": 0.4, "emoji": 0.3, "mawps": 0.3}
        mixture = timed("mix", lambda: nb["mix"](train, weights, "resample", 42))
        timed("export", lambda: nb["export_mixture"](mixture, folder / "mixture"))
        return {
            "rows": size,
            "seconds": seconds,
            "peak_bytes": peak_bytes(),
            "imports_bytes": base,
            "mixture": len(mixture),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        import datasets

        datasets.disable_progress_bars()
        print("RESULT", json.dumps(measure(arguments.one)))
        return 0
    results = []
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        finished = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise SystemExit(f"data_mix: {size} rows failed: {finished.stderr.strip()[-2000:]}")
        results.append(json.loads(lines[-1].removeprefix("RESULT ")))
    print("| rows | " + " | ".join(f"{step}, s" for step in STEPS) + " | together, s | µs a row | peak GB |")
    print("| --- " * (len(STEPS) + 4) + "|")
    per_row = []
    for result in results:
        total = sum(result["seconds"].values())
        per_row.append(1e6 * total / result["rows"])
        cells = " | ".join(f"{result['seconds'][step]:.2f}" for step in STEPS)
        print(f"| {result['rows']:,} | {cells} | {total:.1f} | {per_row[-1]:.1f} | {result['peak_bytes'] / 1e9:.2f} |")
    spread = max(per_row) / min(per_row) - 1
    largest = results[-1]
    over = []
    if spread > BUDGET["spread"]:
        over.append(f"time per row varies by {spread:.0%}")
    if sum(largest["seconds"].values()) > BUDGET["seconds"]:
        over.append("seconds of the largest")
    if largest["peak_bytes"] > BUDGET["bytes"]:
        over.append("memory of the largest")
    print(f"time per row varies by {spread:.0%}; over budget: {', '.join(over) or 'none'}")
    folder = PROJECT / "outputs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_mix.json").write_text(json.dumps({"results": results, "spread": spread, "over": over}, indent=1))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
