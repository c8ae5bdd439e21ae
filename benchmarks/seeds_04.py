"""Notebook 04's rehearsal with other seeds: what a reader would get who changed SEED and ran the page again.

    python benchmarks/seeds_04.py [1 2]

Each seed is one run of the notebook itself, with the three methods on the main form. Their validation losses and exact
matches go to benchmarks/results/seeds_04.json, which the notebook reads; a seed that is there already is replaced.
"""

import json
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import write_with_parameters  # noqa: E402
from run_notebooks import EXECUTED, execute, run_card  # noqa: E402

NOTEBOOK = PROJECT / "NoteBooks" / "04_gemma_gsm8k.ipynb"
RECORD = PROJECT / "benchmarks" / "results" / "seeds_04.json"
RUNS = ["lora main", "qlora main", "full main"]


def entries(card):
    """Return one entry a method of a run card: seed, validation loss, exact match in both readings, device, date."""
    after = card["metrics"]["after"]
    return [{"method": method, "seed": card["seed"], "format": card["formats"][method],
             "validation_loss": card["losses"][f"{method} main"][1],
             **{name: after[f"{method}.{name}"]["value"] for name in ("exact_match", "exact_match_strict", "final_line")},
             "problems": after[f"{method}.exact_match"]["n"], "device": card["device"], "started": card["started"],
             "torch": card["versions"]["torch"], "unsloth": card["versions"]["unsloth"]}
            for method in ("lora", "qlora", "full")]  # fmt: skip


def main():
    for seed in map(int, sys.argv[1:] or ("1", "2")):
        copy = EXECUTED / f"04_seed_{seed}.ipynb"
        write_with_parameters(NOTEBOOK, copy, {"SEED": seed, "RUNS": RUNS, "MERGE": False, "TRACKER": "none"})
        try:
            status, seconds, _, executed = execute(copy)
        finally:
            copy.unlink()
        if status:
            raise SystemExit(f"seeds: the run with seed {seed} failed; {executed.relative_to(PROJECT)} shows where.")
        known = json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []
        kept = [entry for entry in known if entry["seed"] != seed] + entries(run_card(executed))
        RECORD.write_text(json.dumps({"runs": sorted(kept, key=lambda entry: entry["seed"])}, indent=1) + "\n")
        print(f"seed {seed}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
