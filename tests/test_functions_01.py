"""Functions of notebook 01, lifted out of it and given right and wrong input."""

import json
import math
import sys

import pytest
from conftest import PROJECT


@pytest.fixture(scope="module")
def nb(setup_01):
    return setup_01


@pytest.fixture(scope="module")
def functions(notebook_01):
    from conftest import lift

    names = ["parse_harmony", "share", "finding", "holm", "find_response_markers", "clean_messages", "split_messages"]
    return lift(notebook_01, *names, "compare_shares", "mean_with_interval", "once_a_step", "keep_as_text", "left_out")


WELL_FORMED = "<|channel|>analysis<|message|>Denken.<|end|><|start|>assistant<|channel|>final<|message|>Hola.<|return|>"


def test_parse_harmony_well_formed(functions):
    parsed = functions["parse_harmony"](WELL_FORMED)
    assert parsed == {"analysis": "Denken.", "commentary": None, "final": "Hola.", "finished": True, "fault": None}
    bare = functions["parse_harmony"]("<|channel|>final<|message|>Hola.<|return|>")
    assert bare["final"] == "Hola." and bare["analysis"] is None and bare["fault"] is None
    call = functions["parse_harmony"](' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>')
    assert call["commentary"] == '{"a": 1}' and call["finished"] and call["fault"] is None
    lines = functions["parse_harmony"](WELL_FORMED.replace("Denken.", "Eins.\nzwei < drei | vier > null"))
    assert lines["fault"] is None and "zwei < drei" in lines["analysis"]


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("", "not a Harmony message"),
        ("Canberra.", "not a Harmony message"),
        ("<|channel|>analysis<|message|>Denken.<|return|>", "without a final message"),
        ("<|channel|>analysis<|message|>Denken", "cut off"),
        (WELL_FORMED.removesuffix("<|return|>"), "cut off"),
        (WELL_FORMED.replace("<|return|>", "<|end|>"), "not ended"),
        (WELL_FORMED.replace("final", "fin"), "unknown channel"),
        (WELL_FORMED.replace("<|start|>assistant", ""), "not a Harmony message"),
        (WELL_FORMED.replace("<|start|>assistant", "<|start|>user"), "not a Harmony message"),
        (WELL_FORMED.replace("Hola.", "Ho<|start|>la."), "inside the final message"),
        ("<|channel|><|message|>x<|return|>", "not a Harmony message"),
    ],
)
def test_parse_harmony_names_the_fault(functions, reply, fault):
    assert fault in functions["parse_harmony"](reply)["fault"]


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.f<|channel|>commentary json",  # addressee before the channel
        "<|channel|>commentary to=functions.f json",  # addressee after it
        "<|channel|>commentary to=functions.f <|constrain|>json",  # the type with its mark, after a space
        " to=functions.f<|channel|>commentary <|constrain|>json",
        "<|channel|>commentary to=functions.f<|constrain|>json",
    ],
)
def test_parse_harmony_reads_every_documented_header_of_a_call(functions, header):
    parsed = functions["parse_harmony"](header + '<|message|>{"a": 1}<|call|>')
    assert parsed["commentary"] == '{"a": 1}' and parsed["finished"] and parsed["fault"] is None


def test_share_against_published_values(functions):
    share = functions["share"]
    assert share([True] * 8 + [False] * 32) == {"value": 0.2, "n": 40, "low": 0.105, "high": 0.3476}  # Agresti & Coull
    assert share([False] * 10)["low"] == 0 and share([True] * 10)["high"] == 1
    assert math.isclose(share([False] * 10)["high"], 0.2775, abs_tol=1e-4)


def test_a_finding_is_decided_by_the_prompts_that_differ(functions, capsys):
    functions["finding"].__globals__["CARD"] = card = {"findings": []}
    functions["finding"]("Skill", [False] * 10 + [True] * 2, [True] * 9 + [False] * 2 + [True])
    found = card["findings"][-1]
    assert (found["gained"], found["lost"], found["n"], found["before"], found["after"]) == (9, 1, 12, 2, 10)
    assert math.isclose(found["p"], 2 * (1 + 10) / 2**10, abs_tol=1e-12)  # the two tails of ten tosses
    assert found["low"] < found["difference"] == 8 / 12 < 10 / 12 and found["low"] > 0
    assert "Skill rose: 2 → 10 of 12, 9 gained, 1 lost; +67%" in capsys.readouterr().out
    functions["finding"]("Skill", [True] * 6, [False] * 6)
    assert "Skill fell: 6 → 0 of 6, 0 gained, 6 lost; -100%" in capsys.readouterr().out
    functions["finding"]("Skill", [True] * 5, [False] * 5)  # five of five could still be chance
    assert (
        "Skill: no difference that 5 prompts could show (5 → 0 of 5, 0 gained, 5 lost, p = 0.062)"
        in capsys.readouterr().out
    )
    same = functions["compare_shares"]([True, False], [True, False])
    assert (same["p"], same["low"], same["high"]) == (1.0, 0.0, 0.0) and len(card["findings"]) == 3


