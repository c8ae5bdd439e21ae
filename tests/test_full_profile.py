"""The full profile of all four notebooks, from the first cell to the last, against the stand-in Hub: `make test-long`.

Models of the true architectures, narrow and with random weights, under their true ids and pinned revisions. What only
limits time is overridden; model, data, revisions, precision, batch, ranks and checks are the full profile's own.
"""

import shutil
import subprocess
import sys

import pytest
import stand_in_hub
from conftest import PROJECT, notebook_with
from run_notebooks import run_card

sys.path.insert(0, str(PROJECT / "benchmarks"))
from on_gpu import FEW  # noqa: E402

pytestmark = pytest.mark.long

WATCH = '''"""Write down every address outside this machine that Python opens a connection to, or asks the name of."""
import os
import sys


def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        with open(os.environ["OUTSIDE"], "a") as record:
            record.write(f"{event} {host}\\n")


sys.addaudithook(watch)
'''


@pytest.fixture(scope="module")
def hub(stand_in_root):
    """The stand-in Hub, running."""
    with stand_in_hub.Hub(stand_in_root, stand_in_hub.all_revisions()) as hub:
        yield hub


def execute(number, hub, folder, **parameters):
    """Run a notebook in the full profile; return (finished process, executed copy, hosts outside this machine)."""
    copy = PROJECT / "outputs" / f".{folder.name}.ipynb"  # below the project, so that the notebook finds its root
    notebook_with(number, copy, parameters)
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    outside, executed = folder / "outside.txt", folder / "executed.ipynb"
    outside.touch()
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
    command += ["--config", "tools/nbconvert_config.py", "--ExecutePreprocessor.timeout=1800"]
    command += ["--output-dir", str(folder), "--output", executed.name, str(copy)]
    environment = {**hub.environment(folder / "home"), "EXECUTED_PARTIAL": str(executed), "OUTSIDE": str(outside),
                   "PYTHONPATH": str(folder / "watch"), "JUPYTER_PREFER_ENV_PATH": "1"}  # fmt: skip
    try:
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    finally:
        copy.unlink()
    return result, executed, outside.read_text().split("\n")[:-1]


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """Return what runs a notebook once: (run card, requests to the hub, hosts outside); its outputs go away again."""
    runs, before = {}, set((PROJECT / "outputs").iterdir())

    def once(number):
        if number not in runs:
            hub.requests.clear()
            folder = tmp_path_factory.mktemp(f"full-{number}")
            result, executed, outside = execute(number, hub, folder, **FEW[number])
            assert result.returncode == 0, result.stderr[-4000:]
            runs[number] = run_card(executed), list(hub.requests), outside
        return runs[number]

    yield once
    for path in set((PROJECT / "outputs").iterdir()) - before:
        if path.name[:2] in FEW:
            shutil.rmtree(path)


def test_the_watch_sees_who_looks_outside(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "outside.txt").touch()
    look = "import socket\ntry: socket.create_connection(('nowhere.invalid', 80), 1)\nexcept OSError: pass\n"
    look += "try: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    environment = {"PYTHONPATH": str(tmp_path), "OUTSIDE": str(tmp_path / "outside.txt")}
    subprocess.run([sys.executable, "-c", look], env=environment, check=True)
    assert (tmp_path / "outside.txt").read_text() == "socket.getaddrinfo nowhere.invalid\n"


PARITY = {
    "01": {"untrained_adapter_changes_nothing", "disabled_adapter_is_the_base", "reloaded_adapter_same_text"},
    "02": {"untrained_adapter_changes_nothing", "disabled_adapter_is_the_base", "merged_within_tolerance",
           "reloaded_adapter_same_text", "packed_rows_are_isolated"},
    "03": {"untrained_adapter_changes_nothing", "disabled_adapter_is_the_base", "reloaded_adapter_same_text"},
    "04": {"untrained_lora_adapter_changes_nothing", "untrained_qlora_adapter_changes_nothing", "merged_within_tolerance",
           "reloaded_lora_main_same_text", "reloaded_lora_socratic_same_text", "reloaded_qlora_main_same_text",
           "reloaded_full_main_same_text"},
}  # fmt: skip


def asked(requests, kind, name, revision):
    """Return whether the hub gave a file of a repository at a revision (a big one by way of a redirection)."""
    place = f"/{'datasets/' if kind == 'datasets' else ''}{name}/resolve/{revision}/"
    return any(path.startswith(place) and status in (200, 302) for _, path, status in requests)


@pytest.mark.parametrize("number", sorted(FEW))
def test_the_full_profile_runs_to_its_end(run, number):
    card, requests, outside = run(number)
    values = stand_in_hub.parameters(number)
    assert card["profile"] == "full" and card["device"] == "CPU"
    assert card["model"] == {"id": values["MODEL"], "revision": values["MODEL_REVISION"]}
    overridden = set(FEW[number])
    for name, value in card["parameters"].items():
        if name not in overridden | {"PROFILE"}:
            assert value == values[name], f"{name} is not the full profile's"
    assert set(card["parity"]) == PARITY[number] and all(card["parity"].values())
    assert card["trainable_parameters"]["predicted"] == card["trainable_parameters"]["actual"] > 0
    assert asked(requests, "models", values["MODEL"], values["MODEL_REVISION"])
    assert not outside, f"it looked outside: {outside}"


@pytest.mark.parametrize("number", ["01", "02", "04"])
def test_the_data_sets_are_the_hubs_at_their_revisions(run, number):
    card, requests, _ = run(number)
    values = stand_in_hub.parameters(number)
    if number == "02":
        pinned = {pool: place[:2] for pool, place in values["SOURCES"].items()}
        assert {pool: [card["dataset"]["id"][pool], card["dataset"]["revision"][pool]] for pool in pinned} == pinned
        pinned = dict(pinned.values())
    else:
        names = values["DATASET"] if number == "01" else {form: place[0] for form, place in values["DATASET"].items()}
        assert card["dataset"] == {"id": names, "revision": values["DATASET_REVISION"]}
        pinned = dict.fromkeys([names] if number == "01" else names.values(), values["DATASET_REVISION"])
    for name, revision in pinned.items():
        assert asked(requests, "datasets", name, revision), name
        assert not asked(requests, "datasets", name, "main"), name


def test_notebook_03_reads_the_sample_books(run):
    card, requests, _ = run("03")
    assert not [path for _, path, _ in requests if "/datasets/" in path]
    assert len(card["dataset"]["id"]) == len(card["dataset"]["revision"]) == 2
