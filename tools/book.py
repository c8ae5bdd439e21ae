"""The notebooks as a book: `make book` writes HTML that opens from the disk, and one PDF, into outputs/book/.

    python3 tools/book.py [--notebooks FOLDER] [--to FOLDER] [--no-pdf]

Nothing is executed: chapters and outputs are those of the notebooks. The sources stand in book/, whose packages go into
an environment of their own, outputs/book-env/. The PDF is printed by Chromium, twice: the first print tells on which
pages the headings stand, the second has these numbers in its contents.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bootstrap import PROJECT, SetupError, own_environment, run  # noqa: E402

SOURCES = PROJECT / "book"
OWN = PROJECT / "outputs" / "book-env"
PDF = "fine-tuning-with-unsloth.pdf"


def sphinx(python, builder, source, target, *options):
    """Build with Sphinx; a warning is an error, and its text is what the error says."""
    command = [str(python), "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, *options]
    result = subprocess.run([*command, str(source), str(target)], capture_output=True, text=True)
    if result.returncode:
        raise SetupError(f"Sphinx is not content:\n{result.stderr.strip()}")
    for name in (".doctrees", "_sources"):
        shutil.rmtree(target / name, ignore_errors=True)


def find_chromium():
    """Return the path of a browser that prints, or None."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def print_pdf(chromium, page, target):
    """Print a page with Chromium, with bookmarks; the numbers at the foot of the pages are book/print.css's."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += [
            "--no-pdf-header-footer",
            "--generate-pdf-document-outline",
            f"--print-to-pdf={target}",
            page.as_uri(),
        ]
        run(command, "Printing the PDF")
    if not target.exists():
        raise SetupError("Printing the PDF failed: Chromium wrote no file.")


def build(notebooks, target, with_pdf=True):
    """Build the book into a folder beside its place, then put it there."""
    python = own_environment(OWN, SOURCES / "requirements.txt")
    chromium = find_chromium() if with_pdf else None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".book-") as work:
        source, html, single = (Path(work) / name for name in ("source", "html", "single"))
        source.mkdir()
        run([str(python), str(SOURCES / "gather.py"), str(notebooks), str(source)], "Gathering the pages")
        sphinx(python, "html", source, html)
        if chromium:
            sphinx(python, "singlehtml", source, single, "-t", "print")
            contents = [str(python), str(SOURCES / "contents.py"), str(single / "index.html")]
            run(contents, "Adding the contents")
            print_pdf(chromium, single / "index.html", Path(work) / "draft.pdf")
            run([*contents, str(Path(work) / "draft.pdf")], "Numbering the contents")
            print_pdf(chromium, single / "index.html", html / PDF)
        shutil.rmtree(target, ignore_errors=True)
        html.rename(target)
    return chromium


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--notebooks", type=Path, default=PROJECT / "NoteBooks", help="NoteBooks/ unless you say otherwise"
    )
    parser.add_argument("--to", type=Path, default=PROJECT / "outputs" / "book", help="outputs/book/ unless you say so")
    parser.add_argument("--no-pdf", action="store_true", help="HTML only")
    arguments = parser.parse_args()
    try:
        printed = build(arguments.notebooks.resolve(), arguments.to.resolve(), not arguments.no_pdf)
    except SetupError as error:
        print(f"book: {error}", file=sys.stderr)
        return 1
    print(f"The book: open {arguments.to}/index.html in a browser.")
    if printed:
        print(f"To print: {arguments.to}/{PDF}")
    elif not arguments.no_pdf:
        print("No PDF: that needs Chromium (on Debian and Ubuntu the package chromium; CHROMIUM names another place).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
