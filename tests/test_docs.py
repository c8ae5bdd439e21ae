"""What the README and a notebook's prose say agrees with the parameters and with the run card."""

import json
import re
import subprocess

import nbformat
import pytest
from conftest import NOTEBOOKS, PROJECT
from notebook_code import parameters_of

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def practice_of(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    return text[text.index("### In practice") :]


def test_readme_lists_every_notebook():
    for path in NOTEBOOKS:
        assert f"(NoteBooks/{path.name})" in README


@pytest.mark.parametrize(
    "name", ["README.md", "CLAUDE.md", "data/README.md", "Books/README.md", "benchmarks/README.md"]
)
def test_relative_links_resolve(name):
    page = PROJECT / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_links_in_notebooks_resolve():
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source):
                    assert target.startswith("http") or (path.parent / target).exists(), target


def test_every_make_target_that_the_readme_names_exists():
    targets = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True).stdout
    text = README + (PROJECT / "CLAUDE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^    |[=\w]+ )make ([a-z-]+)(?=`| NOTEBOOK|  |$)", text, re.M))
    assert {"run", "test", "setup", "lab", "lock"} <= named
    for target in named:
        assert f"make {target} " in targets, target


def test_the_cookbook_table_agrees_with_the_parameters(notebook_01):
    parameters, practice = parameters_of(notebook_01), practice_of(notebook_01)
    full = {name: value["full"] if isinstance(value, dict) else value for name, value in parameters.items()}
    rows = {
        cells[0]: cells[1:]
        for cells in (
            [c.strip() for c in line.strip("|").split("|")] for line in practice.splitlines() if line.startswith("|")
        )
    }
    assert rows["LoRA rank, alpha"][1] == f"{full['LORA_RANK']}, {full['LORA_ALPHA']}"
    schedule = rows["learning rate, schedule"][0]
    assert f"{full['LEARNING_RATE']:.0e}".replace("e-0", "e-") in schedule
    assert f"`min_lr_rate` {full['MIN_LR_RATE']}" in schedule and f"warm-up {full['WARMUP_RATIO']}" in schedule
    theirs, ours = rows["batch × accumulation, epochs, length"][:2]
    assert theirs == f"4 × 4, {full['EPOCHS']}, {full['MAX_LENGTH']:,}" and full["EFFECTIVE_BATCH"] == 4 * 4
    assert ours.startswith(f"{full['EFFECTIVE_BATCH']} rows a step") and full["BATCH_SIZE"] == "auto"
    assert ours.endswith(f"; {full['EPOCHS']}; {full['MAX_LENGTH']:,}")
    assert full["MODEL"] == "openai/gpt-oss-20b" and "kept packed" in rows["library, weights"][1]
    layers = full["EXPERT_LAYERS"]
    assert f"experts of layers {layers[0]}, {layers[1]}, {layers[2]}" in rows["target layers"][0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_the_committed_run_card_is_of_these_parameters(path, committed_card):
    parameters = parameters_of(path)
    for name, value in committed_card(path)["parameters"].items():
        if name != "PROFILE":
            stated = parameters[name]
            by_profile = isinstance(stated, dict) and set(stated) == {"full", "rehearsal"}
            assert value == (stated["rehearsal"] if by_profile else stated), name


def check_cost(row, card):
    """Hold the minutes and GiB of a README row against the run card."""
    minutes, memory = re.search(r"(\d+) minutes, ([\d.]+) GiB", row).groups()
    assert int(minutes) == round(card["phases"]["whole notebook"]["seconds"] / 60)
    assert float(memory) == round(max(phase["peak_bytes"] for phase in card["phases"].values()) / 2**30, 1)


def test_readme_figures_of_notebook_01_are_those_of_the_committed_run_card(notebook_01, committed_card):
    card = committed_card(notebook_01)
    row = next(line for line in README.splitlines() if notebook_01.name in line and line.startswith("|"))
    shares = [card["metrics"]["before"]["fidelity_beyond_english"], card["metrics"]["after"]["fidelity_beyond_english"],
              card["metrics"]["after"]["fidelity_beyond_english_with_unsloth_detection"]]  # fmt: skip
    before, after, detected = (round(one["value"] * one["n"]) for one in shares)
    assert f"{before} → {after} of {shares[1]['n']} held-out prompts that ask for another language than English" in row
    assert f"{detected} with the mask that Unsloth detects" in row
    check_cost(row, card)


def test_notebook_01_s_speeds_on_a_gpu_are_those_of_their_record(notebook_01):
    record = json.loads((PROJECT / "benchmarks" / "results" / "train_step_h100_gpt-oss.json").read_text())
    entries = {entry["recipe"]: entry for entry in record["results"]}
    rows = [
        line for line in practice_of(notebook_01).splitlines() if re.search(r"\| [\d,]+ \| \d+\.\d \| [\d,]+ \|", line)
    ]
    names = (
        "Cookbook, bf16",
        "notebook, MXFP4, 4 rows",
        "notebook, MXFP4, 16 rows",
        "notebook, MXFP4, no checkpointing",
    )
    for row, name in zip(rows, names, strict=True):
        even, real = entries[name]["even"], entries[name]["real"]
        assert (
            f"| {even['median_tokens_per_s']:,.0f} | {even['peak_bytes'] / 2**30:.1f} | {real['supervised_tokens_per_s']:,.0f} |"
            in row
        )
    lead = [
        entries[name]["even"]["median_tokens_per_s"] / entries[names[0]]["even"]["median_tokens_per_s"]
        for name in names
    ]
    assert f"{lead[1]:.1f}, {lead[2]:.1f} and {lead[3]:.1f} times the Cookbook's speed" in practice_of(notebook_01)
    code = "\n".join(cell.source for cell in nbformat.read(notebook_01, as_version=4).cells if cell.cell_type == "code")
    assert f'at a time": {entries[names[1]]["even"]["median_tokens_per_s"]:_.0f},' in code
    assert f'at a time": {entries[names[2]]["real"]["nonpadding_tokens_per_s"]:_.0f}}}' in code


def test_what_notebook_01_says_of_its_variations_is_in_their_record(notebook_01):
    """The prose below the table: what a language costs over three seeds, and what brings it back."""
    runs = json.loads((PROJECT / "benchmarks" / "results" / "variations_h100.json").read_text())["runs"]
    tuned = {name: run["counts"]["tuned"] for name, run in runs.items()}
    seeds = [tuned[f"as here, seed {seed}"] for seed in (42, 1, 2)]
    rows = [one for name, one in tuned.items() if name.startswith("rows without English questions")]
    weaker = [one for name, one in tuned.items() if name.startswith(("learning rate", "40 steps"))]
    for run in runs.values():
        assert run["counts"]["base"]["foreign answered as asked"] == run["counts"]["base"]["foreign"] == 15
    assert all(one["faithful"] >= 29 and one["foreign answered as asked"] < 15 for one in seeds)
    assert all(one["foreign answered as asked"] <= 12 and one["faithful"] <= 23 for one in weaker)  # gives back little
    assert all(one["foreign answered as asked"] >= 13 for one in rows)
    assert max(one["answered as asked"] for one in rows) < min(one["answered as asked"] for one in seeds)
    longer = tuned["160 steps, seed 42"]
    assert all(longer[name] > max(one[name] for one in seeds) for name in ("faithful", "foreign answered as asked"))


def test_readme_figures_of_notebook_02_are_those_of_the_committed_run_card(notebook_02, committed_card):
    card = committed_card(notebook_02)
    row = next(line for line in README.splitlines() if notebook_02.name in line and line.startswith("|"))
    before, alone, after = (card["metrics"][when] for when in ("before", "without_replay", "after"))

    def shares(metric, *stages):
        return " → ".join(f"{stage[metric]['value']:.0%}" for stage in stages)

    assert f"emoji in {shares('emoji_replies', before, after)} of sound replies" in row
    assert f"valid JSON {shares('json_valid', before, after)}" in row
    assert f"answers in the question's language {shares('language_retention', before, alone, after)}" in row
    assert "(base, mixture alone, with replay" in row
    check_cost(row, card)


def test_readme_figures_of_notebook_03_are_those_of_the_committed_run_card(notebook_03, committed_card):
    card = committed_card(notebook_03)
    row = next(line for line in README.splitlines() if notebook_03.name in line and line.startswith("|"))
    before, after = (card["metrics"][when]["bits_per_byte"]["value"] for when in ("before", "after"))
    change, control, other = (
        card["metrics"]["after"][f"bits_per_byte_change{which}"] for which in ("", "_control", "_other_text")
    )
    assert f"{before:.3f} → {after:.3f}, paired change over {change['n']} ranges" in row
    assert f"{change['value']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})" in row
    assert f"a third author's prose {control['value']:+.1%}, text by others {other['value']:+.1%}" in row
    assert " ".join(entry["finding"] for entry in card["findings"][-3:]) in row
    check_cost(row, card)


def test_readme_figures_of_notebook_04_are_those_of_the_committed_run_card(notebook_04, committed_card):
    card = committed_card(notebook_04)
    row = next(line for line in README.splitlines() if notebook_04.name in line and line.startswith("|"))
    after, methods = card["metrics"]["after"], ("lora", "qlora", "full")
    best = card["base_at_its_best"]
    asked = {"zero-shot.exact_match": card["metrics"]["before"]["exact_match"], **card["metrics"]["prompted"]}
    base = [asked[f"{way}.exact_match"]["value"] for way in ("zero-shot", best)]
    assert f"exact match {base[0]:.0%} (zero-shot), {base[1]:.0%} (at its best: {best})" in row
    assert " / ".join(f"{after[f'{method}.exact_match']['value']:.0%}" for method in methods) in row
    assert " / ".join(f"{after[f'{method}.final_line']['value']:.0%}" for method in methods) in row
    memory = " / ".join(f"{card['memory'][method]['measured_bytes'] / 2**20:,.0f}" for method in methods)
    assert f"{memory} MiB" in row
    check_cost(row, card)


def test_the_readme_s_template_output_is_what_the_template_gives(tokenizers):
    messages = [
        {"role": "system", "content": "reasoning language: German"},
        {"role": "user", "content": "¿Cuál es la capital de Australia?"},
    ]
    text = tokenizers["gpt-oss"].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    shown = "\n".join(line.removeprefix("    ") for line in README.splitlines())
    assert text in shown


def test_the_readme_s_reading_path_is_the_book_s(committed_card):
    """Whom a chapter is for and what to know before stand in book/reading.md; minutes come from the run cards."""
    page = (PROJECT / "book" / "reading.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        number = path.name[:2]
        whom, before, minutes = next(
            re.match(rf"\| {number} \| (.+) \| (.+) \| (\d+) \|$", line).groups()
            for line in README.splitlines()
            if line.startswith(f"| {number} |")
        )
        about = page.partition(f"{{{{ title {number} }}}}")[2].partition("### ")[0]
        assert f"**For** {whom}\n" in about and f"**Know before:** {before}\n" in about
        assert int(minutes) == max(1, round(committed_card(path)["phases"]["whole notebook"]["seconds"] / 60))


LITTLE = set("with from that this they what which when were have their them then than same each into".split())


def beginnings(text):
    """Return the first four letters of a text's longer words, so that `prove` meets `proving`."""
    return {word[:4] for word in re.findall(r"[a-z]{4,}", text.lower()) if word not in LITTLE}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_the_recap_answers_the_objectives_one_by_one(path):
    """As many answers as objectives, in the same order, and each speaks of its objective."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    pattern = r"(?m){}\n\n((?:- .+\n?)+)"
    objectives = re.search(pattern.format(r"\*\*You will learn\*\*"), cells[0])[1].splitlines()
    answers = re.search(pattern.format(r"^## \d Recap"), "\n\n".join(cells))[1].splitlines()
    for objective, answer in zip(objectives, answers, strict=True):
        assert beginnings(objective) & beginnings(answer), f"{objective!r} is not what {answer!r} speaks of"


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if not path.name.startswith("05")], ids=lambda path: path.name[:2]
)
def test_the_picture_of_a_chapter_is_of_its_committed_run_and_stands_in_the_readme(path, committed_card):
    """SVG and PNG carry the start of their run; the README shows them with a text for those who do not see them."""
    from PIL import Image

    said = f"{path.stem}, run of {committed_card(path)['started']}"
    picture = PROJECT / "book" / "figures" / path.stem
    assert Image.open(picture.with_suffix(".png")).text["Title"] == said
    assert f"<dc:title>{said}</dc:title>" in picture.with_suffix(".svg").read_text(encoding="utf-8")
    shown = re.search(rf"!\[([^\]]+)\]\(book/figures/{path.stem}\.png\)\]\(book/figures/{path.stem}\.svg\)", README)
    assert shown and len(shown[1]) > 40
