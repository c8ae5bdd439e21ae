"""The claims about libraries that tools/drift.py probes: they hold with the lock, and a broken one is told."""

import re
import subprocess
import sys

import drift
import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT


def test_every_claim_names_the_section_that_shows_it():
    for function in drift.PROBES:
        number, heading = re.match(r"(\d\d), (.+?): [A-Z]\S* .+\.$", function.__doc__).groups()
        path = next(path for path in NOTEBOOKS if path.name.startswith(number))
        text = "\n".join(
            cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
        )
        assert re.search(rf"^##+ {re.escape(heading)}$", text, re.M), function.__doc__


def test_all_claims_hold_with_the_lock():
    result = subprocess.run([sys.executable, str(PROJECT / "tools" / "drift.py")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"{len(drift.PROBES)} of {len(drift.PROBES)} claims hold."


def test_a_claim_that_fails_or_cannot_be_tried_is_told(monkeypatch, capsys):
    def changed():
        """01, The contract: Something changed."""
        return False

    def gone():
        """01, The contract: Something is gone."""
        raise TypeError("unexpected keyword\nargument")

    monkeypatch.setattr(drift, "PROBES", [changed, gone, lambda: True])
    monkeypatch.setitem(sys.modules, "unsloth", type(sys)("unsloth"))
    assert drift.run_probes() == 2
    told = capsys.readouterr().out
    assert "NO LONGER  01, The contract: Something changed." in told
    assert "NO LONGER (TypeError: unexpected keyword argument) 01, The contract: Something is gone." in told
    assert told.splitlines()[-1] == "1 of 3 claims hold."


def test_a_package_that_is_not_ours_is_refused():
    with pytest.raises(SystemExit, match="requirements.txt names no package sphinx"):
        drift.newer(["sphinx"])
