"""Small made PDFs, one for each way in which a page is set, each with the text that a reader would read.

`CASES` maps a name to a function that takes a folder, writes a PDF there and returns (path, [paragraph]). Every line is
placed by hand, so a case holds one difficulty and no other. All words are our own.
"""

import random
import re
import subprocess

import pymupdf

WORDS = """the water heron stood by an old mill where nobody waited for ferry and train while rain came down on
    slow grey river until morning when baker opened his shop with bread under one arm and looked at sky""".split()
FONT, SIZE, STEP = "tiro", 10, 13
FACE, BOLD = pymupdf.Font(FONT), pymupdf.Font("tibo")
WIDTH, HEIGHT = 420, 600
LEFT, RIGHT, TOP, BOTTOM = 60, 360, 80, 520


def words(count, seed):
    """Return so many words in sentences of nine; the same seed gives the same words."""
    drawn = random.Random(f"{seed}").choices(WORDS, k=count)
    sentences = [" ".join(drawn[i : i + 9]).capitalize() + "." for i in range(0, count, 9)]
    return " ".join(sentences)


def paragraphs(count, seed, length=60):
    """Return so many paragraphs of about `length` words."""
    return [words(length - 10 + 7 * k % 20, f"{seed} {k}") for k in range(count)]


def put(page, x, y, text, size=SIZE, font=FONT, **options):
    """Write one piece of text with its baseline at y; return the x where it ends."""
    page.insert_text((x, y), text, fontname=font, fontsize=size, **options)
    return x + (BOLD if font == "tibo" else FACE).text_length(text, size)


def broken(text, width, indent=0, size=SIZE):
    """Return the lines of a paragraph, broken to a width; the first is narrower by the indent."""
    lines, room = [[]], width - indent
    for word in text.split():
        if lines[-1] and FACE.text_length(" ".join([*lines[-1], word]), size) > room:
            lines, room = [*lines, []], width
        lines[-1].append(word)
    return [" ".join(line) for line in lines]


def column(page, texts, left, top, width, indent=14, size=SIZE, step=STEP, line=put):
    """Set paragraphs with an indented first line; return the baseline after the last one."""
    y = top
    for text in texts:
        for number, piece in enumerate(broken(text, width, indent, size)):
            line(page, left + indent * (number == 0), y, piece, size)
            y += step
    return y


class Book:
    """A PDF that grows page by page."""

    def __init__(self):
        self.document = pymupdf.open()

    def page(self, width=WIDTH, height=HEIGHT):
        """Return a new page."""
        return self.document.new_page(width=width, height=height)

    def body(self, texts, **options):
        """Set paragraphs on a page of their own; return the page."""
        page = self.page()
        column(page, texts, LEFT, options.pop("top", TOP), RIGHT - LEFT, **options)
        return page

    def save(self, folder, name):
        """Write the file; return its path."""
        path = folder / f"{name}.pdf"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.document.save(path)
        return path


def two_columns(folder, name, shift=0, count=2):
    """Columns whose gutter is `shift` points off the middle of the page."""
    book, room = Book(), (RIGHT + 30 - LEFT + 30) / count
    page, texts = book.page(), []
    for k in range(count):
        own = paragraphs(4, f"{name} {k}", 50 if count == 2 else 35)
        left = LEFT - 30 + k * room + shift
        column(page, own, left, TOP, room - 14 - (shift if k == count - 1 else 0), indent=10, size=9)
        texts += own
    return book.save(folder, name), texts


def gutter_off_the_middle(folder):
    return two_columns(folder, "gutter off the middle", shift=10)


def three_columns(folder):
    return two_columns(folder, "three columns", count=3)


