"""The stand-in Hub speaks the Hub's language to the installed libraries, and its faults end in clear sentences.

The libraries read the Hub's address when they are imported, so one child process (hub_scenarios.py) runs all scenarios.
"""

import hashlib
import http.client
import json
import re
import subprocess
import sys

import pytest
import stand_in_hub
from conftest import PROJECT, read_jsonl
from hub_scenarios import TOKEN

GPT_OSS, QWEN = "unsloth/gpt-oss-20b-unsloth-bnb-4bit", "unsloth/Qwen3-4B-Instruct-2507"
OWN_WEIGHTS = "openai/gpt-oss-20b"
GEMMA, GSM8K = "google/gemma-2-9b-it", "openai/gsm8k"
THINKING = "HuggingFaceH4/Multilingual-Thinking"


@pytest.fixture(scope="module")
def came(stand_in_root):
    """What came of every scenario, by its name."""
    command = [sys.executable, "tests/hub_scenarios.py", str(stand_in_root)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    results = json.loads(result.stdout.splitlines()[-1])
    failed = {name: seen["failed"] for name, seen in results.items() if isinstance(seen, dict) and "failed" in seen}
    assert not failed, "\n".join(failed.values())
    return results


def is_one_sentence(text, *words):
    """Say whether a NotebookError's message is short, on one line, without a token, and holds these words."""
    assert "\n" not in text and "Traceback" not in text and TOKEN not in text, text
    assert not text.startswith(("no error", "RemoteProtocolError", "IndexError")), text
    assert len(text) < 700, text
    for word in words:
        assert word in text, f"{word!r} is missing in {text!r}"


def test_ids_and_revisions_are_the_notebooks():
    assert set(stand_in_hub.pinned_models()) == {OWN_WEIGHTS, GPT_OSS, QWEN, GEMMA}
    assert set(stand_in_hub.pinned_datasets()) == {
        THINKING, "shareAI/DPO-zh-en-emoji", "weitianwen/cmath", "mwpt5/MAWPS", GSM8K}  # fmt: skip
    pinned = {**stand_in_hub.pinned_models(), **stand_in_hub.pinned_datasets()}
    assert all(len(revision) == 40 and int(revision, 16) for revision in pinned.values())
    served = stand_in_hub.all_revisions()
    assert served["models/unsloth/gpt-oss-20b"] != served[f"models/{GPT_OSS}"]
    assert stand_in_hub.relatives(GPT_OSS) == {"unsloth/gpt-oss-20b": False}
    assert stand_in_hub.relatives(OWN_WEIGHTS) == {GPT_OSS: True, "unsloth/gpt-oss-20b": False}
    assert stand_in_hub.relatives(QWEN) == {f"{QWEN}-unsloth-bnb-4bit": True}
    assert stand_in_hub.relatives(GEMMA) == {"unsloth/gemma-2-9b-it": False, "unsloth/gemma-2-9b-it-bnb-4bit": True}


@pytest.fixture
def ask(tmp_path):
    """A Hub with one small repository; return (what sends it a request, the Hub)."""
    folder = tmp_path / "served" / "models" / "me" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    (tmp_path / "secret.txt").write_text("secret")
    with stand_in_hub.Hub(tmp_path / "served", {"models/me/mine": "c" * 40}) as hub:

        def send(method, path, **headers):
            connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            connection.close()
            return response.status, dict(response.headers), body

        yield send, hub


def test_a_small_file_has_git_s_hash_and_a_big_one_its_sha256(ask):
    send, hub = ask
    status, headers, body = send("HEAD", "/me/mine/resolve/main/config.json")
    path = hub.folder / "models" / "me" / "mine" / "config.json"
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True).stdout.strip()
    assert (status, headers["ETag"], headers["X-Repo-Commit"], body) == (200, f'"{git}"', "c" * 40, b"")
    status, headers, _ = send("HEAD", "/me/mine/resolve/main/model.safetensors")
    digest = hashlib.sha256(bytes(range(100))).hexdigest()
    assert status == 302 and headers["Location"].startswith(hub.url)
    assert (headers["X-Linked-ETag"], headers["X-Linked-Size"]) == (f'"{digest}"', "100")
    tree = json.loads(send("GET", "/api/models/me/mine/tree/main?recursive=true")[2])
    assert [(entry["path"], entry.get("lfs", {}).get("oid")) for entry in tree] == [
        ("config.json", None), ("model.safetensors", digest)]  # fmt: skip


