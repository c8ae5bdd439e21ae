"""Run one notebook as several processes, data parallel: what `make distributed` does after the set-up.

    python tools/distributed.py 01 2

The notebook becomes a script (`jupyter nbconvert --to python`) beside the executed copies, and `torchrun` starts
it so many times: a GPU each, or a share of the processor's threads. The first process prints and writes, the others
leave after the last training.
"""

import logging
import os
import subprocess
import sys

from run_notebooks import EXECUTED, PROJECT, choose_notebooks


def write_script(notebook):
    """Convert a notebook into a script; return the script's path."""
    command = [sys.executable, "-m", "nbconvert", "--to", "python", "--log-level", "ERROR"]
    command += ["--output-dir", str(EXECUTED), "--output", notebook.stem, str(notebook)]
    subprocess.run(command, cwd=PROJECT, check=True, env={**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"})
    return EXECUTED / f"{notebook.stem}.py"


def main():
    texts, count = sys.argv[1:-1], sys.argv[-1]
    if not count.isdigit() or int(count) < 1:
        raise SystemExit(f'distributed: NPROC is "{count}"; it must be a whole number from 1.')
    notebooks = choose_notebooks(texts) if "".join(texts).strip() else []
    if len(notebooks) != 1 or notebooks[0].name.startswith("05"):
        raise SystemExit("distributed: name one notebook that trains, as in `make distributed NOTEBOOK=01 NPROC=2`.")
    EXECUTED.mkdir(parents=True, exist_ok=True)
    script = write_script(notebooks[0])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(count))))
    os.environ.setdefault("MPLBACKEND", "agg")

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # torchrun's own account of a failed process; ours follows
    os.chdir(PROJECT)
    try:
        run.main(["--standalone", f"--nproc-per-node={count}", str(script)])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise SystemExit(f"distributed: process {rank} of {count} failed (exit status {failure.exitcode}).") from None
    except (SignalException, KeyboardInterrupt):
        raise SystemExit("\ndistributed: interrupted; its processes were ended.") from None
    finally:
        script.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
