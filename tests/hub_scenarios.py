"""What the installed libraries and the notebooks do against the stand-in Hub: run by test_stand_in_hub.py.

    python tests/hub_scenarios.py FOLDER

serves what stand_in_hub.prepare built in FOLDER. The server starts before anything reads its address, which the
libraries do when they are imported. Every scenario has a cache of its own; one JSON object is printed at the end:
{scenario: what came of it}.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tools"), str(PROJECT / "tests")]
import stand_in_hub  # noqa: E402
from stand_in_hub import Fault, Hub  # noqa: E402

QWEN = "unsloth/Qwen3-4B-Instruct-2507"
GPT_OSS = "unsloth/gpt-oss-20b-unsloth-bnb-4bit"  # the one whose weights take more than one block of a download
GEMMA = "google/gemma-2-9b-it"
GSM8K = "openai/gsm8k"
THINKING = "HuggingFaceH4/Multilingual-Thinking"
WEIGHTS = f"*{QWEN}*model.safetensors"
TOKEN = "hf_of_nobody"


def notebook(number):
    """Return a namespace with a notebook's own road to the Hub, its data and its model."""
    from notebook_code import lift

    names = {"01": ["check_model", "PACKED", "packing", "weights_of", "weight_gib", "read_rows", "read_jsonl", "verify_download", "only_safetensors", "write_file", "check_push", "model_card", "push_to_hub"],
             "02": ["read_source", "read_lines", "verify_download", "only_safetensors"],
             "04": ["read_form", "read_rows", "read_jsonl", "verify_download", "only_safetensors"]}[number]  # fmt: skip
    path = next((PROJECT / "NoteBooks").glob(f"{number}_*.ipynb"))
    heavy = ("unsloth", "trl", "peft", "lingua", "matplotlib", "IPython", "safetensors", "ipywidgets", "emoji")
    space = lift(path, *names, without=heavy)
    space.update(ROOT=PROJECT, gpu=None, DEVICE="CPU", LOAD_IN_4BIT=True,
                 DATASET=stand_in_hub.parameters("04")["DATASET"],
                 DATASET_REVISION=stand_in_hub.parameters("04")["DATASET_REVISION"])  # fmt: skip
    return space


def sentence(call, *arguments):
    """Return the message of the NotebookError that a call ends with, or what else came of it."""
    try:
        return f"no error: {str(call(*arguments))[:200]}"
    except Exception as error:
        return str(error) if type(error).__name__ == "NotebookError" else f"{type(error).__name__}: {error}"


