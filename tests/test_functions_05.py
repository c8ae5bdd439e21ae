"""Functions of notebook 05, given folders that fit and folders that do not, and questions of every sort."""

import json
import shutil

import pytest
import torch
from conftest import PROJECT
from safetensors.torch import load_file, save_file
from small_adapter import save_adapter, save_record
from transformers import LlamaConfig, LlamaForCausalLM

NOTEBOOK = PROJECT / "NoteBooks" / "05_use_what_you_trained.ipynb"
SHAPE = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)


def tiny_model(**changes):
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = save_adapter(tiny_model(), tmp_path_factory.mktemp("adapters") / "adapter", strength=0.5)
    save_record(folder, "outputs/rehearsal/gpt-oss", "a template")
    return folder


@pytest.fixture
def copied(adapter, tmp_path):
    """A copy of the adapter that a test may break."""
    return shutil.copytree(adapter, tmp_path / "adapter")


@pytest.fixture(scope="module")
def nb(notebook_cells, adapter, tokenizers):
    """The namespace of notebook 05 with its workshop and all its functions: no model."""
    import ast

    from conftest import code_cells

    namespace = notebook_cells(NOTEBOOK, 'if LOAD_IN_4BIT == "as trained"', FOLDER=str(adapter))
    shutil.rmtree(namespace["OUTPUT"])
    wanted = {"ENDS", "READERS", "SIGNS", "WORDS", "conversation"}
    for source in code_cells(NOTEBOOK):
        for node in ast.parse(source).body:
            names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
            if names & wanted or (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in namespace):
                exec(compile(ast.Module(body=[node], type_ignores=[]), NOTEBOOK.name, "exec"), namespace)
    namespace.update(tokenizer=tokenizers["gpt-oss"], MAX_NEW_TOKENS=24, MAX_LENGTH=512, LOAD_IN_4BIT=False)
    return namespace


def refused(nb, function, *arguments):
    """Return the sentence with which a function refuses its arguments."""
    with pytest.raises(nb["NotebookError"]) as caught:
        nb[function](*arguments)
    assert "\n" not in str(caught.value).strip()
    return str(caught.value)


# Which folder


def test_the_newest_adapter_is_chosen_and_notebook_01_goes_first(nb, adapter, tmp_path, monkeypatch):
    monkeypatch.setitem(nb, "ROOT", tmp_path)
    assert "Train one with `make run NOTEBOOK=01`" in refused(nb, "choose_folder", "")
    for place in (
        "02_qwen/adapter",
        "01_gpt/adapter",
        "01_gpt-rank=4-abc/adapter",
        "01_gpt/.adapter-partial",
        "04_gemma/lora",
    ):
        shutil.copytree(adapter, tmp_path / "outputs" / place, copy_function=shutil.copy)
    import os

    newest = tmp_path / "outputs" / "01_gpt-rank=4-abc" / "adapter"
    for path in tmp_path.glob("outputs/*/*/adapter_config.json"):
        os.utime(
            path,
            (1000, 2000 if path.parent == newest else 3000 if not path.parent.parent.name.startswith("01") else 1500),
        )
    assert nb["choose_folder"]("") == newest
    assert nb["choose_folder"]("outputs/04_gemma/lora") == tmp_path / "outputs/04_gemma/lora"
    sentence = refused(nb, "choose_folder", "outputs/01_gpt")
    assert "It holds the folders adapter: choose one of them." in sentence
    assert "there is no adapter and no model in it" in refused(nb, "choose_folder", "outputs/nothing")


def test_pickled_weights_are_refused(nb, copied):
    nb["only_safetensors"](copied, "it")
    (copied / "adapter_model.safetensors").rename(copied / "adapter_model.bin")
    sentence = refused(nb, "only_safetensors", copied, "my adapter")
    assert (
        sentence.startswith("my adapter holds no weights as safetensors, only adapter_model.bin: ")
        and "refused" in sentence
    )
    (copied / "adapter_model.bin").unlink()
    assert "copied whole" in refused(nb, "only_safetensors", copied, "my adapter")


