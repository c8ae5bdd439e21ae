"""Training steps side by side: this course's recipe, the Cookbook's, and plain TRL with PEFT, at full shapes.

    python benchmarks/train_step.py [--models Qwen3-4B gpt-oss-20b gemma-2-9b] [--recipes NAME …] [--tiny]

Weights are random: speed and memory do not depend on their values (the routing of gpt-oss's experts is then near
uniform). Each recipe runs in a process of its own, through TRL's trainer, on two sets of rows: `even`, every row as
long as the limit, for tokens/s and the share of the card's matrix rate; and `real`, rows with the lengths and the
supervised shares of the notebook's own samples, for supervised non-padding tokens/s. After the warm-up the peak
memory is reset; tokens/s is the median over steps (`even`) or the whole of them (`real`). Useful operations are
4·N a token, the forward pass and the gradients that reach the adapters, N without embeddings and, for gpt-oss,
without the experts that a token does not visit; recompute is not counted. The rate of a bf16 matrix product is
measured first, in the same run; energy is the mean of the driver's power samples times the time.
`--tiny` shrinks the shapes, to try the benchmark without a GPU; the recipes without Unsloth need one all the same.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LENGTH = 2048
SHAPES = {  # configuration class, values, rehearsal tokenizer, rows whose lengths `real` takes
    "Qwen3-4B": ("Qwen3Config", {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 40960}, "qwen3", ("emoji_chat.jsonl", "cmath.jsonl", "mawps.jsonl")),
    "gpt-oss-20b": ("GptOssConfig", {
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "num_local_experts": 32,
        "num_experts_per_tok": 4}, "gpt-oss", ("multilingual_thinking.jsonl",)),
    "gemma-2-9b": ("Gemma2Config", {
        "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000, "query_pre_attn_scalar": 256},
        "gemma", ("gsm8k.jsonl",)),
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50000}  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = LINEAR[:4]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
RECIPES = {  # (model, name): library, bits of the frozen weights, batch, accumulation, checkpointing, order of rows
    ("Qwen3-4B", "plain TRL + PEFT, NF4"): ("plain", 4, 4, 8, True, "random"),
    ("Qwen3-4B", "plain TRL + PEFT, bf16"): ("plain", 16, 4, 8, True, "random"),
    ("Qwen3-4B", "notebook, NF4, packed"): ("unsloth", 4, 4, 8, True, "packed"),
    ("Qwen3-4B", "notebook, bf16, packed, no checkpointing"): ("unsloth", 16, 8, 4, False, "packed"),
    ("gpt-oss-20b", "Cookbook, bf16"): ("cookbook", 16, 4, 4, True, "random"),
    ("gpt-oss-20b", "notebook, 4 bits"): ("unsloth", 4, 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, no checkpointing"): ("unsloth", 4, 4, 4, False, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, 16 GB card"): ("unsloth", 4, 1, 16, True, "like lengths"),
    ("gemma-2-9b", "plain TRL + PEFT, NF4"): ("plain", 4, 4, 4, True, "random"),
    ("gemma-2-9b", "notebook, NF4"): ("unsloth", 4, 4, 4, True, "like lengths"),
    ("gemma-2-9b", "notebook, bf16"): ("unsloth", 16, 4, 4, True, "like lengths"),
    ("gemma-2-9b", "notebook, full fine-tuning"): ("unsloth-full", 16, 1, 16, True, "like lengths"),
}
WARM_UP, MEASURED = 2, 6  # optimiser steps


def make_model(name, folder, tiny):
    """Write a model of the shape with random bf16 weights, with the rehearsal's tokenizer."""
    import torch
    import transformers

    kind, values, family, _ = SHAPES[name]
    config = getattr(transformers, kind)(**{**values, **(TINY if tiny else {})}, dtype="bfloat16")
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="4GB")
    for path in (PROJECT / "outputs" / "rehearsal" / family).glob("*token*"):
        shutil.copy(path, folder)
    with contextlib.suppress(OSError):
        shutil.copy(PROJECT / "outputs" / "rehearsal" / family / "chat_template.jinja", folder)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    whole = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    embeddings = sum({id(m.weight): m.weight.numel() for m in model.modules()
                      if isinstance(m, torch.nn.Embedding)}.values())  # fmt: skip
    head = model.get_output_embeddings().weight.numel()
    untied = 0 if config.tie_word_embeddings else head
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    return {"parameters": whole, "useful": whole - embeddings - untied - experts + int(experts * share)}


