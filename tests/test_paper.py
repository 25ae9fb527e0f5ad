"The paper notebooks: a grid of small runs, gone on with, and shown again from its tables alone"
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT, picture
from dho_nb.manifests import Manifest, write_manifest

NOTEBOOK = ROOT/"nbs"/"paper"/"eurosat.ipynb"
CLASSES = [f"land {i}" for i in range(10)]


@pytest.fixture
def paper(tmp_path):
    "Executes the notebook on a hundred small pictures, for some seeds; returns the table of results"
    splits = ["train"]*6 + ["val"]*2 + ["test"]*2
    found = [(f"{c}/{i}.png", c, s) for c in range(10) for i, s in enumerate(splits)]
    for k, (path, *_) in enumerate(found): picture(tmp_path/"images"/path, seed=k, size=(16, 16))
    write_manifest(Manifest("eurosat_rest", pd.DataFrame(found, columns=["path", "label", "split"]), CLASSES), tmp_path/"lists")
    asked = dict(students=["resnet18"], labels=[1, 0.5], minutes=5, methods=["kd", "dho"], images=str(tmp_path/"images"),
                 data=str(tmp_path/"lists"), runs=str(tmp_path/"runs"), results=str(tmp_path/"results"),
                 changes=dict(student="tiny", epochs=1, size=16))

    def execute(seeds):
        (tmp_path/"asked.json").write_text(json.dumps(dict(asked, seeds=seeds)))
        done = subprocess.run([sys.executable, "-m", "papermill", NOTEBOOK, tmp_path/"executed.ipynb", "-k", "python3", "-f", tmp_path/"asked.json",
                               "--no-progress-bar", "--cwd", ROOT], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "DHO_CACHE": str(tmp_path/"cache"), "DHO_DEVICE": "cpu", "DHO_PROGRESS": "none", "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-3000:]
        return pd.read_csv(tmp_path/"results"/"eurosat.csv", dtype=str, keep_default_na=False)
    return execute


def test_what_the_tables_hold_is_not_done_again(paper, tmp_path):
    first = paper(seeds=[0])
    assert sorted(zip(first["method"], first["labels"])) == [("dho", "1-shot"), ("dho", "50%"), ("kd", "none")]
    assert len(list((tmp_path/"runs").glob("*/result.json"))) == 3 + 2 and not list((tmp_path/"runs").glob("*/model.safetensors"))
    assert pd.read_csv(tmp_path/"results"/"eurosat_conflict.csv").groupby("method")["step"].count().nunique() == 1, "two accounts of gradients"
    shutil.rmtree(tmp_path/"runs")
    both = paper(seeds=[0, 1])
    assert len(list((tmp_path/"runs").glob("*/result.json"))) == 3 and len(both) == 6
    assert both[both["seed"] == "0"].reset_index(drop=True).equals(first)
    with np.load(tmp_path/"results"/"eurosat_right.npz", allow_pickle=False) as held:
        right = dict(zip(held["mark"].tolist(), np.unpackbits(held["right"], axis=1)[:, :20].mean(1)))
    assert [right[m] for m in both["mark"]] == pytest.approx(both["accuracy"].astype(float).tolist())