def test_ranges_and_what_lies_outside(ask):
    send, _ = ask
    place = "/big-files/models/me/mine/resolve/main/model.safetensors"
    status, headers, body = send("GET", place, Range="bytes=97-")
    assert (status, headers["Content-Range"], body) == (206, "bytes 97-99/100", bytes([97, 98, 99]))
    assert send("GET", place, Range="bytes=100-")[0] == 416
    for path in ("../../../../secret.txt", "..%2F..%2F..%2F..%2Fsecret.txt"):
        status, headers, body = send("GET", f"/me/mine/resolve/main/{path}")
        assert status == 404 and headers["X-Error-Code"] == "EntryNotFound" and b"secret" not in body


def test_refusals_on_the_wire(ask):
    send, hub = ask
    path = "/me/mine/resolve/main/config.json"
    hub.faults += [stand_in_hub.Fault("*config.json", kind, after=9) for kind in ("busy", "down", "gated", "missing")]
    answers = [send("GET", path) for _ in range(5)]
    assert [status for status, _, _ in answers] == [429, 503, 401, 404, 200]
    assert answers[0][1]["Retry-After"] == "9" and answers[0][1]["RateLimit"].endswith("r=0;t=9")
    assert [answer[1].get("X-Error-Code") for answer in answers[2:4]] == ["GatedRepo", "RepoNotFound"]
    assert send("GET", "/me/mine/resolve/abc/config.json")[1]["X-Error-Code"] == "RevisionNotFound"
    assert [status for _, _, status in hub.requests] == [429, 503, 401, 404, 200, 404]


def test_the_prequantised_model_is_in_nf4_but_for_its_experts(stand_in_root):
    from safetensors import safe_open

    with safe_open(stand_in_root / "models" / GPT_OSS / "model.safetensors", "pt") as weights:
        attention = "model.layers.0.self_attn.q_proj.weight"
        assert weights.get_slice(attention).get_dtype() == "U8"
        assert f"{attention}.quant_state.bitsandbytes__nf4" in weights.keys()
        assert weights.get_slice("model.layers.0.mlp.experts.gate_up_proj").get_dtype() == "BF16"


def test_a_model_that_was_chosen_by_its_id_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stand_in_hub, "make_model", lambda shape, folder, tiny: None)
    monkeypatch.setattr(stand_in_hub, "write_prequantised", lambda source, folder: None)
    stand_in_hub.build_models(tmp_path, True, ["openai/gpt-oss-20b"])
    assert [path.name for path in tmp_path.glob("models/*/*")] == ["gpt-oss-20b"]
    stand_in_hub.build_models(tmp_path, True, ["gpt-oss-20b"])
    assert len(list(tmp_path.glob("models/*/*"))) > 2


def test_gpt_oss_holds_packed_experts_that_a_cpu_unpacks(stand_in_root):
    """OpenAI's names and layout; unpacked, the weights of the pre-quantised repository, by the table of four-bit values."""
    import torch
    from random_models import read_unpacked
    from safetensors import safe_open

    folder = stand_in_root / "models" / OWN_WEIGHTS
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4" and config["num_hidden_layers"] == 24
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.23.mlp.experts.gate_up_proj"
    assert name not in index and len(set(index.values())) == 3
    with safe_open(folder / index[f"{name}_blocks"], "pt") as weights:
        blocks, scales = weights.get_tensor(f"{name}_blocks"), weights.get_tensor(f"{name}_scales")
    assert (blocks.shape, scales.shape) == ((4, 256, 2, 16), (4, 256, 2)) and blocks.dtype == torch.uint8
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    low_first = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    by_hand = (values[low_first] * 2.0 ** (scales.long() - 127)[..., None]).flatten(-2).transpose(1, 2)
    read = read_unpacked(folder, "cpu").get_parameter(name)
    assert torch.equal(read.float(), by_hand)
    with safe_open(stand_in_root / "models" / GPT_OSS / "model.safetensors", "pt") as weights:
        assert torch.equal(weights.get_tensor(name), read)