def lengths_of(name):
    """Return [(tokens, supervised tokens)] of the notebook's samples under the family's chat template."""
    from transformers import AutoTokenizer

    family, files = SHAPES[name][2], SHAPES[name][3]
    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "outputs" / "rehearsal" / family)
    lengths = []
    for file in files:
        for line in (PROJECT / "data" / file).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "messages" in row:
                turns = [{key: value for key, value in turn.items() if value} for turn in row["messages"]]
            else:
                question = row.get("question") or row.get("Question") or row.get("input")
                answer = row.get("answer") or row.get("answer_en") or row.get("golden") or row.get("Answer")
                turns = [{"role": "user", "content": str(question)}, {"role": "assistant", "content": str(answer)}]
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
            asked = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
            count = len(tokenizer(whole, add_special_tokens=False).input_ids)
            lengths.append((count, count - len(tokenizer(asked, add_special_tokens=False).input_ids)))
    return lengths


def make_rows(lengths, count, vocabulary, limit, seed=0):
    """Return rows of random tokens with lengths drawn from a list of (tokens, supervised tokens)."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        whole, learnt = generator.choice(lengths)
        whole = min(whole, limit)
        ids = [generator.randrange(100, vocabulary) for _ in range(whole)]
        rows.append(
            {"input_ids": ids, "labels": [-100] * (whole - min(learnt, whole)) + ids[whole - min(learnt, whole) :]}
        )
    return rows


def load(recipe, folder, limit):
    """Return (model with its adapter, tokenizer) as a recipe loads them."""
    library, bits, _, _, checkpointing, _ = recipe
    import torch

    sparse = "gpt-oss" in str(folder)
    if library.startswith("unsloth"):
        from unsloth import FastLanguageModel

        full = library == "unsloth-full"
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=limit,
            load_in_4bit=bits == 4,
            full_finetuning=full,
            dtype=torch.bfloat16,
            use_gradient_checkpointing="unsloth" if checkpointing else False,
        )
        if full:
            return model, tokenizer
        cpu = {"target_parameters": EXPERTS} if sparse and not torch.cuda.is_available() and bits == 16 else {}
        return FastLanguageModel.get_peft_model(
            model,
            r=8 if sparse else 16,
            lora_alpha=16 if sparse else 32,
            lora_dropout=0.0,
            bias="none",
            target_modules=LINEAR,
            random_state=0,
            use_gradient_checkpointing="unsloth" if checkpointing else False,
            **cpu,
        ), tokenizer
    if not torch.cuda.is_available():
        raise SystemExit("Error: without Unsloth, TRL's loss runs in Triton and needs a GPU")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options = {}
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        use_cache=False,
        device_map="auto" if torch.cuda.is_available() else None,
        attn_implementation="eager" if library == "cookbook" else "sdpa",
        **options,
    )
    if bits == 4:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    layers = model.config.num_hidden_layers
    few = [f"{layer}.{name}" for layer in (layers // 3 - 1, 2 * layers // 3 - 1, layers - 1) for name in EXPERTS]
    if library == "cookbook":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", target_parameters=few)
    else:
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(folder)


def order(rows, batch, how):
    """Return rows in the order of a recipe; batches of like length are the notebooks' own way."""
    if how != "like lengths":
        return rows
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = [ordered[k : k + batch] for k in range(0, len(ordered), batch)]
    random.Random(0).shuffle(batches)
    return [row for batch in batches for row in batch]


