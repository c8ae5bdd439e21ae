"""What can be said of the notebooks and the tree without running anything."""

import ast
import hashlib
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT, code_cells

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
SHARED = [
    "find_response_markers",
    "check_masks",
    "show_mask",
    "generate_replies",
    "plot_loss",
    "write_run_card",
    "choose_gpu",
    "output_folder",
    "phase",
    "read_jsonl",
    "wilson",
    "NotebookError",
]
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


@each_notebook
def test_headings(path, read):
    found = [
        line
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match(r"##? ", line)
    ]
    assert len(found) == len(HEADINGS)
    for line, pattern in zip(found, HEADINGS, strict=True):
        assert re.match(pattern, line), line
    opening = read(path).cells[0].source
    assert "**You will learn**" in opening and "**You will need**" in opening
    closing = "\n".join(cell.source for cell in read(path).cells[-4:])
    for part in ("### Exercises", "### In practice", "### References"):
        assert part in closing


@each_notebook
def test_parameters_cell_holds_literals_only(path, read):
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.Assign) and node.targets[0].id.isupper()
        ast.literal_eval(node.value)


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
def test_code_cells(path):
    for source in code_cells(path):
        ast.parse(source)
        assert source.strip()
        lists = source.startswith("PROFILE = ") or source.count("\nimport ") > 10  # parameters, imports
        assert len(source.splitlines()) <= (50 if lists else 30), source.splitlines()[0]
        for pattern in FORBIDDEN:
            assert not re.search(pattern, source), pattern


@each_notebook
def test_rhythm_and_prose(path, read):
    cells = read(path).cells
    run = worst = 0
    for cell in cells:
        run = run + 1 if cell.cell_type == "code" else 0
        worst = max(worst, run)
    assert worst <= 2
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(1 for source in code_cells(path) for line in source.splitlines() if line.strip())
    assert words / lines >= 6
    for cell in cells:
        if cell.cell_type == "markdown":
            assert "base64" not in cell.source
            assert not re.search(r"\b(simply|easily|just)\b", cell.source, re.I), cell.source[:80]


@each_notebook
def test_unsloth_is_imported_before_what_it_patches(path):
    order = re.findall(r"^(?:from|import) (unsloth|trl|transformers|peft)\b", "\n".join(code_cells(path)), re.M)
    assert order[0] == "unsloth"


def test_shared_cells_are_identical():
    bodies = {}
    for path in NOTEBOOKS:
        for source in code_cells(path):
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in SHARED:
                    bodies.setdefault(node.name, {}).setdefault(ast.unparse(node), []).append(path.name)
                    assert node.end_lineno - node.lineno < 30, f"{node.name} is too long to be copied"
    assert set(bodies) == set(SHARED)
    for name, copies in bodies.items():
        assert len(copies) == 1, f"{name} differs between {list(copies.values())}"


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