def heading_across_columns(folder):
    """Two columns, a heading across both in mid-page, two columns again."""
    book, texts = Book(), []
    page = book.page()
    for top, seed in ((TOP, "above"), (330, "below")):
        for k, left in enumerate((30, 217)):
            own = paragraphs(2, f"{seed} {k}", 45)
            column(page, own, left, top, 173, indent=10, size=9, step=11)
            texts += own
        if seed == "above":
            put(page, 60, 305, "The Second Part of This Page and of the Book", 15)
    return book.save(folder, "heading across columns"), texts


def turned(folder, angle):
    """A page that was set upright and scanned sideways: /Rotate puts it right again, or its text stays sideways."""
    book, texts = Book(), paragraphs(5, f"turned {angle}")
    book.body(texts)
    upright = book.save(folder, "upright")
    turned = pymupdf.open()
    size = (WIDTH, HEIGHT) if angle == 180 else (HEIGHT, WIDTH)
    page = turned.new_page(width=size[0], height=size[1])
    page.show_pdf_page(page.rect, pymupdf.open(upright), 0, rotate=angle)
    page.set_rotation(angle)
    path = folder / f"turned {angle}.pdf"
    turned.save(path)
    return path, texts


def sideways(folder):
    """Text that stands sideways on the displayed page, as a wide page in a narrow file."""
    book, texts = Book(), paragraphs(5, "sideways")
    book.body(texts).set_rotation(90)
    return book.save(folder, "sideways"), texts


def line_numbers(folder):
    """Every fifth line has its number in the margin."""
    book, texts = Book(), paragraphs(6, "numbers")
    page, count = book.page(), [0]

    def line(page, x, y, piece, size):
        count[0] += 1
        if count[0] % 5 == 0:
            put(page, 30, y, str(count[0]), 8)
        put(page, x, y, piece, size)

    column(page, texts, LEFT, TOP, RIGHT - LEFT, line=line)
    return book.save(folder, "line numbers"), texts


def every_line_numbered(folder):
    """Every line has its number, on the right, in the size of the text."""
    book, texts, count = Book(), paragraphs(6, "every line"), [0]

    def line(page, x, y, piece, size):
        count[0] += 1
        put(page, x, y, piece, size)
        put(page, 376, y, str(count[0]), size)

    column(book.page(), texts, LEFT, TOP, RIGHT - LEFT, line=line)
    return book.save(folder, "every line numbered"), texts


def marginal_notes(folder):
    """Small notes beside the text, to its left."""
    book, texts = Book(), paragraphs(6, "margin")
    page = book.page()
    column(page, texts, 120, TOP, 250)
    for k, y in enumerate((100, 240, 380)):
        for row, piece in enumerate((f"Note {k} on", "the heron", "and the mill")):
            put(page, 40, y + 9 * row, piece, 7)
    return book.save(folder, "marginal notes"), texts


def stamp(folder):
    """A stamp that runs up the left edge, as on a preprint."""
    book, texts = Book(), paragraphs(6, "stamp")
    page = book.body(texts)
    put(page, 25, 420, "stamp:2611.01234v2 [q-bio.MILL] 27 Nov 2026", 14, rotate=90)
    return book.save(folder, "stamp"), texts


def indents_of_spaces(folder):
    """Indents made of space characters, as a typewriter makes them."""
    book, texts = Book(), paragraphs(6, "spaces")
    page, y = book.page(), TOP
    for text in texts:
        for number, piece in enumerate(broken(text, RIGHT - LEFT, 14)):
            put(page, LEFT, y, "     " * (number == 0) + piece)
            y += STEP
    return book.save(folder, "indents of spaces"), texts


def wide_gaps(folder):
    """Justified lines with gaps so wide that a line comes in pieces."""
    book, texts = Book(), paragraphs(6, "gaps")
    chance = random.Random("gaps")

    def line(page, x, y, piece, size):
        parts = piece.split()
        cut = chance.randrange(1, len(parts)) if len(parts) > 3 else len(parts)
        end = put(page, x, y, " ".join(parts[:cut]), size)
        if parts[cut:]:
            put(page, end + chance.choice((9, 14, 22)), y, " ".join(parts[cut:]), size)

    column(book.page(), texts, LEFT, TOP, RIGHT - LEFT - 22, line=line)
    return book.save(folder, "wide gaps"), texts