class Power(threading.Thread):
    """Sample the driver's power reading, in watts, until stopped."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples, self.running = [], True

    def run(self):
        query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        while self.running:
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                found = subprocess.run(query, capture_output=True, text=True, timeout=5)
                self.samples.append(float(found.stdout.splitlines()[0]))
            time.sleep(0.2)


def measure(recipe, folder, lengths, limit, steps):
    """Return the figures of one recipe on `even` and `real` rows."""
    library, _, batch, accumulation, checkpointing, how = recipe
    started = time.perf_counter()
    model, tokenizer = load(recipe, folder, limit)
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else lambda: None
    result = {"load_seconds": round(time.perf_counter() - started, 1),
              "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
              "weights_bytes": torch.cuda.memory_allocated() if cuda else 0}  # fmt: skip
    vocabulary = min(model.config.vocab_size, 49000)

    class Watch(TrainerCallback):
        """Note the time at the end of every step, and reset the peak after the warm-up."""

        def __init__(self):
            self.times, self.power = [], Power()

        def on_step_end(self, args, state, control, **kwargs):
            wait()
            self.times.append(time.perf_counter())
            if len(self.times) == WARM_UP:
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                self.power.start()

    for rows_name, drawn in (("even", [(limit, limit)]), ("real", lengths)):
        per_step = 1 if rows_name == "even" else accumulation
        packed = how == "packed" and rows_name == "real"
        count = batch * per_step * (WARM_UP + steps)
        rows = order(make_rows(drawn, count, vocabulary, limit), batch, how)
        if packed:  # the same rows, many in one sequence: as many optimiser steps, of as many rows
            mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
            sequences = max(1, round(batch * per_step * mean / limit))
            per_step = -(-sequences // batch)
            batch_now = -(-sequences // per_step)
        else:
            batch_now = batch
        arguments = SFTConfig(
            output_dir=str(Path(folder).parent / "trainer"),
            per_device_train_batch_size=batch_now,
            gradient_accumulation_steps=per_step,
            max_steps=-1 if packed else WARM_UP + steps,
            num_train_epochs=1,
            learning_rate=1e-5,
            max_length=limit,
            packing=packed,
            train_sampling_strategy="sequential",
            bf16=cuda,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if library in ("plain", "cookbook") else None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            optim="paged_adamw_8bit" if library == "unsloth-full" else "adamw_8bit" if cuda else "adamw_torch",
            dataset_kwargs=None if packed else {"skip_prepare_dataset": True},
        )
        watch = Watch()
        if library.startswith("unsloth"):
            from unsloth import FastLanguageModel

            FastLanguageModel.for_training(model)
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            args=arguments,
            callbacks=[watch],
            train_dataset=Dataset.from_list(rows),
        )
        trainer.remove_callback(PrinterCallback)
        seen = []
        compute = trainer.compute_loss

        def noting(model, inputs, *arguments, compute=compute, seen=seen, watch=watch, **options):
            ids, labels = inputs["input_ids"], inputs["labels"]
            real = inputs["attention_mask"].sum() if "attention_mask" in inputs else torch.tensor(ids.numel())
            seen.append((len(watch.times), ids.numel(), int(real), int((labels != -100).sum())))
            return compute(model, inputs, *arguments, **options)

        trainer.compute_loss = noting
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.train()
        watch.power.running = False
        times = watch.times[WARM_UP - 1 :]
        if len(times) < 2:
            raise SystemExit(f"only {len(watch.times)} steps were made, too few to measure")
        seconds = [b - a for a, b in zip(times, times[1:], strict=False)]
        within = [entry for entry in seen if WARM_UP <= entry[0] < WARM_UP + len(seconds)]
        processed, nonpad, learnt = (sum(entry[k] for entry in within) for k in (1, 2, 3))
        figures = {
            "batch": [batch_now, per_step], "steps": len(seconds), "seconds": round(sum(seconds), 3),
            "tokens_per_s": processed / len(seconds) / statistics.median(seconds) if rows_name == "even"
            else processed / sum(seconds),
            "nonpadding_tokens_per_s": nonpad / sum(seconds), "supervised_tokens_per_s": learnt / sum(seconds),
            "padding": 1 - nonpad / processed,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
            "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
            "watts": statistics.mean(watch.power.samples) if watch.power.samples else None,
        }  # fmt: skip
        if figures["watts"]:
            figures["joules_per_1000_tokens"] = 1000 * figures["watts"] * sum(seconds) / nonpad
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        result[rows_name] = {**figures, "last_loss": losses[-1]}
        del trainer, compute, noting
    return result


def matrix_rate():
    """Return the TFLOP/s of a bf16 product of two 8192 × 8192 matrices, the median of 20."""
    import torch

    if not torch.cuda.is_available():
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(25):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return 2 * 8192**3 / statistics.median(seconds[5:]) / 1e12


def in_child(*arguments):
    """Return what a step prints as its last line of JSON, run in a process of its own; or the error's last line."""
    finished = subprocess.run([sys.executable, __file__, "--child", json.dumps(arguments)],
                              capture_output=True, text=True)  # fmt: skip
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return json.loads(lines[-1].removeprefix("RESULT "))
    said = [line for line in finished.stderr.strip().splitlines() if line.strip()]
    return {"error": next((line for line in reversed(said) if "Error" in line), said[-1] if said else "no output")[:400],
            "trace": "\n".join(said[-25:])}  # fmt: skip


