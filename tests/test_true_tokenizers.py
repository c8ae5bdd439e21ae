"""The mask contract on the families' real tokenizers, not the stand-in's; skipped, with the reason, without npm."""

import copy

import pytest
import true_tokenizers
from conftest import lift, read_jsonl
from test_masks import NAMES


@pytest.fixture(scope="module")
def true_gpt_oss():
    try:
        return true_tokenizers.load("gpt-oss")
    except true_tokenizers.Unavailable as error:
        pytest.skip(str(error))


def test_merges_are_recovered_from_ranks():
    """A small vocabulary made by hand: `ab` before `abc`, which can be made in one way only."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4}
    assert true_tokenizers.merges_of(ranks) == [(b"a", b"b"), (b"ab", b"c")]


def test_harmony_s_control_tokens_have_their_published_ids(true_gpt_oss):
    for token, index in true_tokenizers.HARMONY_IDS.items():
        assert true_gpt_oss(token, add_special_tokens=False).input_ids == [index], token
    assert true_gpt_oss("hello world", add_special_tokens=False).input_ids == [24912, 2375]  # as tiktoken's o200k


def test_the_contract_holds_on_the_real_tokenizer(true_gpt_oss, notebook_01):
    nb = lift(notebook_01, *NAMES)
    tokenizer = copy.deepcopy(true_gpt_oss)
    nb.update(tokenizer=tokenizer, MAX_LENGTH=2048)
    nb["control_ids"] = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    markers = nb["find_response_markers"](tokenizer)
    assert markers == ("<|start|>user<|message|>", "<|start|>assistant")
    rows = [nb["clean_messages"](row["messages"]) for row in read_jsonl("multilingual_thinking.jsonl")]
    rows, dropped, lengths = nb["tokenize_rows"](rows)
    assert not dropped and 150 < min(lengths) < max(lengths) < 230
    options = dict(zip(("instruction", "response"), markers, strict=True), tokenizer=tokenizer)
    labelled = nb["label_rows"](rows, tokenizer, *markers).map(nb["complete_mask"], fn_kwargs=options)
    counts = nb["check_masks"](labelled, tokenizer, *markers)
    assert counts["rows"] == 300 and counts["missing"] == counts["extra"] == 0 < counts["supervised"]
    learning = {
        token for row in labelled for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100
    }
    assert {i for i in learning if i >= 199998} == {
        200002,
        200005,
        200006,
        200007,
        200008,
    }  # return, channel, start, end, message
    assert nb["reasoning_share"](labelled, tokenizer)["value"] == 1.0
    detected = nb["label_rows"](rows, tokenizer)
    assert nb["reasoning_share"](detected, tokenizer)["value"] == 0.0
    assert nb["check_masks"](detected, tokenizer, *markers)["missing"] > 10_000
