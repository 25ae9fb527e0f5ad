"Real photographs and real weights: EuroSAT and an ImageNet MobileNetV2, where they are at hand"
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, SHARED
from dho_nb.runs.config import make_config
from dho_nb.data.manifests import manifest_from_coop, missing_images, manifest_summary, write_manifest
from dho_nb.data.label_subsets import labeled_subset
from dho_nb.losses.methods import METHODS
from dho_nb.runs.run import distill
from dho_nb.students.backbones import build_backbone
from dho_nb.students.dual_head import load_student

pytestmark = pytest.mark.skipif(not (SHARED/"eurosat.tar").exists(),
                                reason="needs ../shared/data/eurosat.tar (EuroSAT in the CoOp layout)")
MOBILENET = SHARED/"weights"/"mobilenetv2_imagenet_tf.npz"


def test_the_coop_split_is_the_papers(eurosat):
    manifest = manifest_from_coop(eurosat/"split_zhou_EuroSAT.json", prefix="2750")
    assert manifest_summary(manifest)["labeled"].tolist() == [13500, 5400, 8100] and len(manifest.classes) == 10
    assert len(missing_images(manifest, eurosat)) == 0
    subsets = [set(labeled_subset(manifest, shots=k).rows) for k in (1, 2, 4, 8, 16)]
    assert [len(s) for s in subsets] == [10, 20, 40, 80, 160] and all(a < b for a, b in zip(subsets, subsets[1:]))


def test_the_way_of_a_new_user(dho, eurosat, tmp_path):
    photos, rng = tmp_path/"photos", np.random.default_rng(0)
    photos.mkdir()
    files = sorted((eurosat/"2750").rglob("*.jpg"))
    taken = [files[i] for i in rng.choice(len(files), 300, replace=False)]
    for f in taken: (photos/f.name).write_bytes(f.read_bytes())
    labels = pd.DataFrame([(f.name, f.parent.name) for f in taken], columns=["path", "label"]).groupby("label").head(4)
    labels.to_csv(tmp_path/"labels.csv", index=False)
    code, out, err = dho("distill", "--images", photos, "--labels", tmp_path/"labels.csv", "--teacher", "RN50/random",
                         "--student", "timm:mobilenetv2_100", "--student-weights", MOBILENET, "--student-args",
                         '{"pad_type": "same", "bn_eps": 0.001}', "--size", "64", "--epochs", "1", "--out",
                         tmp_path/"out")
    assert code == 0, err
    said = pd.read_csv(tmp_path/"out"/"predictions.csv", keep_default_na=False)
    assert len(said) == 300 and (said["label"] != "").sum() == len(labels)
    student, facts = load_student(tmp_path/"out"/"model.safetensors")
    assert facts["classes"] == sorted(labels["label"].unique())
    assert student.model(torch.zeros(1, 3, 64, 64))[0].shape == (1, 10)
    assert json.loads((tmp_path/"out"/"result.json").read_text())["accuracy"] is None


@pytest.fixture(scope="module")
def small(eurosat, tmp_path_factory):
    "A manifest of 30 training, 10 validation and 10 test photographs per class"
    whole = manifest_from_coop(eurosat/"split_zhou_EuroSAT.json", prefix="2750", templates=["a centered satellite photo of {}."])
    kept = (whole.table.groupby(["split", "label"], group_keys=False)[["id", "path", "label", "split"]]
            .apply(lambda t: t.head(30 if t["split"].iloc[0] == "train" else 10)))
    return write_manifest(replace(whole, name="small", table=kept), tmp_path_factory.mktemp("small")), eurosat


def test_every_method_trains_on_photographs_by_one_parameter(small, tmp_path):
    made = {m: distill(make_config(dict(
        dataset=str(small[0]), root=str(small[1]), shots=4, method=m, teacher=str(ROOT/"nbs"/"paper"/"eurosat_teacher"),
        views=2, student="tiny", student_weights="", size=32, epochs=8, lr=3e-3, batch_labeled=32, validation="few",
        precision="fp32")), tmp_path/m, "none").result for m in METHODS}
    told = pd.DataFrame(made).T
    floor = [.1 if m == "kd-feature" else .25 for m in told.index]
    assert (told["accuracy"].astype(float) > floor).all(), told["accuracy"]
    assert told["tested"].eq(100).all()
    assert told["teacher_accuracy"].dropna().astype(float).min() > .5, "the teacher was trained on such pictures"
    assert set(told["alpha"][[m for m in METHODS if METHODS[m].answers == "ce"]]) == {1.0}
    assert told.loc["sho-tuned", "ce_weight"] in METHODS["sho-tuned"].lambdas


def test_the_real_mobilenet_fits_both_libraries():
    ours = build_backbone("timm:mobilenetv2_100", str(MOBILENET), 96, {"bn_eps": 1e-3})
    theirs = build_backbone("torchvision:mobilenet_v2", str(MOBILENET), 96)
    for m in theirs.module.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.eps = 1e-3
    images = torch.rand(2, 3, 96, 96)*2 - 1
    with torch.no_grad(): a, b = ours.module.eval()(images), theirs.module.eval()(images)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
