"A package outside the repository brings a method, a teacher, a student and a dataset"
import json
import sys

import pytest
import torch

from dho_nb.cli.main import main
from dho_nb.core.errors import DhoError
from dho_nb.core.extensions import extension_names, extension_spec
from dho_nb.deploy.export import export
from dho_nb.runs.config import preset
from dho_nb.runs.run import distill, Run
from dho_nb.sweeps.grid import read_grid
from dho_nb.teachers.clip import clip_teacher_identity, load_teacher

LOSS = '''
import torch
from dho_nb.losses.losses import dho_loss
from dho_nb.losses.methods import Method

def smooth(ce, kd, teacher, labels, *weights):
    "DHO with a bonus for sure answers of the CE head"
    parts = dho_loss(ce, kd, teacher, labels, *weights)
    return dict(parts, loss=parts["loss"] - 0.05*ce.softmax(-1).amax(-1).mean())

method = Method("smooth", smooth, 2, True, True, "DHO with sure answers", "ce")
'''
STUDENT = '''
from torch import nn

def small(width=8): return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
'''
TEACHER = '''
import torch
from torch import nn

class Rows(nn.Module):
    "Encode an image by the means of its rows and columns"
    preprocess = dict(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def encode_images(self, images): return self.scale*torch.cat([images.mean((1, 2)), images.mean((1, 3))], 1) + 1e-3
    def encode_texts(self, texts):
        return torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts])
'''
DATASET = '''
from pathlib import Path
import numpy as np
from PIL import Image
from dho_nb.data.manifests import manifest_from_folder

ROOT = Path(__file__).parent/"pictures"

def stripes():
    "Two classes of stripes, written on first use"
    for split, count in (("train", 6), ("test", 4)):
        for name in ("across", "down"):
            for k in range(count):
                file = ROOT/split/name/f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                lines = (np.indices((8, 8))[int(name == "down")] + k) % 2*255
                if not file.exists(): Image.fromarray(lines.astype("uint8")).save(file)
    return manifest_from_folder(ROOT), ROOT
'''
OFFERS = """[dho_nb.methods]
smooth = outside.losses:method
[dho_nb.teachers]
rows = outside.teachers:Rows
[dho_nb.students]
outside-small = outside.students:small
[dho_nb.datasets]
stripes = outside.datasets:stripes
"""
SMALL = dict(student="outside.students:small", student_weights="", size=8, epochs=2, views=1, test=0.0)


