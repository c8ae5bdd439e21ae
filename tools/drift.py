"""Which of the notebooks' claims about libraries would a newer release break? `make drift`, say once a month.

    python tools/drift.py                           probe the environment that runs this: no network, the lock
    python tools/drift.py --python PATH             probe another environment
    python tools/drift.py --newer trl peft          probe outputs/drift-env, where these packages are the newest that
                                                    go with the other pins of requirements.txt
Each probe is a function: its docstring is the claim, after the section of the notebook that shows it. It returns whether
the claim holds, and uses the rehearsal's tokenizers, which wear the families' true templates, and tiny random models.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OWN = PROJECT / "outputs" / "drift-env"
ASK = {"role": "user", "content": "Capital of Australia?"}
SYSTEM = {"role": "system", "content": "reasoning language: German"}
REPLY = {"role": "assistant", "thinking": "Gesucht: die Hauptstadt.", "content": "Canberra."}
ROW = [SYSTEM, ASK, REPLY]
THOUGHT = "<|channel|>analysis<|message|>Gesucht: die Hauptstadt.<|end|>"
FINAL = "<|channel|>final<|message|>Canberra.<|return|>"
PROBES = []


def probe(function):
    """List a function as a probe."""
    PROBES.append(function)
    return function


def tokenizer_of(family):
    """Return the tokenizer of a rehearsal checkpoint, with the date of its template fixed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "outputs" / "rehearsal" / family)
    tokenizer.chat_template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', tokenizer.chat_template)
    return tokenizer


def ids_of(tokenizer, messages, **options):
    """Return the tokens of a rendered conversation."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return tokenizer(text, add_special_tokens=False).input_ids


def learnt(instruction=None, response=None):
    """Return the text under the loss in ROW, by Unsloth's train_on_responses_only."""
    from unsloth_zoo.dataset_utils import train_on_responses_only

    tokenizer = tokenizer_of("gpt-oss")
    mask = train_on_responses_only(None, tokenizer=tokenizer, instruction_part=instruction, response_part=response,
                                   return_function=True)  # fmt: skip
    ids = ids_of(tokenizer, ROW)
    labels = mask({"input_ids": [ids]})["labels"][0]
    return tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label != -100])


def tiny(kind, **changes):
    """Return a tiny random model of an architecture."""
    import torch
    import transformers

    torch.manual_seed(1)
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = getattr(transformers, f"{kind}Config")(**shape, num_key_value_heads=1, head_dim=16, **changes)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


@probe
def detected_markers():
    """01, What the library would have chosen: Unsloth detects markers that leave gpt-oss's reasoning out of the loss."""
    return learnt() == "Canberra.<|return|>"


@probe
def our_markers():
    """01, What the library would have chosen: With the marker `<|start|>assistant` Unsloth leaves out the second header."""
    return learnt("<|start|>user<|message|>", "<|start|>assistant") == THOUGHT + FINAL


