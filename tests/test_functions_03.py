"""Functions of notebook 03: finding, reading, cleaning, cutting and judging books, with right and hostile files."""

import ast
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from types import SimpleNamespace

import made_pdfs
import numpy as np
import pymupdf
import pytest
import typeset_books
from conftest import PROJECT
from notebook_code import code_cells

SAMPLES = PROJECT / "outputs" / "rehearsal" / "books"
WORDS = """the water heron stood by an old mill where nobody waited for ferry and train while rain came down on
    slow grey river until morning when baker opened his shop with bread under one arm""".split()


@pytest.fixture(scope="module")
def setup_03(notebook_03, tokenizers):
    """The namespace of notebook 03 with all its functions and the sample books, read and cut: no model, no training."""
    namespace, cells, directory = {}, code_cells(notebook_03), os.getcwd()
    os.chdir(PROJECT / "NoteBooks")
    try:
        for number, source in enumerate(cells):
            if "MODEL_SOURCE, config = check_model(" in source:
                break
            exec(compile(source, f"{notebook_03.name} cell {number + 1}", "exec"), namespace)
            if source.startswith("PROFILE = "):
                namespace.update(BOOKS="outputs/rehearsal/no books of a reader", TRACKER="none")
    finally:
        os.chdir(directory)
    namespace["output_folder"].held.close()  # a rehearsal may have the folder
    namespace["leave_nothing_empty"](namespace["OUTPUT"])
    for source in cells[number:]:
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name not in namespace:
                exec(compile(ast.Module(body=[node], type_ignores=[]), notebook_03.name, "exec"), namespace)
    known = " ".join(chunk["text"] for chunk in namespace["chunks"] if not chunk["held"])
    namespace["training_text"] = f" {' '.join(namespace['words_of'](known))} "
    namespace["tokenizer"] = tokenizers["gpt-oss"]
    return namespace


@pytest.fixture(scope="module")
def nb(setup_03):
    return SimpleNamespace(**setup_03)


@pytest.fixture
def patch(setup_03, monkeypatch):
    """Give names of the notebook other values for one test."""
    return lambda **values: [monkeypatch.setitem(setup_03, name, value) for name, value in values.items()]


def prose(count, seed):
    """Return so many words in sentences of ten; the same seed gives the same words."""
    drawn = random.Random(seed).choices(WORDS, k=count)
    sentences = (drawn[i : i + 10] for i in range(0, count, 10))
    return " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)


def write_pdf(path, texts, metadata=None, fontname="tiro", **options):
    """Write a PDF with one text a page, nothing in the margins; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = pymupdf.open()
    for text in texts:
        page = document.new_page(width=360, height=540)
        if text:
            assert page.insert_textbox((46, 75, 314, 465), text, fontname=fontname, fontsize=10) >= 0
    document.set_metadata({"title": metadata or ""})
    document.save(path, **options)
    return path


def raw_pdf(path, pages, unicode=None, width=360, height=540):
    """Write a PDF by hand: its lines in Helvetica, some letters standing for other characters {letter: hex}."""

    def stream(data):
        return b"<</Length %d>>stream\n%b\nendstream" % (len(data), data)

    mapping = "\n".join(f"<{ord(letter):02x}> <{code}>" for letter, code in (unicode or {}).items())
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def 1 begincodespacerange <00> <FF> "
        f"endcodespacerange {len(unicode or {})} beginbfchar\n{mapping}\nendbfchar endcmap end end"
    )
    kids = " ".join(f"{5 + 2 * k} 0 R" for k in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding/ToUnicode 4 0 R>>",
        stream(cmap.encode()),
    ]
    for k, lines in enumerate(pages):
        box = f"/MediaBox[0 0 {width} {height}]/Resources<</Font<</F 3 0 R>>>>/Contents {6 + 2 * k} 0 R"
        objects.append(f"<</Type/Page/Parent 2 0 R{box}>>".encode())
        text = b"".join(b"(%b) Tj T* " % line.encode("latin-1") for line in lines)
        objects.append(stream(b"BT /F 10 Tf 46 %d Td 12 TL %bET" % (height - 90, text)))
    body = b"".join(b"%d 0 obj%bendobj\n" % (number, data) for number, data in enumerate(objects, start=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"%%PDF-1.4\n%btrailer<</Root 1 0 R/Size %d>>\n%%%%EOF\n" % (body, len(objects) + 1))
    return path


def rows_of(nb, folder):
    """Find and load all books below a folder, as the notebook does; return {file: row of the report}."""
    books = nb.find_books(folder)
    nb.load_books(books, folder.parent / f"{folder.name} pages")
    return {book["file"]: {**nb.report_row(book), "book": book} for book in books}


def line_of(x, y, text, size=10.0, bold=False):
    """Return a Line as lines_of yields it; y is its top."""
    from_notebook = line_of.nb
    return from_notebook.Line(x, y, x + len(text) * size / 2, y + size, size, text, bold)


@pytest.fixture(scope="module", autouse=True)
def lines_of_the_notebook(nb):
    line_of.nb = nb


def page_of(*lines, number=1, width=360, height=540, image=False, of=100):
    """Return a page as read_pages yields it, of lines (x0, y0, text) or (x0, y0, text, size)."""
    return {"number": number, "of": of, "width": width, "height": height, "image": image, "sideways": 0, "vertical": 0,
            "lost": False, "damaged": False, "lines": [line_of(*line) for line in lines]}  # fmt: skip


def long_lines(count, seed=0, x=46, y=80):
    """Return lines of ten words for page_of, the last one ending a sentence."""
    texts = [" ".join(random.Random(f"{seed} {k}").choices(WORDS, k=7)) for k in range(count)]
    texts[-1] += "."
    return [(x, y + 12 * k, text) for k, text in enumerate(texts)]


# Finding books


def test_books_are_found_at_any_depth_under_any_name(nb, tmp_path):
    names = ["Ann/One.pdf", "Ann/a/b/c/d/Two.PDF", "Bo 'B' \"Q\" 🐝/Three & four.pdf", "Five.pdf", "Ann/notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = {(book["author"], book["file"]) for book in nb.find_books(tmp_path)}
    assert found == {("Ann", "One.pdf"), ("Ann", "a/b/c/d/Two.PDF"), ("Bo 'B' \"Q\" 🐝", "Three & four.pdf"),
                     ("unknown author", "Five.pdf")}  # fmt: skip
    assert all(book["fault"] is None and len(book["sha256"]) == 64 for book in nb.find_books(tmp_path))
    assert nb.find_books(tmp_path / "nowhere") == []


def test_links_in_circles_end(nb, tmp_path):
    (tmp_path / "Books" / "Ann" / "deep").mkdir(parents=True)
    (tmp_path / "Books" / "Ann" / "One.pdf").write_bytes(b"1")
    (tmp_path / "Books" / "Ann" / "deep" / "up").symlink_to(tmp_path / "Books" / "Ann")
    (tmp_path / "Books" / "Ann" / "self").symlink_to("self")
    assert [book["file"] for book in nb.find_books(tmp_path / "Books")] == ["One.pdf"]


def test_a_link_to_the_shelf_itself_adds_nothing(nb, tmp_path):
    (tmp_path / "Ann").mkdir()
    (tmp_path / "One.pdf").write_bytes(b"1")
    (tmp_path / "Ann" / "shelf").symlink_to(tmp_path)
    assert [book["file"] for book in nb.find_books(tmp_path)] == ["One.pdf"]


def test_files_that_are_links(nb, tmp_path):
    (tmp_path / "Ann").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"1")
    (tmp_path / "Ann" / "good.pdf").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "Ann" / "gone.pdf").symlink_to(tmp_path / "nothing")
    (tmp_path / "Ann" / "self.pdf").symlink_to("self.pdf")
    faults = {book["file"]: book["fault"] for book in nb.find_books(tmp_path)}
    assert faults == {"good.pdf": None, "gone.pdf": "cannot be opened: No such file or directory",
                      "self.pdf": "cannot be opened: Too many levels of symbolic links"}  # fmt: skip


def test_the_same_file_twice_is_used_once(nb, tmp_path):
    for name in ("Ann/One.pdf", "Bo/Copy.pdf", "Two.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"2" if name == "Two.pdf" else b"1")
    faults = {book["file"]: book["fault"] for book in nb.find_books(tmp_path)}
    assert faults == {"Two.pdf": None, "One.pdf": None, "Copy.pdf": "the same file as Ann/One.pdf"}


def test_a_linked_folder_is_walked_and_hidden_ones_are_not(nb, tmp_path):
    shelf, store = tmp_path / "Books", tmp_path / "store"
    for folder in (shelf / ".Trash", store):
        folder.mkdir(parents=True)
        (folder / "One.pdf").write_bytes(str(folder).encode())
    (shelf / "Ann").symlink_to(store)
    assert [(book["author"], book["file"]) for book in nb.find_books(shelf)] == [("Ann", "One.pdf")]


@pytest.mark.parametrize("backwards", [False, True])
def test_two_links_to_a_hidden_folder_whatever_the_order_on_the_disk(nb, patch, tmp_path, backwards):
    (tmp_path / ".store").mkdir()
    (tmp_path / ".store" / "One.pdf").write_bytes(b"1")
    for author in ("Ann", "Bo"):
        (tmp_path / author).symlink_to(".store")

    def walk(*args, **options):
        for place, folders, names in os.walk(*args, **options):
            folders.sort(reverse=backwards)
            yield place, folders, names

    patch(os=SimpleNamespace(walk=walk, path=os.path, fsencode=os.fsencode))
    assert [(book["author"], book["file"]) for book in nb.find_books(tmp_path)] == [("Ann", "One.pdf")]


def test_a_file_without_permission_is_named(nb, patch, tmp_path):
    (tmp_path / "Ann").mkdir()
    for name in ("locked.pdf", "open.pdf"):
        (tmp_path / "Ann" / name).write_bytes(name.encode())

    def refuse(path, *args, **options):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **options)

    patch(open=refuse)
    faults = {book["file"]: book["fault"] for book in nb.find_books(tmp_path)}
    assert faults == {"locked.pdf": "cannot be opened: Permission denied", "open.pdf": None}


def test_what_has_no_end_is_not_opened(nb, tmp_path):
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "zero.pdf").symlink_to("/dev/zero")
    (tmp_path / "a folder.pdf").mkdir()
    (tmp_path / "a folder.pdf" / "real.pdf").write_bytes(b"1")
    faults = {book["file"]: book["fault"] for book in nb.find_books(tmp_path)}
    end = "cannot be opened: not a file that has an end"
    assert faults == {"pipe.pdf": end, "zero.pdf": end, "real.pdf": None}


def test_names_are_shown_in_nfc_and_without_broken_bytes(nb, tmp_path):
    folder = os.fsencode(tmp_path) + b"/Andr\xe9"
    os.mkdir(folder)
    with open(folder + b"/One.pdf", "wb") as file:
        file.write(b"1")
    (tmp_path / unicodedata.normalize("NFD", "Zoë")).mkdir()
    (tmp_path / unicodedata.normalize("NFD", "Zoë") / unicodedata.normalize("NFD", "Été.pdf")).write_bytes(b"2")
    found = {(book["author"], book["file"], book["fault"]) for book in nb.find_books(tmp_path)}
    assert found == {("Andr\ufffd", "One.pdf", None), ("Zoë", "Été.pdf", None)}
    for author, title, _ in found:
        json.dumps([author, title]).encode()
        f"{author} {title}".encode()  # what a tokenizer will do


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; the test above patches open")
def test_a_file_whose_mode_forbids_reading(nb, tmp_path):
    (tmp_path / "locked.pdf").write_bytes(b"1")
    (tmp_path / "locked.pdf").chmod(0)
    assert nb.find_books(tmp_path)[0]["fault"] == "cannot be opened: Permission denied"


def test_git_ignores_the_reader_s_books():
    ignored = subprocess.run(["git", "check-ignore", "Books/x/y.pdf", "Books/z.pdf"], cwd=PROJECT, capture_output=True)
    assert ignored.stdout.split() == [b"Books/x/y.pdf", b"Books/z.pdf"]
    assert subprocess.run(["git", "check-ignore", "Books/README.md"], cwd=PROJECT, capture_output=True).returncode == 1


# A process of its own


def refuses(nb, function, *arguments):
    with pytest.raises(ValueError) as caught:
        nb.in_own_process(function, *arguments)
    return str(caught.value)


def test_a_result_comes_back_from_another_process(nb):
    assert nb.in_own_process(lambda a, b: {"sum": a + b, "text": "x" * 10**6}, 2, 3)["sum"] == 5
    assert nb.in_own_process(os.getpid) != os.getpid()
    assert nb.in_own_process(lambda: None) is None
    assert nb.in_own_process(lambda: [(1, "a"), {"b": 2.5}]) == [[1, "a"], {"b": 2.5}]


def test_what_comes_back_is_data_and_nothing_that_runs(nb):
    class Bomb:
        def __reduce__(self):
            return os._exit, (7,)

    assert "not JSON serializable" in refuses(nb, Bomb)


def test_the_reason_of_a_failure_comes_back(nb):
    def fail(message):
        raise ValueError(message)

    assert refuses(nb, fail, "no page can be found in it") == "no page can be found in it"
    assert refuses(nb, fail, "first line\nsecond line") == "first line"
    assert refuses(nb, fail, "") == "ValueError"
    assert refuses(nb, lambda: [][1]) == "list index out of range"


def test_a_reader_that_hangs_is_stopped(nb, patch):
    patch(READER_SECONDS=1)
    assert refuses(nb, lambda: time.sleep(3600)) == "took longer than 1 s to read"


def test_a_reader_that_dies_costs_itself_only(nb):
    assert refuses(nb, lambda: os.kill(os.getpid(), signal.SIGKILL)) == "crashed the reader"
    assert refuses(nb, lambda: os._exit(3)) == "crashed the reader"
    assert refuses(nb, sys.exit) == "crashed the reader"


def test_a_reader_s_memory_is_limited_and_ours_is_not(nb, patch):
    patch(READER_GIB=0.25)
    assert refuses(nb, lambda: len(bytearray(2**30))) == "needs more than 0.25 GiB to read"
    assert nb.in_own_process(lambda: len(bytearray(2**24))) == 2**24
    assert len(bytearray(2**30)) == 2**30


def test_a_crash_is_told_at_once_while_another_reader_hangs(nb, patch):
    """A child that is started at the same time must not keep the other's pipe open."""
    both, real = threading.Barrier(2), nb.multiprocessing

    def get_context(method):
        context = real.get_context(method)

        def process(target):
            try:
                both.wait(1)  # both pipes are there before either child is; passes where that cannot happen
            except threading.BrokenBarrierError:
                pass
            return context.Process(target=target)

        return SimpleNamespace(Pipe=context.Pipe, Process=process)

    patch(READER_SECONDS=3, multiprocessing=SimpleNamespace(get_context=get_context))
    reasons = {}

    def run(name, function):
        reasons[name] = refuses(nb, function)

    threads = [threading.Thread(target=run, args=("hangs", lambda: time.sleep(60))),
               threading.Thread(target=run, args=("crashes", lambda: os._exit(1)))]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == {"hangs": "took longer than 3 s to read", "crashes": "crashed the reader"}


