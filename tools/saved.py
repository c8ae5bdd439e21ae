"""What a notebook saved, found and read: shared by tools/serve.py and tools/to_gguf.py.

A folder holds a model (config.json), or an adapter (adapter_config.json); a run's folder holds such folders. Their
training.json says what they were made from and how a question is put (notebook 05, section 2).
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
MADE = PROJECT / "outputs" / "serving"  # what the two tools make, one folder a model
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


class SavedError(Exception):
    """Something a person can mend; its text is one sentence, or two."""


def shown(path):
    """Return a path as a person reads it: below the project, without what leads to it."""
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def is_model(folder):
    """Tell whether a folder is a whole model."""
    return (folder / "config.json").is_file()


def is_adapter(folder):
    """Tell whether a folder is an adapter."""
    return (folder / "adapter_config.json").is_file()


def saved_runs():
    """Return the folders below outputs/ that hold something to serve, as texts."""
    found = {path.parent.parent for mark in ("config.json", "adapter_config.json")
             for path in PROJECT.glob(f"outputs/[0-9]*/[!.]*/{mark}")}  # fmt: skip
    return sorted(map(shown, found))


def find_saved(text, prefer="model"):
    """Return the folder that a person means: itself a model or an adapter, or the one inside a run's folder.

    In a run's folder, `merged` comes first, or `adapter` where prefer="adapter". SavedError: no such folder, nothing in
    it, or several of which one must be chosen.
    """
    runs = saved_runs()
    there = f"There are: {', '.join(runs)}." if runs else "Nothing is saved yet: `make run NOTEBOOK=02` saves a model."
    if not text:
        raise SavedError(f"Say what to take: FOLDER=outputs/…. {there}")
    folder = (PROJECT / text).resolve()
    if not folder.is_dir():
        raise SavedError(f"There is no folder {text}. {there}")
    if is_model(folder) or is_adapter(folder):
        return folder
    inside = sorted(path for path in folder.glob("[!.]*") if is_model(path) or is_adapter(path))
    if not inside:
        raise SavedError(f"{text} holds no model and no adapter. {there}")
    first = {"model": ("merged", "adapter"), "adapter": ("adapter", "merged")}[prefer]
    chosen = [folder / name for name in first if folder / name in inside]
    if not chosen and len(inside) > 1:
        raise SavedError(f"{text} holds several: choose one of {', '.join(map(shown, inside))}.")
    return (chosen or inside)[0]


def name_of(folder):
    """Return the name of a saved folder as an API takes it: letters, digits, `.`, `_` and `-`, 80 at most."""
    parts = [part for part in folder.parts[-2:] if part not in ("merged", "adapter", "outputs", "/")]
    return re.sub(r"[^\w]+|[-_.]{2,}", "-", "-".join(parts), flags=re.ASCII).strip("-_")[-80:].strip("-_") or "model"


def read_json(path):
    """Return the JSON object in a file, {} where there is none; SavedError if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SavedError(f"{shown(path)} is no JSON object. Was the folder copied whole?")
    return found


def record_of(folder):
    """Return what a folder says of itself: training.json, with the base's name from PEFT's settings where it lacks."""
    adapter = read_json(folder / "adapter_config.json")
    base = {"id": adapter.get("base_model_name_or_path") or "", "revision": "main", "load_in_4bit": False}
    record = {"family": "", "decoding": {}, "prompt": {}} | read_json(folder / "training.json")
    return record | {"base": base | record.get("base", {})}


def messages_of(record, user):
    """Return a question as the conversation that the training had, with the record's defaults (notebook 05, section 3)."""
    pattern = {"system": "", "user": "{user}", "defaults": {}} | record["prompt"]
    values = {**pattern["defaults"], "user": user}
    texts = {role: re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), pattern[role])
             for role in ("system", "user")}  # fmt: skip
    return [{"role": role, "content": text} for role, text in texts.items() if text.strip()]


def base_folder(record):
    """Return the folder of the base: one below the project, or the Hub's cache; None where it is on this disk nowhere."""
    if (PROJECT / record["base"]["id"]).is_dir() and record["base"]["id"]:
        return PROJECT / record["base"]["id"]
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(record["base"]["id"], revision=record["base"]["revision"], local_files_only=True))
    except Exception:  # not a repository's name, or not in the cache
        return None


