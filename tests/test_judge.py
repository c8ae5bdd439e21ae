"""tools/judge.py: what it asks, reads and says, without a server; and, `long`, both judges and the load test at once."""

import json
import subprocess
import sys

import pytest
from conftest import PROJECT

sys.path.insert(0, str(PROJECT / "tools"))
import judge  # noqa: E402
import saved  # noqa: E402

RUN = PROJECT / "outputs" / "02_qwen3_emoji_math"
PLAIN = {"prompt": {}, "decoding": {"max_new_tokens": {"mawps": 36, "cmath": 16}}}


@pytest.fixture(scope="module")
def ours():
    return judge.scorer()


def test_the_sums_are_the_notebook_s(ours, setup_02):
    rows = judge.questions(PLAIN, 30, ours)
    for kind, sums in rows.items():
        asked = [row["request"] for row in setup_02["held_out"][kind]]
        assert [row["question"] for row in sums] == asked and len(asked) == 30
        golden = [str(row.get("golden", row.get("Answer"))) for row in setup_02["held_out"][kind]]
        assert all(setup_02["exact_match"](row["answer"], wanted) for row, wanted in zip(sums, golden, strict=True))
    assert not any(row["system"] for sums in rows.values() for row in sums)


def test_the_sums_are_put_as_the_training_put_them(ours):
    record = {"prompt": {"system": "Count, {who}.", "user": "{user} Step by step.", "defaults": {"who": "please"}}}
    row = judge.questions(record | {"decoding": {}}, 1, ours)["mawps"][0]
    assert row["system"] == "Count, please." and row["question"].endswith("minutes? Step by step.")
    assert row["answer"] == "315"


def test_a_reply_has_the_notebook_s_budget():
    assert (judge.budget_of(PLAIN, "mawps"), judge.budget_of(PLAIN, "cmath")) == (36, 16)
    assert judge.budget_of({"decoding": {"max_new_tokens": 80}}, "cmath") == 80
    assert judge.budget_of({"decoding": {}}, "cmath") == 64


def test_lm_eval_s_task_reads_our_rows(ours, tmp_path):
    from datasets import load_dataset

    rows = judge.questions(PLAIN, 3, ours)["cmath"]
    file = tmp_path / "cmath.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    task = judge.task("cmath", file, 16)
    read = load_dataset(task["dataset_path"], **task["dataset_kwargs"], split=task["test_split"], cache_dir=tmp_path)
    assert read.to_list() == rows
    assert (
        {task["doc_to_text"], task["doc_to_target"]}
        == {"{{question}}", "{{answer}}"}
        <= {f"{{{{{name}}}}}" for name in rows[0]}
    )
    assert task["generation_kwargs"]["max_gen_toks"] == 16 and task["output_type"] == "generate_until"


def test_a_review_of_evalscope_is_read():
    score = {"prediction": "So 3 + 4 = 7.", "extracted_prediction": "7.", "value": {"Rouge-L-R": 1.0, "Rouge-1-R": 0.5}}
    line = json.dumps({"index": 0, "sample_score": {"score": score}})
    assert judge.read_review(line) == {"reply": "So 3 + 4 = 7.", "read": "7.", "right": 1.0}


def one(reply, read, right):
    return {"reply": reply, "read": read, "right": right}


def test_what_makes_figures_differ_is_told(ours):
    sums = [{"question": "3 + 4?", "answer": "7"}, {"question": "1 ÷ 2?", "answer": "1/2"}]
    first = [one("3 + 4 = 7. The answer is 7.", "7.", 1.0), one("The answer is 1/2.", "2.", 0.0)]
    assert judge.right_by_ours(ours, sums, first) == [1, 1]
    same = judge.reasons(ours, "t", sums, {"lm-eval": first, "evalscope": first}, 2)
    assert len(same) == 2 and all("judges 1 replies otherwise" in line and "we read 1/2" in line for line in same)
    other = [one("The answer is 8.", "8.", 0.0), first[1] | {"right": 1.0}]
    told = judge.reasons(ours, "t", sums, {"lm-eval": first, "evalscope": other}, 1)
    assert [line.split(":")[0] for line in told] == ["t"] * 3
    assert "the notebook counted 1, its own reading of the served replies 2" in told[0]
    assert "evalscope got 1 other replies than lm-eval, such as 'The answer is 8.'" in told[2]
    right = [one("It is 7.", "7.", 1.0)]
    assert judge.reasons(ours, "t", sums[:1], {"lm-eval": right, "evalscope": right}, None) == []


def test_the_scores_are_printed_and_a_served_base_is_told(ours, tmp_path, capsys):
    sums = {"mawps": [{"question": "3 + 4?", "answer": "7"}]}
    right, wrong = [one("It is 7.", "7.", 1.0)], [one("It is 8.", "8.", 0.0)]

    def said(tuned, base):
        found = {("mawps", "tuned"): dict.fromkeys(("lm-eval", "evalscope"), tuned),
                 ("mawps", "base"): dict.fromkeys(("lm-eval", "evalscope"), base)}  # fmt: skip
        lines, told = judge.scores(ours, tmp_path / "merged", sums, found)
        return [line["ours"] for line in lines], told, capsys.readouterr().out

    counted, told, printed = said(right, wrong)
    assert counted == [0, 1] and told[-1] == "mawps: tuned and base give the same reply to 0 of 1."
    assert "mawps, tuned    1         –     1        1          1" in printed and told[0] in printed
    assert said(wrong, wrong)[1][-1].endswith("What is served as tuned is the base.")


