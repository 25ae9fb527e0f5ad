"""The site, with what pip installs: nbdev's processed notebooks become Sphinx's sources in _docs/, and those a site in _site/

Nothing is executed: saved outputs are shown. The build fails on warnings and on what check.py finds."""
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from functools import cache
from io import BytesIO
from itertools import groupby
from pathlib import Path, PurePosixPath

from nbdev.serve import proc_nbs
from PIL import Image

from api import Module
from check import problems, external
from verbs import page_name, verb_index, verb_page, verbs

ROOT = Path(__file__).parent.parent
NBS, PAGES, SITE = ROOT/"nbs", ROOT/"_docs", ROOT/"_site"
SECTIONS = {  # folder of the site: title, its notebooks, a line
    "tutorials": ("Tutorials", "tutorials/*", "To be run from top to bottom, in JupyterLab: `make lab`. Each takes "
                                              "less than two minutes on two cores."),
    "howto": ("How-to guides", "howto/*", "One task each, for people who know what they want."),
    "explain": ("Explanation", "explain/*", "Why it works, where it does not, and what it costs."),
    "reference": ("Reference", "*/[0-9]*",
                  "One page per module: what it holds, why, with examples that are also its tests. A room imports only "
                  "from the rooms listed before it."),
    "paper": ("The paper", "paper/*",
              "Tables and figures of arXiv 2505.07675 beside what was run here. What has not been run stays a gap."),
    "experiments": ("Experiments", "experiments/*",
                    "Notebooks that papermill runs with parameters; an executed copy lies in each run's folder."),
    "benchmarks": ("Benchmarks", "benchmarks/*",
                   "What is claimed about speed and memory, with the notebook that measures it: `make bench`."),
}
ROOMS = {  # folders of nbs/ whose notebooks make modules, from the ground up
    "core": "Where things live, atomic writes, hashes, one process or many.",
    "data": "Which images and labels; pixels; batches.",
    "losses": "Every objective as a pure function, and the registry of methods.",
    "teachers": "Frozen models, their stored embeddings, and classifiers on top of those.",
    "students": "Any backbone under two heads.",
    "training": "The loop: schedules, precision, checkpoints, exact resume.",
    "evaluation": "Head outputs, α and β, figures, the gradients' conflict.",
    "runs": "One run, whole: configuration, inputs, trained student, result.",
    "sweeps": "Many runs as executed notebooks.",
    "deploy": "A trained student in use.",
    "reports": "From runs to tables, figures and pages.",
    "cli": "The command line: every verb is a function of the other rooms.",
}
ORDER = {"paper": ["finder", *(f"table{n}" for n in (1, 2, 3, 4, 5, 6)), "setups", *(f"table{n}" for n in (11, 13, 14, 15, 16, 17, 18, 19)),
                   *(f"figure{n}" for n in (3, 4, 6, 9, 13)), "eurosat", "beyond", "beyond_notes", "cost", "eurosat_data", "eurosat_teacher", "cifar10_data",
                   "clip_sets", "pool_heads", "unnamed_classes"],
         "howto": ["own_images", "own_teacher", "sweep", "paper_table", "watch", "extend", "after_a_crash", "faq"],
         "explain": ["two_heads", "conflict", "alpha_beta", "store", "teachers", "what_to_label", "scale", "limits", "glossary"]}


