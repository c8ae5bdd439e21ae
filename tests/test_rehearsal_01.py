"""One real rehearsal of notebook 01, and what its run card and the committed one must say."""

import json
import re

import pytest
from conftest import PROJECT, read_jsonl, run_notebook_with

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
    before, after = (value(card, when, "fidelity_beyond_english") for when in ("before", "after"))
    assert f"fidelity_beyond_english {before:.0%} → {after:.0%}" in result.stdout
    assert re.search(r"outputs/executed/01_\w+_executed\.ipynb", result.stdout)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_the_base_speaks_harmony_and_reasons_in_english(whole_card):
    assert value(whole_card, "before", "harmony_parsed") >= 0.9
    assert value(whole_card, "before", "fidelity_beyond_english") <= 0.1
    assert value(whole_card, "prompted", "fidelity_beyond_english") <= 0.3


def test_the_tuned_model_reasons_in_the_language_asked_for(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["harmony_parsed"]["value"] >= 0.95
    assert after["reasoning_language_fidelity"]["value"] >= 0.85
    assert after["fidelity_beyond_english"]["n"] == 32
    assert all(share["n"] == 40 for name, share in after.items() if name.startswith(("harmony", "reasoning_language")))
    found = finding(whole_card, "Reasoning in a language other than English, where one was asked for, base to tuned")
    assert found["p_holm"] < 0.001 and found["gained"] >= 26 and found["low"] > 0.5


def finding(card, beginning):
    return next(entry for entry in card["findings"] if entry["finding"].startswith(beginning))


def test_the_mask_decides(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["reasoning_supervised"]["value"] == 1.0
    assert after["reasoning_supervised_by_unsloth_detection"]["value"] == 0.0
    against = finding(whole_card, "Reasoning in a language other than English, detected mask against ours")
    assert against["p_holm"] < 0.001 and against["gained"] >= 26
    moved = {(mask, by): finding(whole_card, f"Loss under {mask}, trained with {by}")
             for mask in ("our mask", "the detected mask") for by in ("our mask", "the detected mask")}  # fmt: skip
    assert moved["our mask", "our mask"]["high"] < -0.2  # the rows are the same before and after: paired
    assert moved["the detected mask", "the detected mask"]["high"] < -0.2  # its own loss falls as well
    assert moved["our mask", "the detected mask"]["value"] > 0.5 * moved["our mask", "our mask"]["value"]


def test_findings_say_what_their_numbers_say(any_card):
    """Each sentence's direction is that of its counts, and nothing rose or fell that the test does not show."""
    assert len(any_card["findings"]) >= 12
    for entry in any_card["findings"]:
        if "p" not in entry:
            sure = entry["low"] > 0 or entry["high"] < 0
            assert (" by " in entry["finding"]) == sure
            continue
        assert entry["after"] - entry["before"] == entry["gained"] - entry["lost"]
        assert f"{entry['before']} → {entry['after']} of {entry['n']}" in entry["finding"]
        word = "no difference" if entry["p"] >= 0.05 else "rose" if entry["gained"] > entry["lost"] else "fell"
        assert word in entry["finding"] and entry["p"] <= entry["p_holm"] <= 1


PARITY = {
    "untrained_adapter_changes_nothing",
    "disabled_adapter_is_the_base",
    "merged_within_tolerance",
    "reloaded_adapter_same_text",
}


def test_parity(any_card):
    assert any_card["parity"] == dict.fromkeys(PARITY, True)
    assert any_card["trainable_parameters"]["predicted"] == any_card["trainable_parameters"]["actual"] > 0


def test_the_run_card_has_every_field_of_the_contract(any_card):
    for field in ("notebook", "profile", "started", "versions", "device", "seed", "parameters", "model", "dataset", "template_sha256",
                  "markers", "rows", "supervised_share", "trainable_parameters", "phases", "parity", "metrics", "findings"):  # fmt: skip
        assert any_card[field] not in (None, "", {}), field
    assert any_card["markers"] == {"instruction": "<|start|>user<|message|>", "response": "<|start|>assistant"}
    assert any_card["rows"]["kept"] > 200 and any_card["rows"]["dropped"] == {}
    assert all(phase["peak_bytes"] > 0 for phase in any_card["phases"].values())
    for metrics in any_card["metrics"].values():
        for name, share in metrics.items():
            assert 0 <= share["value"] <= 1 and share["n"] > 0
            if not name.startswith("reasoning_supervised"):  # a count of all tokens has no interval
                assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1


def folder_of(card):
    candidates = PROJECT.glob("outputs/01_gpt_oss_multilingual_thinking*/run_card.json")
    return next(path.parent for path in candidates if json.loads(path.read_text()) == card)


def test_what_it_left_on_disk(card):
    folder = folder_of(card)
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert (folder / "merged" / "model.safetensors").stat().st_size > 2e8
    record = json.loads((folder / "adapter" / "training.json").read_text())
    assert record["kind"] == "adapter" and record["family"] == "harmony" and record["base"]["id"] == card["model"]["id"]
    assert record["base"]["layout"] == "16 bits" and record["parameters"] == card["parameters"]
    assert json.loads((folder / "merged" / "training.json").read_text())["kind"] == "merged"
    replies = [json.loads(line) for line in (folder / "replies.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert len(replies) == 48 + 40 + 48 + 40 and {row["model"] for row in replies} == {
        "base", "prompted base", "tuned", "tuned, detected mask"}  # fmt: skip
    assert all(
        set(row) >= {"user", "reply", "analysis", "final", "fault", "faithful", "answered in"} for row in replies
    )
    assert not list(folder.glob(".*-partial"))
    assert list((folder / "trackio").rglob("*.db")), "trackio logged nothing"
    checkpoints = list((folder / "checkpoints" / "ours").glob("checkpoint-*"))
    assert 1 <= len(checkpoints) <= 2


def run_with(tmp_path, **parameters):
    return run_notebook_with("01", tmp_path, **parameters)


SMALL = {"MAX_NEW_TOKENS": 16, "TRACKER": "none"}


def test_a_missing_model_folder_is_one_sentence(tmp_path):
    result, _ = run_with(tmp_path, MODEL="outputs/rehearsal/gpt-oss-120b", **SMALL)
    assert result.returncode != 0
    assert (
        "The model folder outputs/rehearsal/gpt-oss-120b does not exist" in result.stderr
        and "make setup" in result.stderr
    )


def test_a_mixture_of_experts_on_one_s_own_rows_and_prompts(tmp_path):
    """A tiny random GptOssForCausalLM (the true architecture, none of the skill); 30 own rows in Parquet, 10 own prompts."""
    import shutil

    import pandas as pd
    import run_notebooks
    from random_models import TINY, configuration, make_model

    folder = PROJECT / "outputs" / f".tiny-{tmp_path.name}"
    try:
        make_model("gpt-oss-20b", folder, tiny=True)
        pd.DataFrame(read_jsonl("multilingual_thinking.jsonl")[:30]).to_parquet(folder / "rows.parquet")
        prompts = [row for row in read_jsonl("held_out_prompts.jsonl") if row["user_language"] == "English"][:10]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        place = folder.relative_to(PROJECT)
        result, executed = run_with(
            tmp_path, MODEL=str(place), DATASET=f"{place}/rows.parquet", HELD_OUT_PROMPTS=f"{place}/prompts.jsonl",
            EXPERT_LAYERS=[1], MAX_STEPS=4, EVAL_STEPS=2, SAVE_STEPS=2, **SMALL)  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        card = run_notebooks.run_card(executed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for output in PROJECT.glob("outputs/01_gpt_oss_multilingual_thinking-*"):
            if f".tiny-{tmp_path.name}" in (output / "configuration.json").read_text():
                shutil.rmtree(output)
    rank, layers = card["parameters"]["LORA_RANK"], configuration("gpt-oss-20b", tiny=True).num_hidden_layers
    attention = layers * rank * ((64 + 64) + (64 + 32) + (64 + 32) + (64 + 64))  # q, k, v, o
    experts = (
        4 * rank * ((64 + 256) + (TINY["intermediate_size"] + 64))
    )  # gate_up and down of four experts in one layer
    assert card["trainable_parameters"] == {"predicted": attention + experts, "actual": attention + experts}
    assert card["rows"]["kept"] == 28 and card["metrics"]["after"]["harmony_parsed"]["n"] == len(prompts) == 10
    assert not any("questions that are not in English" in entry["finding"] for entry in card["findings"])  # it has none
    assert set(card["parity"]) == PARITY - {"merged_within_tolerance"} and all(
        card["parity"].values()
    )  # packed: no merge
