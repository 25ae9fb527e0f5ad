"README.md from nbs/index.ipynb, with what pip installs (nbdev's own way needs Quarto)"
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent


def readme() -> str:
    "The text of README.md"
    notebook = nbformat.read(ROOT/"nbs"/"index.ipynb", 4)
    notebook.cells = [c for c in notebook.cells if not c.source.startswith("#| hide")]
    for cell in (c for c in notebook.cells if c.cell_type == "code"): cell.outputs = []
    notebook.metadata["language_info"] = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = text.replace("](images/", "](nbs/images/").replace('src="images/', 'src="nbs/images/')
    text = re.sub(r"\]\((?!http|nbs/|#)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)
    return "<!-- Made from nbs/index.ipynb by `make readme`; edit that. -->\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    (ROOT/"README.md").write_text(readme(), encoding="utf-8")