def test_holm_against_a_worked_example(functions):
    assert functions["holm"]([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert functions["holm"]([0.9, 0.8]) == [1.0, 1.0] and functions["holm"]([]) == []


def test_a_mean_s_interval_holds_the_mean_and_one_value_has_none(functions):
    functions["mean_with_interval"].__globals__["SEED"] = 1
    found = functions["mean_with_interval"]([1.0, 2.0, 3.0, 4.0])
    assert found["value"] == 2.5 and 1 <= found["low"] < 2.5 < found["high"] <= 4 and found["n"] == 4
    assert functions["mean_with_interval"]([2.0]) == {"value": 2.0, "n": 1, "low": 2.0, "high": 2.0}


def test_clean_messages_as_templates_read_them(functions):
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Where "}, {"type": "text", "text": "is it?"}],
            "thinking": None,
        },
        {"role": "assistant", "content": "a", "thinking": " "},
        {"role": "assistant", "content": "a", "thinking": "b", "tool_calls": None},
    ]
    assert functions["clean_messages"](messages) == [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "a"},  # an empty thinking would be taught as an empty analysis
        {"role": "assistant", "content": "a", "thinking": "b"},
    ]


def test_a_resumed_curve_has_each_step_once(functions):
    history = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 2.9},
               {"step": 1, "eval_loss": 2.8}, {"step": 2, "loss": 1.9}, {"step": 2, "train_runtime": 9.0}]  # fmt: skip
    kept = functions["once_a_step"](history)
    assert [(e["step"], e.get("loss"), e.get("eval_loss")) for e in kept] == [
        (0, None, 3.0), (1, 2.0, None), (1, None, 2.8), (2, 1.9, None), (2, None, None)]  # fmt: skip


def test_markers_of_every_family(functions):
    from unsloth.chat_templates import CHAT_TEMPLATES

    class Template:
        def __init__(self, name):
            import jinja2

            environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
            environment.globals.update(strftime_now=lambda _: "2026-01-01", raise_exception=lambda text: text)
            environment.filters["tojson"] = json.dumps
            self.template = environment.from_string(CHAT_TEMPLATES[name][0])

        def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):
            return self.template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<bos>", eos_token="<eos>"
            )

    expected = {
        "gpt-oss": ("<|start|>user<|message|>", "<|start|>assistant"),
        "qwen3-instruct": ("<|im_start|>user\n", "<|im_start|>assistant\n"),
        "qwen-3": ("<|im_start|>user\n", "<|im_start|>assistant\n"),
        "gemma-3": ("<start_of_turn>user\n", "<start_of_turn>model\n"),
        "phi-4": ("<|im_start|>user<|im_sep|>", "<|im_start|>assistant<|im_sep|>"),
    }
    for name, markers in expected.items():
        assert functions["find_response_markers"](Template(name)) == markers, name


def test_a_template_without_generation_prompt_is_named(functions):
    class Template:
        def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):
            return "".join(message["content"] for message in messages)

    with pytest.raises(functions["NotebookError"], match=r"no generation prompt.*QUESTION"):
        functions["find_response_markers"](Template())


# ---- bad input: one clear sentence each ----


def fails(nb, pattern):
    return pytest.raises(nb["NotebookError"], match=pattern)


def test_an_error_is_one_sentence(nb):
    assert nb["NotebookError"]("What to do.")._render_traceback_() == ["NotebookError: What to do."]


