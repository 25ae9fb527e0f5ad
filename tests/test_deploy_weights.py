"α and β that are set at the export: in the file, on the card, for the thresholds and on the command line"
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import fails, picture
from dho_nb.core.files import read_json, write_json
from dho_nb.deploy.predictor import Predictor
from dho_nb.evaluation.interpolation import interpolation_scores
from dho_nb.evaluation.outputs import load_outputs
from dho_nb.evaluation.rejection import outputs_coverage
from dho_nb.runs.config import preset
from dho_nb.runs.run import distill
from dho_nb.students.dual_head import build_student, load_student, save_student

pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
from dho_nb.deploy.export import export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return distill(preset("digits", epochs=1, views=2, validation="full"), tmp_path_factory.mktemp("run")/"run", "none").folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5): picture(folder/f"{i}.png", i)
    return folder


def saved(file, heads=2, **facts):
    student = build_student("tiny", 3, heads, size=16)
    torch.manual_seed(0)
    for head in filter(None, (student.model.ce_head, student.model.kd_head)): torch.nn.init.normal_(head.weight, std=.3)
    save_student(student, file, spec="tiny", classes=["cat", "dog", "cow"], **dict(dict(alpha=.3, beta=.5), **facts))
    return file


def facts_of(file):
    import onnx
    return json.loads(next(p for p in onnx.load(file).metadata_props if p.key == "dho_nb").value)


def test_the_file_answers_with_the_weights_that_were_set(photos, tmp_path):
    import onnxruntime
    pixels = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    export(saved(tmp_path/"s.safetensors"), tmp_path/"out", images=photos, alpha=.9, beta=2.)
    session = onnxruntime.InferenceSession(tmp_path/"out"/"model.onnx")
    both, ce, kd = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(both, .9*ce + .1*kd, atol=1e-6)
    export(tmp_path/"s.safetensors", tmp_path/"own", images=photos)
    own = onnxruntime.InferenceSession(tmp_path/"own"/"model.onnx").run(None, {"pixels": pixels})
    np.testing.assert_array_equal(own[1], ce)
    assert (own[2].max(-1) > kd.max(-1)).all() and np.abs(own[0] - both).max() > .01
    facts = facts_of(tmp_path/"out"/"model.onnx")
    assert [facts[k] for k in ("alpha", "beta", "trained_alpha", "trained_beta")] == [.9, 2., .3, .5]
    assert "trained_alpha" not in facts_of(tmp_path/"own"/"model.onnx")
    assert [Predictor.from_pretrained(tmp_path/"out", "cpu").facts[k] for k in ("alpha", "trained_beta")] == [.9, .5]


def test_every_kind_of_file_has_them_and_one_weight_may_be_set_alone(photos, tmp_path):
    saved(tmp_path/"s.safetensors")
    for kind in ("safetensors", "torch-export", "onnx"): export(tmp_path/"s.safetensors", tmp_path/"out", kind, images=photos, alpha=1)
    facts = load_student(tmp_path/"out"/"model.safetensors")[1]
    assert (facts["alpha"], facts["beta"], facts["trained_alpha"]) == (1, .5, .3)
    export(tmp_path/"out"/"model.safetensors", tmp_path/"again", images=photos, beta=3)
    assert [facts_of(tmp_path/"again"/"model.onnx")[k] for k in ("alpha", "beta", "trained_alpha", "trained_beta")] == [1, 3, .3, .5], "training's own stay known"
    card = (tmp_path/"out"/"README.md").read_text()
    assert "with α = 1 and β = 0.5. Both were set by hand at the export. Training left α = 0.3 and β = 0.5." in card
    export(tmp_path/"s.safetensors", tmp_path/"same", images=photos, alpha=.3, beta=.5)
    assert "by hand" not in (tmp_path/"same"/"README.md").read_text()


