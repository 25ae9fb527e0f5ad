"README.md, CONTRIBUTING.md and llms.txt from the notebooks, and the parameters cell of the experiment notebook from `Config`"
import json
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from build import llms  # noqa: E402
from dho_nb.core.parameters import parameter_helps, parameter_sections  # noqa: E402
from dho_nb.runs.config import Config, preset  # noqa: E402

NBS = ROOT/"nbs"
PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing"}


def page(name) -> str:
    "The text of a page that is made from a notebook"
    notebook = nbformat.read(NBS/f"{name}.ipynb", 4)
    notebook.cells = [c for c in notebook.cells if "remove-cell" not in c.metadata.get("tags", [])]
    if name != "index": notebook.cells = [c for c in notebook.cells if c.cell_type == "markdown"]
    for cell in (c for c in notebook.cells if c.cell_type == "code"): cell.outputs = []
    notebook.metadata["language_info"] = {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = text.replace("](images/", "](nbs/images/").replace('src="images/', 'src="nbs/images/')
    text = text.replace("](contributing.ipynb)", "](CONTRIBUTING.md)")
    text = re.sub(r"\]\((?!http|nbs/|#)(\w+/[\w/]+\.(?:ipynb|md))\)", r"](nbs/\1)", text)
    return (f"<!-- Made from nbs/{name}.ipynb by `make readme`; edit that. -->\n\n"
            + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def parameters_cell() -> str:
    "Every parameter with the value of the preset digits and its help, section by section"
    config, about = preset("digits"), parameter_helps(Config)
    lines = ['out = ""  # Folder of the run; a name made from the configuration, below runs/, if empty']
    for title, names in parameter_sections(Config).items():
        lines += [f"\n# {title}"]
        for name in names:
            value = getattr(config, name)
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, list, dict)) else repr(value)
            lines.append(f"{name} = {text}  # {about[name]}")
    return "\n".join(lines)


def tagged(notebook) -> dict:
    "The cell of a notebook that papermill fills in"
    return next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))


def made() -> dict:
    "File name to its text"
    return {**{file: page(name) for file, name in PAGES.items()}, "llms.txt": llms()}


if __name__ == "__main__":
    for name, text in made().items(): (ROOT/name).write_text(text, encoding="utf-8")
    experiment = NBS/"experiments"/"distill.ipynb"
    notebook = json.loads(experiment.read_text(encoding="utf-8"))
    tagged(notebook)["source"] = parameters_cell().splitlines(keepends=True)
    experiment.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