def test_a_record_is_read_and_a_plain_adapter_speaks_for_itself(nb, copied):
    record = nb["read_record"](copied)
    assert record["kind"] == "adapter" and record["family"] == "harmony" and record["base"]["layout"] == "16 bits"
    (copied / "training.json").unlink()
    settings = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "someone/model"}))
    plain = nb["read_record"](copied)
    assert plain["base"] == {"id": "someone/model", "revision": "main", "load_in_4bit": False, "layout": None}
    assert plain["prompt"] == {"system": "{system}", "defaults": {"system": ""}} and plain["parameters"] == {}
    for damaged in ("{", "[]", '"text"'):
        (copied / "training.json").write_text(damaged)
        assert "training.json is no JSON object" in refused(nb, "read_record", copied)


def test_a_base_that_is_not_there_is_one_sentence(nb):
    sentence = refused(nb, "load_model", "outputs/no such base", "main", False)
    assert "The model folder outputs/no such base does not exist" in sentence and "Set BASE to" in sentence
    assert "MODEL" not in sentence


def test_a_base_of_pickles_is_refused(nb, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "only pytorch_model.bin" in refused(nb, "load_model", str(tmp_path), "main", False)


# Does it fit


def test_an_adapter_that_fits_is_attached_with_its_own_weights(nb, adapter):
    model = nb["attach_adapter"](tiny_model(), adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    attached = nb["get_peft_model_state_dict"](model, save_embedding_layers=False)
    assert set(stored) == set(attached) and all(torch.equal(stored[name], attached[name]) for name in stored)
    assert not any(weight.requires_grad for weight in model.parameters())
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        tuned = model(ids).logits
        with model.disable_adapter():
            bare = model(ids).logits
        assert torch.equal(bare, tiny_model()(ids).logits) and not torch.equal(bare, tuned)


def rewrite(path, change):
    """Change a safetensors file's tensors in place: `change` takes and returns {name: tensor}."""
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: {k: v for k, v in t.items() if "layers.1" not in k},
            "4 of its tensors are missing, such as base_model",
        ),
        (
            lambda t: {**t, "base_model.model.extra.lora_A.weight": torch.zeros(2, 32)},
            "1 of its tensors are without a place in this base",
        ),
        (
            lambda t: {k: v[:, :-1] if "q_proj.lora_A" in k else v for k, v in t.items()},
            "2 of its tensors are of another shape",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit_are_named(nb, copied, change, sentence):
    rewrite(copied / "adapter_model.safetensors", change)
    found = refused(nb, "attach_adapter", tiny_model(), copied)
    assert sentence in found and "Set BASE to the model that it was trained on." in found


def change_settings(folder, **changes):
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | changes))


def test_another_rank_is_named(nb, copied):
    change_settings(copied, r=4)
    assert "its rank is [2] in the weights and [4] in adapter_config.json" in refused(
        nb, "attach_adapter", tiny_model(), copied
    )


def test_another_base_is_named(nb, adapter, copied):
    assert "of another shape" in refused(nb, "attach_adapter", tiny_model(hidden_size=40), adapter)
    assert "without a place" in refused(nb, "attach_adapter", tiny_model(num_hidden_layers=1), adapter)
    assert "missing" in refused(nb, "attach_adapter", tiny_model(num_hidden_layers=3), adapter)
    change_settings(copied, target_modules=["query_key_value"])
    assert "query_key_value" in refused(nb, "attach_adapter", tiny_model(), copied)


def test_another_kind_of_adapter_and_a_torn_file_are_named(nb, copied):
    weights = copied / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert "adapter_model.safetensors is damaged" in refused(nb, "attach_adapter", tiny_model(), copied)
    (copied / "adapter_config.json").write_text(
        json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []})
    )
    assert "LoRA adapters are read here" in refused(nb, "attach_adapter", tiny_model(), copied)


