"What a file from elsewhere may do: choose a known architecture, and nothing else; no call, no program, no path outside, no markup"
import ast
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import ROOT, picture
from dho_nb.cli.main import main
from dho_nb.runs.config import Config, preset
from dho_nb.deploy.evaluate import CheckpointEvaluation
from dho_nb.deploy.predictor import Predictor, images_to_predict, try_load_pixels
from dho_nb.deploy.checkpoints import load_checkpoint
from dho_nb.sweeps.grid import make_grid, read_grid
from dho_nb.data.manifests import PHOTOS, SUFFIXES, Manifest, open_image
from dho_nb.reports.tables import ResultTable
from dho_nb.runs.run import Run, distill
from dho_nb.core.errors import DhoError
from dho_nb.core.files import read_json, write_json
from dho_nb.students.dual_head import build_student, load_student, save_student
from dho_nb.sweeps.sweep import Sweep, open_sweep
from dho_nb.sweeps.remote import pull_remote
from dho_nb.teachers.clip import load_teacher
from dho_nb.data.transforms import Preprocess, read_image

MODULES = sorted((ROOT/"dho_nb").rglob("*.py"))
EPS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(pwned) (w) file closefile\nshowpage\n%%EOF\n")
NETZ = """import pathlib, torch
def make(width=8):
    with open({here!r}, "a") as f: f.write("called ")
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
"""


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    for name, value in dict(RUNS=tmp_path/"runs", CACHE=tmp_path/"cache", PROGRESS="none", DEVICE="cpu").items():
        monkeypatch.setenv(f"DHO_{name}", str(value))


@pytest.fixture
def netz(tmp_path, monkeypatch):
    "A module that notes each call of its function `make`; returns whether it was called since"
    note = tmp_path/"called"
    (tmp_path/"netz_untrusted.py").write_text(NETZ.format(here=str(note)))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("netz_untrusted", None)
    def called():
        there = note.exists()
        note.unlink(missing_ok=True)
        return there
    yield called
    sys.modules.pop("netz_untrusted", None)


def asking(file, spec, args=None, **facts):
    "A sound model file whose metadata asks for another network"
    save_student(build_student("tiny", 2, size=16), file, spec="tiny", classes=["a", "b"], alpha=.5, beta=1.)
    with safe_open(file, "pt") as f: known = json.loads(f.metadata()["dho_nb"])
    save_file(load_file(file), file, {"dho_nb": json.dumps({**known, "spec": spec, "args": args, **facts})})
    return file


# ---------------------------------------------------------------------------------------------------------- model files

CALLS = {"a shell": ("os:system", lambda mark: {"command": f"touch {mark}"}),
         "a subprocess": ("subprocess:getoutput", lambda mark: {"cmd": f"touch {mark}"}),
         "this library's own writer": ("dho_nb.core.files:write_json", lambda mark: {"path": str(mark), "data": 1}),
         "through a known library's prefix": ("open_clip:os:system", lambda mark: {"command": f"touch {mark}"}),
         "with spaces": (" os:system", lambda mark: {"command": f"touch {mark}"})}

@pytest.mark.parametrize("name", CALLS)
def test_a_model_file_calls_nothing(tmp_path, monkeypatch, name):
    spec, args = CALLS[name]
    mark, file = tmp_path/"mark", tmp_path/"model.safetensors"
    asking(file, spec, args(mark))
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, **kw: str(file))
    ways = {"load_student": lambda: load_student(file), "load_model": lambda: load_checkpoint(tmp_path),
            "Predictor": lambda: Predictor.from_pretrained(file), "Hub": lambda: Predictor.from_pretrained("me/model"),
            "Evaluation": lambda: CheckpointEvaluation(file, Config(dataset="digits"))}
    for way, do in ways.items():
        with pytest.raises(DhoError, match="--trust-remote-code"): do()
        assert not mark.exists(), way
    for words in (["predict", file, tmp_path], ["evaluate", file, "--dataset", "digits"], ["export", file, "--images", tmp_path]):
        assert main([*map(str, words)]) == 2 and not mark.exists(), words


@pytest.mark.parametrize("spec", ["netz_untrusted:make", "timm:hf-hub:a/b", "timm:local-dir:model", "hf-hub:a/b", "hf_hub:a/b",
                                  "local-dir:model", "open_clip:hf-hub:a/b", "open_clip:local-dir:model", "open_clip:./model", "open_clip:/x",
                                  "torchvision:a:b", "timm:../x", "timm:resnet18\n", "resnet18/x", "builtins:eval", "a:b:c", "~", ":", "x" * 10**5 + ":y"])
