"Pictures of none of the classes: thresholds from held-out images, from a run or an estimate to the script beside an ONNX file"
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import picture
from dho_nb.core.errors import DhoError
from dho_nb.core.files import read_json, write_json
from dho_nb.deploy.checkpoints import load_checkpoint
from dho_nb.deploy.predictor import load_pixels, Predictor
from dho_nb.evaluation.rejection import COVERAGES, coverage_curve, rejection_threshold
from dho_nb.runs.config import preset
from dho_nb.runs.run import distill
from dho_nb.students.dual_head import build_student, save_student

CURVE = coverage_curve(torch.linspace(.001, .2, 99).double(), torch.ones(99).bool(), "images of a test")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("DHO_DEVICE", "cpu"), monkeypatch.setenv("DHO_PROGRESS", "none")


def model(file, heads=2, coverage=CURVE):
    "A random student whose classes include one called unknown"
    student = build_student("tiny", 3, heads, size=16)
    torch.manual_seed(1)
    for head in filter(None, (student.model.ce_head, student.model.kd_head)): torch.nn.init.normal_(head.weight, std=.5)
    save_student(student, file, spec="tiny", classes=["cat", "dog", "unknown"], alpha=.3, beta=.5, coverage=coverage)
    return file


def pictures(folder, count=20):
    return [picture(folder/f"{i}.png", seed=i) for i in range(count)]


def splitting(file, files, rejected, **kinds):
    "The model again, with a threshold above which all but `rejected` of the files lie"
    predictor = Predictor.from_pretrained(model(file, **kinds))
    scores = sorted(predictor._scores(predictor.answer(np.stack([load_pixels(f, predictor.preprocess) for f in files]))).tolist())
    return model(file, coverage=dict(CURVE, rows=[[c, sum(scores[rejected - 1:rejected + 1])/2, n, r] for c, _, n, r in CURVE["rows"]]), **kinds)


def test_a_run_with_validation_images_has_thresholds_and_one_without_has_none(tmp_path):
    asked = distill(preset("digits", epochs=1, views=2, validation="full"), tmp_path/"val", "none")
    facts = load_checkpoint(tmp_path/"val")[1]
    assert facts["coverage"]["images"] == 200 and facts["coverage"]["source"] == "validation images"
    files = [asked.root/p for p in asked.manifest.table["path"][asked.manifest.table["split"] == "val"]]
    said = Predictor.from_pretrained(tmp_path/"val").predict(files, unknown=.8, mode="none")
    answered = int((said["unknown"] == False).sum())
    assert abs(answered - facts["coverage"]["rows"][COVERAGES.index(.8)][2]) <= 1 and 160 <= answered <= 162
    truth = np.array(asked.manifest.classes)[asked.manifest.table["label"][asked.manifest.table["split"] == "val"]]
    assert abs((said["prediction"] == truth).sum() - facts["coverage"]["rows"][COVERAGES.index(.8)][3]) <= 1
    distill(preset("digits", epochs=1, views=2), tmp_path/"none", "none")
    with pytest.raises(DhoError, match="nothing was held out from its training"):
        Predictor.from_pretrained(tmp_path/"none").predict(files, unknown=.8, mode="none")


def test_a_class_may_be_called_unknown(tmp_path, capsys):
    from dho_nb.cli.main import main
    files = pictures(tmp_path/"photos")
    (tmp_path/"photos"/"words.png").write_text("no picture")
    assert main(["predict", str(splitting(tmp_path/"m.safetensors", files, 9)), str(tmp_path/"photos"), "--unknown", "0.5", "--out", str(tmp_path/"p.csv")]) == 1
    said = pd.read_csv(tmp_path/"p.csv", dtype=str, keep_default_na=False)
    assert said["unknown"].value_counts().to_dict() == {"True": 9, "False": 11, "": 1} and said.loc[said["problem"] != "", "unknown"].tolist() == [""]
    assert ((said["prediction"] == "") == (said["unknown"] != "False")).all() and "unknown" in {*said["ce_prediction"], *said["kd_prediction"]}
    assert (said["top"] != "").sum() == len(files)  # the likely classes of an unknown picture stay
    main(["predict", str(tmp_path/"m.safetensors"), str(files[0])])
    assert "unknown" not in capsys.readouterr().out.splitlines()[0]
    for share, words in (("0.3", "0.5 to 0.99"), ("0.999", "0.5 to 0.99")):
        assert main(["predict", str(tmp_path/"m.safetensors"), str(files[0]), "--unknown", share]) != 0 and words in capsys.readouterr().err