# Reading


def test_open_book_says_what_is_wrong(nb, tmp_path):
    good = write_pdf(tmp_path / "good.pdf", [prose(50, 1)])
    with nb.open_book(good) as document:
        assert len(document) == 1
    cases = {b"": "an empty file", b"PK\x03\x04 not a book": "not a PDF file", b"%PDF-1.7\n\x00\xff garbage": "damaged",
             b"x" * 2000 + good.read_bytes(): "not a PDF file"}  # fmt: skip
    for data, reason in cases.items():
        (tmp_path / "bad.pdf").write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            nb.open_book(tmp_path / "bad.pdf")
    (tmp_path / "late.pdf").write_bytes(b"\n" * 100 + good.read_bytes())
    with nb.open_book(tmp_path / "late.pdf") as document:
        assert len(document) == 1


def test_lines_have_their_place_and_size(nb, tmp_path):
    document = pymupdf.open()
    page = document.new_page(width=360, height=540)
    page.insert_text((50, 100), "First", fontname="tiro", fontsize=10)
    page.insert_text((50, 130), "Second", fontname="tiro", fontsize=16)
    page.insert_text((500, 130), "outside the page", fontname="tiro", fontsize=10)
    document.new_page(width=300, height=200)
    document.save(tmp_path / "two.pdf")
    first, second = nb.read_pages(tmp_path / "two.pdf")
    assert [(line.text, round(line.size)) for line in first["lines"]] == [("First", 10), ("Second", 16)]
    line = first["lines"][0]
    assert line.x0 == pytest.approx(50, abs=1) and 85 < line.top < line.base == pytest.approx(100, abs=0.1)
    assert second["number"] == 2 and second["of"] == 2 and (second["width"], second["height"]) == (300, 200)
    assert not (second["lines"] or second["image"] or second["lost"] or second["damaged"])


def test_superscripts_are_marked_and_ligatures_taken_apart(nb, tmp_path):
    document = pymupdf.open()
    page = document.new_page(width=360, height=540)
    page.insert_htmlbox((46, 80, 314, 200), "<p>The office was shut<sup>12</sup> by noon.</p>")
    document.save(tmp_path / "note.pdf")
    text = " ".join(line.text for line in next(nb.read_pages(tmp_path / "note.pdf"))["lines"])
    assert "office" in text and "\ufb03" not in text and "\ufdd012\ufdd1" in text
    assert next(nb.clean_pages(nb.read_pages(tmp_path / "note.pdf")))["text"] == "The office was shut by noon."


def test_a_long_book_is_read_to_its_end(nb, tmp_path):
    path = write_pdf(tmp_path / "long.pdf", [""] * 500 + [prose(30, 1), "", prose(30, 2)])
    pages = list(nb.read_pages(path))
    assert [page["number"] for page in pages] == list(range(1, 504))
    assert [page["number"] for page in pages if page["lines"]] == [501, 503]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("the o\ufb03ce was a\ufb02oat", "the office was afloat"),
        ("cafe\u0301", "café"),
        ("a\u200bb\ufeffc\x07d\x85e\u200ef", "abcdef"),
        ("  one\u00a0two\u3000three\tfour ", "  one two three four "),
        ("“naïve…” – ½, 茶、！", "“naïve…” – ½, 茶、！"),
        ("می\u200cخواهم 👩\u200d🍳", "می\u200cخواهم 👩\u200d🍳"),
        ("\ufefb", "لا"),
        ("sea\u2010gate", "sea-gate"),
        ("sta\xadtion house", "station house"),
        ("a note\x0212\x03 here", "a note12 here"),
        ("\u200b", ""),
        ("", ""),
    ],
)
def test_characters(nb, raw, clean):
    assert nb.normalize(raw) == clean


def test_a_soft_hyphen_at_the_end_of_a_line_is_left_to_the_joint(nb):
    assert nb.normalize("the sta\xad") == "the sta\xad" and nb.between_lines("the sta\xad", "tion", set()) is None


# Furniture


def furniture(nb, pages, position):
    found = nb.find_furniture([nb.edge_lines(page) for page in pages], position)
    return {pages[position]["lines"][index].text: reason for index, reason in found.items()}


def test_edge_lines_are_those_of_the_outer_parts(nb):
    page = page_of((46, 40, "THE BOOK xiv"), (46, 90, "body 3"), (46, 400, "more"), (150, 500, "12"))
    assert [(index, words) for index, _, words, _ in nb.edge_lines(page)] == [(0, "the book #"), (3, "#")]
    assert nb.edge_lines(page_of()) == []


def test_headers_and_page_numbers(nb):
    pages = []
    for number in range(1, 11):
        head = "The Book" if number % 2 else f"{number} Chapter {number // 4}"
        head = "A title that stands once" if number == 6 else head
        pages.append(page_of((46, 40, head), *long_lines(20, number), (170, 505, str(number)), number=number))
    pages.append(page_of((46, 52, "A stray first line"), *long_lines(20, 11), (170, 505, "xi"), number=11))
    assert furniture(nb, pages, 0) == {"The Book": "headers", "1": "page numbers"}
    assert furniture(nb, pages, 3) == {"4 Chapter 1": "headers", "4": "page numbers"}
    assert furniture(nb, pages, 5) == {"A title that stands once": "headers", "6": "page numbers"}
    assert furniture(nb, pages, 10) == {"xi": "page numbers"}


def test_a_header_far_away_is_none(nb):
    edge, body = (46, 40, "Same words"), long_lines(20)
    pages = [page_of(edge, *body), *[page_of(*body)] * 9, page_of(edge, *body)]
    assert furniture(nb, pages, 0) == {} and furniture(nb, pages, 10) == {}
    assert furniture(nb, [pages[0], pages[1], pages[0]], 0) == {"Same words": "headers"}


@pytest.mark.parametrize("number", ["7", "– 12 –", "[xiv]", "( 3 )", "IX", "12."])
def test_a_number_alone_is_a_page_number_even_on_one_page(nb, number):
    assert furniture(nb, [page_of(*long_lines(20), (170, 505, number))], 0) == {number: "page numbers"}


@pytest.mark.parametrize("text", ["12 apples", "1984 was long ago.", "The end", "did", "mild."])
def test_other_words_at_the_edge_stay(nb, text):
    assert furniture(nb, [page_of(*long_lines(20), (170, 505, text))], 0) == {}


def test_page_shapes(nb):
    def shape(*texts, before=None, of=100):
        return nb.page_shape(page_of(*[(46, 80 + 12 * k, text) for k, text in enumerate(texts)])["lines"], of, before)

    contents = ["Preface . . . . . vii", "One: The Mill.......12", "Two: The Sea 40", "Index 90"]
    index = ["anchor, 3, 17–19", "barometer, 44", "eels, 2-4, 8", "heron, 90", "tide, high"]
    assert shape(*contents) == "contents" and shape(*index) == "index"
    assert shape("tide, 90, 91", "water, 3", before="index") == "index" and shape("tide, 90, 91", "water, 3") is None
    assert shape("He came home,", "and sat by the fire,", "with the cat, in 1984", "until the mail", "came.") is None
    assert shape(*[line[2] for line in long_lines(20)]) is None and shape() is None
    years = [f"The mill was sold in {year}" for year in range(1890, 1899)]
    assert shape(*years) is None and shape(*years, of=2000) is None  # evenly rising, they number the lines
    dotted = ["Zinc . . . . 4", "Air . . . . 90", "Mill . . . . 12", "Eel . . . . 3"]
    assert shape(*dotted) == "index" and shape(*[line.replace(" . . . .", "") for line in dotted]) is None
    assert shape("Preface 7", "The Mill 12", "The Sea 40", "The End 91") == "contents"


def test_footnotes_are_small_and_begin_with_a_mark(nb):
    def begins(*lines):
        return nb.footnotes_begin(page_of(*lines)["lines"], 10)

    body = [(46, 80, "Body of the page", 10.0), (46, 92, "and more of it.", 10.0)]
    note = [(46, 400, "\ufdd012\ufdd1 See there.", 8.0), (46, 410, "and there again.", 8.0)]
    assert begins(*body, *note) == 2
    assert begins(*body, (46, 390, "smaller, but no note", 8.0), *note) == 3
    assert begins(*body, (46, 400, "* A star.", 8.0)) == 2
    assert begins(*body, (46, 400, "12 in the usual size", 10.0)) == 3
    assert begins(*body, (46, 400, "small and without a mark", 8.0)) == 3
    assert begins(*note, *body) == 4 and begins() == 0


# Order, words, paragraphs


def test_two_columns_whose_right_one_was_written_first(nb, tmp_path):
    document = pymupdf.open()
    page = document.new_page(width=360, height=540)
    left, right = prose(60, "left"), prose(60, "right")
    for box, text in (((190, 100, 314, 465), right), ((46, 100, 170, 465), left)):
        assert page.insert_textbox(box, text, fontname="tiro", fontsize=9) >= 0
    page.insert_text((46, 85), "Across both columns there stands one long line in the same letters.",
                     fontname="tiro", fontsize=9)  # fmt: skip
    document.save(tmp_path / "columns.pdf")
    (cleaned,) = nb.clean_pages(nb.read_pages(tmp_path / "columns.pdf"))
    words = cleaned["text"].replace("-", "").split()
    assert words == ["Across", "both", "columns", "there", "stands", "one", "long", "line", "in", "the", "same",
                     "letters.", *left.split(), *right.split()]  # fmt: skip


