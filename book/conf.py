"""Sphinx's settings for the book; tools/book.py calls Sphinx, with warnings as errors."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "Fine-tuning with Unsloth"
html_title = project
language = "en"
smartquotes = False  # the chapters keep the letters of the notebooks
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # there are no widgets, and their scripts would come from the network
myst_enable_extensions = ["dollarmath", "attrs_inline", "deflist"]
templates_path = []
for_print = "print" in tags  # noqa: F821  (Sphinx puts it there; tools/book.py sets it for the PDF)
html_theme = "basic" if for_print else "sphinx_book_theme"
html_theme_options = {} if for_print else {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field stands in the side bar already
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_edit_page_button": False,
    "footer_content_items": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}  # fmt: skip
html_static_path = ["_static"]
html_css_files = ["book.css", *(["print.css"] if for_print else [])]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_use_index = False
html_math_renderer = "mathml"


def inline_formula(translator, node):
    """Write a formula as MathML, which browsers typeset themselves: no script, no fonts, no network."""
    translator.body.append(convert(node.astext()))
    raise SkipNode


def displayed_formula(translator, node):
    """Write a formula that stands on a line of its own; it may scroll on a small screen, by keyboard too."""
    translator.body.append(f'<div class="formula" tabindex="0">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
