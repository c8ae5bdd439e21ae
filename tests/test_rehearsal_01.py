"""One real rehearsal of notebook 01, and what its run card and the committed one must say."""

import json
import re

import pytest
from conftest import PROJECT, run_notebook_with

pytestmark = pytest.mark.notebook


@pytest.fixture(scope="module")
def card(rehearsal_01):
    result, card, _ = rehearsal_01
    assert result.returncode == 0, result.stderr[-3000:]
    return card


def value(card, when, metric):
    return card["metrics"][when][metric]["value"]


def test_it_runs_to_the_end_and_reports(rehearsal_01):
    result, card, executed = rehearsal_01
    assert result.returncode == 0, result.stderr[-3000:]
    assert "01 · Teach gpt-oss" in result.stderr and "7 After: did it work?" in result.stderr
    before, after = (value(card, when, "reasoning_language_fidelity") for when in ("before", "after"))
    assert f"reasoning_language_fidelity {before:.0%} → {after:.0%}" in result.stdout
    assert re.search(r"outputs/executed/01_\w+_executed\.ipynb", result.stdout)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_the_base_speaks_harmony_and_reasons_in_english(whole_card):
    assert value(whole_card, "before", "harmony_parsed") >= 0.9
    assert 0.2 <= value(whole_card, "before", "reasoning_language_fidelity") <= 0.25
    assert value(whole_card, "prompted", "reasoning_language_fidelity") <= 0.4


def test_the_tuned_model_reasons_in_the_language_asked_for(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["harmony_parsed"]["value"] >= 0.9
    assert after["reasoning_language_fidelity"]["value"] >= 0.85
    assert (
        after["reasoning_language_fidelity"]["low"]
        > whole_card["metrics"]["before"]["reasoning_language_fidelity"]["high"]
    )
    assert all(share["n"] == 40 for name, share in after.items() if name.startswith(("harmony", "reasoning_language")))


def test_the_mask_decides(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["reasoning_supervised"]["value"] == 1.0
    assert after["reasoning_supervised_by_unsloth_detection"]["value"] == 0.0
    with_detection = after["reasoning_language_fidelity_with_unsloth_detection"]
    assert with_detection["high"] < after["reasoning_language_fidelity"]["low"]


def test_parity(any_card):
    assert any_card["parity"] == {
        "untrained_adapter_changes_nothing": True,
        "disabled_adapter_is_the_base": True,
        "merged_within_tolerance": True,
        "reloaded_adapter_same_text": True,
    }
    assert any_card["trainable_parameters"]["predicted"] == any_card["trainable_parameters"]["actual"] > 0


def test_the_run_card_has_every_field_of_the_contract(any_card):
    for field in ("notebook", "profile", "started", "versions", "device", "seed", "parameters", "model", "dataset", "template_sha256",
                  "markers", "rows", "supervised_share", "trainable_parameters", "phases", "parity", "metrics"):  # fmt: skip
        assert any_card[field] not in (None, "", {}), field
    assert any_card["markers"] == {"instruction": "<|start|>user<|message|>", "response": "<|start|>assistant"}
    assert any_card["rows"]["kept"] > 200 and any_card["rows"]["dropped"] == {}
    assert all(phase["peak_bytes"] > 0 for phase in any_card["phases"].values())
    for metrics in any_card["metrics"].values():
        for share in metrics.values():
            assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1 and share["n"] > 0


def test_what_it_left_on_disk(card):
    candidates = PROJECT.glob("outputs/01_gpt_oss_multilingual_thinking*/run_card.json")
    folder = next(path.parent for path in candidates if json.loads(path.read_text()) == card)
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert (folder / "merged" / "model.safetensors").stat().st_size > 2e8
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 4 and all(set(answer) >= {"user", "analysis", "final", "fault"} for answer in answers)
    assert not list(folder.glob(".*-partial"))
    assert list((folder / "trackio").rglob("*.db")), "trackio logged nothing"
    checkpoints = list((folder / "checkpoints" / "ours").glob("checkpoint-*"))
    assert 1 <= len(checkpoints) <= 2


def run_with(tmp_path, **parameters):
    return run_notebook_with("01", tmp_path, **parameters)


SMALL = {"MAX_NEW_TOKENS": 16, "PROMPTS_LIMIT": 1, "TRACKER": "none"}


def test_inference_alone_with_the_adapter_of_that_run(card, tmp_path):
    import run_notebooks

    folder = next(
        path.parent for path in PROJECT.glob("outputs/01_gpt*/run_card.json") if json.loads(path.read_text()) == card
    )
    adapter = str((folder / "adapter").relative_to(PROJECT))
    result, executed = run_with(tmp_path, TRAIN=False, ADAPTER=adapter, **SMALL)
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = run_notebooks.run_card(executed)
    assert loaded["parity"]["reloaded_adapter_same_text"] and "train ours" not in loaded["phases"]
    assert json.loads((folder / "run_card.json").read_text()) == card, "another configuration overwrote the run card"


def test_an_adapter_of_another_base_is_named_with_both(card, tmp_path):
    other = PROJECT / "outputs" / f".adapter-of-another-base-{tmp_path.name}"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/other-7b", "r": 16}))
    try:
        result, _ = run_with(
            tmp_path, TRAIN=False, ADAPTER=str(other.relative_to(PROJECT)), **{**SMALL, "MAX_NEW_TOKENS": 1}
        )
    finally:
        (other / "adapter_config.json").unlink()
        other.rmdir()
    assert result.returncode != 0
    assert "was made for someone/other-7b, and MODEL is outputs/rehearsal/gpt-oss" in result.stderr


def test_a_missing_model_folder_is_one_sentence(tmp_path):
    result, _ = run_with(tmp_path, MODEL="outputs/rehearsal/gpt-oss-120b", **SMALL)
    assert result.returncode != 0
    assert (
        "The model folder outputs/rehearsal/gpt-oss-120b does not exist" in result.stderr
        and "make setup" in result.stderr
    )


def test_a_mixture_of_experts_runs_to_the_end_with_adapters_on_experts(tmp_path):
    """A tiny random GptOssForCausalLM: the true architecture, none of the skill."""
    import shutil

    import run_notebooks
    from random_models import make_model

    folder = PROJECT / "outputs" / f".tiny-{tmp_path.name}"
    try:
        make_model("gpt-oss-20b", folder, tiny=True)
        result, executed = run_with(
            tmp_path,
            MODEL=str(folder.relative_to(PROJECT)),
            EXPERT_LAYERS=[1],
            MAX_STEPS=4,
            EVAL_STEPS=2,
            SAVE_STEPS=2,
            **SMALL,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        card = run_notebooks.run_card(executed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for output in PROJECT.glob("outputs/01_gpt_oss_multilingual_thinking-*"):
            if (
                f".tiny-{tmp_path.name}" in (output / "run_card.json").read_text()
                if (output / "run_card.json").exists()
                else False
            ):
                shutil.rmtree(output)
    rank = card["parameters"]["LORA_RANK"]
    attention = 2 * rank * ((64 + 64) + (64 + 32) + (64 + 32) + (64 + 64))  # q, k, v, o in two layers
    experts = 4 * rank * ((64 + 256) + (128 + 64))  # gate_up and down of four experts in one layer
    assert card["trainable_parameters"] == {"predicted": attention + experts, "actual": attention + experts}
    assert all(card["parity"].values())
