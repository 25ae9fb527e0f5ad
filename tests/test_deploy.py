"Models in use: predictions, exported files in onnxruntime without this library, int8, and a stand-in for the Hub on the loopback"
import base64
import json
import os
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, SHARED, picture
from dho_nb.runs.config import make_config
from dho_nb.deploy.predictor import Predictor, deciding_head, load_pixels, write_predictions
from dho_nb.deploy.checkpoints import load_checkpoint, random_checkpoint
from dho_nb.data.manifests import manifest_from_coop, write_manifest
from dho_nb.runs.run import distill
from dho_nb.core.errors import DhoError
from dho_nb.students.dual_head import build_student, language_init, load_student, save_student
from dho_nb.data.transforms import Preprocess

pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
from dho_nb.deploy.export import (KINDS, SHARED as GOES_UP, TOLERANCE, export, largest_export_difference, unlabeled_export_images,
                                  push_to_hub, _reference_probabilities)

SCRIPT, MOBILENET = ROOT/"nbs"/"experiments"/"predict_onnx.py", SHARED/"weights"/"mobilenetv2_imagenet_tf.npz"
CLASSES = [f"kind {i}" for i in range(7)]
ALONE = ("import sys, runpy; [sys.modules.__setitem__(n, None) for n in ('dho_nb', 'torch', 'timm')]; "
         "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")


def run_alone(model, files):
    "What the script says, in a process that cannot import dho_nb or torch"
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, SCRIPT, model, *files], capture_output=True, text=True,
                          timeout=300, cwd=Path(model).parent)
    assert done.returncode == 0, done.stderr
    return pd.DataFrame([line.split("\t") for line in done.stdout.splitlines()],
                        columns=["file", "prediction", "probability"]).astype({"probability": float})


def saved(file, spec, size=0, heads=2, alpha=.3, beta=.5, args=None, **kinds):
    "A student with random weights that are large enough to have opinions"
    student = build_student(spec, len(CLASSES), heads, size=size, args=args, **kinds)
    torch.manual_seed(0)
    for head in filter(None, (student.model.ce_head, student.model.kd_head)):
        if hasattr(head, "weight") and isinstance(head.weight, torch.nn.Parameter):
            torch.nn.init.normal_(head.weight, std=.3)
    save_student(student, file, spec=spec, args=args, classes=CLASSES, alpha=alpha, beta=beta)
    return file


