"""Functions of notebook 02: normalising, cleaning, mixing and judging, with right, wrong and hostile input."""

import glob
import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import pytest
from conftest import PROJECT, read_jsonl


@pytest.fixture(scope="module")
def nb(setup_02):
    return SimpleNamespace(**setup_02)


def contents(row):
    return [message["content"] for message in row["messages"]]


# Normalising


def test_emoji_rows_take_the_configured_language_and_fall_back_to_the_other(nb):
    row = {"question": "Tea?", "answer_zh": "好的 🍵", "answer_en": "Sure! 🍵"}
    assert contents(nb.normalize_emoji(row, "en")) == ["Tea?", "Sure! 🍵"]
    assert contents(nb.normalize_emoji(row, "zh")) == ["Tea?", "好的 🍵"]
    fallen = nb.normalize_emoji({**row, "answer_en": None}, "en")
    assert contents(fallen)[1] == "好的 🍵" and "fall-back language" in fallen["tags"]
    assert "fall-back language" not in nb.normalize_emoji(row, "zh")["tags"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer_en": "Hi 🙂"}, "missing field question"),
        ({"question": "Tea?", "answer_en": "", "answer_zh": ""}, "empty answer"),
        ({"question": "Tea?", "answer_en": " \u200b\u0007 "}, "empty answer"),
        ({"question": "", "answer_en": "Hi 🙂"}, "empty user message"),
        ({"question": "Tea?", "answer_en": "CafÃ© time"}, "broken encoding"),
        ({"question": "Tea\ufffd?", "answer_en": "Hi"}, "broken encoding"),
        ({"question": float("nan"), "answer_en": "Hi"}, "missing field question"),
        ({"question": True, "answer_en": "Hi"}, "missing field question"),
    ],
)
def test_emoji_rows_that_cannot_be_used_have_a_reason(nb, row, reason):
    with pytest.raises(nb.RowError, match=reason):
        nb.normalize_emoji(row, "en")


def test_long_answers_are_cut_at_a_sentence(nb):
    long = "A sentence of some length, with 🐝 in it! " * 120
    row = nb.normalize_emoji({"question": "Bees?", "answer_en": long}, "en")
    answer = contents(row)[1]
    assert 2900 < len(answer) <= 3000 and answer.endswith("in it!") and "cut" in row["tags"]
    assert nb.cut_at_sentence("x" * 50, 10) == "x" * 10
    assert nb.cut_at_sentence("你好。再见。" * 10, 20).endswith("。")


def test_cleaning_spares_emoji_chinese_and_accents(nb):
    keep = "❤️ 👩‍🍳 👨‍👩‍👧 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇫🇷 👋🏽 1️⃣ naïve Ünïcödé 你好，世界！ Привет שלום می‌خواهم"
    assert nb.clean_text(keep) == keep
    assert nb.clean_text("a\u0007b\u200bc\u202ed\ufeff\x00\x85") == "abcd"
    assert nb.clean_text(" one\r\ntwo\tthree\r") == "one\ntwo\tthree"
    assert nb.clean_text("e\u0301") == "é"
    assert nb.clean_text("ok \ud83d end") == "ok  end"


def test_cmath(nb):
    row = nb.normalize_cmath(
        {"grade": 3, "input": "三加四等于几？", "golden": "7", "reasoning_step": 1, "num_digits": 1}
    )
    assert contents(row) == ["三加四等于几？", "答案是7。"] and row["grade"] == 3 and row["difficulty"] == 1
    row = nb.normalize_cmath({"question": "一半是几分之几？", "golden": "1/2"})
    assert contents(row)[1] == "答案是1/2。" and row["grade"] is None
    for broken, reason in (
        ({"question": "几？", "golden": "很多"}, "unparsable number"),
        ({"question": "几？"}, "missing field golden"),
        ({"golden": "7"}, "missing field question or input"),
        ({"question": "几？", "golden": "1/0"}, "unparsable number"),
    ):
        with pytest.raises(nb.RowError, match=reason):
            nb.normalize_cmath(broken)


MAWPS = {"Question": "N_00 pens and N_01 more?", "Numbers": "8.0 2.5", "Equation": "N_00 + N_01", "Answer": 10.5}


def test_mawps(nb):
    row = nb.normalize_mawps(MAWPS)
    assert contents(row) == ["8 pens and 2.5 more?", "8 + 2.5 = 10.5. The answer is 10.5."]
    assert row["difficulty"] == 1
    assert contents(nb.normalize_mawps({**MAWPS, "Numbers": [8.0, 2.5]}))[0] == "8 pens and 2.5 more?"
    disagrees = nb.normalize_mawps({**MAWPS, "Answer": 11})
    assert contents(disagrees)[1] == "The answer is 11." and "answer only" in disagrees["tags"]
    many = {**MAWPS, "Question": "N_10 and N_01?", "Numbers": " ".join(map(str, range(11)))}
    assert contents(nb.normalize_mawps(many))[0] == "10 and 1?"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Numbers": "8.0"}, "fewer Numbers than placeholders"),
        ({"Numbers": ""}, "fewer Numbers than placeholders"),
        ({"Numbers": "8.0 two"}, "unparsable number"),
        ({"Numbers": "8.0 nan"}, "unparsable number"),
        ({"Numbers": "8.0 inf"}, "unparsable number"),
        ({"Answer": "ten"}, "unparsable number"),
        ({"Answer": None}, "missing field Answer"),
        ({"Question": None}, "missing field Question"),
    ],
)
def test_mawps_rows_that_cannot_be_used(nb, change, reason):
    with pytest.raises(nb.RowError, match=reason):
        nb.normalize_mawps({**MAWPS, **change})


def test_equations_are_arithmetic_and_nothing_else(nb):
    assert nb.evaluate("(1 + 2) * 3 / 4") == Fraction(9, 4) and nb.evaluate("-0.1 + 0.3") == Fraction(1, 5)
    for hostile in ("__import__('os').system('true')", "1 / 0", "2 ** 9", "1 +", "", "x = 3", "(" * 500):
        assert nb.evaluate(hostile) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250 metres", "1250"), ("12,34", "12"), ("3/4", "3/4"), ("25%", "1/4"), ("２５％", "1/4"), ("¥3.50", "7/2"),
        ("-7", "-7"), ("−7 °C", "-7"), (".5", "1/2"), ("三十六", "36"), ("十五个", "15"), ("一百零五", "105"),
        ("两万三千", "23000"), ("三亿零二", "300000002"), ("二分之一", "1/2"), ("百分之二十", "1/5"), ("三点一四", "157/50"),
        ("none", None), ("", None), ("3/0", None),
    ],
)  # fmt: skip
def test_numbers(nb, text, value):
    assert nb.parse_number(text) == (None if value is None else Fraction(value))


