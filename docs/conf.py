"What Sphinx is told; build.py copies this beside the pages"
from pathlib import Path
import importlib.util
import re

here = Path(__file__).resolve().parent
static = here.parent/"docs"/"static"
mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent/"static"

version = re.search(r'__version__ = "([^"]+)"', (here.parent/"dho_nb"/"__init__.py").read_text(encoding="utf-8"))[1]
project, author, copyright = "dho_nb", "The dho_nb developers", "2026, the dho_nb developers"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
exclude_patterns = ["files"]
smartquotes = False  # an option keeps its two hyphens, and a value its quotes, as they are typed

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_code_prompt_show, nb_code_prompt_hide = "Source", "Source"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"  # search, light and dark, previous and next, phones; all its files are local
html_title = f"dho_nb {version}"
templates_path = [str(here.parent/"docs"/"templates")]
html_static_path = [str(static), str(mathjax)]
html_css_files = ["site.css"]
html_search_scorer = str(static/"scorer.js")
html_favicon = html_logo = str(static/"icon.svg")
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True


def names_in_tables_break(app, page, template, context, doctree):
    "Let a long name in a table's cell break after _ and /, before it breaks within a word"
    within = lambda m: re.sub(r"([_/])(?=\w)", r"\1<wbr>", m[0])
    cell = lambda m: re.sub(r'(?<=<span class="pre">)[^<]+', within, m[0])
    if context.get("body"): context["body"] = re.sub(r"<td>.*?</td>", cell, context["body"], flags=re.S)

def setup(app): app.connect("html-page-context", names_in_tables_break)
