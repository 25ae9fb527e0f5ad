"The demonstration and the experiment notebooks, through papermill"
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import papermill
import pytest
import torch

from conftest import ROOT
from dho_nb.cli.main import main
from dho_nb.runs.config import preset
from dho_nb.runs.presets import PRESETS
from dho_nb.reports.results import load_results
from dho_nb.reports.tables import results_table
from dho_nb.runs.run import Run
from dho_nb.core.errors import DhoError
from dho_nb.core.files import read_json
from dho_nb.sweeps.worker import run_notebook_in_worker
from dho_nb.teachers.clip import load_teacher, teacher_logits


def test_a_small_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DHO_PROGRESS", "lines")
    monkeypatch.setitem(PRESETS["digits"], "epochs", 1)
    folder, command = tmp_path/"demo", ["demo", "--seeds", "1", "--out", str(tmp_path/"demo")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4/4  " in said and "teacher, zero-shot" in said and str(folder/"table.csv") in said
    written = pd.read_csv(folder/"table.csv")
    assert sorted(written["method"]) == ["ce", "dho", "kd", "sho"] and set(written["seed"]) == {0}
    assert {p.name for p in folder.iterdir() if p.is_file() and p.name != ".sweep.lock"} == {"table.csv", "sweep.json", "comparison.png",
                                                                 "comparison.svg", "comparison.pdf"}
    left = [line.split()[0] for line in said.split("left behind:")[1].splitlines() if line.strip()]
    assert len(left) >= 7 and all(Path(p).exists() for p in left if "*" not in p)
    for run in folder.glob("*/run.json"):
        shown = [o for c in read_json(run.parent/"notebook.ipynb")["cells"] for o in c.get("outputs", [])
                 if "image/png" in o.get("data", {})]
        assert len(shown) >= 2
        method = read_json(run)["config"]["method"]
        assert read_json(run.parent/"result.json")["accuracy"] == written.set_index("method").loc[method, "accuracy"]
    assert "teacher, zero-shot" in str(results_table(load_results(folder), columns=(), teacher=True))
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("*/*")}
    assert main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*")} == stamps, "what is done is not repeated"


def test_an_unknown_parameter_stops_the_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'epochs'"):
        papermill.execute_notebook(ROOT/"nbs/experiments/distill.ipynb", tmp_path/"out.ipynb",
                                   dict(epoch=1, out=str(tmp_path/"run")), progress_bar=False, kernel_name="python3")
    assert not (tmp_path/"run").exists()


def test_a_notebook_that_fails_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_DEVICE", "cuda:99")
    with pytest.raises(DhoError, match="cuda:99"): run_notebook_in_worker(preset("digits", epochs=1), tmp_path/"run")
    assert (tmp_path/"run"/"failed.ipynb").exists() and not (tmp_path/"run"/"result.json").exists()
    monkeypatch.delenv("DHO_DEVICE")
    assert run_notebook_in_worker(preset("digits", epochs=1), tmp_path/"run")["steps"] == 17
    with pytest.raises(DhoError, match="method was 'dho', now 'ce'"):
        run_notebook_in_worker(preset("digits", epochs=1, method="ce"), tmp_path/"run")
    assert (tmp_path/"run"/"notebook.ipynb").exists() and not (tmp_path/"run"/"failed.ipynb").exists()


def test_training_the_bundled_teacher_is_repeatable(tmp_path):
    for name in ("one", "two"):
        papermill.execute_notebook(ROOT/"nbs/experiments/train_digits_teacher.ipynb", tmp_path/f"{name}.ipynb",
                                   dict(steps=8, out=str(tmp_path/name)), progress_bar=False, kernel_name="python3")
    first, second = ((tmp_path/name/"open_clip_model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    shutil.rmtree(tmp_path/"one")


def test_teacher_logits_are_float32_whatever_the_precision(tmp_path):
    run = Run(preset("digits", epochs=1, precision="bf16", views="live"), tmp_path/"run", mode="none")
    with torch.no_grad(): logits = run.build_trainer().teacher_fn(run.trainer.streams[0]).logits
    half, full = (t.encode_images(run.trainer.streams[0].teacher)
                  for t in (run.open_teacher().load(), load_teacher("digits")))
    assert logits.dtype == half.dtype == torch.float32 and not torch.equal(half, full), "half precision leaves a trace"
    torch.testing.assert_close(logits, teacher_logits(half, run.open_teacher().class_embeddings()), rtol=0, atol=0)
    assert torch.nn.functional.cosine_similarity(half, full).min() > .999
    assert run.train()["loss"].notna().all()


@pytest.mark.parametrize("notebook", ["distill", "evaluate_checkpoint", "train_digits_teacher"])
def test_papermill_knows_every_parameter_of_an_experiment(notebook, caplog):
    "A second equals sign in a parameter's line hides it from papermill, which then warns of an unknown parameter"
    path = ROOT/"nbs"/"experiments"/f"{notebook}.ipynb"
    cell = next(c for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", []))
    names = re.findall(r"^(\w+) *=", "".join(cell["source"]), flags=re.M)
    assert names and set(papermill.inspect_notebook(str(path))) == set(names) and not caplog.records