def test_every_source_of_the_course_is_read_whole(nb):
    for pool, rows in nb.raw.items():
        assert len(rows[0]) == len(read_jsonl(nb.places[pool][0].removeprefix("data/")))
        assert not nb.reasons[pool], pool


# Files


def test_bad_lines_are_counted_and_the_rest_is_used(nb, tmp_path):
    good = json.dumps({"question": "Tea?", "answer_en": "Sure! 🍵"}, ensure_ascii=False)
    latin = '{"question": "Café?", "answer_en": "Oui"}'.encode("latin-1")
    text = "\ufeff" + good + "\n\n{not json\n[1, 2]\n" + '{"question": "A\u2028B?", "answer_en": "Yes 🙂"}' + "\n"
    (tmp_path / "mixed.jsonl").write_bytes(text.encode() + latin + b"\n")
    rows, refused = nb.read_lines(tmp_path / "mixed.jsonl")
    assert refused == {"not JSON": 1, "not an object": 1} and len(rows) == 3
    pool, reasons = nb.build_pool(rows, lambda row: nb.normalize_emoji(row, "en"), refused)
    assert len(pool) == 2 and reasons == {"not JSON": 1, "not an object": 1, "broken encoding": 1}


def test_a_file_that_stands_twice_gives_each_row_once(nb, tmp_path):
    for name in ("one.jsonl", "copy.jsonl"):
        (tmp_path / name).write_bytes((PROJECT / "data" / "mawps.jsonl").read_bytes())
    rows, _ = nb.read_lines(tmp_path)
    pool, _ = nb.build_pool(rows, nb.normalize_mawps)
    assert len(pool) == 408 and len(nb.deduplicate(pool)) == len(nb.pools["mawps"])


def test_parquet_is_read_too(nb, tmp_path):
    import pandas as pd

    pd.DataFrame(read_jsonl("emoji_chat.jsonl")[:5]).to_parquet(tmp_path / "rows.parquet")
    assert len(nb.build_pool(nb.read_lines(tmp_path)[0], lambda row: nb.normalize_emoji(row, "en"))[0]) == 5


def test_parquet_gives_the_rows_that_jsonl_gives(nb, tmp_path):
    """A null is no text "nan", and lists within a row stay lists."""
    import pandas as pd

    rows = [{"instruction": "And 3?", "input": None, "output": "Four.", "history": [["One?", "Two."], ["2?", "3."]]},
            {"instruction": "5?", "input": "Now.", "output": "Six.", "history": []}]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "mine.parquet")
    read, _ = nb.read_lines(tmp_path / "mine.parquet")
    assert [nb.normalize_alpaca(row) for row in read] == [nb.normalize_alpaca(row) for row in rows]
    assert contents(nb.normalize_alpaca(read[0])) == ["One?", "Two.", "2?", "3.", "And 3?", "Four."]


def test_a_line_nested_too_deeply_costs_that_line(nb, tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + '\n{"a": 1}\n')
    assert nb.read_lines(tmp_path / "deep.jsonl") == ([{"a": 1}], {"not JSON": 1})


def test_a_source_that_is_not_there_is_one_sentence(nb):
    with pytest.raises(nb.NotebookError, match="SOURCES names data/nothing.jsonl for mawps"):
        nb.read_source("mawps", "data/nothing.jsonl", "", "")
    with pytest.raises(nb.NotebookError, match="could not be loaded from the Hub"):
        nb.read_source("mawps", "nobody/nothing", "main", "")


def test_rows_of_an_unexpected_shape_are_counted(nb):
    pool, reasons = nb.build_pool([{"messages": 3}, {"messages": [1]}, {"tools": []}], nb.normalize_tools)
    assert len(pool) == 0 and sum(reasons.values()) == 3


# Mixing


def pool_of(nb, name, count):
    rows = ({"question": f"{name} number {i}?", "answer_en": f"Answer {i} 🙂"} for i in range(count))
    return nb.build_pool(rows, lambda row: nb.normalize_emoji(row, "en"))[0]


@pytest.fixture(scope="module")
def three(nb):
    return {"a": pool_of(nb, "a", 100), "b": pool_of(nb, "b", 40), "c": pool_of(nb, "c", 60)}


def sources(mixture):
    return Counter(messages[0]["content"][0] for messages in mixture["messages"])


def test_duplicates_go_within_and_across_pools(nb):
    left, right = pool_of(nb, "a", 10), pool_of(nb, "a", 15)
    seen = set()
    assert len(nb.deduplicate(left, seen)) == 10 and len(nb.deduplicate(right, seen)) == 5
    assert len(nb.deduplicate(nb.concatenate_datasets([left, left]))) == 10


def test_the_split_keeps_questions_together(nb, capsys):
    twins = nb.build_pool(
        [{"question": q, "answer_en": f"{i} 🙂"} for i in range(30) for q in (f"Tea {i}?", f"tea  {i} !")],
        lambda row: nb.normalize_emoji(row, "en"),
    )[0]
    train, validation = nb.split_pools({"t": twins, "one": pool_of(nb, "z", 1)}, 0.02, 20, 7)
    assert not set(train["t"]["question_hash"]) & set(validation["t"]["question_hash"])
    assert 18 <= len(validation["t"]) <= 30 and len(train["one"]) == 1 and len(validation["one"]) == 0
    assert "one has too few rows" in capsys.readouterr().out
    again = nb.split_pools({"t": twins}, 0.02, 20, 7)[1]["t"]["hash"][:]
    assert again == nb.split_pools({"t": twins}, 0.02, 20, 7)[1]["t"]["hash"][:]


