"""Serve what a notebook saved behind an OpenAI-compatible address: `make serve FOLDER=outputs/02_qwen3_emoji_math`.

    python tools/serve.py FOLDER [--port 8000] [--device cpu]

The engine is `transformers serve`, in an environment of its own (outputs/serve-env: the packages of
requirements-serve.txt, on top of .finetuning). On a CPU it computes in 32 bits. The merged copy is served; an adapter
is merged first. Beside it stands its base, where that is on the disk, as NAME-base: the two answer the same questions,
which shows that what is served was trained. The server gets a Hub cache of its own with these two models in it
(outputs/serving/NAME/hub, links only), is told to stay off the network, and serves nothing else. It listens on this
machine alone. Ctrl-C ends it.

The engine takes reasoning and tool calls out of a reply where the tokenizer says how; ours gets that for gpt-oss and
Qwen (`RESPONSE_TEMPLATES`), since the engine's own go by the class of the model, and the stand-ins are of another.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bootstrap import ENVIRONMENT, SetupError, run, uv_environment  # noqa: E402
from saved import (  # noqa: E402
    MADE,
    PROJECT,
    TOKENIZER,
    SavedError,
    base_folder,
    find_saved,
    is_adapter,
    messages_of,
    name_of,
    only_safetensors,
    read_json,
    record_of,
    shown,
    whole_model,
)

OWN = PROJECT / "outputs" / "serve-env"
REQUIREMENTS = PROJECT / "requirements-serve.txt"
QUESTION = "What is a good name for a small grey cat?"
HEADER = r"(?:<\|start\|>assistant)?"
NAMED = r"(?: to=functions\.(?P<name>[\w.-]+)<\|channel\|>commentary|<\|channel\|>commentary to=functions\.(?P<name>[\w.-]+))"
CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
AS_JSON = {"content": "json", "content_args": {"allow_non_json": True}, "repeats": True, "transform": CALL}
RESPONSE_TEMPLATES = {  # family: in transformers' format; a text outside all marks is content, so that nothing is lost
    "harmony": {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|start|>assistant",
        "fields": {
            "thinking": {
                "open_pattern": HEADER + r"<\|channel\|>analysis<\|message\|>",
                "close_pattern": r"<\|end\|>|<\|return\|>",
            },
            "tool_calls": {
                "open_pattern": HEADER + NAMED + r"(?: ?(?:<\|constrain\|>)?\w+)?<\|message\|>",
                "close_pattern": r"<\|call\|>|<\|end\|>|<\|return\|>",
                **AS_JSON,
            },
            "header": {"open_pattern": HEADER + r"<\|channel\|>final<\|message\|>", "close_pattern": ""},
            "content": {"close_pattern": r"<\|return\|>|<\|end\|>|<\|endoftext\|>"},
        },
    },
    "qwen": {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "thinking": {"open": "<think>", "close": "</think>"},
            "tool_calls": {
                "open_pattern": r'\s*<tool_call>\s*\{\s*"name":\s*"(?P<name>[^"]+)",\s*"arguments":\s*',
                "close_pattern": r"\}\s*</tool_call>",
                **AS_JSON,
            },
            "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"},
        },
    },
}


def response_template(family, chat_template):
    """Return how the engine is to take a family's reply apart, or None: by the record's family, else by the template."""
    signs = {"harmony": "<|channel|>", "qwen": "<|im_start|>"}
    for name, sign in signs.items():
        if family.startswith(name) or (not family and sign in chat_template):
            return RESPONSE_TEMPLATES[name]
    return None


def environment(own=OWN, requirements=REQUIREMENTS):
    """Return the interpreter of an environment on top of .finetuning, made anew where its list of packages changed.

    It sees the packages of .finetuning, and has those of `requirements` before them.
    """
    below, stamp, python = ENVIRONMENT / "bin" / "python", own / "stamp", own / "bin" / "python"
    packages = next(ENVIRONMENT.glob("lib/python3*/site-packages"), None)
    if packages is None or not below.exists():
        raise SetupError(f"{shown(ENVIRONMENT)} is not there. Run `make setup` first.")
    lists = [requirements.read_bytes(), (PROJECT / "requirements.lock.txt").read_bytes(), str(packages).encode()]
    wanted = hashlib.sha256(b"\0".join(lists)).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Making {shown(own)} …", flush=True)
    run([str(below), "-m", "venv", "--without-pip", "--clear", str(own)], f"Making {shown(own)}")
    uv = shutil.which("uv") or shutil.which(str(ENVIRONMENT / "bin" / "uv"))
    pip = [str(below), "-m", "pip"]
    install = [uv, "pip", "install", "--python", str(python)] if uv else [*pip, "--python", str(python), "install"]
    purpose = f"Installing {requirements.name} (is a package registry reachable?)"
    run([*install, "--no-deps", "-r", str(requirements)], purpose, uv_environment(pip) if uv else None)
    next(own.glob("lib/python3*/site-packages")).joinpath("finetuning.pth").write_text(f"{packages.resolve()}\n")
    stamp.write_text(wanted)
    return python


def put_in_cache(cache, name, weights, tokenizer, template):
    """Lay a model into a Hub cache as links: weights and configuration from one folder, the tokenizer from another."""
    commit = hashlib.sha256(f"{weights}\0{tokenizer}".encode()).hexdigest()[:40]
    repository = cache / f"models--{name}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in weights.iterdir():
        if path.name not in TOKENIZER and path.suffix in (".json", ".safetensors"):
            (snapshot / path.name).symlink_to(path)
    for path in (tokenizer / part for part in TOKENIZER):
        if path.exists() and path.name != "tokenizer_config.json":
            (snapshot / path.name).symlink_to(path)
    settings = read_json(tokenizer / "tokenizer_config.json")
    settings |= {"response_template": template} if template else {}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(settings))


def make_cache(folder, name, record):
    """Make the server's Hub cache; return the names of its models, the tuned one first, then its base where it is here."""
    cache = MADE / name / "hub"
    shutil.rmtree(cache, ignore_errors=True)
    chat = folder / "chat_template.jinja"
    template = response_template(record["family"], chat.read_text(encoding="utf-8") if chat.exists() else "")
    put_in_cache(cache, name, folder, folder, template)
    base = base_folder(record) if record["base"]["id"] else None
    if base is None or base.resolve() == folder.resolve():
        return [name]
    only_safetensors(base)
    put_in_cache(cache, f"{name}-base", base, folder, template)
    return [name, f"{name}-base"]


