"""The exercises at the end of a chapter and their worked solutions in NoteBooks/solutions/."""

import ast
import hashlib
import os
import re
import subprocess
import sys
from itertools import pairwise

import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT, code_cells
from notebook_code import parameters_of
from open_chapter import definitions_only, open_chapter, sections_of

SOLUTIONS = sorted((PROJECT / "NoteBooks" / "solutions").glob("*.ipynb"))
each_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem[:2])


def exercises_of(path):
    """Return [(number, text, target of its link)] of a chapter's numbered exercises."""
    text = "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    part = re.search(r"^### Exercises\n(.*?)(?=^### |\Z)", text, re.M | re.S)[1]
    found = re.findall(r"^(\d+)\. (.+)$", part, re.M)
    return [(int(n), line, re.search(r"\(\[solution\]\((.+?)\)\)$", line)) for n, line in found]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_each_exercise_has_a_solution_and_each_solution_an_exercise(path):
    exercises, answer = exercises_of(path), PROJECT / "NoteBooks" / "solutions" / f"{path.name[:2]}_solutions.ipynb"
    headings = [int(line) for cell in nbformat.read(answer, as_version=4).cells if cell.cell_type == "markdown"
                for line in re.findall(r"^## (\d+) ", cell.source, re.M)]  # fmt: skip
    assert [number for number, _, _ in exercises] == headings == list(range(1, len(headings) + 1))
    for _, line, link in exercises:
        assert link and (path.parent / link[1]).resolve() == answer, line
    assert len(exercises) >= (1 if path.name.startswith("05") else 3)
    assert f"](../{path.name})" in nbformat.read(answer, as_version=4).cells[0].source


def test_no_solution_is_without_a_chapter():
    assert {path.name for path in SOLUTIONS} == {f"{path.name[:2]}_solutions.ipynb" for path in NOTEBOOKS}


