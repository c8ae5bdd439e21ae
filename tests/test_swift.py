"""The export to ms-swift of notebooks 01 and 02, held against ms-swift 4.6.0 itself in outputs/swift-env (long)."""

import ast
import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT, code_cells, lift, read_jsonl

sys.path.insert(0, str(PROJECT / "tools"))
import serve  # noqa: E402

MARKS = {"01": ("<|end|>", "<|return|>"), "02": ("<|im_end|>\n", "<|im_end|>")}
STAND_IN = {"01": "gpt-oss", "02": "qwen3"}
CALL = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Rome"}}}
SYSTEM = {"role": "system", "content": "reasoning language: German"}
ASK = {"role": "user", "content": "¿Cuál es la capital de Australia?"}
REPLY = {"role": "assistant", "thinking": "Gefragt ist nach der Hauptstadt.", "content": "Canberra."}
TYPED = {"role": "user", "content": "What does <|end|><|start|>system mean, and <|im_end|>, <image>?"}
SHAPES = [  # of rows that neither sample has: no reasoning, two turns, a tool's result, a last turn that is a call
    [ASK, {"role": "assistant", "content": "Canberra."}],
    [SYSTEM, ASK, REPLY, {"role": "user", "content": "And of New Zealand?"}, {**REPLY, "content": "Wellington."}],
    [ASK, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "no"}, REPLY],
]


def open_cell(path, mark):
    """Return the source of the cell that calls this, its definition aside."""
    return next(cell for cell in code_cells(path) if mark in cell and not cell.startswith("# workshop"))


def trainer_arguments(path):
    """Return the notebook's TRAINING as an expression."""
    nodes = [node for cell in code_cells(path) for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    node = next(node for node in nodes if getattr(node.targets[0], "id", "") == "TRAINING")
    return compile(ast.Expression(node.value), path.name, "eval")


def blueprint(number):
    """Return a stand-in's configuration and its model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(PROJECT / "outputs" / "rehearsal" / STAND_IN[number])
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def exported_01(notebook_01, setup_01, tokenizers, patch, tmp_path_factory):
    """Notebook 01's own export of the stand-in's rows, and of rows of other shapes: names, labelled rows, the folder."""
    space, output = setup_01, tmp_path_factory.mktemp("swift-01")
    config, model = blueprint("01")
    values = {"tokenizer": tokenizers["gpt-oss"], "OUTPUT": output, "config": config, "HALF": "fp32"}
    values |= {"BATCH_SIZE": 2, "GRADIENT_ACCUMULATION": 1, "GRADIENT_CHECKPOINTING": False}
    for name, value in values.items():
        patch.setitem(space, name, value)
    instruction, response = space["find_response_markers"](tokenizers["gpt-oss"])
    conversations = [space["clean_messages"](row["messages"]) for row in read_jsonl("multilingual_thinking.jsonl")]
    kept = space["keep_as_text"]([TYPED, REPLY], tokenizers["gpt-oss"])
    call_last = [ASK, {"role": "assistant", "tool_calls": [CALL]}]
    values = {"instruction": instruction, "response": response}
    values["targets"] = space["adapter_targets"](model, space["ATTENTION_MODULES"], space["EXPERT_LAYERS"])
    values["TRAINING"] = eval(trainer_arguments(notebook_01), space)
    for name, value in values.items():
        patch.setitem(space, name, value)
    rows, dropped, _ = space["tokenize_rows"]([*conversations, *SHAPES, kept, call_last, [TYPED, REPLY]])
    assert dropped == {"control token typed in the text": 1}
    patch.setitem(space, "labelled_train", space["add_labels"](rows))
    patch.setitem(space, "labelled_validation", space["labelled_train"].select(range(4)))
    for name in ("in_mlp", "layers"):  # names of the cell
        patch.setitem(space, name, None)
    exec(open_cell(notebook_01, "export_swift("), space)
    return SimpleNamespace(space=space, rows=space["labelled_train"], folder=output / "swift", model=model)


@pytest.fixture(scope="module")
def exported_02(notebook_02, setup_02, patch, tmp_path_factory):
    """Notebook 02's own export of its mixture, and one in which every turn and every call learns."""
    space, output = setup_02, tmp_path_factory.mktemp("swift-02")
    config, model = blueprint("02")
    values = {"OUTPUT": output, "config": config, "HALF": "fp32", "steps": 48}
    values |= {"BATCH_SIZE": 8, "GRADIENT_ACCUMULATION": 1, "GRADIENT_CHECKPOINTING": False}
    for name, value in values.items():
        patch.setitem(space, name, value)
    patch.setitem(space, "TRAINING", eval(trainer_arguments(notebook_02), space))
    labelled, _ = space["add_labels"](space["train_rows"])
    patch.setitem(space, "labelled_replay", labelled)
    patch.setitem(space, "labelled_validation", space["add_labels"](space["validation_rows"])[0])
    patch.setitem(space, "rows", None)  # a name of the cell
    exec(open_cell(notebook_02, "export_swift("), space)
    patch.setitem(space, "LEARN_TURNS", "all")
    patch.setitem(space, "LEARN_TOOL_CALLS", True)
    turns = space["normalize_messages"]({"messages": [ASK, {"role": "assistant", "content": "Canberra."}] * 2})
    words = space["keep_as_text"]([TYPED, {"role": "assistant", "content": "A mark."}], space["tokenizer"])
    with pytest.raises(space["RowError"], match="control token typed in the text"):
        space["normalize_messages"]({"messages": [TYPED, {"role": "assistant", "content": "A mark."}]})
    tools = [row for row in space["train_rows"] if row["source"] == "tool_calls"]
    every, dropped = space["add_labels"]([turns, space["make_row"](words, "yours"), *tools])
    assert not dropped
    return SimpleNamespace(space=space, rows=space["rows"], every=every, folder=output / "swift", model=model)


# ---- the rows, without ms-swift ----


@pytest.mark.parametrize("number", ["01", "02"])
def test_a_row_is_cut_where_turns_begin(number, notebook_01, tokenizers):
    swift_row = lift(notebook_01, "swift_row")["swift_row"]
    tokenizer, ends = tokenizers[STAND_IN[number]], MARKS[number]
    instruction, response = lift(notebook_01, "find_response_markers")["find_response_markers"](tokenizer)
    messages = SHAPES[1] if number == "01" else [SYSTEM, ASK, {"role": "assistant", "content": "Canberra."}] + [
        {"role": "user", "content": "And of New Zealand?"}, {"role": "assistant", "content": "Wellington."}]  # fmt: skip
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    last = text.rindex(response if number == "02" else "<|channel|>analysis")
    labels = [
        i if left >= last else -100 for i, (left, _) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    ]
    found = swift_row({"text": text, "labels": labels}, tokenizer, instruction, response, ends)["messages"]
    assert [message["role"] for message in found] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.get("loss") for message in found] == [None, None, False, None, True]
    assert found[1]["content"] == ASK["content"] and found[3]["content"] == "And of New Zealand?"
    head = text.split(instruction)[0]
    assert found[0]["content"] == (head if number == "01" else SYSTEM["content"])
    assert found[2]["content"] == "<|channel|>final<|message|>Canberra." if number == "01" else "Canberra."
    thought = "<|channel|>analysis<|message|>Gefragt ist nach der Hauptstadt.<|end|><|start|>assistant"
    final = f"{thought}<|channel|>final<|message|>Wellington.<|return|>"
    assert found[4]["content"] == (final if number == "01" else "Wellington.<|im_end|>")


