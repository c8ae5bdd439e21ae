"""Fixtures: the notebooks as data, their functions lifted out, the rehearsal tokenizers, one real rehearsal."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import code_cells, lift, write_with_parameters  # noqa: E402, F401

NOTEBOOKS = sorted((PROJECT / "NoteBooks").glob("[0-9][0-9]_*.ipynb"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PROFILE"] = "rehearsal"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
SHORT = {  # number of the notebook: what makes a rehearsal run every cell, check every parity, and learn little
    "01": {"MAX_STEPS": 4, "EVAL_STEPS": 2, "SAVE_STEPS": 2, "MAX_NEW_TOKENS": 16},
    "02": {
        "MAX_STEPS": 4,
        "PROBE_STEPS": 2,
        "LIMIT": 4,
        "MAX_NEW_TOKENS": {"emoji": 16, "cmath": 8, "mawps": 8, "json_only": 16, "tool_calls": 8, "language": 8},
    },
    "03": {"MAX_STEPS": 4, "EVAL_STEPS": 2, "MAX_NEW_TOKENS": 16, "RECITED": 2},
    "04": {
        "MAX_STEPS": 6,
        "EVAL_STEPS": 3,
        "SAVE_STEPS": 3,
        "LIMIT": 8,
        "MAX_NEW_TOKENS": 16,
        "MERGE_TOLERANCE": 1.0,
        "SEED_RECORDS": "data/none.json",  # as where the notebook was taken away alone
    },
}

PLANTED = {  # no process may write these anywhere
    "HF_TOKEN": "hf_PlantedByATestAndNoToken0123456789",
    "WANDB_API_KEY": "0badc0de5eed0badc0de5eed0badc0de5eed0bad",
    "SWANLAB_API_KEY": "PlantedSwanLabKey0123",
}
WATCH = str(PROJECT / "tests" / "watch")  # in PYTHONPATH: writes down who looks outside this machine


def leaks(*places):
    """Return [(file, name of the token)] of all files in these files and folders that hold a planted token."""
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [(str(file), name) for file in files if file.is_file() and not file.is_symlink()
            for name, token in PLANTED.items() if token.encode() in file.read_bytes()]  # fmt: skip


def rehearsals():
    """Return "short", or "whole" where REHEARSALS asks for whole ones: `make test-long` does, for over half an hour."""
    chosen = os.environ.get("REHEARSALS", "short")
    if chosen not in ("whole", "short"):
        raise pytest.UsageError(f'REHEARSALS is "{chosen}"; it can be "whole", "short" or unset.')
    return chosen


def pytest_collection_modifyitems(items):
    """Skip what only a whole rehearsal can show where they are short; the committed run card is judged all the same."""
    if rehearsals() == "short":
        reason = "short rehearsals: `make test-long` runs whole ones"
        for item in items:
            if item.get_closest_marker("whole"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def notebook_01():
    return PROJECT / "NoteBooks" / "01_gpt_oss_multilingual_thinking.ipynb"


@pytest.fixture(scope="session")
def notebook_02():
    return PROJECT / "NoteBooks" / "02_qwen3_emoji_math.ipynb"


@pytest.fixture(scope="session")
def notebook_03():
    return PROJECT / "NoteBooks" / "03_gpt_oss_pdf_books.ipynb"


@pytest.fixture(scope="session")
def notebook_04():
    return PROJECT / "NoteBooks" / "04_gemma_gsm8k.ipynb"


@pytest.fixture(scope="session")
def notebook_cells():
    """Run a notebook's cells, up to the one that holds `until`, in one namespace; overrides follow the parameters."""

    def run(path, until, namespace=None, **overrides):
        namespace = {} if namespace is None else namespace
        directory = Path.cwd()
        os.chdir(PROJECT / "NoteBooks")
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        try:
            for number, cell in enumerate(cells):
                if until in cell.source:
                    return namespace
                exec(compile(cell.source, f"{path.name} cell {number + 1}", "exec"), namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace.update(overrides)
        finally:
            os.chdir(directory)
        raise AssertionError(f"no cell of {path.name} holds {until!r}")

    return run


@pytest.fixture(scope="session")
def setup_01(notebook_01, notebook_cells, tmp_path_factory):
    """The namespace of notebook 01 with its workshop and the functions of its data section: no model, no training."""
    namespace = notebook_cells(notebook_01, 'print(f"profile {PROFILE}', TRACKER="none")
    for source in code_cells(notebook_01):
        for node in ast.parse(source).body:
            names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
            if names & {"COLUMNS", "ROLES"} or (isinstance(node, ast.FunctionDef) and node.name not in namespace):
                exec(compile(ast.Module(body=[node], type_ignores=[]), notebook_01.name, "exec"), namespace)
    return namespace


@pytest.fixture(scope="session")
def setup_02(notebook_02, tokenizers):
    """The namespace of notebook 02 with all its functions and its mixed data: no model, no training."""
    tokenizer = tokenizers["qwen3"]
    namespace, directory, whole = {"tokenizer": tokenizer}, Path.cwd(), True
    os.chdir(PROJECT / "NoteBooks")
    try:
        for number, source in enumerate(code_cells(notebook_02)):
            tree = ast.parse(source)
            whole = whole and "base = answer(" not in source
            if not whole or "shape_of(config)\nplan" in source or "load_model(MODEL" in source or "first_re" in source:
                tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            exec(compile(tree, f"{notebook_02.name} cell {number + 1}", "exec"), namespace)
            if source.startswith("PROFILE = "):  # a folder of its own: a rehearsal may hold the notebook's
                namespace["MERGE_TOLERANCE"] = 0.31
    finally:
        os.chdir(directory)
    return namespace


def forget_claim(folder):
    """Remove an output folder that a test has claimed for its parameters, if no run has written into it."""
    if not {path.name for path in folder.iterdir()} - {"configuration.json", "configuration.sha256", ".running"}:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def setup_04(notebook_04, notebook_cells, tokenizers):
    """The namespace of notebook 04 with all its functions, its data and its labelled rows: no model, no training."""
    from transformers import AutoConfig

    namespace = notebook_cells(notebook_04, "verify_download(MODEL, ", TRACKER="none", SEED=404)
    forget_claim(namespace["OUTPUT"])
    namespace.update(tokenizer=tokenizers["gemma"], stand_in=AutoConfig.from_pretrained(namespace["MODEL_SOURCE"]))
    cells = code_cells(notebook_04)
    reads = next(i for i, source in enumerate(cells) if "def read_form" in source)
    asks = next(i for i, source in enumerate(cells) if "def answer(model" in source)  # from here on a model replies
    for source in cells[reads:asks]:
        exec(compile(source, notebook_04.name, "exec"), namespace)
    constants = {"FINAL_LINE", "END_OF_TURN"}
    for node in [node for source in cells[asks:] for node in ast.parse(source).body]:
        names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
        if names & constants or isinstance(node, ast.FunctionDef | ast.ClassDef):
            exec(compile(ast.Module(body=[node], type_ignores=[]), notebook_04.name, "exec"), namespace)
    return namespace


@pytest.fixture(scope="session")
def tokenizers():
    """The tokenizers of the three rehearsal checkpoints, their Harmony date fixed."""
    import re

    from transformers import AutoTokenizer

    loaded = {}
    for family in ("gpt-oss", "qwen3", "gemma"):
        loaded[family] = AutoTokenizer.from_pretrained(PROJECT / "outputs" / "rehearsal" / family)
        loaded[family].chat_template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', loaded[family].chat_template)
    return loaded


@pytest.fixture(scope="session")
def stand_in_root():
    """The folder that the stand-in Hub serves, with tiny models; kept, since it takes half a minute to fill."""
    build = "import pathlib, sys; sys.path.insert(0, 'tools'); import stand_in_hub; "
    build += "print(stand_in_hub.prepare(pathlib.Path('outputs/stand-in-hub')))"
    built = subprocess.run([sys.executable, "-c", build], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.splitlines()[-1])


def notebook_with(number, path, parameters):
    """Write a copy of one notebook to `path`, with other parameters."""
    write_with_parameters(next(path for path in NOTEBOOKS if path.name.startswith(number)), path, parameters)


def rehearse(number):
    """Run one notebook as `make run` does; yield (finished process, run card, executed notebook).

    Tokens are planted in its environment, and the network is cut; `.outside` of the finished process are the hosts that
    were looked for. What a short rehearsal writes is removed in the end: its folder belongs to the reader's own run.
    """
    import run_notebooks

    short = run_notebooks.EXECUTED / f"{number}_short.ipynb"
    stem = next(path.stem for path in NOTEBOOKS if path.name.startswith(number))
    if rehearsals() == "short":
        notebook_with(number, short, SHORT[number])
        stem = short.stem
    executed = run_notebooks.EXECUTED / f"{stem}_executed.ipynb"
    command = [sys.executable, str(PROJECT / "tools" / "run_notebooks.py"), str(short) if short.exists() else number]
    outside = run_notebooks.EXECUTED / f".{number}_outside.txt"
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_text("")
    environment = {**os.environ, **PLANTED, "PYTHONPATH": WATCH, "OUTSIDE": str(outside), "CUT": "1"}
    environment.pop("HF_HUB_OFFLINE", None)  # a rehearsal stays off the network by itself
    try:
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
        result.outside = outside.read_text().splitlines()
    finally:
        short.unlink(missing_ok=True)
        outside.unlink()
    card = run_notebooks.run_card(executed)
    yield result, card, nbformat.read(executed, as_version=4)
    if rehearsals() == "short":
        executed.unlink(missing_ok=True)
        for path in PROJECT.glob(f"outputs/{number}_*/run_card.json"):
            if json.loads(path.read_text()) == card:
                shutil.rmtree(path.parent)


def run_notebook_with(number, tmp_path, **parameters):
    """Execute a notebook with other parameters; return (result, executed path)."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
    command += ["--config", "tools/nbconvert_config.py", "--ExecutePreprocessor.timeout=1800"]
    resources = {"EXECUTED_PARTIAL": str(tmp_path / "executed.ipynb"), "PROFILE": "rehearsal"}
    run_in = PROJECT / "outputs" / "executed"  # a folder below the project, so that the notebook finds its root
    copy = run_in / f".{tmp_path.name}.ipynb"
    notebook_with(number, copy, parameters)
    command += ["--output", "executed.ipynb", "--output-dir", str(tmp_path), str(copy)]
    try:
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, **resources})
    finally:
        copy.unlink()
    return result, tmp_path / "executed.ipynb"


@pytest.fixture(scope="session")
def rehearsal_01():
    yield from rehearse("01")


@pytest.fixture(scope="session")
def rehearsal_02():
    yield from rehearse("02")


@pytest.fixture(scope="session")
def rehearsal_03():
    yield from rehearse("03")


@pytest.fixture(scope="session")
def rehearsal_04():
    yield from rehearse("04")


@pytest.fixture(scope="session")
def committed_card():
    """Return the run card inside a committed notebook."""

    def read(path):
        for cell in reversed(nbformat.read(path, as_version=4).cells):
            for output in cell.get("outputs", []):
                if "application/json" in output.get("data", {}):
                    return output["data"]["application/json"]
        raise AssertionError(f"{path.name} carries no run card")

    return read


def card_of(request, committed_card):
    """Return a run card of the notebook that the test's module is about: of this run, or the committed one."""
    if request.param == "this run":
        return request.getfixturevalue("card")
    number = request.module.__name__[-2:]
    return committed_card(next(path for path in NOTEBOOKS if path.name.startswith(number)))


@pytest.fixture(params=["this run", "committed"])
def any_card(request, committed_card):
    """Two run cards, one after the other: of this rehearsal, whole or short, and the committed one."""
    return card_of(request, committed_card)


@pytest.fixture(params=[pytest.param("this run", marks=pytest.mark.whole), "committed"])
def whole_card(request, committed_card):
    """Two run cards of whole rehearsals, for what a model must have learnt: this one and the committed one."""
    return card_of(request, committed_card)


def read_jsonl(name):
    """Return the rows of a file in data/."""
    return [json.loads(line) for line in (PROJECT / "data" / name).read_text(encoding="utf-8").splitlines()]