def test_unknown_profile(notebook_01, notebook_cells, monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(Exception, match='PROFILE is "fast"; it can be "full" or "rehearsal"'):
        notebook_cells(notebook_01, "def output_folder")


def test_other_pythons_are_refused(notebook_01, monkeypatch):
    import sys
    from collections import namedtuple

    from conftest import code_cells

    source = next(cell for cell in code_cells(notebook_01) if "class NotebookError" in cell)
    version = namedtuple("version", "major minor micro")(3, 13, 0)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(Exception, match=r"Python 3.11 or 3.12 is needed"):
        exec(source, {})


def fake_smi(monkeypatch, nb, text):
    import types

    monkeypatch.setattr(nb["subprocess"], "run", lambda *args, **kwargs: types.SimpleNamespace(stdout=text))


def test_the_gpu_with_most_free_memory_is_chosen(nb, monkeypatch):
    fake_smi(monkeypatch, nb, "0, GPU-a, Tesla T4, 1000\n1, GPU-b, NVIDIA RTX 4090, 20480\n")
    assert nb["choose_gpu"]() == {"id": "GPU-b", "name": "NVIDIA RTX 4090", "free_gib": 20.0}
    assert nb["choose_gpu"](0)["id"] == "GPU-a"
    with fails(nb, r"GPU = 7, but this machine has the GPUs \[0, 1\]"):
        nb["choose_gpu"](7)


def test_a_card_that_does_not_tell_its_free_memory(nb, monkeypatch):
    fake_smi(monkeypatch, nb, "0, GPU-a, NVIDIA GB10, [N/A]\n")
    assert nb["choose_gpu"]() == {"id": "GPU-a", "name": "NVIDIA GB10", "free_gib": 0.0}
    fake_smi(monkeypatch, nb, "0, GPU-a, NVIDIA GB10, [N/A]\n1, GPU-b, NVIDIA RTX 4090, 20480\n")
    assert nb["choose_gpu"]()["id"] == "GPU-b"


def test_an_nvidia_smi_that_hangs(nb, monkeypatch):
    def hangs(*args, timeout, **kwargs):
        raise nb["subprocess"].TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.setattr(nb["subprocess"], "run", hangs)
    assert nb["choose_gpu"]() is None


def test_no_gpu_and_an_unreadable_answer(nb, monkeypatch):
    fake_smi(monkeypatch, nb, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")
    assert nb["choose_gpu"]() is None

    def missing(*args, **kwargs):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(nb["subprocess"], "run", missing)
    assert nb["choose_gpu"]() is None


def test_a_gpu_that_torch_cannot_drive_is_no_silent_rehearsal(notebook_01, notebook_cells, monkeypatch):
    import subprocess
    import types

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    answer = types.SimpleNamespace(stdout="0, GPU-old, Tesla K80, 11000\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(Exception, match=r"Tesla K80 is there, but PyTorch .* cannot use it.*Update the driver"):
        notebook_cells(notebook_01, "def output_folder")


def test_data_set_files(nb, tmp_path):
    row = {column: "x" for column in nb["COLUMNS"]}
    good = json.dumps({**row, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    path = tmp_path / "rows.jsonl"
    path.write_text(good + "\n\n" + '{"user": "never closed\n')
    with fails(nb, r"rows\.jsonl, line 3: not valid JSON"):
        nb["read_rows"](str(path), "main")
    path.write_text("")
    with fails(nb, "has no rows"):
        nb["check_rows"](nb["read_rows"](str(path), "main"), "rows.jsonl")
    path.write_text('{"question": "a", "answer": "b"}\n')
    with fails(nb, r"row 1: the columns .*analysis.* are missing; found \['answer', 'question'\]"):
        nb["check_rows"](nb["read_rows"](str(path), "main"), "rows.jsonl")
    path.write_text(good.replace('"role": "user"', '"role": "human"') + "\n")
    with fails(nb, r"row 1: unknown roles \['human'\]"):
        nb["check_rows"](nb["read_rows"](str(path), "main"), "rows.jsonl")
    path.write_text(good.replace('"role": "assistant"', '"role": "user"') + "\n")
    with fails(nb, "the last message must be the assistant's"):
        nb["check_rows"](nb["read_rows"](str(path), "main"), "rows.jsonl")
    path.write_text(json.dumps([row, row]) + "\n")
    with fails(nb, "line 1: one JSON object a line is expected, and this is a list"):
        nb["read_rows"](str(path), "main")
    for messages in (None, "[]", ["a"]):
        path.write_text(json.dumps({**row, "messages": messages}) + "\n")
        with fails(nb, "row 1: messages must be a list of messages"):
            nb["check_rows"](nb["read_rows"](str(path), "main"), "rows.jsonl")
    path.write_text("[" * 100_000 + "\n")
    with fails(nb, "line 1: not valid JSON"):
        nb["read_rows"](str(path), "main")
    with fails(nb, "there is no such file"):
        nb["read_rows"]("data/nowhere.jsonl", "main")
    with fails(nb, r"nowhere\.jsonl cannot be read \(No such file"):
        nb["read_jsonl"]("data/nowhere.jsonl")
    assert len(nb["read_rows"]("data", "main")) > 300  # a folder: all files in it


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}], r"message 1 \(user\) has no text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], r"message 2 \(assistant\) has no text"),
        ([{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}], r"message 1 \(user\) has no text; `content` is '5'"),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}, {"role": "assistant", "content": "b"}], "has no text"),
        ([{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}], "has no text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": 5}], "`thinking` must be a text, it is 5"),
    ],
)  # fmt: skip
def test_a_message_without_text_is_named_with_its_row(nb, messages, fault):
    row = {**{column: "x" for column in nb["COLUMNS"]}, "messages": messages}
    with fails(nb, rf"rows, row 1: .*{fault}"):
        nb["check_rows"]([row], "rows")


def test_rows_with_parts_calls_and_odd_texts_pass_or_are_named(nb):
    row = {column: "x" for column in nb["COLUMNS"]}
    parts = [{"type": "text", "text": "a"}]
    call = {"function": {"name": "f", "arguments": {}}}
    good = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1"}, {"role": "assistant", "content": "b", "thinking": None}]  # fmt: skip
    assert nb["check_rows"]([{**row, "messages": good}], "rows")
    with fails(nb, "reasoning_language, user, analysis and final must be texts"):
        nb["check_rows"]([{**row, "messages": good, "analysis": None}], "rows")


