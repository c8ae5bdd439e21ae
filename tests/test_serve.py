"""From notebook to application: tools/saved.py, tools/serve.py and notebook 05's client; long ones start servers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types

import pytest
import torch
from conftest import PROJECT, read_jsonl
from safetensors.torch import load_file, save_file
from small_adapter import save_adapter, save_record
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(PROJECT / "tools"))
import saved  # noqa: E402
import serve  # noqa: E402

NOTEBOOK = PROJECT / "NoteBooks" / "05_use_what_you_trained.ipynb"
TUNED = {"01": "01_gpt_oss_multilingual_thinking", "02": "02_qwen3_emoji_math", "04": "04_gemma_gsm8k"}
CAT = "What is a good name for a small grey cat?"


def refused(function, *arguments, **more):
    """Return the sentence with which a tool refuses its arguments."""
    with pytest.raises((saved.SavedError, serve.SetupError)) as caught:
        function(*arguments, **more)
    assert "\n" not in str(caught.value).strip()
    return str(caught.value)


def put(folder, mark):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / mark).write_text("{}")
    return folder


# ---- what is saved ----


def test_the_folder_that_is_meant(tmp_path):
    run = tmp_path / "02_run"
    adapter = put(run / "adapter", "adapter_config.json")
    assert saved.find_saved(str(run)) == adapter == saved.find_saved(str(adapter))
    merged = put(run / "merged", "config.json")
    put(run / ".hidden", "config.json")
    assert saved.find_saved(str(run)) == merged and saved.find_saved(str(run), prefer="adapter") == adapter
    assert saved.name_of(merged) == saved.name_of(adapter) == "02_run"
    assert saved.name_of(tmp_path / "04_run" / "lora_main") == "04_run-lora_main"
    assert saved.name_of(tmp_path / "a  b" / "--ü..x") == "a-b-x"


def test_a_folder_with_nothing_to_serve_is_told(tmp_path):
    assert refused(saved.find_saved, "").startswith("Say what to take: FOLDER=outputs/…")
    assert refused(saved.find_saved, "outputs/none").startswith("There is no folder outputs/none.")
    (tmp_path / "empty").mkdir()
    assert "holds no model and no adapter" in refused(saved.find_saved, str(tmp_path / "empty"))
    for name in ("lora_main", "qlora_main"):
        put(tmp_path / "run" / name, "adapter_config.json")
    assert "holds several: choose one of" in refused(saved.find_saved, str(tmp_path / "run"))
    model = put(tmp_path / "model", "config.json")
    assert "no weights as safetensors" in refused(saved.whole_model, model)
    (model / "model.safetensors").touch()
    assert "no chat template" in refused(saved.whole_model, model)
    (model / "training.json").write_text("{")
    assert "training.json is no JSON object" in refused(saved.record_of, model)


@pytest.mark.parametrize("text", ["", "outputs/none"])
def test_the_command_says_one_sentence(text):
    result = subprocess.run(
        [sys.executable, "tools/serve.py", text], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("serve: ") and result.stderr.count("\n") == 1


def test_a_question_is_put_as_in_training():
    record = {"prompt": {"system": "language: {language}\n\n{who}", "defaults": {"language": "German", "who": "W"}}}
    assert saved.messages_of(record, "Why?") == [
        {"role": "system", "content": "language: German\n\nW"},
        {"role": "user", "content": "Why?"},
    ]
    assert saved.messages_of({"prompt": {}}, "{who}") == [{"role": "user", "content": "{who}"}]
    assert saved.messages_of({"prompt": {"user": "{user} Step by step."}}, "1+1?")[0]["content"] == "1+1? Step by step."


@pytest.fixture
def small(tmp_path):
    """A function that saves an adapter of a tiny base below a folder of its own; returns both folders."""

    def make(strength=0.5, **changes):
        torch.manual_seed(1)
        shape = dict(vocab_size=49152, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        base, adapter = tmp_path / "base", tmp_path / "run" / "adapter"
        model = LlamaForCausalLM(LlamaConfig(**shape))
        model.save_pretrained(base)
        save_adapter(model, adapter, strength, **changes)
        for name in saved.TOKENIZER:
            source = PROJECT / "outputs" / "rehearsal" / "gpt-oss" / name
            shutil.copy(source, adapter) if source.exists() else None
        save_record(adapter, str(base), "a template")
        return base, adapter

    return make


def test_an_adapter_is_merged_in_32_bits(small, tmp_path):
    from peft import PeftModel

    base, adapter = small()
    target = tmp_path / "merged"
    assert saved.merge_adapter(adapter, target) == {"moved": 4, "of": 21}  # q and v of two layers
    tuned = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter))
    merged, ids = LlamaForCausalLM.from_pretrained(target), torch.tensor([[5, 7, 11]])
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged(ids).logits, tuned(ids).logits, atol=1e-5, rtol=0)
    assert saved.record_of(target)["kind"] == "merged" and (target / "tokenizer.json").exists()
    before = (target / "model.safetensors").stat().st_mtime_ns
    saved.merge_adapter(adapter, target)
    assert (target / "model.safetensors").stat().st_mtime_ns == before, "merged again though nothing changed"


def test_what_cannot_be_merged_is_told(small, tmp_path):
    base, adapter = small(strength=0.0)
    target = tmp_path / "merged"
    assert "changes no weight" in refused(saved.merge_adapter, adapter, target) and not target.exists()
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1" not in name}, weights)
    assert "tensors are missing or have no place" in refused(saved.merge_adapter, adapter, target)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "mxfp4"}}))
    assert "packed weights" in refused(saved.merge_adapter, adapter, target)
    save_record(adapter, "no/such-base", "a template")
    assert "an adapter for no/such-base, which is not on this disk" in refused(saved.merge_adapter, adapter, target)
    weights.unlink()
    assert "holds no weights as safetensors" in refused(saved.merge_adapter, adapter, target)


# ---- the server, without one ----


def parse(family, text, prompt):
    from transformers.utils.chat_parsing.response_parser import ResponseParser, parse_response

    template = serve.RESPONSE_TEMPLATES[family]
    parsed, parser, streamed = parse_response(text, template, prefix=prompt), None, {"thinking": "", "content": ""}
    parser = ResponseParser(template, prefix=prompt)
    events = [event for letter in text for event in parser.feed(letter)]
    for event in events + parser.finalize()[1]:
        if event["type"] == "region_chunk" and event["field"] in streamed:
            streamed[event["field"]] += event["text"]
    for name, piece in streamed.items():
        assert piece.strip() == (parsed.get(name) or ""), "streamed and whole differ"
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in parsed.get("tool_calls", [])]
    return parsed.get("thinking"), parsed.get("content"), calls


HARMONY = "<|start|>user<|message|>Hi<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
         ("Hm.", "Yes.", [])),
        ("<|channel|>final<|message|>Yes.<|return|>", (None, "Yes.", [])),
        ("<|channel|>analysis<|message|>Hm", ("Hm", None, [])),
        ("no marks at all<|return|>", (None, "no marks at all", [])),
        ('<|channel|>commentary to=functions.set_light <|constrain|>json<|message|>{"on": true}<|call|>',
         (None, None, [("set_light", {"on": True})])),
        ('<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.a.b<|channel|>commentary json'
         '<|message|>{"on": tr<|call|>', ("Hm.", None, [("a.b", '{"on": tr')])),
    ],
)  # fmt: skip
def test_harmony_is_taken_apart(text, expected):
    assert parse("harmony", text, HARMONY) == expected


QWEN = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "set_light", "arguments": {"on": true, "deep": {"a": 1}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.<|im_end|>", (None, "Yes.", [])),
        ("<think>\nHm.\n</think>\n\nYes.<|im_end|>", ("Hm.", "Yes.", [])),
        (CALL + "<|im_end|>", (None, None, [("set_light", {"on": True, "deep": {"a": 1}})])),
        (f"{CALL}\n{CALL}<|im_end|>", (None, None, [("set_light", {"on": True, "deep": {"a": 1}})] * 2)),
        ('<tool_call>\n{"name": "f", "arguments": {"on": tr}}\n</tool_call><|im_end|>', (None, None, [("f", '{"on": tr}')])),
        ("<tool_call>nonsense</tool_call><|im_end|>", (None, "<tool_call>nonsense</tool_call>", [])),
    ],
)  # fmt: skip
def test_qwen_is_taken_apart(text, expected):
    assert parse("qwen", text, QWEN) == expected


def test_which_template_a_family_gets(tokenizers):
    chosen = {name: serve.response_template("", tokenizers[name].chat_template) for name in tokenizers}
    assert chosen["gpt-oss"] is serve.RESPONSE_TEMPLATES["harmony"]
    assert chosen["qwen3"] is serve.RESPONSE_TEMPLATES["qwen"] is serve.response_template("qwen3", "")
    assert chosen["gemma"] is None and serve.response_template("gemma", "<|im_start|>") is None


def test_the_server_s_cache_holds_two_models_and_no_copy(small, tmp_path, monkeypatch):
    from huggingface_hub import scan_cache_dir, snapshot_download

    monkeypatch.setattr(serve, "MADE", tmp_path / "made")
    base, adapter = small()
    merged = tmp_path / "merged"
    saved.merge_adapter(adapter, merged)
    assert serve.make_cache(merged, "a_name", saved.record_of(merged)) == ["a_name", "a_name-base"]
    cache = tmp_path / "made" / "a_name" / "hub"
    assert {repo.repo_id for repo in scan_cache_dir(cache).repos} == {"a_name", "a_name-base"}
    places = [snapshot_download(name, cache_dir=cache, local_files_only=True) for name in ("a_name", "a_name-base")]
    for place, weights in zip(places, (merged, base), strict=True):
        assert os.path.samefile(f"{place}/model.safetensors", weights / "model.safetensors")
        assert os.path.samefile(f"{place}/tokenizer.json", merged / "tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(place)
        assert tokenizer.response_template == serve.RESPONSE_TEMPLATES["harmony"] and tokenizer.chat_template
    shutil.rmtree(base)
    assert serve.make_cache(merged, "a_name", saved.record_of(merged)) == ["a_name"]


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Port {port} cannot be used (Address already in use)" in refused(serve.check_port, port)
        assert "cannot be used" in refused(serve.start, "outputs/none", port)
    serve.check_port(port)
    assert "cannot be used" in refused(serve.check_port, 70000)


def test_a_missing_environment_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "ENVIRONMENT", tmp_path / "none")
    assert "Run `make setup` first." in refused(serve.environment)


def test_the_server_s_packages_are_pinned_and_fit_the_lock():
    def pins(name):
        lines = (line.split("#")[0].strip() for line in (PROJECT / name).read_text().splitlines())
        return dict(line.lower().replace("_", "-").split("==") for line in lines if line)

    lock, ours = pins("requirements.lock.txt"), pins("requirements-serve.txt")
    assert {"fastapi", "openai"} <= set(ours) and not set(ours) & set(lock)
    assert {"uvicorn", "starlette", "pydantic", "transformers"} <= set(lock)


# ---- notebook 05's client, without a server ----


@pytest.fixture(scope="module")
def nb(notebook_cells, tmp_path_factory, tokenizers):
    """The namespace of notebook 05 with its workshop and readers, on an empty adapter: no model."""
    import ast

    from conftest import code_cells

    folder = put(tmp_path_factory.mktemp("outputs") / "02_run" / "adapter", "adapter_config.json")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "outputs/rehearsal/qwen3"}')
    (folder / "adapter_model.safetensors").touch()
    namespace = notebook_cells(NOTEBOOK, 'if LOAD_IN_4BIT == "as trained"', FOLDER=str(folder))
    shutil.rmtree(namespace["OUTPUT"])
    for source in code_cells(NOTEBOOK):
        for node in ast.parse(source).body:
            names = {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
            if "ENDS" in names or (isinstance(node, ast.FunctionDef) and node.name not in namespace):
                exec(compile(ast.Module(body=[node], type_ignores=[]), NOTEBOOK.name, "exec"), namespace)
    namespace.update(read_reply=namespace["read_harmony"], MAX_NEW_TOKENS=64, REPETITION_PENALTY=1.0)
    return namespace


class StandInPackage:
    """As much of the package openai as `reach_server` needs; it lists the models that it was made with."""

    class OpenAIError(Exception):
        pass

    def __init__(self, names):
        self.names = names

    def OpenAI(self, **settings):  # noqa: N802
        self.address, self.models = settings["base_url"], self
        return self

    def with_options(self, **settings):
        return self

    def list(self):
        if self.names is None:
            raise self.OpenAIError
        return [types.SimpleNamespace(id=name) for name in self.names]


def test_only_a_server_of_this_folder_is_asked_unless_one_is_named(nb, monkeypatch, capsys):
    def reach(names, address=""):
        package = StandInPackage(names)
        monkeypatch.setitem(nb, "openai_package", lambda: package)
        client, found = nb["reach_server"](address)
        assert (client is None) == (found == [])
        return found, package.address, capsys.readouterr().out

    here = "http://127.0.0.1:8000/v1"
    assert reach(["02_run-base", "02_run"])[:2] == (["02_run", "02_run-base"], here)
    found, _, said = reach(["another"])
    assert found == [] and f"the one at {here} serves another, not " in said
    assert reach(["base", "tuned"], "http://h:1/v1")[:2] == (["base", "tuned"], "http://h:1/v1")
    found, _, said = reach(None)
    assert found == [] and f"none answers at {here} (OpenAIError). `make serve` starts one." in said
    monkeypatch.setitem(nb, "openai_package", lambda: None)
    assert nb["reach_server"]("") == (None, []) and "`make serve` installs it" in capsys.readouterr().out


def test_a_served_model_that_is_the_base_is_told(nb):
    one, other = {"answer": "Yes."}, {"answer": "No."}
    assert nb["say_served"]({"t": [one, one], "b": [one, other]}) == "t and b differ on 1 of 2 questions."
    assert "What is served is the base" in nb["say_served"]({"t": [one], "b": [one]})
    assert nb["CARD"].pop("served") == {"models": ["t", "b"], "questions": 1, "differ": 0}
    assert nb["say_served"]({"t": [one]}).startswith("One model is served")


# ---- servers: `make test-long` ----


class Server:
    """`make serve`'s tool on a free port: what it printed, its address, its models, an official client."""

    def __init__(self, folder, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "tools/serve.py", str(folder), "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if line.startswith("Ctrl-C"):
                break
        else:
            raise AssertionError(self.process.stderr.read())
        openai = serve_openai()
        self.address = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=self.address, api_key="none", max_retries=0)
        self.names = sorted(model.id for model in self.client.models.list())

    def ask(self, name, messages, **more):
        return self.client.chat.completions.create(
            model=name, messages=messages, **{"temperature": 0, "max_tokens": 40, **more}
        )

    def close(self):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=30) == 0
        serve.check_port(self.port)


