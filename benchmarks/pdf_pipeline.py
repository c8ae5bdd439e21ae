"""Measure how notebook 03 reads PDF books: pages a second, memory by size, files in parallel, files already read.

    python benchmarks/pdf_pipeline.py [--pages 50000] [--skip-peers] [--output FOLDER]
    python benchmarks/pdf_pipeline.py --layout

The functions are the notebook's own, lifted out of it. The files are put together from the sample books: each page
has a content stream of its own with four invented words in it, so that the vocabulary grows with the file, and the
fonts come anew every thousand pages or so. Each measurement runs in a process of its own. Budgets: the whole path
(read, clean, join, cut at headings, cut into chunks) keeps at least half the speed of bare `page.get_text()` on one
core; the peaks of resident memory at the smallest and at the largest size differ by 50 MB at most; a file that has
not changed is read once. The exit status is 1 where one of them is missed.

`--layout` compares the notebook's signs with PyMuPDF's layout engine (pymupdf4llm, in the lock; the same licence as
PyMuPDF itself) on the made pages of tests/made_pdfs.py, one difficulty each: the paragraphs that are right to the letter,
the words that agree in order, and pages a second on a sample book; and on thirty pages of each real manual that is
installed (bash-doc, gnuplot-doc, zsh-doc): words of pdftotext's body that are kept, in order, and running heads inside.

Two other readers, pypdf and pdfminer.six, are measured for comparison. The course needs neither: where they are
missing, pip puts them into a temporary folder, and without a network they are left out.
"""

import argparse
import ast
import hashlib
import json
import os
import platform
import random
import re
import shutil
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from importlib.metadata import version
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tools"))
from notebook_code import code_cells, lift  # noqa: E402

NOTEBOOK = PROJECT / "NoteBooks" / "03_gpt_oss_pdf_books.ipynb"
SAMPLES = PROJECT / "outputs" / "rehearsal" / "books"
HEAVY = {"unsloth", "torch", "transformers", "trl", "peft", "datasets", "matplotlib", "numpy", "pandas", "psutil",
         "IPython", "safetensors", "scipy", "pyarrow", "huggingface_hub"}  # fmt: skip
ROOTS = {"find_books", "load_book", "read_book", "chunks_of", "text_of"}  # and all that these call
PEERS = {"pypdf": "pypdf", "pdfminer.six": "pdfminer"}  # package: module
SIZES = [1_000, 10_000, 50_000]  # pages; --pages takes the place of the last, the others keep their proportion
FILES = 8
SAMPLED = 20  # samples of resident memory along a file
ROUNDS = 7  # of bare text and the whole path in turn
PEER_ROUNDS = PARALLEL_ROUNDS = 3
BUDGET = {"ratio": 0.5, "bytes": 50e6, "readings": 1}


def functions():
    """Return the notebook's functions ROOTS in a namespace, with the functions and constants that they need."""
    cells, defined = code_cells(NOTEBOOK), {}
    for node in [node for source in cells for node in ast.parse(source).body]:
        for target in getattr(node, "targets", [node]):
            name = getattr(target, "name", getattr(target, "id", ""))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) or name.isupper():
                defined.setdefault(name, node)
    names, todo = set(), set(ROOTS)
    while todo:
        names.add(name := todo.pop())
        used = {node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)} if name in defined else set()
        todo |= (used & defined.keys()) - names
    return lift(NOTEBOOK, *names, without=HEAVY)


def make_file(path, pages, seed):
    """Write a PDF file of so many pages, put together from the sample books."""
    import pymupdf

    sources, contents = [pymupdf.open(source) for source in sorted(SAMPLES.glob("*/*.pdf"))], []
    for page in (page for source in sources for page in source):
        page.wrap_contents()
        page.insert_font(fontname="tiro")
        contents.append(page.read_contents())
    target, generator, rounds = pymupdf.open(), random.Random(seed), 0
    while len(target) < pages:
        rounds += 1
        for source in sources:
            if len(target) < pages:  # final: what comes after shares no font with what came before
                last = min(len(source), pages - len(target)) - 1
                target.insert_pdf(source, to_page=last, final=rounds * len(contents) % 1000 < len(contents))
    tree = int(target.xref_get_key(target.pdf_catalog(), "Pages")[1].split()[0])
    numbers = re.findall(r"(\d+) 0 R", target.xref_get_key(tree, "Kids")[1])  # page_xref(n) would search for each
    for index, number in enumerate(numbers):
        words = " ".join("".join(generator.choices(string.ascii_lowercase, k=8)) for _ in range(4))
        stream = target.get_new_xref()
        target.update_object(stream, "<<>>")
        line = f"\nq BT /tiro 10 Tf 46 482 Td ({words}) Tj ET Q".encode()
        target.update_stream(stream, contents[index % len(contents)] + line)
        target.xref_set_key(int(number), "Contents", f"{stream} 0 R")
    target.save(path, garbage=1)
    return Path(path).stat().st_size


