"""Put a table of contents into the single page that is printed; with a first print of it, also page numbers.

python book/contents.py PAGE [PDF]
"""

import sys
from pathlib import Path

from bs4 import BeautifulSoup
from pypdf import PdfReader


def words(heading):
    """Return a heading's letters, without the spaces that a print adds or drops."""
    return "".join((heading if isinstance(heading, str) else heading.get_text()).split())


def page_numbers(pdf):
    """Return [(title, page)] of a PDF's bookmarks, in order."""
    reader = PdfReader(pdf)

    def walk(entries):
        for entry in entries:
            if isinstance(entry, list):
                yield from walk(entry)
            else:
                yield words(entry.title), reader.get_destination_page_number(entry) + 1

    return list(walk(reader.outline))


def main(page, pdf=None):
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    for old in soup.select("nav.printed-contents, .headerlink"):
        old.decompose()
    numbers = page_numbers(pdf) if pdf else []
    nav = soup.new_tag("nav", attrs={"class": "printed-contents"})
    headings = soup.select("div.body :is(h1, h2, h3, h4, h5, h6)")
    if pdf and [words(heading) for heading in headings] != [title for title, _ in numbers]:
        sys.exit("contents: the bookmarks of the first print are not the headings of the page")
    for place, heading in enumerate(headings):
        if heading.name in ("h2", "h3"):  # chapters and their sections; h1 is the book's own title
            line = soup.new_tag("a", href=f"#{heading.parent['id']}", attrs={"class": heading.name})
            number = soup.new_tag("span", string=str(numbers[place][1]) if pdf else "")
            line.extend([heading.get_text().strip(), number])
            nav.append(line)
    soup.select_one("div.body h1").find_next("p").insert_after(nav)
    page.write_text(str(soup), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