def test_an_error_names_what_was_asked_for_and_by_which_file(tmp_path, netz, spec):
    file = asking(tmp_path/"model.safetensors", spec)
    with pytest.raises(DhoError, match=r"model\.safetensors names the student .*--trust-remote-code") as said: load_student(file)
    assert spec[:20].strip() in str(said.value) or repr(spec)[:20] in str(said.value)
    assert len(str(said.value)) < 1000 and not netz()
    with pytest.raises(DhoError, match="names the student"):
        load_student(asking(tmp_path/"model.safetensors", "tiny", architecture=spec))  # the other entry that is built


def test_an_unknown_name_of_a_known_library_is_an_unknown_name(tmp_path):
    for spec in ("timm:resnet_18", "resnet_18", "torchvision:resnet_18"):
        with pytest.raises(DhoError, match="unknown .* did you mean 'resnet18'"): load_student(asking(tmp_path/"m.safetensors", spec))


def test_the_users_word_builds_it(tmp_path, netz):
    student = build_student("netz_untrusted:make", 2, size=16, args=dict(width=4))  # typed by the user: no word is needed
    assert netz()
    file = tmp_path/"model.safetensors"
    save_student(student, file, spec="netz_untrusted:make", args=dict(width=4), classes=["a", "b"], alpha=.5, beta=1.)
    with pytest.raises(DhoError, match="netz_untrusted:make"): load_student(file)
    assert not netz()
    images = torch.randn(2, 3, 16, 16)
    again = load_student(file, trust_remote_code=True)[0]
    assert netz() and all(a.equal(b) for a, b in zip(again.model(images), student.model.eval()(images)))
    assert load_student(file, build_student("netz_untrusted:make", 2, args=dict(width=4)).model.backbone)  # the module itself
    picture(tmp_path/"photos"/"a.png")
    said = Predictor.from_pretrained(file, trust_remote_code=True).predict(tmp_path/"photos", mode="none")
    assert said["problem"].tolist() == [""]
    netz()
    words = ["predict", str(file), str(tmp_path/"photos")]
    assert main(words) == 2 and not netz()
    assert main([*words, "--trust-remote-code"]) == 0 and netz()


# ------------------------------------------------------------------------------------------------------------- arguments

@pytest.mark.parametrize("name, value", [
    ("checkpoint_path", "w.pt"), ("checkpoint_path", 5), ("pretrained", True), ("pretrained_cfg", {"file": "w.pt"}), ("pretrained_cfg", "tag"),
    ("pretrained_cfg_overlay", {"url": "http://x"}), ("cache_dir", "x"), ("weights", "DEFAULT"), ("weights_backbone", "DEFAULT"),
    ("norm_layer", "torch.nn.BatchNorm2d"), ("act_layer", "os:system"), ("name", "local-dir:x"), ("block", "/etc/passwd"), ("block", "..\\x"),
    ("block", "w.pt"), ("features", {"a": 1}), ("widths", [[[1]]]), ("widths", [1]*100), ("width", 1e12), ("width", float("nan")), ("pretrained_strict", False),
    ("hf_hub_id", "a/b"), ("path", "weights"), ("file", "weights"), ("state_dict_url", "x"), ("trust_remote_code", True), ("PRETRAINED", True)])
def test_arguments_from_a_file_are_plain_values_that_shape_the_network(tmp_path, name, value):
    with pytest.raises(DhoError, match=f"the argument '{name}'.*--trust-remote-code"):
        load_student(asking(tmp_path/"m.safetensors", "timm:resnet18", {name: value}))


def test_arguments_that_shape_a_network_are_taken(tmp_path):
    args = dict(pad_type="same", bn_eps=1e-3, drop_path_rate=.1, act_layer="gelu")
    save_student(build_student("timm:mobilenetv2_050", 2, size=32, args=args), tmp_path/"m.safetensors", spec="timm:mobilenetv2_050", args=args,
                 classes=["a", "b"], alpha=.5, beta=1.)
    assert load_student(tmp_path/"m.safetensors")[1]["args"] == args
    save_student(build_student("tiny", 2, size=16, args=dict(widths=[4, 8])), tmp_path/"t.safetensors", spec="tiny", args=dict(widths=[4, 8]))
    assert load_student(tmp_path/"t.safetensors")[0].model.dim == 8