def make_files(jobs):
    """Write files as make_file does; return the bytes of each."""
    return [make_file(path, pages, seed) for path, pages, seed in jobs]


def bare_text(path):
    """Return the number of letters that `page.get_text()` finds in a file."""
    import pymupdf

    with pymupdf.open(path) as document:
        return sum(len(page.get_text()) for page in document)


def whole_path(nb, path):
    """Return the chunks of a file: read, cleaned, joined, cut at the headings and then to size."""
    pages = [page for page in nb["clean_pages"](nb["read_pages"](path)) if page["text"] or page["headings"]]
    return nb["chunks_of"]({"author": "", "file": Path(path).name, "stretches": [(False, pages)]})


def one_core():
    """Keep this process on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def clocks(function, *arguments):
    """Return (result, seconds of CPU time, seconds on the wall) of a call."""
    started, wall = time.process_time(), time.perf_counter()
    result = function(*arguments)
    return result, time.process_time() - started, time.perf_counter() - wall


def measure_speed(path, pages):
    """Return pages a second of bare text and of the whole path, in turn on one core, and the ratios."""
    one_core()
    nb, rounds = functions(), []
    bare_text(path)
    for _ in range(ROUNDS):
        _, bare, bare_wall = clocks(bare_text, path)
        chunks, whole, whole_wall = clocks(whole_path, nb, path)
        rounds.append({"bare": pages / bare, "whole": pages / whole, "ratio": bare / whole,
                       "bare_wall": pages / bare_wall, "whole_wall": pages / whole_wall,
                       "ratio_wall": bare_wall / whole_wall})  # fmt: skip
    return {"pages": pages, "chunks": len(chunks), "rounds": rounds}


def read_with(peer, path, pages):
    """Return the number of letters that another reader finds in the first pages of a file."""
    if peer == "pypdf":
        import pypdf

        reader = pypdf.PdfReader(path)
        return sum(len(reader.pages[number].extract_text()) for number in range(pages))
    if peer == "pdfminer.six":
        from pdfminer.high_level import extract_pages
        from pdfminer.layout import LTTextContainer

        return sum(len(box.get_text()) for page in extract_pages(path, maxpages=pages) for box in page
                   if isinstance(box, LTTextContainer))  # fmt: skip
    import pymupdf

    with pymupdf.open(path) as document:
        return sum(len(document[number].get_text()) for number in range(pages))


def measure_peer(peer, path, pages):
    """Return pages a second of another reader and of PyMuPDF, in turn on one core, and how many letters they found."""
    one_core()
    rounds = []
    for reader in ("pymupdf", peer):  # imports, and what is done once
        read_with(reader, path, 1)
    for _ in range(PEER_ROUNDS):
        letters, bare, _ = clocks(read_with, "pymupdf", path, pages)
        found, seconds, _ = clocks(read_with, peer, path, pages)
        rounds.append({"pymupdf": pages / bare, "peer": pages / seconds, "slower": seconds / bare})
    return {"pages": pages, "version": version(peer), "letters": found, "letters_pymupdf": letters, "rounds": rounds}


def resident(mark):
    """Return this process's VmRSS or VmHWM in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{mark}:")[1].split()[0]) * 1024


def measure_memory(path, pages):
    """Return the memory that `read_book` takes for a file: its peak above the imports, and samples along the way."""
    nb, samples = functions(), []
    read_pages = nb["read_pages"]

    def sampled(path):
        for page in read_pages(path):
            if page["number"] * SAMPLED // pages > (page["number"] - 1) * SAMPLED // pages:
                samples.append([page["number"], resident("VmRSS") - imports])
            yield page

    nb["read_pages"] = sampled
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark begins anew
    imports = resident("VmHWM")
    report, seconds, wall = clocks(nb["read_book"], Path(path), Path(path).with_suffix(".jsonl"))
    return {"pages": report["pages"], "words": report["words"], "seconds": seconds, "seconds_wall": wall,
            "imports_bytes": imports, "peak_bytes": resident("VmHWM") - imports, "samples": samples}  # fmt: skip


