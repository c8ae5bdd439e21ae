"""From a fresh clone to a ready environment: virtual environment, locked packages, kernel, checkpoints, books.

    python3 tools/bootstrap.py [--no-checkpoints]

Standard library only, because it runs before anything is installed. It can be interrupted anywhere: a stamp
is written last, and a call that finds an environment without one makes it anew. A call that finds
everything in place returns in well under a second.
"""

import argparse
import ast
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = PROJECT / ".finetuning"
LOCK = Path(os.environ.get("FINETUNING_LOCK", PROJECT / "requirements.lock.txt"))
STAMP = ENVIRONMENT / "finetuning-stamp.json"
SUPPORTED = ((3, 11), (3, 12))
BYTES_NEEDED = 9_000_000_000  # 7 GB installed, and the downloads of the largest wheels beside them
UV_NAMES = {  # uv reads no pip.conf: pip's setting, and the environment variable in which uv looks for it
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
}


class SetupError(Exception):
    """Something a person can mend; its text says what, where and how."""


def python_version(command):
    """Return (major, minor) of an interpreter, or None where the command does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        result = subprocess.run([command, "-c", code], capture_output=True, text=True, timeout=60)
        return tuple(int(part) for part in result.stdout.split()) if result.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def find_python():
    """Return the path of a supported interpreter: $PYTHON if set, else this one's base, else python3.12 or python3.11."""
    wanted = os.environ.get("PYTHON")
    candidates = [wanted] if wanted else [sys._base_executable, "python3.12", "python3.11"]
    found = {}
    for candidate in candidates:
        path = shutil.which(candidate)
        version = python_version(path) if path else None
        if version in SUPPORTED:
            return path
        if version:
            found[candidate] = ".".join(map(str, version))
    seen = ", ".join(f"{name} is Python {version}" for name, version in found.items()) or "none was found"
    raise SetupError(
        f"Python 3.11 or 3.12 is needed, and {seen}. Install one of the two, "
        "then name it: PYTHON=python3.12 make setup."
    )


def wanted_stamp(python):
    """Return what a finished environment's stamp must say."""
    try:
        lock = LOCK.read_bytes()
    except OSError as error:
        raise SetupError(f"The lock {LOCK} cannot be read ({error.strerror}). Check it out again.") from None
    return {"lock_sha256": hashlib.sha256(lock).hexdigest(), "python": list(python_version(python) or ())}


