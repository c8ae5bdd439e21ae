"""Convert what a notebook saved to GGUF, for llama.cpp and Ollama: `make gguf FOLDER=outputs/02_qwen3_emoji_math`.

    python tools/to_gguf.py FOLDER [--outtype f16] [--adapter]
    python tools/to_gguf.py --build-server

A merged copy or a whole model becomes one file with its tokenizer, chat template and stop tokens, and a Modelfile for
Ollama beside it. An adapter on attention and feed-forward layers becomes an adapter file for `llama-server --lora` with
--adapter; without, it is merged first. Adapters on experts are refused: llama.cpp has no place for them.

The converter is llama.cpp's own, out of the source package of llama-cpp-python (outputs/llama.cpp, fetched once through
pip); it needs nothing beyond .finetuning. What a file cannot carry is told before it is written, and what it carries is
read back and compared. Files go to outputs/serving/NAME. --build-server (`make llama-server`) builds llama.cpp's server
from the same source, in outputs/llama-server; a build that was cut off goes on where it stopped.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bootstrap import SetupError, run  # noqa: E402
from saved import (  # noqa: E402
    MADE,
    PROJECT,
    SavedError,
    base_folder,
    find_saved,
    is_adapter,
    name_of,
    only_safetensors,
    read_json,
    record_of,
    shown,
    whole_model,
)

CONVERTER = PROJECT / "outputs" / "llama.cpp"
SERVER = PROJECT / "outputs" / "llama-server"
PACKAGE, ARCHIVE = "llama-cpp-python==0.3.36", "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PARTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
CMAKE = ("-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF "
         "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF").split()  # fmt: skip
NO_SERVER = "llama-server is not here: `make llama-server` builds it (minutes; it needs cmake and a C++ compiler)."


def sha256_of(path):
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(folder, parts):
    """Put parts of llama.cpp's source into a folder, stamped with the archive's hash; SavedError says what failed.

    `parts` are the beginnings of paths inside llama.cpp's source. Nothing is fetched where the stamp is there.
    """
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == SHA256:
        return folder
    print(f"Fetching llama.cpp from the source of {PACKAGE} (77 MB) …", flush=True)
    folder.parent.mkdir(exist_ok=True, parents=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".llama.cpp-") as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        try:
            run([*command, "--dest", work, PACKAGE], "Fetching llama.cpp (is a package registry reachable?)")
        except SetupError as error:
            raise SavedError(
                f"{error} Or put convert_hf_to_gguf.py and what belongs to it from llama.cpp's source into "
                f"{shown(folder)}, with {SHA256} in a file named stamp."
            ) from None
        archive = Path(work) / ARCHIVE
        if sha256_of(archive) != SHA256:
            raise SavedError(f"{ARCHIVE} is not the file that was tried: its SHA-256 differs. Nothing was unpacked.")
        root, target = "llama_cpp_python-0.3.36/vendor/llama.cpp/", Path(work) / "source"
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = member.name.startswith(root)
                member.name = member.name.removeprefix(root)
                if inside and member.isfile() and member.name.startswith(parts):
                    tar.extract(member, target, filter="data")
        (target / "stamp").write_text(SHA256)
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)
    return folder


def converter():
    """Return the folder of llama.cpp's converter; fetch it where it is not there."""
    return fetch(CONVERTER, PARTS)


def find_server():
    """Return the path of llama-server, on PATH or built by us; None where there is none."""
    built = SERVER / "build" / "bin" / "llama-server"
    return shutil.which("llama-server") or (str(built) if built.exists() else None)


