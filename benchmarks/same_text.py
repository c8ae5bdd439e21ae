"""Does an adapter that was trained on one device give the same text on another? Greedy, in 32 bits, prompt by prompt.

    python benchmarks/same_text.py [--devices cuda cpu] [--adapters FOLDER …] [--prompts 8] [--tokens 48]

Without --adapters, notebook 01's rehearsal trains one on each device first, for a few steps. Every adapter is then
loaded with transformers and PEFT on every device, by a process of its own, on the base that its configuration names;
the token ids of the replies are compared. The record goes to outputs/benchmarks/same_text.json. Exit status 1: a
reply differed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import write_with_parameters  # noqa: E402

STEPS = {
    "MAX_STEPS": 12,
    "EVAL_STEPS": 12,
    "SAVE_STEPS": 12,
    "MAX_NEW_TOKENS": 8,
    "TRACKER": "none",
}


def environment(device):
    """Return the environment of a process that shall see this device alone."""
    return {**os.environ, "PROFILE": "rehearsal", **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}


def train(device):
    """Run notebook 01's rehearsal for a few steps on a device; return the folder of its adapter."""
    import run_notebooks

    original = next((PROJECT / "NoteBooks").glob("01_*.ipynb"))
    copy = PROJECT / "outputs" / "benchmarks" / f"01_on_{device}.ipynb"
    write_with_parameters(original, copy, {**STEPS, "SEED": 1 if device == "cpu" else 2})  # two folders of outputs
    finished = subprocess.run(
        [sys.executable, "tools/run_notebooks.py", str(copy)], cwd=PROJECT, env=environment(device)
    )
    if finished.returncode:
        raise SystemExit(f"same_text: notebook 01 did not train on {device}; what it said stands above.")
    card = run_notebooks.run_card(run_notebooks.EXECUTED / f"{copy.stem}_executed.ipynb")
    cards = PROJECT.glob("outputs/01_*/run_card.json")
    return next(path.parent / "adapter" for path in cards if json.loads(path.read_text()) == card)


def replies(device, adapter, prompts, tokens):
    """Return the token ids of the greedy replies to the first held-out prompts, [[id, …], …]."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = Path(adapter)
    base = PROJECT / json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    model = PeftModel.from_pretrained(model, adapter).eval()
    lines = (PROJECT / "data" / "held_out_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for row in map(json.loads, lines[:prompts]):
        turns = [{"role": "user", "content": row["user"]}]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id)
        found.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def compare(of_devices):
    """Return {"replies", "same", "first_difference"} of {device: replies}: how many are the same on all devices."""
    by_prompt = list(zip(*of_devices.values(), strict=True))
    firsts = [
        next((k for k, ids in enumerate(zip(*several, strict=False)) if len(set(ids)) > 1), min(map(len, several)))
        for several in by_prompt
        if any(one != several[0] for one in several)
    ]
    return {"replies": len(by_prompt), "same": len(by_prompt) - len(firsts), "first_difference": firsts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", default=["cuda", "cpu"])
    parser.add_argument(
        "--adapters", nargs="+", type=Path, help="folders of adapters; without, one is trained a device"
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks")
    parser.add_argument("--child", nargs=2, metavar=("DEVICE", "ADAPTER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("REPLIES", json.dumps(replies(*arguments.child, arguments.prompts, arguments.tokens)))
        return 0
    import torch

    if "cuda" in arguments.devices and not torch.cuda.is_available():
        raise SystemExit("same_text: PyTorch finds no GPU here. --devices cpu cpu compares two runs on the processor.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.adapters:
        adapters = {str(folder): folder for folder in arguments.adapters}
    else:
        adapters = {f"trained on {device}": train(device) for device in dict.fromkeys(arguments.devices)}
    record = {"devices": arguments.devices, "tokens": arguments.tokens, "adapters": {}}
    for name, adapter in adapters.items():
        of_devices = {}
        for number, device in enumerate(arguments.devices):
            command = [sys.executable, __file__, "--child", device, str(adapter)]
            command += ["--prompts", str(arguments.prompts), "--tokens", str(arguments.tokens)]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(device))
            if child.returncode:
                raise SystemExit(f"same_text: {adapter} gave no text on {device}; what it said stands above.")
            said = next(line for line in child.stdout.splitlines() if line.startswith("REPLIES "))
            of_devices[f"{number}: {device}"] = json.loads(said.removeprefix("REPLIES "))
        record["adapters"][name] = compare(of_devices)
    (arguments.output / "same_text.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"| adapter | same replies on {' and '.join(arguments.devices)} | first other token |\n| --- | --: | --- |")
    for name, found in record["adapters"].items():
        print(f"| {name} | {found['same']} of {found['replies']} | {found['first_difference'] or '–'} |")
    return 1 if any(found["first_difference"] for found in record["adapters"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
