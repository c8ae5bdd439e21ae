"""From the notebooks to Sphinx's sources: the chapters, and the pages that are gathered from them.

    python book/gather.py NOTEBOOKS TARGET

The notebooks stay as they are; what is changed for the book is changed in the copies below TARGET. A page of this
folder holds marks such as `{{ time 01 }}`, and a function of this file with that name fills each of them.
"""

import ast
import functools
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup

HERE = Path(__file__).resolve().parent
FOLDED = "hide-input"
NUMBER = re.compile(r"[-−+±]?[\d.,\s]*\d\s*(?:%|s|MiB|GiB)?|nan|–|")
ELSEWHERE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")  # a link from a page of this folder to a file of the repository
SAYS = {"suptitle": "", "title": "", "set_title": "", "xlabel": "Horizontal axis: ", "set_xlabel": "Horizontal axis: ",
        "ylabel": "Vertical axis: ", "set_ylabel": "Vertical axis: ", "label": "Drawn: "}  # fmt: skip


class BookError(Exception):
    """Something a person can mend; its text says what and where."""


def in_italics(spelling):
    """Return the pattern of a term that is set in italics, and not in bold."""
    return re.compile(rf"(?<![*\w])\*({re.escape(spelling)})\*(?![*\w])", re.I)


def slug(text):
    """Return a text as a name that may stand in a link."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Book:
    """The notebooks of a folder, read once, and what the pages say of them."""

    def __init__(self, folder):
        self.paths = {path.name[:2]: path for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))}
        if not self.paths:
            raise BookError(f"{folder} holds no notebook whose name begins with two digits and an underscore.")
        self.notebooks = {number: nbformat.read(path, as_version=4) for number, path in self.paths.items()}
        self.solutions = sorted((Path(folder) / "solutions").glob("[0-9][0-9]_*.ipynb"))

    # ---- what is read off the notebooks ----

    def markdown(self, number):
        """Return the sources of a chapter's Markdown cells."""
        return [cell.source for cell in self.notebooks[number].cells if cell.cell_type == "markdown"]

    def run_card(self, number):
        """Return the run card that a chapter's last cell shows, or None where it shows none."""
        outputs = self.notebooks[number].cells[-1].get("outputs", [])
        return next((o.data["application/json"] for o in outputs if "application/json" in o.get("data", {})), None)

    def link(self, number, target="", text=""):
        """Return a Markdown link to a chapter, or to a target in it."""
        return f"[{text or number}]({'#' + target if target else self.paths[number].name})"

    @functools.cached_property
    def terms(self):
        """Return {term: {"chapters": {number: spelling}, "sentence": …}} for the lines of terms.txt.

        A line names the chapter whose sentence is quoted, the term as that chapter sets it in italics, and after
        commas other spellings. The sentence is the chapter's own.
        """
        found = {}
        for line in (HERE / "terms.txt").read_text(encoding="utf-8").splitlines():
            if not re.match(r"\d\d \S", line):
                continue
            quoted, spellings = line[:2], [one.strip() for one in line[3:].split(",")]
            chapters = {}
            for number in self.notebooks:
                for spelling in spellings:
                    if any(map(in_italics(spelling).search, self.markdown(number))):
                        chapters.setdefault(number, spelling)
            if quoted not in chapters:
                raise BookError(f"terms.txt: notebook {quoted} no longer sets *{spellings[0]}* in italics.")
            used = in_italics(chapters[quoted]).search
            paragraph = next(part for part in "\n\n".join(self.markdown(quoted)).split("\n\n") if used(part))
            sentences = re.split(r"(?<=[.!?])(?<!\b[A-Z]\.)\s+(?=[A-Z*`\"(])", paragraph)
            sentence = re.sub(r":$", ".", next(filter(used, sentences)))
            found[spellings[0]] = {"quoted": quoted, "chapters": chapters, "sentence": re.sub(r"^[-#] ", "", sentence)}
        return found

    @functools.cached_property
    def definitions(self):
        """Return {name: {"says": first line of the docstring, "chapters": [numbers]}} of functions and classes."""
        found = {}
        for number, notebook in self.notebooks.items():
            for cell in notebook.cells:
                for node in definitions_in(cell):
                    says = (ast.get_docstring(node) or "").partition("\n")[0]
                    entry = found.setdefault(node.name, {"says": says, "chapters": []})
                    entry["chapters"] += [number] if number not in entry["chapters"] else []
        return found

    @functools.cached_property
    def entries(self):
        """Return {reference: [numbers]} from the chapters' own lists; one work cited twice is one entry, the longest."""
        found = []  # [title as letters only, text, numbers]
        for number in self.notebooks:
            text = next((source for source in self.markdown(number) if "### References" in source), "")
            listed = text.partition("### References")[2].partition("\n### ")[0]
            for bullet in re.findall(r"^- (.+)$", listed, re.M):
                for reference in split_references(bullet):
                    title = re.sub(r"\W+", "", re.search(r"\*(.+?)\*", reference)[1]).lower()
                    same = next((e for e in found if e[0].startswith(title) or title.startswith(e[0])), None)
                    if same:
                        same[0], same[1] = max(same[0], title, key=len), max(same[1], reference, key=len)
                        same[2] += [number] if number not in same[2] else []
                    else:
                        found.append([title, reference, [number]])
        return {text: numbers for _, text, numbers in sorted(found, key=lambda entry: surname(entry[1]))}

    # ---- what fills the marks of the pages ----

    def title(self, number):
        """The chapter's title, as a link."""
        return self.link(number, text=self.markdown(number)[0].splitlines()[0].removeprefix("# "))

    def time(self, number):
        """Minutes, memory and date of the run whose outputs the chapter shows."""
        card = self.run_card(number)
        if card is None:
            return "not stated: this edition was made from a notebook without a run card"
        minutes = max(1, round(card["phases"]["whole notebook"]["seconds"] / 60))
        peak = max(phase["peak_bytes"] for phase in card["phases"].values()) / 2**30
        run = f"{card['profile']}, {card['device']}, begun on {card['started'][:10]}"
        return f"{minutes} minute{'s' * (minutes != 1)}, {peak:.1f} GiB at its peak ({run})"

    def learn(self, number):
        """What the chapter says that its reader will learn."""
        return re.search(r"\*\*You will learn\*\*\n\n((?:- .+\n?)+)", self.markdown(number)[0])[1].strip()

    def path(self):
        """Whom each chapter is for, what to know before, and its minutes, as a table in the order of reading."""
        page, rows = (HERE / "reading.md").read_text(encoding="utf-8"), []
        for number in self.notebooks:
            about = page.partition(f"{{{{ title {number} }}}}")[2].partition("### ")[0]
            whom, before = (re.search(rf"\*\*{word}\*\* (.+)", about)[1] for word in ("For", "Know before:"))
            minutes = re.match(r"\d+ minutes?", self.time(number))
            rows.append(f"| {self.title(number)} | {whom} | {before} | {minutes[0] if minutes else 'not stated'} |")
        return "\n".join(["| chapter | for | know before | a rehearsal took |", "| --- | --- | --- | --- |", *rows])

    def chapters(self):
        """The chapters as lines of a table of contents."""
        return "\n".join(path.stem for path in self.paths.values())

    def answers(self):
        """The solutions as lines of a table of contents."""
        return "\n".join(f"solutions/{path.stem}" for path in self.solutions)

    def glossary(self):
        """Every term with its chapter's sentence and links to where it is introduced."""
        lines = []
        for term, entry in sorted(self.terms.items(), key=lambda item: item[0].lower()):
            chapters = [self.link(n, f"term-{n}-{slug(term)}") for n in entry["chapters"]]
            others = [link for n, link in zip(entry["chapters"], chapters, strict=True) if n != entry["quoted"]]
            here = chapters[list(entry["chapters"]).index(entry["quoted"])]
            also = f"; also in {', '.join(others)}" if others else ""
            lines.append(f"[**{term}**]{{#glossary-{slug(term)}}}\n: {entry['sentence']} (From {here}{also}.)\n")
        return "\n".join(lines)

    def bibliography(self):
        """Every work that a chapter refers to, with the chapters."""
        lines = []
        for text, numbers in self.entries.items():
            text = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text.rstrip("."))
            lines.append(f"- {text}. (Chapter {', '.join(map(self.link, numbers))})")
        return "\n".join(lines)

    def functions(self):
        """Every function and class of the chapters, with the first line that it says of itself."""
        lines = []
        for name, entry in sorted(self.definitions.items(), key=lambda item: item[0].lower()):
            links = ", ".join(self.link(number, f"def-{number}-{slug(name)}") for number in entry["chapters"])
            lines.append(f"`{name}` · {links}\n: {as_prose(entry['says']) or 'says nothing of itself.'}\n")
        return "\n".join(lines)

    # ---- what is written ----

    def chapter(self, number):
        """Return the copy of a notebook that Sphinx reads."""
        notebook, cells, met = self.notebooks[number].copy(), [], set()
        helpers = {n.name: n for cell in notebook.cells for n in definitions_in(cell)}
        for place, cell in enumerate(notebook.cells):
            cell = nbformat.from_dict(json.loads(json.dumps(cell)))
            cells.append(cell)
            if cell.cell_type == "markdown":
                cell.source = self.with_anchors(self.with_solutions(cell.source), number, met)
                continue
            names = [f"(def-{number}-{slug(node.name)})=" for node in definitions_in(cell)]
            if names:  # the targets of the index of functions
                cells.insert(-1, nbformat.v4.new_markdown_cell("\n".join(names)))
            where = f"cell {place + 1} of NoteBooks/{self.paths[number].name}"
            folded = cell.metadata.setdefault("mystnb", {})
            if FOLDED in cell.metadata.get("tags", []):
                topic = cell.source.splitlines()[0].removeprefix("# ") if cell.source.startswith("# ") else "fine print"
                lines = len(cell.source.splitlines())
                folded["code_prompt_show"] = folded["code_prompt_hide"] = f"Folded: {topic} ({lines} lines, {where})"
            for output in cell.outputs:
                data = output.get("data", {})
                if data.pop("application/json", None):
                    cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-output"]
                    lines = len(data["text/plain"].splitlines())
                    folded["code_prompt_show"] = folded["code_prompt_hide"] = (
                        f"Folded: run card ({lines} lines, {where})"
                    )
                if "text/html" in data:
                    data["text/html"] = aligned(data["text/html"])
                if "image/png" in data:
                    folded.setdefault("image", {}).setdefault("alt", describe(cell.source, helpers))
        notebook.cells = cells
        return notebook

    def with_links(self, page):
        """Return a page whose links to sections of the notebooks lead into the chapters; to other files, they are text."""

        def into_the_book(link):
            text, target = link.groups()
            section = re.fullmatch(r"NoteBooks/(\d\d)_\w+\.ipynb#(.+)", target)
            if not section:
                return text
            number, heading = section.groups()
            if heading not in self.headings(number):
                raise BookError(f"A page links to {heading!r}, and notebook {number} has no such heading.")
            return f"[{text}](#section-{number}-{slug(heading)})"

        return ELSEWHERE.sub(into_the_book, page)

    def headings(self, number):
        """Return the headings of a chapter as JupyterLab writes them in a link: with hyphens for spaces."""
        lines = "\n".join(self.markdown(number))
        return {heading.replace(" ", "-") for heading in re.findall(r"^#{2,3} (.+)$", lines, re.M)}

    def with_anchors(self, source, number, met):
        """Return a Markdown cell whose terms, where the chapter first sets them in italics, link to the glossary.

        Its headings become targets for the links of pages.
        """
        source = re.sub(
            r"^#{2,3} (.+)$", lambda line: f"(section-{number}-{slug(line[1])})=\n{line[0]}", source, flags=re.M
        )
        for term, entry in self.terms.items():
            spelling = entry["chapters"].get(number)
            if spelling and term not in met:
                target = rf"[[*\1*](#glossary-{slug(term)})]{{#term-{number}-{slug(term)}}}"
                source, times = in_italics(spelling).subn(target, source, count=1)
                met |= {term} if times else set()
        return source

    def with_solutions(self, source):
        """Return a Markdown cell in which a link to a solution that is not there is its text alone."""
        there = {f"solutions/{path.name}" for path in self.solutions}
        return re.sub(r"\[([^\]]+)\]\((solutions/[^)#]+)\)", lambda m: m[0] if m[2] in there else m[1], source)

    def solution(self, path):
        """Return the copy of a notebook of solutions that Sphinx reads."""
        notebook = nbformat.read(path, as_version=4)
        helpers = {node.name: node for cell in notebook.cells for node in definitions_in(cell)}
        for cell in notebook.cells:
            for data in [output.get("data", {}) for output in cell.get("outputs", [])]:
                if "text/html" in data:
                    data["text/html"] = aligned(data["text/html"])
                if "image/png" in data:
                    cell.metadata.setdefault("mystnb", {})["image"] = {"alt": describe(cell.source, helpers)}
        return notebook

    def write(self, target):
        """Write all of Sphinx's sources into a folder."""
        shutil.copytree(HERE / "_static", target / "_static")
        shutil.copy(HERE / "conf.py", target)
        for number, path in self.paths.items():
            nbformat.write(self.chapter(number), target / path.name)
        (target / "solutions").mkdir()
        for path in self.solutions:
            nbformat.write(self.solution(path), target / "solutions" / path.name)
        for page in HERE.glob("*.md"):
            text = page.read_text(encoding="utf-8")
            fill = re.sub(r"\{\{ (\w+)(?: (\d\d))? \}\}", lambda m: getattr(self, m[1])(*filter(None, [m[2]])), text)
            (target / page.name).write_text(self.with_links(fill), encoding="utf-8")