def test_the_run_card_s_figure_counts_only_for_the_same_sums(tmp_path, monkeypatch):
    import hashlib

    held_out = hashlib.sha256((PROJECT / judge.HELD_OUT).read_bytes()).hexdigest()
    figures = {"before": {"exact_match.mawps": {"value": 0.0, "n": 30}},
               "after": {"exact_match.mawps": {"value": 0.0667, "n": 30}}}  # fmt: skip
    card = {"held_out_sha256": {judge.HELD_OUT: held_out}, "metrics": figures}
    (tmp_path / "run_card.json").write_text(json.dumps(card))
    assert judge.card_figures(tmp_path / "merged", "mawps", [{}] * 30) == {"base": 0, "tuned": 2}
    assert judge.card_figures(tmp_path / "merged", "mawps", [{}] * 5) == {}
    assert judge.card_figures(tmp_path / "merged", "cmath", [{}] * 30) == {}
    (tmp_path / "run_card.json").write_text(json.dumps(card | {"held_out_sha256": {judge.HELD_OUT: "another"}}))
    assert judge.card_figures(tmp_path / "merged", "mawps", [{}] * 30) == {}
    assert judge.card_figures(tmp_path / "none" / "merged", "mawps", [{}] * 30) == {}


def test_the_tables():
    text = judge.table(["clients", "n"], [["one", 1], ["sixteen", 160]])
    assert text.splitlines() == ["clients    n", "one        1", "sixteen  160"]
    loads = [{"clients": 1, "tokens_per_s": 20.0, "first_token_ms": 100},
             {"clients": 16, "tokens_per_s": 22.0, "first_token_ms": 9000}]  # fmt: skip
    assert judge.batching(loads).startswith("16 clients together get 1.1 times the tokens of one, and wait 9.0 s")
    assert judge.batching(loads).endswith("one request after the other.")
    assert judge.batching([loads[0], loads[1] | {"tokens_per_s": 90.0}]).endswith("several requests at a time.")


def test_the_command_says_one_sentence():
    command = [sys.executable, "tools/judge.py", "outputs/none"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("judge: There is no folder outputs/none.") and result.stderr.count("\n") == 1


def test_a_judge_that_fails_is_told(tmp_path):
    with pytest.raises(saved.SavedError, match="^sh failed: no such model"):
        judge.call(["sh", "-c", "echo; echo no such model; exit 3"], tmp_path)
    with pytest.raises(saved.SavedError, match="There is no reviews.jsonl below"):
        judge.one_file(tmp_path, "reviews.jsonl")


def test_the_committed_record_is_of_the_pinned_judges():
    record = json.loads(judge.RECORD.read_text())
    assert [one["clients"] for one in record["load"]] == [1, 4, 16] and not any(one["failed"] for one in record["load"])
    assert all(one["requests_per_s"] > 0 and one["first_token_ms"] > 0 for one in record["load"])
    pins = judge.REQUIREMENTS.read_text()
    assert all(f"{name}=={record['versions'][name]}" in pins for name in ("evalscope", "lm-eval"))
    assert record["device"] and record["date"] and str(PROJECT) not in json.dumps(record)


# ---- with a server: `make test-long` ----


@pytest.mark.long
def test_both_judges_and_the_load_test(ours, monkeypatch, tmp_path, capsys):
    if not (RUN / "merged" / "config.json").exists():
        pytest.skip("nothing saved by notebook 02: `make run NOTEBOOK=02`")
    monkeypatch.setattr(judge, "MADE", tmp_path)
    found = judge.judge(str(RUN), limit=2, clients={1: 1, 2: 2})
    printed = capsys.readouterr().out
    assert [(line["sums"], line["model"], line["n"]) for line in found["scores"]] == [
        ("cmath", "base", 2), ("cmath", "tuned", 2), ("mawps", "base", 2), ("mawps", "tuned", 2)]  # fmt: skip
    assert all(0 <= line[column] <= 2 for line in found["scores"] for column in ("ours", "lm-eval", "evalscope"))
    assert [one["requests"] for one in found["load"]] == [1, 2] and not any(one["failed"] for one in found["load"])
    assert "right replies" in printed and "tokens/s" in printed and "times the tokens of one" in printed
    folder = tmp_path / saved.name_of(RUN / "merged")
    asked = {file.stem.split("_")[1]: file.read_text() for file in folder.rglob("lm-eval/sums_*.yaml")}
    assert set(asked) == {"mawps", "cmath"} and json.loads((folder / "judged.json").read_text()) == found
    replies = {model: [json.loads(line)["resps"] for file in sorted((folder / model).rglob("samples_*.jsonl"))
                       for line in file.read_text().splitlines()] for model in ("tuned", "base")}  # fmt: skip
    assert replies["tuned"] != replies["base"], "what is served as tuned answers as its base"
