"""Notebook 04's own functions, with hand-made cases."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import PROJECT, read_jsonl

STYLES = read_jsonl("answer_styles.jsonl")


@pytest.fixture(scope="module")
def nb(setup_04):
    return SimpleNamespace(**setup_04)


@pytest.fixture
def changed(setup_04):
    """Change the notebook's globals for one test: changed(NAME=value)."""
    kept = {}

    def change(**values):
        for name, value in values.items():
            kept.setdefault(name, setup_04[name])
            setup_04[name] = value

    yield change
    setup_04.update(kept)


@pytest.mark.parametrize("style", STYLES, ids=[style["tries"] for style in STYLES])
def test_both_readers_on_replies_as_models_write_them(nb, style):
    reference = f"#### {style['reference']}"
    assert nb.is_correct(style["reply"], reference) is style["right"]
    assert (nb.strict_answer(style["reply"]) == nb.strict_answer(reference)) is style["strict"]


@pytest.mark.parametrize(
    "text, number",
    [
        ("3*4 = 12.\n#### 12", "12"),
        ("#### 12 apples", "12"),
        ("#### 3\nwait\n#### 4", "4"),
        ("So the answer is: €8.50", "17/2"),
        ("Answer: 9", "9"),
        (r"Hence \boxed{15}.", "15"),
        (r"\boxed{\frac{2}{3}}", "2/3"),
        ("#### none, but I count 6", "6"),
        ("x = -7", "-7"),
        ("He keeps 12-5", "7"),
        ("a debt of -$5", "-5"),
        ("£3 and then £4", "4"),
        ("#### 2 1/4 cups", "9/4"),
        ("#### 1\u00a0234\u00a0567", "1234567"),
        ("#### 1.234.567,5", "2469135/2"),
        ("#### 3\u00bd", "7/2"),
        ("#### 12 % of the sum", "12"),
        ("#### 2. Add\n4 + 4 = 8", "8"),
    ],
)
def test_the_number_is_read(nb, text, number):
    from sympy import Rational

    assert nb.extract_answer(text).doit().evalf() == Rational(number).evalf()


@pytest.mark.parametrize("text", ["", "####", "No idea.", "#### eleven", "#### 8:30", "\ud800", "$" * 3000])
def test_no_number_is_none(nb, text):
    assert nb.extract_answer(text) is None and not nb.is_correct(text, "#### 3")


@pytest.mark.parametrize(
    "text",
    ["#### " + "(" * 2000 + "5" + ")" * 2000, "#### NaN", "#### 1/0", "$" + "9" * 5000, "#### 9^9^9^9", "\\frac{" * 500,
     "#### $99999999!$", "#### =", "#### 18 =", "#### \\boxed{", "A: ", "#### ½½", "#### " + "1," * 2000, "#### 1e99e99",
     "<<3*4=12>>", "#### \ufffd\udfff 7/", "#### -", "####  ...", "\x00#### 5\x00"],
)  # fmt: skip
def test_no_text_raises(nb, text):
    nb.extract_answer(text)
    assert nb.is_correct(text, "#### 77") is False and nb.strict_answer(text) != "77"
    assert nb.is_correct("#### 77", text) is False


@pytest.mark.parametrize(
    "row, fault",
    [
        ({"question": "q", "answer": "2*3 = <<2*3=6>>6\n#### 6"}, None),
        ({"question": "q", "answer": "about 3.33: <<10/3=3.33>>3.33\n#### 3.33"}, None),
        ({"question": "q", "answer": "<<200*40%=80>>80\n#### 80"}, None),
        ({"question": "q", "answer": "<<1,200+300=1500>>1500\n#### 1500"}, None),
        ({"question": "q", "answer": "<<(3+4)*.5=3.5>>3.5\n#### 3.5"}, None),
        ({"question": "q", "answer": "<<x*2=6>>6\n#### 6"}, None),
        ({"question": "q", "answer": "six"}, "no last line of four hashes and a number"),
        ({"question": "q", "answer": "#### 6\nthank you"}, "no last line of four hashes and a number"),
        ({"question": "q", "answer": "#### many"}, "no last line of four hashes and a number"),
        ({"question": "q", "answer": "#### 6 eggs"}, "no last line of four hashes and a number"),
        ({"question": "q", "answer": "<<6/0=1>>1\n#### 1"}, "a mark's sum is wrong"),
        ({"question": "q", "answer": "<<6*2=13>>13\n#### 13"}, "a mark's sum is wrong"),
        ({"question": "q", "answer": "<<10/3=3.3>>3.3\n#### 3.3"}, "a mark's sum is wrong"),
        ({"question": None, "answer": "#### 1"}, "no question or no answer"),
        ({"answer": "#### 1"}, "no question or no answer"),
        ({"question": "q", "answer": 6}, "no question or no answer"),
    ],
)
def test_faults_of_rows(nb, row, fault):
    assert nb.fault_of(row) == fault


