"""`make book`: what is gathered from the notebooks, the HTML, the PDF, and how they look in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, PROJECT

sys.path.insert(0, str(PROJECT / "book"))
import gather  # noqa: E402

import book as tool  # noqa: E402

CHROMIUM = tool.find_chromium()
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (the package chromium)")


def make(*options):
    command = [sys.executable, str(PROJECT / "tools" / "book.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def gathered():
    return gather.Book(PROJECT / "NoteBooks")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The HTML of the committed notebooks."""
    target = tmp_path_factory.mktemp("book") / "html"
    result = make("--to", target, "--no-pdf")
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module")
def pages(html):
    paths = [*html.glob("*.html"), *html.glob("solutions/*.html")]
    return {
        str(path.relative_to(html)): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths
    }


# ---- what is gathered ----


def test_every_package_of_the_book_is_pinned():
    for line in (PROJECT / "book" / "requirements.txt").read_text().splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+(?: +# \S.*)?", line), line


def test_a_term_is_explained_in_its_chapter_s_own_words(gathered):
    assert len(gathered.terms) > 30
    for term, entry in gathered.terms.items():
        assert entry["sentence"].rstrip(".") in "\n".join(gathered.markdown(entry["quoted"])), term


def test_a_term_that_its_chapter_dropped_stops_the_build(monkeypatch, tmp_path):
    (tmp_path / "terms.txt").write_text("01 token\n01 phlogiston\n")
    monkeypatch.setattr(gather, "HERE", tmp_path)
    with pytest.raises(gather.BookError, match=r"notebook 01 no longer sets \*phlogiston\* in italics"):
        _ = gather.Book(PROJECT / "NoteBooks").terms


def test_the_bibliography_has_every_work_once(gathered):
    def letters(text):
        return re.sub(r"\W+", "", text).lower()

    text = letters(gathered.bibliography())
    for number in gathered.notebooks:
        listed = "\n".join(gathered.markdown(number)).partition("### References")[2].partition("\n### ")[0]
        for title in re.findall(r"\*(.+?)\*", listed):  # a title may be cited in full or in short
            assert text.count(letters(title)[:15]) == 1, title
    assert gather.split_references("A. Bee, *One*, 2001; *Two*, 2002; see there; C. Dee, *Three*, 2003.") == [
        "A. Bee, *One*, 2001", "A. Bee, *Two*, 2002; see there", "C. Dee, *Three*, 2003."]  # fmt: skip


def test_the_minutes_are_those_of_the_run_cards(gathered):
    for number in gathered.notebooks:
        card, text = gathered.run_card(number), gathered.time(number)
        if card is None:
            assert "without a run card" in text
        else:
            assert text.startswith(f"{max(1, round(card['phases']['whole notebook']['seconds'] / 60))} minute")


def test_numbers_stand_right_and_all_else_left():
    html = (
        "<table border='1'><thead><tr style='text-align: right;'><th>a</th><th>b</th></tr></thead>"
        "<tr><td>left</td><td>1,250</td></tr><tr><td>7</td><td>-3 %</td></tr></table>"
    )
    table = BeautifulSoup(gather.aligned(html), "html.parser")
    assert [cell.get_text() for cell in table.select(".number")] == ["b", "1,250", "-3 %"]
    assert not table.select("[style], [border]")


def test_a_plot_is_described_by_what_its_code_writes_on_it():
    cell = nbformat.v4.new_code_cell("def draw(title):\n    axes.set(title=title, xlabel='step')\n")
    helpers = {node.name: node for node in gather.definitions_in(cell)}
    assert gather.describe("draw(f'Loss ({PROFILE})')", helpers) == "Plot. Loss. Horizontal axis: step."


# ---- the page on peers ----

PEERS = (PROJECT / "book" / "peers.md").read_text(encoding="utf-8")


def rows_of(heading):
    """Return the rows of the table below a heading of the page on peers, as lists of cells."""
    table = PEERS.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "][
        2:
    ]


def test_every_link_of_the_page_on_peers_leads_to_a_section_or_a_test(gathered):
    for text, target in re.findall(r"\[([^\]]+)\]\(\.\./([^)]+)\)", PEERS):
        path, _, fragment = target.partition("#")
        assert (PROJECT / path).exists(), target
        if path.startswith("NoteBooks/"):
            number, heading = path[10:12], text.partition(", ")[2]
            assert gathered.paths[number].name == path[10:] and text.startswith(number)
            assert fragment in gathered.headings(number) and fragment == heading.replace(" ", "-"), target
        elif path.startswith("tests/"):
            assert f"\ndef {text.strip('`')}(" in (PROJECT / path).read_text(encoding="utf-8"), text
        else:
            headings = re.findall(r"^## (.+)$", (PROJECT / path).read_text(encoding="utf-8"), re.M)
            assert not fragment or fragment in map(gather.slug, headings), target


