"""Training steps side by side: this course's recipe, the Cookbook's, and plain TRL with PEFT, at full shapes.

    python benchmarks/train_step.py [--models Qwen3-4B gpt-oss-20b gemma-2-9b] [--recipes NAME …] [--profile NAME …] [--tiny]

Weights are random: speed and memory do not depend on their values (the routing of gpt-oss's experts is then near
uniform). Recipes that load the same model in the same way share a process; each goes through TRL's trainer, on two
sets of rows: `even`, every row as long as the limit, for tokens/s and the share of the card's matrix rate; and
`real`, rows with the lengths and the supervised shares of the notebook's own samples, for supervised non-padding
tokens/s. After the warm-up the peak memory is reset; tokens/s is from the median step (`even`) or from all of them
(`real`). A recipe that does not fit is recorded as such, and the next one is tried. After its recipes each process
takes a few steps at other batches and lengths, for the peak memory alone (`memory` in the record). `--profile` names
the recipes of which one step is taken apart, kernel by kernel.

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
import re
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
from random_models import SHAPES, configuration, copy_tokenizer, make_model, read_unpacked, write_split_nf4  # noqa: E402

LENGTH = 2048
SAMPLES = {  # rows whose lengths `real` takes
    "Qwen3-4B": ("emoji_chat.jsonl", "cmath.jsonl", "mawps.jsonl"),
    "gpt-oss-20b": ("multilingual_thinking.jsonl",),
    "gemma-2-9b": ("gsm8k.jsonl",),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LOADS = {  # name: library, how the frozen weights are held, layers whose experts are adapted ("three": the Cookbook's)
    "plain NF4": ("plain", "NF4", "all"),
    "plain NF4, eager attention": ("plain", "NF4", "all"),
    "plain bf16": ("plain", "16 bits", "all"),
    "Cookbook": ("cookbook", "16 bits", "three"),
    "4 bits": ("unsloth", "NF4", "all"),  # gpt-oss: as its 4-bit repository, one layer an expert
    "4 bits, three layers": ("unsloth", "NF4", "three"),
    "4 bits, fused, three layers": ("unsloth", "fused NF4", "three"),
    "4 bits, compiled": ("unsloth", "NF4", "all"),
    "4 bits, layers compiled in parts": ("unsloth", "NF4", "all"),
    "4 bits, soft caps not compiled": ("unsloth", "NF4", "all"),
    "4 bits, soft caps in FlexAttention": ("unsloth", "NF4", "all"),
    "MXFP4, three layers": ("unsloth", "MXFP4", "three"),
    "MXFP4, three layers, embedding offloaded": ("unsloth", "MXFP4", "three"),
    "MXFP4": ("unsloth", "MXFP4", "all"),
    "MXFP4, attention": ("unsloth", "MXFP4", "none"),
    "bf16": ("unsloth", "16 bits", "all"),
    "full": ("unsloth-full", "16 bits", "all"),
}
ROWS = {"Qwen3-4B": 32, "gpt-oss-20b": 16, "gemma-2-9b": 16}  # in one optimiser step of the samples' lengths
RECIPES = {  # (model, recipe): how it is loaded, rows at a time (of full length, of the samples'), checkpointing, order
    ("Qwen3-4B", "plain TRL + PEFT, NF4"): ("plain NF4", 4, 4, True, "random"),
    ("Qwen3-4B", "plain TRL + PEFT, bf16"): ("plain bf16", 4, 4, True, "random"),
    ("Qwen3-4B", "notebook, NF4, packed"): ("4 bits", 4, 4, True, "packed"),
    ("Qwen3-4B", "notebook, NF4, packed, no checkpointing"): ("4 bits", 8, 8, False, "packed"),
    ("Qwen3-4B", "notebook, bf16, packed"): ("bf16", 4, 4, True, "packed"),
    ("Qwen3-4B", "notebook, bf16, packed, no checkpointing"): ("bf16", 8, 8, False, "packed"),
    ("gpt-oss-20b", "Cookbook, bf16"): ("Cookbook", 4, 4, True, "random"),
    ("gpt-oss-20b", "notebook, MXFP4, 4 rows"): ("MXFP4, three layers", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "notebook, MXFP4, 16 rows"): ("MXFP4, three layers", 16, 16, True, "like lengths"),
    ("gpt-oss-20b", "notebook, MXFP4, no checkpointing"): ("MXFP4, three layers", 4, 16, False, "like lengths"),
    ("gpt-oss-20b", "notebook, MXFP4, one row"): ("MXFP4, three layers", 1, 1, True, "like lengths"),
    ("gpt-oss-20b", "MXFP4, one row, embedding on the CPU"):
        ("MXFP4, three layers, embedding offloaded", 1, 1, True, "like lengths"),
    ("gpt-oss-20b", "MXFP4, 4 rows, embedding on the CPU"):
        ("MXFP4, three layers, embedding offloaded", 4, 16, True, "like lengths"),
    ("gpt-oss-20b", "notebook, MXFP4, no checkpointing, padded to eights"):
        ("MXFP4, three layers", 4, 16, False, "like lengths, padded to eights"),
    ("gpt-oss-20b", "MXFP4, all experts"): ("MXFP4", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "MXFP4, all experts, no checkpointing"): ("MXFP4", 4, 16, False, "like lengths"),
    ("gpt-oss-20b", "MXFP4, attention"): ("MXFP4, attention", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "MXFP4, attention, no checkpointing"): ("MXFP4, attention", 8, 16, False, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits"): ("4 bits", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, no checkpointing"): ("4 bits", 4, 4, False, "like lengths"),
    ("gpt-oss-20b", "notebook, 4 bits, the Cookbook's layers"): ("4 bits, three layers", 4, 4, True, "like lengths"),
    ("gpt-oss-20b", "4 bits, fused, the Cookbook's layers"):
        ("4 bits, fused, three layers", 4, 4, True, "like lengths"),
    ("gemma-2-9b", "plain TRL + PEFT, NF4"): ("plain NF4", 4, 4, True, "random"),
    ("gemma-2-9b", "plain TRL + PEFT, NF4, eager attention"): ("plain NF4, eager attention", 4, 4, True, "random"),
    ("gemma-2-9b", "notebook, NF4"): ("4 bits", 4, 4, True, "like lengths"),
    ("gemma-2-9b", "notebook, NF4, 16 short rows"): ("4 bits", 8, 16, True, "like lengths"),
    ("gemma-2-9b", "NF4, compiled"): ("4 bits, compiled", 4, 4, True, "like lengths"),
    ("gemma-2-9b", "NF4, soft caps not compiled"): ("4 bits, soft caps not compiled", 4, 16, True, "like lengths"),
    ("gemma-2-9b", "NF4, layers compiled in parts"): ("4 bits, layers compiled in parts", 8, 16, True, "like lengths"),
    ("gemma-2-9b", "NF4, FlexAttention"): ("4 bits, soft caps in FlexAttention", 4, 16, True, "like lengths"),
    ("gemma-2-9b", "NF4, FlexAttention, no checkpointing"):
        ("4 bits, soft caps in FlexAttention", 4, 16, False, "like lengths"),
    ("gemma-2-9b", "notebook, bf16"): ("bf16", 4, 4, True, "like lengths"),
    ("gemma-2-9b", "notebook, bf16, no checkpointing"): ("bf16", 4, 4, False, "like lengths"),
    ("gemma-2-9b", "notebook, full fine-tuning"): ("full", 1, 1, True, "like lengths"),
}  # fmt: skip
NOT_COMPILED = {"TORCH_COMPILE_DISABLE": "1"}  # as notebook 04 sets it for Gemma without FlashAttention 2
IN_PARTS = {"UNSLOTH_BLOCK_COMPILE": "0"}  # not each layer as one region
PLAIN_GEMMA = {("gemma-2-9b", load_name) for load_name in ("4 bits", "bf16", "full")}
MEMORY = [(1, 1024, True), (1, 2048, True), (8, 2048, True), (1, 1024, False), (1, 2048, False), (2, 2048, False)]
WARM_UP, MEASURED = 2, 6  # optimiser steps


def folder_of(folder, held):
    """Return the folder that holds a model's weights as a recipe loads them; only gpt-oss has more than one."""
    other = Path(f"{folder}{'-unsloth-bnb-4bit' if held == 'NF4' else '-16bit' if held == 'fused NF4' else ''}")
    return other if other.is_dir() else Path(folder)


