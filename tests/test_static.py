"""What can be said of the notebooks and the tree without running anything."""

import ast
import hashlib
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT, code_cells
from notebook_code import parameter_cells
from page import asks_the_model, figures, is_folded, marks

HEADINGS = [
    r"# \d\d · \w+",
    "## 1 Setup",
    "## 2 The data",
    "## 3 The chat template",
    "## 4 The base model, before",
    "## 5 The adapter",
    "## 6 Training",
    r"## 7 After: did it work\?",
    "## 8 Save, reload, use",
    "## 9 Recap",
]
WORKSHOP = "# workshop · "  # the first line of a folded cell that stands in several notebooks, with its topic behind it
OPEN_COPIES = {"find_response_markers", "check_masks", "share", "finding", "holm", "predict_lora_parameters"}
BEFORE_THE_WORKSHOP = [  # shared by the notebooks whose workshop is not folded yet, until their own issues are done
    "find_response_markers", "check_masks", "show_mask", "generate_replies", "plot_loss", "write_run_card", "choose_gpu",
    "output_folder", "phase", "read_jsonl", "wilson", "NotebookError",
]  # fmt: skip
# What has been reached: a page may get shorter, and reach its reply and its loss earlier, never the other way round.
PAGES = {  # cells, words, open lines, first reply, first loss (shares of the open lines), longest open cell
    "01": (149, 7640, 640, 0.075, 0.602, 27),
    "02": (219, 9892, 786, 0.051, 0.594, 24),
    "03": (170, 6838, 654, 0.333, 0.58, 26),
    "04": (136, 6638, 665, 0.042, 0.481, 28),
    "05": (78, 2553, 200, 0.549, 1.0, 23),
}
FORBIDDEN = [r"\bif False\b", r"(?<![\w.])input\(", "notebook_login", r"allow.errors", r"%cd", r"!pip", "breakpoint"]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


@pytest.fixture(scope="module")
def read():
    return lambda path: nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_schema(path, read):
    nbformat.validate(read(path))
    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)


SHORT_HEADINGS = [  # of notebook 05, which trains nothing
    r"# 05 · \w+", "## 1 Setup", "## 2 What was saved", "## 3 Ask", "## 4 Base and tuned", "## 5 A file of questions",
    "## 6 A conversation", "## 7 Serve it", "## 8 Recap",
]  # fmt: skip


@each_notebook
def test_headings(path, read):
    short = path.name.startswith("05")
    found = [
        line
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match(r"##? ", line)
    ]
    for line, pattern in zip(found, SHORT_HEADINGS if short else HEADINGS, strict=True):
        assert re.match(pattern, line), line
    opening = read(path).cells[0].source
    assert "**You will learn**" in opening and "**You will need**" in opening
    closing = "\n".join(cell.source for cell in read(path).cells[-4:])
    for part in ("### In practice",) if short else ("### Exercises", "### In practice", "### References"):
        assert part in closing


@each_notebook
def test_parameters_cells_hold_literals_only(path, read):
    cells = parameter_cells(path)
    assert sum("parameters" in cell.metadata["tags"] for cell in cells) == 1
    for cell in cells:
        for node in ast.parse(cell.source).body:
            assert isinstance(node, ast.Assign) and node.targets[0].id.isupper()
            ast.literal_eval(node.value)
    if len(cells) > 1:
        fine_print, open_cell = cells  # in this order: an injected cell then overrides both
        assert is_folded(fine_print) and "fine-print" in fine_print.metadata["tags"]
        assert not is_folded(open_cell) and len(ast.parse(open_cell.source).body) <= 15


@each_notebook
def test_committed_outputs_are_of_one_clean_run_of_this_code(path, read):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert "widgets" not in notebook.metadata
    digest = hashlib.sha256("\n\0\n".join(cell.source for cell in code).encode()).hexdigest()
    assert notebook.metadata["source_sha256"] == digest, "the code moved on: run tools/publish_notebook.py"


@each_notebook
def test_committed_outputs_name_no_place_of_this_machine(path):
    text = path.read_text(encoding="utf-8")
    for place in (str(PROJECT), "/root/", "/home/", "/tmp/"):
        assert place not in text


@each_notebook
def test_code_cells(path, read):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert cell.source.strip()
            for pattern in FORBIDDEN:
                assert not re.search(pattern, cell.source), pattern


@each_notebook
def test_a_folded_cell_is_folded_in_every_tool_and_holds_no_step_of_the_notebook(path, read):
    steps = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.If, ast.Expr, ast.For, ast.With
    for cell in read(path).cells:
        if cell.cell_type != "code" or not any(marks(cell)):
            continue
        assert all(marks(cell)), cell.source[:60]
        assert "fine-print" in cell.metadata["tags"] or cell.source.startswith(
            ("# workshop · ", "# workshop of this notebook · ")
        )
        assert all(isinstance(node, steps) for node in ast.parse(cell.source).body), cell.source[:60]
        assert not cell.outputs and not asks_the_model(cell), f"a folded cell shows something: {cell.source[:60]}"
        assert not re.search(r"^(?:\w.*= )?(?:print|display|show_table|train)\(", cell.source, re.M), cell.source[:60]


