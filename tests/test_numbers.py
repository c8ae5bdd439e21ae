"""No number in a chapter's prose goes stale: what looks measured is found in the chapter's code, outputs or a record.

A number looks measured if it has decimals, a sign of percent, a separator of thousands, an exponent, or a unit. It is
found if a code cell of the chapter holds it or prints it, digit for digit (its plots and its run card apart), or, in a
cell that names benchmarks/, if a value of a record rounds to it. Text in backticks is code; references have years.
What the rule can't see: integers without a unit, numbers in words, and a wrong number that another output happens to
print. Small ones meet that often, those with thousands hardly ever: the last test counts.
"""

import functools
import re

import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT, read_jsonl

UNITS = """% GiB MiB KiB GB MB TB bytes? bits? tokens? rows? minutes? seconds? hours? s ms prompts? questions? replies
steps? pages? words? problems? layers? parameters weights million billion cards? cores? times letters? points
characters""".split()
WRITTEN = re.compile(  # a name or a version (Apache-2.0, CC BY 4.0, 0.34.1) is no number
    rf"(?<![\w.])(?<!\w-)(?<!CC BY )(?<!CC BY-SA )(\d{{1,3}}(?:,\d{{3}})+|\d+)(\.\d+)?(?!\.\d)(e-?\d+)?(?:[ \u00a0-]?({'|'.join(UNITS)})(?!\w))?"
)
PRINTED = re.compile(r"(\d+(?:[,_]\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)(\s?%)?")
SCALES = {"%": [100], "GiB": [2**-30], "MiB": [2**-20], "KiB": [2**-10], "GB": [1e-9], "MB": [1e-6], "minutes": [1 / 60],
          "million": [1e-6], "billion": [1e-9]}  # fmt: skip
EXCEPTIONS = {  # (chapter, number as written): why no cell of ours prints it
    ("01", "1,000 rows"): "the size that Multilingual-Thinking's own page states",
    ("02", "2014.0"): "an example of a JSON number",
    ("02", "1,698 word"): "the size of CMATH that its page states; benchmarks/epoch_cost.py counts with it",
    ("02", "1,772"): "the size of MAWPS that its page states; benchmarks/epoch_cost.py counts with it",
    ("03", "200,000 words"): "gpt-oss's vocabulary in round figures",
    ("04", "8,500 word"): "the size that GSM8K's authors state, in round figures",
    ("04", "135 million"): "the size of SmolLM2-135M as its makers name it",
    ("05", "19 MB"): "what the packages of requirements-serve.txt took when they were installed",
    ("05", "24 GB"): "the size of a card in its maker's words",
    ("05", "135 million"): "the size of SmolLM2-135M as its makers name it",
}
DERIVED = {  # (chapter, number as written): how it follows from a file or by arithmetic
    ("02", "767 rows"): lambda: sum(map(len, map(read_jsonl, SKILLS))) == 767,
    ("02", "4.127"): lambda: round(4 + 8 / 64 + 32 / (64 * 256), 3) == 4.127,
    ("03", "9,000 words"): lambda: all(
        round(words(path), -3) == 9000 for path in (PROJECT / "data/books").glob("*.md")
    ),
}
FAMILIES = {"01": "gpt-oss", "02": "qwen3", "03": "gpt-oss", "04": "gemma", "05": "gpt-oss"}
SKILLS = [f"{name}.jsonl" for name in ("emoji_chat", "cmath", "mawps", "json_only", "tool_calls")]


def words(book):
    """Return the words of a book of data/, without its front matter."""
    return len(book.read_text(encoding="utf-8").split("---\n", 2)[2].split())


def numbers(text):
    """Return ({number as printed}, {number that a % follows, as printed}) of a text, without separators."""
    values, shares = set(), set()
    for digits, percent in PRINTED.findall(text):
        forms = {re.sub("[,_]", "", digits), *digits.split(",")}
        (shares if percent else values).update(f"{float(form):g}" if "e" in form else form for form in forms)
    return values, shares