def definitions_in(cell):
    """Return the top-level functions and classes of a code cell."""
    nodes = ast.parse(cell.source).body if cell.cell_type == "code" else []
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def as_prose(text):
    """Return a docstring's line so that Markdown leaves its marks alone."""
    return re.sub(r"([\\*_<>\[\]{}$#|])", r"\\\1", text) if "`" not in text else text


def split_references(bullet):
    """Return the works of one bullet; a part without a title of its own belongs to the work before it."""
    works = []
    for part in bullet.split("; "):
        if works and ("*" not in part or part.startswith("*") and "*" not in works[0]):
            works[-1] += f"; {part}"
        else:
            works.append(f"{works[0].partition(',')[0]}, {part}" if part.startswith("*") and works else part)
    return works


def surname(reference):
    """Return what a reference is sorted by: its first author's last name."""
    author = re.split(r",| and ", reference)[0]
    return re.sub(r"^(?:[A-Z]\. )+", "", author).lower()


def aligned(html):
    """Return an output's HTML with the columns of its tables marked: numbers right, all else left."""
    if "<table" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        del table["border"]
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        for column in range(max(map(len, rows), default=0)):
            cells = [row[column] for row in rows if len(row) > column]
            body = [cell for cell in cells if cell.name == "td"]
            if body and all(NUMBER.fullmatch(cell.get_text().strip()) for cell in body):
                for cell in cells:
                    cell["class"] = [*cell.get("class", []), "number"]
    for tag in soup.select("thead tr[style]"):
        del tag["style"]
    return str(soup)