def build_server():
    """Build llama-server in outputs/llama-server, or go on with a build that was cut off; return its path."""
    if not shutil.which("cmake"):
        raise SavedError(
            "cmake is not here; install it and a C++ compiler (Debian: `apt install cmake g++ ninja-build`)."
        )
    source, build = fetch(SERVER / "source", ("",)), SERVER / "build"
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(["cmake", "-S", str(source), "-B", str(build), *ninja, *CMAKE], "Preparing llama-server's build")
    command = ["cmake", "--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count())]
    print("Building llama-server, some minutes …", flush=True)
    run(command, "Building llama-server")
    return find_server()


def adapter_faults(adapter):
    """Return what an adapter file of llama.cpp has no place for, as parts of a sentence: experts, embeddings, layers."""
    from safetensors import safe_open

    only_safetensors(adapter)
    settings, weights = read_json(adapter / "adapter_config.json"), adapter / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    faults = []
    if settings.get("target_parameters") or any("experts" in name for name in names):
        faults.append("it changes experts, which llama.cpp's adapters cannot hold")
    if others := sorted(name for name in names if "lora_A" not in name and "lora_B" not in name):
        faults.append(f"it holds whole layers, such as {others[0]}")
    if any("embed_tokens" in name or "lm_head" in name for name in names):
        faults.append("it changes embeddings, which llama.cpp's adapters leave out")
    if settings.get("use_dora") or settings.get("use_rslora") or settings.get("rank_pattern"):
        faults.append("it is no plain LoRA of one rank (DoRA, rsLoRA or a rank for each layer)")
    return faults


def stop_tokens(folder):
    """Return {id: text} of the tokens at which a model's generation stops, the tokenizer's own end token first."""
    settings = read_json(folder / "generation_config.json").get("eos_token_id")
    settings = read_json(folder / "config.json").get("eos_token_id") if settings is None else settings
    tokens = read_json(folder / "tokenizer.json").get("added_tokens", [])
    texts = {token["id"]: token["content"] for token in tokens}
    end = read_json(folder / "tokenizer_config.json").get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    found = {
        token: texts[token] for token in (settings if isinstance(settings, list) else [settings]) if token in texts
    }
    return dict(sorted(found.items(), key=lambda item: item[1] != end))


def template_parts(tokenizer):
    """Return the texts that a chat template puts around messages, read off by rendering marks.

    {"bare": before the first user text without a system text, "system", "after_system": around that text (None where
    the template takes none), "between": after a user text whose answer follows, "after_answer": before the next user
    text, "ask": after the last user text}.
    """

    def pieces(*turns):
        roles = ["system"] * (turns[0] == "<S>") + ["user", "assistant"] * 2
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return re.split("|".join(map(re.escape, turns)), text)

    bare, ask = pieces("<U>")
    _, between, after_answer, _ = pieces("<U>", "<A>", "<V>")
    try:
        system, after_system, _ = pieces("<S>", "<U>")
    except Exception:  # templates without a system role raise
        system = after_system = None
    return {"bare": bare, "system": system, "after_system": after_system, "between": between,
            "after_answer": after_answer, "ask": ask}  # fmt: skip


def compose(parts, messages):
    """Return a conversation of texts as `template_parts` would write it: what the Modelfile's template does, in Python."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    turns = [message["content"] for message in messages if message["role"] != "system"]
    text = parts["system"] + system[0] + parts["after_system"] if system else parts["bare"]
    for number, turn in enumerate(turns):
        last = number == len(turns) - 1
        text += turn + (parts["ask"] if last else parts["after_answer"] if number % 2 else parts["between"])
    return text


def modelfile(gguf, parts, stops, bos=""):
    """Return a Modelfile for Ollama: the file, the template in Go's language, the stop tokens, greedy decoding.

    `bos` is a token that the runtime itself puts first, and the template then must not.
    """
    parts = {name: text and text.removeprefix(bos) if bos else text for name, text in parts.items()}
    opening = parts["bare"]
    if parts["system"] is not None:
        system = parts["system"] + "{{ .System }}" + parts["after_system"]
        opening = f"{{{{ if .System }}}}{system}{{{{ else }}}}{opening}{{{{ end }}}}"
    template = (
        opening
        + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + '{{ if eq .Role "user" }}{{ .Content }}{{ if $last }}' + parts["ask"] + "{{ else }}" + parts["between"]
        + '{{ end }}{{ else if eq .Role "assistant" }}{{ .Content }}' + parts["after_answer"] + "{{ end }}{{ end }}"
    )  # fmt: skip
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""', *(f'PARAMETER stop "{stop}"' for stop in stops)]
    return "\n".join([*lines, "PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0", ""])


def what_is_lost(record, outtype, as_adapter, template):
    """Return sentences on what the file will not carry, told before it is written."""
    told = []
    if outtype in ("bf16", "q8_0"):
        told.append(
            f"{outtype} is rounded: greedy replies will differ from the notebook's. f32 and f16 are for comparing."
        )
    if as_adapter:
        told.append("An adapter's file has no tokenizer, template and stop tokens; the base's file must bring them.")
    if record["base"]["load_in_4bit"] is True:
        told.append("It was trained on a base in 4 bits; on another base it differs by the quantisation error.")
    if record["decoding"].get("repetition_penalty", 1.0) != 1.0:
        told.append("The notebook's repetition penalty, which spares the prompt, is not in the file.")
    if "strftime_now" in template:
        told.append("The template asks for today's date; Ollama's Modelfile keeps the date of this conversion.")
    return told


def convert(script, arguments):
    """Run one of llama.cpp's converters; SavedError with its last words if it fails."""
    command = [sys.executable, str(converter() / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise SavedError(f"llama.cpp's converter failed: {(lines or ['it said nothing'])[-1]}")


def read_fields(path):
    """Return {name: value} of a GGUF file's metadata, and its reader."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, reader


def convert_model(folder, target, name, outtype):
    """Write a whole model's GGUF and Modelfile; return (path, what was read back, as sentences)."""
    from transformers import AutoTokenizer

    tokenizer, stops = AutoTokenizer.from_pretrained(folder), stop_tokens(folder)
    path, partial = target / f"{name}-{outtype}.gguf", target / f".{name}-{outtype}.gguf-partial"
    convert("convert_hf_to_gguf.py", [folder, "--outtype", outtype, "--outfile", partial, "--model-name", name])
    parts, (fields, reader) = template_parts(tokenizer), read_fields(partial)
    named = {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot")
             if f"tokenizer.ggml.{key}_token_id" in fields}  # fmt: skip
    if fields.get("tokenizer.chat_template") != tokenizer.chat_template:
        raise SavedError("The file's chat template is not the model's. Do not use it before you know why.")
    if not set(named.values()) <= set(stops):
        raise SavedError(f"The file ends turns at the tokens {named}, the model at {stops}. Do not use it.")
    told = [f"{len(reader.tensors)} tensors, {len(fields['tokenizer.ggml.tokens'])} tokens, the model's chat template",
            f"stops at {', '.join(stops[token] for token in named.values())}"]  # fmt: skip
    if others := [text for token, text in stops.items() if token not in named.values()]:
        told.append(f"to be passed as stop: {', '.join(others)} (the Modelfile does)")
    del reader
    partial.replace(path)
    bos = (tokenizer.bos_token or "") if fields.get("tokenizer.ggml.add_bos_token") else ""
    (target / "Modelfile").write_text(modelfile(path.name, parts, stops.values(), bos), encoding="utf-8")
    return path, told


def convert_adapter(adapter, target, name, outtype):
    """Write an adapter's GGUF; return (path, what was read back, as sentences)."""
    if faults := adapter_faults(adapter):
        raise SavedError(f"{shown(adapter)} cannot become an adapter file: {'; '.join(faults)}. Merge it, or serve it "
                         'with vLLM (README, "From notebook to application").')  # fmt: skip
    record = record_of(adapter)
    base = base_folder(record)
    if base is None:
        raise SavedError(f"The base {record['base']['id']} is not on this disk; its configuration is needed.")
    path, partial = target / f"{name}-adapter-{outtype}.gguf", target / f".{name}-adapter-{outtype}.gguf-partial"
    with tempfile.TemporaryDirectory() as staged:  # without PEFT's model card, and without this machine's paths
        settings = read_json(adapter / "adapter_config.json") | {"base_model_name_or_path": record["base"]["id"]}
        (Path(staged) / "adapter_config.json").write_text(json.dumps(settings))
        (Path(staged) / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")
        convert("convert_lora_to_gguf.py", [staged, "--base", base, "--outtype", outtype, "--outfile", partial])
    fields, reader = read_fields(partial)
    stored = len(reader.tensors)
    del reader
    partial.replace(path)
    return path, [f"{stored} tensors, alpha {fields['adapter.lora.alpha']:g}"]


def make(text, outtype="f16", as_adapter=False):
    """Convert what is saved in a folder; print what is lost, then what was written; return the file's path."""
    saved = find_saved(text, prefer="adapter" if as_adapter else "model")
    if as_adapter and not is_adapter(saved):
        raise SavedError(f"{shown(saved)} is a whole model, no adapter.")
    record, name = record_of(saved), name_of(saved)
    folder, told = (saved, []) if as_adapter else whole_model(saved)
    template = folder / "chat_template.jinja"
    told += what_is_lost(record, outtype, as_adapter, template.read_text() if template.exists() else "")
    print("\n".join(told), end="\n" if told else "", flush=True)
    (MADE / name).mkdir(parents=True, exist_ok=True)
    path, found = (convert_adapter if as_adapter else convert_model)(folder, MADE / name, name, outtype)
    print(f"{shown(path)}: {path.stat().st_size / 1e6:.0f} MB; {'; '.join(found)}")
    server = find_server()
    program = shown(Path(server)) if server and not shutil.which("llama-server") else "llama-server"
    if as_adapter:
        print(f"Serve it beside its base's file: {program} -m BASE.gguf --lora {shown(path)} --jinja")
    else:
        print(f"{program} -m {shown(path)} --jinja")
    print(NO_SERVER if server is None else "It listens on port 8080 and speaks OpenAI's API.")
    if not as_adapter:
        print(f"ollama create {name} -f {shown(path.parent / 'Modelfile')}    (not tried by us)")
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="", help="a run's folder below outputs/, or a model or adapter")
    parser.add_argument("--outtype", choices=OUTTYPES, default="f16", help="f16 unless you say otherwise")
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, for llama-server --lora")
    parser.add_argument("--build-server", action="store_true", help="build llama-server, and do nothing else")
    arguments = parser.parse_args()
    try:
        if arguments.build_server:
            print(shown(Path(build_server())))
            return 0
        make(arguments.folder, arguments.outtype, arguments.adapter)
    except (SavedError, SetupError) as error:
        print(f"gguf: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
