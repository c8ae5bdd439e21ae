"""tools/to_gguf.py: what it refuses, the template that it reads off, and, `long`, files held against their sources."""

import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import PROJECT, read_jsonl
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

sys.path.insert(0, str(PROJECT / "tools"))
import saved  # noqa: E402
import serve  # noqa: E402
import to_gguf  # noqa: E402

FAMILIES = PROJECT / "outputs" / "rehearsal"
ENDS = {"gpt-oss": "<|return|>", "qwen3": "<|im_end|>", "gemma": "<end_of_turn>"}
RUNS = {
    "02": PROJECT / "outputs" / "02_qwen3_emoji_math" / "merged",
    "04": PROJECT / "outputs" / "04_gemma_gsm8k" / "full_main",
}


# ---- what can be said without converting ----


@pytest.mark.parametrize("family", ENDS)
def test_the_template_s_parts_compose_what_the_template_renders(family, tokenizers):
    tokenizer = tokenizers[family]
    parts = to_gguf.template_parts(tokenizer)
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2."),
             ("user", "Three?")]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in turns]
    for start, end in ((0, 2), (0, 4), (0, 6), (1, 2), (1, 4), (1, 6)):
        chosen = messages[start:end]
        rendered = tokenizer.apply_chat_template(chosen, tokenize=False, add_generation_prompt=True)
        assert to_gguf.compose(parts, chosen) == rendered
    assert parts["after_answer"].startswith("<|end|>" if family == "gpt-oss" else ENDS[family])


@pytest.mark.parametrize("family", ENDS)
def test_stop_tokens_begin_with_the_tokenizer_s_own(family, tokenizers):
    stops = to_gguf.stop_tokens(FAMILIES / family)
    settings = json.loads((FAMILIES / family / "generation_config.json").read_text())
    assert set(stops) == set(settings["eos_token_id"]) and next(iter(stops.values())) == ENDS[family]
    assert all(tokenizers[family].convert_ids_to_tokens(token) == text for token, text in stops.items())


def test_the_modelfile():
    parts = {"bare": "<bos><u>", "system": "<bos><s>", "after_system": "</s><u>", "between": "</u><a>",
             "after_answer": "</a><u>", "ask": "</u><a>"}  # fmt: skip
    text = to_gguf.modelfile("a.gguf", parts, ["</a>", "<eos>"], bos="<bos>")
    assert text.startswith('FROM ./a.gguf\nTEMPLATE """{{ if .System }}<s>{{ .System }}</s><u>{{ else }}<u>{{ end }}')
    assert text.count("{{ if") + text.count("{{ range") == text.count("{{ end }}") and "<bos>" not in text
    assert text.endswith('PARAMETER stop "</a>"\nPARAMETER stop "<eos>"\nPARAMETER temperature 0\n'
                         "PARAMETER repeat_penalty 1.0\n")  # fmt: skip
    assert "<bos>" in to_gguf.modelfile("a.gguf", parts, [])
    assert ".System" not in to_gguf.modelfile("a.gguf", parts | {"system": None, "after_system": None}, [])


def adapter_with(folder, names, **settings):
    folder.mkdir(exist_ok=True)
    save_file({name: torch.ones(2, 2) for name in names}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "none"} | settings))
    return folder


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        (["layers.0.mlp.experts.lora_A.weight"], {}, "it changes experts"),
        (["layers.0.q_proj.lora_A.weight"], {"target_parameters": ["mlp.experts.gate_up_proj"]}, "it changes experts"),
        (["layers.0.q_proj.lora_A.weight", "lm_head.weight"], {}, "it holds whole layers, such as lm_head.weight"),
        (["embed_tokens.lora_A.weight"], {}, "it changes embeddings"),
        (["layers.0.q_proj.lora_A.weight"], {"use_dora": True}, "no plain LoRA"),
    ],
)
def test_an_adapter_without_a_place_is_refused_before_anything_is_fetched(
    names, settings, sentence, tmp_path, monkeypatch
):
    monkeypatch.setattr(to_gguf, "converter", lambda: pytest.fail("the converter was asked for"))
    monkeypatch.setattr(to_gguf, "MADE", tmp_path / "made")
    folder = adapter_with(tmp_path / "adapter", names, **settings)
    with pytest.raises(saved.SavedError, match=sentence):
        to_gguf.make(str(folder), as_adapter=True)
    assert not list((tmp_path / "made").glob("*/*"))