def make(name, folder, tiny, held):
    """Write a model of the shape with random weights, held in these ways; return counts of weights, sizes of layers."""
    import torch
    from transformers import AutoModelForCausalLM

    make_model(name, folder, tiny)
    if "gpt-oss" in name and torch.cuda.is_available():
        if "NF4" in held:
            write_split_nf4(folder, f"{folder}-unsloth-bnb-4bit")
        if "fused NF4" in held:
            read_unpacked(folder, "cuda").save_pretrained(f"{folder}-16bit", save_original_format=False)
            copy_tokenizer(folder, f"{folder}-16bit")
    config = configuration(name, tiny)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    whole = sum(p.numel() for p in model.parameters())
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
    library, held, layers_with_experts = LOADS[name]
    import torch

    sparse, in_4bit, folder = "gpt-oss" in str(folder), "NF4" in held, folder_of(folder, held)
    if library.startswith("unsloth"):
        from unsloth import FastLanguageModel

        if "soft caps" in name:
            exchange_soft_caps(name)
        full = library == "unsloth-full"
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=limit,
            load_in_4bit=in_4bit,
            full_finetuning=full,
            dtype=torch.bfloat16,
            use_gradient_checkpointing="unsloth",
            use_exact_model_name=True,
            **({"offload_embedding": True} if "offloaded" in name else {}),
        )
        if full:
            return model, tokenizer
        targets = {"target_modules": LINEAR, "target_parameters": None}
        if sparse:  # by full names, as notebooks 01 and 03 give them
            layers = {"all": "all", "three": three(model.config), "none": []}[layers_with_experts]
            targets = named_targets(model, layers)
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
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Mxfp4Config

    options = {"quantization_config": Mxfp4Config(dequantize=True)} if sparse else {}
    if in_4bit:
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
        attn_implementation="eager" if library == "cookbook" or "eager" in name else "sdpa",
        **options,
    )
    if in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    few = [f"{layer}.{name}" for layer in three(model.config) for name in EXPERTS]
    if library == "cookbook":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", target_parameters=few)
    else:
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(folder)