def test_all_data_sets_load_with_their_configurations_and_splits(came):
    rows = {
        name: {split: count for split, (count, _) in parts.items()} for name, parts in came["datasets_load"].items()
    }
    assert rows == {
        THINKING: {"train": 300}, "shareAI/DPO-zh-en-emoji": {"train": 206}, "mwpt5/MAWPS": {"train": 204},
        "weitianwen/cmath": {"validation": 61, "test": 122}, f"{GSM8K} main": {"train": 320, "test": 80},
        f"{GSM8K} socratic": {"train": 320, "test": 80}}  # fmt: skip


def test_the_notebooks_read_the_very_rows_of_data(came):
    read = came["notebooks_read_them"]
    files = {"thinking": "multilingual_thinking.jsonl", "emoji": "emoji_chat.jsonl", "cmath": "cmath.jsonl",
             "mawps": "mawps.jsonl", "socratic": "gsm8k_socratic.jsonl", "test": "gsm8k_held_out.jsonl"}  # fmt: skip
    for name, file in files.items():
        assert read[name] == read_jsonl(file), name


def test_models_arrive_byte_for_byte_at_their_revisions(came):
    kinds = {}
    for name, seen in came["models_load"].items():
        kinds[name], has_template, same, files, sha, main, big = seen
        assert has_template and same and sha == main == stand_in_hub.pinned_models()[name]
        parts = [f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3)] if name == OWN_WEIGHTS else None
        assert {"config.json", "tokenizer.json", *big} <= set(files)
        assert big == (parts or ["model.safetensors"])
    assert kinds == {OWN_WEIGHTS: "gpt_oss", GPT_OSS: "gpt_oss", QWEN: "qwen3", GEMMA: "gemma2"}
    assert came["relatives_load"] == {
        GPT_OSS: "bitsandbytes", "unsloth/gpt-oss-20b": "mxfp4", f"{QWEN}-unsloth-bnb-4bit": "bitsandbytes",
        "unsloth/gemma-2-9b-it": None, "unsloth/gemma-2-9b-it-bnb-4bit": "bitsandbytes"}  # fmt: skip


def test_what_does_not_exist_raises_the_hubs_own_errors(came):
    assert came["nothing_of_that_name"] == [
        "RepositoryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError",
        "RemoteEntryNotFoundError"]  # fmt: skip


def test_wrong_names_end_in_a_sentence(came):
    model, revision, data, data_revision = came["wrong_names_in_a_notebook"]
    is_one_sentence(model, "nobody/nothing", "not a valid model identifier", "set MODEL")
    is_one_sentence(revision, QWEN, "0" * 40, "not a valid git identifier")
    is_one_sentence(data, "nobody/nothing", "Repository Not Found", "set DATASET")
    is_one_sentence(data_revision, THINKING, "0" * 40, "Invalid rev id", "the revision")


def test_a_busy_or_absent_hub_is_asked_again_after_the_time_it_names(came):
    """The first refusal is asked again at once; then the client waits a second longer than told, or ever longer."""
    assert came["busy_then_well"] == [QWEN, True, 3, [8]]
    assert came["down_then_well"] == [True, 3, [1, 2]]


def test_a_hub_that_stays_busy_or_down_ends_in_a_sentence(came):
    model, data = came["down_for_good"]
    is_one_sentence(model, QWEN, "couldn't connect", "Check the network")
    is_one_sentence(data, "mwpt5/MAWPS", "Check the network", "SOURCES")
    model, data = came["busy_for_good"]
    is_one_sentence(model, QWEN, "Check the network")
    is_one_sentence(data, THINKING, "Please check your connection", "set DATASET")