def test_a_file_of_weights_that_an_open_clip_student_began_with_is_not_looked_for(tmp_path, monkeypatch):
    from dho_nb.teachers import clip
    monkeypatch.setattr(clip, "_is_torchscript", lambda file: True)
    (tmp_path/"weights.pt").write_bytes(b"")
    student = build_student("open_clip:ViT-S-32-alt/random", 2, size=32)
    save_student(student, tmp_path/"m.safetensors", spec=f"open_clip:ViT-S-32-alt/{tmp_path/'weights.pt'}", classes=["a", "b"])
    with safe_open(tmp_path/"m.safetensors", "pt") as f: facts = json.loads(f.metadata()["dho_nb"])
    assert facts["architecture"] == "open_clip:ViT-S-32-alt-quickgelu"  # known where the weights were, and kept
    monkeypatch.setattr(clip, "_is_torchscript", lambda file: pytest.fail("a path in a file was followed"))
    file = asking(tmp_path/"other.safetensors", f"open_clip:ViT-S-32-alt/{tmp_path/'weights.pt'}")
    with pytest.raises(DhoError, match="another network|cannot be built"): load_student(file)


@pytest.mark.parametrize("change", [
    dict(preprocess=None), dict(preprocess={}), dict(preprocess=[1]), dict(preprocess=dict(size="9", mean=[0]*3, std=[1]*3, interpolation="bicubic")),
    dict(preprocess=dict(size=10**9, mean=[0]*3, std=[1]*3, interpolation="bicubic")),
    dict(preprocess=dict(size=16, mean=[0]*3, std=[0]*3, interpolation="bicubic")), dict(preprocess=dict(size=16, mean=[0]*3, std=[1]*3, interpolation="os")),
    dict(preprocess=dict(size=16, mean=[0]*3, std=[1]*3, interpolation=[])), dict(preprocess=dict(size=16, mean=[0]*3, std=[1]*3, interpolation="bicubic", more=1)),
    dict(heads=7), dict(heads="2"), dict(classes="ab"), dict(classes=[1, 2]), dict(classes=["a"]), dict(spec=3), dict(spec=["tiny"]), dict(args=[1]),
    dict(args="x"), dict(alpha="0.5"), dict(alpha=3), dict(beta=0), dict(zeta=0), dict(project=-1), dict(ce_head="x"), dict(ce_head=["linear"]), dict(architecture=1)])
