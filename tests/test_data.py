"""The project's own data: schema, languages, sums, and no question on both sides."""

import re
from collections import Counter

import pytest
from conftest import PROJECT, read_jsonl

LANGUAGES = ["English", "German", "French", "Spanish", "Italian"]


@pytest.fixture(scope="module")
def detect():
    from lingua import Language, LanguageDetectorBuilder

    names = [*LANGUAGES, "Portuguese", "Dutch"]
    detector = LanguageDetectorBuilder.from_languages(*(Language.from_str(name) for name in names)).build()
    return lambda text: detector.detect_language_of(text).name.title()


@pytest.fixture(scope="module")
def training():
    return read_jsonl("multilingual_thinking.jsonl")


@pytest.fixture(scope="module")
def teaching():
    return read_jsonl("harmony_teaching.jsonl")


@pytest.fixture(scope="module")
def prompts():
    return read_jsonl("held_out_prompts.jsonl") + read_jsonl("unseen_language_prompts.jsonl")


@pytest.fixture(scope="module")
def english():
    """Return the English of any question in data/."""
    glosses = {row["question"]: row["english"] for row in read_jsonl("question_glosses.jsonl")}
    return lambda row: row.get("user_english") or glosses.get(row["user"], row["user"])


def content_words(text):
    stop = set(
        "the a an of to in is are do does i my it and or for what how why which on at with that this be can you me if "
        "when should from have has not one there they we by so".split()
    )
    return {word.rstrip("s") for word in re.findall(r"[a-z0-9]+", text.lower())} - stop