def test_a_download_that_was_cut_is_resumed_and_whole(came):
    """Cut at nine tenths, and at once when asked for the rest: the third request brings what was missing."""
    assert came["cut_then_well"] == [True, 1, 2]


def test_what_is_always_cut_is_never_taken_for_whole(came):
    verdict, whole_files, told, later = came["cut_for_good"]
    assert verdict == "RemoteProtocolError" and whole_files == 0 and later
    is_one_sentence(told, QWEN, "could not be loaded", "peer closed connection", "run again")
    data, rows_later = came["cut_in_a_data_set"]
    revision = stand_in_hub.pinned_datasets()[GSM8K]
    is_one_sentence(data, GSM8K, revision, "peer closed connection", "Check the network", "run again")
    assert rows_later == 320


def test_gated_and_missing_end_in_a_sentence(came):
    model, data = came["gated"]
    is_one_sentence(model, GEMMA, "gated repo", "accept its licence", "hf auth login")
    is_one_sentence(data, GSM8K, "gated repo", "accept its licence", "hf auth login")
    model, data, forbidden, unauthorised = came["gated_with_a_token"]
    is_one_sentence(model, GEMMA, "gated repo", "accept its licence")
    is_one_sentence(data, GSM8K, "gated repo", "accept its licence")
    assert forbidden > 0 and unauthorised == 0, "the token was not sent, so that a sentence could not show it"
    model, data, source = came["missing"]
    is_one_sentence(model, GEMMA, "not a valid model identifier", "set MODEL")
    is_one_sentence(data, THINKING, "Repository Not Found", "set DATASET")
    is_one_sentence(source, "weitianwen/cmath", "Repository Not Found", "set SOURCES")


def test_wrong_bytes_pass_the_library_and_are_found_by_their_hash(came):
    """huggingface_hub compares sizes, not hashes; verify_download names the file, and without it all is well again."""
    taken_for_right, damaged, named, then, later = came["wrong_hash"]
    assert taken_for_right is False
    is_one_sentence(damaged, QWEN, "model.safetensors is damaged", "sha256", "Delete", "run again")
    assert named.startswith("models--unsloth--Qwen3-4B-Instruct-2507/blobs/")
    assert then == "no error: None" and later is True
    is_one_sentence(came["wrong_hash_of_a_small_file"], "generation_config.json is damaged", "git-sha1")
    damaged, rows_made, rows = came["wrong_hash_in_a_data_set"]
    is_one_sentence(damaged, GSM8K, "main/train-00000-of-00001.parquet is damaged", "datasets--openai--gsm8k/blobs/")
    assert rows_made == 0, "a row was made from a damaged file, and would be found again in the cache"
    assert rows == 320


def test_what_is_not_verified(came):
    """A local folder asks nothing of the Hub; without the listing nobody is stopped; what is gated, is said."""
    assert came["nothing_to_verify"] == ["no error: None", 0]
    assert came["verify_without_a_listing"] == "no error: None"
    is_one_sentence(came["verify_what_is_gated"], GEMMA, "GatedRepoError", "hf auth login")


def test_a_repository_of_pickles_alone_is_refused(came):
    is_one_sentence(came["pickles_alone"], "reader/pickled holds no weights as safetensors, only pytorch_model.bin")