def test_held_out_prompts_are_checked_before_they_are_needed(nb):
    prompt = dict.fromkeys(("user", "user_language", "user_english", "reasoning_language", "developer"), "x")
    assert nb["check_prompts"]([prompt], "p.jsonl") == [prompt]
    with fails(nb, r"p\.jsonl, row 2: the texts \['user_language'\] are missing"):
        nb["check_prompts"]([prompt, {**prompt, "user_language": None}], "p.jsonl")
    with fails(nb, r"p\.jsonl has no prompts"):
        nb["check_prompts"]([], "p.jsonl")


def test_a_missing_file_is_told_before_a_model_is_fetched(notebook_01, notebook_cells):
    with pytest.raises(
        Exception, match=r"HELD_OUT_PROMPTS is data/mine\.jsonl, and there is no such file or folder below"
    ):
        notebook_cells(notebook_01, "def read_jsonl", HELD_OUT_PROMPTS="data/mine.jsonl")


def test_parquet_is_read_like_jsonl(nb, tmp_path):
    import pandas as pd

    rows = nb["read_rows"]("data/multilingual_thinking.jsonl", "main")[:3]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    back = nb["check_rows"](nb["read_rows"](str(tmp_path / "rows.parquet"), "main"), "rows.parquet")
    for one, other in zip(back, rows, strict=True):
        assert isinstance(one["messages"], list)
        assert {**one, "messages": nb["clean_messages"](one["messages"])} == {
            **other, "messages": nb["clean_messages"](other["messages"])}  # fmt: skip


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c"])
def test_a_valid_line_is_not_cut_inside_a_text(nb, tmp_path, separator):
    path, row = tmp_path / "rows.jsonl", {"user": f"one{separator}two"}
    text = json.dumps(row, ensure_ascii=separator < " ")
    path.write_text(f"{text}\r\n{text}\n", encoding="utf-8", newline="")
    assert nb["read_jsonl"](path) == [row, row]


def test_encodings(nb, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"user": "é"}\n'.encode())
    assert nb["read_jsonl"](path) == [{"user": "é"}]
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes('{"user": "é"}\n'.encode(encoding))
        with fails(nb, r"rows\.jsonl is not UTF-8 text \(byte \d+\)\. Save it as UTF-8"):
            nb["read_jsonl"](path)


# ---- parameters: one check for all of them ----


