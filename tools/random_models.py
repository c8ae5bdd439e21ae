"""Models of a true shape with random weights, for what does not depend on the weights: speed, memory, the road there.

    make_model("Qwen3-4B", folder)              # 8 GB in bf16; on a GPU where there is one
    make_model("Qwen3-4B", folder, tiny=True)   # the same architecture, narrow, in few layers

gpt-oss is written as OpenAI published it: experts in MXFP4, layer by layer, so that 13 GB of disk are enough. The
tokenizer is the rehearsal checkpoint's that wears the family's template. Random weights route gpt-oss's tokens to nearly
all experts alike, which a trained router does not.
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
TINY_EXPERTS = {"num_hidden_layers": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": [
    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}  # fmt: skip
USUAL_SCALE = 119  # the power of two, plus 127, that gives four-bit values the size of usual weights


def copy_tokenizer(source, folder):
    """Copy a model folder's tokenizer, its chat template and its settings for decoding."""
    for path in Path(source).iterdir():
        if "token" in path.name or path.name in ("chat_template.jinja", "generation_config.json"):
            shutil.copy(path, folder)


def configuration(name, tiny=False):
    """Return the configuration of a shape, with the control tokens of the tokenizer that it gets."""
    import transformers

    kind, values, family = SHAPES[name]
    few = {**TINY, **(TINY_EXPERTS if "num_local_experts" in values else {})} if tiny else {}
    config = getattr(transformers, kind)(**{**values, **few}, dtype="bfloat16")
    tokenizer = transformers.AutoTokenizer.from_pretrained(PROJECT / "outputs" / "rehearsal" / family)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    return config


def make_model(name, folder, tiny=False, seed=0):
    """Write a model of the shape in random weights, bf16 or for gpt-oss MXFP4, with its tokenizer."""
    import torch
    import transformers

    config = configuration(name, tiny)
    torch.manual_seed(seed)
    if hasattr(config, "num_local_experts"):
        write_mxfp4(config, folder)
    else:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                model = transformers.AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(before)
        model.save_pretrained(folder, max_shard_size="4GB")
    copy_tokenizer(PROJECT / "outputs" / "rehearsal" / SHAPES[name][2], folder)


def write_mxfp4(config, folder):
    """Write random gpt-oss weights in OpenAI's layout: a weight of (experts, in, out) as blocks and scales.

    Blocks, uint8, are (experts, out, in / 32, 16): two values of four bits in a byte. A scale, uint8, serves 32 values.
    """
    import torch
    import transformers

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in
                  transformers.AutoModelForCausalLM.from_config(config).named_parameters()}  # fmt: skip
    place = "cuda" if torch.cuda.is_available() else "cpu"

    def tensors_of(name, shape):
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            experts, inputs, outputs = shape
            blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, device=place)
            return {f"{name}_blocks": blocks,
                    f"{name}_scales": torch.full(blocks.shape[:-1], USUAL_SCALE, dtype=torch.uint8)}  # fmt: skip
        if "norm" in name:
            return {name: torch.ones(shape, dtype=torch.bfloat16)}
        if name.endswith(("bias", "sinks")):
            return {name: torch.zeros(shape, dtype=torch.bfloat16)}
        return {name: 0.02 * torch.randn(shape, dtype=torch.bfloat16, device=place)}

    write_shards(folder, shapes, tensors_of)
    config.quantization_config = MXFP4
    config.architectures = ["GptOssForCausalLM"]
    config.save_pretrained(folder)


def write_shards(folder, items, tensors_of, count=3):
    """Write what tensors_of(name, item) returns for each of the items, in `count` files and an index."""
    from safetensors.torch import save_file

    folder, names, where = Path(folder), list(items), {}
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(names) // count)
    for number in range(count):
        file, tensors = f"model-{number + 1:05d}-of-{count:05d}.safetensors", {}
        for name in names[number * share : (number + 1) * share]:
            tensors |= {key: value.contiguous().cpu() for key, value in tensors_of(name, items[name]).items()}
        save_file(tensors, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(tensors, file))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1))  # fmt: skip


def read_unpacked(folder, place):
    """Return the gpt-oss model of an MXFP4 folder in bf16, on "cuda" or "cpu"."""
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True), device_map=place
    )


def write_split_nf4(source, folder):
    """Write the gpt-oss model in `source` as upstream's 4-bit repository holds it: every expert an NF4 layer of its own.

    It takes a GPU, and only Unsloth's classes for a GPU read this layout. Output head, embeddings and router stay in
    16 bits.
    """
    from bitsandbytes.functional import quantize_4bit

    model = read_unpacked(source, "cuda")
    weights = model.state_dict()

    def quantised(name, matrix):
        packed, state = quantize_4bit(matrix.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
        return {f"{name}.weight": packed,
                **{f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}}  # fmt: skip

    def tensors_of(name, value):
        if ".experts." in name:
            prefix, part = name.split(".experts.")
            target = f"{prefix}.experts.{'gate_up' if part.startswith('gate_up') else 'down'}_projs"
            if part.endswith("_bias"):
                return {f"{target}.{expert}.bias": one for expert, one in enumerate(value)}
            return {key: packed for expert, one in enumerate(value)
                    for key, packed in quantised(f"{target}.{expert}", one.T).items()}  # fmt: skip
        if ".router." in name:
            return {name.replace(".router.", ".router.linear."): value}
        return quantised(name.removesuffix(".weight"), value) if name.endswith("_proj.weight") else {name: value}

    write_shards(folder, weights, tensors_of)
    config = json.loads((Path(source) / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False, "load_in_4bit": True,
        "load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head", "router", "embed_tokens"]}  # fmt: skip
    (Path(folder) / "config.json").write_text(json.dumps(config, indent=1))
    copy_tokenizer(source, folder)
