"""The mask contract of notebook 01, for three families and rows of every shape, against a second implementation."""

import copy
import json
from types import SimpleNamespace

import pytest
from conftest import PROJECT, lift, read_jsonl

ROW = [
    {"role": "system", "content": "reasoning language: German"},
    {"role": "user", "content": "¿Cuál es la capital de Australia?"},
    {"role": "assistant", "thinking": "Gefragt ist nach der Hauptstadt.", "content": "Canberra."},
]
PLAIN = [{"role": "user", "content": "Two plus two?"}, {"role": "assistant", "content": "Four 😀, d'accord."}]
TOOL = [
    {"role": "user", "content": "Rain in Rome?"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "rain", "arguments": {"city": "Rome"}}}]},
    {"role": "tool", "content": "no"},
    {"role": "assistant", "thinking": "Kein Regen.", "content": "No."},
]  # fmt: skip
NAMES = ["NotebookError", "find_response_markers", "label_rows", "complete_mask", "check_masks", "supervised_text", "tokenize_rows",
         "keep_as_text", "left_out", "render", "show_mask", "mask_pieces", "reasoning_share", "compare_with_trl", "clean_messages"]  # fmt: skip


@pytest.fixture(scope="module")
def masks(notebook_01, tokenizers):
    """Return f(family) → the notebook's mask functions bound to that family's tokenizer."""

    def bind(family):
        namespace = lift(notebook_01, *NAMES)
        tokenizer = copy.deepcopy(tokenizers[family])
        namespace["tokenizer"] = tokenizer
        namespace["MAX_LENGTH"] = 2048
        namespace["control_ids"] = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        namespace["instruction"], namespace["response"] = namespace["find_response_markers"](tokenizer)
        return SimpleNamespace(**namespace)

    return bind


def labelled(nb, conversations, complete=True):
    rows = nb.label_rows(nb.tokenize_rows(conversations)[0], nb.tokenizer, nb.instruction, nb.response)
    if complete:
        options = {"tokenizer": nb.tokenizer, "instruction": nb.instruction, "response": nb.response}
        rows = rows.map(nb.complete_mask, fn_kwargs=options)
    return rows


def check(nb, rows):
    return nb.check_masks(rows, nb.tokenizer, nb.instruction, nb.response)


@pytest.mark.parametrize(
    ("family", "conversation", "expected"),
    [
        ("gpt-oss", ROW, "<|channel|>analysis<|message|>Gefragt ist nach der Hauptstadt.<|end|>"
                         "<|start|>assistant<|channel|>final<|message|>Canberra.<|return|>"),
        ("gpt-oss", PLAIN, "<|channel|>final<|message|>Four 😀, d'accord.<|return|>"),
        ("gpt-oss", [*ROW, *PLAIN], "<|channel|>final<|message|>Four 😀, d'accord.<|return|>"),
        ("gpt-oss", TOOL, ' to=functions.rain<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
                          "<|channel|>analysis<|message|>Kein Regen.<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>"),
        ("qwen3", PLAIN, "Four 😀, d'accord.<|im_end|>"),
        ("qwen3", [*PLAIN, *PLAIN], "Four 😀, d'accord.<|im_end|>"),
        ("gemma", PLAIN, "Four 😀, d'accord.<end_of_turn>"),
        ("gemma", [*PLAIN, *PLAIN], "Four 😀, d'accord.<end_of_turn>"),
    ],
)  # fmt: skip
def test_exactly_the_model_s_own_tokens_learn(masks, family, conversation, expected):
    nb = masks(family)
    rows = labelled(nb, [conversation])
    assert nb.supervised_text(rows[0], nb.tokenizer) == expected
    counts = check(nb, rows)
    assert counts["missing"] == counts["extra"] == 0 < counts["supervised"]


def test_the_contract_holds_for_every_row_of_the_data(masks):
    nb = masks("gpt-oss")
    rows = labelled(nb, [nb.clean_messages(row["messages"]) for row in read_jsonl("multilingual_thinking.jsonl")])
    counts = check(nb, rows)
    assert counts["rows"] == 300 and counts["missing"] == counts["extra"] == 0
    assert nb.reasoning_share(rows, nb.tokenizer)["value"] == 1.0


def test_the_contract_sees_a_broken_mask(masks):
    nb = masks("gpt-oss")
    rows = labelled(nb, [ROW])
    for change, count in ((lambda labels: [*labels[:-1], -100], "missing"), (lambda labels: [5, *labels[1:]], "extra")):
        broken = rows.map(lambda row, change=change: {"labels": change(row["labels"])})
        assert check(nb, broken)[count] == 1
    assert check(nb, labelled(nb, [ROW], complete=False))["missing"] == 3  # <|start|> ass istant
    earlier = labelled(nb, [[*ROW, *PLAIN]], complete=False)
    assert check(nb, earlier)["extra"] > 0  # the matcher alone would train on the first turn


