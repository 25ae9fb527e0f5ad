"README.md, CONTRIBUTING.md and llms.txt from the notebooks, with what pip installs (nbdev's own way needs Quarto)"
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from build import llms  # noqa: E402

NBS = ROOT/"nbs"
PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing"}


def page(name) -> str:
    "The text of a page that is made from a notebook"
    notebook = nbformat.read(NBS/f"{name}.ipynb", 4)
    notebook.cells = [c for c in notebook.cells if not c.source.startswith("#| hide")]
    if name != "index": notebook.cells = [c for c in notebook.cells if c.cell_type == "markdown"]
    for cell in (c for c in notebook.cells if c.cell_type == "code"): cell.outputs = []
    notebook.metadata["language_info"] = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = text.replace("](images/", "](nbs/images/").replace('src="images/', 'src="nbs/images/')
    text = text.replace("](contributing.ipynb)", "](CONTRIBUTING.md)")
    text = re.sub(r"\]\((?!http|nbs/|#)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)
    return (f"<!-- Made from nbs/{name}.ipynb by `make readme`; edit that. -->\n\n"
            + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def made() -> dict:
    "File name to its text"
    return {**{file: page(name) for file, name in PAGES.items()}, "llms.txt": llms()}


if __name__ == "__main__":
    for name, text in made().items(): (ROOT/name).write_text(text, encoding="utf-8")
