"The project keeps its own rules: generated files are what their sources make, rooms import only from rooms below"
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, SMALL, picture, project_copy
from dho_nb.data.manifests import digits_manifest, manifest_hash, open_manifest
from dho_nb.runs.config import Config
from dho_nb.runs.presets import PRESETS
from figures import ROOMS, docstring_faults, modules, row
from readme import made, parameters_cell, tagged

NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
EXPERIMENTS = [p for p in NOTEBOOKS if p.parent.name == "experiments"]


def code(notebook):
    return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def test_export_and_clean_change_nothing(tmp_path):
    copy = tmp_path/"copy"
    project_copy(copy)
    kept = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([Path(sys.executable).parent/command], cwd=copy, check=True, capture_output=True,
                       env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    after = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert [str(p) for p in sorted(kept.keys() | after.keys()) if kept.get(p) != after.get(p)] == []


def test_every_name_is_imported_and_every_import_is_used():
    found = subprocess.run([sys.executable, "-m", "pyflakes", ROOT/"dho_nb"], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("", "")


def uncalled_expectations(source):
    "Lines where `expect_fail(…)` stands without `with`, so nothing is run"
    return [s.lineno for s in ast.walk(ast.parse(source)) if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)
            and getattr(s.value.func, "id", "") == "expect_fail"]


def test_every_expected_error_is_raised_by_code_that_runs():
    assert uncalled_expectations("expect_fail(f)\nwith expect_fail(DhoError): f()") == [1]
    cells = [(p, "".join(c["source"])) for p in NOTEBOOKS for c in code(p) if "expect_fail(" in "".join(c["source"])]
    files = [(p, p.read_text()) for p in sorted((ROOT/"tests").glob("*.py"))]
    plain = lambda text: re.sub(r"(?m)^[%!].*$", "pass", text)
    assert [(p.name, line) for p, text in cells + files for line in uncalled_expectations(plain(text))] == []


@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_has_one_parameters_cell(notebook):
    tagged = [c for c in code(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0]["source"] == code(notebook)[0]["source"], "the parameters come first"
    given = ast.parse("".join(tagged[0]["source"])).body
    assert given and all(isinstance(s, ast.Assign) for s in given)
    for s in given: ast.literal_eval(s.value)  # plain data, or an error


def test_the_distill_notebook_has_the_parameters_of_config_with_their_help_and_the_presets_values():
    source = "".join(tagged(json.loads((ROOT/"nbs/experiments/distill.ipynb").read_text()))["source"])
    assert source == parameters_cell(), "make readme writes this cell"
    given = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(source).body}
    assert given.pop("out") == ""
    assert given == {**Config(**PRESETS["digits"]).__dict__}


def lint(folder):
    "import-linter's judgment of a copy of the package"
    return subprocess.run([Path(sys.executable).parent/"lint-imports", "--no-cache", "--config", folder/"pyproject.toml"], cwd=folder,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"})

def test_a_room_imports_only_from_rooms_below_it(tmp_path):
    done = lint(ROOT)
    edges = int(re.search(r"(\d+) dependencies", done.stdout)[1])
    assert done.returncode == 0 and edges > 300, done.stdout + done.stderr


@pytest.mark.parametrize("line", ["from dho_nb.runs.config import Config", "def f():\n    from ..cli.main import main"])
def test_an_import_from_a_room_above_is_refused(tmp_path, line):
    shutil.copytree(ROOT/"dho_nb", tmp_path/"dho_nb", ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    with open(tmp_path/"dho_nb"/"data"/"manifests.py", "a") as f: f.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and "dho_nb.data is not allowed to import dho_nb." in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("module", [p for room in ROOMS for p in modules(room)], ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_public_functions_begin_with_a_verb_and_say_what_they_raise(module):
    assert list(docstring_faults(module)) == []


def test_a_poor_docstring_is_found(tmp_path):
    (tmp_path/"poor.py").write_text("def bare(): pass\n\ndef noun(): 'The number'\n\n"
                                    "def silent():\n    'Return a number'\n    raise ValueError\n\n"
                                    "def _helper(): raise ValueError\n\ndef hidden():\n    'Return it'\n    _helper()\n\n"
                                    "def good():\n    'Return it. Raises ValueError at night.'\n    raise ValueError\n")
    assert list(docstring_faults(tmp_path/"poor.py")) == [
        ("bare", "no docstring"), ("noun", "begins with The"), ("silent", "does not say what it raises"),
        ("hidden", "does not say what it raises")]


def test_exported_cells_hold_one_idea():
    count, median, most, longest, crowded, *_ = row(("data", "losses", "teachers", "students", "training", "evaluation", "deploy"))
    assert count > 500 and median <= 12 and most <= 30 and longest <= 60 and not crowded


@pytest.mark.parametrize("name", made())
def test_pages_of_the_repository_are_made_from_notebooks(name):
    assert (ROOT/name).read_text(encoding="utf-8") == made()[name]


def test_llms_txt_names_every_module():
    modules = {f"{p.parent.name}.{p.stem}" for p in (ROOT/"dho_nb").glob("*/*.py") if not p.stem.startswith("_")}
    assert len(modules) > 50 and set(re.findall(r"Module `dho_nb\.([\w.]+)`", (ROOT/"llms.txt").read_text())) == modules
    links = re.findall(r"\]\(([^)]+)\)", (ROOT/"llms.txt").read_text())
    assert len(links) > len(modules) and all((ROOT/link).exists() for link in links)


README = (ROOT/"README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
COMMANDS = [line.split(" #")[0].strip() for kind, block in BLOCKS if not kind for line in re.sub(r"\\\n\s*", "", block).splitlines()]
RUN_ELSEWHERE = {"make demo": ".ci/run", "make test": ".ci/run", "make docs": "tests/test_site.py",
                 "make lab": "Makefile", "pip install '.[onnx]'": "tests/test_package.py"}


def test_the_readme_is_shorter_than_two_screens():
    assert len(README.splitlines()) <= 80


def test_the_readmes_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT/"Makefile").read_text(), re.M))
    asked = {c.removeprefix("make ") for c in COMMANDS if c.startswith("make ")}
    assert {"demo", "docs", "lab", "test"} == asked and asked <= targets
    assert {c for c in COMMANDS if not c.startswith("dho ")} == RUN_ELSEWHERE.keys()
    assert all((ROOT/place).exists() for place in RUN_ELSEWHERE.values())


@pytest.fixture
def photos(tmp_path):
    "What the README's commands find: photographs, a few labels, embeddings"
    names = [picture(tmp_path/"photos"/f"{i:02}.png", seed=i).name for i in range(24)]
    (tmp_path/"labels.csv").write_text("path,label\n"
                                       + "".join(f"{n},{('cat', 'dog')[i % 2]}\n" for i, n in enumerate(names[:8])))
    draw = np.random.default_rng(0)
    np.savez(tmp_path/"clip.npz", paths=names, embeddings=draw.normal(size=(24, 8)), classes=["cat", "dog"],
             text=draw.normal(size=(2, 8)))
    return tmp_path


def test_the_readmes_commands_for_own_pictures_run(dho, photos):
    ours = [shlex.split(c)[1:] for c in COMMANDS if re.match("dho (distill|predict|export) ", c)]
    for words in ours:
        small = {"distill": SMALL if "--teacher" in words else SMALL[2:]}.get(words[0], [])
        code, out, err = dho(*words, *small, cwd=photos)
        assert code == 0 and out.strip(), err
    assert len(list(photos.glob("runs/*/model.safetensors"))) == 2
    assert (photos/"runs"/"photos"/"export"/"model.onnx").exists()
    assert [words[0] for words in ours].count("distill") == 2
    assert {words[0] for words in ours} == {"distill", "predict", "export"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("dho ")
                                     and not re.match("dho (distill|predict|export) ", c)])
def test_the_readmes_other_commands_run(dho, command):
    code, out, err = dho(*shlex.split(command)[1:], cwd=ROOT)
    assert code == 0 and out.strip(), err


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))
    code = "".join(block for kind, block in BLOCKS if kind == "python")
    assert "epochs=10" in code
    found = {}
    exec(code.replace("epochs=10", "epochs=1"), found)
    assert found["run"].result["tested"] == 500


