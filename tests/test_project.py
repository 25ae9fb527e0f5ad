"The project keeps its own rules: generated files are what their sources make, rooms import only upwards"
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from dho_nb.manifests import digits_manifest, manifest_hash, open_manifest
from dho_nb.configs import Config
from dho_nb.presets import PRESETS
from readme import readme

NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
EXPERIMENTS = [p for p in NOTEBOOKS if p.parent.name == "experiments"]


def code(notebook):
    return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]


def test_export_and_clean_change_nothing(tmp_path):
    copy = tmp_path/"copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "data", "build", "*.egg-info", "__pycache__", ".ipynb_checkpoints", "_proc", "_site"))
    kept = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([Path(sys.executable).parent/command], cwd=copy, check=True, capture_output=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    after = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert [str(p) for p in sorted(kept.keys() | after.keys()) if kept.get(p) != after.get(p)] == []


@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_has_one_parameters_cell(notebook):
    tagged = [c for c in code(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is not None
    assert tagged[0]["source"] == code(notebook)[0]["source"], "the parameters come first"
    assert all(isinstance(s, ast.Assign) and (ast.literal_eval(s.value) is not None or True) for s in ast.parse("".join(tagged[0]["source"])).body)


def test_the_distill_notebook_has_every_parameter_with_the_presets_values():
    cell = next(c for c in code(ROOT/"nbs/experiments/distill.ipynb") if "parameters" in c["metadata"].get("tags", []))
    given = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse("".join(cell["source"])).body}
    assert given.pop("out") == ""
    assert given == {**Config(**PRESETS["digits"]).__dict__}


def test_rooms_import_only_upwards():
    rooms = {re.sub(r"^\d+[a-z]?_", "", p.stem): i for i, p in enumerate(sorted((ROOT/"nbs").glob("[0-9]*.ipynb")))}
    for name, place in rooms.items():
        tree = ast.parse((ROOT/"dho_nb"/f"{name}.py").read_text())
        imported = [n.module.removeprefix("dho_nb.") for n in tree.body if isinstance(n, ast.ImportFrom) and n.module.startswith("dho_nb.")]
        assert [i for i in imported if rooms[i] >= place] == [], name


def test_readme_is_made_from_the_index():
    assert (ROOT/"README.md").read_text(encoding="utf-8") == readme()


def test_the_readmes_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT/"Makefile").read_text(), re.M))
    asked = set(re.findall(r"^\s*make (\w+)", (ROOT/"README.md").read_text(), re.M))
    assert {"demo", "test"} <= asked <= targets


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
    assert not re.search(r"(?<![\w.])/(root|home|tmp|Users)/", json.dumps(outputs)), "a path of somebody's machine"


def test_the_shipped_digits_are_the_digits():
    assert manifest_hash(open_manifest("digits")) == manifest_hash(digits_manifest())