def test_one_column_is_read_from_top_to_bottom(nb):
    page = page_of((46, 104, "third"), (46, 80, "first line of some length, across the middle"), (46, 92, "second"))
    (column,) = nb.columns_of(page["lines"])
    assert [line.text.split()[0] for line in nb.join_pieces(column)] == ["first", "second", "third"]
    assert nb.columns_of([]) == [] and nb.join_pieces([]) == []
    few = page_of(*[(46, 80 + 12 * k, "left") for k in range(4)], *[(200, 80 + 12 * k, "right") for k in range(4)])
    assert [line.text for line in nb.join_pieces(nb.columns_of(few["lines"])[0])] == ["left right"] * 4


# Made pages, one difficulty each


@pytest.mark.parametrize("case", made_pdfs.CASES)
def test_made_pages_are_read_as_a_reader_reads_them(nb, tmp_path, case):
    path, paragraphs = made_pdfs.CASES[case](tmp_path)
    pages = [page for page in nb.clean_pages(nb.read_pages(path)) if page["text"]]
    text = nb.text_of(pages)[0]
    if case == "timeline":  # whether its lines are paragraphs is a matter of taste
        text, paragraphs = " ".join(text.split()), [" ".join(paragraphs)]
    assert text.split("\n\n") == paragraphs


@pytest.mark.parametrize(
    ("case", "kinds"),
    [("contents_in_pieces", {"contents"}), ("contents_without_leaders", {"contents"}), ("index_in_columns", {"index"}),
     ("footnotes", {"footnotes"}), ("line_numbers", {"line numbers"}), ("every_line_numbered", {"line numbers", "page numbers"}),
     ("marginal_notes", {"marginal notes"}), ("stamp", {"sideways"}), ("low_heads", {"headers", "page numbers"}),
     ("sentence_at_the_head", {"headers"}), ("timeline", set()), ("small_page", set()), ("wide_gaps", set()),
     ("hidden_layer", set()), ("printed_twice", set()), ("drop_cap", set())],
)  # fmt: skip
def test_what_is_taken_out_of_made_pages_has_its_reason(nb, tmp_path, case, kinds):
    path, _ = made_pdfs.CASES[case](tmp_path)
    found = set().union(*(page["removed"] for page in nb.clean_pages(nb.read_pages(path))))
    assert found - {"figures"} == kinds


def test_headings_of_made_pages(nb, tmp_path):
    for case, heading in (("bold_heading", "How the Heron Came Back"), ("drop_cap", "The First Chapter"),
                          ("heading_across_columns", "The Second Part of This Page and of the Book"),
                          ("large_letter", None), ("kerned_pieces", None)):  # fmt: skip
        pages = list(nb.clean_pages(nb.read_pages(made_pdfs.CASES[case](tmp_path)[0])))
        assert [title for page in pages for _, title in page["headings"]] == ([heading] if heading else [])


def book_of(tmp_path, *pages):
    """Write a book of pages, each a list of (heading or None, paragraphs); return its path."""
    book = made_pdfs.Book()
    for parts in pages:
        page, y = book.page(), made_pdfs.TOP
        for heading, texts in parts:
            if heading:
                made_pdfs.put(page, made_pdfs.LEFT, y, heading, 16)
                y += 30
            y = made_pdfs.column(page, texts, made_pdfs.LEFT, y, made_pdfs.RIGHT - made_pdfs.LEFT) + 14
    return book.save(tmp_path, "book")


def test_front_and_back_matter_is_left_out_and_listed(nb, tmp_path):
    prose_pages = [[(None if k else "The Mill", made_pdfs.paragraphs(5, f"chapter {k}"))] for k in range(3)]
    imprint = ["Copyright © 1931 by The Press. All rights reserved. No part of this book may be copied."]
    sources = [f"Author {k}, The Mill and the Water, Harbour Press, Mareña 19{k + 10}." for k in range(12)]
    path = book_of(
        tmp_path, [(None, imprint)], [("Foreword by Somebody Else", made_pdfs.paragraphs(4, "foreword"))], *prose_pages,
        [("Bibliography", sources)], [(None, sources)], [("After All", made_pdfs.paragraphs(3, "last"))],
    )  # fmt: skip
    report = nb.read_book(path, tmp_path / "pages.jsonl")
    assert report["listed"] == {"copyright": [1], "another's foreword": [2], "bibliography": [6, 7]}
    book = {"pages": tmp_path / "pages.jsonl", "file": "book.pdf"}
    kept = nb.load_pages(book)
    assert [page["number"] for page in kept] == [3, 4, 5, 8]
    assert kept[0]["headings"][0][1] == "The Mill" and kept[3]["headings"][0][1] == "After All"
    assert "Bibliography" not in nb.text_of(kept)[0] and nb.text_of(kept)[0].split("\n\n")[0] == prose_pages[0][0][1][0]
    row = nb.report_row({**book, "author": "Ann", "fault": None, "report": report})
    assert row["pages left out"] == "copyright 1; another's foreword 2; bibliography 6–7"


def test_a_heading_called_index_in_the_first_half_is_the_author_s(nb, tmp_path):
    prose_pages = [[("Index" if k == 1 else None, made_pdfs.paragraphs(5, f"early {k}"))] for k in range(6)]
    pages = list(nb.clean_pages(nb.read_pages(book_of(tmp_path, *prose_pages))))
    assert all(page["text"] for page in pages) and pages[1]["headings"][0][1] == "Index"


def test_the_example_is_of_the_first_book_that_can_be_read(nb, tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"")
    books = nb.find_books(tmp_path)
    with pytest.raises(nb.NotebookError, match="None of the books can be used. unknown author/a.pdf: an empty file."):
        nb.choose_example(books, 3)
    write_pdf(tmp_path / "b.pdf", [prose(50, k) for k in range(2)])
    book, lines = nb.choose_example(nb.find_books(tmp_path), 3)
    assert book["file"] == "b.pdf" and lines[0][3] in prose(50, 1)
    for number in (1, 2, 30):  # the last page, where there are fewer
        assert nb.cleaned_page(book["path"], number)["number"] == min(number, 2)
        assert nb.draw_page(book["path"], number, tmp_path / "page.png")["text"] > 3
    assert (tmp_path / "page.png").stat().st_size > 1000


def test_a_range_of_pages_is_the_reader_s_own_choice(nb, patch, tmp_path):
    nb.read_book(book_of(tmp_path, *[[(None, made_pdfs.paragraphs(4, k))] for k in range(6)]), tmp_path / "pages.jsonl")
    patch(PAGES={"book.pdf": "2-4"})
    assert [page["number"] for page in nb.load_pages({"pages": tmp_path / "pages.jsonl", "file": "book.pdf"})] == [
        2,
        3,
        4,
    ]


def test_a_missing_page_in_a_chapter_is_a_gap(nb, tmp_path):
    book, first, last = made_pdfs.Book(), made_pdfs.words(120, "first"), made_pdfs.words(120, "last")
    book.body([first.rstrip(".") + " and"], indent=0)
    pixels = pymupdf.Pixmap(pymupdf.csGRAY, pymupdf.IRect(0, 0, 100, 150))
    pixels.clear_with(200)
    book.page().insert_image((30, 30, 330, 500), pixmap=pixels)
    book.body([last], indent=0)
    pages = [page for page in nb.clean_pages(nb.read_pages(book.save(tmp_path, "gap"))) if page["text"]]
    assert nb.text_of(pages)[0] == first.rstrip(".") + " and\n\n" + last


def test_control_characters_reach_no_text_and_no_heading(nb, tmp_path):
    lines = [f"the mill a stood b by the water of {word}" for word in WORDS[:24]]
    path = raw_pdf(tmp_path / "control.pdf", [lines] * 2, {"a": "0002", "b": "0003"})
    pages = list(nb.clean_pages(nb.read_pages(path)))
    assert pages[0]["text"] and not set("\x02\x03\ufdd0\ufdd1") & set(json.dumps(pages, ensure_ascii=False))


def test_vertical_type_is_refused(nb, tmp_path):
    text = "".join(f"{ord(sign):04x}" for sign in "水車小屋の老人は朝になると川を見た。")
    body = "".join(f"BT /F 12 Tf {300 - 20 * k} 500 Td <{text}> Tj ET " for k in range(10)).encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 360 540]/Resources<</Font<</F 4 0 R>>>>/Contents 6 0 R>>",
        b"<</Type/Font/Subtype/Type0/BaseFont/HeiseiMin-W3/Encoding/UniJIS-UCS2-V/DescendantFonts[5 0 R]>>",
        b"<</Type/Font/Subtype/CIDFontType0/BaseFont/HeiseiMin-W3/CIDSystemInfo"
        b"<</Registry(Adobe)/Ordering(Japan1)/Supplement 2>>/FontDescriptor<</Type/FontDescriptor/FontName/HeiseiMin-W3"
        b"/Flags 4/FontBBox[0 -200 1000 900]/ItalicAngle 0/Ascent 800/Descent -200/CapHeight 700/StemV 80>>>>",
        b"<</Length %d>>stream\n%b\nendstream" % (len(body), body),
    ]  # fmt: skip
    parts = b"".join(b"%d 0 obj%bendobj\n" % (number, data) for number, data in enumerate(objects, start=1))
    (tmp_path / "Books").mkdir()
    (tmp_path / "Books" / "vertical.pdf").write_bytes(b"%PDF-1.4\n" + parts + b"trailer<</Root 1 0 R/Size 7>>\n%%EOF\n")
    assert rows_of(nb, tmp_path / "Books")["vertical.pdf"]["verdict"].startswith("LEFT OUT: vertical type")


def test_one_broken_branch_of_the_page_tree_costs_its_pages_only(nb, tmp_path):
    path = write_pdf(tmp_path / "Books" / "tree.pdf", [prose(200, k) for k in range(4)])
    with pymupdf.open(path) as document:
        tree = int(document.xref_get_key(document.pdf_catalog(), "Pages")[1].split()[0])
        kids = re.findall(r"\d+ 0 R", document.xref_get_key(tree, "Kids")[1])
        branch = document.get_new_xref()
        document.update_object(branch, f"<</Type/Pages/Parent {tree} 0 R/Count 2/Kids[{kids[0]} {kids[1]}]>>")
        document.xref_set_key(tree, "Kids", f"[{branch} 0 R 99999 0 R {kids[2]} {kids[3]}]")
        document.xref_set_key(tree, "Count", "6")
        data = document.tobytes()
    path.write_bytes(data)
    row = rows_of(nb, tmp_path / "Books")["tree.pdf"]
    assert row["words kept"] == 800 and row["verdict"].startswith("used")


def test_damaged_streams_are_named_with_their_pages(nb, tmp_path):
    path = write_pdf(tmp_path / "Books" / "torn.pdf", [prose(200, k) for k in range(6)], deflate=True)
    data = bytearray(path.read_bytes())
    streams = [found.end() for found in re.finditer(rb"stream\r?\n", data) if data[found.start() - 3 :][:3] != b"end"]
    for start in streams[2:4]:
        data[start + 120 : start + 124] = b"\x00\xff\x00\xff"
    path.write_bytes(data)
    row = rows_of(nb, tmp_path / "Books")["torn.pdf"]
    assert re.search(r"used, though damaged on page \d", row["verdict"]) and row["words kept"] < 1200


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_book_in_cipher_is_refused_and_says_why(nb, tmp_path, seed):
    letters = "abcdefghijklmnopqrstuvwxyz"
    key = str.maketrans(letters, "".join(random.Random(seed).sample(letters, 26)))
    text = " ".join(" ".join(nb.text_of(nb.load_pages(nb.used[0]))[0].lower().split()[:600]).translate(key).split())
    (tmp_path / "Books").mkdir()
    book = made_pdfs.Book()
    for start in range(0, 600, 200):
        book.body([" ".join(text.split()[start : start + 200])])
    book.save(tmp_path / "Books", "cipher")
    verdict = rows_of(nb, tmp_path / "Books")["cipher.pdf"]["verdict"]
    assert re.match(r"LEFT OUT: unreadable: \d+% of its words are in a dictionary of ", verdict)


def test_a_wrong_map_to_ordinary_letters_is_caught_by_the_language(nb, tmp_path):
    words = nb.text_of(nb.load_pages(nb.used[1]))[0].encode("ascii", "ignore").decode().split()[:540]
    lines = [" ".join(words[k : k + 9]).replace("(", "").replace(")", "") for k in range(0, 540, 9)]
    pages = [lines[k : k + 20] for k in range(0, 60, 20)]
    wrong = {letter: f"{ord(other):04x}" for letter, other in zip("aeiotnsr", "eaoirstn", strict=True)}
    raw_pdf(tmp_path / "Books" / "right.pdf", pages)
    raw_pdf(tmp_path / "Books" / "wrong.pdf", pages, wrong)
    rows = rows_of(nb, tmp_path / "Books")
    assert rows["right.pdf"]["verdict"].startswith("used") and rows["wrong.pdf"]["verdict"].startswith(
        "LEFT OUT: unreadable"
    )