ARCHITECTURES = {
    "tiny": dict(spec="tiny", size=16), "one head": dict(spec="tiny", size=16, heads=1),
    "resnet18": dict(spec="resnet18", size=64),
    "mobilenetv2": dict(spec="timm:mobilenetv2_100", size=64, args=dict(pad_type="same", bn_eps=1e-3)),
    "torchvision": dict(spec="torchvision:mobilenet_v3_small", size=64),
    "vit_tiny": dict(spec="timm:vit_tiny_patch16_224", size=64),
    "open_clip ViT, cosine head": dict(spec="open_clip:ViT-S-32-alt", size=64, kd_head="cosine"),
    "CLIP ViT, reference head": dict(spec="dho_nb.deploy.checkpoints:clip_vit", size=16,
                                     args=dict(size=16, patch=4, width=64, layers=2, dim=32), kd_head="reference"),
    "mlp head": dict(spec="tiny", size=16, ce_head="mlp")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_graph_for_any_number_of_pictures_says_what_pytorch_says(tree, tmp_path, name):
    import onnxruntime
    file = saved(tmp_path/"student.safetensors", **ARCHITECTURES[name])
    made = export(file, tmp_path/"out", images=tree)
    assert made.loc["model.onnx", "checked"] == 24 and made.loc["model.onnx", "largest_difference"] < 1e-4
    (student, facts), session = load_checkpoint(file), onnxruntime.InferenceSession(tmp_path/"out"/"model.onnx")
    alpha, beta = (facts["alpha"], facts["beta"]) if facts["heads"] == 2 else (1., 1.)
    for count in (1, 2, 5):
        pixels = torch.randint(0, 256, (count, 3, *[student.preprocess.size]*2), dtype=torch.uint8,
                               generator=torch.Generator().manual_seed(count))
        with torch.no_grad(): ce, kd = student.model(student.preprocess.normalize(pixels))
        both = alpha*ce.softmax(-1) + (1 - alpha)*(kd/beta).softmax(-1)
        said = dict(zip([o.name for o in session.get_outputs()],
                        session.run(None, {"pixels": pixels.permute(0, 2, 3, 1).contiguous().numpy()})))
        np.testing.assert_allclose(said["probabilities"], both, atol=1e-4)
        np.testing.assert_allclose(said["probabilities"].sum(-1), 1, atol=1e-5)
        if facts["heads"] == 1: assert set(said) == {"probabilities"}
        else:
            np.testing.assert_allclose(said["kd"], (kd/beta).softmax(-1),
                                       atol=1e-4); np.testing.assert_allclose(said["ce"], ce.softmax(-1), atol=1e-4)


def test_alpha_and_beta_are_in_the_file(tree, tmp_path):
    import onnxruntime
    pixels = np.stack([load_pixels(f, Preprocess(16)) for f in sorted(tree.rglob("*.png"))])
    def probabilities(alpha, beta):
        place = tmp_path/f"{alpha}-{beta}"
        place.mkdir()
        export(saved(place/"s.safetensors", "tiny", 16, alpha=alpha, beta=beta), place/"out", images=tree)
        return onnxruntime.InferenceSession(place/"out"/"model.onnx").run(None, {"pixels": pixels})
    p, ce, kd = probabilities(1., .5)
    np.testing.assert_array_equal(p, ce)
    p, ce2, sharp = probabilities(.25, .1)
    np.testing.assert_allclose(p, .25*ce2 + .75*sharp, atol=1e-6)
    np.testing.assert_array_equal(ce, ce2)
    assert (sharp.max(-1) > kd.max(-1)).all()


def test_a_zero_shot_head_and_a_published_checkpoint_are_exported_too(tree, tmp_path):
    student = build_student("tiny", len(CLASSES), size=16, kd_head="zero-shot", project=12)
    language_init(student.model, torch.randn(len(CLASSES), 12), "kd")
    save_student(student, tmp_path/"s.safetensors", spec="tiny", classes=CLASSES, alpha=0., beta=1.)
    assert export(tmp_path/"s.safetensors", tmp_path/"out", images=tree)["largest_difference"].item() < 1e-4
    assert set(Predictor.from_pretrained(tmp_path/"out").predict(tree, mode="none")["decided"]) == {"kd"}
    assert export(random_checkpoint(tmp_path/"published.pt"), tmp_path/"out2", images=tree)["checked"].item() == 24


def test_every_kind_goes_into_one_folder_and_another_model_does_not(tree, tmp_path):
    file = saved(tmp_path/"s.safetensors", "tiny", 16)
    kinds = {kind: name for kind, name in KINDS.items() if kind != "executorch"}
    for kind, name in kinds.items():
        assert export(file, tmp_path/"out", kind, images=tree).loc[name, "largest_difference"] < 1e-5
    assert set(json.loads((tmp_path/"out"/"export.json").read_text())["files"]) == set(kinds.values())
    about = {"dho_nb.json": ""}
    graph = torch.export.load(tmp_path/"out"/"model.pt2", extra_files=about).module()
    assert graph(torch.zeros(3, 16, 16, 3, dtype=torch.uint8))[0].shape == (3, 7)
    assert json.loads(about["dho_nb.json"])["classes"] == CLASSES
    with pytest.raises(DhoError, match="export of another model"):
        export(saved(tmp_path/"t.safetensors", "tiny", 16, alpha=.9), tmp_path/"out", images=tree)
    for held in (tmp_path/"out").iterdir():
        assert str(tmp_path).encode() not in held.read_bytes() and str(ROOT).encode() not in held.read_bytes(), held


def test_an_export_that_was_cut_short_goes_on(tree, tmp_path, monkeypatch):
    import dho_nb.deploy.export as module
    file = saved(tmp_path/"s.safetensors", "tiny", 16)
    with monkeypatch.context() as m:
        m.setattr(module, "_write_note", lambda *a: 1/0)
        with pytest.raises(ZeroDivisionError): export(file, tmp_path/"out", images=tree)
    assert (tmp_path/"out"/"model.onnx").exists() and len(export(file, tmp_path/"out", images=tree)) == 1


def test_a_run_says_of_wide_pictures_what_it_will_say_of_them_later(tmp_path, monkeypatch, capsys):
    for c in ("cat", "dog"):
        for i in range(8): picture(tmp_path/"wide"/c/f"{i}.png", seed=i + 50*(c == "dog"), size=(320, 60))
    config = dict(dataset=str(tmp_path/"wide"), teacher="digits", student="tiny", student_weights="", size=24,
                  epochs=1, test=.5)
    run = distill(make_config(config), tmp_path/"run", "none")
    said = pd.read_csv(run.folder/"predictions.csv").set_index("path")["confidence"]
    later = Predictor.from_pretrained(run.folder).predict(tmp_path/"wide", mode="none").set_index("file")["probability"]
    later.index = [f"{Path(f).parent.name}/{Path(f).name}" for f in later.index]
    np.testing.assert_allclose(said, later[said.index], atol=1e-4)
    (tmp_path/"wide").rename(tmp_path/"moved")
    monkeypatch.chdir(tmp_path)
    from dho_nb.cli.main import main
    for verb in ("export", "gallery"):
        assert main([verb, str(run.folder)]) == 2 and "by --root FOLDER" in capsys.readouterr().err
    assert main(["export", str(run.folder), "--root", "moved"]) in (0, None)


class Noisy(torch.nn.Module):
    def forward(self, x): return x.flatten(1)[:, :8] + torch.rand_like(x.flatten(1)[:, :8])


class Moody(torch.nn.Module):
    def forward(self, x): return x.flatten(1)[:, :8] if x.mean() > 0 else -x.flatten(1)[:, :8]


class Unheard(torch.nn.Module):
    def forward(self, x): return torch.linalg.svdvals(x.mean(1))


@pytest.mark.parametrize("module, why", [(Noisy, "from PyTorch's, and 0.0001 is allowed"), (Moody, "data-dependent"),
                                         (Unheard, "No ONNX function found")])
def test_what_onnx_cannot_say_is_refused_with_the_reason_and_leaves_no_file(tree, tmp_path, module, why):
    save_student(build_student(module(), len(CLASSES), size=16), tmp_path/"s.safetensors", classes=CLASSES,
                 alpha=.5, beta=.5)
    with pytest.raises(DhoError, match="pass it as backbone"):
        export(tmp_path/"s.safetensors", tmp_path/"out", images=tree)
    with pytest.raises(DhoError, match=why):
        export(tmp_path/"s.safetensors", tmp_path/"out", images=tree, backbone=module())
    assert not [p for p in (tmp_path/"out").glob("**/*") if p.is_file()]


def test_a_graph_that_says_no_number_is_apart_from_its_student(tree):
    student, facts = build_student("tiny", 3, size=16), dict(heads=2, alpha=.3, beta=.5)
    student.model.eval()
    for wrong in range(3):
        def answer(pixels):
            said = _reference_probabilities(student, facts, pixels)
            return [np.full_like(p, np.nan) if k == wrong else p for k, p in enumerate(said)]
        checked, apart = largest_export_difference(answer, student, facts, unlabeled_export_images(tree))
        assert checked == 24 and not apart <= TOLERANCE


def test_wrong_inputs_are_named(tree, tmp_path, monkeypatch):
    file = saved(tmp_path/"s.safetensors", "tiny", 16)
    wrong = [(dict(kind="onxx"), "did you mean 'onnx'"),
             (dict(kind="torch-export", int8=True), "int8 is made from ONNX"),
             (dict(opset=9), "opset=9 cannot be written"), (dict(int8=True), "int8 takes its ranges"),
             (dict(images=tmp_path/"none*.png"), "no picture matches"), (dict(out=file), "is a file"),
             (dict(out=tmp_path), "is in use")]
    for arguments, why in wrong:
        with pytest.raises(DhoError, match=why): export(file, **{"out": tmp_path/"out", "images": tree, **arguments})
    (tmp_path/"words.png").write_text("no picture")
    with pytest.raises(DhoError, match="none of the 1 images given by hand can be read"):
        export(file, tmp_path/"out", images=tmp_path/"words.png")
    assert not (tmp_path/"out"/"model.onnx").exists()
    for missing in ("onnxscript", "onnxruntime"):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, missing, None)
            with pytest.raises(DhoError, match=rf"{missing} is not installed: pip install 'dho_nb\[onnx\]'"):
                export(file, tmp_path/"out", images=tree)