@probe
def trl_template():
    """01, A second implementation: TRL's Harmony template supervises both messages, the first header included."""
    import trl

    path = Path(trl.__file__).parent / "chat_templates" / "gptoss_training.jinja"
    template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', path.read_text())
    tokenizer = tokenizer_of("gpt-oss")
    row = tokenizer.apply_chat_template(
        ROW, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    text = tokenizer.decode([t for t, mark in zip(row["input_ids"], row["assistant_masks"], strict=True) if mark])
    return text == f"<|start|>assistant{THOUGHT}<|start|>assistant{FINAL}"


@probe
def earlier_turns():
    """01, Rows of other shapes: The template drops the reasoning of earlier turns and ends them with `<|end|>`."""
    text = tokenizer_of("gpt-oss").apply_chat_template([*ROW, ASK, REPLY], tokenize=False)
    return text.count("Gesucht") == 1 == text.count("Canberra.<|end|>") and text.endswith("Canberra.<|return|>")


@probe
def typed_marks():
    """01, The control tokens: A control token that a user types becomes a control token."""
    tokenizer = tokenizer_of("gpt-oss")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    typed = [{"role": "user", "content": "Hi<|end|>"}]
    plain = [{"role": "user", "content": "Hi"}]
    return ids_of(tokenizer, typed).count(end) == ids_of(tokenizer, plain).count(end) + 1


@probe
def adapter_arithmetic():
    """01, The adapter, attached: A LoRA adapter has r (d_in + d_out) weights a layer, and untrained moves no logit."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokens = tiny("Llama"), torch.arange(16)[None]
    with torch.inference_mode():
        before = model(tokens).logits
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    with torch.inference_mode():
        moved = (model(tokens).logits - before).abs().max()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return moved == 0 and trained == 2 * 8 * ((32 + 32) + (32 + 16))


@probe
def expert_adapters():
    """01, The adapter, attached: PEFT's `target_parameters` gives a tensor of E experts E times r (d_in + d_out)."""
    from peft import LoraConfig, get_peft_model

    model = tiny("GptOss", num_local_experts=4, num_experts_per_tok=2)
    shape = model.model.layers[0].mlp.experts.gate_up_proj.shape
    settings = LoraConfig(r=8, target_modules=[], target_parameters=["layers.0.mlp.experts.gate_up_proj"])
    model = get_peft_model(model, settings)
    return sum(w.numel() for w in model.parameters() if w.requires_grad) == 4 * 8 * (shape[1] + shape[2])


@probe
def penalty_without_prompt():
    """01, In practice: The repetition penalty can leave the prompt out (`prompt_ignore_length`)."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=1)(torch.tensor([[0, 1]]), torch.ones(1, 3))
    return scores.tolist() == [[1.0, 0.5, 1.0]]


@probe
def mxfp4_config():
    """01, In practice: MXFP4 weights can be expanded on loading (`Mxfp4Config(dequantize=True)`)."""
    from transformers import Mxfp4Config

    return Mxfp4Config(dequantize=True).to_dict()["quant_method"] == "mxfp4"


@probe
def interleaving():
    """02, Two ways to mix: Interleaving without replacement gives every row once, whatever the weights."""
    from datasets import Dataset, interleave_datasets

    parts = [Dataset.from_dict({"n": list(range(i, i + 20))}) for i in (0, 100)]
    how = dict(probabilities=[0.9, 0.1], seed=1, stopping_strategy="all_exhausted_without_replacement")
    return sorted(interleave_datasets(parts, **how)["n"]) == [*range(20), *range(100, 120)]


@probe
def tools_as_users():
    """02, Tools: In Qwen's template the result of a tool comes in a message that opens as the user's."""
    text = tokenizer_of("qwen3").apply_chat_template([ASK, {"role": "tool", "content": "12"}], tokenize=False)
    return "<|im_start|>user\n<tool_response>\n12" in text


@probe
def isolated_rows():
    """02, Packing: Positions that begin anew isolate packed rows; positions that run on do not."""
    import torch

    model, second, moved = tiny("Qwen3"), list(range(20, 32)), {}
    for restart in (True, False):
        logits, places = [], [*range(12), *(range(12) if restart else range(12, 24))]
        for first in (list(range(12)), list(range(12))[::-1]):
            with torch.inference_mode():
                output = model(torch.tensor([first + second]), position_ids=torch.tensor([places]), use_cache=False)
            logits.append(output.logits[0, 12:])
        moved[restart] = (logits[0] - logits[1]).abs().max().item()
    return moved[True] == 0 < moved[False]


@probe
def nf4_bytes():
    """02, What NF4 stores: A weight costs 4 bits, 8/64 for its scale and 32/(64 · 256) for the scale's own."""
    import torch
    from bitsandbytes.functional import quantize_4bit

    weights = torch.randn(512, 256)
    packed, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return len(state.code) == 16 and 8 * stored == weights.numel() * (4 + 8 / 64 + 32 / (64 * 256))


@probe
def one_bos():
    """04, Three traps: Gemma's template writes the one `<bos>` itself."""
    tokenizer = tokenizer_of("gemma")
    return ids_of(tokenizer, [ASK]).count(tokenizer.bos_token_id) == 1


@probe
def silent_cap():
    """04, Three traps: In Gemma 2 `sdpa` drops the cap on attention scores without a word."""
    import torch

    model, tokens, logits = tiny("Gemma2", query_pre_attn_scalar=16, initializer_range=1.0), torch.arange(16)[None], {}
    for name, cap in (("eager", 50.0), ("sdpa", 50.0), ("eager", None)):
        model.set_attn_implementation(name)
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = cap
        with torch.inference_mode():
            logits[name, cap] = model(tokens).logits
    apart = {other: (logits["sdpa", 50.0] - logits[other]).abs().max() for other in (("eager", 50.0), ("eager", None))}
    return apart["eager", None] < 0.01 < apart["eager", 50.0]


def run_probes():
    """Print claim by claim whether it holds in this environment; return how many do not."""
    import importlib.metadata as metadata

    import unsloth  # noqa: F401  (before what it patches, as in the notebooks)

    names = ("unsloth", "transformers", "trl", "peft", "datasets", "bitsandbytes", "torch")
    print("  ".join(f"{name} {metadata.version(name)}" for name in names), flush=True)
    broken = 0
    for function in PROBES:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                verdict = "holds" if function() else "NO LONGER"
        except Exception as error:  # a newer release may refuse the call altogether: that is an answer
            verdict = f"NO LONGER ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        broken += verdict != "holds"
        print(f"{verdict:10} {function.__doc__}", flush=True)
    print(f"{len(PROBES) - broken} of {len(PROBES)} claims hold.")
    return broken


def newer(names):
    """Make outputs/drift-env with the newest releases of these packages beside the other pins; return its interpreter."""
    wanted = (PROJECT / "requirements.txt").read_text()
    for name in names:
        wanted, found = re.subn(rf"(?m)^{re.escape(name)}==\S+", name, wanted)
        if not found:
            raise SystemExit(f"drift: requirements.txt names no package {name}.")
    OWN.parent.mkdir(exist_ok=True)
    uv, python = [sys.executable, "-m", "uv"], OWN / "bin" / "python"
    lists = [OWN.with_suffix(".txt"), OWN.with_suffix(".overrides.txt")]
    lists[0].write_text(wanted)
    lists[1].write_text("certifi\nwheel\nsetuptools\n")  # as in lock.py
    install = ["pip", "install", "--quiet", "--python", str(python), "--upgrade", "-r", str(lists[0])]
    for command in (["venv", "--quiet", "--clear", "--python", sys.executable, str(OWN)],
                    [*install, "--override", str(lists[1])]):  # fmt: skip
        result = subprocess.run([*uv, *command], capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"drift: uv could not make {OWN.relative_to(PROJECT)}: {result.stderr.strip()}")
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="the interpreter of an environment that is there")
    parser.add_argument("--newer", nargs="*", default=[], help="packages of requirements.txt whose pins are lifted")
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    python = newer(arguments.newer) if arguments.newer else arguments.python
    if python:
        return subprocess.run([str(python), __file__]).returncode
    return 1 if run_probes() else 0


if __name__ == "__main__":
    sys.exit(main())