def test_the_course_s_split_is_large_enough_and_stratified(nb):
    assert len(nb.validation_rows) >= 100
    for pool, rows in nb.pools.items():
        share = len(nb.validation_pools[pool]) / len(rows)
        assert 0.1 < share < 0.2 and len(nb.train_pools[pool]) + len(nb.validation_pools[pool]) == len(rows)


def test_resampling_is_exact_and_repeats_only_what_it_must(nb, three):
    mixture = nb.mix(three, {"a": 0.4, "b": 0.3, "c": 0.3}, "resample", 42)
    assert len(mixture) == 180 and sources(mixture) == {"a": 72, "b": 54, "c": 54}
    counts = Counter(mixture["hash"])
    assert max(counts.values()) == 2 and sum(n - 1 for n in counts.values()) == 54 - 40
    assert mixture["hash"][:] == nb.mix(three, {"a": 4, "b": 3, "c": 3}, "resample", 42)["hash"][:]
    assert mixture["hash"][:] != nb.mix(three, {"a": 4, "b": 3, "c": 3}, "resample", 43)["hash"][:]
    assert sources(nb.mix(three, {"a": 1, "b": 1, "c": 1}, "resample", 1, 100)) == {"a": 34, "b": 33, "c": 33}
    assert sources(nb.mix(three, {"a": 1}, "resample", 1, 250)) == {"a": 250}


def test_interleaving_gives_every_row_once_whatever_the_weights(nb, three):
    for weights in ({"a": 0.4, "b": 0.3, "c": 0.3}, {"a": 0.1, "b": 0.8, "c": 0.1}):
        mixture = nb.mix(three, weights, "interleave", 42)
        assert sources(mixture) == {"a": 100, "b": 40, "c": 60} and len(set(mixture["hash"])) == 200
    early = sources(mixture.select(range(40)))
    assert early["b"] > 20


def test_weights(nb, three, capsys):
    assert nb.normalize_weights({"a": 4, "b": 3, "c": 3}, three) == {"a": 0.4, "b": 0.3, "c": 0.3}
    for useless in ({"a": 0, "b": 0, "c": 0}, {"a": -1, "b": 2, "c": 2}, {}, {"a": float("nan")}, {"a": float("inf")}):
        assert set(nb.normalize_weights(useless, three).values()) == {1 / 3}
        assert "every pool gets the same" in capsys.readouterr().out
    with pytest.raises(nb.NotebookError, match=r"WEIGHTS names \['emojis'\]; the pools are"):
        nb.normalize_weights({"emojis": 1}, three)
    with pytest.raises(nb.NotebookError, match="MIX_MODE"):
        nb.mix(three, {"a": 1}, "blend", 1)


def test_a_source_without_usable_rows_is_left_out_and_told(nb, three):
    empty = pool_of(nb, "e", 0)
    usable = nb.usable_pools({**three, "e": empty}, {"a": 1, "b": 1, "c": 1, "e": 1})
    assert set(usable[0]) == set(three) and set(usable[1]) == set(three)
    with pytest.raises(nb.NotebookError, match="No source gave a usable row"):
        nb.usable_pools({"e": empty}, {"e": 1})


def test_the_export_reads_back_equal(nb, three, tmp_path):
    odd = nb.build_pool(
        [{"question": 'Line\u2028break / slash \\ "quote" 👩‍🍳 你好?', "answer_en": "Yes 🏴󠁧󠁢󠁳󠁣󠁴󠁿\nand\tno"}],
        lambda row: nb.normalize_emoji(row, "en"),
    )[0]
    mixture = nb.concatenate_datasets([odd, nb.pools["tool_calls"], three["b"]])
    place = tmp_path / "a [b] c" / "mixture"  # a project's path may hold brackets and spaces
    nb.export_mixture(mixture, place)
    text = (place / "mixture.jsonl").read_text(encoding="utf-8")
    assert "你好" in text and "👩‍🍳" in text and "\\u4f60" not in text
    again = nb.load_dataset(
        "json", data_files=glob.escape(str(place / "mixture.jsonl")), features=nb.FEATURES, split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert again[:] == mixture[:]
    assert nb.datasets.load_from_disk(place / "arrow")[:] == mixture[:]


def test_the_benchmark_runs_the_notebook_s_own_functions():
    command = [sys.executable, "benchmarks/data_mix.py", "--one", "3000"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    measured = json.loads(result.stdout.split("RESULT ")[1])
    assert set(measured["seconds"]) == {"normalise", "deduplicate", "write pools", "split", "mix", "export"}
    assert measured["rows"] == 3000 and 2500 < measured["mixture"] < 2700 and measured["peak_bytes"] > 0


# Your own file


def test_alpaca_rows_become_turns(nb):
    row = nb.normalize_alpaca(
        {
            "instruction": "Translate.",
            "input": "bonjour",
            "output": "hello",
            "history": [["Hi", "Hello!"]],
            "system": "Be brief.",
        }
    )
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert contents(row) == ["Be brief.", "Hi", "Hello!", "Translate.\n\nbonjour", "hello"]
    with pytest.raises(nb.RowError, match="missing field output"):
        nb.normalize_alpaca({"instruction": "Translate."})
    with pytest.raises(nb.RowError, match="empty assistant message"):
        nb.normalize_alpaca({"instruction": "Translate.", "output": ""})


def test_thoughts_move_to_their_own_field(nb):
    row = nb.normalize_messages(
        {"messages": [{"role": "user", "content": "2 + 3?"},
                      {"role": "assistant", "content": "<think>\nFive.\n</think>\n\n5"}]}
    )  # fmt: skip
    assert row["messages"][1]["reasoning_content"] == "Five." and row["messages"][1]["content"] == "5"
    assert nb.split_thinking("<think></think>\nhello") == (None, "hello")
    assert nb.split_thinking("a <think> b") == (None, "a <think> b")


ASK, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 🙂"}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "messages is missing"),
        ({"messages": "Hi"}, "messages is missing"),
        ({"messages": [ASK, {"role": "robot", "content": "x"}]}, "unknown roles"),
        ({"messages": [ASK]}, "the last message is the user's"),
        ({"messages": [REPLY]}, "does not begin with the user"),
        ({"messages": [ASK, ASK, REPLY]}, "two messages of one role"),
        ({"messages": [ASK, REPLY, {"role": "system", "content": "x"}, ASK, REPLY]}, "not the first"),
        ({"messages": [ASK, {"role": "assistant", "content": " \n"}]}, "an empty assistant turn"),
        ({"messages": [{"role": "user", "content": "x<|im_start|>system"}, REPLY]}, "<|im_start|> typed in the user's"),
        ({"messages": [ASK, {"role": "assistant", "content": "y<|endoftext|>"}]}, "<|endoftext|> typed in the assistant's"),
        ({"messages": [{"role": "user", "content": "word " * 3000}, REPLY]}, "tokens, more than 1024"),
        ({"messages": [ASK, {"role": "tool", "tool_call_id": "c", "content": "1"}, REPLY]}, "tool result without its call"),
        ({"messages": [{"content": "Hi"}, REPLY]}, "unknown roles ['None']"),
        ({"messages": [{"role": ["user"]}, REPLY]}, "unknown roles"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "rain"}]}, REPLY]}, "of an unexpected shape"),
        ({"messages": [ASK, REPLY], "tools": ["rain"]}, "of an unexpected shape"),
    ],
)  # fmt: skip
def test_check_dataset_names_row_and_fault(nb, row, fault):
    table = nb.check_dataset([{"messages": [ASK, REPLY]}, row], nb.tokenizer)
    assert list(table.index) == [2] * len(table) and any(fault in text for text in table["fault"])


TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}]  # fmt: skip


def call(arguments, name="rain", call_id="c1"):
    calls = [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": "", "tool_calls": json.dumps(calls)}


RESULT = {"role": "tool", "tool_call_id": "c1", "content": "no"}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([ASK, call({"city": "Rome"}), RESULT, REPLY], None),
        ([ASK, call('{"city": "Rome"}'), RESULT, REPLY], None),
        ([ASK, RESULT, REPLY], "tool result without its call"),
        ([ASK, call({"city": "Rome"}), {**RESULT, "tool_call_id": "c2"}, REPLY], "tool result without its call"),
        ([ASK, call({"city": "Rome"}), REPLY], "tool call without a result"),
        ([ASK, call({"city": "Rome"})], "tool call without a result"),
        ([ASK, call({"city": "Rome"}), RESULT], "no summary"),
        ([ASK, call({"city": 3}), RESULT, REPLY], "arguments against the schema"),
        ([ASK, call({}), RESULT, REPLY], "arguments against the schema"),
        ([ASK, call({"city": "Rome", "when": "now"}), RESULT, REPLY], "arguments against the schema"),
        ([ASK, call("{city: Rome"), RESULT, REPLY], "arguments against the schema"),
        ([ASK, call({"city": "Rome"}, name="snow"), RESULT, REPLY], "call of an unknown tool"),
    ],
)
def test_tool_conversations(nb, messages, fault):
    faults = nb.tool_faults(messages, TOOLS)
    assert not faults if fault is None else any(fault in text for text in faults)


# Judging replies


def test_usable_replies(nb):
    end = "<|im_end|>"
    assert nb.read_reply(f"Fine. 🙂{end}", end)["usable"]
    assert nb.read_reply(f"No, no, no, it is fine.{end}", end)["usable"]
    assert nb.read_reply(f"1, 2, 3, 4, 5, 6, 7, 8. Then 1000000.{end}", end)["usable"]
    assert nb.read_reply(f"Fine. 🙂{end}{end}{end}", end) == nb.read_reply(f"Fine. 🙂{end}", end)  # a GPU's padding
    for bad in ("", end, "It never ends", f"🎉🎉🎉🎉🎉🎉{end}", f"a cat and a cat and a cat and a cat and a cat and a cat{end}",
                f"Well<think> then{end}", f"Bonjour <tool_call> ami{end}", f"one<|im_start|>user{end}"):  # fmt: skip
        assert not nb.read_reply(bad, end)["usable"], bad


def test_emoji_are_counted_as_people_see_them(nb):
    assert nb.emoji_in("👩‍🍳❤️🇫🇷👋🏽1 © 2 → 3 ™ #") == ["👩‍🍳", "❤️", "🇫🇷", "👋🏽"]
    assert nb.emoji_in("没有 none * 5") == []


KEYS = {"name": "string", "age": "integer", "fee": "number", "member": "boolean", "tags": "array"}
VALID = {"name": "Ada", "age": 36, "fee": 2.5, "member": True, "tags": []}


@pytest.mark.parametrize(
    ("reply", "valid"),
    [
        (json.dumps(VALID), True),
        (" " + json.dumps(VALID) + "\n", True),
        (json.dumps({**VALID, "fee": 3}), True),
        (json.dumps({**VALID, "age": None, "missing": ["age"]}), True),
        (json.dumps({**VALID, "missing": []}), True),
        (json.dumps({**VALID, "age": None, "missing": []}), False),
        (json.dumps({**VALID, "age": None}), False),
        (json.dumps({**VALID, "missing": ["size"]}), False),
        (json.dumps({**VALID, "missing": "age"}), False),
        (json.dumps({**VALID, "age": "36"}), False),
        (json.dumps({**VALID, "age": True}), False),
        (json.dumps({**VALID, "age": 36.5}), False),
        (json.dumps({**VALID, "extra": 1}), False),
        (json.dumps({"name": "Ada"}), False),
        (json.dumps([VALID]), False),
        ("```json\n" + json.dumps(VALID) + "\n```", False),
        (json.dumps(VALID) + " There you go!", False),
        ("{'name': 'Ada'}", False),
        ("", False),
    ],
)
def test_json_validity(nb, reply, valid):
    assert nb.json_valid(reply, KEYS) is valid


def test_tool_calls(nb):
    good = '<tool_call>\n{"name": "rain", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert nb.tool_call_valid(good, TOOLS)
    for bad in (good.replace("rain", "snow"), good.replace('"Rome"', "3"), good + " Sure.", "It is raining.",
                good.replace("</tool_call>", ""), good.replace('{"city": "Rome"}', "null"), '{"name": "rain"}'):  # fmt: skip
        assert not nb.tool_call_valid(bad, TOOLS), bad


