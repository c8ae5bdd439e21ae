"""Typeset the two sample books of notebook 03: from Markdown in data/books/ to PDF.

    python tools/typeset_books.py [--root FOLDER]

The PDFs have what real ones have and what makes reading them hard: title pages, a contents page, roman and arabic
page numbers, running headers, line-end hyphens, ligatures, footnotes, a page in two columns, a page without text, an
index. The Markdown is the ground truth that tests compare the recovered text with.

PyMuPDF's `Story` breaks the lines. It can lose text without an error (a fixed line height on the body together with
paragraphs without margins does it), so every letter is counted on the way in and on the way out, and a difference
stops the build. Everything a reader may meet going wrong is one sentence on stderr and exit status 1.
"""

import argparse
import hashlib
import html
import io
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = PROJECT / "data" / "books"
DEFAULT_ROOT = PROJECT / "outputs" / "rehearsal" / "books"

WIDTH, HEIGHT = 360, 540  # points: 5 × 7.5 inches, a small paperback
LEFT, RIGHT, TOP, BOTTOM = 46, 314, 62, 480  # edges of the text area
GUTTER = 14  # between two columns
CSS = """
body { font-family: serif; font-size: 10px; }
p { text-align: justify; hyphens: auto; margin-top: 0; margin-bottom: 0; text-indent: 13px; }
p.first { text-indent: 0; }
p.centre { text-align: center; hyphens: none; text-indent: 0; margin-bottom: 9px; }
p.left { text-align: left; hyphens: none; text-indent: 0; }
p.note { font-size: 8px; text-indent: 0; }
h1 { font-size: 20px; text-align: center; font-weight: normal; margin-top: 110px; margin-bottom: 14px; }
h2 { font-size: 15px; text-align: center; font-weight: normal; margin-top: 26px; margin-bottom: 18px; }
sup { font-size: 6.5px; }
"""
STYLES = {  # where the page number is, what stands on the page without text, (chapter, page) set in two columns
    "the_tidemill_notebooks": {"number": "foot", "empty": "plate", "columns": (6, 2)},
    "letters_from_the_slow_railway": {"number": "head", "empty": "blank", "columns": (8, 2)},
}


class TypesettingError(Exception):
    """Something a person can mend; its text says what, where and how."""


def read_book(path):
    """Return {"title", "author", "year", "publisher", "dedication", "index", "sections", "notes"} of a Markdown book.

    `sections` is [(heading, [paragraph])], `notes` {number: text}. Raises TypesettingError on anything else.
    """
    text = path.read_text(encoding="utf-8")
    parts = text.split("---\n", 2)
    if len(parts) != 3 or parts[0].strip():
        raise TypesettingError(f"{path} has no block between two lines of --- at its head.")
    book, key = {"index": []}, None
    for line in parts[1].splitlines():
        if line.lstrip().startswith("- ") and key:
            book.setdefault(key, []).append(line.strip()[2:].strip().strip("\"'"))
        elif line.strip():
            key, _, value = line.partition(":")
            key = key.strip()
            book[key] = value.strip().strip("\"'") or []
    if isinstance(book["index"], str):
        book["index"] = [term.strip().strip("\"'") for term in book["index"].strip("[]").split(",")]
    if missing := {"title", "author", "year", "publisher", "dedication"} - set(book):
        raise TypesettingError(f"{path} does not name {sorted(missing)} at its head.")
    book["sections"], book["notes"] = [], {}
    for block in re.split(r"\n\s*\n", parts[2].strip()):
        block = " ".join(block.split())
        if block.startswith("# "):
            book["sections"].append((block[2:], []))
        elif note := re.match(r"\[\^(\d+)\]:\s*(.+)", block):
            book["notes"][int(note[1])] = note[2]
        elif book["sections"]:
            book["sections"][-1][1].append(block)
        else:
            raise TypesettingError(f"{path} has text before its first heading: {block[:60]!r}")
    return book


def plain(text):
    """Return a Markdown paragraph's words, without emphasis and note marks."""
    return re.sub(r"\[\^\d+\]", "", text).replace("*", "")