def error_of(call, *arguments, **options):
    """Return the name of the exception that a call ends with, or None."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__


class Scenarios:
    """Each method is a scenario: it gets a fresh cache and a server without faults, and returns what it saw."""

    def __init__(self, hub, cache):
        self.hub, self.cache, self.waits = hub, cache, []
        self.models, self.datasets = stand_in_hub.pinned_models(), stand_in_hub.pinned_datasets()
        self.notebooks = {number: notebook(number) for number in ("01", "02", "04")}

    def digest(self, path):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def weights(self, name=QWEN):
        """Download a model's weights; return whether they are the server's, byte for byte."""
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(name, "model.safetensors", revision=self.models[name])
        return self.digest(path) == self.digest(self.hub.folder / "models" / name / "model.safetensors")

    def verify(self, repo, revision, parameter="MODEL"):
        return sentence(self.notebooks["01"]["verify_download"], repo, revision, parameter)

    def datasets_load(self):
        from datasets import load_dataset

        counts = {}
        for name, revision in self.datasets.items():
            for configuration in ("main", "socratic") if name == GSM8K else (None,):
                file = stand_in_hub.parameters("02")["SOURCES"]["emoji"][2]
                files = {"data_files": file} if "emoji" in name else {}
                parts = load_dataset(name, configuration, revision=revision, **files)
                key = name + (f" {configuration}" if configuration else "")
                counts[key] = {split: [len(rows), sorted(rows.column_names)] for split, rows in parts.items()}
        return counts

    def notebooks_read_them(self):
        first, second, fourth = (self.notebooks[number] for number in ("01", "02", "04"))
        sources = stand_in_hub.parameters("02")["SOURCES"]
        training, test = fourth["read_form"]("socratic")
        return {"thinking": first["read_rows"](THINKING, self.datasets[THINKING]),
                **{pool: second["read_source"](pool, *place)[0] for pool, place in sources.items()},
                "socratic": training, "test": test}  # fmt: skip

    def models_load(self):
        from huggingface_hub import HfApi, snapshot_download
        from transformers import AutoConfig, AutoTokenizer

        seen = {}
        for name, revision in self.models.items():
            config = AutoConfig.from_pretrained(name, revision=revision)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            folder = Path(snapshot_download(name, revision=revision))
            files = sorted(path.name for path in folder.iterdir())
            same = all(self.digest(folder / file) == self.digest(self.hub.folder / "models" / name / file)
                       for file in files)  # fmt: skip
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
            seen[name] = [config.model_type, bool(tokenizer.chat_template), same, files, info.sha,
                          HfApi().list_repo_refs(name).branches[0].target_commit,
                          [sibling.rfilename for sibling in info.siblings if sibling.lfs]]  # fmt: skip
        return seen

    def relatives_load(self):
        from transformers import AutoConfig

        names = {other for name in self.models for other in stand_in_hub.relatives(name)}
        configurations = {name: AutoConfig.from_pretrained(name.lower()) for name in names}
        return {name: getattr(config, "quantization_config", {}).get("quant_method")
                for name, config in configurations.items()}  # fmt: skip

    def nothing_of_that_name(self):
        from huggingface_hub import HfApi, hf_hub_download

        options = {"revision": self.models[QWEN]}
        return [error_of(HfApi().model_info, "nobody/nothing"), error_of(HfApi().model_info, QWEN, revision="0" * 40),
                error_of(hf_hub_download, "nobody/nothing", "config.json"),
                error_of(hf_hub_download, QWEN, "config.json", revision="0" * 40),
                error_of(hf_hub_download, QWEN, "nothing.json", **options)]  # fmt: skip

    def wrong_names_in_a_notebook(self):
        check, read = self.notebooks["01"]["check_model"], self.notebooks["01"]["read_rows"]
        return [sentence(check, "nobody/nothing", "main"), sentence(check, QWEN, "0" * 40),
                sentence(read, "nobody/nothing", "main"), sentence(read, THINKING, "0" * 40)]  # fmt: skip

    def busy_then_well(self):
        self.hub.faults += [Fault(WEIGHTS, "busy", 2, after=7), Fault(f"*{QWEN}*config.json", "busy", 1, after=3)]
        name = self.notebooks["01"]["check_model"](QWEN, self.models[QWEN])[0]
        return [name, self.weights(), self.statuses(429), self.long_waits()]

    def down_then_well(self):
        self.hub.faults.append(Fault(f"*/{QWEN}/*model.safetensors", "down", 3))
        return [self.weights(), self.statuses(503), self.long_waits()]

    def down_for_good(self):
        self.hub.faults.append(Fault("*", "down", 10**6))
        first, second = self.notebooks["01"], self.notebooks["02"]
        place = stand_in_hub.parameters("02")["SOURCES"]["mawps"]
        return [sentence(first["check_model"], QWEN, self.models[QWEN]), sentence(second["read_source"], "m", *place)]

    def busy_for_good(self):
        self.hub.faults.append(Fault("*", "busy", 10**6))
        return [sentence(self.notebooks["01"]["check_model"], QWEN, self.models[QWEN]),
                sentence(self.notebooks["01"]["read_rows"], THINKING, self.datasets[THINKING])]  # fmt: skip

    def cut_then_well(self):
        self.hub.faults.append(Fault(f"*{GPT_OSS}*model.safetensors", "cut", 2, share=0.9))
        return [self.weights(GPT_OSS), self.statuses(200, "GET", "/big-files/"), self.statuses(206, "GET")]

    def cut_for_good(self):
        self.hub.faults.append(Fault(WEIGHTS, "cut", 10**6))
        verdict = error_of(self.weights)
        whole = [path for path in self.cache.rglob("*") if path.is_file() and "blobs" in path.parts
                 and path.suffix != ".incomplete"]  # fmt: skip
        told = self.verify(QWEN, self.models[QWEN])
        self.hub.faults.clear()
        return [verdict, len(whole), told, self.weights()]

    def cut_in_a_data_set(self):
        self.hub.faults.append(Fault(f"*{GSM8K}*socratic/train*", "cut", 10**6))
        read = self.notebooks["04"]["read_form"]
        first = sentence(read, "socratic")
        self.hub.faults.clear()
        return [first, len(read("socratic")[0])]

    def gated(self):
        self.hub.faults += [Fault(f"*{GEMMA}/resolve*", "gated", 10**6), Fault(f"*{GSM8K}*", "gated", 10**6)]
        return [sentence(self.notebooks["01"]["check_model"], GEMMA, self.models[GEMMA]),
                sentence(self.notebooks["04"]["read_form"], "main")]  # fmt: skip

    def gated_with_a_token(self):
        os.environ["HF_TOKEN"] = TOKEN
        try:
            return [*self.gated(), self.statuses(403), self.statuses(401)]
        finally:
            del os.environ["HF_TOKEN"]

    def missing(self):
        self.hub.faults += [Fault(f"*{GEMMA}*", "missing", 10**6), Fault(f"*{THINKING}*", "missing", 10**6)]
        place = stand_in_hub.parameters("02")["SOURCES"]["cmath"]
        self.hub.faults.append(Fault(f"*{place[0]}*", "missing", 10**6))
        return [sentence(self.notebooks["01"]["check_model"], GEMMA, self.models[GEMMA]),
                sentence(self.notebooks["01"]["read_rows"], THINKING, self.datasets[THINKING]),
                sentence(self.notebooks["02"]["read_source"], "cmath", *place)]  # fmt: skip

    def wrong_hash(self):
        self.hub.faults.append(Fault(WEIGHTS, "wrong_hash"))
        silent = self.weights()
        first = self.verify(QWEN, self.models[QWEN])
        named = first.split("Delete ")[-1].split(" below ")[0]
        (self.cache / "hub" / named).unlink()
        return [silent, first, named, self.verify(QWEN, self.models[QWEN]), self.weights()]

    def wrong_hash_of_a_small_file(self):
        self.hub.faults.append(Fault("*/generation_config.json", "wrong_hash"))
        return self.verify(QWEN, self.models[QWEN])

    def wrong_hash_in_a_data_set(self):
        self.hub.faults.append(Fault("*main/train*.parquet", "wrong_hash"))
        read = self.notebooks["04"]["read_form"]
        first = sentence(read, "main")
        made = [path for path in self.cache.rglob("*.arrow")]
        named = first.split("Delete ")[-1].split(" below ")[0]
        (self.cache / "hub" / named).unlink()
        return [first, len(made), len(read("main")[0])]

    def nothing_said(self):
        def silent(*_, **__):
            raise OSError

        space, told = {**self.notebooks["01"]}, []
        for name in ("check_model", "read_rows"):
            function = space[name]
            kept = dict(function.__globals__)
            function.__globals__.update(AutoConfig=type("A", (), {"from_pretrained": silent}), load_dataset=silent)
            told.append(sentence(function, QWEN if name == "check_model" else THINKING,
                                 self.models[QWEN] if name == "check_model" else self.datasets[THINKING]))  # fmt: skip
            function.__globals__.update(kept)
        return told

    def nothing_to_verify(self):
        before = len(self.hub.requests)
        local = self.verify("data", "main", "DATASET")
        return [local, len(self.hub.requests) - before]

    def verify_without_a_listing(self):
        self.verify(QWEN, self.models[QWEN])
        self.hub.faults.append(Fault("/api/*/tree/*", "missing", 10**6))
        return self.verify(QWEN, self.models[QWEN])

    def pickles_alone(self):
        name, folder = "reader/pickled", self.hub.uploads / "models/reader/pickled"
        self.hub.private[f"models/{name}"], self.hub.revisions[f"models/{name}"] = False, "1" * 40
        self.hub.names[f"models/{name}"] = f"models/{name}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(b"not read")
        return self.verify(name, "main")

    def verify_what_is_gated(self):
        self.hub.faults.append(Fault(f"*{GEMMA}/resolve*", "gated", 10**6))
        return self.verify(GEMMA, self.models[GEMMA])

    def push(self, repository, token=TOKEN):
        """Save an adapter and a merged copy in a run's folder, push them; return (folder, what was printed, sentence)."""
        space, output = self.notebooks["01"], Path(tempfile.mkdtemp(dir=self.cache)) / "run"
        space.update(ROOT=output.parent, NOTEBOOK="01_of_nobody", PROFILE="full", CARD={
            "started": "2026-11-28T00:00:00+00:00", "device": "CPU", "metrics": {
                "before": {"harmony_parsed": {"value": 0.25, "n": 40}}, "after": {
                    "harmony_parsed": {"value": 0.975, "n": 40}, "supervised": {"value": 1.0, "n": 9}}}})  # fmt: skip
        for name, weights in {"adapter": "adapter_model.safetensors", "merged": "model.safetensors"}.items():
            (output / name).mkdir(parents=True)
            (output / name / weights).write_bytes(os.urandom(3 * 2**20))
            record = {"notebook": "01_of_nobody", "kind": name, "started": "2026-11-28T00:00:00+00:00",
                      "base": {"id": QWEN, "revision": self.models[QWEN]}, "parameters": {"LORA_RANK": 8},
                      "data": {"id": THINKING, "revision": "main"}}  # fmt: skip
            (output / name / "training.json").write_text(json.dumps(record))
        for path in ("replies.jsonl", "checkpoints/checkpoint-2/optimizer.pt", ".adapter-partial/training.json"):
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_text("{}")
        os.environ |= {"HF_TOKEN": token} if token else {}
        try:
            with redirect_stdout(StringIO()) as printed:
                told = sentence(space["push_to_hub"], repository, output)
        finally:
            os.environ.pop("HF_TOKEN", None)
        return output, printed.getvalue(), told

    def pushed(self, repository, output, name):
        """Return whether a pushed repository is private, and whether its files are those of a saved folder."""
        from huggingface_hub import HfApi, snapshot_download

        arrived = Path(snapshot_download(repository, token=TOKEN))
        files = {path.name: self.digest(path) for path in (output / name).iterdir()}
        return [HfApi().model_info(repository, token=TOKEN).private,
                files == {path.name: self.digest(path) for path in arrived.iterdir()}, sorted(files)]  # fmt: skip

    def push_nothing(self):
        _, printed, told = self.push("")
        return [printed, told, len(self.hub.requests)]

    def push_what_was_saved(self):
        output, printed, told = self.push("reader/habit")
        writes = [[method, path] for method, path, status in self.hub.requests if method != "GET"]
        stranger = error_of(self.notebooks["01"]["HfApi"]().model_info, "reader/habit")
        return [told, printed, writes, self.pushed("reader/habit", output, "adapter"),
                self.pushed("reader/habit-merged", output, "merged"), stranger,
                (output / "adapter" / "README.md").read_text()]  # fmt: skip

    def push_again(self):
        self.push("reader/twice")
        output, _, told = self.push("reader/twice")
        return [told, *self.pushed("reader/twice", output, "adapter")]

    def push_to_what_is_public(self):
        self.hub.private["models/reader/open"] = False
        self.hub.names["models/reader/open"] = "models/reader/open"
        self.hub.revisions["models/reader/open"] = "0" * 40
        (self.hub.uploads / "models/reader/open").mkdir(parents=True)
        told = self.push("reader/open")[2]
        return [told, len(list((self.hub.uploads / "models/reader/open").iterdir()))]

    def push_that_fails(self):
        told = [self.push("habit")[2], self.push("reader/habit", token=None)[2]]
        for kind, pattern in (
            ("read_only", "/api/repos/create"),
            ("read_only", "*/commit/*"),
            ("gated", "/api/repos/*"),
        ):
            self.hub.faults[:] = [Fault(pattern, kind, 10**6)]
            _, printed, text = self.push(f"reader/{kind}")
            told.append(text if "adapter goes to " in printed else "nothing was said before it was done")
        self.hub.faults.clear()
        space = self.notebooks["01"]
        space["is_offline_mode"], kept = (lambda: True), space["is_offline_mode"]
        told.append(self.push("reader/habit")[2])
        space["is_offline_mode"], api = kept, space["HfApi"]
        space["HfApi"] = functools.partial(api, endpoint="http://127.0.0.1:9")
        told.append(self.push("reader/habit")[2])
        space["HfApi"] = api
        return told

    def long_waits(self):
        """Return the seconds, one or more, that somebody asked to sleep."""
        return [seconds for seconds in self.waits if seconds >= 1]

    def statuses(self, status, method="", beginning="/"):
        """Return how many requests of a kind were answered with this status."""
        return sum(kind.startswith(method) and path.startswith(beginning) and answer == status
                   for kind, path, answer in self.hub.requests)  # fmt: skip


HELPERS = ("digest", "weights", "verify", "push", "pushed", "statuses", "long_waits")


def main(folder):
    """Run all scenarios, without sleeping through their waits; print what came of them."""
    sleep = time.sleep
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as uploads, \
            Hub(folder, stand_in_hub.all_revisions(), uploads=Path(uploads)) as hub:  # fmt: skip
        environment = {**hub.environment(Path(cache)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        os.environ.clear()
        os.environ.update(environment)
        scenarios, results = Scenarios(hub, Path(cache)), {}

        def remember(seconds):
            scenarios.waits.append(seconds)
            sleep(min(seconds, 0.01))

        time.sleep = remember
        for name, method in vars(Scenarios).items():
            if name.startswith("_") or name in HELPERS:
                continue
            for path in Path(cache).iterdir():
                shutil.rmtree(path)
            hub.faults.clear()
            hub.requests.clear()
            scenarios.waits.clear()
            started = time.monotonic()
            try:
                results[name] = method(scenarios)
            except Exception:
                results[name] = {"failed": traceback.format_exc()}
            print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
