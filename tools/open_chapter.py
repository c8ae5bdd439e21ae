"""Open a chapter at a section: run its cells up to there, with other parameters, and use its names.

The solutions in NoteBooks/solutions/ work on a chapter's own functions, data and model by this road; they copy nothing.
"""

import ast
import re
import time
import types

import nbformat
from bootstrap import PROJECT
from IPython.utils.capture import capture_output
from notebook_code import parameters_of

PARTS = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def sections_of(path):
    """Return [(headings a code cell stands under, innermost last; the cell)] of a notebook."""
    found, headings = [], []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            found.append(([text for _, text in headings], cell))
        else:
            for marks, text in re.findall(r"^(#+) (.+)$", cell.source, re.M):
                headings = [(level, other) for level, other in headings if level < len(marks)] + [(len(marks), text)]
    return found


def definitions_only(source):
    """Return a cell's functions, classes, imports and constants, as a syntax tree."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, PARTS) or isinstance(node, ast.Assign)
                 and getattr(node.targets[0], "id", "").isupper()]  # fmt: skip
    return tree


def open_chapter(number, until, skip=(), **parameters):
    """Return a chapter as a module: what its cells before the heading `until` define, with these parameters.

    Sections named in `skip` give their functions and constants only. What is set on the module, its functions see.
    Its results go to outputs/solutions/. ValueError where a heading or a parameter is not the chapter's.
    """
    path = next((PROJECT / "NoteBooks").glob(f"{number}_*.ipynb"))
    cells, started = sections_of(path), time.perf_counter()
    unknown = {until, *skip} - {text for headings, _ in cells for text in headings}
    unknown |= set(parameters) - set(parameters_of(path))
    if unknown:
        raise ValueError(f"{path.name} has no {sorted(unknown)}")
    chapter = types.ModuleType(f"chapter_{number}")
    try:
        with capture_output() as captured:
            for headings, cell in cells:
                if until in headings:
                    break
                whole = not set(skip) & set(headings)
                tree = ast.parse(cell.source) if whole else definitions_only(cell.source)
                exec(compile(tree, path.name, "exec"), vars(chapter))
                if "parameters" in cell.metadata.get("tags", []):
                    vars(chapter).update({"NOTEBOOK": f"solutions/{number}", "PROFILE": "rehearsal", **parameters})
            chapter.plt.close("all")
    except BaseException:
        captured.show()  # after the capture: within, it would show itself what it shows, without end
        raise
    print(f"chapter {number}, opened before “{until}” in {time.perf_counter() - started:.0f} s", end="")
    print("".join(f"; {name}={value!r}" for name, value in parameters.items()))
    return chapter