def test_every_yes_is_shown_and_every_gap_is_named():
    points, wishes = rows_of("Point by point"), rows_of("You asked")
    for point, _, here in points:
        answer = re.match(r"Yes|Partly|\*\*No\.?\*\*", here)
        assert answer, point
        assert answer[0] != "Yes" or "](../" in here, point
    assert [int(wish.partition(".")[0]) for wish, _ in wishes] == list(range(1, 16))
    assert all("](../" in answer or "**Not answered" in answer for _, answer in wishes)


def test_a_section_that_is_gone_stops_the_build(gathered):
    with pytest.raises(gather.BookError, match="notebook 05 has no such heading"):
        gathered.with_links("[05, Gone](../NoteBooks/05_use_what_you_trained.ipynb#Gone)")


# ---- the HTML ----


def test_every_page_opens_without_a_network(pages):
    assert {f"{path.stem}.html" for path in NOTEBOOKS} < set(pages)
    for name, page in pages.items():
        for tag in page.select("[src], link[href]"):
            source = tag.get("src") or tag["href"]
            assert not re.match(r"(https?:)?//", source), f"{name} loads {source}"


def test_every_link_within_the_book_leads_somewhere(html, pages):
    targets = {name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()}
    for name, page in pages.items():
        for href in {tag["href"] for tag in page.select("a[href]")}:
            file, _, fragment = href.partition("#")
            if re.match(r"[a-z]+:", href) or not href.strip("#"):
                continue
            file = os.path.normpath(Path(name).parent / file) if file else name
            assert (html / file).exists(), f"{name} → {href}"
            assert not fragment or fragment in targets[file], f"{name} → {href}"


def test_chapters_are_whole(pages, gathered):
    """Code, outputs, formulas, folded cells and plots of a notebook are all there."""
    for number, notebook in gathered.notebooks.items():
        page = pages[f"{gathered.paths[number].stem}.html"]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert len(page.select("div.cell_input")) == len(code)
        folded = [cell for cell in code if "hide-input" in cell.metadata.get("tags", [])]
        lines = [line.get_text() for line in page.select("details.hide > summary")]
        assert len(lines) == len(folded) + (gathered.run_card(number) is not None)
        assert all(f"of NoteBooks/{gathered.paths[number].name}" in line for line in lines)
        plots = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
        images = page.select("div.cell_output img")
        assert len(images) == plots and all(len(image["alt"]) > 20 for image in images)
        assert len(page.select("math")) >= "\n".join(gathered.markdown(number)).count("$$") / 2


def test_exercises_lead_to_the_pages_of_their_solutions_and_back(pages, gathered):
    assert gathered.solutions
    for path in gathered.solutions:
        chapter, page = gathered.paths[path.name[:2]], pages[f"solutions/{path.stem}.html"]
        links = pages[f"{chapter.stem}.html"].select(f'article a[href="solutions/{path.stem}.html"]')
        assert len(links) == len(page.select("article h2")) and page.select(f'article a[href="../{chapter.stem}.html"]')
        assert all(len(image["alt"]) > 20 for image in page.select("div.cell_output img"))


def test_a_solution_that_is_not_there_leaves_the_text_of_its_link(gathered):
    text = "1. Try it. ([solution](solutions/99_solutions.ipynb))"
    assert gathered.with_solutions(text) == "1. Try it. (solution)"


def test_glossary_and_index_lead_into_the_chapters(pages, gathered):
    assert len(pages["glossary.html"].select("main dt")) == len(gathered.terms)
    assert len(pages["functions.html"].select("main dt")) == len(gathered.definitions)
    for name in ("glossary.html", "functions.html"):
        for link in pages[name].select("main dl a"):
            assert re.match(r"\d\d_\w+\.html#(term|def)-", link["href"]) or link["href"].startswith("#"), link


def test_no_page_names_a_place_of_this_machine(html):
    for path in [*html.glob("*.html"), *html.glob("solutions/*.html")]:
        assert str(PROJECT) not in path.read_text(encoding="utf-8")


def test_a_warning_fails_and_leaves_the_last_book_alone(tmp_path):
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
    broken = nbformat.read(tmp_path / NOTEBOOKS[-1].name, as_version=4)
    broken.cells[1].source += "\n\n[nowhere](#no-such-heading)"
    nbformat.write(broken, tmp_path / NOTEBOOKS[-1].name)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.html").write_text("the last one")
    result = make("--notebooks", tmp_path, "--to", tmp_path / "book", "--no-pdf")
    assert result.returncode == 1 and "no-such-heading" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "book").iterdir()] == ["index.html"]
    assert not list(tmp_path.glob(".book-*"))


# ---- the PDF, and the look in a browser ----


