"""What a run must not do: write a token, call somebody, read a pickle, or run code that a repository brings."""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import saved
import serve
import torch
from conftest import NOTEBOOKS, PLANTED, PROJECT, code_cells, leaks, lift

TRAINING = [path for path in NOTEBOOKS if path.name[:2] in ("01", "02", "03", "04")]
each_training_notebook = pytest.mark.parametrize("number", [path.name[:2] for path in TRAINING])
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


# Tokens, and the network


def test_a_leak_is_found(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.db").write_bytes(b"\0" + PLANTED["WANDB_API_KEY"].encode() + b"\0")
    (tmp_path / "clean.json").write_text("{}")
    assert leaks(tmp_path) == [(str(tmp_path / "deep" / "a.db"), "WANDB_API_KEY")]


@pytest.mark.notebook
@each_training_notebook
def test_no_token_is_written_anywhere(request, number):
    """Printed text, executed copy, run card, adapter, merged copy, checkpoints, trackio's data."""
    result, card, executed = request.getfixturevalue(f"rehearsal_{number}")
    assert result.returncode == 0, result.stderr[-3000:]
    cards = PROJECT.glob(f"outputs/{number}_*/run_card.json")
    folder = next(path.parent for path in cards if json.loads(path.read_text()) == card)
    assert list((folder / "trackio").rglob("*.db")), "nothing was recorded"
    assert not leaks(folder)
    for name, token in PLANTED.items():
        assert token not in result.stdout + result.stderr + nbformat.writes(executed), name


@pytest.mark.notebook
@each_training_notebook
def test_a_rehearsal_looks_for_nobody(request, number):
    """It ran to its end with the network cut, and did not even ask for a name."""
    result, _, _ = request.getfixturevalue(f"rehearsal_{number}")
    assert result.returncode == 0 and result.outside == []


def test_nothing_is_pushed_by_default():
    for path in TRAINING:
        assert 'PUSH_TO_HUB = ""' in "\n".join(code_cells(path))
        assert "push_to_hub=True" not in "\n".join(code_cells(path))


# Code that a model brings


@pytest.mark.parametrize("folder", ["NoteBooks", "NoteBooks/solutions", "tools", "benchmarks", "tests"])
def test_no_code_of_a_repository_is_trusted_and_no_pickle_read(folder):
    sources = [(path.name, path.read_text()) for path in (PROJECT / folder).glob("*.py")]
    for path in (PROJECT / folder).glob("*.ipynb"):
        sources += [(path.name, source) for source in code_cells(path)]
    assert sources
    for name, source in sources:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        for call in calls:
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("trust_remote_code", "False") == "False", name
            if ast.unparse(call.func) in ("torch.load", "pickle.load", "pickle.loads", "joblib.load"):
                assert given.get("weights_only") == "True" or name == Path(__file__).name, name


class WritesAFile:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(tmp_path):
    """A function that makes a folder whose weights are a pickle; the file `ran` appears when somebody reads it."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        is_adapter = name == "adapter"
        settings = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA", "r": 2}
        settings = settings if is_adapter else {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
                                                "intermediate_size": 8, "num_attention_heads": 2}  # fmt: skip
        (folder / ("adapter_config.json" if is_adapter else "config.json")).write_text(json.dumps(settings))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        torch.save(WritesAFile(tmp_path / "ran"), folder / ("adapter_model.bin" if is_adapter else "pytorch_model.bin"))
        return folder

    yield make
    assert not (tmp_path / "ran").exists(), "a pickle was read"


def test_the_pickle_of_these_tests_does_run(tmp_path):
    pickle.loads(pickle.dumps(WritesAFile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
    torch.save(WritesAFile(tmp_path / "again"), tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert (tmp_path / "again").exists()


@each_notebook
@pytest.mark.parametrize("name", ["adapter", "model"])
def test_a_notebook_refuses_weights_that_are_a_pickle(path, name, pickled):
    space = lift(path, "only_safetensors", "verify_download")
    space["ROOT"] = PROJECT
    folder = pickled(name)
    with pytest.raises(space["NotebookError"]) as told:
        space["verify_download"](str(folder), "main", "MODEL")
    file = "adapter_model.bin" if name == "adapter" else "pytorch_model.bin"
    assert f"holds no weights as safetensors, only {file}: such a file can run code" in str(told.value)
    assert "\n" not in str(told.value)
    (folder / "other.safetensors").touch()  # which no library would take for the weights
    with pytest.raises(space["NotebookError"], match="refused"):
        space["verify_download"](str(folder), "main", "MODEL")


@each_notebook
def test_weights_are_looked_at_before_they_are_loaded(path):
    """`verify_download`, which refuses pickles, comes before the first model; notebook 05 asks in `find_model`."""
    steps = [node for source in code_cells(path) for node in ast.parse(source).body]
    code = "\n".join(ast.unparse(step) for step in steps if not isinstance(step, ast.FunctionDef | ast.ClassDef))
    if path.name.startswith("05"):
        looked = code.index("only_safetensors(FOLDER, FOLDER_NAME)")
        assert "verify_download(source, revision, 'MODEL')" in "".join(map(ast.unparse, steps))
    else:
        looked = code.index("verify_download(MODEL, MODEL_REVISION, 'MODEL')")
    assert "load_model(" not in code[:looked]


@pytest.mark.parametrize("number", ["01", "02", "03", "04"])
def test_a_checkpoint_with_pickled_weights_is_passed_over(number, pickled, capsys):
    space = lift(next(path for path in TRAINING if path.name.startswith(number)), "last_checkpoint")
    folder = pickled("adapter")
    folder = folder.rename(folder.with_name("checkpoint-2"))
    (folder / "trainer_state.json").write_text("{}")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, folder / name)
    assert space["last_checkpoint"](folder.parent) is None
    assert capsys.readouterr().out == "checkpoint-2 is not whole; it is passed over.\n"


@pytest.mark.parametrize(
    ("tool", "name"),
    [("serve.py", "adapter"), ("serve.py", "model"), ("to_gguf.py", "adapter"), ("to_gguf.py", "model"),
     ("to_gguf.py --adapter", "adapter")])  # fmt: skip
def test_a_tool_refuses_weights_that_are_a_pickle(tool, name, pickled):
    script, *options = tool.split()
    command = [sys.executable, f"tools/{script}", str(pickled(name)), *options]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    assert "holds no weights as safetensors, only" in result.stderr and "refused" in result.stderr


def test_a_base_that_is_a_pickle_is_neither_merged_nor_served(pickled, tmp_path, monkeypatch):
    adapter, base = pickled("adapter"), pickled("base")
    (adapter / "adapter_model.bin").unlink()
    (adapter / "adapter_model.safetensors").touch()
    record = {"base": {"id": str(base), "revision": "main"}, "family": ""}
    (adapter / "training.json").write_text(json.dumps(record))
    with pytest.raises(saved.SavedError, match="base holds no weights as safetensors, only pytorch_model.bin"):
        saved.merge_adapter(adapter, tmp_path / "merged")
    monkeypatch.setattr(serve, "MADE", tmp_path / "made")
    model = pickled("model")
    (model / "pytorch_model.bin").rename(model / "model.safetensors")
    with pytest.raises(saved.SavedError, match="base holds no weights as safetensors"):
        serve.make_cache(model, "name", record)