def serve_openai():
    """Return the package openai out of the server's environment, which a server has made."""
    sys.path.extend(map(str, serve.OWN.glob("lib/python3*/site-packages")))
    import openai

    return openai


def run_of(number):
    folder = PROJECT / "outputs" / TUNED[number]
    if not (folder / "run_card.json").exists():
        pytest.skip(f"nothing saved by notebook {number}: `make run NOTEBOOK={number}`")
    return folder


@pytest.fixture(scope="module")
def server_02():
    server = Server(run_of("02"))
    yield server
    server.close()


def own_replies(nb, folder, conversations, tokens):
    """Return what notebook 05's `generate_replies` makes of conversations with a folder's weights in 32 bits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [nb["generate_replies"](model, tokenizer, [messages], tokens)[0] for messages in conversations]


def questions(count):
    return [[{"role": "user", "content": row["user"]}] for row in read_jsonl("questions.jsonl")[:count]]


@pytest.mark.long
def test_the_curl_line_works(server_02):
    line = next(line for line in server_02.printed.splitlines() if line.startswith("curl "))
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)
    answer = json.loads(result.stdout)
    assert answer["choices"][0]["message"]["content"] and answer["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.long
def test_the_greedy_answer_is_the_notebook_s_own(server_02, nb):
    conversations = questions(4)
    expected = own_replies(nb, run_of("02") / "merged", conversations, 40)
    for messages, own in zip(conversations, expected, strict=True):
        choice = server_02.ask(TUNED["02"], messages).choices[0]
        parts = nb["read_tagged"](own)
        assert choice.message.content == parts["answer"]
        assert choice.finish_reason == ("length" if parts["fault"] else "stop")


@pytest.mark.long
def test_a_streamed_reply_is_the_whole_one_and_ends_at_the_stop_token(server_02):
    messages = [{"role": "user", "content": CAT}]
    whole = server_02.ask(TUNED["02"], messages, max_tokens=64)
    pieces = list(server_02.ask(TUNED["02"], messages, max_tokens=64, stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert len(pieces) > 5 and text.strip() == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop" == pieces[-1].choices[0].finish_reason
    assert whole.usage.completion_tokens < 64 and "<|" not in text
    cut = server_02.ask(TUNED["02"], messages, max_tokens=64, stop=[text[8:16]])
    assert cut.choices[0].message.content == text[:16].strip()


@pytest.mark.long
def test_base_and_tuned_answer_otherwise_and_nothing_else_is_served(server_02, nb, monkeypatch, capsys):
    openai = serve_openai()
    assert server_02.names == [TUNED["02"], f"{TUNED['02']}-base"]
    monkeypatch.setitem(nb, "FOLDER", run_of("02") / "adapter")
    client, served = nb["reach_server"](server_02.address)
    assert served == server_02.names and server_02.address in capsys.readouterr().out
    asked = nb["ask_all"](client, served, questions(2))
    assert nb["say_served"](asked).endswith("differ on 2 of 2 questions.")
    for other in ("outputs/rehearsal/qwen3", str(PROJECT / "outputs" / "rehearsal" / "qwen3"), "HuggingFaceTB/SmolLM2"):
        with pytest.raises(openai.NotFoundError):
            server_02.ask(other, questions(1)[0])


@pytest.mark.long
def test_harmony_s_channels_come_apart(nb):
    server = Server(run_of("01"))
    try:
        record = saved.record_of(run_of("01") / "merged")
        messages = saved.messages_of(record, "How do I keep a houseplant alive?")
        own = nb["read_harmony"](own_replies(nb, run_of("01") / "merged", [messages], 150)[0])
        message = server.ask(TUNED["01"], messages, max_tokens=150).choices[0].message
        assert own["fault"] is None and message.content == own["answer"].strip()
        assert message.model_extra["reasoning_content"] == own["reasoning"].strip()
        deltas = [piece.choices[0].delta for piece in server.ask(TUNED["01"], messages, max_tokens=150, stream=True)]
        thought = "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas)
        said = "".join(delta.content or "" for delta in deltas)
        assert (thought.strip(), said.strip()) == (own["reasoning"].strip(), own["answer"].strip())
        assert "penalty" in server.printed
        assert server.ask(f"{TUNED['01']}-base", messages, max_tokens=150).choices[0].message.content != message.content
    finally:
        server.close()


@pytest.mark.long
def test_an_adapter_is_merged_and_served():
    server = Server(run_of("04") / "lora_main")
    try:
        name = f"{TUNED['04']}-lora_main"
        assert server.names == [name, f"{name}-base"] and "of 273 tensors changed" in server.printed
        messages = saved.messages_of(
            saved.record_of(run_of("04") / "lora_main"), "Emma has 3 jars and buys 4. How many?"
        )
        tuned, base = (server.ask(each, messages, max_tokens=80).choices[0].message.content for each in server.names)
        assert tuned != base and "####" in tuned and "<end_of_turn>" not in tuned
    finally:
        server.close()


@pytest.mark.long
def test_a_tool_call_comes_as_a_tool_call(tmp_path):
    """Teach the Qwen stand-in one call by heart (the tuned one of notebook 02 makes none that is whole), and serve it."""
    from transformers import AutoModelForCausalLM

    source, folder = PROJECT / "outputs" / "rehearsal" / "qwen3", tmp_path / "02_taught" / "merged"
    tokenizer = AutoTokenizer.from_pretrained(source)
    row = next(row for row in read_jsonl("tool_calls.jsonl") if row["messages"][1].get("tool_calls"))
    prompt = tokenizer.apply_chat_template(
        row["messages"][:1], tools=row["tools"], tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(row["messages"][:2], tools=row["tools"], tokenize=False).rstrip("\n")
    assert whole.startswith(prompt)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt, add_special_tokens=False).input_ids)] = -100
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(12):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    server = Server(folder)
    try:
        assert server.names == ["02_taught"]
        options = {"tools": row["tools"], "max_tokens": 120}
        choice = server.ask("02_taught", row["messages"][:1], **options).choices[0]
        pieces = list(server.ask("02_taught", row["messages"][:1], stream=True, **options))
        streamed = [call.function for piece in pieces for call in piece.choices[0].delta.tool_calls or []]
        wanted = [call["function"] for call in row["messages"][1]["tool_calls"]]
        for calls in ([call.function for call in choice.message.tool_calls], streamed):
            assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls] == wanted
        assert choice.finish_reason == "tool_calls" and not choice.message.content
    finally:
        server.close()
        shutil.rmtree(saved.MADE / "02_taught")
