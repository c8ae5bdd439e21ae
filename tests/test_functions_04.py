"""Notebook 04's own functions, with hand-made cases."""

import ast
import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import code_cells


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


@pytest.mark.parametrize(
    "text, number",
    [
        ("3*4 = 12.\n#### 12", 12),
        ("#### 1,234", 1234),
        ("####7", 7),
        ("#### -5", -5),
        ("#### −5", -5),
        ("#### $1,250.00", 1250),
        ("#### 25%", 25),
        ("#### 3/4", Fraction(3, 4)),
        ("#### .5", Fraction(1, 2)),
        ("#### 12.", 12),
        ("#### 12 apples", 12),
        ("#### 3\nwait\n#### 4", 4),
        ("The answer is 42.", 42),
        ("So the answer is: €8.50", Fraction(17, 2)),
        ("Answer: 9", 9),
        ("5 + 6\nA: 11", 11),
        (r"Hence \boxed{15}.", 15),
        (r"\boxed{\frac{2}{3}}", Fraction(2, 3)),
        ("He has 8, then 3 more, so 11.", 11),
        ("#### none, but I count 6", 6),
        ("-7", -7),
        ("x = -7", -7),
        ("He keeps 12-5", 5),
        ("- 18 eggs", 18),
        ("a debt of -$5", -5),
        ("(3+4)-2", 2),
        ("£3 and then £4", 4),
        ("1/0", None),
        ("No idea.", None),
        ("", None),
        ("####", None),
    ],
)
def test_extract_answer(nb, text, number):
    assert nb.extract_answer(text) == number


@pytest.mark.parametrize(
    "text, reference, correct",
    [
        ("#### 0.5", "#### 1/2", True),
        ("#### 33.3", "#### 100/3", False),
        ("It is $1,000.", "#### 1000", True),
        ("#### 25%", "#### 25", True),
        ("#### 12", "12 steps\n#### 13", False),
        ("no number", "#### 3", False),
        ("0.1 + 0.2 = 0.30", "#### .3", True),
    ],
)
def test_is_correct_compares_exactly(nb, text, reference, correct):
    assert nb.is_correct(text, reference) is correct


@pytest.mark.parametrize(
    "expression, value",
    [("3*4", 12), ("2+3*4", 14), ("(2+3)*4", 20), ("1/3", Fraction(1, 3)), ("50%*8", 4), ("1,200+300", 1500),
     ("$5*2", 10), (".5*4", 2), ("x*2", None), ("2**9", None), ("7//2", None), ("__import__('os')", None),
     ("1+" * 60 + "1", None), ("3*", None), ("", None)],
)  # fmt: skip
def test_sums_are_evaluated_exactly_and_nothing_else_is(nb, expression, value):
    assert nb.evaluate(expression) == value


def test_a_division_by_zero_is_told(nb):
    with pytest.raises(ZeroDivisionError):
        nb.evaluate("4/0")


@pytest.mark.parametrize(
    "row, fault",
    [
        ({"question": "q", "answer": "2*3 = <<2*3=6>>6\n#### 6"}, None),
        ({"question": "q", "answer": "about 3.33: <<10/3=3.33>>3.33\n#### 3.33"}, None),
        ({"question": "q", "answer": "six"}, "no #### line at the end"),
        ({"question": "q", "answer": "#### 6\nthank you"}, "no #### line at the end"),
        ({"question": "q", "answer": "#### many"}, "the answer is not a number"),
        ({"question": "q", "answer": "#### 6 eggs"}, "the answer is not a number"),
        ({"question": "q", "answer": "<<6/0=1>>1\n#### 1"}, "a mark divides by zero"),
        ({"question": "q", "answer": "<<6*2=13>>13\n#### 13"}, "a mark's sum is wrong"),
        ({"question": None, "answer": "#### 1"}, "no question or no answer"),
        ({"answer": "#### 1"}, "no question or no answer"),
        ({"question": "q", "answer": 6}, "no question or no answer"),
    ],
)
def test_faults_of_rows(nb, row, fault):
    assert nb.fault_of(row) == fault


