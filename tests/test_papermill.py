"""Parameters from the command line and from a file, by papermill itself: on a page that ends where the values are printed."""

import subprocess
import sys

import nbformat
import pytest
from conftest import PROJECT


@pytest.fixture
def page(notebook_01, tmp_path):
    """Notebook 01 up to the cell that prints the values in use."""
    notebook = nbformat.read(notebook_01, as_version=4)
    last = next(
        i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and "results go to" in cell.source
    )
    notebook.cells = notebook.cells[: last + 1]
    path = tmp_path / "page.ipynb"
    nbformat.write(notebook, path)
    return path


def papermill(page, *options):
    """Run papermill; return (finished process, text of the last cell's output)."""
    out = page.with_name("out.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(page), str(out), *options]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    last = nbformat.read(out, as_version=4).cells[-1] if out.exists() else None
    return result, "".join(output.get("text", "") for output in last.outputs) if last else ""


def test_a_file_and_the_command_line_reach_open_values_and_fine_print(page):
    result, shown = papermill(
        page, "-f", str(PROJECT / "NoteBooks" / "params.yaml"), "-p", "MAX_STEPS", "2", "-p", "RESUME", "true"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for value in (
        "LEARNING_RATE=0.0005",
        "LORA_RANK=8",
        "EXPERT_LAYERS=[]",
        "BATCH_SIZE=1",
        "MERGE=False",
        "MAX_STEPS=2",
        "RESUME=True",
    ):
        assert f"{value}  " in f"{shown}  ".replace("\n", "  "), value


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-p", "LEARNING_RAET", "5e-4"), "There is no parameter LEARNING_RAET; did you mean LEARNING_RATE?"),
        (("-p", "MAX_STEPS", "many"), "Parameter MAX_STEPS: it is 'many' and must be a whole number from -1."),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_folder(page, options, sentence):
    before = set((PROJECT / "outputs").iterdir())
    result, _ = papermill(page, *options)
    assert result.returncode != 0 and sentence in result.stderr
    assert set((PROJECT / "outputs").iterdir()) == before