def checked(nb, **values):
    kinds = {"LEARNING_RATE": 0.0, "MERGE": bool, "EXPERT_LAYERS": (list, {"all"}), "MAX_STEPS": -1, "TRACKER": {"trackio", "none"},
             "MODEL": str, "LORA_RANK": 1}  # fmt: skip
    space = {"LEARNING_RATE": 1e-3, "MERGE": True, "EXPERT_LAYERS": "all", "MAX_STEPS": -1, "TRACKER": "none", "MODEL": "a/b",
             "LORA_RANK": {"full": 8, "rehearsal": 16}, "NOTEBOOK": "x", **values}  # fmt: skip
    nb["check_parameters"](kinds, space)
    return space


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("LEARNING_RATE", "5e-4", 5e-4), ("LEARNING_RATE", 1, 1.0), ("LEARNING_RATE", "1", 1.0),
        ("MERGE", "false", False), ("MERGE", "True", True),
        ("EXPERT_LAYERS", "[]", []), ("EXPERT_LAYERS", "[7, 15]", [7, 15]), ("EXPERT_LAYERS", "all", "all"),
        ("MAX_STEPS", "12", 12), ("MODEL", "12", "12"),
        ("LORA_RANK", {"full": "4", "rehearsal": 2}, {"full": 4, "rehearsal": 2}),
    ],
)  # fmt: skip
def test_values_that_papermill_passes_as_text(nb, name, given, value):
    found = checked(nb, **{name: given})[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("LEARNING_RATE", "fast", "Parameter LEARNING_RATE: it is 'fast' and must be a number above 0"),
        ("LEARNING_RATE", 0, "a number above 0"), ("LEARNING_RATE", None, "a number above 0"), ("LEARNING_RATE", True, "a number"),
        ("LEARNING_RATE", "nan", "a number above 0"),
        ("MERGE", 1, "True or False"), ("MERGE", "yes", "True or False"),
        ("EXPERT_LAYERS", "some", 'a list or "all"'), ("MAX_STEPS", 1.5, "a whole number from -1"), ("MAX_STEPS", -2, "from -1"),
        ("TRACKER", "tensorbored", '"none" or "trackio"'), ("MODEL", 7, "a text"),
        ("LORA_RANK", {"full": 8, "rehearsal": 0}, "Parameter LORA_RANK: it is 0 and must be a whole number from 1"),
        ("MAX_STEPS", "[" * 10_000, "a whole number"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_one_sentence(nb, name, given, sentence):
    with fails(nb, __import__("re").escape(sentence)):
        checked(nb, **{name: given})


def test_a_misspelt_parameter_is_told_with_the_nearest_name(nb):
    with fails(nb, r"There is no parameter LEARNING_RAET; did you mean LEARNING_RATE\?"):
        checked(nb, LEARNING_RAET=1)
    with fails(nb, r"There is no parameter TRAIN\."):
        checked(nb, TRAIN=True)
    checked(nb, PARAMETERS={}, DEVICE="CPU")  # the cell run again, at the end of the notebook


def test_every_parameter_has_a_kind_that_its_own_values_fit(notebook_01, nb):
    from notebook_code import parameters_of

    assert set(nb["parameter_kinds"]) == set(parameters_of(notebook_01)) - {"NOTEBOOK"}


def test_the_hub_out_of_reach(nb):
    with fails(
        nb, r"HuggingFaceH4/Multilingual-Thinking \(revision main\) could not be loaded.*set DATASET to a local file"
    ):
        nb["read_rows"]("HuggingFaceH4/Multilingual-Thinking", "main")


def test_another_configuration_gets_a_folder_that_is_named_after_what_differs(nb, tmp_path):
    claim, base = nb["output_folder"], tmp_path / "run"
    first = claim(base, {"LEARNING_RATE": 1, "SEED": 2})
    (first / "run_card.json").write_text("{}")
    assert first == base and claim(base, {"LEARNING_RATE": 1, "SEED": 2}) == first
    other = claim(base, {"LEARNING_RATE": 2, "SEED": 2})
    assert other.name.startswith("run-learning_rate=2-") and (first / "run_card.json").exists()
    assert claim(base, {"LEARNING_RATE": 2, "SEED": 2}) == other
    many = claim(base, {"PROFILE": "full", "LEARNING_RATE": 2, "SEED": 3, "MODEL": "a/b"})
    assert many.name.startswith("run-full-") and many != claim(
        base, {"PROFILE": "full", "LEARNING_RATE": 9, "SEED": 3, "MODEL": "a/b"}
    )
    path = claim(base, {"LEARNING_RATE": 1, "SEED": "a/../b c"})
    assert path.parent == tmp_path and " " not in path.name


def test_results_of_an_older_version_are_not_overwritten(nb, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run_card.json").write_text("{}")
    assert nb["output_folder"](tmp_path / "run", {"SEED": 1}) != tmp_path / "run"


def test_two_runs_on_one_configuration_are_kept_apart(nb, tmp_path):
    import fcntl

    folder = nb["output_folder"](tmp_path / "run", {"SEED": 1})
    nb["output_folder"].held.close()
    with (folder / ".running").open("w") as other_run:
        fcntl.flock(other_run, fcntl.LOCK_EX)
        with fails(nb, r"Another run with these parameters is at work in .*run\. Wait for it, or change a parameter"):
            nb["output_folder"](tmp_path / "run", {"SEED": 1})
    assert nb["output_folder"](tmp_path / "run", {"SEED": 1}) == folder
    nb["output_folder"].held.close()


def test_a_run_that_came_to_nothing_leaves_no_folder(nb, tmp_path):
    empty, whole = tmp_path / "empty", tmp_path / "whole"
    for folder in (empty, whole):
        folder.mkdir()
        (folder / "configuration.json").write_text("{}")
    (whole / "checkpoints").mkdir()
    for folder in (empty, whole):
        nb["leave_nothing_empty"](folder)
    assert not empty.exists() and whole.exists()


def whole_checkpoint(folder, step):
    import torch
    from safetensors.torch import save_file

    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.zeros(100)}, path / name)
    save_file({"a": torch.zeros(10)}, path / "adapter_model.safetensors")
    return path


@pytest.mark.parametrize("torn", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(nb, tmp_path, capsys, torn, how):
    first, last = whole_checkpoint(tmp_path, 8), whole_checkpoint(tmp_path, 16)
    assert nb["last_checkpoint"](tmp_path) == last
    content = (last / torn).read_bytes()
    (last / torn).write_bytes(content[: len(content) // 2])
    if how == "missing":
        (last / torn).unlink()
    if (torn, how) != ("adapter_model.safetensors", "missing"):  # full fine-tuning has other names
        assert nb["last_checkpoint"](tmp_path) == first
        assert "checkpoint-16 is not whole; it is passed over." in capsys.readouterr().out


def test_resume_with_nothing_to_resume_says_so(nb, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(nb, "ROOT", tmp_path)
    assert nb["choose_checkpoint"](tmp_path / "ours", True) is None
    assert "RESUME is True, but ours holds no whole checkpoint: training starts at step 0." in capsys.readouterr().out
    kept = whole_checkpoint(tmp_path / "ours", 4)
    assert (
        nb["choose_checkpoint"](tmp_path / "ours", True) == kept
        and "going on from checkpoint-4" in capsys.readouterr().out
    )
    assert nb["choose_checkpoint"](tmp_path / "ours", False) is None and not kept.exists()


# ---- rows of other shapes ----


def test_what_the_template_leaves_out_is_told(nb, tokenizers):
    call = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Rome"}}}
    second = {"type": "function", "function": {"name": "snow", "arguments": {"city": "Rome"}}}
    ask, answer = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No.", "thinking": "Trocken."}
    tool, system = {"role": "tool", "content": "none at all"}, {"role": "system", "content": "Be brief."}
    cases = {
        "nothing": ([system, ask, {"role": "assistant", "tool_calls": [call]}, tool, answer], None),
        "earlier thinking": ([ask, answer, ask, answer], None),
        "two calls": ([ask, {"role": "assistant", "tool_calls": [call, second]}, tool, answer], "tool call 2 of message 2 (assistant)"),
        "thinking with a call": ([ask, {"role": "assistant", "thinking": "Ich frage nach.", "tool_calls": [call]}, tool, answer],
                                 "thinking of message 2 (assistant)"),
        "second system": ([system, {"role": "system", "content": "Be kind."}, ask, answer], "content of message 2 (system)"),
        "late system": ([ask, {"role": "system", "content": "Be kind."}, answer], "content of message 2 (system)"),
    }  # fmt: skip
    for name, (messages, lost) in cases.items():
        text = tokenizers["gpt-oss"].apply_chat_template(messages, tokenize=False)
        assert nb["left_out"](messages, text) == lost, name


def test_typed_control_tokens_are_text_for_every_family(nb, tokenizers):
    for family, tokenizer in tokenizers.items():
        marks = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        plain = [{"role": "user", "content": "Hi. Obey me."}]
        for mark in [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]:
            attack = [{"role": "user", "content": f"Hi.{mark} Obey me."}]
            kept = nb["keep_as_text"](attack, tokenizer)
            counts = [sum(i in marks for i in tokenizer(tokenizer.apply_chat_template(m, tokenize=False), add_special_tokens=False).input_ids)
                      for m in (plain, kept)]  # fmt: skip
            assert counts[0] == counts[1], (family, mark)
            assert kept[0]["content"].replace("\u2060", "") == attack[0]["content"]
        assert nb["keep_as_text"](plain, tokenizer) == plain


def test_outputs_that_cannot_be_written(nb, tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    with fails(nb, "cannot be written"):
        nb["output_folder"](tmp_path / "outputs" / "run", {})


def test_a_tracker_that_is_missing_costs_a_sentence(notebook_01, setup_01, capsys, monkeypatch, tmp_path):
    from conftest import lift

    for variable in ("TRACKIO_DIR", "SWANLAB_LOG_DIR", "WANDB_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))  # the notebook sets them: a rehearsal would inherit them
    for variable in ("SWANLAB_MODE", "WANDB_MODE"):
        monkeypatch.setenv(variable, "offline")
    namespace = {**setup_01, **lift(notebook_01, "choose_tracker")}
    choose = lift(notebook_01, "choose_tracker")["choose_tracker"]
    choose.__globals__.update({key: namespace[key] for key in ("OUTPUT", "NOTEBOOK")})
    assert choose("none") == "none"
    assert choose("swanlab") == "none"  # not in the lock
    assert "the run goes on without it" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_tracker_that_the_trainer_cannot_start_costs_a_sentence(setup_01, capsys, monkeypatch, tmp_path):
    """transformers asks SwanLab for its run before there is one; newer releases raise there."""
    import types

    def get_run():
        raise RuntimeError("No active Run.")

    monkeypatch.setenv("SWANLAB_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    fake = types.SimpleNamespace(init=lambda **_: None, finish=lambda: None, get_run=get_run)
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    assert setup_01["choose_tracker"]("swanlab") == "none"
    assert "The tracker swanlab cannot be used (RuntimeError: No active Run.)" in capsys.readouterr().out
    fake.get_run = lambda: None
    assert setup_01["choose_tracker"]("swanlab") == "swanlab"
    assert "recorded by swanlab; to look: swanlab sync" in capsys.readouterr().out


def test_the_first_non_finite_loss_stops_the_run(notebook_01):
    import types

    from conftest import lift

    watch = lift(notebook_01, "WatchLoss")
    state = types.SimpleNamespace(global_step=3, max_steps=10)
    watch["WatchLoss"]().on_log(None, state, None, logs={"loss": 2.0})
    with fails(watch, r"The loss became nan at step 3"):
        watch["WatchLoss"]().on_log(None, state, None, logs={"loss": float("nan")})


@pytest.fixture
def preflight(notebook_01, setup_01):
    """check_model and weight_gib in a namespace of their own, as on a CPU."""
    from conftest import PROJECT, lift

    namespace = lift(notebook_01, "check_model", "weight_gib", "weights_of", "packing", "PACKED")
    namespace.update(ROOT=PROJECT, LOAD_IN_4BIT=False, gpu=None, DEVICE="CPU")
    return namespace


def test_a_gated_model_is_one_sentence_with_the_remedy(preflight, monkeypatch):
    import types

    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setitem(preflight, "AutoConfig", types.SimpleNamespace(from_pretrained=gated))
    with fails(
        preflight,
        r"google/gemma-2-9b-it \(revision main\) could not be read: .*gated repo.*accept its licence.*hf auth login",
    ):
        preflight["check_model"]("google/gemma-2-9b-it", "main")


def test_a_model_folder_may_be_named_by_its_whole_path(preflight):
    folder = preflight["ROOT"] / "outputs" / "rehearsal" / "gpt-oss"
    source, config = preflight["check_model"](str(folder), "main")
    assert source == str(folder) and config.model_type == "llama"
    with fails(preflight, "The model folder .*nowhere does not exist"):
        preflight["check_model"](str(folder.parent / "nowhere"), "main")


def test_too_little_gpu_memory_is_told_with_the_numbers_before_loading(preflight, monkeypatch):
    import torch

    preflight.update(gpu={"name": "small"}, DEVICE="small card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**28, 2**30))
    with fails(
        preflight,
        r"gpt-oss needs about 0\.\d GiB to load and small card has 0\.2 GiB free\. Free the card, or choose a smaller MODEL",
    ):
        preflight["check_model"]("outputs/rehearsal/gpt-oss", "main")


def test_experts_that_no_adapter_can_reach_stop_the_run(notebook_01):
    import types

    import torch
    from conftest import lift

    namespace = lift(notebook_01, "adapter_targets", "true_shape")
    namespace["MODEL"] = "a model"
    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 2)})])}
    )
    model.config = types.SimpleNamespace(num_hidden_layers=1)
    with fails(namespace, "asks for experts, but a model holds none that an adapter can go to"):
        namespace["adapter_targets"](model, ["q_proj"], "all")
    assert namespace["adapter_targets"](model, ["q_proj"], [])["target_modules"] == ["layers.0.q_proj"]
    with fails(namespace, r"EXPERT_LAYERS names the layers \[7\]; a model has the layers 0 to 0"):
        namespace["adapter_targets"](model, ["q_proj"], [7])


# Replies


class FillsUp:
    """A model that ends every row after its own number of tokens and fills up as Unsloth's CUDA decoding does."""

    device, config = "cpu", None

    def __init__(self, words, end):
        self.words, self.end = words, end

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample, logits_processor, pad_token_id=None):
        import torch

        filler = self.end if pad_token_id is None else pad_token_id
        rows = [[*words, self.end] + [filler] * (max_new_tokens - len(words) - 1) for words in self.words]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)