def number(stem): return [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", stem)]

@cache
def plan():
    "Notebook or page, as a path below nbs/, to its page on the site"
    found = {"index.ipynb": "index", "contributing.ipynb": "contributing"}
    for section, (_, pattern, _) in SECTIONS.items():
        first = ORDER.get(section, [])
        place = lambda p: (list(ROOMS).index(p.parent.name) if p.parent.name in ROOMS else -1,
                           first.index(p.stem) if p.stem in first else len(first), number(p.stem))
        for p in sorted((p for p in NBS.glob(pattern) if p.suffix in (".ipynb", ".md") and p.is_file()), key=place):
            if (p.parent.name in ROOMS) != (section == "reference"): continue
            room = f"{p.parent.name}/" if section == "reference" else ""
            found[p.relative_to(NBS).as_posix()] = f"{section}/{room}{re.sub(r'^[0-9]+[a-z]?_', '', p.stem)}"
    return {k: v for k, v in found.items() if (NBS/k).exists()}

def source(cell): return "".join(cell["source"])

@cache
def opening(path):
    "A page's title, the line under it, and what follows in its first cell"
    text = (NBS/path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        text = source(next(c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"))
    title, line, *rest = (text.strip() + "\n\n").split("\n", 2)
    if not (title.startswith("# ") and line.startswith("> ")):
        sys.exit(f"nbs/{path} has no title with a `>` line under it")
    return title[2:].strip(), line[2:].strip(), "\n".join(rest).strip()


@cache
def module_of(path):
    "The module that a notebook is the source of, or None"
    if not re.match(rf"({'|'.join(ROOMS)})/[0-9]\w+\.ipynb", path): return None
    found = re.search(r"^#\| default_exp ([\w.]+)",
                      "\n".join(source(c) for c in json.loads((NBS/path).read_text(encoding="utf-8"))["cells"]
                                if c["cell_type"] == "code"), re.M)
    return Module(found[1]) if found else None

@cache
def names():
    "Public name, with and without its module, to its label; a name of two modules only with"
    short, whole = {}, {}
    for module in filter(None, map(module_of, plan())):
        for name in documented(module):
            label = module.label(name)
            whole |= {f"dho_nb.{module.name}.{name}": label, f"{module.name}.{name}": label}
            short[name] = None if name in short else label
    return {**short, **whole}

@cache
def known(path):
    "Short names that mean this library's on a page: its module's own, and what its notebook imports"
    module, text = module_of(path), (NBS/path).read_text(encoding="utf-8")
    code = "\n".join(source(c) for c in json.loads(text)["cells"]) if path.endswith(".ipynb") else text
    found = {n: f"dho_nb.{m}.{n}" for m, some in re.findall(r"from dho_nb\.([\w.]+) import (\([^)]+\)|[\w, ]+)", code)
             for n in re.findall(r"\w+", some)}
    return {**found, **({n: f"dho_nb.{module.name}.{n}" for n in documented(module)} if module else {})}

@cache
def documented(module): return [n for n in module.nodes if not any(part.startswith("_") for part in n.split("."))
                                and ("." not in n or patched(module, n))]
def patched(module, name): return not any(name.split(".")[-1] == getattr(n, "name", "")
                                          for n in getattr(module.nodes.get(name.split(".")[0]), "body", []))


def links(text, path):
    "Markdown with backticked names as links to the reference, and links between notebooks as links between pages"
    parts = re.split(r"(^```.*?^```[^\n]*$|^#+ [^\n]*$|\$\$.*?\$\$|!?\[(?:[^\[\]`]|`[^`]*`)*\]\([^()\s]*\)|`[^`\n]+`)",
                     text, flags=re.M | re.S)
    for i, part in enumerate(parts):
        if part.startswith("`") and not part.startswith("```"): parts[i] = named(part, path)
        elif re.match(r"\[.*\]\(", part, re.S):
            parts[i] = re.sub(r"\]\(([^()\s]*)\)$", lambda m: f"]({moved(m[1], path)})", part)
        elif re.match(r"!\[.*\]\(", part, re.S):
            parts[i] = re.sub(r"\]\(([^()\s]*)\)$", lambda m: f"]({picture(m[1], path)})", part)
    return "".join(parts)

def named(span, path):
    "A backticked name as a link; a plain word such as `sample` only where the notebook means ours"
    name = span.strip("`").removesuffix("()")
    label = names().get(known(path).get(name, name if re.search(r"[_.A-Z]", name) else None))
    return f"[{span}](#{label})" if label else span

def beside(target, path): return PurePosixPath(*_flat((PurePosixPath(path).parent/target).parts)).as_posix()
def _flat(parts):
    kept = []
    for p in parts: kept.pop() if p == ".." and kept and kept[-1] != ".." else kept.append(p)
    return kept

def up(path): return "../"*plan()[path].count("/")

def moved(target, path):
    "Where a link of a notebook leads on the site"
    if re.match(r"[a-z]+:|#", target): return target
    name, _, anchor = target.partition("#")
    inside = beside(name, path)
    if inside in plan():
        return up(path) + plan()[inside] + (PurePosixPath(inside).suffix if anchor else "") + (f"#{anchor}" if anchor else "")
    if inside == "../CHANGELOG.md": return up(path) + "changelog"
    return up(path) + copied(inside, path)

def picture(target, path): return (target if re.match(r"[a-z]+:", target) else up(path)
                                   + copied(beside(target, path), path))

def copied(inside, path):
    "A file of the project, put beside the pages"
    here = (NBS/inside).resolve()
    if not (here.is_file() and here.is_relative_to(ROOT)):
        sys.exit(f"nbs/{path} links to {inside}, and there is no such file or page")
    to = PAGES/"files"/here.relative_to(ROOT)
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(here, to)
    return to.relative_to(PAGES).as_posix()


def markdown(text): return {"cell_type": "markdown", "metadata": {}, "source": text}
def code(text, **metadata): return {"cell_type": "code", "metadata": metadata, "source": text, "outputs": [],
                                    "execution_count": None}

DIRECTIVE = re.compile(r"^#\|\s*([\w-]+)\s*:?\s*(.*)$\n?", re.M)
TAGS = {("echo", "false"): "remove-input", ("output", "false"): "remove-output", ("include", "false"): "remove-cell",
        ("code-fold", "true"): "hide-input"}

def shown(cell, path):
    "A code cell with its directives as what MyST-NB understands, its outputs without what needs a kernel"
    given = dict(DIRECTIVE.findall(source(cell)))
    kept = code(DIRECTIVE.sub("", source(cell)).strip("\n"))
    figure = cell["metadata"].get("figure", {})
    alt, caption, width = figure.get("alt"), figure.get("caption"), picture_width(cell.get("outputs", []))
    kept["metadata"] = {"tags": [*cell["metadata"].get("tags", []), *(t for (k, v), t in TAGS.items() if given.get(k) == v)],
                        "mystnb": {"image": {k: v for k, v in (("alt", alt), ("width", width)) if v},
                                   **({"figure": {"caption": caption}} if caption else {})}}
    kept["outputs"] = [o for o in map(lambda o: output(o, path), cell.get("outputs", [])) if o]
    return kept

def picture_width(outputs):
    "The width of a cell's first picture at 100 pixels an inch, so that letters are of one size on all pages; None without a picture"
    for png in filter(None, (o.get("data", {}).get("image/png") for o in outputs)):
        with Image.open(BytesIO(b64decode("".join(png)))) as picture:
            return f"{round(picture.width*min(1, 100/picture.info.get('dpi', (100,))[0]))}px"

MANY, WIDE = 6, 7  # columns of a table whose intervals stand below their numbers, and of one with smaller letters
ROW, CELL = re.compile(r"<tr.*?</tr>", re.S), re.compile(r"<t[hd][\s>]")
INTERVAL = re.compile(r"(<td[^>]* data-num>(?:\s|<[bi]>)*[-+−]?\d[\d.]*) (\[[^\]<]*\])")
WORDS = re.compile(r"<th(\s[^>]*)?>([^<]*\S \S[^<]*)</th>")  # a heading that may take two lines

def table_html(html):
    "HTML with its numbers on one line each; a table of many columns gets smaller letters and its intervals on a second line"
    html = NUMBER.sub(r"<td\1 data-num>\2</td>", WORDS.sub(r"<th\1 data-words>\2</th>", html))
    columns = max((len(CELL.findall(row)) for row in ROW.findall(html)), default=0)
    if columns >= MANY: html = INTERVAL.sub(r"\1<br><small>\2</small>", html)
    return html.replace("<table", "<table data-wide") if columns >= WIDE else html

NUMBER = re.compile(r"<td([^>]*)>((?:\s|<[bi]>)*[-+−–]?\d[^<]{0,28}(?:</[bi]>)?\s*)</td>")  # a cell with a number: it stays on one line
PROGRESS = re.compile(r"^.*\b\d+/\d+.*\babout .+ left$\n?", re.M)  # a line of progress is no result

def output(out, path):
    if out["output_type"] == "stream":
        text = PROGRESS.sub("", "".join(out["text"])) if out["name"] == "stdout" else ""
        return {**out, "text": text} if text.strip() else None
    data = {k: v for k, v in out.get("data", {}).items() if "widget" not in k}
    if len(data) < len(out.get("data", {})):
        return {**out, "data": {"text/markdown": "*Move it yourself in JupyterLab: `make lab`.*"}}
    if "text/html" in data:
        data.pop("text/markdown", None)
        data["text/html"] = table_html("".join(data["text/html"]))
    elif "text/markdown" in data: data["text/markdown"] = links("".join(data["text/markdown"]), path)
    return {**out, "data": data}

SHOWS = re.compile(r"^show_doc\(([\w.]+)\)", re.M)

def in_order(cells, module):
    "Cells with the names of one exported cell as they stand there; nbdev turns them round"
    def line(cell):
        found = module and SHOWS.search(source(cell))
        return module.nodes[found[1]].lineno if found and found[1] in module.nodes else None
    for api, some in groupby(cells, lambda c: line(c) is not None): yield from sorted(some, key=line) if api else some

def page(path):
    "A notebook as nbdev left it, as a page"
    book, module, level = json.loads((ROOT/"_proc"/path).read_text(encoding="utf-8")), module_of(path), 1
    title, line, rest = opening(path)
    about = f"`dho_nb.{module.name}`\n\n" if module else ""
    cells = [markdown(links(f"# {title}\n\n{about}*{line}*\n\n{rest}", path))]
    for heading in re.findall(r"^(#+) ", rest, re.M): level = len(heading)
    for cell in in_order(book["cells"], module):
        text = source(cell)
        if cell["cell_type"] == "raw" or text.startswith("<!-- WARNING"): continue
        if cell["cell_type"] == "markdown":
            cells.append(markdown(links(text, path)))
            for heading in re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M):
                level = len(heading)
        elif shows := SHOWS.search(text):
            if module is None or shows[1] not in documented(module): continue
            cells += [markdown(links(module.markdown(shows[1], min(level + 1, 4)), path)),
                      code(module.code(shows[1]), tags=["hide-input"])]
        elif text.strip() or cell.get("outputs"): cells.append(shown(cell, path))
    cells.append(markdown(f"---\n\n{{download}}`Download this page as a notebook <{up(path)}{copied(path, path)}>`"))
    for i, cell in enumerate(cells): cell["id"] = f"c{i}"
    return {"cells": cells,
            "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"}}, "nbformat": 4, "nbformat_minor": 5}


def text_page(path):
    "A page of text: its line under the title is set as in the notebooks"
    return links(re.sub(r"^> (.*)$", r"*\1*", (NBS/path).read_text(encoding="utf-8"), count=1, flags=re.M), path)

def write(name, text):
    to = PAGES/name
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")

def toctree(pages, caption="", hidden=True):
    options = (f":caption: {caption}\n" if caption else "") + ":hidden:\n"*hidden
    return "```{toctree}\n" + options + "\n" + "\n".join(pages) + "\n```\n"

def sources():
    "Everything that Sphinx reads"
    for path, name in plan().items():
        if path.endswith(".md"): write(f"{name}.md", text_page(path)); continue
        book = page(path)
        if name == "index":
            book["cells"].append({**markdown(toctree([f"{s}/index" for s in _sections()]) + "\n"
                                             + toctree([n for n in ("contributing", "changelog") if n == "changelog"
                                                        or n in plan().values()], "Project")), "id": "pages"})
        write(f"{name}.ipynb", json.dumps(book, ensure_ascii=False, indent=1))
    for section, (title, _, line) in SECTIONS.items():
        if section != "reference" and inside(section): write(f"{section}/index.md", contents(title, line, section))
    write("commands/index.md", verb_index(toctree))
    for name, parser in verbs(): write(f"commands/{page_name(name)}.md", verb_page(name, parser))
    for room, line in ROOMS.items(): write(f"reference/{room}/index.md", contents(room, line, f"reference/{room}"))
    title, _, line = SECTIONS["reference"]
    listed = "\n".join(f"[{room}]({room}/index)\n: {about}\n" for room, about in ROOMS.items())
    write("reference/index.md", f"# {title}\n\n{line}\n\n{listed}\n{toctree([f'{room}/index' for room in ROOMS])}")
    write("changelog.md", (ROOT/"CHANGELOG.md").read_text(encoding="utf-8"))
    write("conf.py", (ROOT/"docs"/"conf.py").read_text(encoding="utf-8"))

def _sections():
    "Folders of the site in the sidebar's order"
    found = [s for s in SECTIONS if inside(s)]
    return [*found[:found.index("reference")], "commands", *found[found.index("reference"):]] if "reference" in found else [*found, "commands"]

def contents(title, line, folder):
    "The index page of a folder of the site"
    pages = {p: n.removeprefix(f"{folder}/") for p, n in inside(folder).items()}
    listed = "\n".join(f"[{opening(p)[0]}]({n})\n: {links(opening(p)[1], p)}\n" for p, n in pages.items())
    return f"# {title}\n\n{line}\n\n{listed}\n{toctree(list(pages.values()))}"

@cache
def inside(section): return {p: n for p, n in plan().items() if n.startswith(f"{section}/")}

def llms():
    "The project on one page, for language models, with links to the notebooks"
    (title, line, _), parts = opening("index.ipynb"), []
    for section, (name, _, about) in SECTIONS.items():
        lines = [f"- [{opening(p)[0]}](nbs/{p}): {opening(p)[1]}"
                 + (f" Module `dho_nb.{module_of(p).name}`." if module_of(p) else "") for p in inside(section)]
        if lines: parts.append(f"## {name}\n\n{about}\n\n" + "\n".join(lines) + "\n")
    return "\n".join([f"# {title}\n\n> {line}\n", INTRODUCTION, *parts])

INTRODUCTION = """Dual-Head Optimization (arXiv 2505.07675): one small backbone with two linear heads. The CE head learns from labels, the KD head from a frozen CLIP; the answer is α·softmax(CE) + (1 − α)·softmax(KD/β).
Notebooks are source, documentation and tests; nbdev exports them to the package `dho_nb`, whose files are never edited. Command line: `dho --help`. From Python:
`from dho_nb import distill, preset; run = distill(preset("digits", shots=4, fraction=0.0)); run.result`.
"""

def main():
    for old in (PAGES, SITE): shutil.rmtree(old, ignore_errors=True)
    proc_nbs(n_workers=2)
    sources()
    doctrees = ROOT/"build"/"doctrees"
    done = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E", "-a", "-j",
                           "2", "-d", doctrees, PAGES, SITE], cwd=ROOT)
    if done.returncode: sys.exit("the site has warnings: see above")
    (SITE/"llms.txt").write_text(re.sub(r"\]\(nbs/([^)]+)\)", lambda m: f"]({plan()[m[1]]}.html)", llms()),
                                 encoding="utf-8")
    found = problems(SITE)
    if found: sys.exit("\n".join(found))
    leaving = external(SITE)
    (ROOT/"build"/"external-links.txt").write_text("\n".join(leaving) + "\n", encoding="utf-8")
    print(f"_site/index.html: {len(list(SITE.rglob('*.html')))} pages; {len(leaving)} links leave the site "
          "(build/external-links.txt)")


if __name__ == "__main__": main()
