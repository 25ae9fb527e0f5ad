"What the tests share: small pictures, small runs, the command line in a process of its own"
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent/"shared"/"data"
SMALL = ["--teacher", "digits", "--student", "tiny", "--student-weights", "", "--size", "16", "--epochs",
         "2", "--flip", "0"]
OPTIONS = dict(teacher="digits", student="tiny", student_weights="", size=16, epochs=1, flip=0.)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def dho(tmp_path):
    "Runs `dho` in a process of its own, in an empty folder; returns exit code, stdout, stderr"
    def run(*argv, cwd=tmp_path, **env):
        done = subprocess.run([sys.executable, "-m", "dho_nb.cli.main", *map(str, argv)], cwd=cwd, capture_output=True,
                              text=True, timeout=600, env={**os.environ, "DHO_RUNS": str(tmp_path/"runs"),
                                                           "DHO_PROGRESS": "lines", "DHO_DEVICE": "cpu", **env})
        return done.returncode, done.stdout, done.stderr
    return run


def project_copy(to):
    "The project without what was built, trained or fetched in it"
    skip = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", ".ipynb_checkpoints", "_proc", "_docs", "_site")
    own = lambda folder: ("runs", "data")*(Path(folder) == ROOT)  # rooms of nbs/ and dho_nb/ have these names, too
    return shutil.copytree(ROOT, to, ignore=lambda folder, names: {*skip(folder, names), *own(folder)})


def set_everywhere(monkeypatch, room="", **values):
    "Set names in every loaded module of a room that holds them"
    for name, value in values.items():
        holders = [m for n, m in sorted(sys.modules.items()) if n.startswith(f"dho_nb.{room}") and name in vars(m)]
        assert holders, f"no module of dho_nb.{room} holds {name}"
        for m in holders: monkeypatch.setattr(m, name, value)


def fails(call, *said):
    "Check that a call ends in a DhoError that says all of this"
    from dho_nb.core.errors import DhoError
    with pytest.raises(DhoError) as found: call()
    assert all(s in str(found.value) for s in said), found.value


def drawn_seed():
    "A seed by the clock, printed; DHO_SEED=… repeats a failure"
    seed = int(os.environ.get("DHO_SEED", time.time_ns() % 10**9))
    print(f"DHO_SEED={seed}")
    return seed


def picture(file, seed=0, size=(40, 30), mode="RGB", **save):
    "A small picture with something in it"
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, **save)
    return file


def odd_tree(root):
    "Four pictures by their names, and files that are none by theirs"
    for name in ("cat", "dog"):
        for i in range(2): picture(root/name/f"{i}.png", seed=i + 9*(name == "dog"))
    for i, name in enumerate(("cat/a.jpe", "cat/b", "dog/c.JPG_large")): picture(root/"new.jpg", seed=50 + i).rename(root/name)
    for name in ("cat/._0.png", "cat/.hidden.png", "dog/Thumbs.db", "notes.txt"): (root/name).write_text("none")
    for name in ("lost+found", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "@eaDir", "__MACOSX"):
        picture(root/name/"old.png", seed=70)
    return root


@pytest.fixture
def tree(tmp_path):
    "A class-per-folder tree of 2 x 12 pictures"
    for name in ("cat", "dog"):
        for i in range(12): picture(tmp_path/"tree"/name/f"{i}.png", seed=i + 100*(name == "dog"))
    return tmp_path/"tree"


@pytest.fixture(scope="session")
def eurosat(tmp_path_factory):
    "EuroSAT's photographs, unpacked once"
    if not (SHARED/"eurosat.tar").exists(): pytest.skip("needs ../shared/data/eurosat.tar (EuroSAT in the CoOp layout)")
    root = tmp_path_factory.mktemp("data")
    with tarfile.open(SHARED/"eurosat.tar") as archive:
        archive.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return root/"eurosat"
