"""Renew requirements.lock.txt: the complete, pinned set that requirements.txt resolves to (`make lock`).

One line of Unsloth's metadata is overridden: it asks for a certifi newer than any registry serves, and a
resolver left alone would fall back to an Unsloth that cannot train on a CPU.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
HEADER = """\
# The complete lock: every package that requirements.txt needs, for Python 3.11 and 3.12. Made by `make lock`;
# `make setup` installs it with pip's --no-deps. Do not edit by hand.
"""


def resolve(python_version, *options):
    """Return the resolution for one Python version on x86-64 Linux, a line a package."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", python_version, "--python-platform", "x86_64-manylinux_2_28"]
    result = subprocess.run([*command, *options, "requirements.txt"], cwd=PROJECT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"lock: uv could not resolve requirements.txt: {result.stderr.strip()}")
    return result.stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        overrides, constraints = Path(folder, "overrides.txt"), Path(folder, "constraints.txt")
        overrides.write_text("certifi\nwheel\nsetuptools\n")
        lock = resolve("3.11", "--override", str(overrides))
        constraints.write_text(lock)
        later = resolve("3.12", "--override", str(overrides), "--constraint", str(constraints))
    extra = sorted(set(later.splitlines()) - set(lock.splitlines()))
    if extra:
        raise SystemExit(f"lock: Python 3.12 needs what 3.11 does not, name it in requirements.txt: {extra}")
    (PROJECT / "requirements.lock.txt").write_text(HEADER + lock)
    print(f"requirements.lock.txt: {lock.count('==')} packages")


if __name__ == "__main__":
    main()