def letters(text):
    """Return a text's letters and digits alone, ligatures taken apart: what typesetting must not change."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text))


def as_html(text):
    """Return a Markdown paragraph as HTML: italics, and note marks as superscripts with an id."""
    text = html.escape(text, quote=False)
    text = re.sub(r"\*([^*]+)\*", r"<i>\1</i>", text)
    return re.sub(r"\[\^(\d+)\]", r'<sup id="note\1">\1</sup>', text)


def story(body):
    """Return a Story of this HTML."""
    import pymupdf

    return pymupdf.Story(f'<html lang="en"><body>{body}</body></html>', user_css=CSS)


def notes_html(numbers, notes):
    """Return the footnotes of a page as HTML."""
    return "".join(f'<p class="note"><sup>{n}</sup> {as_html(notes[n])}</p>' for n in numbers)


class Pages:
    """A PDF that grows page by page: running head, text boxes, footnotes under a line, page number."""

    def __init__(self, book, style):
        import pymupdf

        self.pymupdf, self.book, self.style = pymupdf, book, style
        self.buffer = io.BytesIO()
        self.writer = pymupdf.DocumentWriter(self.buffer)
        self.count, self.heads, self.rules = 0, [], []

    def place(self, flow, box):
        """Place as much of a Story as fits a box; return (more is left, ids of the note marks placed)."""
        seen = []
        more, _ = flow.place(self.pymupdf.Rect(*box))
        flow.element_positions(lambda position: seen.append(position.id))
        return bool(more), sorted({int(name[4:]) for name in seen if name and name.startswith("note")})

    def height_of(self, body):
        """Return the height in points of HTML set to the full width."""
        _, filled = story(body).place(self.pymupdf.Rect(LEFT, 0, RIGHT, HEIGHT))
        return filled[3]

    def begin(self, head, number):
        """Begin a page; head and number are written in `finish`, when the number of pages is known."""
        self.heads.append((head, number))
        self.count += 1
        return self.writer.begin_page(self.pymupdf.Rect(0, 0, WIDTH, HEIGHT))

    def flow(self, body, head, number, columns_on=None):
        """Set HTML over as many pages as it takes; `number(k)` names the k-th page. Return how many it took."""
        flow, more, page = story(body), True, 0
        while more:
            page += 1
            device = self.begin("" if page == 1 else head, number(page))
            if page == columns_on:
                more = self.two_columns(flow, device)
            else:
                more = self.one_column(flow, device)
            self.writer.end_page()
        return page

    def one_column(self, flow, device):
        """Draw one page of text with its footnotes; True if more is left."""
        bottom = BOTTOM
        for _ in range(4):  # notes take room, room decides which marks are on the page
            more, marks = self.place(flow, (LEFT, TOP, RIGHT, bottom))
            notes = notes_html(marks, self.book["notes"])
            wanted = BOTTOM - (self.height_of(notes) + 10 if marks else 0)
            if wanted >= bottom:
                break
            bottom = wanted
        flow.draw(device)
        if marks:
            foot = story(notes)
            foot.place(self.pymupdf.Rect(LEFT, bottom + 8, RIGHT, HEIGHT))
            foot.draw(device)
            self.rules.append((self.count - 1, bottom + 5))
        return more

    def two_columns(self, flow, device):
        """Draw a page in two columns; True if more is left."""
        middle = (LEFT + RIGHT) / 2
        for box in ((LEFT, TOP, middle - GUTTER / 2, BOTTOM), (middle + GUTTER / 2, TOP, RIGHT, BOTTOM)):
            more, marks = self.place(flow, box)
            if marks:
                raise TypesettingError("A footnote falls on the page with two columns; choose another in STYLES.")
            flow.draw(device)
            if not more:
                break
        return more

    def finish(self):
        """Write heads, numbers and lines; return the open document."""
        self.writer.close()
        document = self.pymupdf.open("pdf", self.buffer.getvalue())
        font = self.pymupdf.Font("tiro")
        for page, (head, number) in zip(document, self.heads, strict=True):
            even = page.number % 2 == 1
            page.wrap_contents()  # the writer leaves its own coordinates behind

            def put(text, y, x=None, size=8.5, page=page):
                left = (WIDTH - font.text_length(text, size)) / 2 if x is None else x
                writer = self.pymupdf.TextWriter(page.rect)
                writer.append((left, y), text, font=font, fontsize=size)
                writer.write_text(page)

            if self.style["number"] == "foot":
                if head:
                    put(head, 42)
                if number:
                    put(number, 512)
            elif head and number:  # number and head in one line, the number on the outer side
                line = f"{number}    {head}" if even else f"{head}    {number}"
                put(line, 42, LEFT if even else RIGHT - font.text_length(line, 8.5))
            elif number:
                put(number, 512)
        for index, y in self.rules:
            document[index].draw_line((LEFT, y), (LEFT + 60, y), width=0.4)
        return document


def roman(number):
    """Return a small number in lower-case roman numerals."""
    text = ""
    for value, sign in ((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")):
        while number >= value:
            text, number = text + sign, number - value
    return text


def draw_plate(page):
    """Draw a picture as an image: a page without a word, as a scanner would deliver it."""
    import pymupdf

    canvas = pymupdf.open()
    sketch = canvas.new_page(width=260, height=360)
    for step in range(14):
        sketch.draw_bezier((10, 120 + 16 * step), (90, 90 + 20 * step), (170, 150 + 12 * step), (250, 120 + 16 * step))
    sketch.draw_circle((130, 110), 62)
    for k in range(12):
        turn = pymupdf.Matrix(30 * k)
        sketch.draw_line((130, 110), pymupdf.Point(130, 110) + pymupdf.Point(62, 0) * turn)
    page.insert_image(pymupdf.Rect(50, 90, 310, 450), pixmap=sketch.get_pixmap(dpi=110))


def chapter_html(heading, paragraphs):
    """Return a section as HTML, its first paragraph without an indent."""
    first, *others = [as_html(paragraph) for paragraph in paragraphs]
    return f'<h2>{html.escape(heading)}</h2><p class="first">{first}</p>' + "".join(f"<p>{p}</p>" for p in others)


def centred(*lines):
    """Return centred lines as HTML."""
    return "".join(f'<p class="centre">{html.escape(line)}</p>' for line in lines)


def imprint(book):
    """Return the lines of the imprint page."""
    return (
        f"{book['publisher']}, {book['year']}",
        "An invented book, written for a course on fine-tuning. You may copy it with the course.",
    )


def make_pages(book, style, contents, index):
    """Return (Pages, {heading: page number}) of the whole book, its contents and index pages as given."""
    pages, starts = Pages(book, style), {}

    def unnumbered(_):
        return ""

    pages.flow(f"<h1>{html.escape(book['title'])}</h1>" + centred(book["author"]), "", unnumbered)
    pages.flow(centred(*imprint(book)), "", unnumbered)
    pages.flow(centred(book["dedication"]), "", unnumbered)
    pages.begin("", "")  # the page without text, of both kinds
    pages.writer.end_page()
    front = pages.count

    def in_roman(page):
        return roman(front + page)

    listing = "".join(f'<p class="left">{html.escape(title)} . . . . . {number}</p>' for title, number in contents)
    front += pages.flow("<h2>Contents</h2>" + listing, "", in_roman)
    heading, paragraphs = book["sections"][0]
    starts[heading] = in_roman(1)
    front += pages.flow(chapter_html(heading, paragraphs), book["title"], in_roman)
    done = 0
    for number, (heading, paragraphs) in enumerate(book["sections"][1:], start=1):
        starts[heading] = str(done + 1)

        def in_arabic(page, done=done):
            return str(done + page)

        columns = style["columns"][1] if number == style["columns"][0] else None
        title = heading.split(" ", 1)[1]
        first = pages.count
        done += pages.flow(chapter_html(heading, paragraphs), title, in_arabic, columns)
        for k in range(first, pages.count):  # left-hand pages carry the book's title, right-hand ones the chapter's
            if k % 2 == 1 and pages.heads[k][0]:
                pages.heads[k] = (book["title"], pages.heads[k][1])
    starts["Index"] = str(done + 1)
    entries = "".join(f'<p class="left">{html.escape(entry)}</p>' for entry in index)
    pages.flow("<h2>Index</h2>" + entries, "", lambda page: str(done + page))
    return pages, starts


def ranges(numbers):
    """Return page numbers as an index writes them: 3, 7–9."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def squeeze(text):
    """Return a text in one line, in lower case and without hyphens, to look for index terms in."""
    return " ".join(re.sub(r"-\n?", "", unicodedata.normalize("NFKC", text)).lower().split())


