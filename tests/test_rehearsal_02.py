"""One real rehearsal of notebook 02, and what its run card and the committed one must say."""

import json

import pytest
from conftest import PROJECT, run_notebook_with

pytestmark = pytest.mark.notebook
SOURCES = ["emoji", "cmath", "mawps", "json_only", "tool_calls"]


@pytest.fixture(scope="module")
def card(rehearsal_02):
    result, card, _ = rehearsal_02
    assert result.returncode == 0, result.stderr[-3000:]
    return card


@pytest.fixture(scope="module")
def folder(card):
    candidates = PROJECT.glob("outputs/02_qwen3_emoji_math*/run_card.json")
    return next(path.parent for path in candidates if json.loads(path.read_text()) == card)


def test_it_runs_to_the_end_and_reports(rehearsal_02):
    result, card, executed = rehearsal_02
    assert result.returncode == 0, result.stderr[-3000:]
    assert "02 · Mix three data sets" in result.stderr and "7 After: did it work?" in result.stderr
    before, after = (card["metrics"][when]["emoji_replies"]["value"] for when in ("before", "after"))
    assert f"emoji_replies {before:.0%} → {after:.0%}" in result.stdout
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "0 misjudged" in text and "base → tuned" in text and "padding met" in text


def finding(card, about):
    return next(found for found in card["findings"] if found["about"] == about)


def test_the_style_was_learnt_and_asking_was_not_enough(whole_card):
    before, prompted, after = (whole_card["metrics"][when]["emoji_replies"] for when in ("before", "prompted", "after"))
    assert before["value"] == 0 and after["value"] >= before["value"] + 0.3 and after["low"] > prompted["high"]
    assert finding(whole_card, "base → tuned: emoji_replies")["verdict"] == "better"
    usability = [whole_card["metrics"][when]["usability"]["value"] for when in ("before", "after")]
    assert usability[1] >= usability[0] - 0.05


def test_json_became_valid(whole_card):
    assert finding(whole_card, "base → tuned: json_valid")["verdict"] == "better"


def test_the_verdict_on_forgetting_is_that_of_the_pairs(whole_card):
    """What the mixture alone lost and what replay brought back: two paired tests, two sentences; in the end no loss."""
    lost = finding(whole_card, "base → mixture alone: language_retention")
    back = finding(whole_card, "mixture alone → tuned: language_retention")
    first = {
        "worse": f"The mixture alone lost the question's language on {lost['lost']:.0f} prompts",
        "better": "The mixture alone lost no language; it gained.",
        "not decided": f"Nothing was lost that {lost['n']:.0f} prompts can show.",
    }[lost["verdict"]]
    second = {
        "better": f" Replay brought {back['gained']:.0f} prompts back and lost {back['lost']:.0f}.",
        "worse": " Replay made it worse.",
        "not decided": f" With replay {back['gained']:.0f} more and {back['lost']:.0f} fewer prompts",
    }[back["verdict"]]
    assert whole_card["forgetting"].startswith(first) and second in whole_card["forgetting"]
    assert finding(whole_card, "base → tuned: language_retention")["verdict"] != "worse"


def test_findings_are_corrected_for_their_number(whole_card):
    from scipy.stats import binomtest

    shares = [
        found
        for found in whole_card["findings"]
        if "perplexity" not in found["about"] and "per_100" not in found["about"]
    ]
    assert len(shares) >= 15
    for found in shares:
        moved = int(found["gained"] + found["lost"])
        assert abs(found["p"] - (binomtest(int(found["gained"]), moved).pvalue if moved else 1.0)) < 1e-9
        assert found["p_corrected"] >= found["p"] and (found["verdict"] == "not decided") == (
            found["p_corrected"] >= 0.05
        )


def test_measures_and_padding_are_what_they_say(any_card):
    assert any_card["scorer"]["misjudged"] == any_card["scorer"]["ways_misjudged"] == 0
    assert any_card["scorer"]["replies"] >= 80 and any_card["language_measure"]["value"] == 1.0
    assert any_card["contract"]["missing"] == any_card["contract"]["extra"] == 0 and any_card["contract"]["rows"] > 600
    padding = any_card["padding"]
    assert padding["planned"] < 0.05 < padding["shuffled"]
    assert abs(padding["met, mixture"] - padding["planned"]) <= 0.02
    assert any_card["planned_peak_bytes"] > 0


def test_perplexity_fell_on_every_source(whole_card):
    for source in SOURCES:
        before, after = (whole_card["metrics"][when][f"perplexity.{source}"]["value"] for when in ("before", "after"))
        assert 1 <= after < before, source


def test_enough_prompts_for_each_metric(whole_card):
    for metrics in whole_card["metrics"].values():
        for name, metric in metrics.items():
            at_least = {"tool_calls_valid": 20, "language_retention": 100}.get(name, 30)
            if not name.startswith(("perplexity", "emoji")):  # emoji are counted in replies that do not loop
                assert metric["n"] >= at_least, name
            assert metric["low"] <= metric["value"] <= metric["high"]


def test_parity_arithmetic_and_bytes(any_card):
    assert any_card["parity"] == {
        "untrained_adapter_changes_nothing": True,
        "packed_rows_are_isolated": True,
        "disabled_adapter_is_the_base": True,
        "merged_within_tolerance": True,
        "reloaded_adapter_same_text": True,
    }
    assert any_card["trainable_parameters"]["predicted"] == any_card["trainable_parameters"]["actual"] > 0
    assert abs(any_card["nf4_bytes"]["predicted"] / any_card["nf4_bytes"]["measured"] - 1) < 0.01
    first, second = any_card["effective_batch"]
    assert abs(first["loss"] - second["loss"]) < 0.05 * first["loss"]