def drop_cap(folder):
    """A first letter two lines tall, the two lines beside it set in."""
    book, texts = Book(), paragraphs(4, "drop")
    page, y = book.page(), TOP + 20
    put(page, 120, TOP - 16, "The First Chapter", 16)
    first = texts[0]
    lines = broken(first[1:], RIGHT - LEFT - 22)[:2]
    put(page, LEFT, y + STEP, first[0], 26)
    for piece in lines:
        put(page, LEFT + 22, y, piece)
        y += STEP
    rest = " ".join(first[1:].split()[len(" ".join(lines).split()) :])
    y = column(page, [rest], LEFT, y, RIGHT - LEFT, indent=0)
    column(page, texts[1:], LEFT, y, RIGHT - LEFT)
    return book.save(folder, "drop cap"), texts


def large_letter(folder):
    """One large character in a line; the line is text."""
    book, texts = Book(), paragraphs(4, "large")
    page, first = book.page(), texts[0]
    lines = broken(first[1:], RIGHT - LEFT - 16)
    end = put(page, LEFT, TOP, first[0], 18)
    put(page, end, TOP, lines[0])
    y = column(page, [" ".join(lines[1:])], LEFT, TOP + STEP, RIGHT - LEFT, indent=0)
    column(page, texts[1:], LEFT, y, RIGHT - LEFT)
    return book.save(folder, "large letter"), texts


def bold_heading(folder):
    """A heading in bold, in the size of the text."""
    book, texts = Book(), paragraphs(4, "bold")
    page = book.page()
    y = column(page, texts[:2], LEFT, TOP, RIGHT - LEFT)
    put(page, LEFT, y + 8, "How the Heron Came Back", font="tibo")
    column(page, texts[2:], LEFT, y + 28, RIGHT - LEFT)
    return book.save(folder, "bold heading"), texts


def printed_twice(folder):
    """Every line printed twice, a third of a point apart, to look bold."""
    book, texts = Book(), paragraphs(4, "twice")

    def line(page, x, y, piece, size):
        put(page, x, y, piece, size)
        put(page, x + 0.35, y, piece, size)

    column(book.page(), texts, LEFT, TOP, RIGHT - LEFT, line=line)
    return book.save(folder, "printed twice"), texts


def hidden_layer(folder):
    """Visible text, and beneath it the invisible layer of a recognition program with its own mistakes."""
    book, texts = Book(), paragraphs(5, "hidden")
    page = book.body(texts)

    def line(page, x, y, piece, size):
        put(page, x, y + 1, piece.replace("m", "rn"), size, render_mode=3)

    column(page, texts, LEFT, TOP, RIGHT - LEFT, line=line)
    return book.save(folder, "hidden layer"), texts


def pages_with(folder, name, before, count=6, texts=4):
    """Pages with paragraphs, on each of which `before(page, number)` has written first."""
    book, made = Book(), []
    for number in range(1, count + 1):
        page, own = book.page(), paragraphs(texts, f"{name} {number}")
        column(page, own, LEFT, before(page, number) or TOP, RIGHT - LEFT)
        made += own
    return book.save(folder, name), made


def sentence_at_the_head(folder):
    """A running head on every page but one, where a sentence of the text stands at its height."""
    book, made = Book(), []
    for number in range(1, 8):
        page, own = book.page(), paragraphs(4, f"sentence {number}")
        if number != 4:
            put(page, 150, 50, "The Book of the Mill", 9)
        column(page, own, LEFT, 50 if number == 4 else TOP, RIGHT - LEFT)
        made += own
    return book.save(folder, "sentence at the head"), made