def test_the_contributing_pages_python_runs(tmp_path, monkeypatch):
    from dho_nb import METHODS
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))
    page, names = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8"), {}
    try: exec("".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)), names)
    finally: METHODS.pop("dho-js", None)
    assert names["run"].result["method"] == "dho-js" and names["run"].result["tested"] == 500


GUIDES = [(p, line) for p in NOTEBOOKS if p.parent.name in ("howto", "explain", "tutorials", "paper")
          for cell in json.loads(p.read_text())["cells"] if cell["cell_type"] == "markdown"
          for block in re.findall(r"^```\n(.*?)^```", "".join(cell["source"]), re.M | re.S)
          for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.startswith("dho ") and "…" not in line]

@pytest.mark.parametrize("notebook, line", GUIDES, ids=lambda v: v if isinstance(v, str) else v.stem)
def test_the_guides_commands_are_understood(notebook, line):
    from dho_nb.cli.main import make_parser
    assert make_parser().parse_args(shlex.split(line.split(" #")[0].split("&&")[0])[1:])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_pages(notebook):
    book = json.loads(notebook.read_text())
    first = next(c for c in book["cells"] if c["cell_type"] == "markdown")
    lines = "".join(first["source"]).splitlines()
    assert lines[0].startswith("# ") and lines[1].startswith("> "), "a title and a line that says why"
    assert notebook.stat().st_size < 1_000_000
    outputs = [o for c in code(notebook) for o in c["outputs"]]
    assert not any(o["output_type"] == "error" for o in outputs)
    assert outputs or notebook.stem == "index"
    assert not re.search(r"(?<![\w.])/(root|home|tmp|work|Users)/", json.dumps(outputs)), "a path of somebody's machine"


def test_the_shipped_digits_are_the_digits():
    assert manifest_hash(open_manifest("digits")) == manifest_hash(digits_manifest())