def clear(file, mode="RGBA"):
    "A picture that can be seen through in places"
    made = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8), "RGBA")
    if mode == "P": made = made.convert("RGB").quantize(16); made.info["transparency"] = 3
    made.save(file)
    return file

def sixteen(file):
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (40, 60)).astype(np.uint16)).save(file)
    return file


def test_the_script_prepares_pictures_as_training_did(tmp_path):
    "Identical pixels, also of large JPEGs whose sides 8 does not divide"
    export(saved(tmp_path/"s.safetensors", "tiny", 32), tmp_path/"out", images=picture(tmp_path/"a.png"))
    turned = Image.Exif()
    turned[0x0112] = 6
    same = [picture(tmp_path/"wide.png", 1, (91, 40)), picture(tmp_path/"high.jpg", 2, (40, 91)),
            picture(tmp_path/"grey.png", 3, mode="L"), picture(tmp_path/"small.png", 4, (9, 7)),
            picture(tmp_path/"turned.jpg", 5, (70, 50), exif=turned),
            picture(tmp_path/"large.jpg", 6, (1600, 1200), quality=90), picture(tmp_path/"cmyk.jpg", 7, mode="CMYK"),
            picture(tmp_path/"turned.tif", 8, (70, 50), exif=turned), clear(tmp_path/"clear.png"),
            clear(tmp_path/"palette.png", "P"), sixteen(tmp_path/"sixteen.png"),
            picture(tmp_path/"odd.jpg", 9, (513, 385)), picture(tmp_path/"lying.jpg", 9, (385, 1603), exif=turned)]
    model = runpy.run_path(str(SCRIPT))["load"](tmp_path/"out"/"model.onnx")
    for file in same: np.testing.assert_array_equal(model.pixels(file), load_pixels(file, Preprocess(32)), err_msg=file.name)