def test_rows_with_faults_are_counted_named_and_left_out(nb, capsys):
    rows = [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "two"}, {"question": "c", "answer": "x"}]
    kept, left_out = nb.keep_sound(rows, "mine.jsonl")
    assert kept == rows[:1] and left_out == {"no #### line at the end": 2}
    assert "mine.jsonl: 2 rows left out, no #### line at the end; the first is row 2" in capsys.readouterr().out
    for nothing in ([], rows[1:]):
        with pytest.raises(nb.NotebookError, match="mine.jsonl has no usable row"):
            nb.keep_sound(nothing, "mine.jsonl")


def test_marks_go_or_stay(nb, changed):
    answer = "3*4 = <<3*4=12>>12 cups.\n#### 12"
    assert nb.clean_answer(answer) == "3*4 = 12 cups.\n#### 12"
    changed(REMOVE_MARKS=False)
    assert nb.clean_answer(answer) == answer


def test_conversations(nb):
    messages = nb.to_messages("How many?", "<<1+1=2>>2\n#### 2", example=("One?", "#### 1"))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert all(nb.INSTRUCTION in message["content"] for message in messages[::2])
    assert messages[1]["content"] == "#### 1" and messages[3]["content"] == "2\n#### 2"
    assert len(nb.to_messages("How many?")) == 1


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"METHODS": ["lora", "dora"]}, r"METHODS names \['dora'\]; known are lora, qlora and full"),
        ({"DATASET": {"socratic": ["data/gsm8k_socratic.jsonl", ""]}}, "the form main is needed"),
        ({"METHODS": []}, "name one to three methods"),
        ({"METHODS": ["lora", "lora"]}, "each once"),
        ({"SCHEDULER_ARGUMENTS": {"min_rate": 0.1}}, r"SCHEDULER_ARGUMENTS has \['min_rate'\]"),
        ({"SCHEDULER_ARGUMENTS": {}}, "one of the two"),
        ({"SCHEDULER_ARGUMENTS": {"min_lr": 1e-5, "min_lr_rate": 0.1}}, "one of the two"),
        ({"LEARNING_RATE": {"lora": 1e-3}}, r"LEARNING_RATE has no entry for \['full', 'qlora'\]"),
    ],
)
def test_contradictory_parameters_are_one_sentence(nb, changed, values, sentence):
    changed(**values)
    with pytest.raises(nb.NotebookError, match=sentence):
        nb.check_parameters()


def test_local_files_and_folders_are_read(nb, changed, tmp_path):
    changed(ROOT=tmp_path)
    rows = [{"question": f"q{k}", "answer": f"#### {k}"} for k in range(4)]
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    pd.DataFrame(rows[2:]).to_parquet(tmp_path / "shelf" / "b.parquet")
    assert nb.read_rows("shelf", "") == (rows, [])
    assert nb.read_rows("shelf/a.jsonl", "") == (rows[:2], [])
    with pytest.raises(nb.NotebookError, match="there is no such file or folder"):
        nb.read_rows("shelf/c.jsonl", "")
    (tmp_path / "broken.jsonl").write_text('{"question": "q"\n')
    with pytest.raises(nb.NotebookError, match="broken.jsonl, line 1: not valid JSON"):
        nb.read_rows("broken.jsonl", "")