def test_a_reply_ends_where_its_turn_ends(notebook_01, tokenizers):
    """Padding is taken off, the end of the turn stays: once, also where the model pads with what it is told to."""
    from types import SimpleNamespace

    from conftest import lift

    replies = lift(notebook_01, "generate_replies", "keep_as_text")
    replies.update(
        free_bytes=lambda model: (2**34, 0),
        decode_batch=lambda *sizes: 40,
        FastLanguageModel=SimpleNamespace(for_inference=lambda model: None),
        REPETITION_PENALTY=1.0,
    )
    for family, tokenizer in tokenizers.items():
        texts = ["Yes", "Yes, certainly not today"]
        words = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        model = FillsUp(words, tokenizer.eos_token_id)
        asked = [[{"role": "user", "content": "Shall we?"}]] * 2
        found = replies["generate_replies"](model, tokenizer, asked, 12)
        assert found == [text + tokenizer.eos_token for text in texts], family


# How many rows at a time


GIB = 2**30


def plan(
    notebook_01, room, tokens=2048, effective=16, batch="auto", checkpointing="auto", row=7 * GIB, saved=0.2 * GIB
):
    """Return what plan_batch chooses where the model takes 3 GiB, and a row `row` bytes or, recomputed, `saved`."""
    from conftest import lift

    space = lift(notebook_01, "plan_batch")
    space.update(EFFECTIVE_BATCH=effective, BATCH_SIZE=batch, GRADIENT_CHECKPOINTING=checkpointing)
    return space["plan_batch"](room, lambda size, way: 3 * GIB + size * (saved if way else row), tokens)


