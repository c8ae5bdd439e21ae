"""Training steps side by side: this course's recipe, the Cookbook's, and plain TRL with PEFT, at full shapes.

    python benchmarks/train_step.py [--models Qwen3-4B gpt-oss-20b gemma-2-9b] [--recipes NAME …] [--tiny]

Weights are random: speed and memory do not depend on their values (the routing of gpt-oss's experts is then near
uniform). Recipes that load the same model in the same way share a process; each goes through TRL's trainer, on two
sets of rows: `even`, every row as long as the limit, for tokens/s and the share of the card's matrix rate; and
`real`, rows with the lengths and the supervised shares of the notebook's own samples, for supervised non-padding
tokens/s. After the warm-up the peak memory is reset; tokens/s is from the median step (`even`) or from all of them
(`real`). A recipe that does not fit is recorded as such, and the next one is tried. After its recipes each process
takes a few steps at other batches and lengths, for the peak memory alone (`memory` in the record).

Useful operations are 4·N a token: the forward pass, and the gradients that reach the adapters. N counts the weights
that a token is multiplied with: the output head, but not the table of embeddings, and of gpt-oss's experts only the
four that a token visits. Recompute is not counted. The rate of a bf16 matrix product is measured first, in the same
run; energy is the mean of the driver's power samples times the time.
`--tiny` shrinks the shapes, to try the benchmark without a GPU; the recipes without Unsloth need one all the same.
"""

import argparse
import contextlib
import gc
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
import traceback
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from random_models import SHAPES, make_model, write_split_nf4  # noqa: E402