@pytest.mark.long
@needs_chromium
def test_the_pdf_has_bookmarks_contents_and_page_numbers(tmp_path, gathered):
    import pymupdf

    result = make("--to", tmp_path / "book")
    assert result.returncode == 0, result.stderr
    pdf = pymupdf.open(tmp_path / "book" / tool.PDF)
    texts = [page.get_text() for page in pdf]
    for number, page in enumerate(pdf, start=1):
        foot = page.get_text(clip=(0, page.rect.height - 50, page.rect.width, page.rect.height)).strip()
        assert foot == ("" if number == 1 else str(number))
        assert all(word[2] <= page.rect.width - 40 for word in page.get_text("words")), (
            f"page {number} is cut at the right"
        )
    contents = " ".join(" ".join(texts[1:5]).split())
    for level, title, page in pdf.get_toc():
        assert "".join(title.split()) in "".join(texts[page - 1].split()), title
        if level == 2:  # a chapter: it begins a page, whose number comes first in its text
            assert "".join(texts[page - 1].split()).startswith(str(page) + "".join(title.split()))
            assert f"{' '.join(title.split())} {page}" in contents
    for number in gathered.notebooks:  # no line of code is cut off: its letters are all on paper
        printed = "".join("".join(texts).split())
        for cell in gathered.notebooks[number].cells:
            if cell.cell_type == "code" and "hide-input" not in cell.metadata.get("tags", []):
                for line in cell.source.splitlines():
                    assert not line.isascii() or "".join(line.split()) in printed, line


LOOK = """
<script src="AXE"></script><script>
addEventListener("load", async () => {
  const scrolls = element => ["auto", "scroll", "hidden"].includes(getComputedStyle(element).overflowX);
  const inside = element => { for (let e = element; e && e !== document.body; e = e.parentElement) if (scrolls(e)) return true };
  const wide = [...document.querySelectorAll("article *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !inside(e)).map(e => "too wide: " + e.outerHTML.slice(0, 120));
  await new Promise(done => setTimeout(done, 1000));  // the theme makes what scrolls reachable by keyboard, a little later
  const found = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa"], iframes: false});
  const faults = found.violations.flatMap(v => v.nodes.map(n => v.id + ": " + n.html.slice(0, 120)));
  parent.postMessage([innerWidth, "MODE", ...wide, ...faults], "*");
});
</script></head>"""
FRAMES = """<!doctype html><body><script>
const looks = [], todo = SIZES;
function next() { const [file, width] = todo.shift(), frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = file; document.body.replaceChildren(frame); }
addEventListener("message", event => { looks.push(event.data);
  if (todo.length) next(); else { const pre = document.createElement("pre"); pre.id = "looks";
    pre.textContent = JSON.stringify(looks); document.body.replaceChildren(pre); } });
next();
</script></body>"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core from npm, or a skip that says why not."""
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        pytest.skip("needs npm, for axe-core")
    result = subprocess.run(
        ["npm", "install", "--silent", "axe-core@4.14.1"], cwd=folder, capture_output=True, text=True
    )
    if result.returncode:
        pytest.skip(f"npm cannot install axe-core: {result.stderr.strip()[-200:]}")
    return folder / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.long
@needs_chromium
def test_pages_fit_phone_and_desk_and_their_contrast_is_aa(html, axe, tmp_path):
    shutil.copytree(html, tmp_path / "book")
    shutil.copy(axe, tmp_path / "book" / "axe.js")
    for path in sorted(html.glob("*.html")):
        sizes = []
        for mode in ("light", "dark"):
            text = path.read_text(encoding="utf-8").replace(
                "</head>", LOOK.replace("AXE", "axe.js").replace("MODE", mode), 1
            )
            text = text.replace('localStorage.getItem("mode") || ""', f'"{mode}"')
            text = text.replace('localStorage.getItem("theme") || ""', f'"{mode}"')
            (tmp_path / "book" / f"{mode}.html").write_text(text, encoding="utf-8")
            sizes += [(f"{mode}.html", 390), (f"{mode}.html", 1280)]
        (tmp_path / "book" / "frames.html").write_text(FRAMES.replace("SIZES", json.dumps(sizes)))
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--window-size=1400,900", "--virtual-time-budget=300000", "--dump-dom"]  # fmt: skip
        result = subprocess.run(
            [*command, (tmp_path / "book" / "frames.html").as_uri()], capture_output=True, text=True
        )
        found = BeautifulSoup(result.stdout, "html.parser").find(id="looks")
        assert found, f"{path.name}: the browser did not answer"
        looks = json.loads(found.get_text())
        assert [look[:2] for look in looks] == [[390, "light"], [1280, "light"], [390, "dark"], [1280, "dark"]]
        for look in looks:
            assert not look[2:], f"{path.name} at {look[0]} pixels, {look[1]}: {look[2:6]}"