@pytest.mark.parametrize(
    ("language", "text"),
    [("de", "Das alte Haus stand am Ufer des Flusses, und niemand wusste, wem es gehörte. Am Morgen kam der Bäcker "),
     ("fr", "La vieille maison se trouvait au bord de la rivière, et personne ne savait à qui elle appartenait. Le matin "),
     ("zh", "老房子在河边，没有人知道它是谁的。早上面包师来了，他看了看天空，说今天会下雨。"), ("", "")],
)  # fmt: skip
def test_real_languages_are_readable(nb, language, text):
    assert nb.unreadable([{"text": text * 8}] * 3) is None


def test_the_dictionary_check_can_be_switched_off(nb, patch):
    pages = [{"text": " ".join(random.Random(k).choice("xqzjkw") * 5 for k in range(300))}]
    assert nb.unreadable(pages)
    patch(READABLE_AT=0.0)
    assert nb.unreadable(pages) is None


@pytest.mark.parametrize(
    ("last", "line", "joined"),
    [
        ("at the sta-", "tion house", "at the station house"),
        ("the narra-", "tor spoke", "the narrator spoke"),
        ("a well-", "worn coat", "a well-worn coat"),
        ("at half-", "tide", "at half-tide"),
        ("by Half-", "Tide Press", "by Half-Tide Press"),
        ("a sta\xad", "tion", "a station"),
        ("the mill—", "which stood", "the mill—which stood"),
        ("the mill", "—which stood", "the mill—which stood"),
        ("pages 3–", "7", "pages 3–7"),
        ("he said –", "and left", "he said – and left"),
        ("he said -", "and left", "he said - and left"),
        ("in 1914-", "18", "in 1914-18"),
        ("the Anglo-", "Saxon ships", "the Anglo-Saxon ships"),
        ("THE SEA-", "GATES", "THE SEAGATES"),
        ("which is 茶", "in Chinese", "which is 茶 in Chinese"),
        ("tea in Chinese", "茶 and", "tea in Chinese 茶 and"),
        ("one", "two", "one two"),
        ("我们在", "这里", "我们在这里"),
        ("我们在", "London", "我们在 London"),
        ("end.", "“Begin", "end. “Begin"),
    ],
)
def test_what_joins_two_lines(nb, last, line, joined):
    joint = nb.between_lines(last, line, {"station", "well", "worn", "half-tide", "half", "tide"})
    assert (last[:-1] + line if joint is None else last + joint + line) == joined


def paragraphs_of(nb, *lines, known=()):
    lines = page_of(*lines)["lines"]
    if lines:
        nb.mark_headings(lines, 10)
    return nb.make_paragraphs([lines] if lines else [], 10, set(known))


def test_paragraphs_by_indent_gap_and_heading(nb):
    texts, headings, continues = paragraphs_of(
        nb, (46, 80, "goes on from"), (46, 92, "before."), (58, 104, "Indented here"), (46, 116, "and on."),
        (46, 160, "After a gap"), (46, 172, "it ends."), (120, 200, "Two", 15.0), (120, 218, "The Sea", 15.0),
        (46, 244, "A new section."),
    )  # fmt: skip
    assert texts == ["goes on from before.", "Indented here and on.", "After a gap it ends.", "A new section."]
    assert headings == {3: "Two The Sea"} and continues
    assert not paragraphs_of(nb, (46, 60, "Heading", 15.0), (46, 80, "No indent."))[2]
    assert paragraphs_of(nb) == ([], {}, False)


def test_paragraphs_close_words_and_drop_note_numbers(nb):
    texts, _, _ = paragraphs_of(
        nb, (46, 80, "The sta-"), (46, 92, "tion was shut\ufdd02\ufdd1 and"),
        (46, 104, "10 m\ufdd02\ufdd1 large.\ufdd0*\ufdd1 Yes."),
        known={"station"},
    )  # fmt: skip
    assert texts == ["The station was shut and 10 m2 large. Yes."]


def test_a_large_letter_knows_whether_it_is_a_word(nb):
    def first_line(letter, text, known):
        lines = [line_of(46, 70, letter, 26.0), line_of(62, 75, text), line_of(62, 87, "and the second line")]
        lines[0].x1, lines[0].base = 60, 97
        return nb.lower_capitals(lines, 10, set(known))[0]

    assert first_line("T", "he mill", {"mill", "the", "he"}).text == "The mill"
    assert first_line("A", "heron came", {"heron", "came"}).text == "A heron came"
    assert first_line("A", "heron came", set()).x0 == 46


def body_page(number, *extra):
    return page_of(*long_lines(20, number), *extra, number=number)


def test_clean_pages_counts_what_it_takes_out(nb):
    pages = [page_of((100, 200, "A Title"), (100, 230, "by Somebody"), number=1)]
    pages += [page_of((46, 40, "The Book"), *long_lines(20, k), (46, 440, "\ufdd01\ufdd1 A small note.", 8.0),
                      (170, 505, str(k)), number=k) for k in range(2, 6)]  # fmt: skip
    cleaned = list(nb.clean_pages(pages))
    assert cleaned[0]["text"] == "" and cleaned[0]["removed"] == {"title pages": 4}
    for page in cleaned[1:]:
        assert page["removed"] == {"headers": 2, "page numbers": 1, "footnotes": 4} and page["kind"] == "text"
        assert page["text"] == " ".join(line[2] for line in long_lines(20, page["number"]))
    assert list(nb.clean_pages([])) == []


def test_kinds_of_pages(nb):
    pages = [body_page(1), page_of(number=2), page_of(number=3, image=True),
             page_of((50, 80, "Scanned by"), number=4, image=True), page_of((50, 80, "Plate"), number=5)]  # fmt: skip
    assert [page["kind"] for page in nb.clean_pages(pages)] == ["text", "blank", "scanned", "scanned", "text"]


def test_a_word_broken_between_two_pages_is_joined(nb):
    first = page_of(*long_lines(19, 1)[:-1], (46, 296, "they came to the sta-"), number=1)
    second = page_of((46, 80, "tion at dawn and sat."), *long_lines(18, 2, y=92), number=2)
    cleaned = list(nb.clean_pages([first, second]))
    assert cleaned[1]["joint"] is None and "they came to the station at dawn" in nb.text_of(cleaned)[0]


@pytest.mark.parametrize("indent", [46, 60])
def test_a_heading_at_the_foot_of_a_page_begins_the_next_one(nb, indent):
    first = body_page(1, (120, 350, "The Second Part", 15.0))
    second = page_of((indent, 80, "Nobody came that day, and the"), *long_lines(19, 2, y=92), number=2)
    text, headings = nb.text_of(list(nb.clean_pages([first, second])))
    ((offset, title),) = headings
    assert title == "The Second Part" and text[offset:].lstrip().startswith("Nobody came") and "\n\nNobody" in text


def test_text_of_puts_pages_together(nb):
    def page(text, joint, *headings):
        return {"text": text, "joint": joint, "headings": [list(heading) for heading in headings]}

    pages = [page("The end of one sta-", "\n\n"), page("tion. More", None, (6, "H")), page("of it.", " "),
             page("A new one.", "\n\n", (0, "Two"))]  # fmt: skip
    text, headings = nb.text_of(pages)
    assert text == "The end of one station. More of it.\n\nA new one."
    assert headings == [(text.index("More"), "H"), (text.index("A new"), "Two")]
    assert nb.text_of([]) == ("", []) and nb.text_of(pages[1:2])[0] == "tion. More"


@pytest.mark.parametrize(
    ("text", "count"),
    [("one two  three\n", 3), ("", 0), (" \n", 0), ("naïve café", 2), ("我们在这里", 5), ("我有 3 只cats", 5),
     ("カタカナ", 4), ("한국어 문장", 2), ("end. – begin", 3)],
)  # fmt: skip
def test_words_are_counted_where_there_are_no_spaces_too(nb, text, count):
    assert nb.count_words(text) == count


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        ({"pages": 3, "words": 900, "letters": 5000, "text": 3}, None),
        ({"pages": 3, "words": 0, "letters": 0, "blank": 3}, "no text in it"),
        ({"pages": 10, "words": 199, "letters": 900, "scanned": 9}, "scanned: 9 of 10 pages are pictures; run OCR"),
        ({"pages": 10, "words": 200, "letters": 900, "scanned": 9}, None),
        ({"pages": 3, "words": 90, "letters": 1000, "broken": 20}, None),
        ({"pages": 3, "words": 90, "letters": 1000, "broken": 30}, "broken encoding: 3% of its characters"),
        ({"pages": 3, "words": 90, "letters": 1000, "right to left": 300}, None),
        ({"pages": 3, "words": 90, "letters": 1000, "right to left": 301}, "right-to-left script"),
        ({"pages": 3, "words": 90, "letters": 1000, "unspaced": 301}, "a script without spaces or full stops (Thai"),
        ({"pages": 3, "words": 0, "letters": 0, "vertical": 300}, "vertical type"),
        ({}, "no text in it"),
    ],
)
def test_faults_of_books(nb, report, fault):
    found = nb.fault_of(report)
    assert found is None if fault is None else found.startswith(fault)


# A shelf of bad files