def test_counts(training, teaching, prompts):
    assert len(training) >= 240 and len(teaching) >= 150
    assert Counter(row["reasoning_language"] for row in training) == dict.fromkeys(LANGUAGES, len(training) // 5)
    held_out = [row for row in prompts if row["reasoning_language"] != "Portuguese"]
    assert all(count >= 8 for count in Counter(row["reasoning_language"] for row in held_out).values())
    assert len(held_out) >= 40 and len(prompts) > len(held_out)
    assert any(
        row["user"] == "¿Cuál es la capital de Australia?" and row["reasoning_language"] == "German" for row in held_out
    )


def test_rows_have_the_upstream_schema(training):
    for row in training:
        assert list(row) == ["reasoning_language", "developer", "user", "analysis", "final", "messages"]
        system, user, assistant = row["messages"]
        assert system == {
            "role": "system",
            "content": f"reasoning language: {row['reasoning_language']}\n\n{row['developer']}",
            "thinking": None,
        }
        assert user == {"role": "user", "content": row["user"], "thinking": None}
        assert assistant == {"role": "assistant", "content": row["final"], "thinking": row["analysis"]}


def test_texts_hold_no_control_tokens(training, teaching, prompts):
    for row in training + teaching + prompts:
        for key in ("developer", "user", "analysis", "final"):
            assert not re.search(r"[<>|]", row.get(key, "")), row["user"]


def test_reasoning_is_in_its_language_and_the_answer_in_the_question_s(training, teaching, detect):
    wrong = [row["analysis"] for row in training + teaching if detect(row["analysis"]) != row["reasoning_language"]]
    assert not wrong
    mixed = [row["final"] for row in training + teaching if detect(row["final"]) != detect(row["user"])]
    assert len(mixed) <= 0.05 * len(training + teaching), (
        mixed
    )  # short answers with names and numbers deceive a detector


def test_questions_of_every_language_meet_every_reasoning_language(training, detect):
    pairs = Counter((row["reasoning_language"], detect(row["user"])) for row in training)
    assert all(pairs[reasoning, asking] >= 3 for reasoning in LANGUAGES for asking in LANGUAGES)


def test_every_sum_is_right(training, teaching):
    equation = re.compile(r"(?<![\d.,])(\d+(?:\.\d+)?) ?([+×x*/÷−-]) ?(\d+(?:\.\d+)?) ?= ?(\d+(?:\.\d+)?)(?![\d.,]*\d)")
    operations = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
    names = {"×": "*", "x": "*", "÷": "/", "−": "-"}
    seen = 0
    for row in training + teaching:
        for text in (row["analysis"], row["final"]):
            for left, sign, right, result in equation.findall(text):
                seen += 1
                value = operations[names.get(sign, sign)](float(left), float(right))
                assert abs(value - float(result)) < 1e-9, f"{left} {sign} {right} = {result} in {text!r}"
    assert seen >= 60


def test_no_question_stands_twice(training, teaching, prompts, english):
    for rows in (training, teaching, prompts):
        counts = Counter(" ".join(sorted(content_words(english(row)))) for row in rows)
        assert max(counts.values()) == 1, counts.most_common(1)


@pytest.mark.parametrize("pair", ["training-prompts", "teaching-prompts", "teaching-training"])
def test_no_question_is_on_both_sides_in_any_language(pair, training, teaching, prompts, english):
    sides = {"training": training, "teaching": teaching, "prompts": prompts}
    left, right = (sides[name] for name in pair.split("-"))
    for row in left:
        words = content_words(english(row))
        for other in right:
            others = content_words(english(other))
            overlap = len(words & others) / max(1, len(words | others))
            assert overlap < 0.6, f"{row['user']!r} and {other['user']!r}"


def test_questions_that_are_not_english_have_a_gloss(training, teaching, detect, english):
    missing = [
        row["user"] for row in training + teaching if english(row) == row["user"] and detect(row["user"]) != "English"
    ]
    assert len(missing) <= 3, missing


def test_no_sentence_pattern_dominates(training):
    openings = Counter(" ".join(row["user"].lower().split()[:3]) for row in training)
    assert openings.most_common(1)[0][1] <= 0.04 * len(training), openings.most_common(3)


def test_readme_describes_every_file():
    text = (PROJECT / "data" / "README.md").read_text(encoding="utf-8")
    for path in sorted((PROJECT / "data").glob("*.jsonl")):
        assert f"`{path.name}`" in text
        assert f"{len(path.read_text(encoding='utf-8').splitlines())} " in text


# Notebook 02


@pytest.fixture(scope="module")
def skills():
    return read_jsonl("held_out_skills.jsonl")


def of(skills, source):
    return [row for row in skills if row["source"] == source]


def test_skill_counts(skills):
    for name, at_least in (("emoji_chat", 120), ("cmath", 120), ("mawps", 120), ("json_only", 60), ("tool_calls", 40)):
        assert len(read_jsonl(f"{name}.jsonl")) >= at_least
    assert Counter(row["source"] for row in skills) == {
        "emoji": 40, "cmath": 36, "mawps": 40, "json_only": 40, "tool_calls": 24}  # fmt: skip
    five = ["English", "Chinese", "French", "German", "Spanish"]
    assert Counter(row["language"] for row in read_jsonl("retention_prompts.jsonl")) == dict.fromkeys(five, 20)
    assert Counter(row["language"] for row in read_jsonl("replay.jsonl")) == dict.fromkeys(five, 30)
    assert len(read_jsonl("side_by_side_prompts.jsonl")) == 10
    for grade in range(1, 7):
        assert sum(row["grade"] == grade for row in of(skills, "cmath")) == 6


def test_skill_rows_hold_no_control_tokens(skills):
    names = (
        "emoji_chat",
        "cmath",
        "mawps",
        "json_only",
        "tool_calls",
        "replay",
        "retention_prompts",
        "side_by_side_prompts",
    )
    for row in skills + [row for name in names for row in read_jsonl(f"{name}.jsonl")]:
        assert not re.search(r"[<>|]", str(row)), row


def test_every_chinese_sum_is_right(skills):
    from fractions import Fraction

    expressions = {row["question"]: row["expression"] for row in read_jsonl("cmath_expressions.jsonl")}
    for row in read_jsonl("cmath.jsonl") + of(skills, "cmath"):
        expression = expressions[row["question"]]
        exact = re.sub(r"\d+(?:\.\d+)?", lambda number: f"Fraction('{number[0]}')", expression)
        assert re.fullmatch(r"[\d.+*/() -]+", expression)
        assert eval(exact, {"Fraction": Fraction}) == Fraction(row["golden"]), row["question"]
        assert row["reasoning_step"] == len(re.findall(r"[-+*/]", expression))


def test_every_equation_gives_its_answer(skills):
    for row in read_jsonl("mawps.jsonl") + of(skills, "mawps"):
        numbers = row["Numbers"].split()
        holes = [int(hole) for hole in re.findall(r"N_(\d+)", row["Question"])]
        assert holes == list(range(len(numbers)))
        expression = re.sub(r"N_(\d+)", lambda hole, numbers=numbers: numbers[int(hole[1])], row["Equation"])
        assert re.fullmatch(r"[\d.+*/() -]+", expression)
        assert abs(eval(expression) - row["Answer"]) < 1e-9, row["Question"]


def test_json_answers_are_what_was_asked_for(skills, setup_02):
    import json

    negative = 0
    for row in read_jsonl("json_only.jsonl") + of(skills, "json_only"):
        assert setup_02["json_valid"](row["answer"], row["keys"]), row["request"]
        value = json.loads(row["answer"])
        assert row["negative"] == bool(value["missing"])
        negative += row["negative"]
        for key in row["keys"]:
            assert key in row["request"]
            if isinstance(value[key], str):
                assert value[key] in row["request"]
            elif isinstance(value[key], int | float) and not isinstance(value[key], bool):
                assert re.search(rf"(?<!\d){re.escape(str(value[key]))}(?!\d)", row["request"].replace(",", "")), value
    assert negative >= 30


def test_tool_conversations_are_whole(skills, setup_02):
    from jsonschema import validate

    for row in read_jsonl("tool_calls.jsonl"):
        setup_02["normalize_tools"](row)
    for row in of(skills, "tool_calls"):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        validate(row["call"]["arguments"], {"additionalProperties": False, **schemas[row["call"]["name"]]})


def test_emoji_answers_have_emoji_and_replay_has_none(setup_02):
    rows = read_jsonl("emoji_chat.jsonl")
    assert all(setup_02["emoji_in"](row[key]) for row in rows for key in ("answer_zh", "answer_en") if row[key])
    assert sum(row["answer_en"] == "" for row in rows) == 8
    assert len({emoji for row in rows for emoji in setup_02["emoji_in"](row["answer_en"])}) > 120
    assert not any(setup_02["emoji_in"](row["answer"] + row["question"]) for row in read_jsonl("replay.jsonl"))


def test_questions_and_answers_are_in_their_language(setup_02):
    for row in read_jsonl("replay.jsonl") + read_jsonl("retention_prompts.jsonl"):
        for key in ("question", "answer"):
            assert key not in row or setup_02["detect_language"](row[key]) == row["language"], row


def test_no_skill_prompt_is_close_to_a_training_row(skills, setup_02):
    glosses = {row["question"]: row["english"] for row in read_jsonl("topic_glosses.jsonl")}

    def words_of(text):
        chinese = re.sub(r"[^\u4e00-\u9fff]", "", text)
        return {chinese[i : i + 3] for i in range(len(chinese) - 2)} if len(chinese) > 8 else content_words(text)

    train = [words_of(row["messages"][0]["content"]) for rows in setup_02["pools"].values() for row in rows]
    train += [words_of(glosses[row["question"]]) for row in read_jsonl("replay.jsonl")]
    prompts = [setup_02["request_of"](row) for row in skills]
    prompts += [glosses[row["question"]] for row in read_jsonl("retention_prompts.jsonl")]
    prompts += [row["question"] for row in read_jsonl("side_by_side_prompts.jsonl")]
    for prompt in prompts:
        words = words_of(prompt)
        if len(words) >= 3:
            nearest = max(len(words & other) / len(words | other) for other in train if other)
            assert nearest < 0.6, prompt
