"""Replies a second in greedy decoding: base, adapter and merged copy, 40 prompts at a time as the notebooks ask them.

    python benchmarks/generation.py [--models Qwen3-4B gpt-oss-20b] [--tokens 150] [--tiny]

The models have the true shape and random weights (tools/random_models.py) and end no reply early, so every reply has
`tokens` tokens: the longest an evaluation can take. A merged copy is an ordinary model in 16 bits; for gpt-oss none is
made, since no notebook merges packed weights. An adapter is measured as training leaves it, not merged. Each way of
loading is a process of its own. "static" asks for transformers' static cache. The record goes to
outputs/benchmarks/generation.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from random_models import make_model  # noqa: E402

PROMPTS = 40
WAYS = {  # model: {way: (load in 4 bits, with an adapter)}
    "Qwen3-4B": {"base, NF4": (True, False), "adapter on NF4": (True, True), "merged copy, 16 bits": (False, False)},
    "gpt-oss-20b": {"base, MXFP4": (False, False), "adapter on MXFP4": (False, True)},
}


def measure(folder, in_4bit, adapter, tokens):
    """Return {cache: {"replies_per_s", "tokens_per_s", "seconds"}} and the peak of one way of loading."""
    from unsloth import FastLanguageModel  # isort: skip
    import torch

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=folder, max_seq_length=1024, dtype=None, load_in_4bit=in_4bit, use_exact_model_name=True
    )
    if adapter:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=modules)
    FastLanguageModel.for_inference(model)
    lines = (PROJECT / "data" / "held_out_skills.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    asked = [tokenizer.apply_chat_template([{"role": "user", "content": line[:200]}], tokenize=False,
                                           add_generation_prompt=True) for line in lines]  # fmt: skip
    tokenizer.padding_side = "left"
    batch = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    found = {}
    for cache in ("dynamic", "static"):
        options = {"cache_implementation": "static"} if cache == "static" else {}
        try:
            for count in (8, tokens):  # the first run warms up
                started = time.perf_counter()
                with torch.inference_mode():
                    model.generate(**batch, do_sample=False, max_new_tokens=count, min_new_tokens=count,
                                   pad_token_id=tokenizer.pad_token_id, **options)  # fmt: skip
                seconds = time.perf_counter() - started
            found[cache] = {"seconds": round(seconds, 2), "replies_per_s": round(len(lines) / seconds, 2),
                            "tokens_per_s": round(len(lines) * tokens / seconds, 1)}  # fmt: skip
        except Exception as error:  # a cache that this model's code does not take is a result too
            found[cache] = {"error": str(error).split("\n")[0][:200]}
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return found | {"prompts": len(lines), "width": batch["input_ids"].shape[1], "tokens": tokens, "peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--tiny", action="store_true", help="narrow models: does it run?")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("FIGURES", json.dumps(measure(*arguments.child)))
        return 0
    import torch
    import transformers

    arguments.output.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    record = {"date": time.strftime("%Y-%m-%d"), "device": device, "tiny": arguments.tiny, "results": [],
              "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}  # fmt: skip
    for name in arguments.models:
        folder = arguments.output / "generation_model"
        make_model(name, folder, arguments.tiny)
        for way, (in_4bit, adapter) in WAYS[name].items():
            command = [
                sys.executable,
                __file__,
                "--child",
                json.dumps([str(folder), in_4bit, adapter, arguments.tokens]),
            ]
            said = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ).stdout.splitlines()
            found = next((line.removeprefix("FIGURES ") for line in said if line.startswith("FIGURES ")), None)
            figures = json.loads(found) if found else {"error": (said or ["it said nothing"])[-1][:300]}
            record["results"].append({"model": name, "way": way, **figures})
            print(name, way, figures, flush=True)
            (arguments.output / "generation.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
