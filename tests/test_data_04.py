"""The samples of notebook 04: every sum is right, both forms agree, nothing stands on both sides."""

import re
from fractions import Fraction

import pytest
from conftest import read_jsonl

MARK = re.compile(r"<<([^<>=]*)=([^<>]*)>>(\$?[\d,.]*\d)")


@pytest.fixture(scope="module")
def sets():
    return {name: read_jsonl(f"{name}.jsonl") for name in ("gsm8k", "gsm8k_socratic", "gsm8k_held_out")}


def number(text):
    return Fraction(text.replace(",", "").replace("$", ""))


def test_counts_and_schema(sets):
    assert len(sets["gsm8k"]) == len(sets["gsm8k_socratic"]) >= 240 and len(sets["gsm8k_held_out"]) >= 60
    assert all(set(row) == {"question", "answer"} for rows in sets.values() for row in rows)


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_socratic", "gsm8k_held_out"])
def test_every_mark_is_true_and_the_answer_is_the_last_result(sets, name):
    for row in sets[name]:
        marks = MARK.findall(row["answer"])
        assert marks and len(marks) == row["answer"].count("<<"), row
        for expression, result, written in marks:
            assert re.fullmatch(r"[\d.+*/ -]+", expression), row
            exact = re.sub(r"\d*\.?\d+", lambda found: f"Fraction('{found[0]}')", expression)
            assert eval(exact, {"Fraction": Fraction}) == number(result) == number(written), row
        assert number(row["answer"].rsplit("#### ", 1)[1]) == number(marks[-1][1]), row


def test_both_forms_are_of_the_same_problems(sets):
    for main, socratic in zip(sets["gsm8k"], sets["gsm8k_socratic"], strict=True):
        assert main["question"] == socratic["question"]
        lines = [line.split(" ** ", 1) for line in socratic["answer"].splitlines()]
        assert all(line[0].endswith("?") for line in lines[:-1])
        assert "\n".join(line[-1] for line in lines) == main["answer"]


def test_no_problem_stands_twice_or_on_both_sides_even_with_other_numbers(sets):
    def pattern(row):
        return re.sub(r"\d+", "#", " ".join(row["question"].lower().split()))

    training, held_out = ([pattern(row) for row in sets[name]] for name in ("gsm8k", "gsm8k_held_out"))
    assert len(set(training)) == len(training) and len(set(held_out)) == len(held_out)
    assert not set(training) & set(held_out)


def test_no_control_tokens(sets):
    for rows in sets.values():
        for row in rows:
            assert not re.search(r"<(bos|eos|start_of_turn|end_of_turn|\|)", row["question"] + row["answer"])


GOOD_AND_BAD = {  # a reply that has the property, and one that has not
    "Reply with one word": ("Green", "The colour of grass is green as a rule"),
    "contains the word river": ("We sat by the river.", "We sat by the lake."),
    "hello in capital letters": ("HELLO", "hello"),
    "is ice cold": ("Yes, it is.", "Ice is frozen water."),
    "three animals": ("Whale, squid, seal", "Whale"),
    "question about the moon": ("How far is the moon?", "The moon is far."),
    "without any numbers": ("Bread is warm.", "2 loaves."),
    "cat into French": ("chat", "gato"),
    "Begin your reply": ("Today it rains.", "It rains."),
    "capital of Italy": ("Rome", "Paris"),
    "ends with the word garden": ("We met in the garden.", "The garden was green."),
    "leaves fall": ("They fall " + "word " * 15, "Because."),
    "opposite of hot": ("cold", "warm"),
    "two sentences": ("It barks. It runs.", "It barks"),
    "what a library": ("It lends books.", "#### 3"),
    "after Monday": ("Tuesday", "Sunday"),
    "cup and table": ("The cup is on the table.", "The cup is full."),
    "Describe snow": ("Cold white " + "word " * 15, "White."),
    "legs does a spider": ("8", "A spider has eight legs"),
    "polite reply": ("Thank you, we should love to come tonight.", "No."),
}


def test_every_instruction_has_a_property_that_a_program_can_check(setup_04):
    probe = read_jsonl("instruction_probe.jsonl")
    assert len(probe) == len(GOOD_AND_BAD) == 20
    for row in probe:
        good, bad = next(pair for key, pair in GOOD_AND_BAD.items() if key in row["prompt"])
        assert setup_04["follows"](good, row["check"], row["value"]), row
        assert not setup_04["follows"](bad, row["check"], row["value"]), row


def test_reply_styles_are_many_and_of_both_verdicts():
    styles = read_jsonl("answer_styles.jsonl")
    assert len(styles) >= 60 and len({row["reply"] for row in styles}) == len({row["tries"] for row in styles}) == len(
        styles
    )
    for row in styles:
        assert set(row) == {"reply", "reference", "right", "strict", "tries"}
        assert (
            re.fullmatch(r"-?[\d.,]+", row["reference"])
            and isinstance(row["right"], bool)
            and isinstance(row["strict"], bool)
        )
    assert 15 <= sum(not row["right"] for row in styles) and 30 <= sum(row["right"] for row in styles)