def exchange_soft_caps(how):
    """Exchange Unsloth's compiled attention of Gemma 2: the same without the compiler, or PyTorch's FlexAttention.

    FlexAttention is given the cap as a score modification and a causal block mask: no matrix of scores in memory.
    Right for rows padded on the right, up to the sliding window of 4,096 tokens.
    """
    import unsloth.models.gemma2 as gemma2
    from unsloth.kernels import flex_attention as kernels

    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if "not compiled" in how:
        kernels._SOFTCAP_EAGER["cuda"] = True
        return
    compiled, masks, capped = torch.compile(flex_attention, dynamic=False), {}, {}

    def cap_of(cap):
        return lambda score, *_: cap * torch.tanh(score / cap)

    def attention(Q, K, V, causal_mask, self, bsz, kv_len):
        length, cap = Q.shape[-2], self.config.attn_logit_softcapping
        if length not in masks:
            masks[length] = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=Q.device)
        found = compiled(Q, K, V, score_mod=capped.setdefault(cap, cap_of(cap)), block_mask=masks[length],
                         scale=self.config.query_pre_attn_scalar**-0.5, enable_gqa=True)  # fmt: skip
        return found.transpose(1, 2).reshape(bsz, length, -1)

    gemma2.slow_attention_softcapping = attention