def test_marks_go_or_stay(nb, changed):
    answer = "3*4 = <<3*4=12>>12 cups.\n#### 12"
    assert nb.to_messages("q", answer)[1]["content"] == "3*4 = 12 cups.\n#### 12"
    changed(REMOVE_MARKS=False)
    assert nb.to_messages("q", answer)[1]["content"] == answer


def test_conversations(nb):
    messages = nb.to_messages("How many?", "<<1+1=2>>2\n#### 2", example=("One?", "#### 1"))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert all(nb.INSTRUCTION in message["content"] for message in messages[::2])
    assert messages[1]["content"] == "#### 1" and messages[3]["content"] == "2\n#### 2"
    assert len(nb.to_messages("How many?")) == 1


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"RUNS": ["lora main", "dora main"]}, r"RUNS names \['dora main'\]; a run is a method of LEARNING_RATE"),
        ({"RUNS": ["lora"]}, r"RUNS names \['lora'\]"),
        ({"RUNS": ["lora main", "lora german"]}, r"RUNS names \['lora german'\]"),
        ({"RUNS": [7]}, r"RUNS names \['7'\]"),
        ({"RUNS": []}, "name each run once, at least one"),
        ({"RUNS": ["lora main", "lora main"]}, "name each run once"),
        ({"DATASET": {"socratic": ["x.jsonl", ""]}, "RUNS": ["lora socratic"]}, "give the form main"),
        ({"LEARNING_RATE": {"lora": 1e-3}, "RUNS": ["full main"]}, r"RUNS names \['full main'\]"),
    ],
)
def test_runs_that_cannot_be_are_one_sentence(nb, changed, values, sentence):
    changed(**values)
    with pytest.raises(nb.NotebookError, match=sentence):
        nb.check_runs()


def test_the_four_runs_of_the_file_are_known(nb, changed):
    import yaml

    values = yaml.safe_load((PROJECT / "NoteBooks" / "04_four_runs.yaml").read_text())
    changed(**values)
    assert sorted(nb.check_runs()) == [(method, form) for method in ("full", "lora") for form in ("main", "socratic")]


def test_the_mask_holds_the_reply_and_its_end(nb):
    row = nb.label(nb.to_messages("q", "#### 1"))
    text = nb.tokenizer.decode([t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100])
    assert text == "#### 1<end_of_turn>" and row["input_ids"][0] == nb.tokenizer.bos_token_id
    counts = nb.check_masks([row], nb.tokenizer, *nb.find_response_markers(nb.tokenizer))
    assert counts["missing"] == counts["extra"] == 0 < counts["supervised"]


def test_rows_that_cannot_be_learnt_from_are_refused(nb, changed):
    assert nb.refused(nb.to_messages("q", "#### 1")) is None
    assert nb.refused(nb.to_messages("<end_of_turn>?", "#### 1")) == "control token typed in the text"
    changed(MAX_LENGTH=10)
    assert nb.refused(nb.to_messages("q", "#### 1")) == "longer than MAX_LENGTH"


def test_both_forms_hold_the_same_problems_in_the_same_place(nb):
    main, socratic = (nb.labelled[form] for form in ("main", "socratic"))
    assert len(main) == len(socratic) == len(nb.sound)
    for one, other in zip(main, socratic, strict=True):
        question = one["text"].split("Work it out")[0]
        assert other["text"].startswith(question)