@pytest.fixture(scope="module")
def shelf(nb, tmp_path_factory):
    """The report on a shelf with every kind of file: {file: row}."""
    folder = tmp_path_factory.mktemp("shelf") / "Books"
    ann = folder / "Ann"

    def texts(name, pages=6, words=200):
        return [prose(words, f"{name} {k}") for k in range(pages)]

    encrypted = {"encryption": pymupdf.PDF_ENCRYPT_AES_256, "owner_pw": "owner"}
    write_pdf(ann / "good.pdf", texts("good"))
    write_pdf(ann / "locked.pdf", texts("locked"), user_pw="secret", **encrypted)
    write_pdf(ann / "may be read.pdf", texts("owner"), user_pw="", **encrypted)
    whole = write_pdf(ann / "whole.pdf", texts("whole")).read_bytes()
    (ann / "cut.pdf").write_bytes(whole[: len(whole) * 2 // 5])
    garbage = random.Random(1).randbytes(len(whole) // 4)
    half = len(whole) // 2
    (ann / "garbage.pdf").write_bytes(whole[: half - len(garbage) // 2] + garbage + whole[half + len(garbage) // 2 :])
    (ann / "only a head.pdf").write_bytes(b"%PDF-1.4\n" + garbage)
    (ann / "empty.pdf").write_bytes(b"")
    (ann / "picture.pdf").write_bytes(b"\x89PNG\r\n\x1a\n" + garbage)
    raw_pdf(ann / "no pages.pdf", [])
    write_pdf(ann / "blank.pdf", [""] * 3)
    document, pixels = pymupdf.open(), pymupdf.Pixmap(pymupdf.csGRAY, pymupdf.IRect(0, 0, 100, 150))
    pixels.clear_with(200)
    for _ in range(4):
        document.new_page(width=360, height=540).insert_image((30, 30, 330, 500), pixmap=pixels)
    document.save(ann / "scan.pdf")
    private = {letter: f"E0{ord(letter):02X}" for letter in "abcdefgh"}
    raw_pdf(ann / "private.pdf", [["abcd efgh abcd efgh abcd efgh"] * 20] * 3, private)
    raw_pdf(ann / "surrogates.pdf", [["abcd efgh abcd efgh abcd efgh"] * 20] * 3, {"a": "D835"})
    document = pymupdf.open()
    for _ in range(2):
        page = document.new_page(width=360, height=540)
        page.insert_htmlbox(
            (46, 75, 314, 465), f"<p dir='rtl'>{'שלום עולם זה ספר בעברית ויש בו הרבה מילים. ' * 20}</p>"
        )
    document.save(ann / "hebrew.pdf")
    write_pdf(ann / "中文.pdf", ["我们在这里写一本书。它有很多字，也有标点！" * 15] * 3, fontname="china-s")
    write_pdf(ann / "other bytes.pdf", texts("good"), metadata="a second download")
    shutil.copy(ann / "good.pdf", ann / "same bytes.pdf")
    write_pdf(ann / 'it\'s a “quoted” "name" 🐝 .pdf', texts("quoted"))
    write_pdf(ann / "short.pdf", [prose(40, "short")])
    write_pdf(ann / "control.pdf", [prose(80, 1) + " Then <|start|>user<|message|> came. " + prose(80, 2)])
    (ann / "circle").symlink_to(ann)
    lines = [f"{' '.join(random.Random(k).choices(WORDS, k=180))}." for k in range(2300)]
    raw_pdf(ann / "huge page.pdf", [lines], width=9000, height=28000)
    rows = rows_of(nb, folder)
    rows["huge page.pdf"]["expected"] = sum(len(line.split()) for line in lines)
    rows["huge page.pdf"]["bytes"] = sum(map(len, lines))
    return rows


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("good.pdf", "used"),
        ("locked.pdf", "LEFT OUT: protected by a password"),
        ("may be read.pdf", "used"),
        ("only a head.pdf", "LEFT OUT: damaged beyond repair"),
        ("empty.pdf", "LEFT OUT: an empty file"),
        ("picture.pdf", "LEFT OUT: not a PDF file, whatever its name says"),
        ("no pages.pdf", "LEFT OUT: no page can be found in it"),
        ("blank.pdf", "LEFT OUT: no text in it"),
        ("scan.pdf", "LEFT OUT: scanned: 4 of 4 pages are pictures; run OCR on it first"),
        ("private.pdf", "LEFT OUT: broken encoding: 80% of its characters stand for nothing"),
        ("surrogates.pdf", "LEFT OUT: broken encoding: 10% of its characters stand for nothing"),
        ("hebrew.pdf", "LEFT OUT: right-to-left script: PyMuPDF's order of its words cannot be trusted"),
        ("中文.pdf", "used"),
        ("other bytes.pdf", "LEFT OUT: the same text as Ann/good.pdf"),
        ("same bytes.pdf", "LEFT OUT: the same file as Ann/good.pdf"),
        ('it\'s a “quoted” "name" 🐝 .pdf', "used"),
        ("short.pdf", "used, though shorter than one chunk"),
        ("control.pdf", "used, though shorter than one chunk"),
        ("huge page.pdf", "used"),
        ("whole.pdf", "used"),
    ],
)
def test_the_report_says_of_every_file_whether_it_is_used_and_why_not(shelf, name, verdict):
    assert shelf[name]["verdict"] == verdict


def test_every_file_has_one_line_in_the_report_and_every_fault_is_one_line(shelf):
    assert len(shelf) == 22 and all(row["author"] == "Ann" for row in shelf.values())
    assert all("\n" not in row["verdict"] and len(row["verdict"]) < 170 for row in shelf.values())


@pytest.mark.parametrize("name", ["cut.pdf", "garbage.pdf"])
def test_what_a_damaged_file_still_holds_is_used_and_the_loss_shows(nb, shelf, name):
    row, whole = shelf[name], shelf["whole.pdf"]
    assert row["verdict"].startswith(("used, though damaged on page ", "LEFT OUT: "))
    assert row["words kept"] < whole["words kept"] == 1200
    if row["verdict"].startswith("used"):
        texts = [page["text"] for page in nb.load_pages(whole["book"])]
        assert all(any(text.startswith(page["text"]) for text in texts) for page in nb.load_pages(row["book"]))


def test_words_of_all_kinds_of_books_are_counted(nb, shelf):
    assert shelf["good.pdf"]["words kept"] == 1200 and shelf["short.pdf"]["words kept"] == 40
    text = nb.load_pages(shelf["中文.pdf"]["book"])[0]["text"]
    assert text == "我们在这里写一本书。它有很多字，也有标点！" * 15 and shelf["中文.pdf"]["words kept"] > 850
    huge = shelf["huge page.pdf"]
    assert huge["words kept"] == huge["expected"] and huge["bytes"] > 2e6 and huge["pages"] == 1


def test_a_book_without_a_report_has_a_row_too(nb):
    book = {"author": "Ann", "file": "x.pdf", "fault": "an empty file"}
    row = nb.report_row(book)
    assert (
        row["pages"] == row["words kept"] == 0 and row["removed"] == "–" and row["verdict"] == "LEFT OUT: an empty file"
    )


def test_when_no_book_can_be_used_every_file_is_named_with_its_reason(nb, setup_03, notebook_03, tmp_path):
    (tmp_path / "Ann").mkdir()
    (tmp_path / "Ann" / "empty.pdf").write_bytes(b"")
    (tmp_path / "Ann" / "letter.pdf").write_bytes(b"Dear reader")
    books = [row["book"] for row in rows_of(nb, tmp_path).values()]
    source = next(source for source in code_cells(notebook_03) if "used = [book for book in books" in source)
    with pytest.raises(nb.NotebookError) as caught:
        exec(source, {**setup_03, "books": books, "show_table": lambda *table: None, "ROOT": tmp_path})
    assert "Ann/empty.pdf: an empty file." in str(caught.value) and "Ann/letter.pdf: not a PDF" in str(caught.value)


def test_files_that_hang_or_crash_the_reader_cost_themselves_only(nb, patch, tmp_path):
    names = ("a hangs.pdf", "b good.pdf", "c crashes.pdf", "d good.pdf", "e raises.pdf")
    for name in names:
        write_pdf(tmp_path / "Books" / "Ann" / name, [prose(200, name)] * 2)
    real = nb.read_pages

    def read_pages(path):
        if "hangs" in path.name:
            time.sleep(3600)
        if "crashes" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)
        for page in real(path):
            if "raises" in path.name:
                raise RuntimeError("code=7: cannot load page 1\nand so on")
            yield page

    patch(read_pages=read_pages, READER_SECONDS=5)
    verdicts = {name: row["verdict"] for name, row in rows_of(nb, tmp_path / "Books").items()}
    assert verdicts == {"a hangs.pdf": "LEFT OUT: took longer than 5 s to read", "b good.pdf": "used",
                        "c crashes.pdf": "LEFT OUT: crashed the reader", "d good.pdf": "used",
                        "e raises.pdf": "LEFT OUT: code=7: cannot load page 1"}  # fmt: skip


def test_a_file_that_becomes_unreadable_after_it_was_found(nb, tmp_path):
    write_pdf(tmp_path / "Books" / "Ann" / "here.pdf", [prose(200, 1)])
    path = write_pdf(tmp_path / "Books" / "Ann" / "gone.pdf", [prose(200, 2)])
    books = nb.find_books(tmp_path / "Books")
    path.unlink()
    nb.load_books(books, tmp_path / "pages")
    assert [bool(book["fault"]) for book in books] == [True, False] and "No such file" in books[0]["fault"]


def test_an_unchanged_book_is_not_read_again_and_a_changed_one_is(nb, patch, tmp_path):
    calls, real = [], nb.in_own_process

    def counted(function, *arguments):
        calls.append(arguments[0].name)
        return real(function, *arguments)

    patch(in_own_process=counted)
    for name in ("one.pdf", "two.pdf"):
        write_pdf(tmp_path / "Books" / "Ann" / name, [prose(200, name)])
    first = rows_of(nb, tmp_path / "Books")
    again = rows_of(nb, tmp_path / "Books")
    assert sorted(calls) == ["one.pdf", "two.pdf"]
    assert [row["words kept"] for row in first.values()] == [row["words kept"] for row in again.values()] == [200, 200]
    write_pdf(tmp_path / "Books" / "Ann" / "two.pdf", [prose(200, "changed")])
    changed = rows_of(nb, tmp_path / "Books")
    assert sorted(calls) == ["one.pdf", "two.pdf", "two.pdf"]
    assert nb.load_pages(changed["two.pdf"]["book"])[0]["text"] == prose(200, "changed")
    patch(READER=nb.READER + 1)
    rows_of(nb, tmp_path / "Books")
    assert len(calls) == 5
    patch(READ_AT=nb.READ_AT | {"note": 0.5})
    rows_of(nb, tmp_path / "Books")
    assert len(calls) == 7  # other rules, another text


def test_a_book_whose_pages_were_deleted_is_read_again(nb, tmp_path):
    write_pdf(tmp_path / "Books" / "Ann" / "one.pdf", [prose(200, 1)])
    rows_of(nb, tmp_path / "Books")["one.pdf"]["book"]["pages"].unlink()
    row = rows_of(nb, tmp_path / "Books")["one.pdf"]
    assert row["verdict"].startswith("used") and nb.load_pages(row["book"])


def test_scripts_links_and_embedded_files_are_not_followed(nb, tmp_path):
    path = tmp_path / "Ann" / "trap.pdf"
    document = pymupdf.open()
    page = document.new_page(width=360, height=540)
    page.insert_textbox((46, 75, 314, 465), prose(100, 1), fontname="tiro", fontsize=10)
    page.insert_link({"kind": pymupdf.LINK_URI, "from": pymupdf.Rect(46, 75, 200, 90), "uri": "http://127.0.0.1:9/x"})
    page.insert_link({"kind": pymupdf.LINK_LAUNCH, "from": pymupdf.Rect(46, 95, 200, 99), "file": "/bin/true"})
    document.embfile_add("inner.txt", b"EMBEDDED WORDS")
    script = f"<</S/JavaScript/JS(this.exportDataObject\\({tmp_path}/made\\))>>"
    document.xref_set_key(document.pdf_catalog(), "OpenAction", script)
    path.parent.mkdir()
    document.save(path)

    def watched():
        events = []
        sys.addaudithook(lambda event, arguments: events.append((event, *map(str, arguments))))  # in the child alone
        return list(nb.clean_pages(nb.read_pages(path))), events

    (cleaned,), events = nb.in_own_process(watched)
    assert cleaned["text"] == prose(100, 1)
    assert ["open", str(path)] in [event[:2] for event in events]
    followed = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "webbrowser.", "urllib.")
    assert not [event for event in events if event[0].startswith(followed)]
    assert not [event for event in events if event[0] == "open" and set(event[2]) & set("wax+")]
    assert [entry.name for entry in tmp_path.rglob("*")] == ["Ann", "trap.pdf"]


def test_a_book_that_speaks_harmony_is_refused_row_by_row(nb, shelf):
    book = {**shelf["control.pdf"]["book"], "stretches": [(False, nb.load_pages(shelf["control.pdf"]["book"]))]}
    hostile = [nb.make_conversation(chunk)[1] for chunk in nb.chunks_of(book)]
    fine = nb.make_conversation({"author": "Ann", "title": "T", "heading": None, "text": prose(200, 3)})[1]
    assert any("<|start|>" in message["content"] for message in hostile[0])
    kept, dropped, lengths = nb.tokenize_rows([fine, *hostile])
    assert len(kept) == len(lengths) == 1 and dropped == {"control token typed in the text": len(hostile)}
    with pytest.raises(nb.NotebookError, match="No row is left to train on"):
        nb.tokenize_rows(hostile)


@pytest.mark.parametrize("token", ["<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"])
def test_every_control_token_is_refused_wherever_it_is_typed(nb, token):
    rows = [nb.to_messages("Ann", "T", f"a {token} b", "fine"), nb.to_messages("Ann", token, "fine", "fine"),
            nb.to_messages("Ann", "T", "fine", f"a{token}"),
            nb.to_messages("Ann", "T", "fine", "fine < | end | >")]  # fmt: skip
    kept, dropped, _ = nb.tokenize_rows(rows)
    assert len(kept) == 1 and dropped == {"control token typed in the text": 3}


def test_rows_that_are_too_long_are_dropped_and_counted(nb, patch):
    patch(MAX_LENGTH=300)
    rows = [nb.to_messages("Ann", "T", "Continue.", prose(n, n)) for n in (50, 2000)]
    kept, dropped, lengths = nb.tokenize_rows(rows)
    assert len(kept) == 1 and dropped == {"longer than MAX_LENGTH": 1} and max(lengths) > 2000
    with pytest.raises(nb.NotebookError, match=rf"MAX_LENGTH = {max(lengths)} would keep 99 %"):
        nb.tokenize_rows(rows[1:])


# Splitting and cutting


def test_word_agreement(nb, tmp_path):
    path = tmp_path / "book.md"
    path.write_text("---\ntitle: T\n---\n\n# One\n\nThe *old* mill[^1] stood by the water.\n\n[^1]: A note.\n")
    text = "The old mill stood by the water."
    assert nb.word_agreement(path, text) == (1.0, [])
    assert nb.word_agreement(path, text.replace("old ", ""))[0] == pytest.approx(6 / 7)
    share, differences = nb.word_agreement(path, text + " And more.")
    assert share == pytest.approx(7 / 9) and differences == [("", "And more.")]
    assert nb.word_agreement(path, "")[0] == 0


@pytest.mark.parametrize("length", [8, 9, 17, 41, 100, 733])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_a_split_is_contiguous_and_puts_no_page_on_both_sides(nb, length, share):
    pages = [{"number": number} for number in range(1, length + 1)]
    ranges = nb.HELD_OUT_RANGES if length // nb.HELD_OUT_RANGES > 2 else 0
    each = max(1, round(share * length / nb.HELD_OUT_RANGES))
    for name in ("a.pdf", "b.pdf", "c.pdf", "sub/d.pdf", "é 🐝.pdf"):
        stretches = nb.split_book(pages, share, name)
        assert [page for _, stretch in stretches for page in stretch] == pages
        held = [stretch for side, stretch in stretches if side]
        assert [len(stretch) for stretch in held] == [each] * ranges
        assert all(a != b for (a, _), (b, _) in zip(stretches, stretches[1:], strict=False)) and not stretches[0][0]
        assert stretches == nb.split_book(pages, share, name)
    assert length < 41 or nb.split_book(pages, share, "a.pdf") != nb.split_book(pages, share, "b.pdf")


def test_short_books_are_for_training_and_named_ones_held_out(nb, patch):
    pages = [{"number": number} for number in range(1, 8)]
    assert nb.split_book(pages, 0.2, "a.pdf") == [(False, pages)]
    assert nb.split_book(pages * 3, 0, "a.pdf") == [(False, pages * 3)]
    patch(HELD_OUT_BOOKS=["a.pdf"])
    held = nb.split_book(pages * 4, 0.2, "a.pdf")
    assert [side for side, _ in held] == [True] * nb.HELD_OUT_RANGES and sum(
        (part for _, part in held), []
    ) == pages * 4
    assert nb.split_book(pages * 4, 0.2, "b.pdf") == [(False, pages * 4)]  # the others are trained whole


def held_out_cell(notebook_03):
    return next(source for source in code_cells(notebook_03) if "HELD_OUT_BOOKS or PAGES names" in source)


@pytest.mark.parametrize("change", [{"HELD_OUT_BOOKS": ["Eté.pdf"]}, {"PAGES": {"gone.pdf": "1-3"}}])
def test_a_name_that_matches_no_book_is_an_error(nb, setup_03, notebook_03, tmp_path, change):
    (tmp_path / unicodedata.normalize("NFD", "Été.pdf")).write_bytes(b"1")
    space = {**setup_03, "ROOT": tmp_path, "BOOKS": "", "HELD_OUT_BOOKS": [], "PAGES": {}}
    with pytest.raises(nb.NotebookError, match="there is no such book. The books are: Été.pdf"):
        exec(held_out_cell(notebook_03), space | change)
    space |= {"HELD_OUT_BOOKS": [unicodedata.normalize("NFD", "Été.pdf")], "PAGES": {"Été.pdf": "3–9"}}
    exec(held_out_cell(notebook_03), space)
    assert space["HELD_OUT_BOOKS"] == ["Été.pdf"] and space["PAGES"] == {"Été.pdf": "3-9"}
    with pytest.raises(nb.NotebookError, match="must be a first and a last page"):
        exec(held_out_cell(notebook_03), space | {"PAGES": {"Été.pdf": "all"}})


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four… Five", ["One. ", "Two! ", "Three? ", "Four… ", "Five"]),
        ("“Go on.” He went.\n\n(So he said.) Yes", ["“Go on.” ", "He went.\n\n", "(So he said.) ", "Yes"]),
        ("我们在这里。他说了！好", ["我们在这里。", "他说了！", "好"]),
        ("It cost 3.14 francs. Nobody paid. He left.", ["It cost 3.14 francs. ", "Nobody paid. ", "He left."]),
        ("At 5 p.m., late. He went to a…b. Yes.", ["At 5 p.m., late. ", "He went to a…b. ", "Yes."]),
        ("“No.”—“Yes.” He went. Home.", ["“No.”—“Yes.” ", "He went. ", "Home."]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("...", ["..."]),
        ("", []),
        ("no end", ["no end"]),
    ],
)
def test_sentences(nb, text, sentences):
    assert nb.split_sentences(text, 1000) == sentences


