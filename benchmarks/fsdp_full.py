"""Full fine-tuning of notebook 04's model with the weights divided among processes: does it start, does it learn the same?

    .finetuning/bin/accelerate launch --config_file benchmarks/fsdp_full.yaml benchmarks/fsdp_full.py
    .finetuning/bin/python benchmarks/fsdp_full.py

The second line is the same training in one process. MODEL in the environment names another folder or Hub id. Each
prints the loss of every step, how many weights a process holds, and where the whole model was saved.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from accelerate import DistributedType, PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

PROJECT = Path(__file__).resolve().parent.parent
MODEL = os.environ.get("MODEL", str(PROJECT / "outputs" / "rehearsal" / "gemma"))
STEPS, ROWS_A_STEP, RATE = 3, 4, 1e-4


def rows_of(tokenizer):
    """Return the first problems of the sample as token ids and labels; a question carries no loss."""
    rows = []
    lines = (PROJECT / "data" / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines[: STEPS * ROWS_A_STEP]):
        ask = [{"role": "user", "content": row["question"]}]
        opened = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(opened, add_special_tokens=False).input_ids
        answer = tokenizer(row["answer"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(1)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if ROWS_A_STEP % processes:
        raise SystemExit(f"fsdp_full: {processes} processes cannot share the {ROWS_A_STEP} rows of a step.")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    output = PROJECT / "outputs" / f"fsdp-full-{processes}"
    arguments = TrainingArguments(
        output_dir=str(output), use_cpu=not torch.cuda.is_available(), max_steps=STEPS, learning_rate=RATE,
        per_device_train_batch_size=1, gradient_accumulation_steps=ROWS_A_STEP // processes,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, lr_scheduler_type="constant", weight_decay=0.0, seed=1)  # fmt: skip
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and arguments.device.type == "cpu":
        # accelerate 1.15 divides weights on accelerators alone, and on a processor it copies them without a word;
        # PyTorch's own FSDP2 can do both, so accelerate is told another kind of device
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows_of(tokenizer), processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer))  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    here = sum(getattr(weight, "to_local", lambda weight=weight: weight)().numel()
               for weight in trainer.model_wrapped.parameters())  # fmt: skip
    trainer.save_model()  # every process takes part: each holds a piece of each tensor
    if trainer.is_world_process_zero():
        losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
        whole = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(output).parameters())
        print(json.dumps({"processes": processes, "losses": losses, "weights": whole, "weights of one process": here,
                          "kind": str(trainer.accelerator.distributed_type), "saved": output.name}))  # fmt: skip
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
