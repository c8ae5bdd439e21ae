"""A stand-in for the model and data set Hub, on this machine alone, so that the full profile can be rehearsed.

    python tools/stand_in_hub.py FOLDER [--tiny|--full] [--models NAME …] -- COMMAND …

builds below FOLDER what is missing of the repositories that the notebooks name, serves it on a loopback port, runs
COMMAND in the full profile with the Hub's address set to that port, and ends with COMMAND's exit status. Nothing is
ever fetched from elsewhere. As a library:

    with Hub(folder, revisions) as hub:
        hub.faults.append(Fault("*/model.safetensors", "cut"))
        …                                                       # hub.url, hub.requests

Ids and revisions are read from the notebooks' parameters. The text of the data sets is ours (data/), file layout and
schema are upstream's. The models have the true architectures and random weights: narrow ones (--tiny), or of the true
shape (--full, tens of gigabytes). `main` and the pinned revision are the same commit here; any other is not found.

gpt-oss is served as OpenAI published it (`openai/gpt-oss-20b`, and Unsloth's copy): experts packed in MXFP4, which
transformers unpacks on a CPU. Tiny, it keeps its 24 layers, so that the layers a notebook names exist.

The pre-quantised gpt-oss is so only in part. Upstream's repository stores every expert as an NF4 linear layer of its
own (`experts.gate_up_projs.N`), which only Unsloth's classes for a GPU can read; on a CPU, Unsloth loads transformers'
own class, whose experts are fused tensors of other names. Ours holds NF4 attention, with bitsandbytes' quantisation
state as upstream, and fused experts in 16 bits, which loads on a CPU. At full shape on a GPU (--full) it has upstream's
layout. Its weights are those of the MXFP4 repository, unpacked; a merge asks for that one too.

Repositories that no notebook names, but that Unsloth may ask for in their place, are served too (`relatives`).

What a client pushes with a token goes to `uploads` (FOLDER/…/pushed unless another folder is given): models alone, text
inside the commit, big files by git LFS, as huggingface_hub sends them without Xet. A private repository is for those
who bring a token.
"""

import argparse
import base64
import fnmatch
import functools
import gc
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import parameters_of  # noqa: E402
from random_models import SHAPES, copy_tokenizer, make_model, read_unpacked, write_split_nf4  # noqa: E402

PREQUANTISED = re.compile(r"(-unsloth)?-bnb-4bit$")
BIG_SUFFIXES = {".safetensors", ".parquet", ".bin"}  # what the Hub stores beside git, at any size
BIG_BYTES = 10 * 2**20  # and whatever is larger than this
KINDS = ("models", "datasets")


# What the notebooks ask for


def parameters(number):
    """Return the values of a notebook's parameters cell in the full profile, by name."""
    stated = parameters_of(next((PROJECT / "NoteBooks").glob(f"{number}_*.ipynb")))
    return {name: value["full"] if isinstance(value, dict) and set(value) == {"full", "rehearsal"} else value
            for name, value in stated.items()}  # fmt: skip


def pinned_models():
    """Return {id: revision} of the models that the four notebooks load, on a small card too."""
    read = [parameters(number) for number in ("01", "02", "03", "04")]
    pinned = {values["MODEL"]: values["MODEL_REVISION"] for values in read}
    return pinned | {read[0]["SMALL_CARD_MODEL"]: read[0]["SMALL_CARD_REVISION"]}


def pinned_datasets():
    """Return {id: revision} of the notebooks' data sets; notebook 03 reads books and has none."""
    first, second, fourth = (parameters(number) for number in ("01", "02", "04"))
    pinned = {first["DATASET"]: first["DATASET_REVISION"]}
    pinned |= {name: revision for name, revision, _ in second["SOURCES"].values()}
    return pinned | {name: fourth["DATASET_REVISION"] for name, _ in fourth["DATASET"].values()}


@functools.cache
def relatives(name):
    """Return {id: whether it is in 4 bits} of the repositories that Unsloth may take in a model's place.

    The 16-bit twin of a pre-quantised one is what a merge asks for. The others stand in the table of Unsloth's loader
    for GPUs, which uses them unless it is told to take the name as it is.
    """
    table = Path(importlib.util.find_spec("unsloth").origin).parent / "models" / "mapper.py"
    mapper, low = runpy.run_path(str(table)), name.lower()
    found = {mapper["FLOAT_TO_INT_MAPPER"].get(low): True, mapper["MAP_TO_UNSLOTH_16bit"].get(low): False,
             PREQUANTISED.sub("", name): False}  # fmt: skip
    return {other: in_4bit for other, in_4bit in found.items() if other not in (None, name)}