def test_what_a_file_loses_is_told():
    record = {"base": {"load_in_4bit": True}, "decoding": {"repetition_penalty": 1.1}}
    told = to_gguf.what_is_lost(record, "q8_0", True, "strftime_now('%Y')")
    words = ("q8_0 is rounded", "no tokenizer, template and stop tokens", "in 4 bits", "penalty", "today's date")
    assert len(told) == len(words) and all(word in line for word, line in zip(words, told, strict=True))
    plain = {"base": {"load_in_4bit": False}, "decoding": {}}
    assert to_gguf.what_is_lost(plain, "f16", False, "") == []


def test_the_command_says_one_sentence():
    command = [sys.executable, "tools/to_gguf.py", "outputs/none"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stderr.startswith("gguf: There is no folder outputs/none.")
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_a_converter_that_cannot_be_fetched_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise to_gguf.SetupError("Fetching the converter failed: no route.")

    monkeypatch.setattr(to_gguf, "CONVERTER", tmp_path / "outputs" / "llama.cpp")
    monkeypatch.setattr(to_gguf, "run", fail)
    with pytest.raises(saved.SavedError, match="Fetching the converter failed: no route. Or put convert_hf_to_gguf.py"):
        to_gguf.converter()
    monkeypatch.setattr(to_gguf, "run", lambda command, _: (tmp_path / "outputs").mkdir(exist_ok=True) or [
        open(f"{command[command.index('--dest') + 1]}/{to_gguf.ARCHIVE}", "wb").close()])  # fmt: skip
    with pytest.raises(saved.SavedError, match="its SHA-256 differs"):
        to_gguf.converter()
    assert not list((tmp_path / "outputs").iterdir())


# ---- files held against their sources: `make test-long` ----

NAMES = {  # a Llama's modules and theirs
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def their_name(name):
    """Return llama.cpp's name of a Llama's tensor."""
    name = name.removeprefix("base_model.model.").removeprefix("model.")
    name = name.replace("embed_tokens", "token_embd").replace("layers.", "blk.")
    name = "output_norm.weight" if name == "norm.weight" else name
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace(".lora_A.weight", ".weight.lora_a").replace(".lora_B.weight", ".weight.lora_b")


def regrouped(name, weight, config):
    """Return a tensor in llama.cpp's order: rows of queries and keys have the halves of each head interleaved."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for mark, count in heads.items():
        if mark in name and not name.endswith("lora_a"):
            shape, count = weight.shape, config[count]
            return weight.reshape(count, 2, shape[0] // count // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return weight


def compare(path, source, config, kind):
    """Hold every tensor of a GGUF file against a safetensors file's, exactly, in the file's format."""
    _, reader = to_gguf.read_fields(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    tensors = {their_name(name): tensor for name, tensor in load_file(source).items()}
    assert set(tensors) <= set(found), set(tensors) - set(found)
    assert set(found) - set(tensors) <= {"output.weight"}  # tied
    for name, tensor in tensors.items():
        wanted = regrouped(name, tensor, config).float()
        matrix = wanted.ndim == 2 and kind == "f16"
        wanted = (wanted.half() if matrix else wanted).numpy()
        got = np.array(found[name].data).reshape(wanted.shape)
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted), name
    return len(tensors)


@pytest.mark.long
@pytest.mark.parametrize(("number", "kind"), [("02", "f32"), ("04", "f16")])
def test_a_model_s_file_holds_its_weights_template_and_stop_tokens(number, kind, capfd):
    source = RUNS[number]
    if not source.exists():
        pytest.skip(f"nothing saved by notebook {number}: `make run NOTEBOOK={number}`")
    path = to_gguf.make(str(source), kind)
    try:
        tokenizer, stops = AutoTokenizer.from_pretrained(source), to_gguf.stop_tokens(source)
        config = json.loads((source / "config.json").read_text())
        assert compare(path, source / "model.safetensors", config, kind) == 272
        fields, _ = to_gguf.read_fields(path)
        assert fields["tokenizer.chat_template"] == tokenizer.chat_template
        assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id == next(iter(stops))
        tokens = fields["tokenizer.ggml.tokens"]
        assert [tokens[token] for token in stops] == list(stops.values())
        vocabulary = tokenizer.get_vocab()
        assert all(tokens[token] == text for text, token in vocabulary.items()) and len(tokens) == len(vocabulary)
        assert "smollm" in fields["tokenizer.ggml.pre"] and fields["llama.context_length"] == 8192
        assert str(PROJECT) not in json.dumps({name: str(value)[:500] for name, value in fields.items()})
        written = (path.parent / "Modelfile").read_text()
        assert f"FROM ./{path.name}" in written and all(
            f'PARAMETER stop "{stop}"' in written for stop in stops.values()
        )
        assert "272 tensors, 49152 tokens, the model's chat template; stops at" in capfd.readouterr().out
    finally:
        path.unlink()


@pytest.mark.long
def test_an_adapter_s_file_holds_its_matrices(capfd):
    source = RUNS["04"].parent / "lora_main"
    if not source.exists():
        pytest.skip("nothing saved by notebook 04: `make run NOTEBOOK=04`")
    path = to_gguf.make(str(source), "f32", as_adapter=True)
    try:
        config = json.loads((FAMILIES / "gemma" / "config.json").read_text())
        assert compare(path, source / "adapter_model.safetensors", config, "f32") == 420
        fields, _ = to_gguf.read_fields(path)
        settings = json.loads((source / "adapter_config.json").read_text())
        assert fields["adapter.lora.alpha"] == settings["lora_alpha"] and fields["adapter.type"] == "lora"
        for place in (str(PROJECT), settings["base_model_name_or_path"]):
            assert place == saved.record_of(source)["base"]["id"] or place not in str(fields)
        assert "420 tensors, alpha 32" in capfd.readouterr().out
    finally:
        path.unlink()


# ---- llama-server against transformers: `make llama-server`, then `make test-long` ----

TOKENS = 48
QUESTIONS = [row["user"] for row in read_jsonl("questions.jsonl")][:10]
QUESTIONS += [row["question"] for row in read_jsonl("retention_prompts.jsonl")][: 20 - len(QUESTIONS)]


PRECISE = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")  # its own cache is in 16 bits


class LlamaServer:
    """llama-server on a free port, with the files that are named."""

    def __init__(self, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.root = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = to_gguf.MADE / "llama-server.log"
        command = [to_gguf.find_server(), *map(str, arguments), "--jinja", "--port", self.root.rpartition(":")[2]]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, *PRECISE, "-t", "2", "-c", "4096", "--parallel", "1"], stdout=file, stderr=subprocess.STDOUT
            )

    def __enter__(self):
        while self.process.poll() is None:
            try:
                serve.ask(f"{self.root}/health", timeout=5)
                return self
            except OSError:  # not there yet, or still loading
                time.sleep(0.2)
        raise AssertionError(self.log.read_text(errors="replace")[-500:])

    def __exit__(self, *_):
        serve.stop(self.process)

    def reply(self, question):
        """Return (the prompt that the server made, the tokens of its greedy reply, its text, why it ended)."""
        messages = [{"role": "user", "content": question}]
        prompt = serve.ask(f"{self.root}/apply-template", {"messages": messages})["prompt"]
        # The chat address gives no tokens that end inside a character, such as an emoji's first ones.
        body = {"prompt": prompt, "temperature": 0, "n_predict": TOKENS, "return_tokens": True}
        tokens = serve.ask(f"{self.root}/completion", body)["tokens"]
        body = {"messages": messages, "temperature": 0, "max_tokens": TOKENS}
        choice = serve.ask(f"{self.root}/v1/chat/completions", body)["choices"][0]
        return prompt, tokens, choice["message"]["content"], choice["finish_reason"]


def greedy(model, tokenizer, prompts, stops):
    """Return the tokens that transformers decodes greedily in 32 bits, up to the first stop token and with it."""
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**batch, do_sample=False, max_new_tokens=TOKENS, eos_token_id=list(stops))
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    ends = [next((place for place, token in enumerate(row) if token in stops), TOKENS) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


def hold_against_transformers(model, source, *files):
    """Serve files with llama-server; prompts, tokens and ends must be those of a model in transformers."""
    tokenizer, stops = AutoTokenizer.from_pretrained(source), set(to_gguf.stop_tokens(source))
    with LlamaServer(*files) as server:
        replies = [server.reply(question) for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                             add_generation_prompt=True) for question in QUESTIONS]  # fmt: skip
    without_bos = [prompt.removeprefix(tokenizer.bos_token or "") for prompt in prompts]
    assert [prompt.removeprefix(tokenizer.bos_token or "") for prompt, *_ in replies] == without_bos
    expected, ended = greedy(model, tokenizer, prompts, stops), set()
    spoken_by_both = [([token for token in tokens if token not in stops], [token for token in wanted if token not in stops])
                      for (_, tokens, _, _), wanted in zip(replies, expected, strict=True)]  # fmt: skip
    apart = [number for number, (theirs, ours) in enumerate(spoken_by_both) if theirs != ours]
    assert not apart, f"{len(apart)} of {len(QUESTIONS)} replies differ: {apart}"
    for (_, _, text, reason), wanted in zip(replies, expected, strict=True):
        stopped = wanted[-1] in stops
        spoken = wanted[:-1] if stopped else wanted
        whole = tokenizer.decode(spoken, skip_special_tokens=True).rstrip("\ufffd")  # a cut may part a character
        assert text.strip() == whole.strip()
        assert reason == ("stop" if stopped else "length")
        ended.add(stopped)
    assert True in ended, "no reply ended, so the stop tokens were not tried"


@pytest.fixture
def saved_by():
    """A function that returns what a notebook saved, where that and llama-server are here."""

    def find(folder):
        if to_gguf.find_server() is None:
            pytest.skip(to_gguf.NO_SERVER)
        if not folder.exists():
            pytest.skip(f"{folder.relative_to(PROJECT)} is not here: `make run NOTEBOOK={folder.parent.name[:2]}`")
        return folder

    return find


@pytest.mark.long
@pytest.mark.parametrize(("number", "kind"), [("02", "f16"), ("04", "f32")])
def test_llama_server_writes_transformers_tokens(number, kind, saved_by):
    from transformers import AutoModelForCausalLM

    source = saved_by(RUNS[number])
    path = to_gguf.make(str(source), kind)
    try:
        hold_against_transformers(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), source, "-m", path)
    finally:
        path.unlink()


@pytest.mark.long
def test_llama_server_writes_an_adapter_s_tokens(saved_by):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, base = saved_by(RUNS["04"].parent / "lora_main"), FAMILIES / "gemma"
    files = [to_gguf.make(str(base), "f32"), to_gguf.make(str(adapter), "f32", as_adapter=True)]
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(model, str(adapter))
        hold_against_transformers(tuned, adapter if (adapter / "generation_config.json").exists() else base,
                                  "-m", files[0], "--lora", files[1])  # fmt: skip
    finally:
        for path in files:
            path.unlink()


def test_what_make_gguf_says_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr(to_gguf, "SERVER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert to_gguf.find_server() is None
    with pytest.raises(saved.SavedError, match="^cmake is not here; install it"):
        to_gguf.build_server()
    built = tmp_path / "build" / "bin" / "llama-server"
    built.parent.mkdir(parents=True)
    built.touch()
    assert to_gguf.find_server() == str(built)