def shown(notebook):
    """Return all text of a notebook's code cells and their outputs, but for the run card."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts.append(cell.source)
            for output in cell.outputs:
                data = output.get("data", {})
                if "application/json" not in data:
                    parts += [output.get("text", ""), re.sub(r"<[^>]+>", " ", data.get("text/html", ""))]
                    parts += [value for kind, value in data.items() if kind in ("text/plain", "text/markdown")]
    return "\n".join(parts)


@functools.cache
def records(number):
    """Return the values of the records of benchmarks/, but for those that are named after another chapter's model."""
    files = sorted((PROJECT / "benchmarks" / "results").glob("*.json"))
    others = {"gpt-oss", "qwen3", "gemma"} - {FAMILIES[number]}
    files = [path for path in files if not any(name in path.name for name in others)]
    return {float(one) for path in files for one in numbers(path.read_text(encoding="utf-8"))[0]}


def is_found(match, pools, rounded):
    """Tell whether a number, as a match of WRITTEN, is printed, or is what a value of the records rounds to."""
    whole, decimals, exponent, unit = match.groups()
    written = whole.replace(",", "") + (decimals or "")
    written = f"{float(written + exponent):g}" if exponent else written
    values, shares = pools
    if written in (shares if unit == "%" else values):
        return True
    if unit == "%" and f"{float(written) / 100:g}" in values:  # a share that code holds as a literal
        return True
    digits, scales = len(decimals) - 1 if decimals else 0, [1, *SCALES.get(unit, [2**-30] if decimals else [])]
    return any(
        round(known * scale, digits) == float(written)
        for scale in scales
        for known in rounded
        if scale != 2**-30 or known > 2**27  # bytes, and nothing that only looks like them
    )


def measured(notebook):
    """Yield (match, cell's place, whether the cell names the records, words around it) for what looks measured."""
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            prose = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", cell.source.partition("### References")[0])
            for match in WRITTEN.finditer(prose):
                if any(match.groups()[1:]) or "," in match[1]:
                    around = " ".join(prose[max(0, match.start() - 50) : match.end() + 30].split())
                    yield match, place, "benchmarks/" in cell.source, around


def stale(notebook, number):
    """Return what can't be found, as lines that name cell, number and place."""
    pools = numbers(shown(notebook))
    return [
        f"cell {place}: {match[0]!r} in “{around}”"
        for match, place, names_records, around in measured(notebook)
        if (number, match[0]) not in EXCEPTIONS | DERIVED
        and not is_found(match, pools, records(number) if names_records else ())
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_numbers_in_prose_are_in_outputs_code_or_records(path):
    assert not stale(nbformat.read(path, as_version=4), path.name[:2])


def test_exceptions_are_still_in_the_prose_and_what_is_derived_follows():
    read = {path.name[:2]: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    written = {(number, match[0]) for number, notebook in read.items() for match, *_ in measured(notebook)}
    assert set(EXCEPTIONS) | set(DERIVED) <= written
    for name, follows in DERIVED.items():
        assert follows(), name


@pytest.mark.parametrize(
    ("number", "right", "wrong"),
    [("01", "15,498", "15,598"), ("02", "767 rows", "766 rows"), ("04", "5,979", "5,978"), ("04", "2,856", "2,956")],
)
def test_a_planted_wrong_number_is_found(number, right, wrong):
    notebook = nbformat.read(next(path for path in NOTEBOOKS if path.name.startswith(number)), as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(right, wrong)
    assert [line for line in stale(notebook, number) if repr(wrong)[:-1] in line]


def test_most_wrong_numbers_with_thousands_are_found():
    """The last digit of each such number is moved by one, two, three: nearly always nothing prints the result."""
    seen = tried = 0
    for path in NOTEBOOKS:
        number, notebook = path.name[:2], nbformat.read(path, as_version=4)
        pools = numbers(shown(notebook))
        for match, _, names_records, _ in measured(notebook):
            if "," in match[1] and not match[2]:
                for step in (1, 2, 3):
                    moved = match[1][:-1] + str((int(match[1][-1]) + step) % 10)
                    rounded = records(number) if names_records else ()
                    tried, seen = tried + 1, seen + (not is_found(WRITTEN.fullmatch(moved), pools, rounded))
    assert tried > 50 and seen / tried > 0.9