def low_heads(folder):
    """Running heads a little inside the page's first eighth, with a page number on the same line."""

    def head(page, number):
        put(page, LEFT, 76, "The Book of the Mill" if number % 2 else "The Heron", 10)
        put(page, RIGHT - 10, 76, str(number), 10)
        return 100

    return pages_with(folder, "low heads", head)


def numbered_chapters(folder):
    """Heads that name the chapter, with a rule below and the page number set far to the right."""

    def head(page, number):
        put(page, LEFT, 52, f"Chapter {1 + number // 4}: The Water", 9)
        put(page, RIGHT - 8, 52, str(number + 30), 9)

    return pages_with(folder, "numbered chapters", head)


def timeline(folder):
    """A page whose lines end in years."""
    book = Book()
    events = [f"The {a} {b} in {year}." for year, (a, b) in enumerate(
        [("mill", "was built"), ("heron", "came"), ("ferry", "sank"), ("baker", "left"), ("river", "rose"),
         ("train", "arrived"), ("shop", "closed"), ("bridge", "fell"), ("school", "opened")], start=1890)]  # fmt: skip
    events = [event.rstrip(".") for event in events]
    made = paragraphs(5, "before the timeline")
    book.body(made)
    page = book.page()
    for k, event in enumerate(events):
        put(page, LEFT, TOP + 20 * k, event)
    return book.save(folder, "timeline"), made + events


def contents_in_pieces(folder):
    """A contents page whose titles, dots and numbers are pieces of one line; then prose."""
    book = Book()
    page = book.page()
    put(page, 170, TOP, "Contents", 16)
    for k in range(12):
        y = TOP + 40 + 16 * k
        put(page, LEFT, y, f"{k + 1}")
        put(page, LEFT + 24, y, f"The {WORDS[3 * k + 2]} and the {WORDS[2 * k + 1]}")
        put(page, LEFT + 200, y, ". . . . . . . . .")
        put(page, RIGHT - 14, y, str(3 + 5 * k + k % 3))
    texts = paragraphs(6, "after the contents")
    book.body(texts)
    return book.save(folder, "contents in pieces"), texts


def contents_without_leaders(folder):
    """A contents page with the numbers far to the right of the titles, no dots."""
    book = Book()
    page = book.page()
    put(page, 170, TOP, "Contents", 16)
    for k in range(12):
        put(page, LEFT, TOP + 40 + 16 * k, f"The {WORDS[3 * k + 2]} and the {WORDS[2 * k + 1]}")
        put(page, RIGHT - 14, TOP + 40 + 16 * k, str(3 + 5 * k + k % 3))
    texts = paragraphs(6, "without leaders")
    book.body(texts)
    return book.save(folder, "contents without leaders"), texts


