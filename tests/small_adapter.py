"""Small LoRA adapters for the tests of notebook 05, saved as a training notebook saves them."""

import hashlib
import json
import re

import torch
from conftest import PROJECT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def save_adapter(model, folder, strength=0.0, **changes):
    """Attach a LoRA adapter to a model (which it changes) and save it; `strength` is the deviation of B, 0 as untrained."""
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(**{**SETTINGS, **changes}))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=strength) if strength else None
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def save_record(folder, base, template, **changes):
    """Write a training.json as notebook 01 does, with other values where they are given."""
    record = {
        "notebook": "01_gpt_oss_multilingual_thinking",
        "kind": "adapter",
        "started": "2026-11-27T08:00:00+00:00",
        "family": "harmony",
        "base": {"id": base, "revision": "main", "load_in_4bit": False, "layout": "16 bits"},
        "max_length": 2048,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "decoding": {"max_new_tokens": 24, "repetition_penalty": 1.1},
        "prompt": {
            "system": "reasoning language: {reasoning_language}\n\n{developer}",
            "defaults": {"reasoning_language": "German", "developer": "You are a helpful assistant."},
        },
        "parameters": {"LORA_RANK": 2, "LORA_ALPHA": 4, "ATTENTION_MODULES": ["q_proj", "v_proj"]},
    }
    (folder / "training.json").write_text(json.dumps(record | changes))


def adapter_on_the_stand_in(folder, strength=0.02, record=True):
    """Save an adapter of rank 2 for the gpt-oss stand-in, with tokenizer and record, or alone as PEFT does it."""
    base = "outputs/rehearsal/gpt-oss"
    save_adapter(AutoModelForCausalLM.from_pretrained(PROJECT / base, dtype=torch.bfloat16), folder, strength)
    if record:
        tokenizer = AutoTokenizer.from_pretrained(PROJECT / base)
        tokenizer.chat_template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', tokenizer.chat_template)
        tokenizer.save_pretrained(folder)
        save_record(folder, base, tokenizer.chat_template)
    return folder