@pytest.mark.parametrize(
    ("reply", "reference", "right"),
    [
        ("8 - 2 = 6. The answer is 6.", "6", True),
        ("The answer is 6, since 8 - 2 = 6.", "6.0", True),
        ("答案是17。", "17", True),
        ("一共有三十六个", "36", True),
        ("She pays $1,250.00", "1250", True),
        ("0.75 of the cake", "3/4", True),
        ("涨了25%", "25%", True),
        ("25%", "25", True),
        ("The answer is 7.", "6", False),
        ("6 apples, then 5", "6", False),
        ("I don't know", "6", False),
        ("", "6", False),
    ],
)
def test_exact_match(nb, reply, reference, right):
    assert nb.exact_match(reply, reference) is right


def test_every_reference_answer_is_judged_right(nb):
    """What a perfect model would answer counts as right, for every held-out prompt."""
    for row in read_jsonl("held_out_skills.jsonl"):
        prompt = {**row, "kind": row["source"], "request": nb.request_of(row)}
        if row["source"] == "json_only":
            assert nb.judge(prompt, {"text": row["answer"]})
        elif row["source"] == "tool_calls":
            assert nb.judge(
                prompt, {"text": f"<tool_call>\n{json.dumps(row['call'], ensure_ascii=False)}\n</tool_call>"}
            )
        elif row["source"] == "cmath":
            assert nb.judge(prompt, {"text": contents(nb.normalize_cmath(row))[1]})
        elif row["source"] == "mawps":
            assert nb.judge(prompt, {"text": contents(nb.normalize_mawps(row))[1]})


def test_tool_descriptions_reach_the_model_as_the_template_writes_them(nb):
    prompt = next(row for row in read_jsonl("held_out_skills.jsonl") if row["source"] == "tool_calls")
    conversation = nb.to_conversation({**prompt, "request": prompt["messages"][-1]["content"]})
    assert nb.render(conversation) == nb.render(prompt["messages"], prompt["tools"])
    kept = nb.keep_as_text(conversation, nb.tokenizer)  # as `generate_replies` does: the template's own tags stay
    assert nb.render(kept) == nb.render(conversation) and "<tool_call>" in nb.render(kept)
    typed = [{"role": "user", "content": "x<tool_call>y"}]
    assert "<tool_call>" not in nb.render(nb.keep_as_text([*conversation[:1], *typed], nb.tokenizer)).split("x<")[1]


# Masks


def test_markers_and_no_thought_in_the_instruct_template(nb):
    assert (nb.instruction, nb.response) == ("<|im_start|>user\n", "<|im_start|>assistant\n")
    assert not any("<think>" in nb.render(row["messages"], row["tools"]) for row in nb.train_rows)


def learnt(nb, row, every_turn):
    dataset, dropped = nb.tokenize_rows([row])
    dataset = nb.label_rows(dataset, nb.tokenizer, nb.instruction, nb.response)
    labelled = {**dataset[0], "every_turn": every_turn}
    labelled |= nb.keep_turns(labelled, nb.tokenizer, nb.instruction)
    counts = nb.check_masks(nb.Dataset.from_list([labelled]), nb.tokenizer,
                            nb.instruction.replace("user", "nobody") if every_turn else nb.instruction, nb.response)  # fmt: skip
    assert counts["missing"] == counts["extra"] == 0 and not dropped
    spans, inside = [], False
    for token, label in zip(labelled["input_ids"], labelled["labels"], strict=True):
        if label != -100:
            spans = [*spans, [token]] if not inside else [*spans[:-1], [*spans[-1], token]]
        inside = label != -100
    return [nb.tokenizer.decode(span) for span in spans]


def test_which_turns_learn(nb):
    row = nb.normalize_alpaca({"instruction": "And 3?", "output": "Four 🙂", "history": [["One?", "Two."]]})
    assert learnt(nb, row, False) == ["Four 🙂<|im_end|>"]
    assert learnt(nb, row, True) == ["Two.<|im_end|>", "Four 🙂<|im_end|>"]
    tool = next(row for row in nb.pools["tool_calls"] if row["messages"][1]["tool_calls"].count('"id"') == 2)
    assert learnt(nb, tool, False) == [tool["messages"][-1]["content"] + "<|im_end|>"]
    calls, summary = learnt(nb, tool, True)
    assert calls.count("<tool_call>") == 2 and "tool_response" not in calls and summary == learnt(nb, tool, False)[0]


def test_typed_control_tokens_are_refused_and_counted(nb):
    good = nb.normalize_alpaca({"instruction": "Hi", "output": "Hello"})
    row = nb.normalize_alpaca({"instruction": "Hi.", "output": "Hello"})
    row["messages"][0]["content"] = "Hi<|im_end|>"  # as pools from the disk (POOLS) may bring it
    dataset, dropped = nb.tokenize_rows([row, good])
    assert len(dataset) == 1 and dropped == {"control token typed in the text": 1}
    with pytest.raises(nb.NotebookError, match="No row is left to train on"):
        nb.tokenize_rows([row])
    tool = nb.pools["tool_calls"][0]
    called = next(message for message in tool["messages"] if message["tool_calls"])
    spoilt = [
        m | {"tool_calls": m["tool_calls"].replace('"id"', '"<|im_end|>"')} if m is called else m
        for m in tool["messages"]
    ]
    described = tool["tools"].replace("description", "<|im_start|>", 1)
    for row in (tool | {"messages": spoilt}, tool | {"tools": described}):
        assert nb.tokenize_rows([row, good])[1] == {"control token typed in the text": 1}


def test_typed_control_tokens_are_in_no_export(nb, tmp_path):
    """Every added token, in every place of a row: refused where rows are made, so neither pools nor mixture hold one."""
    from datasets import load_from_disk

    tokens = [token for token in nb.tokenizer.get_added_vocab() if token.startswith("<")]
    assert {"<|im_start|>", "<|im_end|>", "<tool_call>", "<|endoftext|>"} <= set(tokens)
    hostile = [{"instruction": f"Hi {token}", "output": "Hello"} for token in tokens]
    hostile += [{"instruction": "Hi", "output": f"Hello{token}you"} for token in tokens if "think" not in token]
    hostile += [{"instruction": "Hi", "output": "Hello", "history": [[f"a{token}", "b"]]} for token in tokens]
    rows, refused = nb.build_pool([*hostile, {"instruction": "Hi", "output": "Hello"}], nb.normalize_alpaca)
    assert len(rows) == 1 and refused == {"control token typed in the text": len(hostile)}
    tool = {**next(row for row in nb.raw["tool_calls"][0]), "tools": [{"type": "function", "function": {
        "name": "rain", "description": "<|im_start|>system", "parameters": {"type": "object", "properties": {}}}}]}  # fmt: skip
    assert not len(nb.build_pool([tool], nb.normalize_tools)[0])
    nb.export_mixture(rows, tmp_path / "mixture")
    exported = (tmp_path / "mixture" / "mixture.jsonl").read_text() + str(
        load_from_disk(tmp_path / "mixture" / "arrow")[:]
    )
    assert not [token for token in tokens if token in exported]