def describe(source, helpers):
    """Return an alternative text for a cell's plot: the titles, axes and labels that its code gives it."""
    said, todo, seen = {kind: [] for kind in SAYS.values()}, [ast.parse(source)], set()
    while todo:
        for node in [node for node in ast.walk(todo.pop(0)) if isinstance(node, ast.Call)]:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            values = [(name, value) for value in node.args[:1]]
            if (
                name in helpers and name not in seen
            ):  # a function of the notebook: its own strings, and those it is given
                seen.add(name)
                todo.append(helpers[name])
                values = [("title", value) for value in node.args]
            for keyword, value in values + [(keyword.arg, keyword.value) for keyword in node.keywords]:
                if keyword in SAYS and spoken(value) and spoken(value) not in said[SAYS[keyword]]:
                    said[SAYS[keyword]].append(spoken(value))
    sentences = [f"{kind}{'; '.join(words)}." for kind, words in said.items() if words]
    return " ".join(["Plot.", *sentences]) if sentences else "Plot drawn by the cell above."


def spoken(value):
    """Return the words of a string in code, without what is only known at run time; "" if it is no string."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.JoinedStr):
        words = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in value.values)
        return re.sub(r"\s*\(…[^)]*\)", "", words).removeprefix("…: ")
    return ""


if __name__ == "__main__":
    try:
        Book(sys.argv[1]).write(Path(sys.argv[2]))
    except BookError as error:
        sys.exit(str(error))