def test_the_script_goes_on_after_a_broken_file(tmp_path):
    export(saved(tmp_path/"s.safetensors", "tiny", 32), tmp_path/"out", images=picture(tmp_path/"a.png"))
    (tmp_path/"words.png").write_text("no picture")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path/"out"/"model.onnx", tmp_path/"words.png", tmp_path/"a.png"],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "words.png cannot be read" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout.startswith(f"{tmp_path/'a.png'}\t")


def test_predictions_name_each_head_and_survive_broken_files(tree, tmp_path):
    (tree/"cat"/"words.jpg").write_text("no picture")
    (tree/"dog"/"half.png").write_bytes((tree/"dog"/"0.png").read_bytes()[:300])
    predictor = Predictor.from_pretrained(saved(tmp_path/"s.safetensors", "tiny", 16))
    said = predictor.predict([tree, tmp_path/"gone.png"], top=3, probabilities=True, batch=5, mode="none")
    bad = said[said["problem"] != ""]
    assert len(said) == 27
    assert sorted(Path(f).name for f in bad["file"]) == ["gone.png", "half.png", "words.jpg"]
    assert bad["prediction"].isna().all()
    good = said[said["problem"] == ""]
    p = good[[f"p({c})" for c in CLASSES]].to_numpy(float)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (np.array(CLASSES)[p.argmax(1)] == good["prediction"]).all()
    assert all(list(t) == sorted(t, key=t.get, reverse=True) and len(t) == 3 for t in good["top"])
    who = {"both": good["ce_prediction"] == good["kd_prediction"], "ce": good["prediction"] == good["ce_prediction"],
           "kd": good["prediction"] == good["kd_prediction"]}
    for name, row in zip(good["decided"], pd.DataFrame(who).itertuples()):
        assert name == next((n for n in ("both", "ce", "kd") if getattr(row, n)), "combination")
    one = predictor.predict([tree, tmp_path/"gone.png"], top=3, probabilities=True, batch=100, mode="none")
    assert one["prediction"].equals(said["prediction"]) and one["problem"].equals(said["problem"])