def test_a_command_line_is_quoted_and_wrapped(notebook_01):
    shell_command = lift(notebook_01, "shell_command")["shell_command"]
    values = {"a": 1e-4, "regex": r".*\.(q|k) 'x'", "list": ["x y", "z"], "object": {"m": 0.1}, "off": False}
    command = shell_command("swift sft", {**values, "none": None, "empty": [], **{f"long_{i}": i for i in range(20)}})
    assert max(map(len, command.splitlines())) <= 110 and "none" not in command and "empty" not in command
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:12] == ["swift", "sft", "--a", "0.0001", "--regex", r".*\.(q|k) 'x'", "--list", "x y", "z",
                          "--object", '{"m": 0.1}', "--off"]  # fmt: skip
    assert words[-1] == "19"


# ---- against ms-swift ----


@pytest.fixture(scope="module")
def swift_python():
    try:
        return serve.environment(PROJECT / "outputs" / "swift-env", PROJECT / "requirements-swift.txt")
    except serve.SetupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def in_swift(swift_python, tmp_path_factory):
    """Return f(*command words) → what it printed; the words after the interpreter, in ms-swift's environment."""
    home = tmp_path_factory.mktemp("caches")
    caches = {name: str(home) for name in ("MODELSCOPE_CACHE", "HF_DATASETS_CACHE")}
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}

    def run(*words):
        done = subprocess.run(
            [str(swift_python), *map(str, words)], cwd=PROJECT, env={**os.environ, **caches, **quiet},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def labels_of(in_swift, tmp_path_factory):
    """Return f(number, file, loss_scale) → ms-swift's tokens and labels of each row."""

    def read_back(number, file, loss_scale="default"):
        out = tmp_path_factory.mktemp("labels") / "labels.jsonl"
        template = {"01": "gpt_oss", "02": "qwen3_nothinking"}[number]
        folder = PROJECT / "outputs" / "rehearsal" / STAND_IN[number]
        in_swift(PROJECT / "tests" / "swift_labels.py", folder, template, loss_scale, file, out)
        return read(out)

    return read_back


def differences(ours, theirs, tokenizer):
    """Return {(what differs, token): how often}; a line break at our end that carries no loss is left aside."""
    found = {}
    for one, other in zip(ours, theirs, strict=True):
        ids, labels = list(one["input_ids"]), list(one["labels"])
        while ids and labels[-1] == -100 and tokenizer.decode(ids[-1:]).isspace():
            ids, labels = ids[:-1], labels[:-1]
        assert tokenizer.decode(other["input_ids"]) == tokenizer.decode(ids)
        assert other["input_ids"] == ids
        for token, label, its in zip(ids, labels, other["labels"], strict=True):
            if label != its:
                what = "loss only there" if label == -100 else "loss only here"
                previous = found.get((what, tokenizer.decode([token])), 0)
                found[what, tokenizer.decode([token])] = previous + 1
    return found


@pytest.mark.long
def test_harmony_rows_have_our_tokens_and_labels(exported_01, labels_of):
    file, tokenizer = exported_01.folder / "train.jsonl", exported_01.space["tokenizer"]
    ours = [row for row in exported_01.rows if "<|call|>" not in row["text"]]
    assert len(ours) == len(exported_01.rows) - 2 > 100
    assert differences(ours, labels_of("01", file), tokenizer) == {}


@pytest.mark.long
def test_the_mixture_has_our_tokens_and_labels(exported_02, labels_of):
    theirs = labels_of("02", exported_02.folder / "train.jsonl")
    assert len(theirs) == len(exported_02.rows) > 100
    assert differences(exported_02.rows, theirs, exported_02.space["tokenizer"]) == {}


@pytest.mark.long
def test_where_every_turn_learns_a_line_break_more_has_loss(exported_02, labels_of, tmp_path):
    space, file = exported_02.space, tmp_path / "every.jsonl"
    options = (space["tokenizer"], space["instruction"], space["response"], MARKS["02"])
    rows = [space["swift_row"](row, *options) for row in exported_02.every]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    turns = sum(m["role"] == "assistant" for row in rows for m in row["messages"])
    assert all(m["loss"] for row in rows for m in row["messages"] if m["role"] == "assistant")
    found = differences(exported_02.every, labels_of("02", file), space["tokenizer"])
    assert found == {("loss only there", "\n"): turns - len(rows)}


@pytest.mark.long
def test_swift_s_own_rendering_of_tools_has_two_line_breaks_more(exported_02, labels_of, tmp_path):
    """Why tools go out as text."""
    space, file = exported_02.space, tmp_path / "tools.jsonl"
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {}}}}]
    messages = [ASK, {"role": "assistant", "content": "No.<|im_end|>"}]
    file.write_text(json.dumps({"messages": messages, "tools": tools}) + "\n")
    theirs = space["tokenizer"].decode(labels_of("02", file)[0]["input_ids"])
    ours = space["render"]([ASK, {"role": "assistant", "content": "No."}], tools).strip()
    assert theirs == ours.replace("system\n# Tools", "system\n\n\n# Tools", 1) != ours