def test_markers_that_match_nothing_stop_with_the_template_s_text(masks):
    nb = masks("gpt-oss")
    rows = nb.tokenize_rows([ROW])[0]
    silent = rows.add_column("labels", [[-100] * len(ids) for ids in rows["input_ids"]])
    with pytest.raises(nb.NotebookError, match=r"carries loss.*<\|im_start\|>.*match nothing in.*You are ChatGPT"):
        nb.check_masks(silent, nb.tokenizer, "<|im_start|>user", "<|im_start|>assistant")


def test_unsloth_s_detection_leaves_the_reasoning_out(masks):
    nb = masks("gpt-oss")
    rows = nb.label_rows(nb.tokenize_rows([ROW])[0], nb.tokenizer)
    assert nb.supervised_text(rows[0], nb.tokenizer) == "Canberra.<|return|>"
    assert nb.reasoning_share(rows, nb.tokenizer)["value"] == 0.0


def test_trl_s_template_marks_the_same_tokens(masks, notebook_01):
    import re

    import trl

    nb = masks("gpt-oss")
    path = PROJECT.__class__(trl.__file__).parent / "chat_templates" / "gptoss_training.jinja"
    template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', path.read_text())
    nb.compare_with_trl.__globals__["trl_template"] = template
    differences = nb.compare_with_trl(labelled(nb, [ROW]), nb.tokenizer)
    assert dict(differences) == {
        ("text", "'' here, '\\n\\n' there"): 1,
        ("loss only there", "'<|start|>assistant'"): 1,
    }
    broken = labelled(nb, [ROW]).map(lambda row: {"labels": [*row["labels"][:-1], -100]})
    assert any(
        what == "loss only there" and "return" in text for what, text in nb.compare_with_trl(broken, nb.tokenizer)
    )


def test_rows_that_type_control_tokens_are_refused_and_counted(masks):
    nb = masks("gpt-oss")
    for key, text in (("content", "Canberra.<|end|><|start|>system"), ("thinking", "x<|return|>")):
        attack = [*ROW[:2], {**ROW[2], key: text}]
        kept, dropped, _ = nb.tokenize_rows([ROW, attack])
        assert len(kept) == 1 and dropped == {"control token typed in the text": 1}


def test_a_row_that_the_template_cuts_short_is_refused_counted_and_named(masks, capsys):
    nb = masks("gpt-oss")
    call = TOOL[1]["tool_calls"][0]
    two_calls = [TOOL[0], {"role": "assistant", "tool_calls": [call, call]}, *TOOL[2:]]
    kept, dropped, _ = nb.tokenize_rows([ROW, two_calls, TOOL])
    assert len(kept) == 2 and dropped == {"the template leaves something out": 1}
    assert "row 2: the template leaves out the tool call 2 of message 2 (assistant)" in capsys.readouterr().out


def test_long_rows_are_dropped_and_the_sentence_names_the_length_that_keeps_99_percent(masks):
    nb = masks("gpt-oss")
    long_row = [*ROW[:2], {**ROW[2], "thinking": "Wort " * 3000}]
    kept, dropped, lengths = nb.tokenize_rows([ROW, long_row])
    assert len(kept) == 1 and dropped == {"longer than MAX_LENGTH": 1} and max(lengths) > 2048
    with pytest.raises(nb.NotebookError, match=rf"No row is left.*MAX_LENGTH = {max(lengths)} would keep 99 %"):
        nb.tokenize_rows([long_row])


def test_show_mask_has_two_faces_and_whole_characters(masks, monkeypatch):
    nb = masks("gpt-oss")
    shown = []
    nb.show_mask.__globals__["display"] = lambda data, raw: shown.append(data)
    row = labelled(nb, [[*ROW[:2], {**ROW[2], "content": "Ñandú 😀 <b>"}]])[0]
    nb.show_mask(row, nb.tokenizer)
    assert set(shown[0]) == {"text/html", "text/plain"}
    assert "Ñandú 😀 <b>" in shown[0]["text/plain"] and "\ufffd" not in shown[0]["text/plain"]
    assert "&lt;" in shown[0]["text/html"] and "<b>" not in shown[0]["text/html"]
    begin, end = shown[0]["text/plain"].index("⟦"), shown[0]["text/plain"].index("⟧")
    assert shown[0]["text/plain"][begin + 1 : end] == nb.supervised_text(row, nb.tokenizer)


def test_messages_survive_the_trip_through_the_data_set(masks):
    nb = masks("gpt-oss")
    assert json.loads(nb.tokenize_rows([ROW])[0][0]["messages"]) == ROW
