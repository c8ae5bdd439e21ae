"""Put the outputs of one clean rehearsal into a notebook: from outputs/executed/ back to NoteBooks/.

    python tools/publish_notebook.py 01

Refuses a copy whose code is not the notebook's, one with an error, or one of the full profile; solutions have no run
card and always run the rehearsal. The SHA-256 of the code cells goes into the notebook's metadata; a test fails when
the code has moved on since. A chapter's picture (figure.svg, figure.png in the run's folder) goes to book/figures/.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
from run_notebooks import EXECUTED, PROJECT, choose_notebooks, run_card


def code_of(notebook):
    """Return the sources of a notebook's code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def source_sha256(notebook):
    """Return the SHA-256 of a notebook's code cells, joined by a separator that no cell contains."""
    return hashlib.sha256("\n\0\n".join(code_of(notebook)).encode()).hexdigest()


def publish(path):
    """Write the executed copy's outputs into the notebook at `path`."""
    executed_path = EXECUTED / f"{path.stem}_executed.ipynb"
    if not executed_path.exists():
        raise SystemExit(
            f"publish: {executed_path.relative_to(PROJECT)} is not there; run `make run NOTEBOOK={path.name[:2]}`."
        )
    notebook, executed = nbformat.read(path, as_version=4), nbformat.read(executed_path, as_version=4)
    if code_of(notebook) != code_of(executed):
        raise SystemExit(f"publish: {path.name} has changed since it was run; run it again.")
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    if any(cell.execution_count is None or any(out.output_type == "error" for out in cell.outputs) for cell in ran):
        raise SystemExit(f"publish: {executed_path.name} did not run to its end without an error.")
    card = run_card(executed_path)
    if path.parent.name != "solutions" and (card is None or card["profile"] != "rehearsal"):
        raise SystemExit(f"publish: {executed_path.name} is not a finished rehearsal.")
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = without_folders(ran.outputs), ran.execution_count
    notebook.metadata = {
        "kernelspec": {"display_name": ".finetuning", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "source_sha256": source_sha256(notebook),
    }
    nbformat.validate(notebook)
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, path)
    for figure in PROJECT.glob(f"outputs/{path.stem}*/figure.*"):  # the chapter's picture, for the README
        kept = figure.parent / "run_card.json"
        if kept.exists() and json.loads(kept.read_text()) == card:
            (PROJECT / "book" / "figures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(figure, PROJECT / "book" / "figures" / f"{path.stem}{figure.suffix}")
    print(f"{path.relative_to(PROJECT)}: outputs of {'the run that began ' + card['started'] if card else 'its run'}")


def without_folders(outputs):
    """Return a cell's outputs, this machine's folders kept out of its streams."""
    for output in outputs:
        if output.output_type == "stream":
            output.text = output.text.replace(f"{PROJECT}{os.sep}", "")
    return outputs


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for chosen in choose_notebooks(sys.argv[1:]):
        publish(chosen)