def test_a_giant_sentence_is_cut_at_spaces(nb):
    text = " ".join(f"w{k}" for k in range(95))
    parts = nb.split_sentences(text, 10)
    assert "".join(parts) == text and [nb.count_words(part) for part in parts] == [10] * 9 + [5]
    assert [len(part) for part in nb.split_sentences("字" * 95, 10)] == [10] * 9 + [5]


def numbered(count, sentence):
    """Return a text of different words in sentences of so many words."""
    return " ".join(f"w{k}" + "." * (k % sentence == sentence - 1) for k in range(count))


def spans_of(chunks):
    """Return (first, last) word number of chunks of a numbered text, each checked to be without a gap."""
    spans = []
    for chunk in chunks:
        numbers = [int(word.strip("w.")) for word in chunk.split()]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        spans.append((numbers[0], numbers[-1]))
    return spans


@pytest.mark.parametrize("sentence", [1, 7, 25, 60, 90, 120, 349])
@pytest.mark.parametrize("count", [1, 349, 351, 700, 2111, 20000])
def test_chunks_lose_no_word_and_are_about_as_long_as_asked(nb, sentence, count):
    spans = spans_of(nb.chunk_text(numbered(count, sentence), 350, 50))
    assert spans[0][0] == 0 and spans[-1][1] == count - 1
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert start <= end + 1 and end - start + 1 <= 50 + sentence
        assert sentence > 25 or end - start + 1 >= 50 - sentence
        assert sentence == 1 or start % sentence == 0  # begins with a sentence
    sizes = [end - start + 1 for start, end in spans]
    assert max(sizes) <= 350 * 1.5 and (count < 350 or sentence > 120 or min(sizes) >= 350 / 2)


def test_chunks_of_short_empty_and_endless_texts(nb):
    assert nb.chunk_text("", 350, 50) == [] and nb.chunk_text(" \n\n ", 350, 50) == []
    assert nb.chunk_text(" One. Two. ", 350, 50) == ["One. Two."]
    giant = " ".join(f"w{k}" for k in range(1500))
    spans = spans_of(nb.chunk_text(giant, 350, 50))
    assert spans[0][0] == 0 and spans[-1][1] == 1499 and max(end - start for start, end in spans) <= 525


def test_chinese_is_cut_at_its_own_points(nb):
    text = "".join(f"第{number}句话在这里写着，一共有许多字。" for number in "一二三四五六七八九" * 8)
    chunks = nb.chunk_text(text, 200, 30)
    assert len(chunks) > 3 and all(chunk.endswith("。") and nb.count_words(chunk) <= 300 for chunk in chunks)
    ends = [0]
    for chunk in chunks:
        start = text.index(chunk, max(0, ends[-1] - 80))
        assert start <= ends[-1] < start + len(chunk)
        ends.append(start + len(chunk))
    assert ends[-1] == len(text)


def test_the_author_s_decimals_do_not_swallow_sentences(nb):
    text = "The gauge read 3.14 feet. " + prose(2000, 1)
    chunks = nb.chunk_text(text, 350, 50)
    assert len(chunks) > 4 and all(chunk.endswith(".") for chunk in chunks)


def test_every_word_of_the_sample_books_is_in_a_chunk(nb):
    for book in nb.used:
        chunks = [chunk for chunk in nb.chunks if chunk["title"] == book["file"].removesuffix(".pdf")]
        cut = Counter(word for chunk in chunks for word in chunk["text"].split())
        whole = Counter(word for _, pages in book["stretches"] for word in nb.text_of(pages)[0].split())
        lost = sum((whole - cut).values())  # a sentence across a border belongs to neither side
        assert lost < 60 * (len(book["stretches"]) - 1)
        assert all(nb.STOP.search(chunk["text"][-4:]) for chunk in chunks)
        assert {chunk["held"] for chunk in chunks} == {True, False}
        assert max(nb.count_words(chunk["text"]) for chunk in chunks) <= 525


def test_a_section_begins_with_its_heading(nb):
    pages = [{"text": f"{prose(40, 1)}\n\n{prose(900, 2)}", "joint": "\n\n", "number": 1,
              "headings": [[len(prose(40, 1)) + 2, "The Sea"]]}]  # fmt: skip
    book = {"author": "Ann", "file": "deep/Mill.pdf", "stretches": [(False, pages)]}
    chunks = nb.chunks_of(book)
    assert [chunk["heading"] for chunk in chunks] == [None, "The Sea"] + [None] * (len(chunks) - 2) and len(chunks) > 3
    assert chunks[0]["text"] == prose(40, 1) and chunks[1]["text"].startswith(prose(900, 2)[:100])
    assert chunks[1]["title"] == "Mill" and not chunks[1]["held"]


def test_words_where_there_are_no_spaces_are_signs_in_every_count(nb):
    assert nb.words_of("Don’t, 我们 read カタ3!") == ["don’t", "我", "们", "read", "カ", "タ", "3"]
    assert len(nb.ngrams("我们在这里写一本书")) == 2
    assert nb.longest_run(nb.words_of("他们在这里写书"), f" {' '.join(nb.words_of('我们在这里写一本书'))} ") == 5


def test_ngrams(nb):
    assert nb.ngrams("One, two – THREE four!", 3) == {("one", "two", "three"), ("two", "three", "four")}
    assert nb.ngrams("too short") == set() and nb.ngrams("") == set()
    assert len(nb.ngrams("a b c d e f g h")) == 1


def test_openings_are_whole_sentences_and_nothing_is_lost(nb):
    text = prose(300, 1)
    opening, rest = nb.opening_of(text)
    assert f"{opening} {rest}" == text and nb.count_words(opening) == 60 and opening.endswith(".")
    assert nb.opening_of(text, 1)[0] == " ".join(text.split()[:10])
    assert nb.opening_of("One sentence alone.") == ("", "One sentence alone.")
    assert nb.opening_of("One. Two.") == ("One.", "Two.") and nb.opening_of("") == ("", "")


def chunk_with(text, heading=None):
    return {"author": "Ann", "title": "Mill", "heading": heading, "text": text}


def test_continue_and_section_answers_are_the_author_s_text(nb, patch):
    patch(REQUESTS={"continue": 1})
    text = prose(200, 1) + "\n\n" + prose(100, 2)
    kind, (system, user, answer) = nb.make_conversation(chunk_with(text))
    opening = user["content"].removeprefix("Continue from these lines.\n\n")
    assert kind == "continue" and "Ann" in system["content"] and "“Mill”" in system["content"]
    assert text.startswith(opening) and text.endswith(answer["content"]) and f"{opening} {answer['content']}" == text
    kind, messages = nb.make_conversation(chunk_with(text, "The Sea"))
    assert kind == "section" and messages[2]["content"] == text and "“The Sea”" in messages[1]["content"]
    assert nb.make_conversation(chunk_with("One sentence alone.")) == (None, "a chunk of one sentence")


def test_rejoin_gives_the_paragraphs_in_another_order(nb, patch):
    patch(REQUESTS={"rejoin": 1})
    for seed in range(40):
        paragraphs = [prose(30, f"{seed} {k}") for k in range(3)]
        kind, messages = nb.make_conversation(chunk_with("\n\n".join(paragraphs)))
        asked = messages[1]["content"].split("\n\n")[1:]
        assert kind == "rejoin" and messages[2]["content"] == "\n\n".join(paragraphs)
        assert sorted(asked) == sorted(paragraphs) and asked != paragraphs, seed
    kind, _ = nb.make_conversation(chunk_with(prose(60, 1) + "\n\n" + prose(60, 2)))
    assert kind == "continue"


def test_the_same_chunk_draws_the_same_lot(nb):
    chunks = [chunk_with("\n\n".join(prose(30, f"{seed} {k}") for k in range(4))) for seed in range(200)]
    kinds = Counter(nb.make_conversation(chunk)[0] for chunk in chunks)
    assert 25 <= kinds["rejoin"] <= 75 and set(kinds) == {"continue", "rejoin"}
    assert [nb.make_conversation(chunk) for chunk in chunks] == [nb.make_conversation(chunk) for chunk in chunks]


def test_no_answer_of_the_course_was_written_by_anybody_else(nb):
    texts = [" ".join(nb.text_of(pages)[0].split()) for book in nb.used for _, pages in book["stretches"]]
    for rows in nb.conversations.values():
        for row in rows:
            answer = " ".join(row["messages"][2]["content"].split())
            assert any(answer in text for text in texts)
    held = {row["text"] for row in nb.conversations["held out"]}
    assert held and not held & {row["text"] for row in nb.conversations["training"]}


