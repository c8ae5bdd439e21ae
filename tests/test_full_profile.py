"""The full profile of all four notebooks, from the first cell to the last, against the stand-in Hub: `make test-long`.

Models of the true architectures, narrow and with random weights, under their true ids and pinned revisions. What only
limits time is overridden; model, data, revisions, precision, batch, ranks and checks are the full profile's own.
"""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import stand_in_hub
from conftest import PLANTED, PROJECT, WATCH, leaks, notebook_with
from run_notebooks import run_card

sys.path.insert(0, str(PROJECT / "benchmarks"))
from on_gpu import FEW  # noqa: E402

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def hub(stand_in_root, tmp_path_factory):
    """The stand-in Hub, running; what is pushed goes to a folder of its own."""
    uploads = tmp_path_factory.mktemp("uploads")
    with stand_in_hub.Hub(stand_in_root, stand_in_hub.all_revisions(), uploads=uploads) as hub:
        yield hub


def execute(number, hub, folder, **parameters):
    """Run a notebook in the full profile; return (finished process, executed copy, hosts outside this machine)."""
    copy = PROJECT / "outputs" / f".{folder.name}.ipynb"  # below the project, so that the notebook finds its root
    notebook_with(number, copy, parameters)
    outside, executed = folder / "outside.txt", folder / "executed.ipynb"
    outside.touch()
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
    command += ["--config", "tools/nbconvert_config.py", "--ExecutePreprocessor.timeout=1800"]
    command += ["--output-dir", str(folder), "--output", executed.name, str(copy)]
    environment = {**hub.environment(folder / "home"), "EXECUTED_PARTIAL": str(executed), "OUTSIDE": str(outside),
                   "PYTHONPATH": WATCH, "JUPYTER_PREFER_ENV_PATH": "1", "HF_TOKEN": PLANTED["HF_TOKEN"]}  # fmt: skip
    try:
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    finally:
        copy.unlink()
    return result, executed, outside.read_text().split("\n")[:-1]


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """Return what runs a notebook once, pushing: (run card, requests to the hub, hosts outside, executed copy, folder).

    What a run leaves in outputs/ goes away in the end.
    """
    runs, before = {}, set((PROJECT / "outputs").iterdir())

    def once(number):
        if number not in runs:
            hub.requests.clear()
            folder = tmp_path_factory.mktemp(f"full-{number}")
            seen = set((PROJECT / "outputs").iterdir())
            result, executed, outside = execute(
                number, hub, folder, **FEW[number], PUSH_TO_HUB=f"reader/model-{number}"
            )
            assert result.returncode == 0, result.stderr[-4000:]
            [output] = [
                path
                for path in set((PROJECT / "outputs").glob(f"{number}_*")) - seen
                if (path / "run_card.json").exists()
            ]
            runs[number] = run_card(executed), list(hub.requests), outside, executed, output
        return runs[number]

    yield once
    for path in set((PROJECT / "outputs").iterdir()) - before:
        if path.name[:2] in FEW:
            shutil.rmtree(path)


def test_the_watch_sees_who_looks_outside(tmp_path):
    (tmp_path / "outside.txt").touch()
    look = "import socket\ntry: socket.create_connection(('nowhere.invalid', 80), 1)\nexcept OSError: pass\n"
    look += "try: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass\n"
    look += "try: socket.socket().connect(('192.0.2.1', 80))\nexcept OSError as error: print(error)"
    environment = {"PYTHONPATH": WATCH, "OUTSIDE": str(tmp_path / "outside.txt"), "CUT": "1"}
    result = subprocess.run([sys.executable, "-c", look], env=environment, check=True, capture_output=True, text=True)
    assert "unreachable (tests/watch)" in result.stdout
    seen = (tmp_path / "outside.txt").read_text().splitlines()
    assert seen == ["socket.getaddrinfo nowhere.invalid", "socket.connect 192.0.2.1"]


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
    card, requests, outside, _, _ = run(number)
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
    card, requests, *_ = run(number)
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
    card, requests, *_ = run("03")
    assert not [path for _, path, _ in requests if "/datasets/" in path]
    assert len(card["dataset"]["id"]) == len(card["dataset"]["revision"]) == 2


ABOUT = re.compile(r"^(?:/api)?/(?:big-files/)?(?:models/|datasets/)?([^/]+/[^/?]+)")
WITHOUT_A_NAME = {"/api/repos/create", "/api/validate-yaml", "/api/whoami-v2"}  # of a push, and of Unsloth's merge


def what_is_asked(requests):
    """Return {repository: {methods}} of a run's requests to the Hub; those of a push that name none are left out."""
    found = {}
    for method, path, _ in requests:
        if path not in WITHOUT_A_NAME and not path.startswith("/lfs/"):
            found.setdefault(ABOUT.match(path)[1].removesuffix(".git"), set()).add(method)
    return found


@pytest.mark.parametrize("number", sorted(FEW))
def test_the_hub_is_asked_for_nothing_that_the_page_does_not_name(run, number):
    """Each repository stands in what the notebook printed; only pushed ones are written to, and those were announced."""
    _, requests, _, executed, _ = run(number)
    printed = "".join(output.get("text", "") for cell in nbformat.read(executed, as_version=4).cells
                      for output in cell.get("outputs", []))  # fmt: skip
    asked_for = what_is_asked(requests)
    assert not [name for name in asked_for if name not in printed], (sorted(asked_for), printed[:2000])
    pushed = {name for name in asked_for if name.startswith("reader/")}
    assert f"reader/model-{number}" in pushed or number == "04"
    for name, methods in asked_for.items():
        assert methods <= ({"GET", "HEAD", "POST"} if name in pushed else {"GET", "HEAD"}), (name, methods)


@pytest.mark.parametrize("number", sorted(FEW))
def test_what_was_saved_is_pushed_private_and_whole(run, hub, number):
    _, _, _, _, output = run(number)
    saved = {path.parent.name: path.parent for path in output.glob("[!.]*/training.json")}
    targets = {name: f"reader/model-{number}" + ("" if name == "adapter" else f"-{name}") for name in saved}
    assert saved and {name for name in hub.private if f"model-{number}" in name} == {
        f"models/{target}" for target in targets.values()}  # fmt: skip
    for name, folder in saved.items():
        arrived = hub.uploads / "models" / targets[name]
        assert hub.private[f"models/{targets[name]}"] is True
        assert {path.name: path.read_bytes() for path in arrived.iterdir()} == {
            path.name: path.read_bytes() for path in folder.iterdir()}  # fmt: skip
        assert not [
            path.name for path in arrived.iterdir() if path.suffix in (".pt", ".jsonl", ".arrow", ".bin", ".db")
        ]


@pytest.mark.parametrize("number", sorted(FEW))
def test_the_token_that_pushed_is_written_nowhere(run, hub, number):
    *_, executed, output = run(number)
    assert not leaks(executed.parent, output, hub.uploads)
