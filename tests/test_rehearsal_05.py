"""Notebook 05 from top to bottom, on small adapters made here and on a whole model."""

import json
import shutil

import nbformat
import pytest
from conftest import PROJECT, run_notebook_with
from small_adapter import adapter_on_the_stand_in

pytestmark = pytest.mark.notebook
STAND_IN = "outputs/rehearsal/gpt-oss"
QUESTIONS = [
    {"user": "What is the capital of Peru?", "reasoning_language": "French", "note": "kept"},
    {"messages": [{"role": "user", "content": "Say hello in one word."}]},
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return adapter_on_the_stand_in(tmp_path_factory.mktemp("trained") / "adapter")


def use(tmp_path, folder, **parameters):
    """Run notebook 05 on a folder; return (printed text, run card, its answers); its output folder is removed."""
    questions = tmp_path / "mine.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    values = {"FOLDER": str(folder), "QUESTIONS": str(questions), "SHOW": 2, **parameters}
    result, executed = run_notebook_with("05", tmp_path, **values)
    assert result.returncode == 0, result.stderr[-3000:]
    outputs = [output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", [])]
    card = next(o["data"]["application/json"] for o in outputs if "application/json" in o.get("data", {}))
    folders = {
        path.parent for path in PROJECT.glob("outputs/05_*/run_card.json") if json.loads(path.read_text()) == card
    }
    assert len(folders) == 1
    lines = (folders.copy().pop() / card["answers"]["file"]).read_text(encoding="utf-8").split("\n")
    shutil.rmtree(folders.pop())
    return "".join(o.get("text", "") for o in outputs), card, [json.loads(line) for line in lines if line]


def test_an_adapter_is_used(adapter, tmp_path):
    printed, card, answers = use(tmp_path, adapter, MAX_NEW_TOKENS=64)
    assert card["kind"] == "adapter" and card["model"]["id"] == STAND_IN and card["differs"] == []
    assert "120 tensors, each in its place" in printed and "8 things are as recorded" in printed
    assert card["base_and_tuned"]["questions"] == 2 and card["base_and_tuned"]["logits_moved"] > 0
    assert "The tuned model is the base" not in printed
    assert [answer["question"] for answer in answers] == QUESTIONS and all("<|channel|>" in a["reply"] for a in answers)
    assert any(answer["reasoning"] for answer in answers) and "[thinks] " in printed
    assert card["answers"]["rows"] == 2 and "mine-" in card["answers"]["file"] and "adapter" in card["answers"]["file"]
    assert set(card["phases"]) >= {"load", "one reply", "base and tuned", "answers", "conversation", "whole notebook"}


def test_a_plain_adapter_that_changes_nothing_is_told(tmp_path):
    folder = adapter_on_the_stand_in(tmp_path / "plain", strength=0.0, record=False)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "/another/machine/gpt-oss"})
    )
    printed, card, answers = use(tmp_path, folder, BASE=STAND_IN, MAX_NEW_TOKENS=8)
    assert card["base_and_tuned"] == {"questions": 2, "differ": 0, "logits_moved": 0.0}
    assert "They differ on 0 of 2 questions" in printed and "The tuned model is the base" in printed
    assert (
        "Differs from the record: base (/another/machine/gpt-oss recorded, outputs/rehearsal/gpt-oss found)" in printed
    )
    assert "read as harmony" in printed and len(answers) == 2


def test_a_whole_model_is_used_and_compared_where_its_base_is_named(tmp_path):
    printed, card, answers = use(tmp_path, STAND_IN, BASE=STAND_IN, MAX_NEW_TOKENS=8)
    assert card["kind"] == "full" and "272 tensors, each in its place" in printed
    assert card["base_and_tuned"]["differ"] == 0 and len(answers) == 2
