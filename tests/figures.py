"The package's figures: `python tests/figures.py` prints cells, docstrings and lines, room by room"
import ast
import json
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
ROOMS = ("core", "data", "losses", "teachers", "students", "training", "evaluation", "runs", "sweeps", "deploy", "reports", "cli")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# First words of functions' docstrings. Each was read in its place: a verb, in the imperative. A new one is added by hand.
VERBS = frozenset("""
    Add Bring Build Call Check Choose Close Collect Compare Compute Copy Correct Count Crop Cross-fit Decode Describe Draw Encode End
    Escape Estimate Execute Export Fetch Fill Find Fine-tune Fit Flush Gather Hash Hold Import Keep Kill Leave Let List Load
    Lock Log Make Mark Measure Move Name Open Parse Plot Print Raise Read Record Refuse Release Remove Repeat Resume Return Run
    Score Select Send Set Show Silence Store Sum Tabulate Tell Train Update Upload Wait Wrap Write Yield
""".split())


def notebooks(rooms=ROOMS):
    "The rooms' notebooks, in order"
    return [p for room in rooms for p in sorted((ROOT/"nbs"/room).glob("*.ipynb"))]


def modules(room):
    "Paths of a room's modules"
    return sorted(p for p in (ROOT/"dho_nb"/room).glob("*.py") if p.stem != "__init__")


def exported_cells(notebook):
    "Sources of the exported cells, without their directives"
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "code" and any(l.replace(" ", "").startswith("#|export") for l in lines):
            yield "\n".join(l for l in lines if not l.startswith("#|")).strip("\n")


def definitions(cell):
    "Number of functions and classes in a cell; those of up to three lines are a family, and count once together"
    sizes = [n.end_lineno - n.lineno + 1 for n in ast.parse(cell).body if isinstance(n, (*FUNCTIONS, ast.ClassDef))]
    return sum(s > 3 for s in sizes) + any(s <= 3 for s in sizes)


def public(tree):
    "Name and node of every public function, method and class of a module"
    for node in tree.body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"): continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body
                        if isinstance(f, FUNCTIONS) and not f.name.startswith("_"))


def is_property(function):
    "Whether a function is read as an attribute: its docstring is a noun"
    return any(word in ast.unparse(d) for d in function.decorator_list for word in ("property", "as_prop"))


def raises(function, helpers=frozenset()):
    "Whether a function raises an error of its own, or calls one of `helpers`; functions inside it do not count"
    queue = list(function.body)
    while queue:
        node = queue.pop()
        if isinstance(node, (*FUNCTIONS, ast.Lambda, ast.ClassDef)): continue
        if isinstance(node, ast.Raise) and node.exc is not None: return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers: return True
        queue += ast.iter_child_nodes(node)
    return False


def docstring_faults(path):
    "(name, fault) for public functions whose docstring is missing, begins with no verb or does not say what it raises"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    helpers = {n.name for n in tree.body if isinstance(n, FUNCTIONS) and n.name.startswith("_") and raises(n)}
    for name, node in public(tree):
        words = (ast.get_docstring(node) or "").split()
        if not words: yield name, "no docstring"
        if not words or isinstance(node, ast.ClassDef) or is_property(node): continue
        if words[0].rstrip(".,:;") not in VERBS: yield name, f"begins with {words[0]}"
        if raises(node, helpers) and not {"Raises", "raises"} & {*words}: yield name, "does not say what it raises"


def row(rooms):
    "Figures of some rooms, as printed"
    cells = [c for p in notebooks(rooms) for c in exported_cells(p)]
    sizes = sorted(len(c.splitlines()) for c in cells)
    faults = [fault.split()[0] for room in rooms for p in modules(room) for _, fault in docstring_faults(p)]
    lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for room in rooms for p in modules(room))
    return [len(cells), median(sizes), sizes[int(.9*len(sizes))], sizes[-1], sum(definitions(c) > 2 for c in cells),
            *map(faults.count, ("no", "begins", "does")), lines]


def main():
    "Print the figures"
    names = ("cells", "median", "90 %", "longest", "> 2 defs", "no doc", "no verb", "no Raises", "lines")
    print(f"{'':12}" + "".join(f"{name:>10}" for name in names))
    for name, rooms in {**{room: (room,) for room in ROOMS}, "in all": ROOMS}.items():
        print(f"{name:12}" + "".join(f"{value:10g}" for value in row(rooms)))


if __name__ == "__main__": main()