def child(step, *arguments):
    """Carry out one step, in the process made for it."""
    if step == "make":
        return make_model(arguments[0], Path(arguments[1]), arguments[2])
    if step == "rate":
        return {"tflops": matrix_rate()}
    if step == "lengths":
        return {"lengths": lengths_of(arguments[0])}
    return measure(*arguments)


def table_of(report):
    """Return the Markdown tables of a report."""
    lines = [f"{report['device']}, bf16 matrix product {report['tflops'] or 0:,.0f} TFLOP/s, "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items()), "",
             f"| model, recipe | batch × accumulation | tokens/s at {report['length']:,} | share of the matrix rate | "
             "peak GiB | supervised tokens/s, samples' lengths | padding | J per 1,000 tokens |",
             "| --- | --- | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for entry in report["results"]:
        if "error" in entry:
            lines.append(f"| {entry['model']}, {entry['recipe']} | – | failed: {entry['error'][:120]} | | | | | |")
            continue
        even, real = entry["even"], entry["real"]
        share = 4 * entry["useful"] * even["tokens_per_s"] / 1e12 / report["tflops"] if report["tflops"] else 0
        lines.append(
            f"| {entry['model']}, {entry['recipe']} | {real['batch'][0]} × {real['batch'][1]} | "
            f"{even['tokens_per_s']:,.0f} | {share:.0%} | {even['peak_bytes'] / 2**30:.1f} | "
            f"{real['supervised_tokens_per_s']:,.0f} | {real['padding']:.1%} | "
            f"{even.get('joules_per_1000_tokens') or 0:,.0f} |")  # fmt: skip
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--recipes", nargs="+", help="only recipes whose name contains one of these")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--steps", type=int, default=MEASURED)
    parser.add_argument("--folder", type=Path, help="where the random weights go; removed afterwards")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, *values = arguments.child
        print("RESULT", json.dumps(child(step, *values)))
        return 0
    length, work = (128 if arguments.tiny else arguments.length), Path(tempfile.mkdtemp(dir=arguments.folder))
    import torch

    versions = {name: importlib.metadata.version(name)
                for name in ("unsloth", "torch", "transformers", "trl", "peft", "bitsandbytes")}  # fmt: skip
    report = {"device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU", "versions": versions,
              "length": length, "tiny": arguments.tiny, **in_child("rate"), "results": []}  # fmt: skip
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / f"train_step{'-tiny' * arguments.tiny}.json"
    try:
        for name in arguments.models:
            folder = work / name
            shape, lengths = in_child("make", name, str(folder), arguments.tiny), in_child("lengths", name)
            if "error" in shape | lengths:
                raise SystemExit(f"train_step: {name} could not be made: {(shape | lengths)['trace']}")
            for (model, recipe), setting in RECIPES.items():
                if model != name or (arguments.recipes and not any(part in recipe for part in arguments.recipes)):
                    continue
                started = time.perf_counter()
                figures = in_child("measure", setting, str(folder), lengths["lengths"], length, arguments.steps)
                report["results"].append({"model": name, "recipe": recipe, **shape, **figures})
                print(f"{name}, {recipe}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
                if "error" in figures:
                    print(figures["trace"], file=sys.stderr, flush=True)
                target.write_text(json.dumps(report, indent=1) + "\n")  # what was measured stays, whatever comes
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(table_of(report))
    return 1 if any("error" in entry for entry in report["results"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