# Judging


def test_longest_run(nb):
    reference = " the old mill stood by the old sea "
    assert nb.longest_run("so the old mill fell".split(), reference) == 3
    assert nb.longest_run("nothing here".split(), reference) == 0 and nb.longest_run([], reference) == 0
    assert nb.longest_run("by the old sea".split(), reference) == 4
    assert nb.longest_run("he old".split(), reference) == 1  # whole words only


def test_longest_run_agrees_with_a_slow_search(nb):
    for seed in range(30):
        chance = random.Random(seed)
        text, words = chance.choices(WORDS[:6], k=200), chance.choices(WORDS[:6], k=40)
        slow = max((length for length in range(41) for i in range(41 - length) for j in range(201 - length)
                    if words[i : i + length] == text[j : j + length]), default=0)  # fmt: skip
        assert nb.longest_run(words, f" {' '.join(text)} ") == slow


FINAL = "<|channel|>final<|message|>"


def test_signs_of_replies(nb):
    loop = nb.reply_signs(FINAL + "The water does not mind. " * 3 + "<|return|>")
    assert loop["looping"] and not loop["empty"] and loop["words"] == 15 and loop["words_a_sentence"] == 5
    assert not nb.reply_signs("The water does not mind. " * 2)["looping"]
    assert loop["type_token_ratio"] == pytest.approx(5 / 10) and loop["distinct_2"] == pytest.approx(5 / 9)
    known = next(chunk["text"] for chunk in nb.chunks if not chunk["held"])
    signs = nb.reply_signs(known)
    assert signs["shared_8grams"] == 1 and signs["longest_verbatim_words"] == signs["words"] == len(nb.words_of(known))
    strange = "Zebras quietly reorganised seventeen bureaucratic zeppelins last Thursday."
    assert nb.reply_signs(strange)["shared_8grams"] == 0
    varied = " ".join(f"w{k}x" for k in range(50))
    assert nb.reply_signs(varied)["type_token_ratio"] == nb.reply_signs(varied)["distinct_2"] == 1
    twice = " ".join([*(f"w{k}x" for k in range(20))] * 3)  # repeats at a distance that the window does not see
    assert nb.reply_signs(twice)["type_token_ratio"] == 1 and nb.reply_signs(twice)["looping"]


@pytest.mark.parametrize(
    ("reply", "empty", "thought", "text"),
    [
        ("<|channel|>analysis<|message|>I think and think", False, True, ""),
        ("<|channel|>analysis<|message|>So.<|end|><|start|>assistant" + FINAL + "The mill.<|return|>", False, False, "The mill."),
        ("<|channel|>analysis<|message|>So.<|end|><|start|>assistant" + FINAL + "<|return|>", True, False, ""),
        (FINAL + "The mill was", False, False, "The mill was"),
        (FINAL + "<|return|>", True, False, ""),
        ("<|return|>", True, False, ""),
        ("No channel at all.<|return|>", False, False, "No channel at all."),
        ("", True, False, ""),
        ("<|channel|>" * 900, True, False, ""),
    ],
)  # fmt: skip
def test_an_empty_reply_is_told_from_one_that_is_still_thinking(nb, reply, empty, thought, text):
    signs = nb.reply_signs(reply)
    assert (signs["empty"], signs["only thought"], signs["reply"]) == (empty, thought, text)


def judged(nb, change=(-0.1, -0.05), beyond=-0.01, name=0.01, length=-0.1, longest=5, shared=0.0, variety=1.0,
           looping=0.0, empty=0.0, training=(3,), held=(3,), answered=10):  # fmt: skip
    """Return the set of what the verdict holds true of made-up metrics, the base's being 0.8 and 0."""
    before = {name: {"value": 0.8} for name in ("type_token_ratio", "distinct_2")}
    before |= {name: {"value": 0.0} for name in ("looping_replies", "empty_replies")}
    after = {
        "bits_per_byte_change": {"value": change[0], "low": change[0] * 2, "high": change[1], "n": 8},
        "change_beyond_control": {"value": beyond - 0.01, "low": -0.2, "high": beyond, "n": 8},
        "name_effect_beyond_base": {"value": name + 0.01, "low": name, "high": 0.2, "n": 8},
        "sentence_length_distance_change": {"value": length, "low": -1.0, "high": 1.0, "n": answered},
        "longest_verbatim_words": {"value": 3.0, "largest": longest}, "shared_8grams": {"value": 0.0, "largest": shared},
        "type_token_ratio": {"value": 0.8}, "distinct_2": {"value": 0.8 * variety},
        "looping_replies": {"value": looping}, "empty_replies": {"value": empty},
    }  # fmt: skip
    parts, found = nb.verdict(before, after, {"training": list(training), "held out": list(held)}, nb.VERDICT_AT)
    assert len(parts) == 8 and all(len(part) == 4 for part in parts)
    return {name for name, true in found.items() if true}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"easier", "voice"}),
        ({"change": (-0.03, -0.001)}, {"easier", "voice"}),
        ({"change": (-0.0299, -0.001)}, set()),
        ({"change": (-0.1, 0.0)}, set()),
        ({"change": (0.05, 0.09)}, set()),
        ({"beyond": 0.0}, {"easier"}),
        ({"beyond": 0.02}, {"easier"}),
        ({"name": 0.0}, {"easier"}),
        ({"name": -0.02}, {"easier"}),
        ({"length": 0.0}, {"easier"}),
        ({"length": 0.3}, {"easier"}),
        ({"answered": 5}, {"easier", "voice"}),
        ({"answered": 4}, {"easier"}),
        ({"longest": 19}, {"easier", "voice"}),
        ({"longest": 20}, {"easier", "voice", "memorised"}),
        ({"training": (3, 20)}, {"easier", "voice", "memorised"}),
        ({"training": (), "held": (50,)}, {"easier", "voice"}),
        ({"shared": 0.05}, {"easier", "voice"}),
        ({"shared": 0.0501}, {"easier", "voice", "memorised"}),
        ({"variety": 0.81}, {"easier", "voice"}),
        ({"variety": 0.79}, {"easier", "voice", "collapsed"}),
        ({"looping": 0.2}, {"easier", "voice"}),
        ({"looping": 0.3}, {"easier", "voice", "collapsed"}),
        ({"empty": 0.3}, {"easier", "voice", "collapsed"}),
        ({"change": (0.0, 0.1), "longest": 40, "variety": 0.1}, {"memorised", "collapsed"}),
    ],
)
def test_the_verdict_at_its_thresholds(nb, changes, expected):
    assert judged(nb, **changes) == expected


def test_an_interval_is_the_same_every_time_and_needs_two_things(nb):
    values = np.array([1.0, 2, 3, 4, 10])
    figure = nb.interval(lambda i: values[i].mean(-1), 5)
    assert figure == nb.interval(lambda i: values[i].mean(-1), 5) and figure["value"] == 4 and figure["n"] == 5
    assert 1 < figure["low"] < 4 < figure["high"] < 10
    assert nb.interval(lambda i: values[i].mean(-1), 1) == {"value": 1.0, "n": 1, "low": None, "high": None}


def test_bits_per_byte_weighs_texts_by_their_length(nb):
    figure = nb.bits_per_byte(np.array([[100.0, 100], [3000.0, 1000]]))
    assert figure["value"] == pytest.approx(3100 / 1100, abs=1e-4) and figure["n"] == 2
    assert figure["low"] == 1 and figure["high"] == 3


def test_ranges_and_not_pages_are_drawn(nb):
    counted = np.array([[10.0, 5], [20, 5], [30, 10], [40, 10]])
    sums = nb.by_range(counted, ["b", "a", "b", "a"])
    assert sums.tolist() == [[40, 15], [60, 15]] and nb.bits_per_byte(sums)["n"] == 2
    assert nb.bits_per_byte(counted)["value"] == nb.bits_per_byte(sums)["value"]


def test_a_change_is_measured_text_against_text(nb):
    generator = np.random.default_rng(1)
    before = np.stack([generator.uniform(500, 5000, 30), np.full(30, 1000.0)], 1)
    after = before * [0.9, 1]
    assert nb.relative_change(before, after) == {"value": -0.1, "n": 30, "low": -0.1, "high": -0.1}
    assert nb.relative_change(before, before)["value"] == 0
    mixed = nb.relative_change(before, before * np.where(np.arange(30) % 2, 0.8, 1.2)[:, None])
    assert mixed["low"] < mixed["value"] < mixed["high"] and mixed["low"] < 0 < mixed["high"]


def test_a_change_beyond_the_control_needs_the_control_to_change_less(nb):
    generator = np.random.default_rng(2)
    own, control = (np.stack([generator.uniform(900, 1100, n), np.full(n, 500.0)], 1) for n in (8, 10))
    both = nb.change_beyond((own, own * [0.9, 1]), (control, control * [0.9, 1]))
    assert both["value"] == pytest.approx(0, abs=1e-9) and both["n"] == 8
    alone = nb.change_beyond((own, own * [0.9, 1]), (control, control))
    assert alone["high"] < 0 and alone["value"] == pytest.approx(-0.1)


def test_the_logits_of_a_page_come_in_pieces_and_give_the_same_bits(nb, patch, tokenizers):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = tokenizers["gpt-oss"]
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                                         num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)).eval()  # fmt: skip
    patch(model=model, tokenizer=tokenizer, FastLanguageModel=SimpleNamespace(for_inference=lambda model: model))
    text, context = prose(500, 1), tokenizer("Before that.", add_special_tokens=False).input_ids
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > 512  # three pieces
    for before in ([], context):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([before + ids])).logits[0].float().log_softmax(-1)
        start = len(before) or 1
        wanted = (before + ids)[start:]
        bits = -sum(logits[start - 1 + k, token].item() for k, token in enumerate(wanted)) / np.log(2)
        ((found, size),) = nb.bits_of([(before, text)])
        assert found == pytest.approx(bits, rel=1e-4) and size == len(tokenizer.decode(wanted).encode())


def test_a_sentence_that_was_cut_off_has_no_length(nb):
    assert nb.words_a_sentence("One two three. Four five six seven") == 3
    assert nb.words_a_sentence("One two three. Four five six seven eight.") == 4
    assert nb.words_a_sentence("One two three") == 3 and nb.words_a_sentence("") == 0
    assert [nb.reply_signs(FINAL + text)["breaks off"] for text in ("It ends.", "It ends.”", "It had been left to", "")] == [
        False, False, True, False]  # fmt: skip


def test_a_stretch_gives_whole_sentences(nb):
    """Of a sentence across a border both parts are left out; a heading keeps its place."""

    def page(number, text, joint="\n\n", headings=()):
        return {"number": number, "text": text, "joint": joint, "headings": list(headings)}

    first = [page(1, "One is whole. Two begins")]
    second = [page(2, "and ends. Three is whole.", " "), page(3, "The Sea is wide. Four", headings=[(0, "The Sea")])]
    third = [page(4, "is cut. Five is whole.", " ")]
    assert nb.whole_sentences(first, second) == ("One is whole. ", [])
    text, headings = nb.whole_sentences(second, third)
    assert text == "Three is whole.\n\nThe Sea is wide. " and text[headings[0][0] :].startswith("The Sea")
    assert nb.whole_sentences(third, []) == ("Five is whole.", [])


def test_an_interval_that_is_not_there_decides_nothing(nb):
    lone = {"value": -0.1, "low": None, "high": None, "n": 1}
    assert nb.percent(lone) == "-10.0%  (no interval, n = 1)"
    before = {name: {"value": 0.8} for name in ("type_token_ratio", "distinct_2")}
    before |= {name: {"value": 0.0} for name in ("looping_replies", "empty_replies")}
    after = dict.fromkeys(("bits_per_byte_change", "change_beyond_control", "name_effect_beyond_base",
                           "sentence_length_distance_change"), lone) | before  # fmt: skip
    after |= {name: {"largest": 0.0} for name in ("longest_verbatim_words", "shared_8grams")}
    _, found = nb.verdict(before, after, {"training": [1], "held out": [1]}, nb.VERDICT_AT)
    assert found == {"easier": False, "voice": False, "memorised": False, "collapsed": False}