LENGTH = 2048
SAMPLES = {  # rows whose lengths `real` takes
    "Qwen3-4B": ("emoji_chat.jsonl", "cmath.jsonl", "mawps.jsonl"),
    "gpt-oss-20b": ("multilingual_thinking.jsonl",),
    "gemma-2-9b": ("gsm8k.jsonl",),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LOADS = {  # name: library, bits of the frozen weights, all layers' experts or those of three layers as the Cookbook
    "plain NF4": ("plain", 4, "all"),
    "plain bf16": ("plain", 16, "all"),
    "Cookbook": ("cookbook", 16, "three"),
    "4 bits": ("unsloth", 4, "all"),
    "4 bits, three layers": ("unsloth", 4, "three"),
    "bf16": ("unsloth", 16, "all"),
    "full": ("unsloth-full", 16, "all"),
}
RECIPES = {  # (model, recipe): how it is loaded, batch, accumulation, checkpointing, order of rows
    ("Qwen3-4B", "plain TRL + PEFT, NF4"): ("plain NF4", 4, 8, True, "random"),
    ("Qwen3-4B", "plain TRL + PEFT, bf16"): ("plain bf16", 4, 8, True, "random"),
    ("Qwen3-4B", "notebook, NF4, packed"): ("4 bits", 4, 8, True, "packed"),
    ("Qwen3-4B", "notebook, NF4, packed, no checkpointing"): ("4 bits", 8, 4, False, "packed"),
    ("Qwen3-4B", "notebook, bf16, packed"): ("bf16", 4, 8, True, "packed"),
    ("Qwen3-4B", "notebook, bf16, packed, no checkpointing"): ("bf16", 8, 4, False, "packed"),
    ("gpt-oss-20b", "Cookbook, bf16"): ("Cookbook", 4, 4, True, "random"),
    ("gpt-oss-20b", "notebook, 4 bits"): ("4 bits", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, no checkpointing"): ("4 bits", 4, 4, False, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, 16 GB card"): ("4 bits", 1, 16, True, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, 16 rows at once"): ("4 bits", 16, 1, True, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, padded to eights"): ("4 bits", 4, 4, True, "like lengths, padded to eights"),
    ("gpt-oss-20b", "notebook, 4 bits, the Cookbook's layers"): ("4 bits, three layers", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, the Cookbook's layers, no checkpointing"):
        ("4 bits, three layers", 4, 4, False, "like lengths"),
    ("gemma-2-9b", "plain TRL + PEFT, NF4"): ("plain NF4", 4, 4, True, "random"),
    ("gemma-2-9b", "notebook, NF4"): ("4 bits", 4, 4, True, "like lengths"),
    ("gemma-2-9b", "notebook, bf16"): ("bf16", 4, 4, True, "like lengths"),
    ("gemma-2-9b", "notebook, bf16, no checkpointing"): ("bf16", 4, 4, False, "like lengths"),
    ("gemma-2-9b", "notebook, full fine-tuning"): ("full", 1, 16, True, "like lengths"),
}  # fmt: skip
MEMORY = [(1, 1024, True), (1, 2048, True), (8, 2048, True), (1, 1024, False), (1, 2048, False), (2, 2048, False)]
WARM_UP, MEASURED = 2, 6  # optimiser steps


def make(name, folder, tiny):
    """Write a model of the shape with random bf16 weights; return its counts of weights, and sizes of its layers."""
    import torch

    config, model = make_model(name, folder, tiny)
    if hasattr(config, "num_local_experts") and torch.cuda.is_available():
        write_split_nf4(model, folder.with_name(f"{name}-unsloth-bnb-4bit"), folder)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    whole = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    looked_up = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "vocab_size", "num_local_experts", "num_experts_per_tok")  # fmt: skip
    return {"parameters": whole, "useful": whole - looked_up - experts + int(experts * share), "experts": experts,
            "sizes": {size: getattr(config, size) for size in sizes if hasattr(config, size)}}  # fmt: skip


def turns_of(row):
    """Return the chat turns of a sample row: its own, without empty fields, or its question and its answer."""
    if "messages" in row:
        return [{key: value for key, value in turn.items() if value} for turn in row["messages"]]
    question = row.get("question") or row.get("Question") or row.get("input")
    answer = row.get("answer") or row.get("answer_en") or row.get("golden") or row.get("Answer")
    return [{"role": "user", "content": str(question)}, {"role": "assistant", "content": str(answer)}]


def lengths_of(name, files=None, turns=turns_of):
    """Return [(tokens, supervised tokens)] of the notebook's samples, or of other files, under the chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "outputs" / "rehearsal" / SHAPES[name][2])
    lengths = []
    for file in files or SAMPLES[name]:
        for line in (PROJECT / "data" / file).read_text(encoding="utf-8").splitlines():
            said = turns(json.loads(line))
            whole = tokenizer.apply_chat_template(said, tokenize=False)
            asked = tokenizer.apply_chat_template(said[:-1], tokenize=False, add_generation_prompt=True)
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


def load(name, folder, limit):
    """Return (model with its adapter, tokenizer) as a recipe loads them."""
    library, bits, layers_with_experts = LOADS[name]
    import torch

    sparse = "gpt-oss" in str(folder)
    split = Path(f"{folder}-unsloth-bnb-4bit")  # as upstream has it, where this run could make it
    folder = split if bits == 4 and split.is_dir() else folder
    if library.startswith("unsloth"):
        from unsloth import FastLanguageModel

        full = library == "unsloth-full"
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=limit,
            load_in_4bit=bits == 4,
            full_finetuning=full,
            dtype=torch.bfloat16,
            use_gradient_checkpointing="unsloth",
        )
        if full:
            return model, tokenizer
        targets = {"target_modules": LINEAR, "target_parameters": None}
        if sparse:  # by full names, as notebooks 01 and 03 give them
            targets = named_targets(model, "all" if layers_with_experts == "all" else three(model.config))
        return FastLanguageModel.get_peft_model(
            model,
            r=8 if sparse else 16,
            lora_alpha=16 if sparse else 32,
            lora_dropout=0.0,
            bias="none",
            random_state=0,
            use_gradient_checkpointing="unsloth",
            **targets,
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
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    few = [f"{layer}.{name}" for layer in three(model.config) for name in EXPERTS]
    if library == "cookbook":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", target_parameters=few)
    else:
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(folder)


def three(config):
    """Return the three layers whose experts the Cookbook trains: 7, 15 and 23 of gpt-oss's 24."""
    layers = config.num_hidden_layers
    return sorted({max(0, layers // 3 - 1), max(0, 2 * layers // 3 - 1), layers - 1})


def named_targets(model, layers):
    """Return target_modules and target_parameters by notebook 01's own functions: attention, and experts of layers."""
    from notebook_code import lift

    notebook = lift(PROJECT / "NoteBooks" / "01_gpt_oss_multilingual_thinking.ipynb", "adapter_targets", "as_pattern",
                    without=("unsloth", "lingua", "trackio"))  # fmt: skip
    notebook["MODEL"] = "the model"
    targets = notebook["adapter_targets"](model, LINEAR[:4], layers)
    return {"target_modules": notebook["as_pattern"](targets["target_modules"]),
            "target_parameters": targets["target_parameters"]}  # fmt: skip


def order(rows, batch, how):
    """Return rows in the order of a recipe; batches of like length are the notebooks' own way."""
    if not how.startswith("like lengths"):
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
        card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        query = ["nvidia-smi", "-i", card, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        while self.running:
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                found = subprocess.run(query, capture_output=True, text=True, timeout=5)
                self.samples.append(float(found.stdout.splitlines()[0]))
            time.sleep(0.2)


def watching(warm_up):
    """Return a trainer callback that notes the time at the end of every step, and resets the peak after the warm-up."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """`times` holds the end of every optimiser step; `power` samples from the end of the warm-up on."""

        def __init__(self):
            self.times, self.power = [], Power()

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            if len(self.times) == warm_up:
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                self.power.start()

    return Watch()


def train(model, tokenizer, library, rows, batch, accumulation, checkpointing, how, limit, steps, warm_up, folder):
    """Train on rows, in their order; return the figures of the steps after the warm-up."""
    packed = how == "packed"
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(Path(folder).parent / "trainer"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=-1 if packed else warm_up + steps,
        num_train_epochs=1,
        learning_rate=1e-5,
        max_length=limit,
        packing=packed,
        train_sampling_strategy="sequential",
        pad_to_multiple_of=8 if how.endswith("padded to eights") else None,
        router_aux_loss_coef=0.0,
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
    watch = watching(warm_up)
    if library.startswith("unsloth"):
        from unsloth import FastLanguageModel

        model._unsloth_gradient_checkpointing = "unsloth" if checkpointing else False
        FastLanguageModel.for_training(model, use_gradient_checkpointing="unsloth" if checkpointing else False)
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

    def noting(model, inputs, *arguments, **options):
        ids, labels = inputs["input_ids"], inputs["labels"]
        real = inputs["attention_mask"].sum() if "attention_mask" in inputs else torch.tensor(ids.numel())
        seen.append((len(watch.times), ids.numel(), int(real), int((labels != -100).sum())))
        return compute(model, inputs, *arguments, **options)

    trainer.compute_loss = noting
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer.train()
    watch.power.running = False
    times = watch.times[warm_up - 1 :]
    if len(times) < 2:
        raise RuntimeError(f"only {len(watch.times)} steps were made, too few to measure")
    seconds = [b - a for a, b in zip(times, times[1:], strict=False)]
    within = [entry for entry in seen if warm_up <= entry[0] < warm_up + len(seconds)]
    processed, nonpad, learnt = (sum(entry[k] for entry in within) for k in (1, 2, 3))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    figures = {
        "batch": [batch, accumulation], "steps": len(seconds), "seconds": round(sum(seconds), 3),
        "median_tokens_per_s": processed / len(seconds) / statistics.median(seconds),
        "tokens_per_s": processed / sum(seconds),
        "nonpadding_tokens_per_s": nonpad / sum(seconds), "supervised_tokens_per_s": learnt / sum(seconds),
        "padding": 1 - nonpad / processed,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
        "watts": statistics.mean(watch.power.samples) if watch.power.samples else None, "last_loss": losses[-1],
    }  # fmt: skip
    if figures["watts"]:
        figures["joules_per_1000_tokens"] = 1000 * figures["watts"] * sum(seconds) / nonpad
    return figures


def guarded(function, *arguments):
    """Return what a function returns, or {"error": …} where it does not fit or fails; the memory is free again."""
    import torch

    try:
        figures = function(*arguments)
    except Exception as error:
        traceback.print_exc()
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        figures = {"error": f"{type(error).__name__}: {said}"[:300]}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return figures


def measure(load_name, recipes, folder, lengths, limit, steps, memory):
    """Return {"load": …, recipe: {"even", "real"}, "memory": […]} of the recipes that share one way of loading.

    recipes: {name: (batch, accumulation, checkpointing, order)}; memory: [(batch, length, checkpointing)].
    """
    started = time.perf_counter()
    model, tokenizer = load(load_name, folder, limit)
    import torch

    library = LOADS[load_name][0]
    cuda = torch.cuda.is_available()
    result = {"load": {"load_seconds": round(time.perf_counter() - started, 1),
                       "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
                       "weights_bytes": torch.cuda.memory_allocated() if cuda else 0}}  # fmt: skip
    vocabulary = min(model.config.vocab_size, 49000)
    for name, (batch, accumulation, checkpointing, how) in recipes.items():
        result[name] = {}
        for rows_name, drawn in (("even", [(limit, limit)]), ("real", lengths)):
            per_step = 1 if rows_name == "even" else accumulation
            shape, batch_now = "even" if rows_name == "even" else how, batch
            rows = order(make_rows(drawn, batch * per_step * (WARM_UP + steps), vocabulary, limit), batch, how)
            if shape == "packed":  # the same rows, many in one sequence: as many optimiser steps, of as many rows
                mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
                sequences = max(1, round(batch * per_step * mean / limit))
                per_step = -(-sequences // batch)
                batch_now = -(-sequences // per_step)
            result[name][rows_name] = guarded(train, model, tokenizer, library, rows, batch_now, per_step,
                                              checkpointing, shape, limit, steps, WARM_UP, folder)  # fmt: skip
            if "error" in result[name][rows_name]:
                break
        print("PART", json.dumps(result), flush=True)
    result["memory"] = []
    for batch, length, checkpointing in memory if library.startswith("unsloth") else ():
        rows = make_rows([(length, length)], 3 * batch, vocabulary, length)
        figures = guarded(train, model, tokenizer, library, rows, batch, 1, checkpointing, "even", length, 2, 1, folder)
        result["memory"].append({"batch": batch, "length": length, "checkpointing": checkpointing, **figures})
        print("PART", json.dumps(result), flush=True)
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


def in_child(*arguments, timeout=None):
    """Return what a step prints as JSON, run in a process of its own; where it fails, its last part and the error."""
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, stdout=out, stderr=err, timeout=timeout)
        out.seek(0), err.seek(0)
        lines, said = out.read().splitlines(), [line for line in err.read().splitlines() if line.strip()]
    for mark in ("RESULT ", "PART "):
        found = [line for line in lines if line.startswith(mark)]
        if found and mark == "RESULT ":
            return {**json.loads(found[-1].removeprefix(mark)), "said": "\n".join(said[-60:])}
        if found:
            return {**json.loads(found[-1].removeprefix(mark)), "trace": "\n".join(said[-25:])}
    return {"error": next((line for line in reversed(said) if "Error" in line), said[-1] if said else "no output")[:400],
            "trace": "\n".join(said[-25:])}  # fmt: skip


def child(step, *arguments):
    """Carry out one step, in the process made for it."""
    if step == "make":
        return make(arguments[0], Path(arguments[1]), arguments[2])
    if step == "rate":
        return {"tflops": matrix_rate()}
    if step == "lengths":
        return {"lengths": lengths_of(arguments[0])}
    return measure(*arguments)


def table_of(report):
    """Return the Markdown table of a report."""
    lines = [f"{report['device']}, bf16 matrix product {report['tflops'] or 0:,.0f} TFLOP/s, "
             + ", ".join(f"{name} {version}" for name, version in report["versions"].items()), "",
             f"| model, recipe | batch of {report['length']:,} | tokens/s | share of the matrix rate | peak GiB | "
             "J per 1,000 tokens | samples' lengths: batch × accumulation | supervised tokens/s | padding |",
             "| --- | --: | --: | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for entry in report["results"]:
        even, real = entry.get("even", entry), entry.get("real", {})
        if "error" in even or "error" in real:
            said = (even | real)["error"].split(". ")[0]
            lines.append(f"| {entry['model']}, {entry['recipe']} | – | failed: {said} | | | | | | |")
            continue
        share = 4 * entry["useful"] * even["median_tokens_per_s"] / 1e12 / (report["tflops"] or float("inf"))
        lines.append(
            f"| {entry['model']}, {entry['recipe']} | {even['batch'][0]} | {even['median_tokens_per_s']:,.0f} | "
            f"{share:.0%} | {even['peak_bytes'] / 2**30:.1f} | {even.get('joules_per_1000_tokens') or 0:,.0f} | "
            f"{real['batch'][0]} × {real['batch'][1]} | {real['supervised_tokens_per_s']:,.0f} | "
            f"{real['padding']:.1%} |")  # fmt: skip
    return "\n".join(lines)


def memory_table_of(report):
    """Return the Markdown table of the steps that were taken for the peak memory; nothing where none was."""
    lines = ["| model, loaded in | batch × length | checkpointing | peak GiB | tokens/s |",
             "| --- | --: | --- | --: | --: |"]  # fmt: skip
    for entry in report["memory"]:
        if "peak_bytes" in entry:
            lines.append(f"| {entry['model']}, {entry['loaded']} | {entry['batch'][0]} × {entry['length']:,} | "
                         f"{'on' if entry['checkpointing'] else 'off'} | {entry['peak_bytes'] / 2**30:.1f} | "
                         f"{entry['median_tokens_per_s']:,.0f} |")  # fmt: skip
    return "\n".join(lines) if len(lines) > 2 else ""


def cost_of_a_batch(entry):
    """Return (seconds a batch takes whatever its size, microseconds a token) of a recipe: a line through two points.

    The points are `real` and `even`: the padded tokens of a batch, and the seconds for one. Two points prove no line;
    the optimiser's step, one for each batch of `even` and for several of `real`, counts as part of the batch.
    """
    points = []
    for figures in (entry["real"], entry["even"]):
        batches = figures["steps"] * figures["batch"][1]
        points.append((figures["tokens_per_s"] * figures["seconds"] / batches, figures["seconds"] / batches))
    (few, short), (many, long) = points
    slope = (long - short) / (many - few)
    return short - slope * few, 1e6 * slope


def chosen_recipes(model, parts):
    """Return {way of loading: {recipe: (batch, accumulation, checkpointing, order)}} of a model's recipes."""
    groups = {}
    for (name, recipe), (load_name, *setting) in RECIPES.items():
        if name == model and (not parts or any(part in recipe for part in parts)):
            groups.setdefault(load_name, {})[recipe] = setting
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--recipes", nargs="+", help="only recipes whose name contains one of these")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--steps", type=int, default=MEASURED)
    parser.add_argument("--folder", type=Path, help="where the random weights go; removed afterwards")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="print what the processes said on standard error")
    parser.add_argument("--name", default="train_step", help="of the record, without its ending")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, *values = arguments.child
        print("RESULT", json.dumps(child(step, *values)))
        return 0
    length, work = (128 if arguments.tiny else arguments.length), Path(tempfile.mkdtemp(dir=arguments.folder))
    memory = [(1, 64, True), (2, 128, False)] if arguments.tiny else MEMORY
    import torch

    versions = {name: importlib.metadata.version(name)
                for name in ("unsloth", "torch", "transformers", "trl", "peft", "bitsandbytes")}  # fmt: skip
    report = {"device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU", "versions": versions,
              "length": length, "tiny": arguments.tiny, "tflops": in_child("rate")["tflops"], "results": [], "memory": []}  # fmt: skip
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / f"{arguments.name}{'-tiny' * arguments.tiny}.json"
    try:
        for name in arguments.models:
            folder = work / name
            shape, lengths = in_child("make", name, str(folder), arguments.tiny), in_child("lengths", name)
            if "error" in shape | lengths:
                raise SystemExit(f"train_step: {name} could not be made: {(shape | lengths)['trace']}")
            shape.pop("said")
            for load_name, recipes in chosen_recipes(name, arguments.recipes).items():
                started = time.perf_counter()
                found = in_child("measure", load_name, recipes, str(folder), lengths["lengths"], length,
                                 arguments.steps, memory)  # fmt: skip
                print(f"{name}, {load_name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
                if "trace" in found or arguments.verbose:
                    print(found.get("trace") or found["said"], file=sys.stderr, flush=True)
                lost = {"error": found.get("error", "the process ended before this recipe")}
                for recipe in recipes:
                    report["results"].append({"model": name, "recipe": recipe, "loaded": load_name, **shape,
                                              **found.get("load", {}), **(found.get(recipe) or lost)})  # fmt: skip
                report["memory"] += [{"model": name, "loaded": load_name, **shape, **found.get("load", {}), **entry}
                                     for entry in found.get("memory", [])]  # fmt: skip
                target.write_text(json.dumps(report, indent=1) + "\n")  # what was measured stays, whatever comes
            for made in work.glob(f"{name}*"):
                shutil.rmtree(made, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{table_of(report)}\n\n{memory_table_of(report)}")
    return 1 if any("error" in (entry | entry.get("even", {}) | entry.get("real", {}))
                    for entry in report["results"]) else 0  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
