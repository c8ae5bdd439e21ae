"""Kill -9 at random moments of a short training: every restart goes on, and the end is that of an unbroken run.

One process runs notebook 01 up to its training and forks for each attempt, so that an attempt costs seconds: the
child trains and saves the adapter, and is killed somewhere on the way, also while it writes a checkpoint.
"""

import json
import subprocess
import sys

import pytest
from conftest import PROJECT

HARNESS = '''
import ast, json, os, pathlib, random, shutil, signal, sys, time
sys.path[:0] = ["tools", "tests"]
import nbformat
from conftest import read_jsonl

kills, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
path = next(pathlib.Path("NoteBooks").glob("01_*.ipynb")).resolve()
small = json.loads((folder / "parameters.json").read_text())
space, cells = {}, [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
for number, cell in enumerate(cells):
    if cell.source.startswith("TRAINING = "):
        break
    exec(compile(cell.source, f"cell {number}", "exec"), space)
    if "parameters" in cell.metadata.get("tags", []):
        space.update(small)
names = {"train", "write_adapter", "RECORD"}
training = [node for cell in cells[number:] for node in ast.parse(cell.source).body
            if getattr(node, "name", None) in names]
exec(compile(cells[number].source, "arguments", "exec"), space)
exec(compile(ast.Module(body=training, type_ignores=[]), "training", "exec"), space)
space["tracker"] = "none"
output = space["OUTPUT"]


def attempt(resume, log, wait=None):
    """Train and save in a child; kill it after `wait` seconds; return whether it came to its end, and its seconds."""
    sys.stdout.flush()
    started, child = time.monotonic(), os.fork()
    if child == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        space["RESUME"] = resume
        try:
            history = space["train"]("ours", space["labelled_train"])
            space["RECORD"] = {"family": "harmony", "log_history": history}
            space["replace_folder"](output / "adapter", space["write_adapter"])
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -9):
        raise SystemExit("an attempt failed by itself")
    return status == 0, time.monotonic() - started


def result():
    """Return the training losses of the saved adapter, and its SHA-256."""
    import hashlib
    history = json.loads((output / "adapter" / "training.json").read_text())["log_history"]
    weights = hashlib.sha256((output / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return {"losses": {entry["step"]: entry["loss"] for entry in history if "loss" in entry}, "weights": weights}


_, seconds = attempt(False, folder / "unbroken.txt")
report = {"unbroken": result(), "seconds": seconds, "kills": []}
earlier = report["unbroken"]["weights"]
shutil.rmtree(output / "checkpoints")
draw = random.Random(int(sys.argv[3]))
while len(report["kills"]) < kills:
    ended, _ = attempt(True, folder / "killed.txt", draw.uniform(0.05, 0.9) * seconds)
    there = sorted(path.name for path in (output / "checkpoints" / "ours").glob("checkpoint-*"))
    report["kills"].append({"ended": ended, "there": there, "adapter whole": result()["weights"] == earlier})
    if ended or (there and there[-1].endswith(str(small["MAX_STEPS"]))):
        shutil.rmtree(output / "checkpoints")  # from the beginning again: there was nothing left to kill
attempt(True, folder / "killed.txt")
report["resumed"] = result()
(folder / "report.json").write_text(json.dumps(report))
shutil.rmtree(output)
'''


@pytest.mark.long
@pytest.mark.parametrize("kills", [10])
def test_ten_kills_cost_nothing_but_time(kills, tmp_path):
    import os

    from test_distributed import TINY, few

    folder = PROJECT / "outputs" / "executed" / f"crashes-{os.getpid()}"
    folder.mkdir(parents=True)
    files = {"DATASET": few("multilingual_thinking.jsonl", folder, 40),
             "HELD_OUT_PROMPTS": few("held_out_prompts.jsonl", folder, 3),
             "UNSEEN_PROMPTS": few("unseen_language_prompts.jsonl", folder, 1)}  # fmt: skip
    small = {**TINY, **files, "MAX_STEPS": 8, "SAVE_STEPS": 2, "EVAL_STEPS": 8, "EFFECTIVE_BATCH": 2, "TRACKER": "none"}
    (folder / "parameters.json").write_text(json.dumps(small))
    (folder / "harness.py").write_text(HARNESS)
    try:
        command = [sys.executable, str(folder / "harness.py"), str(kills), str(folder), "7"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        report, printed = json.loads((folder / "report.json").read_text()), (folder / "killed.txt").read_text()
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    print(report["seconds"], [kill["there"] for kill in report["kills"]], printed.count("is not whole"))
    assert len(report["kills"]) == kills and printed.count("going on from checkpoint-")
    assert all(kill["adapter whole"] for kill in report["kills"])
    one, two = report["unbroken"]["losses"], report["resumed"]["losses"]
    assert one.keys() == two.keys()
    assert max(abs(one[step] - two[step]) for step in one) < 1e-3