def test_metadata_that_no_model_of_ours_has_is_an_error(tmp_path, change):
    with pytest.raises(DhoError): load_student(asking(tmp_path/"m.safetensors", **{"spec": "tiny", **change}))


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", '"x"', "[" * 100_000, '{"spec": "tiny"}'])
def test_metadata_that_is_no_description_is_an_error(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path/"m.safetensors", {"dho_nb": text})
    with pytest.raises(DhoError, match="no model of dho_nb"): load_student(tmp_path/"m.safetensors")


# ------------------------------------------------------------------------------------------- runs, configurations, grids

def own(tmp_path, **more): return preset("digits", student="netz_untrusted:make", student_weights="", size=16, epochs=1, **more)

def test_an_own_run_goes_on_and_is_shown_by_whoever_names_its_student(tmp_path, netz):
    run = distill(own(tmp_path), tmp_path/"run")
    assert netz() and run.result["student"] == "netz_untrusted:make"
    again = Run(own(tmp_path), tmp_path/"run")
    assert again.done and again.load_student().model.dim == 8 and netz()  # the configuration is the user's word
    with pytest.raises(DhoError, match="run/model.safetensors names the student 'netz_untrusted:make'"): Predictor.from_pretrained(tmp_path/"run")
    assert not netz()
    assert Predictor.from_pretrained(tmp_path/"run", trust_remote_code=True) and netz()


def test_a_finished_run_of_a_known_student_does_not_build_what_its_file_asks_for(tmp_path, netz):
    config = preset("digits", epochs=1, method="ce")
    distill(config, tmp_path/"run")
    asking(tmp_path/"run"/"model.safetensors", "netz_untrusted:make")
    with pytest.raises(DhoError, match="netz_untrusted:make"): Run(config, tmp_path/"run").load_student()
    assert not netz()


def test_parameters_in_a_file_take_the_word_and_typed_ones_do_not(tmp_path, netz, capsys):
    write_json(tmp_path/"run.json", dict(config=dict(own(tmp_path).__dict__)))
    check = lambda *words: main(["check", "--config", str(tmp_path/"run.json"), *words])
    assert check() == 2 and not netz() and "--trust-remote-code" in capsys.readouterr().err
    assert check("--student", "tiny") == 0 and not netz()
    assert check("--student", "netz_untrusted:make") == 0 and netz()  # typed, though the file has it as well
    assert check("--trust-remote-code") == 0 and netz()
    assert main(["check", "--preset", "digits", "--student", "netz_untrusted:make"]) == 0 and netz()
    write_json(tmp_path/"args.json", dict(dataset="digits", student="resnet18", student_args=dict(checkpoint_path="x.pt")))
    assert main(["check", "--config", str(tmp_path/"args.json")]) == 2 and "checkpoint_path" in capsys.readouterr().err
    write_json(tmp_path/"hub.json", dict(dataset="digits", teacher="hf-hub:somebody/model"))
    for verb in (["check"], ["distill"], ["estimate"], ["store", "fill"], ["store", "verify"]):
        assert main([*verb, "--config", str(tmp_path/"hub.json")]) == 2 and "hf-hub:somebody" in capsys.readouterr().err


GRID = """
[base]
preset = "digits"
epochs = 1
student_weights = ""
size = 16
[axes]
student = [{values}]
method = ["ce"]
"""

def test_a_grid_takes_the_word_once_and_its_workers_inherit_it(tmp_path, dho, netz, capsys):
    file = tmp_path/"grid.toml"
    file.write_text(GRID.format(values='"tiny", "netz_untrusted:make"'))
    with pytest.raises(DhoError, match="grid.toml names the student 'netz_untrusted:make'"): read_grid(file)
    for more in ([], ["--dry"], ["--slurm", "array.sh"], ["--stores"]):
        assert main(["sweep", str(file), "--out", str(tmp_path/"sweep"), *more]) == 2
        assert "--trust-remote-code" in capsys.readouterr().err and not netz() and not (tmp_path/"sweep").exists()
    code, out, err = dho("sweep", file, "--out", tmp_path/"sweep", "--jobs", "1", "--trust-remote-code", PYTHONPATH=str(tmp_path))
    assert code == 0 and netz(), err
    assert len([*(tmp_path/"sweep").glob("*/result.json")]) == 2
    for verb in (["status"], ["table", "--rows", "student", "--columns", "method"], ["report"]):  # these build nothing
        assert main([verb[0], str(tmp_path/"sweep"), *verb[1:]]) == 0 and not netz()
    with pytest.raises(DhoError, match="sweep.json|sweep names the student"): open_sweep(tmp_path/"sweep")
    assert open_sweep(tmp_path/"sweep", trust_remote_code=True).grid.trust_remote_code


def test_a_job_script_carries_the_word(tmp_path, netz):
    from dho_nb.sweeps.executors import slurm_script
    file = tmp_path/"grid.toml"
    file.write_text(GRID.format(values='"netz_untrusted:make"'))
    script = slurm_script(file, Sweep(read_grid(file, True), tmp_path/"sweep"))
    assert script.count("--trust-remote-code") == 2
    file.write_text(GRID.format(values='"tiny"'))
    assert "--trust-remote-code" not in slurm_script(file, Sweep(read_grid(file), tmp_path/"other"))


@pytest.mark.parametrize("block", ['[[also]]\n[also.base]\npreset="digits"\nstudent="os:system"', '[axes]\nwhat=[{name="a", student="os:system"}, {name="b"}]',
                                   '[base]\npreset="digits"\nstudent="os:system"', '[base]\npreset="digits"\nstudent_args={checkpoint_path="x"}',
                                   '[base]\npreset="digits"\nteacher="hf-hub:a/b"', 'trust_remote_code = true'])
def test_no_part_of_a_grid_is_overlooked(tmp_path, block):
    file = tmp_path/"grid.toml"
    file.write_text(block if "[base]" in block or block.startswith("trust") else f'{block}\n' if "also" in block else f'[base]\npreset="digits"\n{block}')
    with pytest.raises(DhoError, match="--trust-remote-code|unknown key.*trust_remote_code"): read_grid(file)


def test_the_plan_in_a_sweeps_folder_cannot_put_other_runs_in_place_of_the_grids(tmp_path, netz):
    grid = make_grid("g", dict(preset="digits", epochs=1), dict(method=["ce"]))
    sweep = Sweep(grid, tmp_path/"sweep").begin()
    plan = read_json(tmp_path/"sweep"/"sweep.json")
    plan["cells"][0]["parameters"]["student"] = "netz_untrusted:make"
    write_json(tmp_path/"sweep"/"sweep.json", plan)
    assert [t.config.student for t in Sweep(grid, tmp_path/"sweep").tasks] == ["tiny"]
    with pytest.raises(DhoError, match="netz_untrusted:make"): open_sweep(tmp_path/"sweep", go_on=True)
    plan["cells"][0]["parameters"]["student"], plan["cells"][0]["run"] = "tiny", "../../outside"
    write_json(tmp_path/"sweep"/"sweep.json", plan)
    for do in (lambda: open_sweep(tmp_path/"sweep"), lambda: Sweep(grid, tmp_path/"sweep")):
        try: found = do().tasks[0].run
        except DhoError as e: assert "does not lie below" in str(e)
        else: assert found == sweep.tasks[0].run
    from dho_nb.reports.results import expected_results, load_results
    for do in (load_results, expected_results):
        with pytest.raises(DhoError, match="does not lie below|holds no run"): do(tmp_path/"sweep")


def test_a_far_folder_brings_nothing_outside_its_copy(tmp_path):
    import fsspec
    fs = fsspec.filesystem("memory")
    fs.pipe("/sweep/a/result.json", b"{}")
    fs.store["/sweep/../../outside.json"] = fs.store["/sweep/a/result.json"]
    try:
        with pytest.raises(DhoError, match="does not lie below"): pull_remote("memory://sweep", tmp_path/"copy")
    finally: fs.store.clear()
    assert not [*tmp_path.rglob("outside.json")]


# -------------------------------------------------------------------------------------------------------------- pictures

def test_a_file_that_is_eps_inside_starts_no_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    for name in ("a.jpg", "a.png", "a.tif", "a.eps"): (tmp_path/name).write_bytes(EPS)
    assert Image.open(tmp_path/"a.jpg").format == "EPS"  # as Pillow takes it
    preprocess = Preprocess(16)
    for name in ("a.jpg", "a.png", "a.tif", "a.eps"):
        with pytest.raises(DhoError, match="it is no image"): read_image(tmp_path/name)
        assert "no image" in try_load_pixels(tmp_path/name, preprocess)
    with open(tmp_path/"a.jpg", "rb") as f: assert "cannot identify" in try_load_pixels(images_to_predict(f)[0], preprocess)
    assert "another program" in try_load_pixels(images_to_predict(Image.open(tmp_path/"a.jpg"))[0], preprocess)  # lazily opened by the caller
    file = tmp_path/"m.safetensors"
    save_student(build_student("tiny", 2, size=16), file, spec="tiny", classes=["a", "b"], alpha=.5, beta=1.)
    said = Predictor.from_pretrained(file).predict([str(tmp_path/"a.jpg"), picture(tmp_path/"b.png")], mode="none")
    assert said["problem"].tolist() == ["cannot be decoded (it is no image)", ""]


def test_a_dataset_with_such_a_file_is_refused_or_goes_on_without_it(tree, monkeypatch):
    from PIL import EpsImagePlugin
    from dho_nb.runs.dataset import open_dataset
    from dho_nb.data.datasets import _decodes
    from dho_nb.data.image_cache import image_cache_side
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    (tree/"cat"/"0.png").write_bytes(EPS)
    with pytest.raises(DhoError, match="cat/0.png: it is no image"): open_dataset(Config(dataset=str(tree)))
    data = open_dataset(Config(dataset=str(tree), skip_broken=True))
    assert data.skipped["path"].tolist() == ["cat/0.png"] and not _decodes(tree/"cat"/"0.png")
    assert image_cache_side(data.manifest, data.root, 64) == 40


@pytest.mark.parametrize("save", [dict(format="JPEG"), dict(format="PNG"), dict(format="WEBP"), dict(format="TIFF"), dict(format="BMP"), dict(format="GIF"),
                                  dict(format="PPM"), dict(format="JPEG2000"), dict(format="AVIF"),
                                  dict(format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])], ids=lambda s: s["format"])