def check_port(port):
    """Raise SavedError if another program listens on a port of this machine, or the port is not ours to take."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SavedError(
                f'Port {port} cannot be used ({reason}). Choose another: OPTIONS="--port {min(port, 60000) + 1}".'
            ) from None


def within(settings):
    """Run the engine, in its own environment; it knows the models that are named, and no other."""
    from fastapi import HTTPException
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager

    names = settings.pop("names")

    def known(model):
        name = str(model).removesuffix("@main")
        if name not in names:
            raise HTTPException(404, f"There is no model {name} here; there are {', '.join(names)}.")
        return f"{name}@main"

    ModelManager.process_model_name = staticmethod(known)
    Serve(**settings)


def ask(address, body=None, timeout=600):
    """Return the JSON that an address answers with, to a GET or, where there is a body, to a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def wait_until_ready(process, root, name, log):
    """Wait until a server says that it lives and has answered one token; SavedError with its last words if it ended."""
    while process.poll() is None:
        try:
            ask(f"{root}/health", timeout=5)
            question = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            ask(f"{root}/v1/chat/completions", question)
            return
        except urllib.error.HTTPError as error:
            raise SavedError(f"The server refuses {name}: {error.read().decode()[:200]} ({shown(log)})") from None
        except OSError:
            time.sleep(0.3)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise SavedError(f"The server ended before it answered: {(lines or ['it said nothing'])[-1]} ({shown(log)})")


def start(text, port=8000, device="cpu"):
    """Start a server on what was saved; return (process, address, names of its models, record), when it answers."""
    check_port(port)
    saved = find_saved(text)
    folder, told = whole_model(saved)
    record, name = record_of(saved), name_of(saved)
    if not is_adapter(saved) and record["base"]["load_in_4bit"] is True:
        told.append("It was trained on a base in 4 bits and merged into 16-bit weights.")
    print("\n".join(told), end="\n" if told else "", flush=True)
    try:
        python = environment()
    except (OSError, SetupError) as error:
        raise SavedError(f"{error} Without {shown(OWN)} nothing is served.") from None
    names, log = make_cache(folder, name, record), MADE / name / "server.log"
    settings = {"names": names, "host": "127.0.0.1", "port": port, "device": device, "model_timeout": -1}
    settings |= {"dtype": "float32" if device == "cpu" else "auto"}
    own = {
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "2000"),
        "HF_HUB_CACHE": str(MADE / name / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(python), __file__, "--within", json.dumps(settings)],
            cwd=MADE / name,
            env={**os.environ, **own, "TQDM_DISABLE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for us to handle
        )
    root = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, root, name, log)
    except BaseException:
        stop(process)
        raise
    return process, f"{root}/v1", names, record


def stop(process):
    """End a server: gently, and after ten seconds not."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def curl_line(address, name, record, question=QUESTION):
    """Return a shell command that asks a served model a question as its training put it."""
    body = {"model": name, "messages": messages_of(record, question), "temperature": 0, "max_tokens": 64}
    text = json.dumps(body, ensure_ascii=False)
    return f"curl -s {address}/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(text)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="", help="a run's folder below outputs/, or a model or adapter")
    parser.add_argument("--port", type=int, default=8000, help="8000 unless you say otherwise")
    parser.add_argument("--device", default="cpu", help="cpu (in 32 bits) unless you say otherwise, such as cuda:0")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.within:
        return within(json.loads(arguments.within))
    for ends in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs are started without it
        signal.signal(ends, signal.default_int_handler)
    process, began = None, time.monotonic()
    try:
        process, address, names, record = start(arguments.folder, arguments.port, arguments.device)
        print(f"Ready after {time.monotonic() - began:.0f} s: {address}, model {' and '.join(names)}\n")
        print(curl_line(address, names[0], record) + "\n")
        if record["decoding"].get("repetition_penalty", 1.0) != 1.0:
            print("The notebook measured with a repetition penalty on the reply alone; the server decodes without.")
        print("Ctrl-C ends it.", flush=True)
        process.wait()
        raise SavedError(f"The server ended by itself; {shown(MADE / names[0] / 'server.log')} says why.")
    except SavedError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nserve: ended.", file=sys.stderr)
        return 0
    finally:
        if process is not None:
            stop(process)


if __name__ == "__main__":
    sys.exit(main())
