"A module's public names as Markdown: signature, docstring, docments as a table, source"
import ast
import io
import tokenize
from pathlib import Path

from nbdev.doclinks import patch_name

ROOT = Path(__file__).parent.parent


def comments(source):
    "Line to the text of its comment"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


class Module:
    "Names of a module to what is said about them"
    def __init__(self, name):
        self.name = name
        self.source = (ROOT/"dho_nb"/f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        self.notes, self.nodes, self.imports = comments(self.source), {}, {}
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                self.imports |= {a.name: ".".join([*name.split(".")[:2 - node.level], node.module or ""]) for a in node.names}
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            found = patch_name(node)
            self.nodes |= dict.fromkeys(found if isinstance(found, list) else [found], node)
            if isinstance(node, ast.ClassDef):
                self.nodes |= {f"{node.name}.{n.name}": n for n in node.body if isinstance(n, ast.FunctionDef)}

    def label(self, name):
        "Where a name is found on the site; labels do not tell `surface` from `AlphaBetaGrid`"
        twin = name != name.lower() and name.lower() in self.nodes
        return f"dho_nb.{self.name}.{name}" + "-class"*twin

    def code(self, name):
        "The source of a name, with its decorators"
        node = self.nodes[name]
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        return "\n".join(self.source.splitlines()[first - 1:node.end_lineno])

    def fields(self, node):
        "Fields of a dataclass to (type, default, note), those of its bases first, as `dataclasses` has them"
        found = {}
        for base in reversed([b.id for b in node.bases if isinstance(b, ast.Name)]):
            home = self if base in self.nodes else Module(self.imports[base]) if base in self.imports else None
            if home: found |= home.fields(home.nodes[base])
        own = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        return found | {n.target.id: (said(n.annotation), said(n.value), self.notes.get(n.end_lineno, "")) for n in own}

    def rows(self, node):
        "Parameters as (name, type, default, note), the answer last"
        if isinstance(node, ast.ClassDef):
            made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            if made: return self.rows(made)
            return [(name, *rest) for name, rest in self.fields(node).items()]
        a = node.args
        given = [*a.posonlyargs, *a.args]
        defaults = [None]*(len(given) - len(a.defaults)) + a.defaults
        pairs = [*zip(given, defaults), *([(a.vararg, None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults), *([(a.kwarg, None)] if a.kwarg else [])]
        stars = {id(a.vararg): "*", id(a.kwarg): "**"}
        ends = [max(arg.end_lineno, default.end_lineno if default else 0) for arg, default in pairs]
        rows = []
        for (arg, default), end, following in zip(pairs, ends, [*ends[1:], 0]):
            if arg.arg in ("self", "cls") and arg is pairs[0][0]: continue
            note = "" if end == following else self.notes.get(end, "")
            rows.append((stars.get(id(arg), "") + arg.arg, said(arg.annotation), said(default), note))
        closing = node.returns.end_lineno if node.returns else node.body[0].lineno - 1
        note = "" if ends and closing == ends[-1] and not node.returns else self.notes.get(closing, "")
        if closing in ends and rows and rows[-1][3] == note: rows[-1] = (*rows[-1][:3], "")
        if node.returns or note: rows.append(("returns", said(node.returns), "", note))
        return rows

    def markdown(self, name, level):
        "A heading, the signature, what it does, its parameters"
        node = self.nodes[name]
        rows = self.rows(node)
        takes = [r for r in rows if r[0] != "returns"]
        answer = next((r[1] for r in rows if r[0] == "returns"), "")
        words = [n + (f":{t}" if t else "") + (f"={d}" if d else "") for n, t, d, _ in takes]
        call = name.removesuffix(".__init__") + "(" + ", ".join(words) + ")" + (f" → {answer}" if answer else "")
        if len(call) > 96: call = name + "(\n" + "".join(f"    {w},\n" for w in words) + ")" + (f" → {answer}" if answer else "")
        parts = [f"({self.label(name)})=\n{'#'*level} `{name}`", f"```text\n{call}\n```", described(ast.get_docstring(node) or "")]
        if any(r[3] for r in rows): parts.append(table(("", "type", "default", ""), [(code(n) if n != "returns" else "*returns*", code(t), code(d), plain(w)) for n, t, d, w in rows]))
        if isinstance(node, ast.ClassDef):
            own = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
            if own: parts.append(table(("method or property", ""), [(code(n.name), plain(ast.get_docstring(n) or "")) for n in own]))
        return "\n\n".join(p for p in parts if p)


def said(node): return ast.unparse(node) if node else ""
def code(text): return f"`{text}`".replace("|", r"\|") if text else ""

def plain(text):
    "Prose in which nothing but code spans is markup"
    spans = " ".join(text.split()).split("`") if "\n\n" not in text else text.split("`")
    for i in range(0, len(spans), 2):
        for sign in "*_[]<>$|": spans[i] = spans[i].replace(sign, "\\" + sign)
    return "`".join(spans)

def described(docstring):
    "A docstring; what follows its first paragraph is shown as it stands where lines of it are indented"
    first, _, rest = docstring.partition("\n\n")
    return f"{plain(first)}\n\n```text\n{rest}\n```" if "\n  " in rest else plain(docstring)

def table(head, rows):
    "A table in Markdown"
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"]*len(head), *rows])