def test_photographs_are_opened_whatever_they_are_called(tmp_path, save):
    Image.init()
    if save["format"] not in Image.SAVE: pytest.skip(f"this Pillow writes no {save['format']}")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path/"a.bin", **save)
    (tmp_path/"a.bin").rename(tmp_path/"a.jpg")
    assert open_image(tmp_path/"a.jpg").format == save["format"] in PHOTOS and read_image(tmp_path/"a.jpg").size == (8, 8)


@pytest.mark.parametrize("kind", ["ICO", "PCX", "SGI", "TGA", "PDF", "ICNS", "DDS", "IM", "SPIDER", "MSP", "XBM"])
def test_other_formats_are_not(tmp_path, kind):
    Image.init()
    if kind not in Image.SAVE: pytest.skip(f"this Pillow writes no {kind}")
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
    Image.new(mode, (16, 16)).save(tmp_path/"a.bin", format=kind)
    with pytest.raises(DhoError, match="no image"): read_image((tmp_path/"a.bin").rename(tmp_path/"a.jpg"))


def test_suffixes_and_formats_agree():
    known = Image.registered_extensions()
    assert {known.get(s, "HEIF") for s in SUFFIXES} <= {*PHOTOS}
    script = (ROOT/"nbs/experiments/predict_onnx.py").read_text()
    assert tuple(re.search(r'^PHOTOS = "([^"]+)"\.split', script, re.M)[1].split()) == PHOTOS