def measure_parallel(folder):
    """Return the wall seconds for all files of a folder with one and with as many child processes as cores."""
    nb, paths = functions(), sorted(Path(folder).glob("*.pdf"))
    workers = min(len(os.sched_getaffinity(0)), FILES)

    def read(path):  # as load_book does, without its look at what was read before
        return nb["in_own_process"](nb["read_book"], path, path.with_suffix(".jsonl"))["pages"]

    def read_all(workers):
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(read, paths))

    rounds = []
    for _ in range(PARALLEL_ROUNDS):
        total, _, alone = clocks(read_all, 1)
        _, _, together = clocks(read_all, workers)
        rounds.append({"one": alone, "many": together, "speed_up": alone / together})
    return {"files": len(paths), "pages": total, "workers": workers, "rounds": rounds}


def measure_again(folder):
    """Return how often a file is read, and the seconds: at first, again unchanged, and after a change."""
    nb, calls, results = functions(), [], {}
    in_own_process, store = nb["in_own_process"], Path(folder) / "store"
    nb["in_own_process"] = lambda function, *arguments: calls.append(function) or in_own_process(function, *arguments)
    store.mkdir()

    def load():  # with the hash, as a second run of the notebook does
        (book,) = nb["find_books"](Path(folder))
        nb["load_book"](book, store)
        return book["fault"] or book["report"]["pages"]

    for name in ("first", "again", "changed"):
        if name == "changed":
            with next(Path(folder).glob("*.pdf")).open("ab") as file:
                file.write(b"\n% changed\n")
        before = len(calls)
        result, _, wall = clocks(load)
        results[name] = {"pages": result, "readings": len(calls) - before, "seconds": wall}
    return results