def only_safetensors(folder):
    """Raise SavedError if a folder holds no weights as safetensors; pickles, which can run code, are named and not read."""
    stem = "adapter_model" if is_adapter(folder) else "model"
    if not any(folder.glob(f"{stem}*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
        raise SavedError(
            f"{shown(folder)} holds no weights as safetensors"
            + (
                f", only {pickles[0]}: such a file can run code while it is read, so it is refused. Save the weights "
                "again with safe_serialization=True where you trust them."
                if pickles
                else ". Was the folder copied whole?"
            )
        )


def check_weights(folder):
    """Raise SavedError unless a folder holds safetensors and a chat template."""
    only_safetensors(folder)
    if not (folder / "chat_template.jinja").exists() and not read_json(folder / "tokenizer_config.json").get(
        "chat_template"
    ):
        raise SavedError(f"{shown(folder)} holds no chat template. Save the tokenizer that it was trained with there.")


def merge_adapter(adapter, target):
    """Merge an adapter into its base in 32 bits and save the whole model; return {"moved": tensors that changed, "of"}.

    Nothing is done where `target` is the merge of these very files. SavedError: the base is not on this disk, holds
    packed weights, or is not the one that the adapter was made for.
    """
    only_safetensors(adapter)
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record, weights = record_of(adapter), adapter / "adapter_model.safetensors"
    base = base_folder(record)
    if base is None:
        raise SavedError(
            f"{shown(adapter)} is an adapter for {record['base']['id'] or 'a base that it does not name'}, which is not "
            "on this disk. Download that first (`hf download`), or serve the merged copy that the notebook saves."
        )
    only_safetensors(base)
    if read_json(base / "config.json").get("quantization_config"):
        raise SavedError(
            f"{shown(base)} holds packed weights, and an adapter cannot be merged into these here. Serve base and "
            'adapter with vLLM on a GPU (README, "From notebook to application").'
        )
    stamp = {"adapter": hashlib.sha256(weights.read_bytes()).hexdigest(), "base": shown(base)}
    stamp |= {"settings": read_json(adapter / "adapter_config.json")}
    known = read_json(target / "merge.json")
    if known.get("stamp") == stamp:
        return known["tensors"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    try:
        model = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise SavedError(f"The adapter {shown(adapter)} does not fit {shown(base)}: {reason}") from None
    expected, stored = set(get_peft_model_state_dict(model, save_embedding_layers=False)), set(load_file(weights))
    if expected != stored:
        raise SavedError(
            f"The adapter {shown(adapter)} does not fit {shown(base)}: {len(expected ^ stored)} of its tensors are "
            f"missing or have no place, such as {min(expected ^ stored)}."
        )
    model = model.merge_and_unload()
    moved = sum(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    tensors = {"moved": moved, "of": len(before)}
    if not moved:
        raise SavedError(f"The adapter {shown(adapter)} changes no weight of {shown(base)}: it was never trained.")
    partial = target.with_name(f".{target.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(adapter if (adapter / "tokenizer.json").exists() else base).save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(record | {"kind": "merged"}, ensure_ascii=False, indent=1))
    (partial / "merge.json").write_text(json.dumps({"stamp": stamp, "tensors": tensors}))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return tensors


def whole_model(folder):
    """Return (folder of a whole model, sentences to print): the folder itself, or the merge of the adapter that it is."""
    if is_model(folder):
        check_weights(folder)
        return folder, []
    target, record = MADE / name_of(folder) / "merged", record_of(folder)
    tensors = merge_adapter(folder, target)
    told = [f"{shown(folder)} is an adapter; merged into its base in 32 bits: {shown(target)} "
            f"({tensors['moved']} of {tensors['of']} tensors changed)."]  # fmt: skip
    if record["base"]["load_in_4bit"] is True:
        told.append("It was trained on a base in 4 bits; the merge differs from that by the quantisation error.")
    check_weights(target)
    return target, told
