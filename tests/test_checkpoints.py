"Checkpoints of the published code: ours against the reference's own classes, where a checkout of it is at hand (DHO_REFERENCE)"
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT
from dho_nb.runs.config import preset
from dho_nb.deploy.checkpoints import load_checkpoint, load_published_checkpoint, published_checkpoint_file, random_checkpoint
from dho_nb.runs.run import distill
from dho_nb.core.errors import DhoError
from dho_nb.core.settings import shipped_file
from dho_nb.students.dual_head import load_student, student_text_embeddings, save_student

NAMES = ["tench", "goldfish", "great white shark"]
PROMPTS = ["a photo of a {}.", "itap of a {}.", "a bad photo of the {}."]
SHAPES = {"ViT-B-16": dict(size=224, patch=16, width=768, layers=3, dim=512),
          "ViT-L-14": dict(size=224, patch=14, width=1024, layers=2, dim=768),
          "ViT-L-14-336px": dict(size=336, patch=14, width=1024, layers=2, dim=768)}

# Runs inside the checkout: its classes, its dictionary. Only what needs a GPU, the network or a missing binary file is replaced.
REFERENCE = """
import gzip, json, os, sys, types
from pathlib import Path
import open_clip, torch
plain = gzip.open
vocabulary = Path(open_clip.__file__).parent/"bpe_simple_vocab_16e6.txt.gz"
gzip.open = lambda path, *args, **more: plain(path if os.path.exists(path) else vocabulary, *args, **more)
for name in ("gdown", "transformers"): sys.modules.setdefault(name, types.ModuleType(name))
sys.path.insert(0, os.getcwd())
torch.Tensor.cuda = lambda self, *args, **more: self
import clip
from clip.model import CLIP
import train_imgnet_semi as published
name, size, patch, width, layers, dim, out = sys.argv[1], *map(int, sys.argv[2:7]), Path(sys.argv[7])
names, prompts = json.loads(sys.argv[8])
torch.manual_seed(0)
model = CLIP(dim, size, layers, width, patch, 77, 49408, 64, 1, 2).eval()
torch.save(model.state_dict(), out/"clip.pt")
clip.load = lambda path: (model, None)
student = published.StudentModel(len(names), types.SimpleNamespace(classnames=names, template=prompts), name).eval()
begun = student.ce_head.weight.detach().clone()
for p in [*student.ce_head.parameters(), *student.kd_head.parameters()]: torch.nn.init.normal_(p, std=.05)
wrapped = torch.nn.Module(); wrapped.module = student
images = torch.randn(2, 3, size, size)
with torch.no_grad(): ce, kd = student(images)
torch.save(dict(model_state_dict=wrapped.state_dict(), epoch=31, acc=81.6, alpha=.5, beta=.5), out/"published.pt")
torch.save(dict(images=images, ce=ce, kd=kd, begun=begun), out/"said.pt")
"""


@pytest.fixture(scope="module", params=SHAPES)
def reference(request, tmp_path_factory):
    checkout = Path(os.environ.get("DHO_REFERENCE", ""))
    if not (checkout/"train_imgnet_semi.py").is_file():
        pytest.skip("needs DHO_REFERENCE, the folder of a checkout of github.com/erjui/DHO")
    folder, shape = tmp_path_factory.mktemp("reference"), SHAPES[request.param]
    done = subprocess.run([sys.executable, "-c", REFERENCE, request.param, *map(str, shape.values()), folder,
                           json.dumps([NAMES, PROMPTS])], cwd=checkout,
                          capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, shape, torch.load(folder/"said.pt", weights_only=True)


def test_the_references_own_student_says_the_same(reference, tmp_path):
    folder, shape, said = reference
    student, facts = load_published_checkpoint(folder/"published.pt", classes=NAMES)
    assert facts["args"] == shape and student.preprocess.size == shape["size"]
    assert facts["reported_accuracy"] == pytest.approx(.816)
    with torch.no_grad(): ce, kd = student.model(said["images"])
    torch.testing.assert_close(ce, said["ce"], rtol=0, atol=1e-4)
    torch.testing.assert_close(kd, said["kd"], rtol=0, atol=1e-4)
    assert kd.std() > 1  # 1e-4 is little beside that
    save_student(student, tmp_path/"ours.safetensors", **facts)
    with torch.no_grad(): assert load_checkpoint(tmp_path/"ours.safetensors")[0].model(said["images"])[1].equal(kd)


def test_the_references_beginning_from_text_is_ours(reference, tmp_path):
    folder, shape, said = reference
    vision = dict(image_size=shape["size"], patch_size=shape["patch"], width=shape["width"], layers=shape["layers"])
    config = dict(embed_dim=shape["dim"], quick_gelu=True, vision_cfg=vision,
                  text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2))
    (tmp_path/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg={})))
    save_file({k: v.contiguous() for k, v in torch.load(folder/"clip.pt", weights_only=True).items()},
              tmp_path/"open_clip_model.safetensors")
    ours = student_text_embeddings(f"open_clip:local-dir:{tmp_path}", NAMES, PROMPTS, reference=True)
    torch.testing.assert_close(ours, said["begun"], rtol=0, atol=1e-4)