def differing(nb, folder, **namespace):
    """Return {what: (recorded, found)} of what compare_with_record finds to differ for a folder on the tiny model."""
    model = nb["attach_adapter"](tiny_model(), folder)
    nb.update({"BASE": "outputs/rehearsal/gpt-oss", "BASE_REVISION": "main", "config": model.config, **namespace})
    return {
        what: (old, new) for what, old, new in nb["compare_with_record"](nb["read_record"](folder), model) if old != new
    }


def test_what_differs_from_the_record_is_listed(nb, adapter, copied, tokenizers):
    assert set(differing(nb, adapter)) == {"chat template"}
    save_record(copied, "outputs/rehearsal/gpt-oss", tokenizers["gpt-oss"].chat_template)
    assert differing(nb, copied) == {}
    found = differing(nb, copied, BASE="another/base", BASE_REVISION="abc")
    assert found == {"base": ("outputs/rehearsal/gpt-oss", "another/base"), "revision": ("main", "abc")}
    change_settings(copied, lora_alpha=8)
    assert differing(nb, copied) == {"alpha": (4, 8)}
    change_settings(copied, lora_alpha=4, use_rslora=True)
    assert differing(nb, copied) == {"scaling": ("α / r", f"factors [{4 / 2**0.5}]")}
    save_record(copied, "outputs/rehearsal/gpt-oss", tokenizers["gpt-oss"].chat_template,
                parameters={"LORA_RANK": 8, "LORA_ALPHA": 4, "TARGET_MODULES": ["q_proj", "k_proj"]})  # fmt: skip
    change_settings(copied, use_rslora=False)
    assert differing(nb, copied) == {"rank": (8, 2), "targets": (["k_proj", "q_proj"], ["q_proj"])}
    (copied / "training.json").unlink()
    assert "rank" not in differing(nb, copied)


def test_a_whole_model_with_a_tensor_lost_is_noticed(nb, tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert nb["missing_weights"](model.config, tmp_path) == set()
    rewrite(tmp_path / "model.safetensors", lambda t: {k: v for k, v in t.items() if "layers.1.mlp" not in k})
    assert len(nb["missing_weights"](model.config, tmp_path)) == 3


# Questions


def test_a_question_is_put_as_the_record_says(nb, monkeypatch):
    def ask(row, **prompt):
        monkeypatch.setitem(nb, "RECORD", {"prompt": prompt})
        return nb["to_messages"](row)

    harmony = {
        "system": "reasoning language: {reasoning_language}\n\n{developer}",
        "defaults": {"reasoning_language": "German", "developer": "Be brief."},
    }
    assert ask({"user": "Why {so}?", "reasoning_language": "French"}, **harmony) == [
        {"role": "system", "content": "reasoning language: French\n\nBe brief."},
        {"role": "user", "content": "Why {so}?"},
    ]
    assert ask({"user": "2 + 2?"}, user="{user}\n\nIn \\boxed{}.") == [
        {"role": "user", "content": "2 + 2?\n\nIn \\boxed{}."}
    ]
    assert ask({"user": "{user}"}, system="") == [{"role": "user", "content": "{user}"}]
    assert ask({"user": "Hi"}, system="{system}", defaults={"system": ""}) == [{"role": "user", "content": "Hi"}]
    assert ask({"user": "Hi", "system": "Rhyme."}, system="{system}")[0] == {"role": "system", "content": "Rhyme."}
    turns = [{"role": "user", "content": "Hi"}]
    assert ask({"messages": turns, "user": "not this"}, **harmony) == turns


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "Hi"}, "there is no text under `user`; found ['question']"),
        ({"user": "  "}, "there is no text under `user`"),
        ({"user": None}, "there is no text under `user`"),
        ({"messages": "Hi"}, "`messages` must be a list"),
        ({"messages": None}, "`messages` must be a list"),
        ({"messages": []}, "the last message must be the user's"),
        ({"messages": [{"role": "user", "content": None}]}, "`messages` must be a list"),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]},
            "the last message must be the user's",
        ),
        ({"messages": [{"role": "wizard", "content": "x"}, {"role": "user", "content": "Hi"}]}, None),
        ({"user": "word " * 600}, "are more than MAX_LENGTH = 512"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_with_its_number(nb, row, sentence, monkeypatch):
    monkeypatch.setitem(nb, "RECORD", {"prompt": {}})
    if sentence:
        assert refused(nb, "check_questions", [{"user": "Fine?"}, row], "mine.jsonl").startswith("mine.jsonl, row 2: ")
        assert sentence in refused(nb, "check_questions", [row], "mine.jsonl")
    assert "has no rows" in refused(nb, "check_questions", [], "mine.jsonl")


def test_a_row_that_the_template_refuses_is_named(nb, monkeypatch, tokenizers):
    monkeypatch.setitem(nb, "RECORD", {"prompt": {"system": "Be brief."}})
    tokenizer = tokenizers["gemma"]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('System role not supported') }}")
    monkeypatch.setitem(nb, "tokenizer", tokenizer)
    sentence = refused(nb, "check_questions", [{"user": "Hi"}], "mine.jsonl")
    assert "row 1: the chat template refuses it (System role not supported)" in sentence