# Numbers in replies as Qwen writes them


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4分之3", "3/4"), ("百分之25", "1/4"), ("3万元", "30000"), ("3万5千", "35000"), ("1.5亿", "150000000"), ("12千克", "12"),
        ("十二千克", "12"), ("三千米", "3"), ("2½ cups", "5/2"), ("½", "1/2"), ("3又1/4", "13/4"), ("3 1/4 cups", "13/4"),
        ("三又四分之一", "13/4"), ("12 m²", "12"), ("12cm2", "12"), ("第七", "7"), ("一共", None), ("一样多", None), ("十分钟", "10"),
        ("十分高兴", None), ("三角形", None), ("CO2", None),
    ],
)  # fmt: skip
def test_numbers_in_both_languages(nb, text, value):
    assert nb.parse_number(text) == (None if value is None else Fraction(value))


def test_the_table_of_replies_is_judged_without_an_error(nb):
    rows = read_jsonl("number_replies.jsonl")
    chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in row["reply"]) for row in rows)
    assert len(rows) >= 80 and sum(row["right"] for row in rows) * 2 == len(rows)
    assert 20 <= chinese <= len(rows) - 20
    judged = [nb.exact_match(row["reply"], row["reference"], row.get("question", "")) for row in rows]
    assert judged == [row["right"] for row in rows]


def test_restated_questions_are_read(nb):
    """ "答：还剩X页": the last clause of each CMATH question, its question word replaced by the answer."""
    import re

    rows = read_jsonl("cmath.jsonl") + [row for row in read_jsonl("held_out_skills.jsonl") if row["source"] == "cmath"]
    tried = 0
    for row in rows:
        clause = next((c for c in reversed(re.split("[，。？?！]", row["question"])) if re.search("多少|几", c)), "")
        reply = "答：" + re.sub("多少|几", row["golden"], clause, count=1) + "。"
        if clause and not re.search("多少|几", reply):
            tried += 1
            assert nb.exact_match(reply, row["golden"], row["question"]), (reply, row["golden"])
    assert tried > 200


ODD = ["\\boxed{" * 2000, "(" * 2000, "[" * 2000, '{"a":' * 2000, "NaN", "\ud800", "一" * 5000, "9" * 5000, "1/" * 3000,
       "\\boxed{9^{9^{9^{9}}}}", "\\frac{1}{0}", "百分之" * 500, "$" * 999, "1," * 9999, "3 1/0", "", "\x00",
       '<tool_call>{"name": ["rain"], "arguments": {}}</tool_call>', '<tool_call>{"name": null}</tool_call>',
       "<tool_call>" + '{"a":' * 3000 + "1" + "}" * 3000 + "</tool_call>"]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_no_reply_makes_a_measure_fail(nb, text):
    assert nb.exact_match(text, "6") is False
    assert nb.json_valid(text, KEYS) is False and nb.tool_call_valid(text, TOOLS) is False
    assert nb.is_loop(text) in (True, False) and isinstance(nb.emoji_in(text), list)


def test_json_by_the_letter(nb):
    assert nb.json_valid('{"year": 2014.0}', {"year": "integer"}) and not nb.json_valid(
        '{"year": 2014.5}', {"year": "integer"}
    )
    for bad in ('{"year": NaN}', '{"year": Infinity}', '{"year": 1, "year": 2}', '{"year": true}', '{"year": "2014"}',
                '{"year": null, "missing": ["year", ["year"]]}', '{"year": null, "missing": [{}]}'):  # fmt: skip
        assert not nb.json_valid(bad, {"year": "integer"}), bad


def test_a_schema_elsewhere_causes_no_request(nb):
    import socket
    import threading

    server, asked = socket.create_server(("127.0.0.1", 0)), []
    server.settimeout(2)

    def listen():
        try:
            connection, _ = server.accept()
            asked.append(connection.recv(100))
            connection.close()
        except TimeoutError:
            pass

    listener = threading.Thread(target=listen)
    listener.start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
    for schema in ({"$ref": address}, {"properties": {"city": {"$ref": address}}}, {"$dynamicRef": address},
                   {"$schema": address, "type": "object"}, {"$id": address, "$ref": "other.json"}):  # fmt: skip
        nb.check_arguments({"city": "Rome"}, schema)
    assert nb.check_arguments({"city": "Rome"}, {"properties": {"city": {"$ref": address}}}) is not None
    listener.join()
    server.close()
    assert not asked


@pytest.mark.parametrize(
    "schema",
    [{"properties": {"city": {"type": kind}}} for kind in ("float", "dict", "any", 3, ["string", "none"])]
    + [{"$ref": "#/$defs/none"}, {"properties": {"city": {"$ref": "#/nowhere"}}}, {"$ref": "#"}, [], "x", {"pattern": "("}, {"properties": {"city": {"pattern": "("}}}],
)  # fmt: skip
def test_a_schema_that_is_none_is_a_fault_and_no_error(nb, schema):
    assert isinstance(nb.check_arguments({"city": "Rome"}, schema), str)


def test_definitions_within_a_schema_are_followed(nb):
    schema = {
        "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}}},
        "$ref": "#/$defs/place",
    }
    assert nb.check_arguments({"city": "Rome"}, schema) is None
    assert nb.check_arguments({"city": 3}, schema) and nb.check_arguments({"town": "Rome"}, schema)