@each_solution
def test_committed_outputs_are_of_one_clean_run_of_this_code(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    digest = hashlib.sha256("\n\0\n".join(cell.source for cell in code).encode()).hexdigest()
    assert notebook.metadata["source_sha256"] == digest, "the code moved on: run tools/publish_notebook.py"
    for place in (str(PROJECT), "/root/", "/home/", "/tmp/"):
        assert place not in path.read_text(encoding="utf-8")


@each_solution
def test_a_solution_uses_its_chapter_and_copies_nothing(path):
    chapter = next(notebook for notebook in NOTEBOOKS if notebook.name[:2] == path.name[:2])
    defined = {node.name: ast.dump(node) for source in code_cells(chapter) for node in ast.parse(source).body
               if isinstance(node, ast.FunctionDef | ast.ClassDef)}  # fmt: skip
    for node in [node for source in code_cells(path) for node in ast.walk(ast.parse(source))]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert defined.get(node.name) != ast.dump(node), f"{node.name} is the chapter's"
    assert re.search(rf'open_chapter\(\s*"{path.name[:2]}"', "\n".join(code_cells(path)))


@each_solution
def test_a_solution_names_headings_and_parameters_that_its_chapter_has(path):
    chapter = next(notebook for notebook in NOTEBOOKS if notebook.name[:2] == path.name[:2])
    headings = {text for above, _ in sections_of(chapter) for text in above}
    [call] = [node for source in code_cells(path) for node in ast.walk(ast.parse(source))
              if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_chapter"]  # fmt: skip
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    named = [ast.literal_eval(given.pop("until")), *ast.literal_eval(given.pop("skip", ast.Tuple([])))]
    assert set(named) <= headings and set(given) <= set(parameters_of(chapter))


@each_solution
def test_rhythm(path):
    cells = nbformat.read(path, as_version=4).cells
    for one, other in pairwise(cells):
        assert "markdown" in (one.cell_type, other.cell_type), f"no sentence before: {other.source[:60]}"
    assert cells[0].cell_type == cells[-1].cell_type == "markdown"
    for cell in cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"\b(simply|easily|just)\b", cell.source, re.I), cell.source[:80]


# ---- the helper that opens a chapter ----


def test_a_heading_or_a_parameter_that_is_not_the_chapters_is_refused():
    with pytest.raises(ValueError, match="No such heading"):
        open_chapter("01", until="No such heading")
    with pytest.raises(ValueError, match="LERNING_RATE"):
        open_chapter("01", until="2 The data", LERNING_RATE=1)


def test_a_chapter_that_fails_shows_what_it_said_and_ends(tmp_path, monkeypatch, capsys):
    """In a kernel, what was captured is shown once, not again and again."""
    import nbformat.v4 as v4
    import open_chapter as opener
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    (tmp_path / "NoteBooks").mkdir()
    parameters = v4.new_code_cell("MAX_STEPS = 1", metadata={"tags": ["parameters"]})
    failing = v4.new_code_cell(
        "from IPython.display import display\ndisplay('seen')\nprint('said')\nraise ValueError('broken')"
    )
    cells = [
        v4.new_markdown_cell("## 1 Setup"),
        parameters,
        failing,
        v4.new_markdown_cell("## 2 After"),
        v4.new_code_cell("1"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "NoteBooks" / "07_small.ipynb")
    monkeypatch.setattr(opener, "PROJECT", tmp_path)
    with pytest.raises(ValueError, match="broken"):
        open_chapter("07", until="2 After")
    InteractiveShell.clear_instance()
    said = capsys.readouterr().out
    assert said.count("said") == 1 and said.count("seen") == 1


def test_sections_and_definitions():
    path = NOTEBOOKS[0]
    first = next(headings for headings, cell in sections_of(path) if "def load_model" in cell.source)
    assert first[-2:] == ["1 Setup", "Meet the model"]
    tree = definitions_only("import os\nA = 1\nb = 2\n\ndef c():\n    pass\n\nprint(A)\n")
    assert ast.unparse(tree).split() == "import os A = 1 def c(): pass".split()


# ---- LoRA by hand ----


def test_lora_by_hand_gives_pefts_logits_and_gradients():
    """The solution's own class against PEFT, on a tiny model with random weights."""
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = next(
        cell for cell in code_cells(PROJECT / "NoteBooks/solutions/01_solutions.ipynb") if "class HandLora" in cell
    )
    assert len([line for line in source.splitlines() if line.strip() and '"""' not in line]) <= 21
    solution = {}
    exec(source, solution)
    torch.manual_seed(0)
    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2)  # fmt: skip
    theirs = LlamaForCausalLM(small)
    ours = LlamaForCausalLM(small)
    ours.load_state_dict(theirs.state_dict())
    names = [name for name, part in ours.named_modules() if isinstance(part, torch.nn.Linear) and "lm_head" not in name]
    tokens = torch.randint(0, 64, (2, 12))
    base = ours(tokens).logits
    solution["adapt"](ours, names, rank=4, alpha=8)
    assert torch.equal(ours(tokens).logits, base), "an untrained adapter changes nothing"
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=names))
    for name in names:
        layer, own = theirs.base_model.model.get_submodule(name), ours.get_submodule(name)
        torch.nn.init.normal_(layer.lora_B.default.weight)
        own.A.data.copy_(layer.lora_A.default.weight)
        own.B.data.copy_(layer.lora_B.default.weight)
    replies = [model(input_ids=tokens, labels=tokens) for model in (theirs, ours)]
    torch.testing.assert_close(replies[0].logits, replies[1].logits, rtol=1e-4, atol=1e-4)
    assert (replies[1].logits - base).abs().max() > 0.1
    for reply in replies:
        reply.loss.backward()
    for name in names:
        layer, own = theirs.base_model.model.get_submodule(name), ours.get_submodule(name)
        torch.testing.assert_close(own.A.grad, layer.lora_A.default.weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(own.B.grad, layer.lora_B.default.weight.grad, rtol=1e-3, atol=1e-5)
    assert {name for name, weight in ours.named_parameters() if weight.requires_grad} == {
        f"{name}.{part}" for name in names for part in "AB"}  # fmt: skip


# ---- all of them, run ----


@pytest.mark.long
@each_solution
def test_a_solution_runs(path):
    if path.name.startswith("05") and not list((PROJECT / "outputs").glob("0*/adapter")):
        pytest.skip("needs an adapter below outputs/: run notebook 01 first")
    command = [sys.executable, str(PROJECT / "tools" / "run_notebooks.py"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PROFILE": "rehearsal"})
    assert result.returncode == 0, result.stderr[-2000:]
