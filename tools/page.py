"""What a reader meets on the notebooks' pages, in figures: `make page`.

    python tools/page.py [01 02 … or a notebook's path]

A *folded* cell carries all three marks (tag `hide-input`, `jupyter.source_hidden`, `cellView: form`), since JupyterLab,
books and Colab each read another one; the *open* page is the rest. Figures count lines of code that are not blank.
"""

import ast
import re
import statistics
import sys
from pathlib import Path

import nbformat

ANSWERS = {
    "generate",
    "generate_replies",
    "measure",
    "answer",
    "show_reply",
    "ask",
}  # calls after which a reply stands on the page
LOSS = re.compile(r"step\s+\d+.*loss\s+\d")


def marks(cell):
    """Return the three marks of a folded cell, each True or False."""
    metadata = cell.metadata
    return ("hide-input" in metadata.get("tags", []), metadata.get("jupyter", {}).get("source_hidden") is True,
            metadata.get("cellView") == "form")  # fmt: skip


def is_folded(cell):
    """Tell whether a cell is folded in every tool."""
    return cell.cell_type == "code" and all(marks(cell))


def line_count(cell):
    """Return the number of lines of a cell that are not blank."""
    return sum(1 for line in cell.source.splitlines() if line.strip())


def asks_the_model(cell):
    """Tell whether a cell calls, outside its definitions, a function that makes the model reply."""
    nodes = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = [node.func for top in nodes for node in ast.walk(top) if isinstance(node, ast.Call)]
    return any(getattr(call, "id", getattr(call, "attr", "")) in ANSWERS for call in calls)


def shows_a_loss(cell):
    """Tell whether a cell's printed output holds a training step's loss."""
    return any(LOSS.search(output.get("text", "")) for output in cell.get("outputs", []))


def figures(notebook):
    """Return {figure: number} of a notebook: cells, words, open and folded lines, where reply and loss come, lengths."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell for cell in code if not is_folded(cell)]
    lengths = [line_count(cell) for cell in shown]
    total, words = sum(lengths), sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")

    def place(test):
        index = next((i for i, cell in enumerate(shown) if test(cell)), None)
        return 1.0 if index is None else round(sum(lengths[: index + 1]) / total, 3)

    row = longest_row = 0
    for cell in notebook.cells:
        row = row + 1 if cell.cell_type == "code" and not is_folded(cell) else 0
        longest_row = max(longest_row, row)
    return {
        "cells": len(notebook.cells),
        "words": words,
        "open lines": total,
        "folded lines": sum(map(line_count, code)) - total,
        "first reply": place(asks_the_model),
        "first loss": place(shows_a_loss),
        "words a line": round(words / max(1, total), 1),
        "median cell": statistics.median(lengths),
        "longest cell": max(lengths),
        "cells in a row": longest_row,
    }


def main():
    from run_notebooks import choose_notebooks

    table = []
    for path in choose_notebooks(sys.argv[1:]):
        found = figures(nbformat.read(path, as_version=4))
        table.append(["", *found] if not table else [])
        table[-1:] = [row for row in table[-1:] if row]
        table.append(
            [path.name[:2], *(f"{value:.0%}" if "first" in name else str(value) for name, value in found.items())]
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