def test_a_folder_has_one_pair_of_weights(photos, tmp_path):
    saved(tmp_path/"s.safetensors")
    export(tmp_path/"s.safetensors", tmp_path/"out", images=photos)
    fails(lambda: export(tmp_path/"s.safetensors", tmp_path/"out", "safetensors", images=photos, alpha=.9), "holds an export with α = 0.3 and β = 0.5", "choose another folder")
    assert not (tmp_path/"out"/"model.safetensors").exists()
    write_json(tmp_path/"out"/"export.json", dict(read_json(tmp_path/"out"/"export.json"), alpha="all"))
    fails(lambda: export(tmp_path/"s.safetensors", tmp_path/"out", images=photos), "alpha cannot be 'all'")


@pytest.mark.parametrize("weights", [dict(alpha=1.5), dict(alpha=-.1), dict(alpha=float("nan")), dict(beta=0.), dict(beta=-1.), dict(beta=float("inf")), dict(beta=float("nan"))])
def test_weights_out_of_range_leave_no_file(photos, tmp_path, weights):
    saved(tmp_path/"s.safetensors")
    fails(lambda: export(tmp_path/"s.safetensors", tmp_path/"out", images=photos, **weights), "α lies between 0 and 1, β between 1e-9 and 1e9")
    assert not (tmp_path/"out").exists()


def test_a_single_head_has_no_weights(photos, tmp_path):
    fails(lambda: export(saved(tmp_path/"s.safetensors", heads=1), tmp_path/"out", images=photos, alpha=.5), "s.safetensors has one head", "leave alpha and beta out")


@pytest.mark.parametrize("wrong", [dict(trained_alpha="<b>"), dict(trained_alpha=2.), dict(trained_alpha=.5, trained_beta=-1)])
def test_a_file_that_lies_about_its_training_is_refused(tmp_path, wrong):
    fails(lambda: Predictor.from_pretrained(saved(tmp_path/"s.safetensors", **wrong), "cpu"), "no valid trained_")


def test_the_card_has_the_figures_and_thresholds_of_these_weights(run, tmp_path, capsys):
    from dho_nb.cli.main import main
    assert main(["export", str(run), "--alpha", "0.05", "--beta", "0.7", "--out", str(tmp_path/"out"), "--check", "20"]) == 0
    card, result = (tmp_path/"out"/"README.md").read_text(), read_json(run/"result.json")
    outputs = load_outputs(run/"outputs.safetensors")[0]
    split = pd.read_csv(run/"predictions.csv")["split"].to_numpy()
    part = lambda name: outputs.only(torch.from_numpy(split == name))
    scores = interpolation_scores(part("test"), .05, .7).loc["both"]
    assert abs(scores["accuracy"] - result["accuracy"]) + abs(scores["ece"] - result["ece"]) > 1e-3, "else the test shows nothing"
    found = dict(re.findall(r"type: (accuracy|expected_calibration_error)\n\s+value: ([\d.e-]+)", card))
    assert np.allclose([float(found["accuracy"]), float(found["expected_calibration_error"])], scores[["accuracy", "ece"]].astype(float), atol=1e-4)
    assert f"{round(scores['accuracy']*result['tested'])} of {result['tested']}" in card.split("| both")[1].split("\n")[0]
    assert "set by hand at the export; before that chosen on the validation split" in card
    curve = facts_of(tmp_path/"out"/"model.onnx")["coverage"]
    assert curve == outputs_coverage(part("val"), .05, .7, "validation images") != load_student(run/"model.safetensors")[1]["coverage"]
    assert main(["export", str(run), "--alpha", "2"]) == 2 and "alpha" in capsys.readouterr().err


def test_thresholds_that_cannot_be_measured_again_are_left_out(run, photos, tmp_path):
    shutil.copyfile(run/"model.safetensors", tmp_path/"m.safetensors")
    export(tmp_path/"m.safetensors", tmp_path/"own", images=photos)
    export(tmp_path/"m.safetensors", tmp_path/"out", images=photos, alpha=.05)
    assert facts_of(tmp_path/"own"/"model.onnx")["coverage"] and facts_of(tmp_path/"out"/"model.onnx")["coverage"] is None
    assert "There are no thresholds for `--unknown`: none were measured with these α and β." in (tmp_path/"out"/"README.md").read_text()
