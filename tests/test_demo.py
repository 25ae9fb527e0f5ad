"The demonstration and the experiment notebooks, through papermill"
import json
import shutil

import pandas as pd
import papermill
import pytest
import torch

from conftest import ROOT
from dho_nb.cli import main
from dho_nb.configs import preset
from dho_nb.presets import PRESETS
from dho_nb.runs import Run, run_notebook, summarise
from dho_nb.settings import DhoError
from dho_nb.teachers import load_teacher, teacher_logits


def test_a_small_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS["digits"], "epochs", 1)
    command = ["demo", "--seeds", "1", "--out", str(tmp_path/"demo")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "dho  seed 0: accuracy" in said and "teacher, zero-shot" in said and str(tmp_path/"demo"/"table.csv") in said
    written = pd.read_csv(tmp_path/"demo"/"table.csv")
    assert list(written.columns[:5]) == ["dataset", "method", "labels", "seed", "accuracy"] and list(written["method"]) == ["ce", "kd", "sho", "dho"]
    assert {p.name for p in (tmp_path/"demo").iterdir() if p.is_file()} == {"table.csv", "comparison.png", "crops.png", "curves.png", "surface.png", "reliability.png"}
    assert list(summarise(written).index) == ["teacher, zero-shot", "ce", "kd", "sho", "dho"]
    notebooks = sorted((tmp_path/"demo").glob("*/notebook.ipynb"))
    assert len(notebooks) == 4
    pictures = [o for c in json.loads(notebooks[0].read_text())["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path/"demo").glob("*/*")}
    assert main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/"demo").glob("*/*")} == stamps, "what is done is not repeated"


def test_an_unknown_parameter_stops_the_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'epochs'"):
        papermill.execute_notebook(ROOT/"nbs/experiments/distill.ipynb", tmp_path/"out.ipynb", dict(epoch=1, out=str(tmp_path/"run")), progress_bar=False, kernel_name="python3")
    assert not (tmp_path/"run").exists()


def test_a_notebook_that_fails_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_DEVICE", "cuda:99")
    with pytest.raises(DhoError, match="cuda:99"): run_notebook(preset("digits", epochs=1), tmp_path/"run")
    assert (tmp_path/"run"/"failed.ipynb").exists() and not (tmp_path/"run"/"result.json").exists()
    monkeypatch.delenv("DHO_DEVICE")
    assert run_notebook(preset("digits", epochs=1), tmp_path/"run")["steps"] == 17
    with pytest.raises(DhoError, match="method was 'dho', now 'ce'"): run_notebook(preset("digits", epochs=1, method="ce"), tmp_path/"run")
    assert (tmp_path/"run"/"notebook.ipynb").exists() and not (tmp_path/"run"/"failed.ipynb").exists()


def test_training_the_bundled_teacher_is_repeatable(tmp_path):
    for name in ("one", "two"):
        papermill.execute_notebook(ROOT/"nbs/experiments/train_digits_teacher.ipynb", tmp_path/f"{name}.ipynb", dict(steps=8, out=str(tmp_path/name)), progress_bar=False, kernel_name="python3")
    first, second = ((tmp_path/name/"open_clip_model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    shutil.rmtree(tmp_path/"one")


def test_teacher_logits_are_float32_whatever_the_precision(tmp_path):
    run = Run(preset("digits", epochs=1, precision="bf16", views="live"), tmp_path/"run", mode="none")
    with torch.no_grad(): logits = run.trainer.teach(run.trainer.streams[0]).logits
    half, full = (t.encode_images(run.trainer.streams[0].teacher) for t in (run.guidance.load(), load_teacher("digits")))
    assert logits.dtype == half.dtype == torch.float32
    torch.testing.assert_close(logits, teacher_logits(half, run.guidance.head), rtol=0, atol=0)
    assert torch.nn.functional.cosine_similarity(half, full).min() > .999
    assert run.train()["loss"].notna().all()
