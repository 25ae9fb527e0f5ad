"What pip installs: a wheel that works in an empty environment outside the repository, without extras and with them, and imports only what is used"
import email
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dho_nb
from conftest import ROOT

MODULES = [f"dho_nb.{p.parent.name}.{p.stem}" for p in sorted((ROOT/"dho_nb").glob("*/[a-z]*.py"))]
LATER = ("open_clip timm torchvision matplotlib sklearn scipy accelerate transformers huggingface_hub fastprogress "
         "papermill ipykernel IPython onnx onnxruntime ray".split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist, and the wheel that is made from it"
    folder = tmp_path_factory.mktemp("built")
    done = subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
    assert done.returncode == 0 and "warning" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def test_the_wheel_holds_what_it_needs(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    needed = {"dho_nb/cli/main.py", "dho_nb/py.typed", "dho_nb/data_manifests/digits.csv",
              "dho_nb/data_manifests/subsets/imagenet.csv.gz", "dho_nb/data_manifests/hashes/eurosat.txt.gz",
              "dho_nb/experiments/distill.ipynb", "dho_nb/experiments/predict_onnx.py", "dho_nb/paper/published.csv",
              "dho_nb/paper/grids/table1.toml", "dho_nb/bundled/digits_teacher/open_clip_model.safetensors"}
    assert needed <= names
    assert not [n for n in names if "tests/" in n or n.endswith(".pyc")]


def test_the_sdist_can_be_tested_and_cited(built):
    names = {n.partition("/")[2] for n in tarfile.open(built[0]).getnames()}
    assert {"CITATION.cff", "CHANGELOG.md", "LICENSE", "README.md", "constraints.txt", "tests/conftest.py",
            "nbs/experiments/distill.ipynb"} <= names


def test_the_citation_is_of_this_version():
    told = yaml.safe_load((ROOT/"CITATION.cff").read_text())
    project = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
    assert (told["version"], told["license"], told["cff-version"]) == (dho_nb.__version__, project["license"], "1.2.0")
    assert told["references"][0]["url"].endswith("2505.07675")


def requirements(lines, extras):
    "Those that apply here"
    return [r for r in map(Requirement, lines or []) if not r.marker
            or any(r.marker.evaluate({"extra": e}) for e in ("", *extras))]


def installed_with(wheel, *extras):
    "Names of the distributions that pip would install: the wheel's requirements and theirs, as the metadata here states them"
    name = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    own = email.message_from_string(zipfile.ZipFile(wheel).read(name).decode()).get_all("Requires-Dist")
    todo, found = [("dho_nb", frozenset(extras))], set()
    while todo:
        if (place := todo.pop()) in found: continue
        found.add(place)
        lines = own if place[0] == "dho_nb" else distribution(place[0]).requires
        todo += [(canonicalize_name(r.name).replace("dho-nb", "dho_nb"), frozenset(r.extras))
                 for r in requirements(lines, place[1])]
    return {name for name, _ in found} - {"dho_nb"}


def environment(folder, wheel, *extras):
    "An empty environment with the wheel, and with links to what it requires: the same files, without fetching gigabytes"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in installed_with(wheel, *extras):
        found = distribution(name)
        for top in {f.parts[0] for f in found.files} - {"..", "__pycache__"}:
            if not (site/top).exists() and Path(found.locate_file(top)).exists():
                (site/top).symlink_to(found.locate_file(top))
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    subprocess.run([sys.executable, "-m", "pip", "--python", folder/"bin"/"python", "install", "-q", "--no-deps",
                    "--no-index", wheel], check=True, cwd=folder, env=env)
    env.update(DHO_CACHE=str(folder/"cache"), DHO_RUNS=str(folder/"runs"), DHO_DEVICE="cpu", OMP_NUM_THREADS="1",
               HF_HUB_OFFLINE="1")
    return lambda program, *argv: subprocess.run([folder/"bin"/program, *map(str, argv)], cwd=folder,
                                                 capture_output=True, text=True, timeout=400, env=env)


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("bare")/"env", built[1])


def test_the_core_is_light(built):
    heavy = {"papermill", "ipykernel", "ipython", "jupyterlab", "jupyter-client", "nbdev", "nbformat", "pyarrow", "ray",
             "onnx", "onnxruntime", "sphinx", "pytest"}
    assert not heavy & installed_with(built[1])
    assert {"papermill", "ipykernel"} <= installed_with(built[1], "sweep") <= installed_with(built[1], "lab")


def test_without_extras_it_distils_from_the_command_line_and_from_python(bare):
    done = bare("dho", "distill", "--preset", "digits", "--epochs", "1", "--out", "run")
    assert done.returncode == 0 and "accuracy" in done.stdout, done.stderr
    code = ("import json, dho_nb; from dho_nb import distill, preset; from "
            "dho_nb.core.settings import shipped_file\n"
            "run = distill(preset('digits', epochs=1, method='ce'), 'python', 'none'); "
            "print(json.dumps([dho_nb.__file__, str(shipped_file('experiments')), run.result['tested']]))")
    done = bare("python", "-c", code)
    assert done.returncode == 0, done.stderr
    package, experiments, tested = json.loads(done.stdout)
    assert str(ROOT) not in package + experiments and experiments.startswith(str(Path(package).parent))
    assert tested == 500


@pytest.mark.parametrize("argv, said", [
    (["distill", "--preset", "digits", "--notebook"],
     "papermill and ipykernel are not installed: pip install 'dho_nb[sweep]'"),
    (["demo", "--seeds", "1"], "papermill and ipykernel are not installed: pip install 'dho_nb[sweep]'"),
], ids=lambda v: v[0] if isinstance(v, list) else None)
def test_a_missing_extra_is_named(bare, argv, said):
    done = bare("dho", *argv)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_with_the_extra_sweep_notebooks_run(built, tmp_path):
    there = environment(tmp_path/"env", built[1], "sweep")
    done = there("dho", "distill", "--preset", "digits", "--epochs", "1", "--notebook", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path/"env"/"run"/"notebook.ipynb").exists() and (tmp_path/"env"/"run"/"result.json").exists()


def test_importing_a_module_imports_only_what_it_always_uses(tmp_path):
    assert len(MODULES) > 60
    code = f"import sys; [__import__(m) for m in {MODULES}]; print([m for m in {LATER} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    light = ("import sys, dho_nb, dho_nb.cli.main, dho_nb.core.settings; "
             "print([m for m in ('torch', 'pandas') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
