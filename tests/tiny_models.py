"""Tiny random models of true architectures, for tests that need the code path and not the skill."""

import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM


def make_tiny_gpt_oss(folder, tokenizer_folder, layers=2, experts=4):
    """Save a random GptOssForCausalLM (mixture of experts) with the stand-in's tokenizer; return the folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=experts, num_experts_per_tok=2,
        sliding_window=64, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, output_router_logits=False, layer_types=["sliding_attention", "full_attention"] * (layers // 2),
    )  # fmt: skip
    model = GptOssForCausalLM(config).to(torch.bfloat16)
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(Path(tokenizer_folder) / "chat_template.jinja", folder)
    return folder
