"""JupyterLab as `make lab` starts it: what its server lists, and each notebook run in a real browser."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT, SHORT, notebook_with
from page import is_folded

import book as tool

OWN = PROJECT / "outputs" / "lab-env"
PLAYWRIGHT = "playwright==1.65.0"
EXECUTED = PROJECT / "outputs" / "executed"
QUESTION = "Wie heißt die Hauptstadt von Peru?"
CHANGES = {  # line of code, and what a reader writes in its place
    "05": ["SHOW = 3", "SHOW = 2", 'chat("', f'chat("{QUESTION}", new=True)'],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that `make lab` started, without a token; it ends with this module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"OPTIONS=--port {port} --no-browser --ServerApp.port_retries=0 --IdentityProvider.token="
    log = tmp_path_factory.mktemp("lab") / "log"
    with open(log, "w") as written:
        server = subprocess.Popen(
            ["make", "lab", options], cwd=PROJECT, stdout=written, stderr=written, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api"):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        time.sleep(3)  # the kernels end with the server
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def ask(address):
    with urllib.request.urlopen(address) as answer:
        return json.load(answer)


def test_the_server_lists_the_notebooks_and_their_kernel(lab):
    listed = ask(f"{lab}/api/contents/NoteBooks")["content"]
    assert {path.name for path in NOTEBOOKS} <= {entry["name"] for entry in listed if entry["type"] == "notebook"}
    for path in NOTEBOOKS:
        content = ask(f"{lab}/api/contents/NoteBooks/{path.name}")["content"]
        kernel = content["metadata"]["kernelspec"]["name"]
        assert kernel in ask(f"{lab}/api/kernelspecs")["kernelspecs"]
        assert sum(bool(cell["metadata"].get("jupyter", {}).get("source_hidden")) for cell in content["cells"]) > 5


@pytest.fixture(scope="module")
def browser():
    """(Python with playwright, Chromium), or a skip that says what is missing; playwright is not in the lock."""
    chromium = tool.find_chromium()
    if not chromium:
        pytest.skip("needs Chromium (the package chromium)")
    python = OWN / "bin" / "python"
    if not python.exists():
        uv = [sys.executable, "-m", "uv"]
        for command in (["venv", "-q", str(OWN)], ["pip", "install", "-q", "--python", str(python), PLAYWRIGHT]):
            result = subprocess.run([*uv, *command], capture_output=True, text=True)
            if result.returncode:
                shutil.rmtree(OWN, ignore_errors=True)
                pytest.skip(f"uv cannot install {PLAYWRIGHT}: {result.stderr.strip()[-200:]}")
    return python, chromium


@pytest.mark.long
@pytest.mark.parametrize("number", [path.name[:2] for path in NOTEBOOKS])
def test_a_notebook_runs_in_a_browser_as_a_reader_runs_it(lab, browser, number):
    """Restart and run all of a copy with short values; what its reader wrote into it is followed."""
    python, chromium = browser
    if number == "05" and not list(PROJECT.glob("outputs/0[1-4]_*/adapter")):
        pytest.skip("needs an adapter of another notebook: make run NOTEBOOK=01")
    copy, kept = EXECUTED / f"{number}_lab.ipynb", set(PROJECT.glob("outputs/*"))
    notebook_with(number, copy, SHORT.get(number, {"MAX_NEW_TOKENS": 150}))
    notebook = nbformat.read(copy, as_version=4)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, copy)
    url = f"{lab}/lab/tree/{copy.relative_to(PROJECT)}?reset"
    command = [python, PROJECT / "tests" / "lab_driver.py", chromium, url, copy, 30, *CHANGES.get(number, [])]
    try:
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        seen, saved = json.loads(result.stdout.splitlines()[-1]), nbformat.read(copy, as_version=4)
    finally:
        copy.unlink(missing_ok=True)
        for folder in set(PROJECT.glob(f"outputs/{number}_*")) - kept:
            shutil.rmtree(folder)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    errors = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert not errors, errors[0].evalue
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    folded = [place for place, cell in enumerate(saved.cells) if is_folded(cell)]
    with_image = [place for place, cell in enumerate(saved.cells)
                  if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))]  # fmt: skip
    assert seen["folded"] == seen["folded after"] == folded
    assert seen["images"] == with_image
    shown = " ".join(" ".join(heading.split()) for heading in seen["headings"])
    for cell in saved.cells:
        for line in re.findall(r"^#{1,3} (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else []:
            assert re.sub(r"[`*]", "", line) in shown, line
    if number == "05":
        text = {cell.source: "".join(output.get("text", "") for output in cell.outputs) for cell in code}
        assert any("SHOW=2" in said for said in text.values())
        assert any(re.search(r"\bof (?:the )?2\b", said) for said in text.values())
        [answer] = [said for source, said in text.items() if QUESTION in source]
        assert "[answers]" in answer or "[thinks]" in answer
