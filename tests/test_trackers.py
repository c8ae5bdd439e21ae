"""Trackers record offline, without login or prompt, and Trackio's dashboard draws what it recorded: `make test-long`.

SwanLab and W&B are not in the lock; they get an environment of their own (outputs/tracker-env) from
requirements-trackers.txt.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import serve
from conftest import PLANTED, PROJECT, WATCH, leaks
from test_lab import browser  # noqa: F401
from tracked_run import NOTEBOOK, STEPS

pytestmark = pytest.mark.long
OWN = PROJECT / "outputs" / "tracker-env"
REQUIREMENTS = PROJECT / "requirements-trackers.txt"


@pytest.fixture(scope="module")
def tracker_python():
    """The Python that has SwanLab and W&B before .finetuning's packages, made where it is missing or its list changed."""
    try:
        return serve.environment(OWN, REQUIREMENTS)
    except (OSError, serve.SetupError) as error:
        shutil.rmtree(OWN, ignore_errors=True)
        pytest.skip(str(error))


@pytest.fixture
def proxy():
    """(Address of a proxy that answers nobody, the list of those who called it): programs that are not Python are seen too."""
    callers, server = [], socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                caller, _ = server.accept()
            except OSError:
                return
            callers.append(caller.recv(200))
            caller.close()

    threading.Thread(target=listen, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", callers
    server.close()


def record(python, tracker, folder, proxy, run="run-1"):
    """Record a training of seconds, the network cut and nothing to type; return (what was printed, who looked outside)."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    outside = folder / "outside.txt"
    outside.touch()
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder / "home"), "PYTHONPATH": WATCH, "OUTSIDE": str(outside), "CUT": "1",
        "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost", "HF_TOKEN": PLANTED["HF_TOKEN"],
        "HF_HUB_OFFLINE": "1"}  # fmt: skip
    command = [str(python), str(PROJECT / "tests" / "tracked_run.py"), tracker, str(folder / "run"), run]
    result = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            timeout=300)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout, outside.read_text()


KEPT = {"swanlab": "swanlab/run-*", "wandb": "wandb/wandb/offline-run-*/run-*.wandb", "trackio": "trackio/*.db"}


@pytest.mark.parametrize("tracker", sorted(KEPT))
def test_a_run_is_recorded_offline(tracker, tmp_path, proxy, tracker_python):
    address, callers = proxy
    python = sys.executable if tracker == "trackio" else tracker_python
    printed, outside = record(python, tracker, tmp_path, address)
    assert f"recorded by {tracker}; to look: " in printed
    assert re.search(rf"chosen {tracker}; {STEPS} losses, ", printed)
    assert outside == "" and not callers
    assert list((tmp_path / "run").glob(KEPT[tracker])), sorted(map(str, tmp_path.rglob("*")))
    stray = {path.name for path in tmp_path.iterdir()} - {"run", "home", "outside.txt"}
    assert not stray, f"it wrote beside the run's folder: {stray}"
    assert not leaks(tmp_path)


def test_the_dashboard_draws_two_recorded_runs(tmp_path, proxy, browser):  # noqa: F811
    python, chromium = browser
    for run in ("run-with-a", "run-with-b"):
        printed, _ = record(sys.executable, "trackio", tmp_path, proxy[0], run)
    command = re.search(r"TRACKIO_DIR=(\S+) \.finetuning/bin/trackio (show --project \S+)", printed)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "TRACKIO_DIR": command[1], "GRADIO_SERVER_PORT": str(port), "BROWSER": "true"}
    with open(tmp_path / "dashboard.log", "w") as log:
        server = subprocess.Popen(
            [str(PROJECT / ".finetuning/bin/trackio"), *command[2].split()],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
    url = f"http://127.0.0.1:{port}/?project={NOTEBOOK}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "dashboard.log").read_text()
                time.sleep(0.2)
        words = ["run-with-a", "run-with-b", "loss"]
        driver = [python, PROJECT / "tests" / "dashboard_driver.py", chromium, url, tmp_path / "dashboard.png", *words]
        result = subprocess.run(list(map(str, driver)), capture_output=True, text=True, timeout=200)
    finally:
        server.terminate()
        server.wait(timeout=20)
    assert result.returncode == 0, result.stderr[-3000:] + (tmp_path / "dashboard.log").read_text()[-1000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert {"loss", *words} <= set(seen["text"].splitlines()) and seen["marks"] >= 1, seen