def typeset(path, style):
    """Return (PDF bytes, report) of a Markdown book; TypesettingError if a letter was lost on the way."""
    book = read_book(path)
    contents, index = [(heading, "1") for heading, _ in book["sections"]] + [("Index", "1")], book["index"]
    for _ in range(2):  # page numbers are known after the first round
        pages, starts = make_pages(book, style, contents, index)
        around = [book["title"], book["author"], *imprint(book), book["dedication"], "Contents", "Index", *index]
        around += [part for entry in [*contents, *pages.heads] for part in entry]
        document = pages.finish()
        contents = list(starts.items())
        numbered = [
            (int(number), squeeze(page.get_text()))
            for page, (_, number) in zip(document, pages.heads, strict=True)
            if number.isdigit() and int(number) < int(starts["Index"])
        ]
        index = []
        for term in sorted(book["index"], key=str.lower):
            found = [number for number, text in numbered if squeeze(term) in text]
            if not found:
                raise TypesettingError(f"{path}: the index term {term!r} does not occur in the text.")
            index.append(f"{term}, {ranges(found)}")
    wanted = "".join(letters(heading + plain(" ".join(body))) for heading, body in book["sections"])
    wanted += "".join(letters(plain(text)) for text in book["notes"].values())
    text = "".join(letters(page.get_text()) for page in document)
    missing = sum((Counter(wanted + letters("".join(around))) - Counter(text)).values())
    if missing:
        raise TypesettingError(f"{path}: {missing} letters were lost in typesetting; look at CSS in {__file__}.")
    if style["empty"] == "plate":
        draw_plate(document[3])
    words = sum(len(plain(" ".join(body)).split()) for _, body in book["sections"])
    document.set_metadata({"title": book["title"], "author": book["author"]})
    data = document.tobytes(garbage=3, deflate=True, no_new_id=True)
    return data, {"title": book["title"], "author": book["author"], "pages": len(document), "words": words,
                  "letters_in": len(wanted), "notes": len(book["notes"])}  # fmt: skip


