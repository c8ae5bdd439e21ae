"""A training of seconds that a tracker records: run by test_trackers.py, with the Python that has the tracker.

    python tests/tracked_run.py TRACKER FOLDER RUN

The tracker is chosen by notebook 01's own function, with FOLDER as its output folder; the run is named RUN. Prints
what the notebook would print.
"""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tools")]
from notebook_code import lift  # noqa: E402

NOTEBOOK = "01_gpt_oss_multilingual_thinking"
STEPS = 6


def train(report_to, output, name):
    """Train a Llama of two thousand weights on random tokens; return {step: loss}."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    shape = dict(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(64, (32, 16))]
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"), report_to=report_to, project=NOTEBOOK, trackio_space_id=None, run_name=name,
        disable_tqdm=True, max_steps=STEPS, logging_steps=1, learning_rate=0.1, save_strategy="no", seed=0)  # fmt: skip
    trainer = Trainer(model=LlamaForCausalLM(LlamaConfig(**shape)), args=arguments, train_dataset=rows)
    trainer.train()
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def main(tracker, folder, run):
    space = lift(PROJECT / "NoteBooks" / f"{NOTEBOOK}.ipynb", "choose_tracker", without=("unsloth", "trl", "lingua"))
    space.update(OUTPUT=folder, ROOT=PROJECT, NOTEBOOK=NOTEBOOK)
    chosen = space["choose_tracker"](tracker)
    losses = train(chosen, folder, run)
    print(f"chosen {chosen}; {len(losses)} losses, {losses[1]:.3f} to {losses[STEPS]:.3f}")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