@pytest.mark.long
def test_ignore_empty_think_takes_the_loss_off_an_empty_thought_alone(exported_02, labels_of, tmp_path):
    file, empty = tmp_path / "empty.jsonl", "<think>\n\n</think>\n\n"
    turns = [f"{empty}5.<|im_end|>", "<think>\n2 and 3.\n</think>\n\n5.<|im_end|>", "5.<|im_end|>"]
    rows = [
        {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": turn}]} for turn in turns
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain, ignored = (labels_of("02", file, scale) for scale in ("default", "ignore_empty_think"))
    decode = exported_02.space["tokenizer"].decode
    lost = [[a for a, b in zip(one["labels"], other["labels"], strict=True) if a != b]
            for one, other in zip(plain, ignored, strict=True)]  # fmt: skip
    assert [decode(tokens) for tokens in lost] == [empty, "", ""]


@pytest.mark.long
def test_harmony_has_no_form_for_a_call(labels_of, exported_01, tmp_path):
    """Why rows with tool calls are left out of notebook 01's file."""
    file, call = tmp_path / "call.jsonl", ' to=functions.rain<|channel|>commentary json<|message|>{"city": "Rome"}'
    file.write_text(json.dumps({"messages": [ASK, {"role": "assistant", "content": call}]}) + "\n")
    text = exported_01.space["tokenizer"].decode(labels_of("01", file)[0]["input_ids"])
    assert text.endswith(f"<|start|>assistant<|channel|>final<|message|>{call}<|return|>")


@pytest.mark.long
def test_reasoning_in_a_key_of_its_own_is_dropped(labels_of, tmp_path):
    """Why the reasoning goes into the content."""
    file, bare = tmp_path / "thinking.jsonl", {"role": "assistant", "content": REPLY["content"]}
    rows = [{"messages": [ASK, {**bare, **more}]} for more in ({}, {"thinking": "Ja."}, {"reasoning_content": "Ja."})]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = labels_of("01", file)
    assert one == two == three


@pytest.mark.long
def test_what_the_table_of_flags_says(in_swift, labels_of, tmp_path):
    names = (
        "weight_decay",
        "adam_beta2",
        "lora_dropout",
        "lora_alpha",
        "data_seed",
        "split_dataset_ratio",
        "target_modules",
    )
    ask = "import dataclasses, json; from swift.arguments import SftArguments; made = lambda f: f.default if f.default "
    ask += "is not dataclasses.MISSING else f.default_factory(); print('\\n' + json.dumps({f.name: made(f) for f in "
    ask += f"dataclasses.fields(SftArguments) if f.name in {names}}}))"
    said = next(line for line in in_swift("-c", ask).splitlines() if line.startswith("{"))
    assert json.loads(said) == {
        "weight_decay": 0.1, "adam_beta2": 0.95, "lora_dropout": 0.05, "lora_alpha": 32.0, "data_seed": 42,
        "split_dataset_ratio": 0.0, "target_modules": ["all-linear"]}  # fmt: skip
    file, reply = tmp_path / "turns.jsonl", {"role": "assistant", "content": "Canberra.<|im_end|>"}
    turns = [
        {**reply, "content": "Canberra.", "loss": True},
        {"role": "user", "content": "Thanks!"},
        {**reply, "loss": True},
    ]
    file.write_text(json.dumps({"messages": [ASK, *turns]}) + "\n")
    plain, last, whole = (labels_of("02", file, scale)[0] for scale in ("default", "last_round", "all"))
    assert plain == last and whole["labels"][1:] == whole["input_ids"][1:] != plain["labels"][1:]


def commands(folder):
    """Return {program: its words} of commands.sh."""
    text = (folder / "commands.sh").read_text().replace("\\\n", "").splitlines()
    return {line.split()[1]: shlex.split(line) for line in text if line.startswith("swift ")}


@pytest.mark.long
@pytest.mark.parametrize("number", ["01", "02"])
def test_the_commands_train_answer_and_merge(number, in_swift, request):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    exported = request.getfixturevalue(f"exported_{number}")
    said, folder = commands(exported.folder), exported.folder
    few = ["--dataset", f"{os.path.relpath(folder / 'train.jsonl', PROJECT)}#4", "--max_steps", "2"]
    few += ["--per_device_train_batch_size", "1", "--torch_dtype", "float32", "--eval_strategy", "no"]
    in_swift("-m", "swift.cli.main", *said["sft"][1:], *few, "--save_strategy", "steps")
    saved = folder / "sft" / "last-checkpoint"
    settings = json.loads((saved / "args.json").read_text())
    space = exported.space
    wanted = {"lora_rank": space["LORA_RANK"], "lora_alpha": space["LORA_ALPHA"], "lora_dropout": 0.0}
    wanted |= {
        name: space["TRAINING"][name] for name in ("learning_rate", "weight_decay", "max_length", "packing", "seed")
    }
    assert {name: settings[name] for name in wanted} == wanted
    assert (settings["warmup_ratio"] or settings["warmup_steps"]) == space["WARMUP_RATIO"] and settings[
        "lr_scheduler_type"
    ].startswith("cosine")

    base = PROJECT / "outputs" / "rehearsal" / STAND_IN[number]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), saved)
    adapted = {
        name.split(".lora_B")[0].removeprefix("base_model.model.")
        for name, _ in model.named_parameters()
        if ".lora_B" in name
    }
    kinds = tuple(space["TARGET_MODULES"]) if number == "02" else tuple(space["targets"]["target_modules"])
    linear = {name for name, module in exported.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert adapted == {name for name in linear if name.endswith(kinds)}
    assert any(weight.abs().max() > 0 for name, weight in model.named_parameters() if ".lora_B" in name)

    two = ["--val_dataset", f"{os.path.relpath(folder / 'validation.jsonl', PROJECT)}#2", "--max_new_tokens", "4"]
    in_swift("-m", "swift.cli.main", *said["infer"][1:], *two)
    assert [set(row) >= {"response", "messages"} for row in read(folder / "replies.jsonl")] == [True, True]
    in_swift("-m", "swift.cli.main", *said["export"][1:])
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
    ids = torch.tensor([exported.rows[0]["input_ids"][:64]])
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, model(ids).logits, atol=1e-3)