@pytest.mark.parametrize("heads", [1, 2])
def test_the_exported_file_and_the_script_beside_it_reject_the_same_pictures(heads, tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    from dho_nb.deploy.export import export
    files = [str(f) for f in pictures(tmp_path/"photos", 40)]
    export(splitting(tmp_path/"m.safetensors", files, 15, heads=heads), tmp_path/"out", images=files)
    own, graph = (Predictor.from_pretrained(f).predict(files, unknown=.9, mode="none") for f in (tmp_path/"m.safetensors", tmp_path/"out"))
    assert own["unknown"].tolist() == graph["unknown"].tolist() and own["unknown"].sum() == 15
    ask = [sys.executable, "predict_onnx.py", "model.onnx", *files[:3], "--unknown"]
    done = subprocess.run([*ask, "0.9", *files[3:]], cwd=tmp_path/"out", capture_output=True, text=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [l[0] for l in lines] == files and [l[3] == "True" for l in lines] == own["unknown"].tolist()
    assert all((l[1] == "") == (l[3] == "True") for l in lines)
    refused = subprocess.run([*ask, "0.2", *files], cwd=tmp_path/"out", capture_output=True, text=True)
    assert refused.returncode == 1 and "give 0.5 to 0.99" in refused.stderr and "99 held-out photos" in refused.stderr and not refused.stdout
    card = (tmp_path/"out"/"README.md").read_text()
    assert "## Unknown pictures" in card and "99 images of a test" in card and "90 of 99 (95 %: 84–95)" in card


def test_int8_has_thresholds_of_its_own_where_the_held_out_images_are_at_hand(tmp_path, capsys):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    from dho_nb.cli.main import main
    from dho_nb.deploy.export import export
    run = distill(preset("digits", epochs=1, views=2, validation="full"), tmp_path/"run", "none")
    assert main(["export", str(run.folder), "--int8", "--check", "20"]) in (0, None)
    said, folder = " ".join(capsys.readouterr().out.split()), run.folder/"export"
    tested = run.result["tested"]
    assert f"It was tried on {tested} test images of digits. It is right about " in said and said.count(f" of {tested} (95 %: ") == 3
    assert "Its thresholds for --unknown were measured on 200 validation images." in said and "`" not in said
    float32, int8 = (Predictor.from_pretrained(folder/name) for name in ("model.onnx", "model-int8.onnx"))
    assert float32.facts["coverage"] == load_checkpoint(run.folder)[1]["coverage"] and int8.facts["coverage"]["images"] == 200
    assert {k: v for k, v in int8.facts.items() if k != "coverage"} == {k: v for k, v in float32.facts.items() if k != "coverage"}
    table = run.manifest.table[run.manifest.table["split"] == "val"]
    files, truth = [run.root/p for p in table["path"]], np.array(run.manifest.classes)[table["label"]]
    for share in (.8, .95):  # what the file states of its thresholds is what it does
        answers = int8.predict(files, unknown=share, mode="none")
        _, _, answered, right = next(r for r in int8.facts["coverage"]["rows"] if r[0] == share)
        assert (answers["unknown"] == False).sum() == answered and (answers["prediction"] == truth).sum() == right
    shared = dict(check=20, out=tmp_path/"other", int8=True, images=[str(f) for f in files[:20]])
    made = export(run.folder, **shared, calibrate=[str(f) for f in files[:20]])  # no dataset is opened
    assert made.loc["model-int8.onnx", "thresholds"] == "model.onnx"
    assert "Its thresholds for `--unknown` are those of model.onnx: for int8 they were not measured." in (tmp_path/"other"/"README.md").read_text()
    other, kept = (Predictor.from_pretrained(tmp_path/"other"/name).facts for name in ("model.onnx", "model-int8.onnx"))
    assert kept == other == float32.facts
    assert "It is right about" not in (tmp_path/"other"/"README.md").read_text(), "they have no labels"
    assert "Its prediction is the same for " in (tmp_path/"other"/"README.md").read_text()


def test_int8_keeps_thresholds_that_cross_fitting_gave_and_has_none_without(tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    from dho_nb.deploy.export import export
    from dho_nb.runs.cross_fit import cross_fit
    config = preset("digits", shots=4, fraction=0., epochs=1, views=2)
    run = distill(config, tmp_path/"run", "none")
    made = export(run.folder, int8=True, check=20, score=50)
    card = (run.folder/"export"/"README.md").read_text()
    assert made.loc["model-int8.onnx", "thresholds"] is None and "Its thresholds" not in card and "same for" in card
    fit = cross_fit(config, 2, tmp_path/"fit", mode="none")
    made = export(run.folder, int8=True, check=20, score=50, estimate=fit.folder)
    assert made.loc["model-int8.onnx", "thresholds"] == "model.onnx"
    assert Predictor.from_pretrained(run.folder/"export"/"model-int8.onnx").facts["coverage"] == fit.coverage


def test_an_estimate_gives_an_export_its_thresholds_also_when_it_is_made_again(tmp_path):
    from dho_nb.deploy.export import export
    from dho_nb.runs.cross_fit import cross_fit
    config = preset("digits", shots=4, fraction=0., epochs=1, views=2)
    run, fit = distill(config, tmp_path/"run", "none"), cross_fit(config, 2, tmp_path/"fit", mode="none")
    for estimate in (fit.folder, ""):
        export(run.folder, kind="safetensors", check=5, estimate=estimate)
        facts = load_checkpoint(run.folder/"export")[1]
        assert facts["coverage"] == fit.coverage and facts["coverage"]["images"] == 40
    assert load_checkpoint(run.folder)[1]["coverage"] is None
    with pytest.raises(DhoError, match="99 held-out images are needed, and there were 40"): rejection_threshold(facts["coverage"], .99)
    write_json(fit.folder/"estimate.json", {**read_json(fit.folder/"estimate.json"), "coverage": {"rows": "all"}})
    with pytest.raises(DhoError, match="no valid coverage curve"): export(run.folder, kind="safetensors", check=5, estimate=fit.folder)


@pytest.mark.parametrize("damaged", ["text", [], {"rows": [[.5, "a", 1, 1]]}, {**CURVE, "rows": [[.5, float("nan"), 1, 1]]}, {**CURVE, "images": 1}])
def test_damaged_thresholds_of_a_file_are_named(damaged, tmp_path):
    predictor = Predictor.from_pretrained(model(tmp_path/"m.safetensors", coverage=json.loads(json.dumps(damaged))))
    with pytest.raises(DhoError, match="no valid coverage curve"): predictor.predict(picture(tmp_path/"a.png"), unknown=.9, mode="none")
    assert len(predictor.predict(picture(tmp_path/"a.png"), mode="none")) == 1