def all_revisions():
    """Return {"models/owner/name" or "datasets/owner/name": commit} of all that can be served."""
    commits = {f"models/{name}": revision for name, revision in pinned_models().items()}
    for name in pinned_models():
        for other in relatives(name):  # no notebook pins these: any commit will do
            commits.setdefault(f"models/{other}", hashlib.sha1(other.encode()).hexdigest())
    return commits | {f"datasets/{name}": revision for name, revision in pinned_datasets().items()}


# What is served


def build_once(target, write):
    """Let `write(folder)` fill a folder beside `target`, then move it there; nothing if `target` exists."""
    if target.is_dir():
        return
    partial = target.with_name(f".{target.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    os.replace(partial, target)


def shape_of(name):
    """Return the name of the shape that a model's id spells."""
    return next(shape for shape in SHAPES if shape.lower() in name.lower())


def write_prequantised(source, folder):
    """Write the model in `source` with its linear layers in NF4, as bitsandbytes stores it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    place = "cuda" if torch.cuda.is_available() else "cpu"
    if "mxfp4" in (source / "config.json").read_text():
        unpacked = folder.with_name(f"{folder.name}-unpacked")
        read_unpacked(source, place).save_pretrained(unpacked, save_original_format=False)  # else without experts
        copy_tokenizer(source, unpacked)
        write_prequantised(unpacked, folder)
        return shutil.rmtree(unpacked)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head", "router"])  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=nf4, device_map=place
    )
    model.save_pretrained(folder)
    copy_tokenizer(source, folder)


def copy_model(source, folder):
    """Make a second name of a model, without a second copy of its bytes."""
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=os.link)


def build_models(root, tiny, chosen=None):
    """Write models below root/models: all for None, else those whose id or shape was chosen.

    Beside them what Unsloth may take in their place, unless a model was chosen by its id: that one then stands alone.
    """
    import torch

    for name in pinned_models():
        shape, plain = shape_of(name), root / "models" / PREQUANTISED.sub("", name)
        if chosen is not None and not {name, shape} & set(chosen):
            continue
        build_once(plain, functools.partial(make_model, shape, tiny=tiny))
        in_its_place = {} if name in (chosen or ()) else relatives(name)
        for other, in_4bit in {name: bool(PREQUANTISED.search(name)), **in_its_place}.items():
            split = in_4bit and "gpt-oss" in name and not tiny and torch.cuda.is_available()
            write = write_split_nf4 if split else write_prequantised if in_4bit else copy_model
            build_once(root / "models" / other, functools.partial(write, plain))
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()  # the card is the command's, not ours


def read_rows(name):
    """Return the rows of a file in data/."""
    return [json.loads(line) for line in (PROJECT / "data" / name).read_text(encoding="utf-8").splitlines()]


def write_parquet(path, rows):
    """Write rows as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path, rows):
    """Write rows as one JSONL file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_card(folder, configurations):
    """Write a README whose head names {configuration: {split: path}}, as the Hub's data sets do."""
    lines = ["---", "configs:"]
    for configuration, splits in configurations.items():
        lines += [f"- config_name: {configuration}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "", "Served by the stand-in Hub.", ""]))


def write_thinking(folder):
    """Write Multilingual-Thinking: one Parquet file."""
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", read_rows("multilingual_thinking.jsonl"))
    write_card(folder, {"default": {"train": "data/train-*"}})


def write_emoji(folder):
    """Write DPO-zh-en-emoji: the one JSONL file, of those side by side upstream, that the notebook names."""
    write_jsonl(folder / parameters("02")["SOURCES"]["emoji"][2], read_rows("emoji_chat.jsonl"))
    (folder / "README.md").write_text("Served by the stand-in Hub.\n")


def write_cmath(folder):
    """Write CMATH: two JSONL files, a third of the rows for validation, the rest for the test."""
    rows = read_rows("cmath.jsonl")
    write_jsonl(folder / "cmath_dev.jsonl", rows[: len(rows) // 3])
    write_jsonl(folder / "cmath_test.jsonl", rows[len(rows) // 3 :])
    write_card(folder, {"default": {"validation": "cmath_dev.jsonl", "test": "cmath_test.jsonl"}})


def write_mawps(folder):
    """Write MAWPS: one Parquet file."""
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", read_rows("mawps.jsonl"))
    write_card(folder, {"default": {"train": "data/train-*"}})


def write_gsm8k(folder):
    """Write GSM8K: the configurations main and socratic, each with a training and a test split."""
    held_out = read_rows("gsm8k_held_out.jsonl")
    for configuration, name in (("main", "gsm8k.jsonl"), ("socratic", "gsm8k_socratic.jsonl")):
        write_parquet(folder / configuration / "train-00000-of-00001.parquet", read_rows(name))
        write_parquet(folder / configuration / "test-00000-of-00001.parquet", held_out)
    write_card(folder, {configuration: {split: f"{configuration}/{split}-*" for split in ("train", "test")}
                        for configuration in ("main", "socratic")})  # fmt: skip


def build_datasets(root):
    """Write all data sets below root/datasets."""
    first, second, fourth = (parameters(number) for number in ("01", "02", "04"))
    sources = {pool: place[0] for pool, place in second["SOURCES"].items()}
    writers = {first["DATASET"]: write_thinking, sources["emoji"]: write_emoji, sources["cmath"]: write_cmath,
               sources["mawps"]: write_mawps, fourth["DATASET"]["main"][0]: write_gsm8k}  # fmt: skip
    for name, write in writers.items():
        build_once(root / "datasets" / name, write)


def stamp(paths):
    """Return one hash of these files' contents."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(paths))).hexdigest()


def prepare(folder, tiny=True, chosen=None):
    """Build below `folder` what is missing or made of other sources than today's; return what a Hub can serve."""
    root = folder.resolve() / ("tiny" if tiny else "full")
    tools, tokens = PROJECT / "tools", (PROJECT / "outputs" / "rehearsal").glob("*/*token*.json")
    sources = {"datasets": [*(PROJECT / "data").glob("*.jsonl"), tools / "stand_in_hub.py"],
               "models": [*tokens, tools / "random_models.py"]}  # fmt: skip
    for kind, paths in sources.items():
        record, now = root / f"{kind}.sha256", stamp(paths)
        if not record.exists() or record.read_text() != now:
            for stale in (root / kind, root / "home"):  # a cache knows commits, which stay the same here
                shutil.rmtree(stale, ignore_errors=True)
            root.mkdir(parents=True, exist_ok=True)
            record.write_text(now)
    build_datasets(root)
    build_models(root, tiny, chosen)
    return root


# The server


@dataclass
class Fault:
    """What goes wrong, for the next `times` requests whose path matches `pattern` (as file names are matched).

    gated       401 without a token, 403 with one, as for a model whose licence was not accepted
    missing     404, no such repository
    read_only   403, as for a token that may read and not write
    busy        429, and the client is told to wait `after` seconds (None: 1)
    down        503, and the same if `after` is given
    cut         the connection ends when `share` of the file went through; asked for the rest, at once
    wrong_hash  a body of the right length with other bytes, under the right ETag
    """

    pattern: str
    kind: str
    times: int = 1
    after: int | None = None
    share: float = 0.5

    def __post_init__(self):
        if self.kind not in ("gated", "missing", "read_only", "busy", "down", "cut", "wrong_hash"):
            raise ValueError(f"There is no fault of the kind {self.kind!r}.")


@functools.lru_cache(maxsize=4096)
def hashes(path, size, changed):
    """Return (git's blob hash, SHA-256) of a file; size and time of change make a changed file a new question."""
    git, plain = hashlib.sha1(f"blob {size}\0".encode()), hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(2**22):
            git.update(block)
            plain.update(block)
    return git.hexdigest(), plain.hexdigest()


def describe(path, name):
    """Return a file's entry in a listing: its blob, and for a big file the pointer that git holds in its place."""
    state = path.stat()
    git, plain = hashes(path, state.st_size, state.st_mtime_ns)
    entry = {"type": "file", "oid": git, "size": state.st_size, "path": name}
    if path.suffix in BIG_SUFFIXES or state.st_size > BIG_BYTES:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{plain}\nsize {state.st_size}\n".encode()
        entry["oid"] = hashlib.sha1(f"blob {len(pointer)}\0".encode() + pointer).hexdigest()
        entry["lfs"] = {"oid": plain, "size": state.st_size, "pointerSize": len(pointer)}
    return entry


def describe_folder(name):
    """Return a folder's entry in a listing."""
    return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}


@dataclass
class Hub:
    """The server: `folder` holds models/owner/name and datasets/owner/name, `revisions` their commits."""

    folder: Path
    revisions: dict
    faults: list = field(default_factory=list)
    requests: list = field(default_factory=list)  # (method, path, status), in the order of arrival
    uploads: Path = None  # where pushed repositories are laid, models/owner/name; None: below `folder`
    private: dict = field(default_factory=dict)  # {"models/owner/name": whether it is private} of those pushed

    def __enter__(self):
        self.lock, self.revisions = threading.Lock(), dict(self.revisions)
        self.uploads = self.uploads or self.folder / "pushed"
        self.names = {name.lower(): name for name in self.revisions}  # the Hub takes an id in any case
        handler = type("Answers", (Answers,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def take_fault(self, path, *kinds):
        """Return a fault of these kinds that is due for this path, and count it; None if there is none."""
        with self.lock:
            for fault in self.faults:
                if fault.kind in kinds and fault.times > 0 and fnmatch.fnmatch(path, fault.pattern):
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home):
        """Return the environment of a process that takes this server for the Hub, its cache below `home`."""
        inherited = {name: value for name, value in os.environ.items()
                     if name not in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE",
                                     "TRANSFORMERS_OFFLINE")}  # fmt: skip
        return {**inherited, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
                "PROFILE": "full", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip


class Refusal(Exception):
    """An answer other than the one asked for: a status, the Hub's code for it, a sentence."""

    def __init__(self, status, code, message, **headers):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Answers(BaseHTTPRequestHandler):
    """One request to the Hub, answered from a folder."""

    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        """Say nothing: `hub.requests` has it all."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def answer(self):
        """Answer with what the path asks for, or refuse as the Hub does."""
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.refuse_by_fault(unquote(address.path))
            parts = [unquote(part) for part in address.path.strip("/").split("/")]
            if self.command == "PUT" or parts[-1] in ("create", "validate-yaml", "batch") or "commit" in parts[4:5]:
                self.answer_push(parts, body)
            elif parts[0] == "api" and len(parts) >= 4 and parts[1] in KINDS:
                self.answer_api(parts[1], "/".join(parts[2:4]), parts[4:], parse_qs(address.query), body)
            elif "resolve" in parts or parts[0] == "big-files":
                self.answer_file(parts)
            else:
                raise Refusal(404, None, "There is nothing at this address.")
        except Refusal as refusal:
            self.send(refusal.status, json.dumps({"error": str(refusal)}).encode(), **refusal.headers)

    def refuse_by_fault(self, path):
        """Raise a Refusal if a fault that refuses is due for this path."""
        fault = self.hub.take_fault(path, "gated", "missing", "read_only", "busy", "down")
        if fault is None:
            return
        if fault.kind == "gated":
            status, remedy = (403, "you are not on its list") if "Authorization" in self.headers else (401, "log in")
            raise Refusal(status, "GatedRepo", f"Access to this repository is restricted: {remedy}.")
        if fault.kind == "missing":
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if fault.kind == "read_only":
            raise Refusal(403, None, "Forbidden: you must use a write token to upload to a repository.")
        if fault.kind == "busy":
            seconds = 1 if fault.after is None else fault.after
            raise Refusal(429, None, "Too many requests", **{
                "Retry-After": str(seconds), "RateLimit": f'"resolvers";r=0;t={seconds}',
                "RateLimit-Policy": '"fixed window";"resolvers";q=3000;w=300'})  # fmt: skip
        wait = {} if fault.after is None else {"Retry-After": str(fault.after)}
        raise Refusal(503, None, "The service is not available for now.", **wait)

    def repository(self, kind, name, revision=None):
        """Return (folder, commit) of a repository; refuse if it, or the revision, does not exist."""
        known = self.hub.names.get(f"{kind}/{name}".lower(), "")
        commit = self.hub.revisions.get(known)
        folder = (self.hub.uploads if known in self.hub.private else self.hub.folder) / known
        hidden = self.hub.private.get(known) and "Authorization" not in self.headers
        if commit is None or hidden or not folder.is_dir():
            if "Authorization" in self.headers:
                raise Refusal(404, "RepoNotFound", "Repository not found")
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        if revision not in (None, "main", commit):
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return folder, commit

    def answer_api(self, kind, name, rest, query, body):
        """Answer a question about a repository: what it is, what it holds, its branches."""
        question, revision = rest[0] if rest else "", rest[1] if len(rest) > 1 else None
        if question not in ("", "revision", "tree", "refs", "paths-info", "preupload"):
            raise Refusal(404, None, "This address of the Hub has no stand-in.")
        folder, commit = self.repository(kind, name, revision)
        if question == "preupload":
            found = {"files": [self.way_of(folder, file) for file in json.loads(body)["files"]]}
        elif question in ("", "revision"):
            found = self.about(kind, name, folder, commit, "blobs" in query)
        elif question == "refs":
            found = {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}],
                     "converts": [], "tags": []}  # fmt: skip
        elif question == "tree":
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            found = self.listing(folder, "/".join(rest[2:]), deep)
        else:
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            entries = {entry["path"]: entry for entry in self.listing(folder, "", True)}
            found = [entries[path] for path in asked if path in entries]
        self.send(200, json.dumps(found).encode(), **{"Content-Type": "application/json"})

    def about(self, kind, name, folder, commit, with_blobs):
        """Return what the Hub says of a repository as a whole."""
        siblings = []
        for entry in self.listing(folder, "", True):
            if entry["type"] == "file":
                siblings.append({"rfilename": entry["path"]})
                if with_blobs:
                    siblings[-1] |= {"blobId": entry["oid"], "size": entry["size"]}
                    if lfs := entry.get("lfs"):
                        siblings[-1]["lfs"] = {
                            "sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}  # fmt: skip
        common = {"_id": commit[:24], "id": name, "author": name.split("/")[0], "sha": commit,
                  "private": self.hub.private.get(f"{kind}/{name}", False), "gated": False, "disabled": False,
                  "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
                  "createdAt": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z"}  # fmt: skip
        return {**common, **({"modelId": name} if kind == "models" else {})}

    def listing(self, folder, below, deep):
        """Return the entries of a folder in a repository, with all that lies deeper if asked."""
        start = (folder / below).resolve()
        if not start.is_relative_to(folder.resolve()) or not start.is_dir():
            raise Refusal(404, "EntryNotFound", f"{below} does not exist")
        paths = sorted(start.rglob("*") if deep else start.iterdir())
        names = {path: path.relative_to(folder.resolve()).as_posix() for path in paths}
        return [describe_folder(name) if path.is_dir() else describe(path, name) for path, name in names.items()]

    def way_of(self, folder, file):
        """Return how a client is to send a file: inside the commit, or beside git; `oid` if it is there already."""
        big, path = Path(file["path"]).suffix in BIG_SUFFIXES or file["size"] > BIG_BYTES, folder / file["path"]
        return {"path": file["path"], "uploadMode": "lfs" if big else "regular", "shouldIgnore": False,
                "oid": describe(path, file["path"])["oid"] if path.is_file() else None}  # fmt: skip

    def answer_push(self, parts, body):
        """Make a repository, take a big file, or take a commit; refuse who brings no token."""
        if "Authorization" not in self.headers and self.command != "PUT":  # whose address is the secret
            raise Refusal(401, None, "Invalid username or password.")
        objects, found = self.hub.uploads / "objects", {}
        if self.command == "PUT":  # a big file, to the address that `batch` gave
            if hashlib.sha256(body).hexdigest() != parts[-1]:
                raise Refusal(400, None, "These are not the bytes that were announced.")
            objects.mkdir(parents=True, exist_ok=True)
            (objects / parts[-1]).write_bytes(body)
        elif parts[-1] == "validate-yaml":
            found = {"errors": [], "warnings": []}
        elif parts[-1] == "create":
            asked = json.loads(body)
            name = f"models/{asked['organization']}/{asked['name']}"
            found = {"url": f"{self.hub.url}/{name.removeprefix('models/')}", "name": name}
            if name.lower() in self.hub.names:
                return self.send(409, json.dumps(found).encode(), **{"Content-Type": "application/json"})
            (self.hub.uploads / name).mkdir(parents=True)
            self.hub.private[name] = asked.get("visibility") == "private"
            self.hub.names[name.lower()], self.hub.revisions[name] = name, hashlib.sha1(body).hexdigest()
        elif parts[-1] == "batch":
            found = {"transfer": "basic", "objects": json.loads(body)["objects"]}
            for file in found["objects"]:
                if not (objects / file["oid"]).exists():
                    file["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{file['oid']}"}}
        else:
            folder, _ = self.repository(parts[1], "/".join(parts[2:4]))
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    continue
                value, path = line["value"], folder / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                big = line["key"] == "lfsFile"
                path.write_bytes((objects / value["oid"]).read_bytes() if big else base64.b64decode(value["content"]))
            commit = self.hub.revisions["/".join(parts[1:4])] = hashlib.sha1(body).hexdigest()
            found = {"commitUrl": f"{self.hub.url}/{'/'.join(parts[2:4])}/commit/{commit}", "commitOid": commit}
        self.send(200, json.dumps(found).encode(), **{"Content-Type": "application/json"})

    def answer_file(self, parts):
        """Answer with a file's bytes; a big one first with the address that has them, as the Hub does."""
        direct = parts[0] == "big-files"
        kind, parts = (parts[1], parts[2:]) if direct else ("models", parts)
        if parts[0] == "datasets" and not direct:
            kind, parts = "datasets", parts[1:]
        if len(parts) < 5 or parts[2] != "resolve":
            raise Refusal(404, None, "There is nothing at this address.")
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        folder, commit = self.repository(kind, name, revision)
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        entry = describe(path, file)
        lfs = entry.get("lfs")
        headers = {"ETag": f'"{lfs["oid"] if lfs else entry["oid"]}"', "X-Repo-Commit": commit}
        if lfs and not direct:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(lfs["size"])}
            place = quote(f"/big-files/{kind}/{name}/resolve/{commit}/{file}")
            self.send(302, b"", Location=f"{self.hub.url}{place}", **headers)
        else:
            self.send_file(path, headers)

    def send_file(self, path, headers):
        """Send a file or the range of it that was asked for; faults of the body happen here."""
        size, start = path.stat().st_size, 0
        end = size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size)
            if start >= size:
                raise Refusal(416, None, "This range is not in the file.", **{"Content-Range": f"bytes */{size}"})
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        self.send_head(206 if asked else 200, {"Content-Type": "application/octet-stream", **headers})
        if self.command == "HEAD":
            return
        fault = self.hub.take_fault(unquote(urlsplit(self.path).path), "cut", "wrong_hash")
        if fault and fault.kind == "cut":
            end, self.close_connection = min(end, max(start, int(size * fault.share))), True
        with path.open("rb") as stream:
            stream.seek(start)
            while start < end:
                block = stream.read(min(2**20, end - start))
                start += len(block)
                self.wfile.write(bytes(byte ^ 1 for byte in block) if fault and fault.kind == "wrong_hash" else block)

    def send(self, status, body, **headers):
        """Send a small answer."""
        self.send_head(status, {"Content-Type": "text/plain", **headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_head(self, status, headers):
        """Send status and headers, and put the request into the log."""
        with self.hub.lock:
            self.hub.requests.append((self.command, unquote(self.path), status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def main():
    """Build what is missing, serve it, run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where repositories and the process's cache lie")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="narrow models of two layers (the default)")
    size.add_argument("--full", action="store_true", help="models of the true shape")
    parser.add_argument("--models", nargs="*", choices=[*sorted(SHAPES), *pinned_models()], metavar="MODEL",
                        help=f"these alone, by id or by shape ({', '.join(sorted(SHAPES))})")  # fmt: skip
    own, command = sys.argv[1:], []
    if "--" in own:
        own, command = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    if not command:
        parser.error("after -- comes the command to run")
    root = prepare(options.folder, tiny=not options.full, chosen=options.models)
    with Hub(root, all_revisions()) as hub:
        return subprocess.run(command, env=hub.environment(root / "home")).returncode


if __name__ == "__main__":
    sys.exit(main())