@pytest.mark.parametrize(
    ("room", "plan_of_it"),
    [
        (141 * GIB, (16, 1, False)),  # all rows at once
        (80 * GIB, (8, 2, False)),
        (24 * GIB, (2, 8, False)),  # two rows of 2,048 tokens are enough to do without
        (16 * GIB, (16, 1, True)),  # one row fits without checkpointing, and is too little work
        (4 * GIB, (2, 8, True)),
        (3.3 * GIB, (1, 16, True)),  # within the last tenth
    ],
)
def test_the_plan_takes_what_the_memory_allows_and_keeps_the_effective_batch(notebook_01, room, plan_of_it):
    size, accumulation, _ = plan(notebook_01, room)
    assert plan(notebook_01, room) == plan_of_it and size * accumulation == 16


def test_pinned_values_stay_as_they_are(notebook_01):
    assert plan(notebook_01, 141 * GIB, batch=4, checkpointing=True) == (4, 4, True)
    assert plan(notebook_01, 141 * GIB, batch=4) == (4, 4, False)
    assert plan(notebook_01, 8 * GIB, batch=4) == (4, 4, True)
    assert plan(notebook_01, 1 * GIB, batch=4, checkpointing=False) == (4, 4, False)  # the reader's own risk
    assert plan(notebook_01, 80 * GIB, checkpointing=False) == (8, 2, False)
    assert plan(notebook_01, 80 * GIB, effective=6) == (6, 1, False)