def test_sentences_are_measured_as_ratios(nb, patch):
    import pandas as pd

    patch(own={"Ann": 20.0})
    table = pd.DataFrame({"words_a_sentence": [40.0, 10.0, 20.0, 0.0], "author": ["Ann"] * 4})
    assert nb.distances(table) == pytest.approx([np.log(2), np.log(2), 0, np.log(20)])


def test_openings_are_taken_from_every_book_in_turn(nb, patch):
    rows = [{"kind": "continue", "title": title, "messages": [{}, {}, {"content": f"{title} the true words"}]}
            for title in ["A"] * 9 + ["B"] * 3]  # fmt: skip
    asked = []
    patch(conversations={"training": rows}, RECITED=6, model=None,
          generate_replies=lambda model, tokenizer, prompts, budget: asked.append(len(prompts)) or [
              FINAL + "x the true words<|return|>"] * len(prompts))  # fmt: skip
    assert nb.recite("training") == [3] * 6 and asked == [6]
    patch(generate_replies=lambda model, tokenizer, prompts, budget: [FINAL + "A the<|return|>"] * len(prompts))
    assert sorted(nb.recite("training")) == [1, 1, 1, 2, 2, 2]  # three of each book


def test_the_excerpt_is_from_the_middle_and_leaves_room_for_the_page(nb, patch):
    title = nb.names[0][1]
    text = nb.excerpt_of(title, 100)
    book = next(book for book in nb.used if book["file"] == f"{title}.pdf")
    pages = [page for held, pages in book["stretches"] if not held for page in pages]
    whole = nb.text_of(pages)[0]
    assert 0.4 < whole.index(text) / len(whole) < 0.7 and 60 <= nb.count_words(text) <= 160
    sentences = nb.split_sentences(nb.excerpt_of(title, 800), 10**6)
    assert len(set(sentences)) == len(sentences)  # chunks overlap, an excerpt says nothing twice
    patch(MAX_LENGTH=300)
    context, page = nb.after_excerpt({"title": title, "text": prose(150, 1)})
    assert len(context) + len(nb.tokenizer(page, add_special_tokens=False).input_ids) <= 300


# The sample books


def markdown_of(book):
    for path in typeset_books.SOURCES.glob("*.md"):
        if typeset_books.read_book(path)["title"] == book["file"].removesuffix(".pdf"):
            return path
    raise AssertionError(book["file"])


def test_the_samples_are_recovered_word_for_word(nb):
    assert len(nb.used) == 2
    for book in nb.used:
        share, differences = nb.word_agreement(markdown_of(book), nb.text_of(nb.load_pages(book))[0])
        assert share >= 0.999, (book["file"], share, differences[:10])


def test_the_samples_have_what_makes_real_books_hard(nb):
    hyphens = 0
    for book in nb.used:
        with pymupdf.open(book["path"]) as document:
            raw = [page.get_text() for page in document]
            pictures = [bool(page.get_images()) for page in document]
        text = "\n".join(raw)
        hyphens += len(re.findall(r"\w-\n\w", text))
        assert "\ufb01" in text
        assert sum(not page.strip() for page in raw) == 1
        assert any(pictures) == ("Tide Mill" in book["file"])
        assert raw[-1].split("\n")[0] == "Index" or any(page.startswith("Index\n") for page in raw[-3:])
        assert re.search(r"^\s*(?:vi|vii|viii)\s*$|^\s*(?:vi|vii|viii)\s{2,}", text, re.M)
        report = book["report"]
        assert report["removed"]["index"] > 30 and report["removed"]["footnotes"] > 30
        assert {"headers", "page numbers", "contents", "title pages"} <= set(report["removed"])
        assert report.get("scanned", 0) + report.get("blank", 0) == 1
    assert hyphens >= 100


def test_one_page_of_each_sample_has_two_columns(nb):
    for book in nb.used:
        split = 0
        for page in nb.read_pages(book["path"]):
            left = sum(line.x1 <= page["width"] / 2 for line in page["lines"])
            right = sum(line.x0 >= page["width"] / 2 for line in page["lines"])
            split += min(left, right) >= 15
        assert split == 1, book["file"]


@pytest.fixture(scope="module")
def typeset_again(tmp_path_factory):
    """The sample books, typeset once more: (folder, manifest entries)."""
    folder = tmp_path_factory.mktemp("typeset")
    return folder, typeset_books.build(folder)


def test_no_letter_is_lost_in_typesetting(typeset_again):
    folder, files = typeset_again
    for name, report in files.items():
        book = typeset_books.read_book(markdown_of({"file": name.rsplit("/", 1)[1]}))
        texts = [heading + " ".join(body) for heading, body in book["sections"]] + list(book["notes"].values())
        letters_in = Counter("".join(map(typeset_books.letters, map(typeset_books.plain, texts))))
        with pymupdf.open(folder / name) as document:
            letters_out = Counter("".join(typeset_books.letters(page.get_text()) for page in document))
        assert not letters_in - letters_out and sum(letters_in.values()) == report["letters_in"] > 30000


def test_typesetting_is_the_same_every_time(typeset_again):
    folder, files = typeset_again
    for name in files:
        digests = {hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (folder, SAMPLES)}
        assert len(digests) == 1, name


def test_a_change_of_a_book_or_its_pdf_is_noticed(typeset_again, monkeypatch, tmp_path):
    assert typeset_books.is_complete(typeset_again[0]) and not typeset_books.is_complete(tmp_path)
    folder = tmp_path / "books"
    shutil.copytree(typeset_again[0], folder)
    sources = tmp_path / "sources"
    shutil.copytree(typeset_books.SOURCES, sources)
    monkeypatch.setattr(typeset_books, "SOURCES", sources)
    assert typeset_books.is_complete(folder)
    markdown = next(sources.glob("*.md"))
    text = markdown.read_bytes()
    markdown.write_bytes(text[:-2] + b"!" + text[-1:])
    assert not typeset_books.is_complete(folder)
    markdown.write_bytes(text)
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    assert not typeset_books.is_complete(folder)
    (tmp_path / "manifest.json").rename(folder / "manifest.json")
    pdf = folder / next(iter(typeset_again[1]))
    data = pdf.read_bytes()
    pdf.write_bytes(data + b"\n")
    assert not typeset_books.is_complete(folder)
    pdf.write_bytes(data)
    assert typeset_books.is_complete(folder)


def test_a_changed_byte_in_a_pdf_of_the_same_size_is_noticed(typeset_again, tmp_path):
    folder = tmp_path / "books"
    shutil.copytree(typeset_again[0], folder)
    pdf = folder / next(iter(typeset_again[1]))
    data = bytearray(pdf.read_bytes())
    data[len(data) // 2] ^= 1
    pdf.write_bytes(data)
    assert not typeset_books.is_complete(folder)


BOOK = """---
title: A Small Book
author: Ann
year: 1931
publisher: The Press
dedication: For you.
index:
  - heron
---

# Preface

The heron stood by the water[^1] and waited.

# 1 The Mill

The mill stood by the water too, and the heron came back.

[^1]: It was a cold morning.
"""
STYLE = {"number": "foot", "empty": "blank", "columns": (0, 0)}


def test_a_small_book_is_typeset(nb, tmp_path):
    path = tmp_path / "small.md"
    path.write_text(BOOK)
    data, report = typeset_books.typeset(path, STYLE)
    assert data.startswith(b"%PDF") and report["title"] == "A Small Book" and report["notes"] == 1
    assert report["words"] == 20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.split("---\n", 2)[2], "no block between two lines of ---"),
        (lambda text: "Words first\n" + text, "no block between two lines of ---"),
        (lambda text: text.replace("year: 1931\n", ""), "does not name ['year']"),
        (lambda text: text.replace("# Preface\n", ""), "has text before its first heading: 'The heron"),
        (lambda text: text.replace("- heron", "- pelican"), "the index term 'pelican' does not occur in the text"),
        (lambda text: "", "no block between two lines of ---"),
    ],
)
def test_a_markdown_book_with_a_fault_is_named(tmp_path, change, reason):
    path = tmp_path / "faulty.md"
    path.write_text(change(BOOK))
    with pytest.raises(typeset_books.TypesettingError) as caught:
        typeset_books.typeset(path, STYLE)
    assert "faulty.md" in str(caught.value) and reason in str(caught.value)


def test_letters_that_typesetting_loses_stop_it(tmp_path, monkeypatch):
    path = tmp_path / "small.md"
    path.write_text(BOOK)
    monkeypatch.setattr(typeset_books, "CSS", typeset_books.CSS + "p { display: none; }")
    with pytest.raises(typeset_books.TypesettingError, match=r"small\.md: "):
        typeset_books.typeset(path, STYLE)


def test_a_lost_heading_stops_it_though_the_contents_page_has_its_letters(tmp_path, monkeypatch):
    path = tmp_path / "small.md"
    path.write_text(BOOK)
    monkeypatch.setattr(typeset_books, "CSS", typeset_books.CSS + "h2 { display: none; }")
    with pytest.raises(typeset_books.TypesettingError, match=r"small\.md: \d+ letters were lost"):
        typeset_books.typeset(path, STYLE)


def test_a_lost_paragraph_stops_it_though_other_pages_have_letters_to_spare(monkeypatch):
    name, style = next(iter(typeset_books.STYLES.items()))
    whole = typeset_books.chapter_html
    monkeypatch.setattr(typeset_books, "chapter_html", lambda heading, body: whole(heading, body[:1] + body[2:]))
    with pytest.raises(typeset_books.TypesettingError, match=r"\.md: \d+ letters were lost"):
        typeset_books.typeset(typeset_books.SOURCES / f"{name}.md", style)


def test_the_typesetter_says_in_a_sentence_what_went_wrong(tmp_path):
    (tmp_path / "file").write_text("in the way")
    command = [sys.executable, "tools/typeset_books.py", "--root", str(tmp_path / "file")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("books: Writing the sample books below")
    assert "Traceback" not in result.stderr


def test_the_manifest_tells_what_was_typeset(typeset_again):
    folder, files = typeset_again
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == files and manifest["recipe"] == typeset_books.recipe_hash()
    assert not list(folder.rglob("*.partial")) and len(list(folder.rglob("*.pdf"))) == 2


# Real manuals


@pytest.mark.long
@pytest.mark.parametrize("path", made_pdfs.MANUALS)
def test_real_manuals_keep_their_words_and_lose_their_heads(nb, tmp_path, path):
    """Against pdftotext, page by page; pages most of whose lines end in numbers are no body."""
    if not os.path.exists(path) or not shutil.which("pdftotext"):
        pytest.skip("apt-get install bash-doc gnuplot-doc zsh-doc poppler-utils")
    pages = list(nb.clean_pages(nb.read_pages(path)))
    kept = wanted = 0
    for number, words in made_pdfs.bodies(path):
        page = pages[number - 1]
        ours = page["text"] + " " + " ".join(title for _, title in page["headings"])
        kept += (Counter(words) & Counter(made_pdfs.words_in(ours))).total()
        wanted += len(words)
        assert not [part for part in page["text"].split("\n\n") if re.match(made_pdfs.MANUALS[path], part)], number
    assert wanted > 50_000 and kept / wanted >= 0.97
    assert sum(bool(page["removed"].keys() & {"index", "contents"}) for page in pages) > 10


@pytest.mark.long
def test_lightly_damaged_copies_of_a_real_manual_say_what_they_lost(nb):
    """Ten places of a real file overwritten, forty times: no word is lost on a page that is not named."""
    path = next(iter(made_pdfs.MANUALS))
    if not os.path.exists(path):
        pytest.skip("apt-get install bash-doc")
    data = open(path, "rb").read()
    whole = [len(page.get_text().split()) for page in pymupdf.open(path)]
    for seed in range(40):
        chance, copy = random.Random(seed), bytearray(data)
        for _ in range(10):
            start = chance.randrange(len(copy))
            copy[start : start + 4] = chance.randbytes(4)
        try:
            document = pymupdf.open(stream=bytes(copy))
        except Exception:
            continue  # refused as a whole
        for number, words in enumerate(whole[: len(document)], start=1):
            page = nb.read_page(document, number)
            found = sum(len(line.text.split()) for line in page["lines"]) + page["sideways"]
            assert page["damaged"] or found >= 0.9 * words, (seed, number)


def test_a_metric_without_an_interval_is_said_so(nb):
    assert nb.with_interval({"value": 0.5, "low": 0.25, "high": 1.0}) == "0.5  (0.25 to 1)"
    assert nb.with_interval({"value": 0.5, "low": None, "high": None}) == "0.5  (no interval)"
