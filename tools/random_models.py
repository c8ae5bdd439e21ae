"""Models of a true shape with random weights, for what does not depend on the weights: speed, memory, the road there.

    make_model("Qwen3-4B", folder)              # 8 GB in bf16; on a GPU where there is one
    make_model("Qwen3-4B", folder, tiny=True)   # the same architecture, two narrow layers

The tokenizer is the rehearsal checkpoint's that wears the family's template. Random weights route gpt-oss's tokens to
nearly all experts alike, which a trained router does not.
"""

import contextlib
import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SHAPES = {  # configuration class, values, rehearsal checkpoint whose tokenizer it gets
    "Qwen3-4B": ("Qwen3Config", {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 40960}, "qwen3"),
    "gpt-oss-20b": ("GptOssConfig", {
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "num_local_experts": 32,
        "num_experts_per_tok": 4}, "gpt-oss"),
    "gemma-2-9b": ("Gemma2Config", {
        "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000, "query_pre_attn_scalar": 256}, "gemma"),
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50000}  # fmt: skip
TINY_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def make_model(name, folder, tiny=False, seed=0):
    """Write a model of the shape in random bf16 weights, with its tokenizer; return the configuration and the model."""
    import torch
    import transformers

    kind, values, family = SHAPES[name]
    few = {**TINY, **(TINY_EXPERTS if "num_local_experts" in values else {})} if tiny else {}
    config = getattr(transformers, kind)(**{**values, **few}, dtype="bfloat16")
    tokens = PROJECT / "outputs" / "rehearsal" / family
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokens)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="4GB")
    for path in tokens.glob("*token*"):
        shutil.copy(path, folder)
    with contextlib.suppress(OSError):
        shutil.copy(tokens / "chat_template.jinja", folder)
    return config, model