def test_a_file_of_the_published_layout_opens_without_the_reference(tmp_path):
    shape = dict(SHAPES["ViT-B-16"], layers=1)
    student, facts = load_checkpoint(random_checkpoint(tmp_path/"vit_b.pt", 1000, **shape))
    assert facts["args"] == shape and facts["classes"][0] == "tench" and (facts["alpha"], facts["beta"]) == (.5, .5)
    images, held = torch.randn(1, 3, 224, 224), torch.load(tmp_path/"vit_b.pt", weights_only=True)["model_state_dict"]
    with torch.no_grad(): z, (ce, kd) = student.model.backbone(images), student.model(images)
    by_hand = 100*(z/z.norm(dim=1, keepdim=True) @ held["module.kd_head.weight"].T + held["module.kd_head.bias"])
    torch.testing.assert_close(kd, by_hand, rtol=0, atol=1e-4)
    torch.testing.assert_close(ce, z @ held["module.ce_head.weight"].T + held["module.ce_head.bias"], rtol=0, atol=1e-4)


def test_a_published_name_is_fetched_and_says_what_to_do_offline(tmp_path, monkeypatch):
    asked = []
    def fetched(repository, name):
        asked.append((repository, name))
        return str(random_checkpoint(tmp_path/name))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert load_checkpoint("vit_l_10.pt")[1]["source"] == "vit_l_10.pt" and asked == [("erjui/dho", "vit_l_10.pt")]
    def unreachable(repository, name): raise ConnectionError("no route to host")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(DhoError,
                       match="download it elsewhere from https://huggingface.co/erjui/dho/resolve/main/vit_l_10.pt"):
        published_checkpoint_file("vit_l_10.pt")


def test_a_clip_student_begun_from_language_is_a_zero_shot_classifier(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_PROGRESS", "none")
    config = preset("digits", student="open_clip:digits", student_weights="pretrained", size=0, head_init="text",
                    kd_head="cosine", frozen=True, epochs=1, lr=1e-12)
    run = distill(config, tmp_path/"run")
    assert run.result["kd_accuracy"] == pytest.approx(run.result["teacher_accuracy"], abs=.005)
    student, facts = load_student(tmp_path/"run"/"model.safetensors")
    assert (facts["kd_head"], facts["frozen"]) == ("cosine", True)
    tower = student.model.backbone.state_dict()
    bundled = load_file(shipped_file("bundled/digits_teacher")/"open_clip_model.safetensors")
    kept = {k.removeprefix("visual."): v for k, v in bundled.items() if k.startswith("visual.")}
    assert kept and all(v.to(tower[k].dtype).equal(tower[k]) for k, v in kept.items())


def test_the_evaluation_notebook_leaves_its_result(tmp_path):
    random_checkpoint(tmp_path/"small.pt")
    command = [sys.executable, "-m", "papermill", ROOT/"nbs/experiments/evaluate_checkpoint.ipynb",
               tmp_path/"done.ipynb", "-k", "python3", "--no-progress-bar"]
    run = lambda *more: subprocess.run([*command, "-p", "checkpoint", tmp_path/"small.pt", "-p", "out", tmp_path/"out",
                                        *more], capture_output=True,
                                       text=True, cwd=tmp_path,
                                       env={**os.environ, "DHO_PROGRESS": "none", "DHO_DEVICE": "cpu"})
    done = run("-p", "alpha", "0.2")
    assert done.returncode == 0, done.stderr[-2000:]
    left = json.loads((tmp_path/"out"/"evaluation.json").read_text())
    assert left["alpha"] == .2 and left["beta"] == .5 and set(left["heads"]) == {"CE head", "KD head", "both"}
    assert left["tested"] > 100
    assert left["heads"]["both"]["accuracy"] < .3 and np.isfinite(left["heads"]["both"]["nll"])
    wrong = run("-p", "alfa", "0.2")
    assert wrong.returncode != 0 and "did you mean 'alpha'" in wrong.stderr


@pytest.mark.skipif("DHO_REFERENCE" not in os.environ, reason="DHO_REFERENCE names no checkout of github.com/erjui/DHO")
def test_losses_are_those_of_the_published_loop(tmp_path):
    "The benchmark's notebook shows both losses and gradients to be the same before it times anything; here it times next to nothing"
    command = [sys.executable, "-m", "papermill", ROOT/"nbs/benchmarks/online_step.ipynb", tmp_path/"out.ipynb", "-k",
               "python3", "--no-progress-bar", "--cwd", ROOT, "-p", "reference", os.environ["DHO_REFERENCE"], "-p",
               "device", "cpu", "-p", "steps", "1", "-p", "repeats", "1", "-p", "batch", "8",
               "-p", "out", tmp_path/"found.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path/"found.json").read_text())["agreement"]
    for case in ("batch norm fixed", "halves apart, as theirs"):
        assert found[case]["ours"] == pytest.approx(found[case]["theirs"], rel=1e-5), case