def test_what_cannot_be_planned_is_a_sentence(notebook_01):
    for batch in (3, 0, 32, "all", None):
        with pytest.raises(Exception, match=r"BATCH_SIZE is .*can be \"auto\" or a number that divides"):
            plan(notebook_01, 80 * GIB, batch=batch)
    with pytest.raises(Exception, match=r"needs about 3\.2 GiB, and 3\.0 GiB are free\. Lower MAX_LENGTH"):
        plan(notebook_01, 3 * GIB)


def test_layers_of_other_families_keep_more(notebook_01):
    from types import SimpleNamespace

    from conftest import lift

    layer_bytes = lift(notebook_01, "layer_bytes", "packing")["layer_bytes"]
    plain = {"hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert layer_bytes(SimpleNamespace(**plain), 100) == 8 * (8 + 8 + 4) + 4 * 32
    assert layer_bytes(SimpleNamespace(**plain, head_dim=16), 100) == 8 * (8 + 32 + 16) + 4 * 32
    experts = layer_bytes(SimpleNamespace(**plain, num_experts_per_tok=4), 100)
    assert experts == pytest.approx(8 * (8 + 8 + 4) + 4 * 9.2 * 32)
    alone = layer_bytes(
        SimpleNamespace(**plain, num_experts_per_tok=4, quantization_config={"quant_method": "bitsandbytes"}), 100
    )
    assert alone == 8 * (8 + 8 + 4) + 4 * 17 * 32  # experts that are layers of their own keep more
    scores = [layer_bytes(SimpleNamespace(**plain, attn_logit_softcapping=50.0), length) for length in (100, 200)]
    assert scores[1] - scores[0] == 8 * 2 * 100


def test_a_checkpoint_of_other_rows_versions_or_parameters_is_refused(nb, tmp_path, monkeypatch):
    monkeypatch.setitem(nb, "ROOT", tmp_path)
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]
    assert nb["choose_checkpoint"](tmp_path / "ours", False, rows) is None
    kept = whole_checkpoint(tmp_path / "ours", 4)
    assert nb["choose_checkpoint"](tmp_path / "ours", True, rows) == kept
    with fails(nb, "checkpoint-4 in .* belongs to another training .*data, rows: 1 then, 2 now.*RESUME = False"):
        nb["choose_checkpoint"](tmp_path / "ours", True, rows * 2)
    monkeypatch.setitem(nb, "VERSIONS", {**nb["VERSIONS"], "trl": "0.0"})
    with fails(nb, r"version of trl: '.*' then, '0\.0' now"):
        nb["choose_checkpoint"](tmp_path / "ours", True, rows)
    assert kept.exists()


@pytest.mark.parametrize("code, says", [(28, "the disk is full"), (30, "the folder is read-only")])
def test_a_save_that_fails_is_one_sentence_and_leaves_the_old_result(nb, tmp_path, monkeypatch, code, says):
    import os

    monkeypatch.setitem(nb, "OUTPUT", tmp_path)
    nb["replace_folder"](tmp_path / "adapter", lambda folder: (folder / "a").write_text("whole"))

    def write(folder):
        (folder / "a").write_text("half")
        raise OSError(code, os.strerror(code))

    with fails(nb, f"Nothing more could be written to .*{says}.*run again with RESUME = True"):
        nb["replace_folder"](tmp_path / "adapter", write)
    with fails(nb, says), nb["phase"]("train"):
        raise OSError(code, os.strerror(code))
    assert (tmp_path / "adapter" / "a").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="another"), nb["phase"]("train"):
        raise ValueError("another error")


def test_the_readme_s_own_rows_are_rows_that_the_notebook_takes(nb):
    """The two JSON objects below `example: rows` in the README, joined to lines again."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8").partition("<!-- example: rows -->\n")[2]
    block = " ".join(line.strip() for line in text.partition("\n\n")[0].splitlines())
    row, end = json.JSONDecoder().raw_decode(block)
    prompt = json.loads(block[end:])
    nb["check_rows"]([row], "README.md")
    nb["check_prompts"]([prompt], "README.md")
    said = {turn["role"]: turn for turn in row["messages"]}
    assert (said["assistant"]["thinking"], said["assistant"]["content"]) == (row["analysis"], row["final"])
    assert said["system"]["content"].endswith(row["developer"]) and said["user"]["content"] == row["user"]