def test_a_model_folder_without_a_tokenizer_is_one_sentence(nb, changed, tmp_path):
    changed(ROOT=tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(nb.NotebookError, match="bare has no tokenizer"):
        nb.check_model("bare", "main")
    with pytest.raises(nb.NotebookError, match="does not exist"):
        nb.check_model("outputs/none", "main")


def test_exactly_one_bos(nb, changed):
    good = nb.render(nb.to_messages("q", "#### 1"))
    assert nb.count_bos(good) == (1, True)
    assert nb.count_bos("<bos>" + good) == (2, True) and nb.count_bos(good.removeprefix("<bos>")) == (0, False)
    assert nb.check_bos([good]) == "one <bos> in front of each of 1 texts"
    for wrong in ("<bos>" + good, good.removeprefix("<bos>")):
        with pytest.raises(nb.NotebookError, match="1 texts do not have exactly one <bos>"):
            nb.check_bos([good, wrong])


def test_markers_and_typed_control_tokens(nb):
    assert nb.find_response_markers(nb.tokenizer) == ("<start_of_turn>user\n", "<start_of_turn>model\n")
    kept, dropped, _ = nb.tokenize_rows([nb.to_messages("q", "#### 1"), nb.to_messages("<end_of_turn>?", "#### 1")])
    assert len(kept) == 1 and dropped == {"control token typed in the text": 1}


def test_both_forms_are_split_alike(nb):
    main, socratic = nb.split_rows("main"), nb.split_rows("socratic")
    for a, b in zip(main, socratic, strict=True):
        assert [row[0] for row in a] == [row[0] for row in b]
    training, validation = ({row[0]["content"] for row in part} for part in main)
    assert not training & validation and len(training) == 288 and len(validation) == 32
    assert nb.split_rows("main") == main


@pytest.mark.parametrize(
    "line, fits",
    [("#### 12", True), ("####12", True), ("#### $1,200.50", True), ("#### -3", True), ("#### 12.", True),
     ("#### -$5", True), ("#### −5", True), ("#### .5", True), ("#### 3/4", True),
     ("#### 12 apples", False), ("The answer is 12", False), ("####", False), ("### 12", False), ("#### twelve", False)],
)  # fmt: skip
def test_the_last_line(nb, changed, line, fits):
    changed(held_out=[{"question": "q", "answer": "#### 12"}])
    table, metrics = nb.score([f"3*4 = 12\n{line}<end_of_turn>"])
    assert bool(table["final_line"][0]) is fits and table["ended"][0]
    assert metrics["final_line"]["value"] == float(fits) and metrics["exact_match"]["n"] == 1


def test_an_empty_reply_is_scored_as_wrong(nb, changed):
    changed(held_out=[{"question": "q", "answer": "#### 12"}])
    table, metrics = nb.score([""])
    assert not table["correct"][0] and not table["final_line"][0] and not table["ended"][0]


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


def test_mcnemar_is_exact(nb):
    def table(hits):
        return pd.DataFrame({"correct": [bool(hit) for hit in hits]})

    one, other = table([1] * 10 + [0] * 2 + [1] * 5), table([0] * 10 + [1] * 2 + [1] * 5)
    assert nb.mcnemar(one, other) == (10, 2, pytest.approx(0.03857421875))
    assert nb.mcnemar(one, one) == (0, 0, 1.0)
    assert nb.mcnemar(table([1, 0]), table([0, 1])) == (1, 1, 1.0)


def small_config(**changes):
    return SimpleNamespace(**{"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 4,
                              "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10, **changes})  # fmt: skip


def test_activations_by_hand(nb, changed):
    changed(LORA_RANK=1, weights={"linear": 0, "other": 0, "shapes": []})
    common = 8 * 8 + 4 * 8 + 4 * 4 + 6 * 16  # norms, queries and output, keys and values, feed-forward part
    logits = 4 * 10 * 5
    assert nb.activation_bytes(small_config(), "full", 5, False) == 5 * 2 * (common + 8 * 8 + 2 * 16) + logits
    assert nb.activation_bytes(small_config(), "lora", 5, False) == 5 * 2 * (common + 12 * 8 + 2 * 16 + 14) + logits
    assert nb.activation_bytes(small_config(), "qlora", 5, False) == 5 * 2 * (common + 4 * 8 + 14) + logits
    many = small_config(num_hidden_layers=20)
    assert nb.activation_bytes(many, "full", 5, True) < nb.activation_bytes(many, "full", 5, False) / 5


def test_predicted_memory_tells_the_methods_apart(nb, changed):
    changed(weights={"linear": 1000, "other": 200, "shapes": [(10, 20)]}, LORA_RANK=2, HALF="bf16")
    parts = {method: nb.predict_memory(small_config(), method, 5, False) for method in ("lora", "qlora", "full")}
    assert parts["full"]["weights"] == parts["lora"]["weights"] == 2400
    assert parts["qlora"]["weights"] == pytest.approx(1000 * (0.5 + 0.127 / 8) + 400)
    assert parts["lora"]["adapter"] == 4 * 2 * 30 and parts["qlora"]["adapter"] == 2 * 2 * 30
    assert parts["full"]["adapter"] == 0 and parts["full"]["gradients"] == 2400
    assert parts["full"]["optimiser"] == 4800 and parts["lora"]["optimiser"] == 2 * parts["lora"]["gradients"]


@pytest.mark.parametrize("floor, lowest", [({"min_lr_rate": 0.1}, 1e-4), ({"min_lr": 3e-4}, 3e-4)])
def test_the_schedule_has_its_peak_and_its_floor(nb, changed, floor, lowest):
    changed(SCHEDULER_ARGUMENTS=floor, LEARNING_RATE={"lora": 1e-3}, WARMUP_RATIO=0.1)
    rates = nb.schedule("lora", 200)
    assert max(rates) == pytest.approx(1e-3) and rates[0] < 1e-4
    assert min(rates[20:]) == rates[-1] == pytest.approx(lowest, rel=0.02)


def test_an_adapter_for_another_base_is_refused_with_both_names(nb, changed, tmp_path):
    changed(ADAPTER="mine", ROOT=tmp_path)
    with pytest.raises(nb.NotebookError, match="no folder with an adapter or a model"):
        nb.load_result(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text('{"base_model_name_or_path": "other/base"}')
    with pytest.raises(nb.NotebookError, match="was made for other/base, and MODEL is outputs/rehearsal/gemma"):
        nb.load_result(tmp_path / "mine")
    (tmp_path / "mine" / "training.json").write_text('{"model": "third/base", "method": "lora"}')
    with pytest.raises(nb.NotebookError, match="was made for third/base"):
        nb.load_result(tmp_path / "mine")


@pytest.mark.parametrize(
    "low, high, words",
    [(0.3, 0.5, "above the base's beyond its interval"), (0.0, 0.02, "below the base's beyond its interval"),
     (0.05, 0.3, "not distinguishable from the base's")],
)  # fmt: skip
def test_the_report_says_what_the_intervals_allow(nb, changed, setup_04, low, high, words):
    def share(low, high):
        return {"value": round((low + high) / 2, 4), "n": 60, "low": low, "high": high}

    setup_04.setdefault("cards", {})
    for name in ("best_base", "before", "steps", "GRADIENT_ACCUMULATION"):
        setup_04.setdefault(name, None)
    kept = dict(setup_04["CARD"])
    changed(
        best_base="zero-shot", steps=40, before={"forgetting_perplexity": {"value": 20}},
        cards={"lora": {"metrics": {"after": {"exact_match": share(low, high), "final_line": share(0.9, 1)}},
                        "memory": None, "phases": {}}},
    )  # fmt: skip
    setup_04["CARD"].update(model={"id": "m"}, rows={"kept": 1}, metrics={"before": {"exact_match": share(0.03, 0.2)}})
    try:
        lines = "\n".join(nb.report_lines())
    finally:
        setup_04["CARD"].clear()
        setup_04["CARD"].update(kept)
    assert f"is {words}" in lines


def test_storages_are_counted_once(nb):
    import torch

    base = torch.zeros(10, 10)
    assert nb.storage_bytes([base, base.T, base[:2]]) == 400
    assert nb.storage_bytes([base, torch.zeros(3)]) == 412
    assert nb.storage_bytes([]) == 0


def test_rows_of_like_length_share_a_batch(nb):
    from datasets import Dataset

    lengths = np.random.default_rng(0).integers(5, 60, 40)
    rows = Dataset.from_list([{"input_ids": [0] * int(length)} for length in lengths])
    ordered = [len(ids) for ids in nb.like_lengths_together(rows, 4, 1)["input_ids"]]
    assert sorted(ordered) == sorted(lengths.tolist())
    batches = [ordered[k : k + 4] for k in range(0, 40, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) <= 60
    assert batches != sorted(batches)


def test_every_method_goes_through_one_function(notebook_04):
    calls = [source for source in code_cells(notebook_04) if "run_method(method)" in source]
    assert len(calls) == 1
    tree = ast.parse(next(source for source in code_cells(notebook_04) if "def build_trainer" in source))
    keywords = {word.arg for call in ast.walk(tree) if isinstance(call, ast.Call) for word in call.keywords}
    assert {"train_sampling_strategy", "seed", "max_steps", "lr_scheduler_kwargs"} <= keywords