def right_share(wanted, found):
    """Return (share of paragraphs that are right to the letter, share of words that agree in order)."""
    found = [" ".join(text.split()) for text in found]
    a, b = " ".join(wanted).split(), " ".join(found).split()
    same = sum(block.size for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    return sum(text in found for text in wanted) / len(wanted), same / max(len(a), len(b))


def measure_layout(folder):
    """Return {way: {"cases": {case: shares}, "pages_a_second"}} of the notebook's signs and of the layout engine."""
    sys.path.insert(0, str(PROJECT / "tests"))
    import made_pdfs
    import pymupdf4llm

    one_core()
    nb, sample = functions(), sorted(SAMPLES.glob("*/*.pdf"))[0]
    made = {case: make(Path(folder)) for case, make in made_pdfs.CASES.items()}

    def by_signs(path):
        pages = [page for page in nb["clean_pages"](nb["read_pages"](path)) if page["text"]]
        return nb["text_of"](pages)[0].split("\n\n")

    def by_layout(path):
        return pymupdf4llm.to_text(str(path), header=False, footer=False, use_ocr=False).split("\n\n")

    def signs_on(path, numbers):
        pages = list(nb["clean_pages"](nb["read_pages"](path)))
        return ["\n\n".join([title for _, title in pages[n - 1]["headings"]] + [pages[n - 1]["text"]]) for n in numbers]

    def layout_on(path, numbers):
        options = {"header": False, "footer": False, "use_ocr": False, "page_chunks": True}
        return [page["text"] for page in pymupdf4llm.to_text(path, pages=[n - 1 for n in numbers], **options)]

    results = {}
    for way, read, read_manual in (("signs", by_signs, signs_on), ("layout engine", by_layout, layout_on)):
        cases = {case: right_share(texts, read(path)) for case, (path, texts) in made.items()}
        _, seconds, _ = clocks(read, sample)
        manuals = {path: on_manual(path, read_manual) for path in made_pdfs.MANUALS if Path(path).exists()}
        results[way] = {"cases": cases, "pages_a_second": len(list(nb["read_pages"](sample))) / seconds,
                        "manuals": {Path(path).name: shares for path, shares in manuals.items()}}  # fmt: skip
    return results


def on_manual(path, read):
    """Return (share of words kept, share of words in order, pages with a running head inside, pages) of 30 pages."""
    import made_pdfs

    bodies = [(number, words) for number, words in made_pdfs.bodies(path) if len(words) > 100]
    bodies = bodies[:: max(1, len(bodies) // 30)][:30]
    kept = ordered = wanted = heads = 0
    for (_, words), text in zip(bodies, read(path, [number for number, _ in bodies]), strict=True):
        found = made_pdfs.words_in(text)
        kept += (Counter(words) & Counter(found)).total()
        blocks = SequenceMatcher(None, words, found, autojunk=False).get_matching_blocks()
        ordered, wanted = ordered + sum(block.size for block in blocks), wanted + len(words)
        heads += any(re.match(made_pdfs.MANUALS[path], " ".join(part.split())) for part in text.split("\n\n"))
    return kept / wanted, ordered / wanted, heads, len(bodies)


def print_layout(results):
    """Print the comparison as a table, case by case, and what all cases come to."""
    print("| made page | " + " | ".join(f"{way}: paragraphs, words" for way in results) + " |\n| --- | --- | --- |")
    for case in next(iter(results.values()))["cases"]:
        shares = [one["cases"][case] for one in results.values()]
        print(f"| {case.replace('_', ' ')} | " + " | ".join(f"{p:.0%}, {w:.1%}" for p, w in shares) + " |")
    for way, one in results.items():
        right = sum(words > 0.9999 for _, words in one["cases"].values())
        print(f"{way}: {right} of {len(one['cases'])} made pages have every word in its place; "
              f"{one['pages_a_second']:.1f} pages/s of one core")  # fmt: skip
        for name, (kept, ordered, heads, pages) in one["manuals"].items():
            print(f"{way}, {name}: of pdftotext's words on {pages} pages {kept:.1%} are kept, {ordered:.1%} in order; "
                  f"{heads} pages with a running head inside")  # fmt: skip


CHILDREN = {"layout": measure_layout, "make": make_files, "speed": measure_speed, "peer": measure_peer, "memory": measure_memory,
            "parallel": measure_parallel, "again": measure_again}  # fmt: skip


def in_child(step, *arguments, packages=None):
    """Return a measurement, made in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps([step, *arguments], default=str)]
    environment = {**os.environ, **({"PYTHONPATH": str(packages)} if packages else {})}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"pdf_pipeline: {step} failed: {finished.stderr.strip()[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def find_peers(folder):
    """Return the folder that holds the other readers, None where they cannot be had."""
    test = [sys.executable, "-c", "; ".join(f"import {module}" for module in PEERS.values())]
    if subprocess.run(test, capture_output=True).returncode == 0:
        return folder
    print(f"pip install {' '.join(PEERS)}, into a temporary folder", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *PEERS]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        print(f"not to be had, left out: {finished.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return folder


def spread(rounds, key):
    """Return {"median", "low", "high"} of one figure over the rounds."""
    values = [one[key] for one in rounds]
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure_all(folder, largest, skip_peers):
    """Return all measurements, files made in `folder`."""
    sizes = [max(1, size * largest // SIZES[-1]) for size in SIZES]
    each, count = max(1, min(500, largest // 100)), min(200, sizes[0])
    books = {size: folder / f"{size}.pdf" for size in sizes}
    several = [folder / "parallel" / f"{number}.pdf" for number in range(FILES)]
    again = folder / "again" / "book.pdf"
    for path in (several[0], again):
        path.parent.mkdir()
    jobs = [(path, size, size) for size, path in books.items()] + [(path, each, n) for n, path in enumerate(several)]
    in_child("make", [*jobs, (again, each, FILES)])
    packages = None if skip_peers else find_peers(folder / "peers")
    smallest = books[sizes[0]]
    return {
        "speed": in_child("speed", smallest, sizes[0]),
        "peers": {peer: in_child("peer", peer, smallest, count, packages=packages) for peer in PEERS if packages},
        "memory": [in_child("memory", path, size) for size, path in books.items()],
        "parallel": in_child("parallel", several[0].parent),
        "again": in_child("again", again.parent),
    }


def judge(results):
    """Return ([row of the table], [missed budget])."""
    speed, memory, parallel, again = (results[name] for name in ("speed", "memory", "parallel", "again"))
    bare, whole, ratio, wall = (spread(speed["rounds"], key) for key in ("bare", "whole", "ratio", "ratio_wall"))
    rows, over = [], []

    def add(what, figure, form, budget=""):
        """A row: a figure, or the median of several with their range."""
        if isinstance(figure, dict):
            rows.append(
                (what, f"{figure['median']:{form}}", f"{figure['low']:{form}} to {figure['high']:{form}}", budget)
            )
        else:
            rows.append((what, f"{figure:{form}}", "", budget))

    add(f"bare `page.get_text()`, pages/s of one core ({speed['pages']:,} pages)", bare, ",.0f")
    add("whole path to chunks, pages/s of one core", whole, ",.0f")
    add("whole path against bare text, CPU time", ratio, ".2f", f"≥ {BUDGET['ratio']}")
    add("the same on the wall clock", wall, ".2f")
    if ratio["median"] < BUDGET["ratio"]:
        over.append(f"whole path against bare text: {ratio['median']:.2f}, budget {BUDGET['ratio']}")
    for peer, measured in results["peers"].items():
        add(f"{peer} {measured['version']}, pages/s of one core", spread(measured["rounds"], "peer"), ",.1f")
        add(f"bare `page.get_text()` is faster than {peer} by", spread(measured["rounds"], "slower"), ",.0f")
    for size in memory:
        add(f"peak of `read_book` above its imports, {size['pages']:,} pages, MB", size["peak_bytes"] / 1e6, ".1f")
    difference = memory[-1]["peak_bytes"] - memory[0]["peak_bytes"]
    add(f"{memory[-1]['pages']:,} against {memory[0]['pages']:,} pages, MB", difference / 1e6, ".1f",
        f"≤ {BUDGET['bytes'] / 1e6:.0f}")  # fmt: skip
    if difference > BUDGET["bytes"]:
        over.append(f"memory: {difference / 1e6:.1f} MB more, budget {BUDGET['bytes'] / 1e6:.0f} MB")
    add(f"`read_book`, {memory[-1]['pages']:,} pages, seconds of CPU time", memory[-1]["seconds"], ".1f")
    files = f"{parallel['files']} files, {parallel['pages']:,} pages together"
    add(f"{files}, 1 process at a time, s", spread(parallel["rounds"], "one"), ".1f")
    add(f"{files}, {parallel['workers']} processes at a time, s", spread(parallel["rounds"], "many"), ".1f")
    add("speed-up", spread(parallel["rounds"], "speed_up"), ".2f")
    for name, words in {"first": "at first", "again": "again, unchanged", "changed": "after a change"}.items():
        add(f"`load_book` {words}, s", again[name]["seconds"], ".3f")
    readings = again["first"]["readings"] + again["again"]["readings"]
    add("readings of the file before the change", readings, "d", f"{BUDGET['readings']}")
    if readings != BUDGET["readings"]:
        over.append(f"an unchanged file: read {readings} times, budget {BUDGET['readings']}")
    if again["changed"]["readings"] != 1:
        over.append("a changed file: not read anew")
    return rows, over


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=SIZES[-1], help="pages of the largest file; lower for a quick try")
    parser.add_argument("--skip-peers", action="store_true", help="leave pypdf and pdfminer.six out")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks")
    parser.add_argument("--layout", action="store_true", help="compare with PyMuPDF's layout engine, and no more")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        step, *values = arguments.child
        print("RESULT", json.dumps(CHILDREN[step](*values)))
        return 0
    if not list(SAMPLES.glob("*/*.pdf")):
        raise SystemExit(f"pdf_pipeline: no sample book in {SAMPLES.relative_to(PROJECT)}. Run `make setup`.")
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
               "pymupdf": version("pymupdf"), "code_sha256": hashlib.sha256("\n".join(code_cells(NOTEBOOK)).encode()).hexdigest(), "load_before": os.getloadavg()}  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="pdf_pipeline-"))
    if arguments.layout:
        results = in_child("layout", folder)
        shutil.rmtree(folder, ignore_errors=True)
        print_layout(results)
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "pdf_layout.json").write_text(
            json.dumps({"machine": machine, "results": results}, indent=1)
        )
        return 0
    try:
        results = measure_all(folder, arguments.pages, arguments.skip_peers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine["load_after"] = os.getloadavg()
    rows, over = judge(results)
    print("| measured | | range | budget |\n| --- | --: | --- | --- |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(f"{machine['cores']} cores, Python {machine['python']}, PyMuPDF {machine['pymupdf']}, load "
          f"{machine['load_before'][0]:.1f} before and {machine['load_after'][0]:.1f} after")  # fmt: skip
    print(f"over budget: {'; '.join(over) or 'none'}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "results": results, "table": rows, "over": over}
    (arguments.output / "pdf_pipeline.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