# Replies


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hello.<|im_end|>", (None, "Hello.", [], None)),
        ("<think>\nWell.\n</think>\n\nHello.<|im_end|>", ("Well.", "Hello.", [], None)),
        ("Well.\n</think>\n\nHello.<|im_end|>", ("Well.", "Hello.", [], None)),  # the template had opened the tag
        ("<think>Well, I", ("Well, I", None, [], "the reply was cut off")),
        ("<think></think>Hi", (None, "Hi", [], "the reply was cut off")),
        (
            '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>',
            (None, None, ['{"name": "f", "arguments": {}}'], None),
        ),
        ("Two.<tool_call>a</tool_call><tool_call>b</tool_call><|im_end|>", (None, "Two.", ["a", "b"], None)),
        ("<tool_call>{", (None, None, [], "the reply was cut off")),
        ("", (None, None, [], "the reply was cut off")),
        ("Bye.<|im_end|>\n<|im_start|>user", (None, "Bye.", [], None)),
    ],
)
def test_tagged_replies(nb, text, parts):
    assert tuple(nb["read_tagged"](text).values()) == parts


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7\n#### 7<end_of_turn>", "7"),
        ("#### 1,250 euros, not 3<end_of_turn>", "1250"),
        ("#### -4.5", "-4.5"),
        ("So there are 12 apples.<end_of_turn>", "12"),
        ("#### none", None),
        ("No idea.<end_of_turn>", None),
        ("", None),
    ],
)
def test_the_number_of_a_sum(nb, text, number):
    read = nb["read_sum"](text)
    assert read["number"] == number and (read["fault"] is None) == text.endswith("<end_of_turn>")


def test_harmony_replies(nb):
    text = "<|channel|>analysis<|message|>Denken.<|end|><|start|>assistant<|channel|>final<|message|>Hola.<|return|>"
    assert nb["read_harmony"](text) == {"reasoning": "Denken.", "answer": "Hola.", "tool_call": None, "fault": None}
    assert "cut off" in nb["read_harmony"]("<|channel|>analysis<|message|>Denk")["fault"]
    assert nb["read_harmony"]("\ud800 [[[" * 500)["answer"] is None


def test_a_streamed_reply_is_put_into_words(nb, tokenizers, capsys):
    for family, text in (("gpt-oss", "<|channel|>analysis<|message|>Ich denke.<|end|><|start|>assistant<|channel|>final<|message|>Hola tú.<|return|>"),
                         ("qwen3", "<think>\nIch denke.</think>\n\nHola tú.<|im_end|>")):  # fmt: skip
        streamer = nb["InWords"](tokenizers[family])
        for token in tokenizers[family](text, add_special_tokens=False).input_ids:
            streamer.put(torch.tensor([token]))
        streamer.end()
        shown = capsys.readouterr().out
        assert shown.split() == "[thinks] Ich denke. [answers] Hola tú.".split() and "\n[answers]" in shown, family