def test_predictions_leave_as_csv_and_json_lines_and_overwrite_nothing(tree, tmp_path):
    predictor = Predictor.from_pretrained(saved(tmp_path/"s.safetensors", "tiny", 16))
    assert write_predictions(predictor.each([tree, tmp_path/"gone.png"]), tmp_path/"a.jsonl", "jsonl") == (25, 1)
    assert write_predictions(predictor.each([tree, tmp_path/"gone.png"]), tmp_path/"a.csv") == (25, 1)
    lines = [json.loads(line) for line in (tmp_path/"a.jsonl").read_text().splitlines()]
    table = pd.read_csv(tmp_path/"a.csv", keep_default_na=False)
    assert [r["prediction"] or "" for r in lines] == table["prediction"].tolist()
    assert json.loads(table["top"][0]) == lines[0]["top"]
    before = (tmp_path/"a.csv").read_bytes()
    with pytest.raises(DhoError, match="there already"): write_predictions([], tmp_path/"a.csv")
    assert (tmp_path/"a.csv").read_bytes() == before


def test_only_the_combination_may_say_so():
    ce, kd = np.array([[.5, .4, .1]]), np.array([[.1, .4, .5]])
    assert deciding_head([(ce + kd)/2, ce, kd], .5).tolist() == ["combination"] and deciding_head([ce], .5).tolist() == ["single"]
    assert deciding_head([kd, kd, kd], 0.).tolist() == ["kd"], "the CE head agrees, but nobody asked it"


@pytest.fixture(scope="module")
def photographs(eurosat, tmp_path_factory):
    "A MobileNetV2 with real weights, trained for a moment on real photographs, and 200 others"
    if not MOBILENET.exists(): pytest.skip("needs ../shared/data/weights/mobilenetv2_imagenet_tf.npz")
    whole = manifest_from_coop(eurosat/"split_zhou_EuroSAT.json", prefix="2750", templates=["a centered satellite photo of {}."])
    counts = {"train": 20, "val": 1, "test": 20}
    kept = (whole.table.groupby(["split", "label"], group_keys=False)[["id", "path", "label", "split"]]
            .apply(lambda t: t.head(counts[t["split"].iloc[0]])))
    place = tmp_path_factory.mktemp("photographs")
    config = make_config(dict(dataset=str(write_manifest(replace(whole, name="some", table=kept), place)),
                              root=str(eurosat), shots=4, views=1, epochs=5, lr=1e-3,
        teacher=str(ROOT/"nbs"/"paper"/"eurosat_teacher"), student="timm:mobilenetv2_100",
        student_weights=str(MOBILENET), size=64, precision="fp32", student_args=dict(pad_type="same", bn_eps=1e-3)))
    run = distill(config, place/"run", "none")
    return run, export(run.folder, int8=True)


