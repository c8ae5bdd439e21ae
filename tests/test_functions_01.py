"""Functions of notebook 01, lifted out of it and given right and wrong input."""

import json
import math

import pytest


@pytest.fixture(scope="module")
def nb(setup_01):
    return setup_01


@pytest.fixture(scope="module")
def functions(notebook_01):
    from conftest import lift

    return lift(notebook_01, "parse_harmony", "wilson", "find_response_markers", "clean_messages", "split_messages")


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


def test_wilson_against_published_values(functions):
    interval = functions["wilson"](8, 40)  # 0.2: (0.105, 0.348), e.g. Agresti & Coull's table form
    assert interval == {"value": 0.2, "n": 40, "low": 0.105, "high": 0.3476}
    assert functions["wilson"](0, 10)["low"] == 0 and functions["wilson"](10, 10)["high"] == 1
    assert math.isclose(functions["wilson"](0, 10)["high"], 0.2775, abs_tol=1e-4)


def test_clean_messages_drops_null_keys_only(functions):
    messages = [
        {"role": "user", "content": "", "thinking": None},
        {"role": "assistant", "content": "a", "thinking": ""},
    ]
    assert functions["clean_messages"](messages) == [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "a", "thinking": ""},
    ]


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
    with fails(nb, "there is no such file"):
        nb["read_rows"]("data/nowhere.jsonl", "main")
    assert len(nb["read_rows"]("data", "main")) > 300  # a folder: all files in it


def test_parquet_is_read_like_jsonl(nb, tmp_path):
    import pandas as pd

    rows = nb["read_rows"]("data/multilingual_thinking.jsonl", "main")[:3]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    back = nb["check_rows"](nb["read_rows"](str(tmp_path / "rows.parquet"), "main"), "rows.parquet")
    assert [row["user"] for row in back] == [row["user"] for row in rows]
    assert nb["clean_messages"](back[0]["messages"]) == nb["clean_messages"](rows[0]["messages"])


def test_the_hub_out_of_reach(nb):
    with fails(
        nb, r"HuggingFaceH4/Multilingual-Thinking \(revision main\) could not be loaded.*set DATASET to a local file"
    ):
        nb["read_rows"]("HuggingFaceH4/Multilingual-Thinking", "main")


def test_another_configuration_gets_a_folder_of_its_own(nb, tmp_path):
    first = nb["output_folder"](tmp_path / "run", {"LEARNING_RATE": 1})
    (first / "run_card.json").write_text("{}")
    assert nb["output_folder"](tmp_path / "run", {"LEARNING_RATE": 1}) == first
    other = nb["output_folder"](tmp_path / "run", {"LEARNING_RATE": 2})
    assert other != first and other.name.startswith("run-") and (first / "run_card.json").exists()
    assert nb["output_folder"](tmp_path / "run", {"LEARNING_RATE": 2}) == other


def test_outputs_that_cannot_be_written(nb, tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    with fails(nb, "cannot be written"):
        nb["output_folder"](tmp_path / "outputs" / "run", {})


def test_a_tracker_that_is_missing_costs_a_sentence(notebook_01, setup_01, capsys, monkeypatch, tmp_path):
    from conftest import lift

    for variable, setting in (("TRACKIO_DIR", str(tmp_path)), ("SWANLAB_MODE", "offline"), ("WANDB_MODE", "offline")):
        monkeypatch.setenv(variable, setting)  # the notebook sets them, and a rehearsal after this would inherit them
    namespace = {**setup_01, **lift(notebook_01, "choose_tracker")}
    choose = lift(notebook_01, "choose_tracker")["choose_tracker"]
    choose.__globals__.update({key: namespace[key] for key in ("OUTPUT", "NOTEBOOK")})
    assert choose("none") == "none"
    assert choose("swanlab") == "none"  # not in the lock
    assert "the run goes on without it" in capsys.readouterr().out
    with fails(choose.__globals__, 'TRACKER is "tensorbored"'):
        choose("tensorbored")


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

    namespace = lift(notebook_01, "check_model", "weight_gib")
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


def test_too_little_gpu_memory_is_told_with_the_numbers_before_loading(preflight, monkeypatch):
    import torch

    preflight.update(gpu={"name": "small"}, DEVICE="small card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**28, 2**30))
    with fails(preflight, r"gpt-oss needs about 0\.\d GiB to load and small card has 0\.2 GiB free.*LOAD_IN_4BIT"):
        preflight["check_model"]("outputs/rehearsal/gpt-oss", "main")


def test_experts_that_no_adapter_can_reach_stop_the_run(notebook_01):
    import types

    import torch
    from conftest import lift

    namespace = lift(notebook_01, "adapter_targets")
    namespace["MODEL"] = "a model"
    model = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 2)})])}
    )
    model.config = types.SimpleNamespace(num_hidden_layers=1)
    with fails(namespace, "asks for experts, but in this format a model has none"):
        namespace["adapter_targets"](model, ["q_proj"], "all")
    assert namespace["adapter_targets"](model, ["q_proj"], [])["target_modules"] == ["layers.0.q_proj"]
    with fails(namespace, r"EXPERT_LAYERS names the layers \[7\]; a model has the layers 0 to 0"):
        namespace["adapter_targets"](model, ["q_proj"], [7])


# Replies


class FillsUp:
    """A model that ends every row after its own number of tokens and fills up as Unsloth's CUDA decoding does."""

    device = "cpu"

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

    replies = lift(notebook_01, "generate_replies")
    replies.update(FastLanguageModel=SimpleNamespace(for_inference=lambda model: None), REPETITION_PENALTY=1.0)
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
    for effective in (0, -4, "16", None, 2.0):
        with pytest.raises(Exception, match=r"EFFECTIVE_BATCH is .*must be a number of rows, 1 or more"):
            plan(notebook_01, 80 * GIB, effective=effective)
    with pytest.raises(Exception, match=r"needs about 3\.2 GiB, and 3\.0 GiB are free\. Lower MAX_LENGTH"):
        plan(notebook_01, 3 * GIB)


def test_layers_of_other_families_keep_more(notebook_01):
    from types import SimpleNamespace

    from conftest import lift

    layer_bytes = lift(notebook_01, "layer_bytes")["layer_bytes"]
    plain = {"hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert layer_bytes(SimpleNamespace(**plain), 100) == 8 * (8 + 8 + 4) + 4 * 32
    assert layer_bytes(SimpleNamespace(**plain, head_dim=16), 100) == 8 * (8 + 32 + 16) + 4 * 32
    experts = layer_bytes(SimpleNamespace(**plain, num_experts_per_tok=4), 100)
    assert experts == 8 * (8 + 8 + 4) + 4 * 17 * 32
    scores = [layer_bytes(SimpleNamespace(**plain, attn_logit_softcapping=50.0), length) for length in (100, 200)]
    assert scores[1] - scores[0] == 8 * 2 * 100