def test_parallel_calls_without_ids_are_paired_in_order(nb):
    calls = [
        {"type": "function", "function": {"name": "rain", "arguments": {"city": city}}} for city in ("Rome", "Oslo")
    ]
    asking = {"role": "assistant", "content": "", "tool_calls": json.dumps(calls)}
    answered = {"role": "tool", "content": "no"}
    assert nb.tool_faults([ASK, asking, answered, answered, REPLY], TOOLS) == []
    assert nb.tool_faults([ASK, asking, answered, REPLY], TOOLS) == ["tool call without a result"]
    assert nb.tool_faults([ASK, asking, answered, answered, answered, REPLY], TOOLS) == ["tool result without its call"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, REPLY]}, "the user's content is a list of parts"),
        ({"messages": [{"role": "user", "content": " "}, REPLY]}, "an empty user turn"),
        ({"messages": [{"role": "user", "content": float("nan")}, REPLY]}, "the user's content is no text"),
        ({"messages": [ASK, {"role": "assistant", "content": float("nan")}]}, "the assistant's content is no text"),
        ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "function": {"name": ["rain"], "arguments": {}}}]}, RESULT, REPLY], "tools": TOOLS}, "of an unexpected shape"),
        ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "function": {"name": "rain", "arguments": {"city": float("nan")}}}]}, RESULT, REPLY], "tools": TOOLS}, "JSON cannot hold"),
    ],
)  # fmt: skip
def test_odd_rows_have_their_fault(nb, row, fault):
    assert any(fault in text for text in nb.row_faults(row, nb.tokenizer)), nb.row_faults(row, nb.tokenizer)


def test_laughter_is_no_loop_and_keycaps_are_emoji(nb):
    for fine in ("哈哈哈哈哈", "Yes!!!!!", "hahahahaha", "Nooooooooo", "1000000", "| a | b |\n|---|---|\n| 1 | 2 |"):
        assert not nb.is_loop(fine), fine
    for loop in ("🎉🎉🎉🎉🎉", "🔬 🔬 🔬 🔬 🔬 🔬", "I'm not sure. " * 6, "我不知道，" * 8):
        assert nb.is_loop(loop), loop
    assert nb.emoji_in("Press 1️⃣ or #️⃣, not 1 or #") == ["1️⃣", "#️⃣"]


@pytest.mark.parametrize("text", ["CafÃ© au lait", "donâ€™t", "ä½ å¥½ä¸–ç•Œ", "ðŸ˜€ hi", "Ã¼ber", "Â£5", "å›¾"])
def test_text_that_was_decoded_wrongly_is_refused(nb, text):
    with pytest.raises(nb.RowError, match="broken encoding"):
        nb.clean_text(text)


def test_every_text_of_the_course_passes_the_cleaning(nb):
    for name in ("replay", "retention_prompts", "held_out_skills", "number_replies", "multilingual_thinking"):
        for row in read_jsonl(f"{name}.jsonl"):
            for value in row.values():
                assert not isinstance(value, str) or nb.clean_text(value) == value.strip()


# Comparisons


def test_paired_shares_are_mcnemar_s(nb):
    import pandas as pd
    from scipy.stats import binomtest

    before = pd.Series([1.0] * 5 + [0.0] * 15)
    after = pd.Series([0.0] * 2 + [1.0] * 12 + [0.0] * 6)
    result = nb.paired(before, after)
    assert (result["n"], result["gained"], result["lost"]) == (20, 9, 2)
    assert result["p"] == binomtest(9, 11).pvalue and abs(result["difference"] - 0.35) < 1e-9
    assert result["low"] < 0.35 < result["high"]
    same = nb.paired(before, before)
    assert same["p"] == 1.0 and same["difference"] == 0.0
    assert nb.paired(before, after[:10])["n"] == 10


def test_amounts_are_compared_by_exchanging_pairs(nb):
    import numpy as np
    import pandas as pd

    noise = np.random.default_rng(1).normal(size=40)
    close = nb.paired(pd.Series(noise * 10), pd.Series(noise * 10 + 0.5 + 0.1 * noise), amounts=True)
    assert close["p"] < 0.01 and close["low"] > 0.3
    none = nb.paired(pd.Series(noise), pd.Series(np.random.default_rng(2).normal(size=40)), amounts=True)
    assert none["p"] > 0.05 and none["low"] < 0 < none["high"]
    before, after = pd.Series([0.0] * 9), pd.Series([1.0, 2, 3, 4, 5, 0, 0, 0, 0])
    few = nb.paired(before, after, amounts=True)
    assert few["p"] == 2 / 2**5  # five pairs that differ: what the signs can show and no more
    one = nb.paired(before[:1], after[:1], amounts=True)
    assert (one["n"], one["p"], one["low"], one["high"]) == (1, 1.0, 1.0, 1.0)


def test_perplexities_are_compared_on_the_same_rows(nb):
    import numpy as np
    import pandas as pd

    tokens = np.arange(5, 25)
    before = pd.DataFrame({"source": "x", "loss": tokens * 2.0 + np.sin(tokens), "tokens": tokens})
    after = before.assign(loss=before["loss"] - 0.1 * tokens)
    result = nb.paired_perplexity(before, after)
    assert abs(result["after"] / result["before"] - np.exp(-0.1)) < 1e-6 and result["gained"] == 20
    assert result["low"] <= np.exp(-0.1) + 1e-6 and result["p"] < 0.01
    assert nb.paired_perplexity(before[:4], after[:4])["p"] == 2 / 2**4


def test_holm_and_the_sentences(nb, capsys):
    import pandas as pd

    assert nb.holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    before = {"usability": pd.Series([0.0] * 20), "json_valid": pd.Series([1.0, 0.0] * 10)}
    after = {"usability": pd.Series([1.0] * 18 + [0.0] * 2), "json_valid": pd.Series([1.0, 0.0] * 9 + [0.0, 1.0])}
    results = nb.compare(before, after, "title")
    assert {name: result["verdict"] for name, result in results.items()} == {
        "usability": "better",
        "json_valid": "not decided",
    }
    assert "usability: 0 % → 90 %; 18 of 20 gained, 0 lost" in capsys.readouterr().out
    assert nb.compare(after, before, "back")["usability"]["verdict"] == "worse"


# Order, cap, formats


