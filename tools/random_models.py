"""Models of a true shape with random weights, for what does not depend on the weights: speed, memory, the road there.

    make_model("Qwen3-4B", folder)              # 8 GB in bf16; on a GPU where there is one
    make_model("Qwen3-4B", folder, tiny=True)   # the same architecture, two narrow layers

The tokenizer is the rehearsal checkpoint's that wears the family's template. Random weights route gpt-oss's tokens to
nearly all experts alike, which a trained router does not.
"""

import json
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


def copy_tokenizer(source, folder):
    """Copy a model folder's tokenizer, its chat template and its settings for decoding."""
    for path in Path(source).iterdir():
        if "token" in path.name or path.name in ("chat_template.jinja", "generation_config.json"):
            shutil.copy(path, folder)


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
    copy_tokenizer(tokens, folder)
    return config, model


def write_split_nf4(model, folder, source):
    """Write a gpt-oss model as upstream's 4-bit repository holds it: every expert an NF4 linear layer of its own.

    `model` on a GPU, `source` the folder of its 16-bit twin, whose tokenizer is copied. Only Unsloth's classes for a
    GPU read this layout. Output head, embeddings and router stay in 16 bits.
    """
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, tensors, where = model.config.num_hidden_layers + 1, {}, {}

    def quantise(name, matrix):
        packed, state = quantize_4bit(matrix.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
        tensors[f"{name}.weight"] = packed
        for key, value in state.as_dict(packed=True).items():
            tensors[f"{name}.weight.{key}"] = value

    def finish(number):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(tensors, file))
        tensors.clear()

    weights = model.state_dict()
    for layer in range(model.config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name in [name for name in weights if name.startswith(prefix)]:
            value, short = weights[name], name.removesuffix(".weight")
            if ".experts." in name:
                part = "gate_up_projs" if "gate_up_proj" in name else "down_projs"
                for expert, one in enumerate(value):
                    target = f"{prefix}mlp.experts.{part}.{expert}"
                    if name.endswith("_bias"):
                        tensors[f"{target}.bias"] = one
                    else:
                        quantise(target, one.T)
            elif ".router." in name:
                tensors[name.replace(".router.", ".router.linear.")] = value
            elif name.endswith("_proj.weight"):
                quantise(short, value)
            else:
                tensors[name] = value
        finish(layer + 1)
    tensors.update({name: value for name, value in weights.items() if ".layers." not in name})
    finish(shards)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(p.stat().st_size for p in folder.glob("*.safetensors"))},
                    "weight_map": where}, indent=1))  # fmt: skip
    config = json.loads((Path(source) / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False, "load_in_4bit": True,
        "load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head", "router", "embed_tokens"]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    copy_tokenizer(source, folder)