def test_the_command_gives_its_environment_and_passes_the_exit_status_on(tmp_path):
    """It builds, serves and runs; no model is built for a shape that nobody asked for."""
    show = "import os, urllib.request as u; a = os.environ['HF_ENDPOINT']; print(a, os.environ['PROFILE'], "
    show += "os.environ['HF_HOME'], u.urlopen(a + '/api/datasets/openai/gsm8k').status); raise SystemExit(7)"
    command = [sys.executable, "tools/stand_in_hub.py", str(tmp_path), "--tiny", "--models", "--", sys.executable]
    environment = {"PATH": "", "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([*command, "-c", show], cwd=PROJECT, capture_output=True, text=True, env=environment)
    assert result.returncode == 7, result.stderr
    url, profile, home, status = result.stdout.split()
    assert url.startswith("http://127.0.0.1:") and (profile, status) == ("full", "200")
    assert home == str(tmp_path / "tiny" / "home")


def test_nothing_is_pushed_unless_asked(came):
    assert came["push_nothing"] == ["", "no error: None", 0]


def test_what_is_pushed_is_said_before_and_arrives_private_and_equal(came):
    """Adapter and merged copy alone: no replies, no checkpoint, no half-written folder."""
    told, printed, writes, adapter, merged, stranger, card = came["push_what_was_saved"]
    assert told == "no error: None"
    files = {"adapter": ["README.md", "adapter_model.safetensors", "training.json"],
             "merged": ["README.md", "model.safetensors", "training.json"]}  # fmt: skip
    assert [adapter, merged] == [[True, True, files["adapter"]], [True, True, files["merged"]]]
    first, second, *after = printed.splitlines()
    assert re.fullmatch(r"run/adapter goes to http://127\.0\.0\.1:\d+/reader/habit, private: 3 files, 3,14\d,\d{3} bytes "
                        r"\(README.md, adapter_model.safetensors, training.json\)", first)  # fmt: skip
    assert "/reader/habit-merged, private: 3 files" in second and [line[:8] for line in after] == ["pushed: "] * 2
    assert stranger == "RepositoryNotFoundError"
    assert sum(path == "/api/repos/create" for _, path in writes) == 2
    assert sum(method == "PUT" for method, _ in writes) == 2 and sum("/commit/main" in path for _, path in writes) == 2
    assert all("reader/habit" in path or path.startswith(("/api/repos/create", "/api/validate-yaml", "/lfs/"))
               for _, path in writes)  # fmt: skip
    assert TOKEN not in printed + card
    for words in (f"base_model: {QWEN}", "library_name: peft", "# habit", f"`{QWEN}`", f'`"{THINKING}"`', '"LORA_RANK": 8',
                  "| harmony_parsed | 0.25 (n = 40) | 0.975 (n = 40) |", "| supervised |  | 1 (n = 9) |"):  # fmt: skip
        assert words in card, f"{words!r} is missing in the model card"


def test_a_second_push_goes_on_in_the_same_private_repository(came):
    told, private, equal, _ = came["push_again"]
    assert told == "no error: None" and private and equal


def test_nothing_is_pushed_to_a_public_repository(came):
    told, files = came["push_to_what_is_public"]
    is_one_sentence(told, "reader/open is there already and public", "Make it private")
    assert files == 0


def test_every_push_that_fails_is_a_sentence(came):
    no_slash, no_token, may_not_create, may_not_write, unknown, offline, no_network = came["push_that_fails"]
    is_one_sentence(no_slash, 'PUSH_TO_HUB is "habit"', '"you/name"')
    is_one_sentence(no_token, "there is no token", "hf auth login")
    is_one_sentence(
        may_not_create, "Nothing was pushed to reader/read_only", "may not write there", "hf upload", "--private"
    )
    is_one_sentence(may_not_write, "Nothing was pushed to reader/read_only", "may not write there")
    is_one_sentence(unknown, "may not write there", "What was saved is whole")
    is_one_sentence(offline, "told to stay off the network", "HF_HUB_OFFLINE=0")
    is_one_sentence(no_network, "Nothing was pushed to reader/habit", "ConnectError", "Check the network", "hf upload")


def test_a_fault_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no fault of the kind 'slow'"):
        stand_in_hub.Fault("*", "slow")


def test_an_error_without_a_word_is_a_sentence_all_the_same(came):
    model, data = came["nothing_said"]
    is_one_sentence(model, QWEN, "OSError", "Check the network", "set MODEL")
    is_one_sentence(data, THINKING, "OSError", "Check the network", "set DATASET")