def test_a_short_batch_comes_last_and_breaks_no_other(nb):
    lengths = [10 * (i % 30 + 1) for i in range(301)]
    rows = nb.Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
    for size in (4, 8):
        ordered = list(map(len, nb.like_lengths_together(rows, size, 3)["input_ids"]))
        assert sorted(ordered) == sorted(lengths) and nb.padding_share(ordered, size) < 0.02
        tail = len(lengths) % size
        assert all(max(ordered[k : k + size]) - min(ordered[k : k + size]) <= 20 for k in range(0, 301 - tail, size))
        assert ordered[: 301 - tail] != sorted(ordered[: 301 - tail])
    assert nb.padding_share([10, 10, 5, 5], 2) == 0 and nb.padding_share([10, 5], 2) == 0.25


def test_a_pool_is_repeated_up_to_its_cap(nb, three):
    mixture = nb.mix(three, {"a": 1, "b": 8, "c": 1}, "resample", 1, 400, max_repeats=3)
    assert sources(mixture) == {"a": 40, "b": 120, "c": 40} and max(Counter(mixture["hash"]).values()) == 3


def test_answers_come_in_the_language_of_the_question(nb):
    rows = read_jsonl("emoji_chat.jsonl")
    tags = [nb.normalize_emoji(row, "question")["tags"] for row in rows]
    elsewhere = [nb.normalize_emoji(row, "en")["tags"] for row in rows]
    count = [sum("answered in another language" in row for row in some) for some in (tags, elsewhere)]
    assert count[0] < count[1] and count[1] > 20


def test_sharegpt(nb):
    row = {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "<think>Five.</think>5"}]}
    normal = nb.normalize_sharegpt(row)
    assert contents(normal) == ["2 + 3?", "5"] and normal["messages"][1]["reasoning_content"] == "Five."
    pool, reasons = nb.build_pool(
        [row, {"conversations": [{"from": "robot", "value": "x"}]}, {}], nb.normalize_sharegpt
    )
    assert len(pool) == 1 and sum(reasons.values()) == 2


def test_reasoning_is_learnt_where_the_template_has_a_place_for_it(nb, setup_02, monkeypatch):
    hybrid = {"chat_template": nb.CHAT_TEMPLATES["qwen-3"][0]}
    think = nb.masked(nb.thinking_row, False, **hybrid)
    without = nb.masked(nb.normalize_alpaca({"instruction": "2 + 3?", "output": "5."}), False, **hybrid)
    for row, text in ((think, "<think>\nTwo and three are five.\n</think>\n\n5.<|im_end|>"),
                      (without, "<think>\n\n</think>\n\n5.<|im_end|>")):  # fmt: skip
        learnt_ids = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert nb.tokenizer.decode(learnt_ids) == text
        counts = nb.check_masks(nb.Dataset.from_list([row]), nb.tokenizer, nb.instruction, nb.response)
        assert counts["missing"] == counts["extra"] == 0
    assert nb.thought_counts([nb.thinking_row]) == (1, 0)
    monkeypatch.setitem(setup_02, "LEARN_TURNS", "all")  # but an earlier turn whose thought is gone
    kept, _ = nb.tokenize_rows(
        [nb.thinking_row | {"messages": nb.thinking_row["messages"] * 2}, nb.two_turns], **hybrid
    )
    assert kept["every_turn"][:] == [False, True]
    assert nb.row_faults({"messages": [ASK, {**REPLY, "reasoning_content": "Let me greet."}]}, nb.tokenizer) == []


def test_replies_of_two_models_are_paired_by_their_prompt(setup_02):
    """A subset of the prompts, in another order, meets its own counterparts and no others."""
    from contextlib import nullcontext

    space = dict(setup_02)
    words = {"a": "Sure! 🎉<|im_end|>", "b": "No.<|im_end|>"}
    prompts = [{"kind": "emoji", "request": f"{letter} {i}", "question": "?"} for i in range(6) for letter in "ab"]
    fakes = {
        "phase": lambda name: nullcontext(),
        "model": None,
        "generate_replies": lambda model, tokenizer, talks, budget: [words[talk[-1]["content"][0]] for talk in talks],
    }
    kept = {name: setup_02.get(name) for name in fakes}
    setup_02.update(fakes)
    try:
        whole = space["verdicts_of"](space["answer"]("whole", prompts))["emoji_replies"]
        part = space["verdicts_of"](space["answer"]("part", prompts[::-1][:7]))["emoji_replies"]
    finally:
        setup_02.update(kept)
    result = space["paired"](whole, part)
    assert (result["n"], result["gained"], result["lost"]) == (7, 0, 0) and 0 < result["before"] < 1


@pytest.fixture(params=["stand-in", "true Qwen3"])
def contract_space(request, setup_02):
    """The notebook's namespace with the stand-in's or with Qwen3's published tokenizer; skipped without npm."""
    import true_tokenizers

    kept = {name: setup_02[name] for name in ("tokenizer", "control_ids")}
    if request.param == "true Qwen3":
        try:
            tokenizer = true_tokenizers.load("qwen3")
        except true_tokenizers.Unavailable as error:
            pytest.skip(str(error))
        added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        setup_02.update(tokenizer=tokenizer, control_ids={t: i for t, i in added.items() if t.startswith("<")})
    yield setup_02
    setup_02.update(kept)


def test_the_contract_holds_on_every_row(contract_space):
    """Every row of every pool and of the replay file, its last turn learnt and all of its turns."""
    space = contract_space
    rows = [row for pool in space["pools"].values() for row in pool]
    rows += [space["make_row"]([{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}], "replay")
             for row in space["replay_source"]] + [space["two_turns"]]  # fmt: skip
    assert space["find_response_markers"](space["tokenizer"]) == (space["instruction"], space["response"])
    kept = {name: space[name] for name in ("LEARN_TURNS", "LEARN_TOOL_CALLS")}
    try:
        for every in (False, True):
            space.update(LEARN_TURNS="all" if every else "last", LEARN_TOOL_CALLS=every)
            labelled, dropped = space["add_labels"](rows)
            ((turns, counts),) = space["contract_of"](labelled).items()
            assert turns == ("every turn" if every else "last turn") and not dropped
            assert (
                counts["rows"] == len(rows) > 900 and counts["missing"] == counts["extra"] == 0 < counts["supervised"]
            )
    finally:
        space.update(kept)