def test_the_run_card_has_every_field_of_the_contract(any_card):
    for field in ("notebook", "profile", "started", "versions", "device", "seed", "parameters", "model", "dataset", "template_sha256",
                  "markers", "rows", "supervised_share", "trainable_parameters", "phases", "parity", "metrics", "held_out_sha256"):  # fmt: skip
        assert any_card[field] not in (None, "", {}), field
    assert any_card["markers"] == {"instruction": "<|im_start|>user\n", "response": "<|im_start|>assistant\n"}
    assert any_card["rows"]["kept"] > 500 and any_card["rows"]["dropped"] == {}
    for share in ("share_of_loss", "share_of_gradient"):
        assert set(any_card[share]) == set(SOURCES) and abs(sum(any_card[share].values()) - 1) < 0.001


def test_what_it_left_on_disk(card, folder):
    from datasets import load_from_disk

    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert (folder / "merged" / "model.safetensors").stat().st_size > 2e8
    mixture = [json.loads(line) for line in (folder / "mixture" / "mixture.jsonl").read_text("utf-8").splitlines()]
    assert len(mixture) == len(load_from_disk(folder / "mixture" / "arrow")) == card["rows"]["kept"]
    assert {path.name for path in (folder / "pools").iterdir()} == set(SOURCES)
    validation = [
        json.loads(line) for line in (folder / "validation" / "mixture.jsonl").read_text("utf-8").split("\n")[:-1]
    ]
    assert len(validation) >= 100
    record = json.loads((folder / "adapter" / "training.json").read_text())
    assert record["kind"] == "adapter" and record["base"]["id"] == card["model"]["id"] and record["log_history"]
    assert not list(folder.glob(".*-partial")) and not (folder / "checkpoints").exists()


SMALL = {
    "LIMIT": 2,
    "MAX_NEW_TOKENS": {k: 4 for k in ("emoji", "cmath", "mawps", "json_only", "tool_calls", "language")},
}


def test_weights_for_an_unknown_source_stop_the_run_with_a_sentence(tmp_path):
    result, _ = run_notebook_with("02", tmp_path, WEIGHTS={"cmath": 1, "emojis": 1}, **SMALL)
    assert result.returncode != 0
    assert (
        "WEIGHTS names ['emojis']; the pools are ['cmath', 'emoji', 'json_only', 'mawps', 'tool_calls']"
        in result.stderr
    )


def test_odd_sources_and_the_reader_s_own_file(card, folder, tmp_path):
    """A source of one row, one without a usable row, spoilt rows among good ones, and a file of the reader's own."""
    import run_notebooks

    odd = PROJECT / "outputs" / f".odd-{tmp_path.name}"
    odd.mkdir()
    try:
        lines = (PROJECT / "data" / "cmath.jsonl").read_bytes().splitlines(keepends=True)
        (odd / "one.jsonl").write_bytes(lines[0])
        (odd / "none.jsonl").write_bytes(b'{"Question": "N_00?", "Numbers": "", "Answer": 1}\n')
        good = (PROJECT / "data" / "emoji_chat.jsonl").read_bytes()
        (odd / "spoilt.jsonl").write_bytes(
            good + b'{"question": "x"}\n{broken\n' + '{"question": "é", "answer_en": "Hi"}'.encode("latin-1")
        )
        mine = [
            {"instruction": f"What is {i} + 1?", "output": f"{i + 1}", "history": [["Hi", "Hello!"]]} for i in range(40)
        ]
        (odd / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine))
        where = odd.relative_to(PROJECT)
        places = {name: [f"{where}/{file}.jsonl", "", ""] for name, file in
                  (("cmath", "one"), ("mawps", "none"), ("emoji", "spoilt"))}  # fmt: skip
        result, executed = run_notebook_with(
            "02", tmp_path, SOURCES=places, YOUR_FILE=f"{where}/mine.jsonl", YOUR_FORMAT="alpaca", MAX_STEPS=2, **SMALL
        )
    finally:
        for path in odd.iterdir():
            path.unlink()
        odd.rmdir()
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = run_notebooks.run_card(executed)
    assert loaded["parity"]["reloaded_adapter_same_text"]
    assert loaded["rows"]["dropped"] == {
        "fewer Numbers than placeholders": 1, "empty answer": 1, "not JSON": 1, "broken encoding": 1,
    }  # fmt: skip
    assert set(loaded["share_of_loss"]) == {"cmath", "emoji", "json_only", "tool_calls", "yours"}
    assert json.loads((folder / "run_card.json").read_text()) == card, "another configuration overwrote the run card"


@pytest.mark.long
def test_qlora_every_turn_and_calls(tmp_path):
    """Training in 4 bits on the CPU, with loss on every turn and on tool calls, and mixing by interleaving."""
    import run_notebooks

    result, executed = run_notebook_with(
        "02", tmp_path, LOAD_IN_4BIT=True, LEARN_TURNS="all", LEARN_TOOL_CALLS=True, MIX_MODE="interleave",
        MAX_STEPS=4, PROBE_STEPS=2, **SMALL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    card = run_notebooks.run_card(executed)
    assert card["parity"]["reloaded_adapter_same_text"] and card["parity"]["merged_within_tolerance"]