@each_notebook
def test_the_page_is_no_longer_than_what_has_been_reached(path, read):
    found = figures(read(path))
    cells, words, lines, reply, loss, longest = PAGES[path.name[:2]]
    assert found["cells"] <= cells and found["words"] <= words and found["open lines"] <= lines
    assert found["first reply"] <= reply and found["first loss"] <= loss
    assert found["longest cell"] <= longest and found["median cell"] <= 15


@each_notebook
def test_rhythm_and_prose(path, read):
    cells, found = read(path).cells, figures(read(path))
    assert found["cells in a row"] <= (1 if any(map(is_folded, cells)) else 2)
    assert found["words a line"] >= 6
    for cell in cells:
        if cell.cell_type == "markdown":
            assert "base64" not in cell.source
            assert not re.search(r"\b(simply|easily|just)\b", cell.source, re.I), cell.source[:80]


@each_notebook
def test_unsloth_is_imported_before_what_it_patches(path):
    order = re.findall(r"^ *(?:from|import) (unsloth|trl|transformers|peft)\b", "\n".join(code_cells(path)), re.M)
    assert order[0] == "unsloth"


def copies(notebooks, names):
    """Return {name: {source: [notebooks]}} of top-level definitions."""
    found = {}
    for path in notebooks:
        for node in [node for source in code_cells(path) for node in ast.parse(source).body]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                found.setdefault(node.name, {}).setdefault(ast.unparse(node), []).append(path.name)
    return found


def test_shared_cells_are_identical(read):
    with_workshop = [path for path in NOTEBOOKS if any(map(is_folded, read(path).cells))]
    topics = {}
    for path in with_workshop:
        for cell in read(path).cells:
            if cell.cell_type == "code" and cell.source.startswith(WORKSHOP):
                title = cell.source.splitlines()[0]
                topics.setdefault(title, {}).setdefault(cell.source, []).append(path.name)
    assert len(topics) >= 6
    for name, versions in (topics | copies(with_workshop, OPEN_COPIES)).items():
        assert len(versions) == 1, f"{name} differs between {list(versions.values())}"
    assert set(copies(with_workshop, OPEN_COPIES)) == OPEN_COPIES
    for name, versions in copies([p for p in NOTEBOOKS if p not in with_workshop], BEFORE_THE_WORKSHOP).items():
        assert len(versions) == 1, f"{name} differs between {list(versions.values())}"


def test_ruff():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=PROJECT, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout


def test_no_absolute_paths_or_registry_hosts_in_the_tree():
    listing = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    hosts = re.compile(r"(pypi\.org|pythonhosted|download\.pytorch|files\.pyth|npmjs\.org|deb\.debian)")
    for name in listing.stdout.splitlines():
        if name.endswith((".py", ".md", ".txt", ".toml", ".ipynb", "Makefile")) and name != "tests/test_static.py":
            assert not hosts.search((PROJECT / name).read_text(encoding="utf-8")), name


def test_git_ignores_what_must_not_be_committed():
    for name in ("outputs/x/adapter/a.safetensors", "Books/Author/book.pdf", ".finetuning/bin/python",
                 "NoteBooks/unsloth_compiled_cache/x.py", "NoteBooks/01_x_executed.ipynb", "tools/__pycache__/a.pyc"):  # fmt: skip
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=PROJECT).returncode == 0, name
    for name in ("outputs/README.md", "Books/README.md"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=PROJECT).returncode == 1, name


def test_top_level():
    for name in ("NoteBooks", "Books", "data", "outputs", "tools", "benchmarks", "tests", ".ci", "CLAUDE.md",
                 "README.md", "requirements.txt", ".gitignore", "Makefile"):  # fmt: skip
        listing = subprocess.run(["git", "ls-files", name], cwd=PROJECT, capture_output=True, text=True)
        assert listing.stdout, f"{name} is not in a fresh clone"


def test_every_direct_dependency_is_pinned_explained_and_in_the_lock():
    lock = {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1].strip()
        for line in (PROJECT / "requirements.lock.txt").read_text().splitlines()
        if "==" in line
    }
    for line in (PROJECT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w-]+)==(\S+)\s+# \S.*", line)
            assert match, f"not pinned, or without a reason: {line}"
            assert lock[match[1].lower().replace("_", "-")] == match[2]
    named = (PROJECT / "requirements.txt").read_text()
    for package in ("unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "datasets", "pymupdf", "jupyter",
                    "nbconvert", "trackio"):  # fmt: skip
        assert re.search(rf"^{package}==", named, re.M)
