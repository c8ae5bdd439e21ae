"""One real rehearsal of notebook 03 on the sample books, and what its run card and the committed one must say."""

import json
import shutil

import pytest
from conftest import PROJECT, run_notebook_with

pytestmark = pytest.mark.notebook


@pytest.fixture(scope="module")
def card(rehearsal_03):
    result, card, _ = rehearsal_03
    assert result.returncode == 0, result.stderr[-3000:]
    if not card["dataset"]["id"][0].startswith("Aurélien Fontbrune"):
        pytest.skip("there are books in Books/, so this rehearsal is not of the sample books")
    return card


@pytest.fixture(scope="module")
def folder(card):
    """The folder of the run with these parameters and books: the plain name, or one with a hash."""
    for path in sorted((PROJECT / "outputs").glob("03_gpt_oss_pdf_books*/run_card.json")):
        if json.loads(path.read_text()) == card:
            return path.parent
    raise AssertionError("no output folder holds this run card")


def test_it_runs_to_the_end_and_reports(rehearsal_03):
    result, card, executed = rehearsal_03
    assert result.returncode == 0, result.stderr[-3000:]
    assert "03 · Write in the voice" in result.stderr and "7 After: did it work?" in result.stderr
    before, after = (card["metrics"][when]["bits_per_byte"]["value"] for when in ("before", "after"))
    assert f"bits_per_byte {before:.3f} → {after:.3f}" in result.stdout
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_the_text_is_recovered(any_card):
    assert len(any_card["words_recovered"]) == 2
    assert all(share >= 0.999 for share in any_card["words_recovered"].values())


def test_bits_per_byte_fall_on_bare_held_out_ranges(whole_card):
    before, after = whole_card["metrics"]["before"], whole_card["metrics"]["after"]
    change = after["bits_per_byte_change"]
    assert 1 <= before["bits_per_byte"]["value"] < 2 and change["n"] == before["bits_per_byte"]["n"] >= 8
    assert change["value"] <= -0.03 and change["high"] < 0
    assert after["bits_per_byte"]["value"] < whole_card["metrics"]["prompted"]["bits_per_byte"]["value"]


def test_the_controls_changed_less_than_the_author_s_pages(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["bits_per_byte_change_control"]["n"] >= 10 and after["change_beyond_control"]["high"] < 0
    own = after["bits_per_byte_change"]["value"]
    assert all(own < after[f"bits_per_byte_change_{kind}"]["value"] for kind in ("control", "other_text"))


def test_the_name_matters_to_the_tuned_model(whole_card):
    after = whole_card["metrics"]["after"]
    assert after["bits_per_byte_cost_of_another_name"]["low"] > 0
    assert {"value", "n", "low", "high"} <= set(after["name_effect_beyond_base"])
    assert whole_card["header_bits"]["tuned"] < 1 < whole_card["header_bits"]["base"]


def test_the_verdict_follows_from_its_parts(whole_card):
    found, after = whole_card["verdict"], whole_card["metrics"]["after"]
    at = whole_card["parameters"]["VERDICT_AT"]
    easier = after["bits_per_byte_change"]["value"] <= at["easier"] and after["bits_per_byte_change"]["high"] < 0
    voice = (easier and after["change_beyond_control"]["high"] < 0 and after["name_effect_beyond_base"]["low"] > 0
             and after["sentence_length_distance_change"]["value"] < 0
             and after["sentence_length_distance_change"]["n"] >= at["requests"])  # fmt: skip
    assert found["easier"] is easier is True and found["voice"] is voice
    assert found["memorised"] is False and found["collapsed"] is False
    said = [entry["finding"] for entry in whole_card["findings"]]
    assert any(sentence.startswith("The voice has been learnt") for sentence in said) is voice
    assert (
        any(sentence.startswith("The author's pages became easier, but a voice is not claimed") for sentence in said)
        is not voice
    )
    assert set(whole_card["recited_words"]) == {"training", "held out"}
    assert len(whole_card["recited_words"]["training"]) >= 8


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
                  "markers", "rows", "supervised_share", "trainable_parameters", "phases", "parity", "metrics", "held_out_sha256"):  # fmt: skip
        assert any_card[field] not in (None, "", {}), field
    assert any_card["markers"] == {"instruction": "<|start|>user<|message|>", "response": "<|start|>assistant"}
    for name in ("bits_per_byte", "type_token_ratio", "distinct_2", "longest_verbatim_words", "looping_replies"):
        for stage in ("before", "prompted", "after"):
            metric = any_card["metrics"][stage][name]
            assert metric["low"] <= metric["value"] <= metric["high"] and metric["n"] >= 8, (stage, name)


def test_what_it_left_on_disk(folder):
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 1e6
    assert (folder / "merged" / "model.safetensors").stat().st_size > 2e8
    record = json.loads((folder / "adapter" / "training.json").read_text())
    assert record["kind"] == "adapter" and record["family"] == "harmony"
    fields = record["prompt"]["system"].format(**record["prompt"]["defaults"])
    assert fields.startswith("You write as ") and "{" not in fields
    assert not list(folder.glob(".*-partial"))


def test_a_book_of_the_reader_s_gets_a_folder_of_its_own(card, folder, tmp_path):
    """One author only, a broken book beside a good one; the first run's results stay."""
    import run_notebooks

    shelf = PROJECT / "outputs" / f".shelf-{tmp_path.name}"
    good = next((PROJECT / "outputs" / "rehearsal" / "books").glob("Ines*/*.pdf"))
    (shelf / "Ines Vallorán" / "old").mkdir(parents=True)
    try:
        (shelf / "Ines Vallorán" / "old" / "The “Mill” 🌊.pdf").write_bytes(good.read_bytes())
        (shelf / "Ines Vallorán" / "half.pdf").write_bytes(good.read_bytes()[:3000])
        (shelf / "Ines Vallorán" / "empty.pdf").write_bytes(b"")
        result, executed = run_notebook_with(
            "03", tmp_path, BOOKS=str(shelf.relative_to(PROJECT)), MAX_NEW_TOKENS=8, MAX_STEPS=2, EVAL_STEPS=2,
            RECITED=2, TRACKER="none",
        )  # fmt: skip
    finally:
        shutil.rmtree(shelf)
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = run_notebooks.run_card(executed)
    assert loaded["dataset"]["id"] == ["Ines Vallorán/old/The “Mill” 🌊.pdf"]
    assert loaded["parity"]["reloaded_adapter_same_text"]
    text = executed.read_text(encoding="utf-8")
    assert "LEFT OUT: an empty file" in text and ("LEFT OUT: damaged" in text or "no page can be found" in text)
    assert json.loads((folder / "run_card.json").read_text()) == card, "another configuration overwrote the run card"


def test_no_usable_book_stops_the_run_and_says_why(tmp_path):
    shelf = PROJECT / "outputs" / f".shelf-{tmp_path.name}"
    (shelf / "Nobody").mkdir(parents=True)
    try:
        (shelf / "Nobody" / "not a book.pdf").write_bytes(b"hello")
        result, _ = run_notebook_with("03", tmp_path, BOOKS=str(shelf.relative_to(PROJECT)))
    finally:
        shutil.rmtree(shelf)
    assert result.returncode != 0
    assert "None of the books can be used. Nobody/not a book.pdf: not a PDF file" in result.stderr