def test_nothing_else_opens_a_picture():
    for file in [*MODULES, ROOT/"nbs/experiments/predict_onnx.py"]:
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Image.open"):
                assert "formats" in {k.arg for k in call.keywords}, f"{file.name}, line {call.lineno}"


def test_the_script_beside_an_export_starts_no_program_either(tmp_path):
    code = ("import sys, types, PIL.EpsImagePlugin as e; sys.modules['onnxruntime'] = o = types.ModuleType('onnxruntime')\n"
            "o.SessionOptions = types.SimpleNamespace\n"
            "o.InferenceSession = lambda *a, **k: types.SimpleNamespace(get_inputs=list, get_modelmeta=lambda: types.SimpleNamespace("
            "custom_metadata_map={'dho_nb': '{\"preprocess\": {\"size\": 8, \"interpolation\": \"bicubic\"}, \"classes\": [\"a\"]}'}))\n"
            "e.Ghostscript = lambda *a, **k: print('PROGRAM')\n"
            "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    (tmp_path/"a.jpg").write_bytes(EPS)
    done = subprocess.run([sys.executable, "-c", code, ROOT/"nbs/experiments/predict_onnx.py", "model.onnx", tmp_path/"a.jpg"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1 and "PROGRAM" not in done.stdout and "a.jpg cannot be read" in done.stderr, done.stderr


def test_a_picture_too_large_to_be_one_is_a_problem_of_that_picture(tmp_path, monkeypatch):
    from dho_nb.data.image_cache import image_cache_side
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # an error above 200
    files = [picture(tmp_path/"big.png", size=(40, 30)), picture(tmp_path/"small.png", size=(8, 8))]
    with pytest.raises(DhoError, match="decompression bomb"): read_image(files[0])
    assert "decompression bomb" in try_load_pixels(files[0], Preprocess(8))
    with open(files[0], "rb") as f: assert "decompression bomb" in try_load_pixels(images_to_predict([f])[0], Preprocess(8))
    manifest = Manifest("m", pd.DataFrame(dict(path=["big.png", "small.png"], label=[0, 1], split="train")), ("a", "b"))
    assert image_cache_side(manifest, tmp_path, 64) == 8


# ----------------------------------------------------------------------------------------------------- teachers' folders

@pytest.mark.parametrize("part, change", [
    ("vision_cfg", dict(timm_model_name="hf-hub:a/b")), ("vision_cfg", dict(timm_model_name="local-dir:x")), ("text_cfg", dict(hf_model_name="/x")),
    ("text_cfg", dict(hf_tokenizer_name="../x")), ("text_cfg", dict(hf_tokenizer_name="a/b", tokenizer_kwargs=dict(trust_remote_code=True))),
    ("text_cfg", dict(tokenizer_kwargs=dict(code_revision="x"))), ("text_cfg", dict(tokenizer_kwargs=[1]))])
def test_a_teachers_folder_names_no_code(tmp_path, monkeypatch, part, change):
    import open_clip
    from dho_nb.core.settings import shipped_file
    config = json.loads((shipped_file("bundled/digits_teacher")/"open_clip_config.json").read_text())
    config["model_cfg"][part].update(change)
    write_json(tmp_path/"teacher"/"open_clip_config.json", config)
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: pytest.fail("it was built"))
    for spec in (str(tmp_path/"teacher"), f"local-dir:{tmp_path/'teacher'}"):
        with pytest.raises(DhoError, match="take that out of the file"): load_teacher(spec)


# ------------------------------------------------------------------------------- markup, scripts, terminals and archives

ODD = "<script>|[a](javascript:x)\n\\input{x} $x^2$ {0.__class__} \x1b[2J =1+1"

def test_names_stay_text_in_tables():
    table = ResultTable({((ODD,), (ODD,)): dict(mean=.5, std=0, runs=1, wanted=1)}, [(ODD,)], [(ODD,)], (["a|b"], ["c"]), 1, 100, "")
    markdown, latex, html = table.markdown(), table.latex(), table._repr_html_()
    assert "<script" not in markdown + html and "](" not in markdown and len(markdown.splitlines()) == 3
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()] == [3]*3
    assert "\\input" not in latex and r"\textbackslash{}input\{x\}" in latex and not re.search(r"(?<!\\)\$x", latex)
    rows = ResultTable({((n,), ("c",)): dict(mean=.5, std=0, runs=1, wanted=1) for n in ("[x", "*x")}, [("[x",), ("*x",)], [("c",)], (["r"], [""]), 1, 100, "")
    assert not re.search(r"\\\\\s*[\[*]", rows.latex()) and "{}[x" in rows.latex()


def test_names_stay_text_on_a_card(tmp_path):
    from dho_nb.deploy.model_card import model_card
    student = build_student("tiny", 2, size=16)
    save_student(student, tmp_path/"m.safetensors", spec="tiny", classes=[ODD, "b"], alpha=.5, beta=1., run="a\n# b <img src=x> ](javascript:x)")
    card = model_card(tmp_path/"m.safetensors")
    assert "<script" not in card and "<img" not in card.split("---")[2] and "](javascript" not in card.split("---")[2] and card.count("\n# ") == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # the bundled teacher's context is short
def test_prompts_are_filled_and_never_formatted(monkeypatch):
    from dho_nb.teachers.clip import load_teacher, zero_shot_head
    said, teacher = [], load_teacher("digits")
    kind, own = type(teacher.tokenizer), type(teacher.tokenizer).__call__
    monkeypatch.setattr(kind, "__call__", lambda self, texts, *more: said.append(texts) or own(self, texts, *more))
    zero_shot_head(teacher, ["{0.__class__}", "b{}"], ["a {} of {0.__init__.__globals__}"])
    assert said[0] == ["a {0.  class  } of {0.__init__.__globals__}", "a b{} of {0.__init__.__globals__}"]


def test_a_line_break_in_a_path_is_no_line_of_a_job_script(tmp_path, monkeypatch):
    from dho_nb.sweeps.executors import slurm_script
    place = tmp_path/"a\ntouch pwned"
    place.mkdir()
    (place/"grid.toml").write_text('[base]\npreset="digits"\n[axes]\nmethod=["ce"]')
    sweep = Sweep(read_grid(place/"grid.toml"), tmp_path/"sweep")
    with pytest.raises(DhoError, match="line break"): slurm_script(place/"grid.toml", sweep)
    for options in (dict(account="a\nb"),):
        with pytest.raises(DhoError, match="line break"): slurm_script(tmp_path, sweep, options)
    odd = tmp_path/"$(touch pwned) `id` ; 'x'"
    odd.mkdir()
    (odd/"grid.toml").write_bytes((place/"grid.toml").read_bytes())
    script = tmp_path/"job.sh"
    script.write_text(slurm_script(odd/"grid.toml", Sweep(read_grid(odd/"grid.toml"), tmp_path/"sweep")).replace("exec ", "printf '%s\\n' "))
    done = subprocess.run(["bash", script], capture_output=True, text=True, cwd=tmp_path)
    assert str(odd/"grid.toml") in done.stdout.splitlines() and not [*tmp_path.rglob("pwned")]


def test_a_terminal_is_shown_codes_and_a_pipe_the_bytes(tmp_path, monkeypatch, capsys):
    from dho_nb.cli import main as cli
    class Terminal(io.StringIO):
        def isatty(self): return True
    file = tmp_path/"m.safetensors"
    save_student(build_student("tiny", 2, size=16), file, spec="tiny", classes=["a\x1b[31m", "b"], alpha=.5, beta=1.)
    photo = picture(tmp_path/"photo\x1b]0;pwned\x07\u202e.png")
    for words in (["predict", str(file), str(photo)], ["predict", str(tmp_path/"no\x1b[2Jfile.safetensors"), str(photo)],
                  ["status", str(tmp_path/"\x1b[2J")]):
        screen, pipe = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", screen), monkeypatch.setattr(sys, "stderr", pipe)
        cli.main(words)
        text = screen.getvalue() + pipe.getvalue()
        assert "\\x1b" in text and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), words
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    assert cli.main(["predict", str(file), str(photo), "--device", "cpu"]) == 0
    assert pd.read_csv(io.StringIO(out.getvalue()))["file"].tolist() == [str(photo)]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_leaves_nothing_outside(tmp_path, kind):
    from dho_nb.data.datasets import _url
    archive = tmp_path/"stage"/"files"/f"a.{kind}"
    archive.parent.mkdir(parents=True)
    if kind == "tar":
        with tarfile.open(archive, "w") as t:
            for name, link in (("../../outside.txt", ""), ("/tmp/dho-outside.txt", ""), ("link", "../../..")):
                member = tarfile.TarInfo(name)
                if link: member.type, member.linkname = tarfile.SYMTYPE, link
                t.addfile(member, io.BytesIO(b""))
    else:
        with zipfile.ZipFile(archive, "w") as z: z.writestr("../../outside.txt", "x")
    try: _url(tmp_path/"stage", None, f"http://example.org/a.{kind}")
    except Exception as e: assert "outside" in str(e) or "absolute" in str(e)
    assert not [p for p in tmp_path.rglob("outside.txt") if not p.is_relative_to(tmp_path/"stage"/"whole")]
    assert not os.path.exists("/tmp/dho-outside.txt")