def three(config):
    """Return the three layers whose experts the Cookbook trains: 7, 15 and 23 of gpt-oss's 24."""
    layers = config.num_hidden_layers
    return sorted({max(0, layers // 3 - 1), max(0, 2 * layers // 3 - 1), layers - 1})


def named_targets(model, layers):
    """Return target_modules and target_parameters by notebook 01's own functions: attention, and experts of layers."""
    from notebook_code import lift

    notebook = lift(PROJECT / "NoteBooks" / "01_gpt_oss_multilingual_thinking.ipynb", "true_shape", "adapter_targets",
                    "as_pattern", without=("unsloth", "lingua", "trackio"))  # fmt: skip
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


def watching(warm_up, profiler=None):
    """Return a trainer callback: the time at the end of every step, the peak from the warm-up on, a profile of the last."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """`times` holds the end of every optimiser step; `power` samples from the end of the warm-up on."""

        def __init__(self):
            self.times, self.power = [], Power()

        def on_step_begin(self, args, state, control, **kwargs):
            if profiler and state.global_step == args.max_steps - 1:
                profiler.start()

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if profiler and state.global_step == args.max_steps:
                profiler.stop()
            self.times.append(time.perf_counter())
            if len(self.times) == warm_up:
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                self.power.start()

    return Watch()


def train(
    model,
    tokenizer,
    library,
    rows,
    batch,
    accumulation,
    checkpointing,
    how,
    limit,
    steps,
    warm_up,
    folder,
    profiler=None,
):
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
    watch = watching(warm_up, profiler)
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


def taken_apart(model, tokenizer, folder, batch, checkpointing, limit):
    """Return the milliseconds of the GPU's kernels in one optimiser step on even rows, the longest forty by name."""
    import torch
    from torch.profiler import ProfilerActivity

    rows = make_rows([(limit, limit)], 4 * batch, min(model.config.vocab_size, 49000), limit)
    profiler = torch.profiler.profile(activities=[ProfilerActivity.CUDA])
    figures = train(model, tokenizer, "unsloth", rows, batch, 1, checkpointing, "even", limit, 3, 1, folder, profiler)
    kernels = [(event.key, event.self_device_time_total / 1000, event.count) for event in profiler.key_averages()
               if event.self_device_time_total and not event.key.startswith("ProfilerStep")]  # fmt: skip
    longest = sorted(kernels, key=lambda kernel: -kernel[1])[:40]
    return {"batch": batch, "checkpointing": checkpointing, "tokens_per_s": figures["tokens_per_s"],
            "busy_ms": round(sum(ms for _, ms, _ in kernels), 2), "launches": sum(count for *_, count in kernels),
            "kernels": [[name[:200], round(ms, 3), count] for name, ms, count in longest]}  # fmt: skip


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


def measure(load_name, recipes, folder, lengths, limit, steps, memory, rows_a_step, profiled):
    """Return {"load": …, recipe: {"even", "real", "profile"}, "memory": […]} of recipes that share one way of loading.

    recipes: {name: (rows of full length, rows of the samples' lengths, checkpointing, order)}; memory: [(batch,
    length, checkpointing)]; profiled: the recipes to take apart.
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
    for name, (many, short, checkpointing, how) in recipes.items():
        result[name] = {}
        for rows_name, drawn, batch in (("even", [(limit, limit)], many), ("real", lengths, short)):
            per_step = 1 if rows_name == "even" else rows_a_step // batch
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
        if name in profiled:
            result[name]["profile"] = guarded(taken_apart, model, tokenizer, folder, many, checkpointing, limit)
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


def in_child(*arguments, timeout=None, variables=None):
    """Return what a step prints as JSON, run in a process of its own; where it fails, its last part and the error."""
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, stdout=out, stderr=err, timeout=timeout, env={**os.environ, **(variables or {})})
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
        return make(*arguments)
    if step == "rate":
        return {"tflops": matrix_rate()}
    if step == "lengths":
        return {"lengths": lengths_of(arguments[0])}
    return measure(*arguments)


def matrix_share(entry, report):
    """Return the share of the card's matrix rate that a recipe's useful operations on even rows come to."""
    return 4 * entry["useful"] * entry["even"]["median_tokens_per_s"] / 1e12 / (report["tflops"] or float("inf"))


def table_of(report):
    """Return the Markdown table of a report's recipes."""
    lines = [f"| model, recipe | batch of {report['length']:,} | tokens/s | share of the matrix rate | peak GiB | "
             "J per 1,000 tokens | samples' lengths: batch × accumulation | supervised tokens/s | padding |",
             "| --- | --: | --: | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for entry in report["results"]:
        even, real = entry.get("even", entry), entry.get("real", {})
        if "error" in even or "error" in real:
            said = (even | real)["error"].split(". ")[0]
            lines.append(f"| {entry['model']}, {entry['recipe']} | – | failed: {said} | | | | | | |")
            continue
        lines.append(
            f"| {entry['model']}, {entry['recipe']} | {even['batch'][0]} | {even['median_tokens_per_s']:,.0f} | "
            f"{matrix_share(entry, report):.0%} | {even['peak_bytes'] / 2**30:.1f} | "
            f"{even.get('joules_per_1000_tokens') or 0:,.0f} | "
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
                         f"{format(entry['median_tokens_per_s'], ',.0f') if 'seconds' in entry else '–'} |")  # fmt: skip
    return "\n".join(lines) if len(lines) > 2 else ""


KERNELS = {  # kind: what the names of its kernels hold; the first that fits
    "experts: grouped matrix products": r"GroupProblemShape|grouped",
    "experts: unpacking MXFP4": r"mxfp4_dequant",
    "experts: SwiGLU, sending tokens and bringing them back": r"_swiglu_|_combine_",
    "attention": r"flex_attention|flash|fmha",
    "all other matrix products": r"nvjet|gemm|cutlass|splitK",
    "loss, norms, rotary positions (compiled)": r"^triton_",
    "copies, additions, gathers, the optimiser": r"",
}


def kinds_of(kernels):
    """Return {kind: (milliseconds, launches)} of a profile's [[name, milliseconds, launches]]."""
    found = dict.fromkeys(KERNELS, (0.0, 0))
    for name, ms, count in kernels:
        kind = next(kind for kind, pattern in KERNELS.items() if re.search(pattern, name))
        found[kind] = (found[kind][0] + ms, found[kind][1] + count)
    return found


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
    """Return {way of loading: {recipe: (full rows, short rows, checkpointing, order)}} of a model's recipes."""
    groups = {}
    for (name, recipe), (load_name, *setting) in RECIPES.items():
        if name == model and (not parts or any(part in recipe for part in parts)):
            groups.setdefault(load_name, {})[recipe] = setting
    return groups


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--recipes", nargs="+", help="only recipes whose name contains one of these")
    parser.add_argument("--profile", nargs="+", default=[], help="recipes of which one step is taken apart")
    parser.add_argument("--no-memory", action="store_true", help="leave out the steps for the peak memory alone")
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
    memory = [] if arguments.no_memory else [(1, 64, True), (2, 128, False)] if arguments.tiny else MEMORY
    import torch

    versions = {name: importlib.metadata.version(name)
                for name in ("unsloth", "torch", "transformers", "trl", "peft", "bitsandbytes")}  # fmt: skip
    report = {"device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
              "date": time.strftime("%Y-%m-%d"), "versions": versions,
              "length": length, "tiny": arguments.tiny, "tflops": in_child("rate")["tflops"], "results": [], "memory": []}  # fmt: skip
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / f"{arguments.name}{'-tiny' * arguments.tiny}.json"
    try:
        for name in arguments.models:
            folder = work / name
            chosen = chosen_recipes(name, arguments.recipes)
            held = sorted({LOADS[load_name][1] for load_name in chosen})
            shape, lengths = in_child("make", name, str(folder), arguments.tiny, held), in_child("lengths", name)
            if "error" in shape | lengths:
                raise SystemExit(f"train_step: {name} could not be made: {(shape | lengths)['trace']}")
            shape.pop("said")
            for load_name, recipes in chosen.items():
                started = time.perf_counter()
                found = in_child("measure", load_name, recipes, str(folder), lengths["lengths"], length,
                                 arguments.steps, memory, ROWS[name], arguments.profile,
                                 variables=NOT_COMPILED if (name, load_name) in PLAIN_GEMMA
                                 else IN_PARTS if "in parts" in load_name else None)  # fmt: skip
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
    print(f"{report['device']}, bf16 matrix product {report['tflops'] or 0:,.0f} TFLOP/s\n\n{table_of(report)}\n\n"
          f"{memory_table_of(report)}")  # fmt: skip
    return 1 if any("error" in (entry | entry.get("even", {}) | entry.get("real", {}))
                    for entry in report["results"]) else 0  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