def test_the_onnx_file_in_onnxruntime_on_200_eurosat_photographs(photographs):
    run, made = photographs
    assert made.loc["model.onnx", "checked"] == 200 and made.loc["model.onnx", "largest_difference"] < 1e-4
    files = [run.root/p for p in run.manifest.table.query("split == 'test'")["path"]]
    ours = Predictor.from_pretrained(run.folder).predict(files, mode="none")
    theirs = Predictor.from_pretrained(run.folder/"export"/"model.onnx").predict(files, mode="none")
    assert len(files) == 200 and (ours["prediction"] == theirs["prediction"]).all()
    assert (ours["decided"] == theirs["decided"]).all()
    assert np.abs(ours["probability"].astype(float) - theirs["probability"].astype(float)).max() < 1e-4
    truth = np.array(run.manifest.classes)[run.manifest.table.query("split == 'test'")["label"]]
    assert abs((theirs["prediction"] == truth).mean() - run.result["accuracy"]) < .015 and run.result["accuracy"] > .3
    alone = run_alone(run.folder/"export"/"model.onnx", files)
    assert alone["prediction"].tolist() == theirs["prediction"].tolist()
    assert np.abs(alone["probability"] - theirs["probability"].astype(float)).max() < 1e-5


def test_int8_says_what_it_costs(photographs):
    run, made = photographs
    row = made.loc["model-int8.onnx"]
    assert row["scored"] == 200 and row["megabytes"] < .4*made.loc["model.onnx", "megabytes"]
    assert row["calibrated"] == 200
    assert row["calibrated_on"] == "train images of some" and row["on"] == "test images of some"
    assert abs(row["accuracy_before"] - run.result["accuracy"]) < .015
    assert row["accuracy"] > row["accuracy_before"] - .15
    card = (run.folder/"export"/"README.md").read_text()
    for said in (f"It is right about {round(200*row['accuracy'])} of 200 (95 %: ", "40 images (4-shot)", "eurosat_teacher",
                 "not known here", "calibration error", "mobilenetv2_imagenet_tf.npz", "α = 0.5"):
        assert said in card, said
    assert str(run.root) not in card and str(ROOT) not in card


class Hub(BaseHTTPRequestHandler):
    "What creating a repository, committing small files and downloading them again asks of the Hub; every file goes the way that has no LFS or Xet"
    def log_message(self, *_): pass

    def reply(self, code, data=b"", **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json",
                            **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    def do_POST(self):
        body, held = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.server.held
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            held.update(json.loads(body))
            return self.reply(200, {"url": f"{self.server.address}/me/forest", "name": "me/forest"})
        if self.path == "/api/validate-yaml": return self.reply(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            return self.reply(200,
                              {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                         for f in json.loads(body)["files"]]})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.files.update({v["value"]["path"]: base64.b64decode(v["value"]["content"])
                                      for v in lines if v["key"] == "file"})
            return self.reply(200, {"commitUrl": f"{self.server.address}/me/forest/commit/{'a'*40}",
                                    "commitOid": "a"*40, "commitMessage": lines[0]["value"]["summary"]})
        self.reply(404, {"error": self.path})

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        name = self.path.split("?")[0].rpartition("/")[2]
        if "/resolve/" in self.path and name in self.server.files:
            return self.reply(200, self.server.files[name], ETag='"' + "b"*40 + '"', X_Repo_Commit="a"*40)
        if "/resolve/" in self.path:
            return self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit="a"*40)
        self.reply(200, {"id": "me/forest", "sha": "a"*40, "siblings": [],
                         "private": True} if self.path.startswith("/api/models/") else {"name": "me"})

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address, server.files, server.held, server.asked = f"http://127.0.0.1:{server.server_port}", {}, {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def away(code, hub, tmp_path, *argv):
    "Python in a process of its own whose Hub is the stand-in"
    env = {k: v for k, v in os.environ.items() if not k.lower()
           .endswith("_proxy") and k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True,
                          timeout=300, cwd=tmp_path,
                          env={**env, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path/"hf"),
                               "HF_TOKEN": "hf_standin", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})


