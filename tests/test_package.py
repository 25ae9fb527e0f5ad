"What pip installs: a wheel that works outside the repository"
import os
import subprocess
import sys
import zipfile

import pytest

from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_what_it_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {"dho_nb/cli.py", "dho_nb/data_manifests/digits.csv", "dho_nb/data_manifests/subsets/imagenet.csv.gz", "dho_nb/data_manifests/hashes/eurosat.txt.gz", "dho_nb/experiments/distill.ipynb", "dho_nb/experiments/predict_onnx.py", "dho_nb/paper/published.csv", "dho_nb/paper/grids/table1.toml", "dho_nb/bundled/digits_teacher/open_clip_model.safetensors"}
    assert needed <= names
    assert not [n for n in names if "tests/" in n or n.endswith(".pyc")]


def test_it_runs_outside_the_repository(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path/"site", wheel], check=True)
    run = lambda *argv: subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True,
                                       env={**os.environ, "PYTHONPATH": str(tmp_path/"site"), "DHO_CACHE": str(tmp_path/"cache"), "OMP_NUM_THREADS": "1"})
    where = run("-c", "import dho_nb.settings as s; print(s.__file__, s.shipped('experiments'), s.shipped('data_manifests'))")
    assert where.stdout.count(str(tmp_path/"site")) == 3, where.stderr
    done = run("-m", "dho_nb.cli", "distill", "--preset", "digits", "--epochs", "1")
    assert done.returncode == 0 and "accuracy" in done.stdout, done.stderr