@pytest.mark.parametrize(
    "reply, ending",
    [("3*4 = 12\n#### 12<end_of_turn>", "final line"), ("####12<end_of_turn>", "final line"),
     ("#### $1,200.50<end_of_turn>", "final line"), ("#### −5<end_of_turn>", "final line"),
     ("#### 3/4<end_of_turn>\n", "final line"), ("#### 12 apples<end_of_turn>", "another line"),
     ("The answer is 12<end_of_turn>", "another line"), ("####<end_of_turn>", "another line"),
     ("<end_of_turn>", "another line"), ("#### 12", "cut at the budget"), ("", "cut at the budget")],
)  # fmt: skip
def test_how_a_reply_ended(nb, changed, reply, ending):
    changed(held_out=[{"question": "q", "answer": "#### 12"}])
    table = nb.score([reply])
    assert table["ending"][0] == ending
    metrics = nb.metrics_of(table)
    assert metrics["final_line"]["value"] == (ending == "final line") and metrics["exact_match"]["n"] == 1


def test_a_reference_without_a_number_is_never_right(nb, changed):
    changed(held_out=[{"question": "q", "answer": "no number"}])
    table = nb.score(["no number<end_of_turn>"])
    assert not table["correct"][0] and not table["strict"][0]


@pytest.mark.parametrize(
    "reply, check, value, expected",
    [("Green.", "max_words", 3, True), ("", "max_words", 3, False), ("It is green of course", "max_words", 3, False),
     ("a b c", "min_words", 3, True), ("a b", "min_words", 3, False),
     ("By the River", "contains", "river", True), ("HELLO", "contains", "HELLO", True),
     ("hello", "contains", "HELLO", False), ("Is it full?", "pattern", r"\?\s*$", True),
     ("It is.", "pattern", r"\?\s*$", False), ("no digits", "without", r"\d", True), ("7", "without", r"\d", False),
     ("", "without", r"\d", False)],
)  # fmt: skip
def test_instructions_are_checked_by_rule(nb, reply, check, value, expected):
    assert nb.follows(reply, check, value) is expected


def test_a_finding_is_mcnemars_exact_test_in_a_sentence(nb, setup_04, capsys):
    one, other = [1] * 10 + [0] * 2 + [1] * 5, [0] * 10 + [1] * 2 + [1] * 5
    found = nb.compare_shares(one, other)
    assert (found["gained"], found["lost"], found["before"], found["after"]) == (2, 10, 15, 7)
    assert found["p"] == pytest.approx(0.03857421875) and found["low"] < found["difference"] < found["high"] < 0
    nb.finding("Problems right, a to b", one, other)
    nb.finding("Problems right, a to a", one, one)
    assert "fell: 15 → 7 of 17" in capsys.readouterr().out
    assert (
        setup_04["CARD"]["findings"][-1]["p"] == 1.0
        and "no difference that 17" in setup_04["CARD"]["findings"][-1]["finding"]
    )
    del setup_04["CARD"]["findings"][-2:]


def test_holm(nb):
    assert nb.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert nb.holm([]) == [] and nb.holm([0.9, 0.9]) == [1.0, 1.0]


def test_what_so_many_problems_can_show(nb):
    assert nb.smallest_difference(200, 0.1) == pytest.approx(0.05)
    assert nb.smallest_difference(1319, 0.1) == pytest.approx(24 / 1319)
    assert nb.smallest_difference(20, 0.1) == 1.0
    assert nb.smallest_difference(60, 0.1) == pytest.approx(0.1)
    assert nb.smallest_difference(60, 0.1, tests=8) == 1.0  # six pairs can never do
    assert nb.smallest_difference(60, 0.2, tests=8) == pytest.approx(0.2)