def test_an_export_goes_to_the_hub_and_comes_back(tree, tmp_path, hub):
    "A stand-in for the Hub's HTTP, not for its LFS and Xet storage: huggingface_hub is asked to send every file the plain way"
    export(saved(tmp_path/"s.safetensors", "tiny", 16), tmp_path/"out", images=tree)
    export(tmp_path/"s.safetensors", tmp_path/"out", "torch-export", images=tree)
    (tmp_path/"out"/"notes.txt").write_text("mine")
    done = away("import sys; from dho_nb.deploy.export import push_to_hub; print(push_to_hub(sys.argv[1], 'me/forest'))", hub,
                tmp_path, tmp_path/"out")
    assert done.returncode == 0 and done.stdout.strip().endswith("commit/" + "a"*40), done.stderr
    assert set(hub.files) == {"model.onnx", "README.md", "export.json", "predict_onnx.py"} <= set(GOES_UP)
    assert hub.files["model.onnx"] == (tmp_path/"out"/"model.onnx").read_bytes()
    assert hub.held["name"] == "forest" and hub.held["organization"] == "me"
    assert hub.held.get("private") or hub.held.get("visibility") == "private"
    assert all(token == "Bearer hf_standin" for _, path, token in hub.asked if path.startswith("/api/"))
    code = ("import sys; from dho_nb.deploy.predictor import Predictor; model = Predictor.from_pretrained('me/forest'); "
            "print(model.predict(sys.argv[1], mode='none').to_json(orient='records'))")
    back = away(code, hub, tmp_path, tree)
    assert back.returncode == 0, back.stderr
    here = Predictor.from_pretrained(tmp_path/"s.safetensors").predict(tree, mode="none")
    assert [r["prediction"] for r in json.loads(back.stdout)] == here["prediction"].tolist()
    hub.files.clear()
    lost = away(code.replace("me/forest", "me/empty"), hub, tmp_path, tree)
    assert lost.returncode and "holds no model of this library" in lost.stderr


def test_the_hub_out_of_reach_is_said_plainly(tree, tmp_path):
    export(saved(tmp_path/"s.safetensors", "tiny", 16), tmp_path/"out", images=tree)
    class Nowhere: address = "http://127.0.0.1:9"
    for call, why in (("dho_nb.deploy.export.push_to_hub(sys.argv[1], 'me/forest')", "cannot be written on the Hub"),
                      ("dho_nb.deploy.checkpoints.load_checkpoint('me/forest')", "cannot be fetched from the Hub")):
        done = away(f"import sys, dho_nb.deploy.export, dho_nb.deploy.checkpoints; {call}", Nowhere, tmp_path, tmp_path/"out")
        assert done.returncode and why in done.stderr.splitlines()[-1], done.stderr
    with pytest.raises(DhoError, match="holds no export"): push_to_hub(tree, "me/forest")
    with pytest.raises(DhoError, match="called owner/name"): push_to_hub(tmp_path/"out", "forest")
    (tmp_path/"out"/"model.onnx").unlink()
    with pytest.raises(DhoError, match="no model to share"): push_to_hub(tmp_path/"out", "me/forest")


def test_a_student_of_the_exported_safetensors_is_the_student(tree, tmp_path):
    export(saved(tmp_path/"s.safetensors", "tiny", 16, beta=.7), tmp_path/"out", "safetensors", images=tree)
    (one, facts), (other, again) = load_student(tmp_path/"s.safetensors"), load_checkpoint(tmp_path/"out")
    weights, exported = one.model.state_dict(), other.model.state_dict()
    assert weights.keys() == exported.keys() and all(torch.equal(weights[k], exported[k]) for k in weights)
    assert [facts[k] for k in ("alpha", "beta", "classes", "spec")] == [again[k] for k in ("alpha", "beta", "classes", "spec")]


def test_a_card_of_a_published_checkpoint_and_a_teacher_with_other_prompts(tmp_path, monkeypatch):
    from dho_nb.runs.config import make_config
    from dho_nb.deploy.evaluate import CheckpointEvaluation
    from dho_nb.deploy.checkpoints import random_checkpoint
    from dho_nb.deploy.model_card import model_card
    assert "two heads" in model_card(random_checkpoint(tmp_path/"x.pt", 10))
    asked = [CheckpointEvaluation("digits", make_config(dict(dataset="digits", **t))) for t in ({}, dict(templates=["a blob {}"]))]
    assert asked[0].identity != asked[1].identity