# Answers


@pytest.fixture
def answering(nb, tmp_path, monkeypatch):
    """The namespace with a model that answers at once, and an output folder of its own."""
    asked = []

    def generate(model, tokenizer, conversations, new):
        asked.append(len(conversations))
        return [f"<|channel|>final<|message|>{messages[-1]['content']}<|return|>" for messages in conversations]

    for name, value in {"OUTPUT": tmp_path, "generate_replies": generate, "model": None, "read_reply": nb["read_harmony"],
                        "RECORD": {"prompt": {}}, "BASE": "b", "BASE_REVISION": "main", "asked": asked}.items():  # fmt: skip
        monkeypatch.setitem(nb, name, value)
    return nb


def test_every_row_is_answered_in_order_with_its_own_keys_kept(answering, tmp_path):
    rows = [{"user": f"question {i}\u2028", "answer": i, "row": "mine"} for i in range(5)]
    path = tmp_path / "answers.jsonl"
    answers = answering["answer_all"](rows, answering["check_questions"](rows, "mine"), path, piece=2)
    assert answering["asked"] == [2, 2, 1] and [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]
    assert answering["read_jsonl"](path) == answers and [a["row"] for a in answers] == [1, 2, 3, 4, 5]
    assert [a["question"] for a in answers] == rows and answers[3]["answer"] == "question 3\u2028"


def test_a_run_that_is_cut_off_leaves_the_answers_that_were_there(answering, tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    path.write_text("whole")
    monkeypatch.setitem(answering, "generate_replies", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answering["answer_all"]([{"user": "x"}], [[]], path)
    assert path.read_text() == "whole"


def test_no_answers_are_written_over_others(answering, adapter, copied, tmp_path, monkeypatch):
    first, second = tmp_path / "a" / "questions.jsonl", tmp_path / "b" / "questions.jsonl"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text('{"user": "x"}')
    name = answering["answer_file"]
    paths = [name(adapter, first), name(adapter, second), name(copied, first)]
    first.write_text('{"user": "y"}')
    paths.append(name(adapter, first))
    save_record(copied, "outputs/rehearsal/gpt-oss", "a template", started="later")  # trained again, same place
    paths.append(name(copied, first))
    monkeypatch.setitem(answering, "MAX_NEW_TOKENS", 99)
    paths.append(name(adapter, first))
    assert len(set(paths)) == len(paths) and name(adapter, first) == paths[-1]
    assert all(path.parent == tmp_path and f"{folder}-questions-" in path.name
               for path, folder in zip(paths, ["adapter"] * 6, strict=True))  # fmt: skip


# The conversation


def test_a_conversation_is_kept_and_begun_anew(answering, monkeypatch, capsys):
    asked = []

    def show_reply(messages, streamer):
        asked.append(messages)
        return f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{len(asked)}<|return|>"

    monkeypatch.setitem(answering, "show_reply", show_reply)
    monkeypatch.setitem(answering, "RECORD", {"prompt": {"system": "Speak {tongue}.", "defaults": {"tongue": "Latin"}}})
    answering["chat"]("One", new=True)
    answering["chat"]("Two")
    assert [message["content"] for message in asked[1]] == ["Speak Latin.", "One", "1", "Two"]
    answering["chat"]("Three", new=True, tongue="Greek")
    assert [message["content"] for message in answering["conversation"]] == ["Speak Greek.", "Three", "3"]
    monkeypatch.setitem(answering, "show_reply", lambda *_: "<|channel|>analysis<|message|>Endless")
    answering["chat"]("Four")
    assert len(answering["conversation"]) == 3 and "The turn is not kept" in capsys.readouterr().out
    assert "are more than MAX_LENGTH" in refused(answering, "chat", "word " * 600)