def test_a_change_of_perplexity_is_paired(nb, setup_04, capsys):
    import numpy as np

    before = np.random.default_rng(0).normal(4, 1, 30).tolist()
    nb.surprise("up", before, [loss + 0.1 + 0.01 * (k % 3) for k, loss in enumerate(before)])
    nb.surprise("both ways", before, [loss + (-1) ** k for k, loss in enumerate(before)])
    first, second = setup_04["CARD"]["findings"][-2:]
    assert "rose: +1" in first["finding"] and first["low"] > 0.1 and first["change"] == pytest.approx(0.116, abs=0.002)
    assert "no change that 30 texts could show" in second["finding"]
    del setup_04["CARD"]["findings"][-2:]
    assert nb.perplexity([np.log(20)] * 5) == {"value": 20.0, "n": 5, "low": 20.0, "high": 20.0}


@pytest.mark.parametrize(
    "claim, low, high, words",
    [("learns less", 0.1, 0.2, "agrees"), ("learns less", -0.2, -0.1, "the opposite"), ("learns less", -0.1, 0.1, "neither"),
     ("forgets less", -0.2, -0.1, "agrees"), ("forgets less", 0.1, 0.2, "the opposite")],
)  # fmt: skip
def test_agreement_with_the_published_claim(nb, claim, low, high, words):
    assert words in nb.agreement(claim, (low + high) / 2, low, high)


# Counted on a CPU during the first step of the stand-in's training: 2 rows of 110 tokens, r = 16 (MiB).
COUNTED = {
    ("lora", "bf16"): {"weights": 256.566, "adapter": 18.633, "gradients": 18.633, "optimiser": 37.267, "activations": 180.408},
    ("qlora", "bf16"): {"adapter": 9.316, "gradients": 9.316, "optimiser": 18.634, "activations": 142.140},
    ("full", "bf16"): {"weights": 513.134, "gradients": 513.134, "optimiser": 1026.269, "activations": 503.223},
    ("lora", "fp32"): {"adapter": 18.633, "gradients": 18.633, "optimiser": 37.267, "activations": 254.998},
    ("qlora", "fp32"): {"adapter": 9.316, "gradients": 9.316, "optimiser": 18.634, "activations": 248.754},
    ("full", "fp32"): {"weights": 513.134, "gradients": 513.134, "optimiser": 1026.269, "activations": 390.152},
}  # fmt: skip


@pytest.mark.parametrize("method, half", list(COUNTED))
def test_predicted_memory_is_the_counted_one_cause_by_cause(nb, changed, method, half):
    changed(DEVICE="CPU", HALF=half, WIDE=4 if half == "fp32" else 2, LORA_RANK=16, OPTIMIZER="adamw_torch_fused")
    predicted = nb.method_bytes(nb.stand_in, method, 2, 110, False, "32-bit" if method == "full" else None)
    for cause, counted in COUNTED[method, half].items():
        assert 0.999 <= predicted[cause] / 2**20 / counted <= 1.01, cause


def nine_billion():
    from transformers import Gemma2Config

    return Gemma2Config(vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
                        num_attention_heads=16, num_key_value_heads=8, head_dim=256)  # fmt: skip


@pytest.mark.parametrize(
    "card_gib, in_4bit, methods, full_format",
    [(23.5, True, ["qlora"], "16-bit"), (47, False, ["lora", "qlora", "full"], "16-bit"),
     (79, False, ["lora", "qlora", "full"], "16-bit, stochastic rounding"), (139, False, ["lora", "qlora", "full"], "32-bit"),
     (8, True, [], "16-bit")],
)  # fmt: skip
def test_the_plan_for_cards(nb, changed, card_gib, in_4bit, methods, full_format):
    changed(DEVICE="a GPU", HALF="bf16", WIDE=2, LOAD_IN_4BIT="auto", FULL_FORMAT="auto", BATCH_SIZE="auto",
            GRADIENT_CHECKPOINTING="auto", MAX_LENGTH=1024, MAX_NEW_TOKENS=400, OPTIMIZER="adamw_8bit",
            RUNS=["lora main", "qlora main", "full main"])  # fmt: skip
    found = nb.plan_notebook(nine_billion(), card_gib * 2**30)
    assert found[0] is in_4bit and found[1] == full_format
    assert [stage for stage, _, fits in found[2][1:] if fits] == methods