def index_in_columns(folder):
    """Prose, then an index in two columns."""
    book, texts = Book(), paragraphs(6, "before the index")
    book.body(texts)
    page = book.page()
    put(page, 180, TOP, "Index", 16)
    for k in range(44):
        x, y = (LEFT, RIGHT - 130)[k // 22], TOP + 40 + 14 * (k % 22)
        term = f"{sorted(WORDS)[k % len(WORDS)]} {chr(97 + k % 26)}"
        put(page, x, y, f"{term}, {k + 3}, {k + 17}-{k + 19}" if k % 5 else f"{term} mill, see river", 9)
    return book.save(folder, "index in columns"), texts


def footnotes(folder):
    """Notes in small type at the foot, each with its number."""
    book, made = Book(), []
    for number in range(1, 4):
        own = paragraphs(5, f"notes {number}")
        page = book.body(own)
        put(page, LEFT, 500, f"{number} See the register of the mill, where all of this stands.", 8)
        put(page, LEFT, 510, "The register was lost in the flood.", 8)
        made += own
    return book.save(folder, "footnotes"), made


def small_page(folder):
    """One page set smaller than its book throughout, as a recognition program may guess; it is no footnote."""
    book, made = Book(), []
    for number in range(1, 6):
        own = paragraphs(5, f"small {number}")
        book.body(own, size=8.5 if number == 3 else SIZE)
        made += own
    return book.save(folder, "small page"), made


def figure_of_numbers(folder):
    """A page of text with a figure whose axes are full of numbers."""
    book, texts = Book(), paragraphs(6, "figure", 50)
    page = book.page()
    column(page, texts, LEFT, TOP, RIGHT - LEFT)
    for k in range(14):
        put(page, LEFT + 21 * k, 530, str(10 * k), 7)
        put(page, LEFT - 24, 400 + 9 * k, str(5 * k), 7)
    return book.save(folder, "figure of numbers"), texts


def kerned_pieces(folder):
    """Words that come in pieces without a space between them, as from a Type 3 font."""
    book, texts = Book(), paragraphs(5, "kerned")
    chance = random.Random("kerned")

    def line(page, x, y, piece, size):
        while piece:
            cut = chance.randrange(1, 9)
            x, piece = put(page, x, y, piece[:cut], size), piece[cut:]

    column(book.page(), texts, LEFT, TOP, RIGHT - LEFT, line=line)
    return book.save(folder, "kerned pieces"), texts


def columns_written_across(folder):
    """Two columns whose lines the file holds from left to right across both."""
    book = Book()
    page, sides = book.page(), [paragraphs(4, "across left", 50), paragraphs(4, "across right", 50)]
    pieces = []
    for left, own in zip((30, 217), sides, strict=True):
        column(page, own, left, TOP, 173, indent=10, size=9,
               line=lambda page, x, y, piece, size: pieces.append((y, x, piece, size)))  # fmt: skip
    for y, x, piece, size in sorted(pieces):
        put(page, x, y, piece, size)
    return book.save(folder, "columns written across"), sides[0] + sides[1]


CASES = {
    function.__name__: function
    for function in (
        gutter_off_the_middle,
        three_columns,
        heading_across_columns,
        columns_written_across,
        sideways,
        line_numbers,
        every_line_numbered,
        marginal_notes,
        stamp,
        indents_of_spaces,
        wide_gaps,
        kerned_pieces,
        drop_cap,
        large_letter,
        bold_heading,
        printed_twice,
        hidden_layer,
        sentence_at_the_head,
        low_heads,
        numbered_chapters,
        timeline,
        contents_in_pieces,
        contents_without_leaders,
        index_in_columns,
        footnotes,
        small_page,
        figure_of_numbers,
    )  # fmt: skip
} | {f"turned_{angle}": lambda folder, angle=angle: turned(folder, angle) for angle in (90, 180, 270)}


MANUALS = {  # real ones, from the Debian packages bash-doc, gnuplot-doc and zsh-doc: what a running head looks like
    "/usr/share/doc/bash/bashref.pdf": r"(?:Chapter \d+|Appendix [A-Z]): [A-Z].{3,60} \d+$",
    "/usr/share/doc/gnuplot/gnuplot.pdf": r"(?:\d+ )?gnuplot 5\.4(?: \d+)?$",
    "/usr/share/doc/zsh-common/zsh.pdf": r"Chapter \d+: [A-Z].{3,60} \d+$",
}


def bodies(path):
    """Yield (page number, its words by pdftotext, running heads left out); pages of lines that end in numbers are no body."""
    head = re.compile(MANUALS[path])
    pages = (
        subprocess.run(["pdftotext", path, "-"], capture_output=True, text=True).stdout.removesuffix("\f").split("\f")
    )
    for number, text in enumerate(pages, start=1):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if sum(bool(re.search(r"[\s.]\d+$|^\d+$|^[ivxl]+$", line)) for line in lines) <= len(lines) / 3:
            yield number, words_in(" ".join(line for line in lines if not head.match(line)))


def words_in(text):
    """Return a text's words in lower case."""
    return re.findall(r"[^\W_]+", text.lower())