def current_stamp():
    """Return the finished environment's stamp, or None where there is none or its interpreter is gone."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None
    return stamp if (ENVIRONMENT / "bin" / "python").exists() else None


def run(command, purpose, environment=None, shown=()):
    """Run a command, printing the lines that begin with `shown`; raise SetupError with its telling line if it fails."""
    lines = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in map(str.strip, process.stdout):
                lines.append(line)
                if line.startswith(shown):
                    print(f"  {line}", flush=True)
        except KeyboardInterrupt:
            process.terminate()  # it heard nothing of a signal that was sent to this process alone
            raise
    if process.returncode:
        telling = [line for line in lines if line.startswith(("ERROR", "cause:")) or "No space" in line]
        raise SetupError(f"{purpose} failed: {([*telling[:1], *lines[-1:]] or ['no message'])[0]}")
    return lines


def uv_environment(pip):
    """Return os.environ with pip's settings (where to find packages, the certificates) in uv's own variables."""
    environment = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # as pip: the best version that any index has
    for line in run([*pip, "config", "list"], "Reading pip's settings"):
        name, _, value = line.partition("=")
        if variable := UV_NAMES.get(name.rpartition(".")[2]):
            separator = "," if variable == "UV_FIND_LINKS" else " "
            environment[variable] = separator.join(ast.literal_eval(value).split())
    return environment | os.environ


def own_environment(own, requirements, *options):
    """Return the interpreter of an environment apart from .finetuning, made anew where its list of packages changed.

    `options` go to the installer, `--no-deps` for a list that is complete.
    """
    wanted, stamp, python = hashlib.sha256(requirements.read_bytes()).hexdigest(), own / "stamp", own / "bin" / "python"
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        shown = own.relative_to(PROJECT)
        print(f"Making {shown} …", flush=True)
        run([find_python(), "-m", "venv", "--clear", str(own)], f"Making {shown}")
        pip = [str(python), "-m", "pip"]
        uv = shutil.which("uv") or shutil.which(str(ENVIRONMENT / "bin" / "uv"))
        install = [uv, "pip", "install", "--python", str(python)] if uv else [*pip, "install", "--quiet"]
        purpose = f"Installing {requirements.relative_to(PROJECT)} (is a package registry reachable?)"
        run([*install, *options, "-r", str(requirements)], purpose, uv_environment(pip) if uv else None)
        stamp.write_text(wanted)
    return python


def build_environment(python, stamp):
    """Make the virtual environment anew and install the lock into it; the stamp is the last thing written."""
    free = shutil.disk_usage(PROJECT).free
    if free < BYTES_NEEDED and not ENVIRONMENT.exists():
        raise SetupError(
            f"{PROJECT} has {free / 1e9:.1f} GB free and the environment needs {BYTES_NEEDED / 1e9:.0f} GB. "
            "Free some space, then run `make setup` again."
        )
    started = time.monotonic()
    print(f"Making the virtual environment {ENVIRONMENT.name} with Python {'.'.join(map(str, stamp['python']))} …")
    command = [python, "-m", "venv", "--clear", str(ENVIRONMENT)]
    run(command, "Making the virtual environment (on Debian and Ubuntu it needs the package python3-venv)")
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip"]
    lock = [line for line in LOCK.read_text().splitlines() if line[:1].isalnum()]
    print(f"Installing {len(lock)} locked packages, a minute or two …", flush=True)
    # --no-deps: the lock is complete, and Unsloth's metadata asks for a certifi that no registry serves yet.
    purpose = f"Installing {LOCK.name} (is a package registry reachable, is there room?)"
    uv = shutil.which("uv") or str(ENVIRONMENT / "bin" / "uv")
    if not Path(uv).exists():
        uv_itself = [line for line in lock if line.startswith("uv==")]
        run([*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps", *uv_itself], purpose)
    install = [uv, "pip", "install", "--python", str(ENVIRONMENT), "--no-deps", "-r", str(LOCK)]
    run(install, purpose, uv_environment(pip), shown=("Downloaded", "Prepared", "Installed"))
    kernel = ["-m", "ipykernel", "install", "--sys-prefix", "--name", "python3", "--display-name", ".finetuning"]
    kernel += ["--env", "GOMP_SPINCOUNT", "2000"]  # as the Makefile, for notebooks that are opened by hand
    run([str(ENVIRONMENT / "bin" / "python"), *kernel], "Registering the Jupyter kernel")
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(stamp) + "\n")
    os.replace(partial, STAMP)
    print(f"The environment is ready after {time.monotonic() - started:.0f} s.", flush=True)


def missing_builders():
    """Return the tools that have something to build: the checkpoints, the sample books; imports nothing heavy."""
    sys.path.insert(0, str(Path(__file__).parent))
    import rehearsal
    import typeset_books

    ready = all(rehearsal.is_complete(rehearsal.DEFAULT_ROOT / family, family) for family in rehearsal.FAMILIES)
    return ["rehearsal.py"] * (not ready) + ["typeset_books.py"] * (not typeset_books.is_complete())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--no-checkpoints", action="store_true", help="leave the rehearsal checkpoints and the sample books alone"
    )
    arguments = parser.parse_args()
    lock_file = PROJECT / "outputs" / ".setup.lock"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends what was started, as Ctrl-C does
    try:
        try:
            lock_file.parent.mkdir(exist_ok=True)
            handle = lock_file.open("w")
        except OSError as error:
            raise SetupError(f"{lock_file.parent} cannot be written ({error.strerror}).") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a second `make` waits for the first instead of tripping over it
                print("Another set-up is at work in this folder; waiting for it …", flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
            python = find_python()
            stamp = wanted_stamp(python)
            if current_stamp() != stamp:
                build_environment(python, stamp)
            for builder in [] if arguments.no_checkpoints else missing_builders():
                command = [str(ENVIRONMENT / "bin" / "python"), str(PROJECT / "tools" / builder)]
                if subprocess.run(command, env={**os.environ, "TQDM_DISABLE": "1"}).returncode:  # no library's bars
                    return 1
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; `make setup` takes it up again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