def recipe_hash():
    """Hash what decides the PDFs: this file and the Markdown."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.glob("*.md")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete(root=DEFAULT_ROOT):
    """True when the PDFs are those of today's Markdown and of their recorded size."""
    try:
        manifest = json.loads((root / "manifest.json").read_text())
        return manifest["recipe"] == recipe_hash() and all(
            hashlib.sha256((root / name).read_bytes()).hexdigest() == entry["sha256"]
            for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def build(root=DEFAULT_ROOT):
    """Typeset every book into root/<Author>/<Title>.pdf; return the manifest's entries by file name."""
    files = {}
    try:
        for name, style in STYLES.items():
            data, report = typeset(SOURCES / f"{name}.md", style)
            target = root / report["author"] / f"{report['title']}.pdf"
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.write_bytes(data)
            os.replace(partial, target)
            files[str(target.relative_to(root))] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                **report,
            }
            print(f"Typeset {report['title']}: {report['words']:,} words on {report['pages']} pages.", flush=True)
        partial = root / ".manifest.json"
        partial.write_text(json.dumps({"recipe": recipe_hash(), "files": files}, indent=1, ensure_ascii=False) + "\n")
        os.replace(partial, root / "manifest.json")
    except OSError as error:
        raise TypesettingError(f"Writing the sample books below {root} failed: {error.strerror or error}.") from error
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="where the PDFs go")
    try:
        build(parser.parse_args().root)
    except TypesettingError as error:
        print(f"books: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