@pytest.fixture
def site(tmp_path, monkeypatch):
    "A folder with an installed package `outside`, on the path of this process and of its children"
    folder = tmp_path/"site"
    for name, text in dict(losses=LOSS, students=STUDENT, teachers=TEACHER, datasets=DATASET, __init__="").items():
        file = folder/"outside"/f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    info = folder/"outside-1.0.dist-info"
    info.mkdir()
    (info/"METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info/"entry_points.txt").write_text(OFFERS)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] == "outside"]: del sys.modules[name]


def test_short_names_are_those_that_packages_offer(site):
    assert extension_names("method") == {"smooth": "outside.losses:method"}
    assert extension_spec("student", "outside-small") == "outside.students:small" and not extension_spec("method", "outside-small")


def test_everything_of_ones_own_at_once(site, tmp_path):
    names = dict(dataset="stripes", teacher="rows", method="smooth", student="outside-small")
    by_name = distill(preset("digits", **{**SMALL, **names}, shots=2), tmp_path/"by-name", "none")
    result = by_name.result
    assert result["tested"] == 8 and result["method"] == "smooth" and result["own_method"]["answers"] == "ce"
    long = dict(dataset="outside.datasets:stripes", teacher="outside.teachers:Rows", method="outside.losses:method")
    by_place = distill(preset("digits", **{**SMALL, **long}, shots=2), tmp_path/"by-place", "none")
    assert by_place.result["accuracy"] == result["accuracy"] and by_place.result["nll"] == result["nll"]


def test_own_code_on_the_command_line_and_in_the_list_of_names(site, tmp_path, dho):
    code, out, err = dho("distill", "--preset", "digits", "--method", "outside.losses:smooth", "--epochs", "1", "--out", tmp_path/"run")
    assert code == 0, err
    result = json.loads((tmp_path/"run"/"result.json").read_text())
    assert result["method"] == "outside.losses:smooth" and result["own_method"]["answers"] == "both"
    for kind, name in (("methods", "smooth"), ("teachers", "rows"), ("students", "outside-small"), ("datasets", "stripes")):
        code, out, err = dho("list", kind)
        assert code == 0 and name in out, (kind, out, err)


GRID = """
[base]
preset = "digits"
epochs = 1
[axes]
method = ["outside.losses:method", "dho"]
seed = [0, 1]
"""

def test_two_workers_of_a_sweep_run_an_own_method(site, tmp_path, dho):
    file = tmp_path/"grid.toml"
    file.write_text(GRID)
    with pytest.raises(DhoError, match="names the method 'outside.losses:method'.*--trust-remote-code"): read_grid(file)
    code, out, err = dho("sweep", file, "--out", tmp_path/"sweep", "--jobs", "2", "--trust-remote-code")
    assert code == 0 and len([*(tmp_path/"sweep").glob("*/result.json")]) == 4, err
    code, out, err = dho("table", tmp_path/"sweep", "--rows", "method", "--columns", "labels")
    assert code == 0 and "outside.losses:method" in out, err


def test_an_edited_loss_is_another_run(site, tmp_path):
    config = preset("digits", method="outside.losses:smooth", epochs=1)
    before = Run(config, tmp_path/"run", "none").identity
    (site/"outside"/"losses.py").write_text(LOSS.replace("0.05", "0.06"))
    with pytest.raises(DhoError, match="was edited after"): Run(config, tmp_path/"other", "none")
    for name in [n for n in sys.modules if n.partition(".")[0] == "outside"]: del sys.modules[name]
    assert Run(config, tmp_path/"another", "none").identity != before


def test_reading_a_run_imports_nothing(site, tmp_path, capsys):
    run = distill(preset("digits", method="outside.losses:method", epochs=1), tmp_path/"run", "none")
    for name in [n for n in sys.modules if n.partition(".")[0] == "outside"]: del sys.modules[name]
    (site/"outside"/"losses.py").write_text("raise SystemExit('imported')\n")
    export(tmp_path/"run", tmp_path/"model", "safetensors")
    assert "DHO with sure answers" in (tmp_path/"model"/"README.md").read_text() and run.result["own_method"]
    assert main(["check", "--config", str(tmp_path/"run"/"run.json")]) == 2 and "trust" in capsys.readouterr().err


@pytest.mark.parametrize("change", [dict(method="outside.losses:smooth"), dict(teacher="outside.teachers:Rows"),
                                    dict(dataset="outside.datasets:stripes"), dict(teacher="transformers:a/b"), dict(method="smooth")])
def test_a_file_that_names_own_code_takes_the_word(site, tmp_path, capsys, change):
    (tmp_path/"run.json").write_text(json.dumps(dict(dataset="digits") | change))
    assert main(["check", "--config", str(tmp_path/"run.json")]) == 2 and "--trust-remote-code" in capsys.readouterr().err
    assert not any(n.startswith("outside.") for n in sys.modules)


def hugging_face_model(folder, kind):
    "A random CLIP or SigLIP model of the transformers library with tokenizer and image processor, as its save_pretrained writes them"
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = {w: i for i, w in enumerate(["<pad>", "<unk>", "a", "photo", "of", "the", "digit", "number", ":", ".", "\"", *map(str, range(10)),
                                         "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "<eos>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = dict(vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=len(words) - 1, projection_size=16)
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    half = dict(image_mean=[.5]*3, image_std=[.5]*3, resample=3)
    if kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        processor = t.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **half)
    else:
        model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
        processor = t.SiglipImageProcessor(size={"height": 16, "width": 16}, **half)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind, mode", [("clip", "shortest"), ("siglip", "squash")])
def test_a_model_of_the_transformers_library_teaches(tmp_path, monkeypatch, kind, mode):
    transformers = pytest.importorskip("transformers", reason="the extra siglip is not installed")
    if not hasattr(transformers, "AutoModel"): pytest.skip("another test put an empty transformers in its place")
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    folder = hugging_face_model(tmp_path/"model", kind)
    teacher = load_teacher(f"transformers:{folder}")
    assert (teacher.preprocess.size, teacher.preprocess.resize_mode, teacher.dim) == (16, mode, 16)
    assert teacher.encode_texts(["a photo of the digit seven", "a photo of the digit one"]).norm(dim=-1).allclose(torch.ones(2))
    result = distill(preset("digits", teacher=f"transformers:{folder}", epochs=1, views=1), tmp_path/"run", "none").result
    assert result["teacher_accuracy"] is not None and result["teacher_looked"] > 0
    assert clip_teacher_identity(f"transformers:{folder}") != clip_teacher_identity("transformers:another/model")