@pytest.mark.parametrize("path", ["../out.png", "a/../../out.png", "/etc/passwd", "..\\out.png", "a/..", ".."])
def test_a_list_of_images_does_not_leave_its_folder(tmp_path, path):
    from dho_nb.data.label_files import manifest_from_labels
    from dho_nb.data.manifests import manifest_from_coop, read_manifest
    picture(tmp_path/"photos"/"a.png")
    (tmp_path/"l.csv").write_text(f"path,label\n{path},x\na.png,y\n")
    write_json(tmp_path/"split_zhou_X.json", dict(train=[[path, 0, "x"], ["a.png", 1, "y"]], val=[], test=[]))
    for do in (lambda: manifest_from_labels(tmp_path/"photos", tmp_path/"l.csv"), lambda: read_manifest(tmp_path/"l.csv"),
               lambda: manifest_from_coop(tmp_path/"split_zhou_X.json")):
        try: found = do()
        except DhoError as e: assert re.search("leaves the data root|leaves .*photos|lies outside of", str(e))
        else: assert not path.startswith((".", "/", "a/..")) or all(not p.startswith(("/", "..")) for p in found.table["path"]), found.table


def test_no_string_becomes_code_in_the_library():
    "eval, exec, pickles, YAML's loader, shells: none of them; imports by name only where the user's own student is made"
    for file in MODULES:
        for call in [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]:
            name, words = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            where = f"{file.name}, line {call.lineno}: {name}"
            assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "pickle.load", "pickle.loads", "pd.eval", "pd.read_pickle",
                                "torch.jit.load", "joblib.load"), where
            assert name != "torch.load" or words.get("weights_only") == "True", where
            assert name != "np.load" or words.get("allow_pickle") == "False", where
            assert words.get("shell", "False") == "False", where
            assert not name.endswith("import_module") or (file.name, ast.unparse(call.args[0])) in {("extensions.py", "module"), ("fork_server.py", "name")}, where
            assert not name.endswith((".query", ".format", ".format_map")) or name == "_MARKS[form][mark == 'italic'].format" or isinstance(
                call.func.value, ast.Constant) or name in ("_OURS.format", "_LOW.format", "info.by_hand.format") or isinstance(call.args[0], ast.Constant), where


def test_the_table_of_guards_names_tests_that_exist():
    cells = ["".join(c["source"]) for c in json.loads((ROOT/"nbs/contributing.ipynb").read_text())["cells"]]
    table = next(c for c in cells if c.startswith("## Where outside text becomes something else"))
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| ")][1:]
    here, library = (ROOT/"tests/test_untrusted.py").read_text(), "".join(f.read_text() for f in MODULES)
    assert len(lines) > 25 and all(len(line) == 4 for line in lines)
    for place, _, guard, tests in lines:
        named = re.findall(r"`([^`]+)`", tests)
        assert named or tests in ("none", "the same"), place
        for name in named: assert (ROOT/name).exists() if "/" in name else f"def {name}(" in here, f"{place}: {name}"
        for name in re.findall(r"`(?:\w+\.)?(_?[a-z_]+)`", guard):
            assert re.search(rf"\b{name}\b", library), f"{place}: {name}"


def test_the_checks_above_read_every_module(): assert len(MODULES) > 60 and {m.parent.name for m in MODULES} >= {"core", "runs", "data"}
