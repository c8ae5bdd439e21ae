"""One real rehearsal of notebook 04, and what its run cards and the committed one must say."""

import json

import pytest
from conftest import PROJECT, run_notebook_with

pytestmark = pytest.mark.notebook
METHODS = ("lora", "qlora", "full")


@pytest.fixture(scope="module")
def card(rehearsal_04):
    result, card, _ = rehearsal_04
    assert result.returncode == 0, result.stderr[-3000:]
    return card


@pytest.fixture(scope="module")
def folder(card):
    """The folder of the run with these parameters: the plain name, or one with a hash."""
    for path in sorted((PROJECT / "outputs").glob("04_gemma_gsm8k*/run_card.json")):
        if json.loads(path.read_text()) == card:
            return path.parent
    raise AssertionError("no output folder holds this run card")


def test_it_runs_to_the_end_and_reports(rehearsal_04):
    result, card, executed = rehearsal_04
    assert result.returncode == 0, result.stderr[-3000:]
    assert "04 · Compare full fine-tuning" in result.stderr and "7 After: did it work?" in result.stderr
    before, after = card["metrics"]["before"]["exact_match"], card["metrics"]["after"]["lora.exact_match"]
    assert f"lora.exact_match {before['value']:.0%} → {after['value']:.0%}" in result.stdout
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_every_method_learns_the_form(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["lora.final_line"]["value"] >= 0.9
    assert all(after[f"{method}.final_line"]["value"] >= 0.8 for method in METHODS)
    assert all(after[f"{method}.{name}"]["n"] >= 60 for method in METHODS for name in ("final_line", "exact_match"))


def test_one_method_at_least_beats_the_base_beyond_its_interval(whole_card):
    base = whole_card["metrics"]["before"]["exact_match"]
    assert max(whole_card["metrics"]["after"][f"{method}.exact_match"]["low"] for method in METHODS) > base["high"]


def test_base_and_tuned_are_measured_in_both_forms(any_card):
    assert set(any_card["metrics"]) == {"before", "prompted", "prompted_socratic", "after"}
    assert {"lora_socratic.exact_match", "lora_socratic.final_line"} <= set(any_card["metrics"]["after"])


def test_predicted_memory_is_within_15_percent(any_card):
    assert set(any_card["memory"]) == set(METHODS)
    for method, memory in any_card["memory"].items():
        assert abs(memory["predicted_bytes"] / memory["measured_bytes"] - 1) <= 0.15, method


def test_forgetting_is_measured_for_every_method(any_card):
    for method in METHODS:
        metric = any_card["metrics"]["after"][f"{method}.forgetting_perplexity"]
        assert metric["low"] <= metric["value"] <= metric["high"] and metric["n"] >= 30
        assert any_card["metrics"]["after"][f"{method}.instructions_followed"]["n"] == 20
    rounded = any_card["metrics"]["before"]["qlora.forgetting_perplexity"]["value"]  # QLoRA's own base, in 4 bits
    change = any_card["metrics"]["after"]["qlora.forgetting_perplexity"]["value"] / rounded - 1
    assert abs(any_card["perplexity_change"]["qlora"] - change) < 0.001


def test_parity_and_the_same_start(any_card):
    assert any_card["parity"] == {
        "same_start": True,
        "merged_within_tolerance": True,
        **{f"reloaded_{name}_same_text": True for name in (*METHODS, "lora_socratic")},
    }
    by_method = any_card["trainable_parameters"]["by_method"]
    assert by_method["lora"] == by_method["qlora"] < by_method["full"]


def test_the_run_card_has_every_field_of_the_contract(any_card):
    for field in ("notebook", "profile", "started", "versions", "device", "seed", "parameters", "model", "dataset", "template_sha256",
                  "markers", "rows", "supervised_share", "trainable_parameters", "phases", "parity", "metrics", "held_out_sha256"):  # fmt: skip
        assert any_card[field] not in (None, "", {}), field
    assert any_card["markers"] == {"instruction": "<start_of_turn>user\n", "response": "<start_of_turn>model\n"}
    assert len(any_card["mcnemar"]) == 6 and all(0 <= pair["p"] <= 1 for pair in any_card["mcnemar"])


def test_what_it_left_on_disk(card, folder):
    sizes = {
        name: sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
        for name in (*METHODS, "lora_socratic", "merged")
    }
    assert sizes["full"] > 10 * sizes["lora"] > 0 and sizes["merged"] > 2e8
    for name in (*METHODS, "lora_socratic"):
        own = json.loads((folder / name / "run_card.json").read_text())
        key = f"{name}.exact_match"
        assert own["metrics"]["after"]["exact_match"] == card["metrics"]["after"][key]
    for name in ("accuracy", "memory", "loss"):
        assert (folder / f"{name}.png").stat().st_size > 5000 and "<svg" in (folder / f"{name}.svg").read_text()
    report, slides = (folder / "report.md").read_text(), (folder / "slides.md").read_text()
    for method in METHODS:
        assert f"{card['metrics']['after'][f'{method}.exact_match']['value']:.0%}" in report
    assert slides.count("---") == 3 and slides.count("![") == 3
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]
    assert answers and all(answer["question"] and "number" in answer for answer in answers)
    assert not list(folder.glob(".*-partial"))


SMALL = {"LIMIT": 2, "MAX_NEW_TOKENS": 8}


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_inference_alone(card, folder, tmp_path, method):
    """TRAIN = False with an adapter on a 4-bit base, and with a fully tuned model; the first run's results stay."""
    import run_notebooks

    place = str((folder / method).relative_to(PROJECT))
    result, executed = run_notebook_with("04", tmp_path, TRAIN=False, ADAPTER=place, **SMALL)
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = run_notebooks.run_card(executed)
    assert loaded["parity"] == {"reloaded_loaded_same_text": True} and "train loaded" not in loaded["phases"]
    assert "loaded.exact_match" in loaded["metrics"]["after"]
    assert json.loads((folder / "run_card.json").read_text()) == card, "another configuration overwrote the run card"


def test_the_base_alone_serves_too(tmp_path):
    """TRAIN = False with the folder of the base: what an untrained model answers, in the same form."""
    import run_notebooks

    result, executed = run_notebook_with("04", tmp_path, TRAIN=False, ADAPTER="outputs/rehearsal/gemma", **SMALL)
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = run_notebooks.run_card(executed)["metrics"]
    assert loaded["after"]["loaded.exact_match"] == loaded["before"]["exact_match"]
    assert loaded["after"]["loaded.forgetting_perplexity"] == loaded["before"]["forgetting_perplexity"]


def test_an_adapter_for_another_base_is_refused(folder, tmp_path):
    made = PROJECT / "outputs" / f".adapter-{tmp_path.name}"
    made.mkdir()
    try:
        (made / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else-7b", "r": 16}))
        result, _ = run_notebook_with("04", tmp_path, TRAIN=False, ADAPTER=str(made.relative_to(PROJECT)), **SMALL)
    finally:
        (made / "adapter_config.json").unlink()
        made.rmdir()
    assert result.returncode != 0
    assert "was made for somebody/else-7b, and MODEL is outputs/rehearsal/gemma" in result.stderr


def test_a_wrong_method_stops_the_run_with_a_sentence(tmp_path):
    result, _ = run_notebook_with("04", tmp_path, METHODS=["lora", "dora"], **SMALL)
    assert result.returncode != 0
    assert "METHODS names ['dora']; known are lora, qlora and full." in result.stderr
