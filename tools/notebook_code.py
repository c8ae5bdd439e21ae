"""A notebook's code without running it whole: its cells, and single definitions lifted out of them.

Tests and benchmarks use the notebooks' own functions by this road, so that no second copy can drift away.
"""

import ast

import nbformat


def code_cells(path):
    """Return the sources of a notebook's code cells."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def parameter_cells(path):
    """Return the cells that hold a notebook's parameters: the folded fine print, if there is one, and the open cell."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if {"parameters", "fine-print"} & set(cell.metadata.get("tags", []))]


def parameters_of(path):
    """Return {name: value} of a notebook's parameters; where profiles differ, {"full": …, "rehearsal": …}."""
    return {node.targets[0].id: ast.literal_eval(node.value) for cell in parameter_cells(path)
            for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)}  # fmt: skip


def write_with_parameters(path, copy, parameters):
    """Write a copy of a notebook, with a cell of other values after its parameters, as papermill would inject it.

    The injected cell stands behind the fine print too, and so overrides both.
    """
    notebook = nbformat.read(path, as_version=4)
    index = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    copy.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, copy)


def lift(path, *names, without=()):
    """Return a namespace that holds these top-level definitions of a notebook, and the imports they need.

    Packages named in `without` are not imported. Raises NameError if a name is not defined at the top level.
    """
    wanted, found, body = set(names), set(), []
    for node in [node for source in code_cells(path) for node in ast.parse(source).body]:
        if isinstance(node, ast.Import):
            node.names = [name for name in node.names if name.name.split(".")[0] not in without]
            body += [node] if node.names else []
        elif isinstance(node, ast.ImportFrom):
            body += [node] if node.module.split(".")[0] not in without else []
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted | {"NotebookError"}:
            body.append(node)
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            assigned = {target.id for target in node.targets if isinstance(target, ast.Name)} & wanted
            body += [node] if assigned else []
            found |= assigned
    if missing := wanted - found:
        raise NameError(f"{path.name} does not define {sorted(missing)} at the top level")
    body.sort(key=lambda node: not isinstance(node, ast.Import | ast.ImportFrom))
    namespace = {}
    exec(compile(ast.Module(body=body, type_ignores=[]), path.name, "exec"), namespace)
    return namespace