def test_what_cannot_run_is_skipped_with_a_sentence(nb, changed, capsys):
    changed(RUNS=["lora main", "qlora main"], MERGE=False)
    stages = [("base, 4 bits, 40 prompts at once", 9e9, True), ("lora", 3e10, False), ("qlora", 1.2e10, True)]
    assert nb.show_plan(nine_billion(), stages, 2.4e10) == [("qlora", "main")]
    assert "no: left out" in capsys.readouterr().out
    with pytest.raises(nb.NotebookError, match="every method, needs more memory than is free"):
        nb.show_plan(nine_billion(), [stages[0], stages[1], ("qlora", 3e10, False)], 2.4e10)


def test_a_disk_that_cannot_hold_the_checkpoints_is_told_before_anything_is_loaded(nb, changed, monkeypatch):
    """9.24 billion weights: a result and a merged copy in 16 bits, twice weights and optimiser in 16 and 8 bits."""
    changed(
        RUNS=["full main"], FULL_FORMAT="16-bit, stochastic rounding", MERGE=True, DEVICE="a GPU", HALF="bf16", WIDE=2
    )
    every = sum(shape.numel() for shape in nb.shapes_of(nine_billion()).values())
    needed = nb.disk_bytes(nine_billion(), [("full", "main")], "16-bit, stochastic rounding")
    assert needed == 2 * every * 2 + 2 * every * (2 + 2)
    assert nb.disk_bytes(nine_billion(), [("lora", "main")], None) == 2 * every  # the merged copy
    saved_every = nb.SAVE_STEPS
    changed(SAVE_STEPS=0)
    assert nb.disk_bytes(nine_billion(), [("full", "main")], "16-bit, stochastic rounding") == 2 * every * 2
    changed(SAVE_STEPS=saved_every)
    stages = [("base, 16 bits, 40 prompts at once", 2e10, True), ("full", 6e10, True)]
    monkeypatch.setattr(nb.shutil, "disk_usage", lambda _: SimpleNamespace(free=29e9))
    with pytest.raises(nb.NotebookError, match=f"take up to {needed / 2**30:.1f} GiB and the disk has 27.0 GiB free"):
        nb.show_plan(nine_billion(), stages, 8e10)


def test_small_steps_survive_stochastic_rounding_and_not_plain_bf16(nb):
    import torch

    torch.compiler.set_stance("force_eager")
    try:
        moved = {}
        for kind in (nb.CompiledAdamW8bit, torch.optim.AdamW):
            weight = torch.nn.Parameter(torch.full((64, 256), 0.02, dtype=torch.bfloat16))
            more = {"bf16_stochastic_round": True} if kind is nb.CompiledAdamW8bit else {}
            optimizer = kind([weight], lr=1e-5, weight_decay=0.0, **more)
            for _ in range(50):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
            moved[kind] = 0.02 - weight.float().mean().item()
    finally:
        torch.compiler.set_stance("default")
    assert moved[nb.CompiledAdamW8bit] == pytest.approx(50 * 1e-5, rel=0.15)
    assert abs(moved[torch.optim.AdamW]) < 5e-5


def test_storages_are_counted_once(nb):
    import torch

    base = torch.zeros(10, 10)
    assert nb.storage_bytes([base, base.T, base[:2]]) == 400
    assert nb.storage_bytes([base, torch.zeros(3)]) == 412
    assert nb.storage_bytes([]) == 0


def test_local_files_are_read_by_form(nb, changed, tmp_path):
    changed(ROOT=tmp_path, DATASET={"main": ["shelf", ""], "socratic": ["none.jsonl", ""]})
    rows = [{"question": f"q{k}", "answer": f"#### {k}"} for k in range(4)]
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    pd.DataFrame(rows[2:]).to_parquet(tmp_path / "shelf" / "b.parquet")
    assert nb.read_form("main") == (rows, [])
    with pytest.raises(nb.NotebookError, match="there is no such file or folder"):
        nb.read_form("socratic")


def test_the_report_groups_what_the_page_has_said(nb):
    table = nb.markdown_table([("lora", 1), ("full", 2)], ["method", "n"])
    assert table.splitlines() == ["| method | n |", "| --- | --- |", "| lora | 1 |", "| full | 2 |"]
