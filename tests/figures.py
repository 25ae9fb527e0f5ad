"The package's figures: `python tests/figures.py` prints cells, docstrings and lines, room by room"
import ast
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
ROOMS = ("core", "data", "losses", "teachers", "students", "training", "evaluation", "runs", "sweeps", "deploy", "reports", "cli")

# The words that a function's docstring may begin with. Each was read: it is a verb, in the imperative, and it is one in its place.
VERBS = frozenset("""
Return
""".split())
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def exported_cells(notebook):
    "Yield the source of every exported cell, without its directives"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "code" and any(l.replace(" ", "").startswith("#|export") for l in lines):
            yield "\n".join(l for l in lines if not l.startswith("#|")).strip("\n")


def notebooks(rooms=ROOMS):
    "Return the rooms' notebooks, in order"
    return [p for room in rooms for p in sorted((ROOT/"nbs"/room).glob("*.ipynb"))]


def module(room):
    "Return the paths of a room's modules"
    return sorted(p for p in (ROOT/"dho_nb"/room).glob("*.py") if p.stem != "__init__")


def decorators(node):
    "Return the names of a function's decorators, `patch(as_prop=True)` as `property`"
    return {"property" if "as_prop" in ast.unparse(d) else ast.unparse(d).split("(")[0].split(".")[-1]
            for d in node.decorator_list}


def public(tree):
    "Yield name and node of every public function, method and class of a module"
    for node in tree.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"): continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body
                        if isinstance(f, FUNCTIONS) and not f.name.startswith("_"))


def own_nodes(function):
    "Yield the nodes of a function, but for those of functions inside it"
    queue = list(function.body)
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.Lambda, ast.ClassDef)): queue += ast.iter_child_nodes(node)


def raises(function, helpers=frozenset()):
    "Tell whether a function raises an error of its own, or calls one of `helpers`"
    nodes = list(own_nodes(function))
    caught = any(isinstance(n, ast.Raise) and n.exc is not None for n in nodes)
    return caught or any(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in helpers for n in nodes)


def docstring_faults(path, verbs=VERBS):
    "Yield (name, fault) for every public function of a module whose docstring lacks, begins with no verb or hides what it raises"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    helpers = {n.name for n in tree.body if isinstance(n, FUNCTIONS) and n.name.startswith("_") and raises(n)}
    for name, node in public(tree):
        text = ast.get_docstring(node)
        if not text: yield name, "no docstring"
        elif isinstance(node, ast.ClassDef): continue
        elif "property" not in (marks := decorators(node)) and not marks & {"cached_property"} and text.split()[0].rstrip(".,:;") not in verbs:
            yield name, f"begins with {text.split()[0]!r}"
        if text and isinstance(node, FUNCTIONS) and raises(node, helpers) and "Raises" not in text: yield name, "does not say what it raises"


def main():
    "Print the figures"
    total = 0
    print(f"{'':12}{'cells':>6}{'median':>8}{'90 %':>6}{'longest':>8}{'> 2 defs':>9}{'no doc':>8}{'no verb':>8}{'no Raises':>10}{'lines':>7}")
    counts = defaultdict(list)
    for room in (*ROOMS, "in all"):
        rooms = ROOMS if room == "in all" else (room,)
        cells = [c for p in notebooks(rooms) for c in exported_cells(p)]
        sizes = sorted(len(c.splitlines()) for c in cells)
        defs = [sum(isinstance(n, (*FUNCTIONS, ast.ClassDef)) for n in ast.parse(c).body) for c in cells]
        faults = [f for r in rooms for p in module(r) for _, f in docstring_faults(p)]
        lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for r in rooms for p in module(r))
        print(f"{room:12}{len(sizes):6}{median(sizes):8g}{sizes[int(.9*len(sizes))]:6}{sizes[-1]:8}{sum(d > 2 for d in defs):9}"
              f"{faults.count('no docstring'):8}{sum(f.startswith('begins') for f in faults):8}{sum(f.startswith('does') for f in faults):10}{lines:7}")


if __name__ == "__main__": main()
