"Teachers from outside: what they are shown, what they read, and what is said where they cannot be had"
import errno
import hashlib
import json
import math
import shutil
import socket
import subprocess
import sys
import urllib.error
import warnings
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


from dho_nb.runs.config import make_config, preset
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.identity import run_identity, identity_weights_hash
from dho_nb.runs.run import distill
from dho_nb.deploy.evaluate import CheckpointEvaluation
from dho_nb.deploy.predictor import Predictor, load_pixels
from dho_nb.deploy.checkpoints import zero_shot_checkpoint
from dho_nb.teachers.embedding_store import CENTER_VIEW, Store, open_embedding_store, embedding_store_header
from dho_nb.runs.teacher_provider import fill_run_teacher_store, make_teacher_provider
from dho_nb.data.image_cache import ImageMap, crop_resize, center_crops
from dho_nb.core.errors import DhoError
from dho_nb.core.settings import shipped_file
from dho_nb.students.backbones import build_backbone
from dho_nb.students.dual_head import build_student, load_student, student_text_embeddings, save_student
from dho_nb.teachers.clip import (Teacher, download_error_advice, clip_preprocess_from_config, clip_image_tower, load_teacher, clip_resize_mode, clip_teacher_identity,
                                  download_error_kind, zero_shot_head)
from dho_nb.core.files import files_hash
from dho_nb.data.loaders import ImageLoader, EvalDataset, load_views
from dho_nb.data.transforms import Preprocess, ViewSpec, center_boxes

SQUARES = dict(shortest=dict(resize_mode="shortest"), squash=dict(resize_mode="squash"), longest=dict(resize_mode="longest", fill_color=127))
SHAPES = [(240, 80), (61, 203), (97, 131), (64, 64)]


def says(call, *words):
    with pytest.raises(DhoError) as caught: call()
    for word in words: assert word in str(caught.value), (word, str(caught.value))
    return str(caught.value)


def teacher_folder(place, **preprocess):
    "The digits' teacher, with other words in its preprocess_cfg"
    shutil.copytree(shipped_file("bundled/digits_teacher"), place)
    config = json.loads((place/"open_clip_config.json").read_text())
    config["preprocess_cfg"].update(preprocess)
    (place/"open_clip_config.json").write_text(json.dumps(config))
    return str(place)


def smooth(file, size, seed):
    "A picture whose pixels vary slowly, with something at its sides"
    small = np.random.default_rng(seed).integers(0, 255, (5, 9, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture
def oblong(tmp_path, monkeypatch):
    "Oblong pictures of two classes, and a cache of their own"
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache")); monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))
    monkeypatch.setenv("DHO_DEVICE", "cpu"); monkeypatch.setenv("DHO_PROGRESS", "none")
    for k in range(24): smooth(tmp_path/"data"/("cat", "dog")[k % 2]/f"{k}.{('png', 'jpg')[k//12]}", SHAPES[k % 4], k)
    return tmp_path/"data"


def own_pixels(folder, file):
    "What open_clip's own transform makes of a picture, as grey levels"
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    mean, std = (torch.tensor(transform.transforms[-1].__dict__[k])[:, None, None] for k in ("mean", "std"))
    with Image.open(file) as opened: return ((transform(opened)*std + mean)*255).numpy()


@pytest.mark.parametrize("mode", SQUARES)
def test_oblong_pictures_are_seen_as_open_clips_own_transform_shows_them(mode, oblong, tmp_path):
    "In every place: files, views from arrays, the store, the live teacher, evaluation, prediction"
    folder = teacher_folder(tmp_path/"teacher", **SQUARES[mode])
    config = make_config(dict(dataset=str(oblong), teacher=folder, student="tiny", student_weights="", shots=1, views=1,
                              epochs=1, size=16, test=.3))
    data = open_dataset(config)
    manifest, root = data.manifest, data.root
    files = [root/p for p in manifest.table["path"]]
    right = np.stack([own_pixels(folder, f) for f in files])
    near = lambda pixels, most=1: np.abs(np.asarray(pixels).astype(float) - right).max() <= most
    teacher, rows = load_teacher(folder), np.arange(len(files))
    preprocess = teacher.preprocess
    assert near([preprocess.render(Image.open(f).convert("RGB"), center_boxes([Image.open(f).size])[0]) for f in files])
    images = ImageLoader(manifest, root, preprocess.at_least)
    assert near(torch.cat([EvalDataset(images, rows, preprocess, 5)[k] for k in range(5)]))
    assert near(load_views(images, rows, [preprocess])[0]) and near(torch.cat([*center_crops(images, rows, preprocess, size=7)]))
    assert near([load_pixels(f, preprocess).transpose(2, 0, 1) for f in files]) and near([load_pixels(Image.open(f), preprocess).transpose(2, 0, 1) for f in files])
    whole = [torch.from_numpy(np.asarray(Image.open(f)).transpose(2, 0, 1).copy())[None] for f in files]
    mirror = torch.tensor([False])
    assert near(torch.cat([crop_resize(w, torch.from_numpy(preprocess.eval_boxes([w.shape[:1:-1]])), mirror, preprocess) for w in whole]), 2)  # Pillow computes with integers
    mirrored = crop_resize(whole[0], torch.from_numpy(center_boxes([whole[0].shape[:1:-1]])), ~mirror, preprocess)[0]
    assert np.abs(mirrored.numpy()[:, :, ::-1].astype(float) - right[0]).max() <= 2
    kept = ImageMap(manifest, root, 256, data.keys).build(mode="none")
    rough = torch.cat([*center_crops(kept, rows, preprocess, mode="none")]).numpy().astype(float)  # resized twice
    assert np.abs(rough - right).mean() < 3 and np.abs(rough - right).max() < 80
    expected = teacher.encode_images(torch.from_numpy(right).round().to(torch.uint8))
    same = lambda found, which: (found.float()*expected[which]).sum(1).min() > .999
    store = fill_run_teacher_store(config, mode="none").lookup
    seen = manifest.table["split"].isin(["test", "val"]).to_numpy().nonzero()[0]
    assert store.store.header["preprocess"].get("resize_mode", "shortest") == mode and same(store(seen, np.full(len(seen), CENTER_VIEW)), seen)
    assert store.store.preprocess == preprocess
    live = make_teacher_provider(replace(config, views="live"), mode="none")
    assert same(live.center_embeddings(seen), seen)
    scored = CheckpointEvaluation(folder, config)
    head = zero_shot_head(teacher, manifest.classes, manifest.templates)
    assert torch.allclose(scored.outputs.ce, expected[scored.rows] @ head.T/.01, atol=1.5)
    square = Teacher(teacher.model, teacher.tokenizer, "", "fp32")
    square.preprocess = Preprocess(preprocess.size, preprocess.mean, preprocess.std, preprocess.interpolation)
    assert near(load_views(images, rows, [square.preprocess])[0]) == (mode == "shortest")


@pytest.mark.parametrize("mode", SQUARES)
def test_a_student_by_open_clip_keeps_the_mode_in_its_file_and_exports(mode, oblong, tmp_path):
    folder = teacher_folder(tmp_path/"teacher", **SQUARES[mode])
    student = build_student(f"open_clip:{folder}", 2, weights="pretrained")
    assert student.preprocess == load_teacher(folder).preprocess and student.preprocess.resize_mode == mode
    save_student(student, tmp_path/"model.safetensors", spec=f"open_clip:{folder}", classes=["cat", "dog"], alpha=.5, beta=1.)
    again, facts = load_student(tmp_path/"model.safetensors", trust_remote_code=True)  # it names a folder
    assert again.preprocess == student.preprocess and facts["preprocess"].get("resize_mode", "shortest") == mode
    files = sorted(oblong.rglob("*.*"))[:8]
    wide = Predictor.from_pretrained(tmp_path/"model.safetensors", "cpu", trust_remote_code=True)
    assert wide.preprocess == student.preprocess
    for f in files: assert np.abs(load_pixels(f, wide.preprocess).transpose(2, 0, 1) - own_pixels(folder, f)).max() <= 1
    pytest.importorskip("onnxruntime"); pytest.importorskip("onnxscript")
    from dho_nb.deploy.export import export
    export(tmp_path/"model.safetensors", tmp_path/"out", images=[str(f) for f in files], trust_remote_code=True)
    assert Predictor.from_pretrained(tmp_path/"out").preprocess == student.preprocess
    done = subprocess.run([sys.executable, "predict_onnx.py", "model.onnx", *map(str, files)], cwd=tmp_path/"out",
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own = wide.predict([str(f) for f in files], mode="none")["probability"]
    alone = [float(line.split("\t")[2]) for line in done.stdout.splitlines()]
    assert np.allclose(alone, own, atol=2e-3)
    card = (tmp_path/"out"/"README.md").read_text()
    assert ("centered square" in card) == (mode == "shortest") == ("whole" not in card)


def test_training_views_do_not_depend_on_the_mode():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    box = np.array([.1, .2, .7, .9])
    views = [Preprocess(32, resize_mode=m).render(noise, box) for m in ("shortest", "squash", "longest")]
    assert all(np.array_equal(v, views[0]) for v in views)


def test_stores_of_another_mode_are_refused_and_the_usual_ones_stay(tmp_path, monkeypatch, oblong):
    folder = teacher_folder(tmp_path/"plain")
    assert clip_teacher_identity(folder) == files_hash(folder) and "preprocess" not in embedding_store_header(folder, ViewSpec())
    assert "resize_mode" not in embedding_store_header(folder, ViewSpec(), "fp32", load_teacher(folder))["preprocess"]
    assert clip_teacher_identity("ViT-B-16/openai") == "ViT-B-16/openai"
    assert clip_teacher_identity("ViT-B-16-SigLIP/webli") == "ViT-B-16-SigLIP/webli (squash)"
    # a model on the Hub: its identity is its name, so the header itself is compared
    monkeypatch.setattr("dho_nb.teachers.clip._cached_config", lambda name: {})
    old = embedding_store_header("hf-hub:some/model", ViewSpec(), "fp32")
    header = dict(old, dim=64, chunk=64, at_least=64, weights="x", preprocess=dict(size=32, mean=[.5]*3, std=[.5]*3, interpolation="bicubic"))
    Store(tmp_path/"old", header)
    assert open_embedding_store("d", "hf-hub:some/model", ViewSpec(), None, tmp_path/"old")
    monkeypatch.setattr("dho_nb.teachers.clip._cached_config", lambda name: dict(preprocess_cfg=dict(resize_mode="squash")))
    says(lambda: open_embedding_store("d", "hf-hub:some/model", ViewSpec(), None, tmp_path/"old"), "preprocess.resize_mode is None",
         "asked for 'squash'")
    squash = load_teacher(teacher_folder(tmp_path/"squash", resize_mode="squash"))
    config = make_config(dict(dataset=str(oblong), teacher=folder, student="tiny", student_weights="", shots=1, views=1, epochs=1, size=16))
    lookup = fill_run_teacher_store(config, mode="none").lookup
    shutil.rmtree(lookup.store.folder/".claims", ignore_errors=True)
    for file in lookup.store.folder.glob("*.crc"): file.unlink()
    says(lambda: lookup.embed(np.arange(4), [0], oblong, lambda: squash, mode="none"), "preprocess.resize_mode")


def test_identities_of_runs_say_how_oblong_pictures_are_seen(tmp_path):
    of = lambda **c: run_identity(make_config(dict(dataset="digits", **c)), open_dataset(make_config(dict(dataset="digits"))).manifest)
    plain, squash = teacher_folder(tmp_path/"plain"), teacher_folder(tmp_path/"squash", resize_mode="squash")
    assert of(teacher=plain) != of(teacher=squash) and of(teacher="digits") == of(teacher=str(shipped_file("bundled/digits_teacher")))
    assert of(student="open_clip:ViT-B-16-SigLIP/webli", student_weights="") != of(student="open_clip:ViT-B-16/openai", student_weights="")


@pytest.mark.parametrize("preprocess,wanted", [
    (dict(interpolation="random"), dict(interpolation="bicubic")), (dict(interpolation=None, resize_mode=None), {}),
    (dict(mean=.5, std=.25), dict(mean=(.5,)*3, std=(.25,)*3)), (dict(size=[32, 32]), {}), (dict(size=[32]), {}),
    (dict(resize_mode="longest", fill_color=[1, 2, 3]), dict(resize_mode="longest", fill=(1, 2, 3)))])
def test_a_configuration_is_taken_over_whole(preprocess, wanted):
    config = dict(size=32, mode="RGB", mean=[.5]*3, std=[.5]*3, interpolation="bicubic", resize_mode="shortest", fill_color=0)
    assert clip_preprocess_from_config({**config, **preprocess}) == Preprocess(**dict(dict(size=32, mean=(.5,)*3, std=(.5,)*3), **wanted))


def test_what_a_configuration_asks_and_cannot_be_done_is_refused():
    config = dict(size=32, mode="RGB", mean=[.5]*3, std=[.5]*3, interpolation="bicubic", resize_mode="shortest")
    says(lambda: clip_preprocess_from_config({**config, "size": [32, 64]}), "only squares")
    says(lambda: clip_preprocess_from_config({**config, "mode": "L"}), "not RGB")
    says(lambda: clip_preprocess_from_config({**config, "interpolation": "area"}), "unknown interpolation 'area'")
    says(lambda: clip_preprocess_from_config({**config, "resize_mode": "squish"}), "did you mean 'squash'")


def test_students_of_timm_keep_their_crop_mode():
    assert build_backbone("vit_tiny_patch16_224").preprocess.resize_mode == "shortest"
    assert build_backbone("timm:convnext_tiny.in12k_ft_in1k_384").preprocess.resize_mode == "squash"


# -- Prompts

TEXT = "a leaf with many small round spots that are brown at the edge and "

@pytest.mark.parametrize("classes,templates,words", [
    ([TEXT + "grey", TEXT + "black"], ["a photo of a {}."], ["reads 16 tokens", "22 and 22", "grey", "black", "shorten"]),
    (["Cat", "cat"], ["a {}."], ["'Cat' and 'cat'", "same", "16", "old=new"]),
    (["a  cat", "a cat ", "dog"], ["{}"], ["'a  cat' and 'a cat '"]),
    (["a_b", "a b"], ["{}"], ["'a_b' and 'a b'"]), (["ﬁsh", "fish"], ["{}"], ["'ﬁsh' and 'fish'"]),
    (["cat", ""], ["{}"], ["none of them empty"]), (["cat", " _ "], ["{}"], ["none of them empty"]),
    (["cat", 3], ["{}"], ["class names are texts"]), ([], ["{}"], ["class names are texts"]),
    (["cat"], ["a photo"], ["one {} each"]), (["cat"], ["{} {}"], ["one {} each"]), (["cat"], "a {}", ["one {} each"])])
def test_classes_that_a_text_encoder_cannot_tell_apart_are_refused(classes, templates, words):
    says(lambda: zero_shot_head(load_teacher("digits"), classes, templates), *words)


def test_prompts_that_are_cut_off_and_still_differ_are_counted_once():
    classes, templates = ["grey " + TEXT, "black " + TEXT, "dog"], ["a photo of a {}.", "{}"]
    with pytest.warns(UserWarning) as said: zero_shot_head(load_teacher("digits"), classes, templates)
    assert len(said) == 1 and "4 of 6 prompts" in str(said[0].message) and "16 tokens" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero_shot_head(load_teacher("digits"), ["zero", "one"], ["a photo of the number {}."])
        exact = " ".join(["cat"]*14)  # with both ends 16 tokens, none of them cut off
        zero_shot_head(load_teacher("digits"), [exact, "dog"], ["{}"])
    with pytest.warns(UserWarning, match="has 17"): zero_shot_head(load_teacher("digits"), [exact + " cat", "dog"], ["{}"])


def test_a_students_own_text_tower_refuses_them_too(tmp_path):
    folder = teacher_folder(tmp_path/"t")
    says(lambda: student_text_embeddings(f"open_clip:{folder}", [TEXT + "grey", TEXT + "black"], ["{}"]), "cannot tell 2 classes apart")


# -- Configurations beside weights

@pytest.fixture
def tiny_clip(tmp_path):
    "An architecture of open_clip's by name, as small as the digits' teacher, and a CoCa of that size"
    digits = json.loads((shipped_file("bundled/digits_teacher")/"open_clip_config.json").read_text())["model_cfg"]
    digits["vision_cfg"] = dict(image_size=32, patch_size=8, width=32, layers=2, head_width=16)
    coca = dict(digits, text_cfg=dict(digits["text_cfg"], embed_cls=True, output_tokens=True), custom_text=True,
                vision_cfg=dict(digits["vision_cfg"], attentional_pool=True, attn_pooler_heads=4, output_tokens=True),
                multimodal_cfg=dict(context_length=16, vocab_size=digits["text_cfg"].get("vocab_size", 49408), width=64, heads=2,
                                    layers=1, attn_pooler_heads=2))
    (tmp_path/"architectures").mkdir()
    for name, config in (("Tiny-clip", digits), ("Tiny-coca", coca)):
        (tmp_path/"architectures"/f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path/"architectures")
    yield digits
    for name in ("Tiny-clip", "Tiny-coca"): open_clip.factory._MODEL_CONFIGS.pop(name)
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path/"architectures")


def weights_alone(place):
    place.mkdir()
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in open_clip.create_model("Tiny-clip", load_weights=False).state_dict().items()}, place/"w.safetensors")


def beside(place, base, model=None, preprocess=None):
    "Weights of that architecture, and a configuration beside them"
    weights_alone(place)
    config = dict(**(dict(model_cfg=dict(base, **model)) if model is not None else {}), preprocess_cfg=preprocess or {})
    (place/"open_clip_config.json").write_text(json.dumps(config))
    return f"Tiny-clip/{place/'w.safetensors'}"


def activation(teacher): return type(teacher.model.visual.transformer.resblocks[0].mlp.gelu).__name__


def test_a_configuration_beside_weights_counts(tiny_clip, tmp_path):
    plain = tmp_path/"plain"
    weights_alone(plain)
    usual = load_teacher(f"Tiny-clip/{plain/'w.safetensors'}")
    assert activation(usual) == "GELU" and usual.preprocess.mean[0] == pytest.approx(.48145466)
    assert clip_teacher_identity(f"Tiny-clip/{plain/'w.safetensors'}") == f"Tiny-clip/{files_hash(plain/'w.safetensors')}"
    preprocess = dict(mean=[.1, .2, .3], std=[.4, .5, .6], interpolation="bilinear", resize_mode="squash", size=999)
    spec = beside(tmp_path/"own", tiny_clip, dict(quick_gelu=True), preprocess)
    made = load_teacher(spec)
    assert activation(made) == "QuickGELU"
    assert made.preprocess == Preprocess(usual.preprocess.size, (.1, .2, .3), (.4, .5, .6), "bilinear", "squash")
    assert clip_resize_mode(spec) == "squash" and clip_teacher_identity(spec).endswith(" (squash)") and clip_teacher_identity(spec).count("/") == 2
    bare = load_teacher(beside(tmp_path/"bare", tiny_clip, None, dict(mean=[.5]*3)))
    assert activation(bare) == "GELU" and bare.preprocess.mean == (.5,)*3
    larger = dict(vision_cfg=dict(tiny_clip["vision_cfg"], image_size=2*tiny_clip["vision_cfg"]["image_size"]))
    assert load_teacher(beside(tmp_path/"larger", tiny_clip, larger)).preprocess.size == 2*usual.preprocess.size


def test_a_configuration_of_another_network_is_refused(tiny_clip, tmp_path):
    wide = dict(vision_cfg=dict(tiny_clip["vision_cfg"], width=2*tiny_clip["vision_cfg"]["width"]))
    says(lambda: load_teacher(beside(tmp_path/"wide", tiny_clip, wide)), "another network than Tiny-clip", "vision_cfg.width")
    says(lambda: load_teacher(beside(tmp_path/"dim", tiny_clip, dict(embed_dim=8))), "embed_dim 8, not")
    spec = beside(tmp_path/"broken", tiny_clip)
    (tmp_path/"broken"/"open_clip_config.json").write_text("{")
    says(lambda: load_teacher(spec), "open_clip_config.json cannot be read", "download it again")
    (tmp_path/"broken"/"open_clip_config.json").write_text("[]")
    says(lambda: load_teacher(spec), "is no configuration of open_clip's")


def test_a_student_of_such_weights_is_the_same_where_the_weights_are_not(tiny_clip, tmp_path):
    spec = beside(tmp_path/"own", tiny_clip, dict(quick_gelu=True), dict(mean=[.1]*3))
    file = str(tmp_path/"own"/"w.safetensors")
    pixels = torch.randn(2, 3, *[load_teacher(spec).preprocess.size]*2)
    for name, weights in ((f"open_clip:{spec}", ""), ("open_clip:Tiny-clip", file)):
        made = build_student(name, 3, weights=weights)
        assert made.preprocess.mean == (.1,)*3
        save_student(made, tmp_path/"kept.safetensors", spec=name, args={}, classes=["a", "b", "c"])
        (tmp_path/"own").rename(tmp_path/"gone")
        again, facts = load_student(tmp_path/"kept.safetensors")
        (tmp_path/"gone").rename(tmp_path/"own")
        assert facts["args"] == dict(quick_gelu=True) and again.preprocess == made.preprocess
        with torch.no_grad(): assert torch.equal(again.model(pixels)[0], made.model.eval()(pixels)[0])


def test_coca_answers_zero_shot_and_is_a_student(tiny_clip):
    digits = open_dataset(make_config(dict(dataset="digits"))).manifest
    student, facts = zero_shot_checkpoint("Tiny-coca/random", digits)
    pixels = torch.randn(2, 3, *[student.preprocess.size]*2)
    with torch.no_grad():
        teacher = load_teacher("Tiny-coca/random")
        wanted = torch.nn.functional.normalize(teacher.model.encode_image(pixels), dim=-1) @ student.model.ce_head.weight.T/teacher.zeta
        assert torch.allclose(student.model(pixels)[0], wanted, atol=1e-3) and facts["heads"] == 1
        assert build_backbone("open_clip:Tiny-coca").module(pixels).shape == (2, teacher.dim)
        assert clip_image_tower(teacher)(pixels).shape == (2, teacher.dim)


# -- What is said where a teacher or a student's weights cannot be had

def raised(*errors):
    "The last of several errors, each raised from the one before"
    for before, error in zip((None, *errors), errors): error.__cause__ = before
    return errors[-1]


def hub_error(name, status=None):
    import httpx
    from huggingface_hub import errors
    kind = getattr(errors, name)
    if status is None: return kind("said")
    return kind("said", response=httpx.Response(status, request=httpx.Request("HEAD", "https://huggingface.co/x")))


@pytest.mark.parametrize("error,kind,words", [
    (lambda: raised(socket.gaierror(-2, "Name or service not known"), RuntimeError("Failed")), "network", ["no internet here", "download elsewhere, from ADDRESS, WAY"]),
    (lambda: raised(urllib.error.URLError("x")), "network", ["no internet"]),
    (lambda: raised(hub_error("LocalEntryNotFoundError"), FileNotFoundError("Failed to download")), "network", ["no internet"]),
    (lambda: hub_error("OfflineModeIsEnabled"), "network", ["no internet"]), (lambda: TimeoutError("slow"), "network", ["no internet"]),
    (lambda: hub_error("GatedRepoError", 403), "gated", ["accept its terms at ADDRESS", "HF_TOKEN"]),
    (lambda: hub_error("RepositoryNotFoundError", 401), "absent", ["no such model at ADDRESS", "private"]),
    (lambda: hub_error("RemoteEntryNotFoundError", 404), "file", ["ADDRESS does not have the file"]),
    (lambda: urllib.error.HTTPError("u", 404, "Not Found", {}, None), "file", ["does not have"]),
    (lambda: urllib.error.HTTPError("u", 503, "Busy", {}, None), "server", ["try again later"]),
    (lambda: raised(OSError(errno.ENOSPC, "No space left on device"), RuntimeError("x")), "disk", ["disk is full", "HF_HOME"]),
    (lambda: PermissionError(errno.EACCES, "Permission denied", "/cache/x"), "folder", ["cannot be written", "HF_HOME"]),
    (lambda: ModuleNotFoundError("No module named 'transformers'", name="transformers"), "module", ["pip install 'dho_nb[siglip]'"]),
    (lambda: ModuleNotFoundError("No module named 'fairscale'", name="fairscale"), "module", ["pip install fairscale"]),
    (lambda: RuntimeError("Error(s) in loading state_dict for CLIP:\n\tMissing key(s): a.b"), "shapes", ["the weights do not fit MODEL", "a.b"]),
    (lambda: ValueError("another thing"), "other", ["another thing"])])
def test_the_reason_that_is_said_is_the_reason(error, kind, words, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert download_error_kind(error())[0] == kind
    told = download_error_advice(error(), "ADDRESS", "WAY", "MODEL")
    assert all(w in told for w in words), told


def quiet(code, **env):
    "What a process prints, without a network"
    import os
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", **env})
    return done.stdout + done.stderr


def test_without_a_network_it_is_said_once_what_to_fetch_and_from_where(tmp_path):
    code = ("from dho_nb.students.backbones import build_backbone\nfrom dho_nb.teachers.clip import load_teacher\n"
            "for f in (lambda: build_backbone('resnet18', 'pretrained'), lambda: load_teacher('ViT-B-32/openai'),\n"
            "          lambda: load_teacher('hf-hub:some/model')):\n"
            "    try: f()\n    except ValueError as e: print(type(e).__name__, e)")
    lines = quiet(code, HF_HOME=str(tmp_path)).strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("DhoError") and "download elsewhere, from https://huggingface.co/" in line for line in lines), lines
    assert "timm/resnet18.a1_in1k, model.safetensors and give it as student_weights" in lines[0]
    assert "timm/vit_base_patch32_clip_224.openai, open_clip_config.json and" in lines[1] and "some/model" in lines[2]


def test_transformers_are_asked_for_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "transformers" else object())
    monkeypatch.setattr("open_clip.create_model", lambda *a, **k: pytest.fail("a model was made"))
    for spec in ("ViT-B-16-SigLIP/webli", "ViT-B-16-SigLIP/random", "ViT-H-14-CLIPA/datacomp1b", "nllb-clip-base/v1"):
        says(lambda: load_teacher(spec), "transformers is not installed", "pip install 'dho_nb[siglip]'", spec.split("/")[0])


@pytest.mark.parametrize("content,words", [
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"), (b"<!DOCTYPE html>", "web page"), (b"", "is empty"),
    (b"not weights", "neither a file of PyTorch's")])
def test_files_that_are_no_weights_are_called_so_for_teachers_too(content, words, tmp_path, tiny_clip):
    (tmp_path/"w.pt").write_bytes(content)
    says(lambda: load_teacher(f"Tiny-clip/{tmp_path/'w.pt'}"), words, "w.pt")
    folder = tmp_path/"folder"
    teacher_folder(folder)
    (folder/"open_clip_model.safetensors").write_bytes(content)
    says(lambda: load_teacher(str(folder)), words, "open_clip_model.safetensors")
    (folder/"open_clip_model.safetensors").unlink()
    says(lambda: load_teacher(str(folder)), "holds no weights")


def test_weights_of_another_network_say_so(tiny_clip, tmp_path):
    torch.save({k: torch.ones(1) for k in ("visual.proj", "logit_scale", "positional_embedding")}, tmp_path/"w.pt")
    told = says(lambda: load_teacher(f"Tiny-clip/{tmp_path/'w.pt'}"), "cannot be loaded")
    assert "check that" not in told and "internet" not in told


# -- Hashes

def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    file, count, real = tmp_path/"w.bin", [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: count.append(1) or real(*a))
    file.write_bytes(b"a"*1000)
    first = [identity_weights_hash(str(file)) for _ in range(12)] + [files_hash(file), files_hash(tmp_path)]
    assert len(count) == 1 and len(set(first[:13])) == 1
    file.write_bytes(b"b"*1000)
    assert identity_weights_hash(str(file)) != first[0] and len(count) == 2
    (tmp_path/"other.bin").write_bytes(b"c")
    assert files_hash(tmp_path) != first[-1] and len(count) == 3
    clip_teacher_identity("digits"), clip_teacher_identity("digits")
    assert len(count) <= 3 + len([*shipped_file("bundled/digits_teacher").iterdir()])


def test_a_large_file_is_hashed_once_for_all_processes(tmp_path, monkeypatch):
    from dho_nb.core import files
    file, count, real = tmp_path/"w.bin", [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: count.append(1) or real(*a))
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(files, "_LARGE", 500)
    file.write_bytes(b"a"*1000)
    def another_process(): files._DIGESTS.clear(); return files_hash(file)
    first = another_process()
    assert another_process() == first and len(count) == 2, "a file that has just changed may change again within the clock's grain"
    monkeypatch.setattr(files, "_SETTLED", -1)
    assert [another_process() for _ in range(3)] == [first]*3 and len(count) == 3
    notes = [*(tmp_path/"cache"/"hashes").iterdir()]
    for damage in ("{", "[]", "{}", notes[0].read_text().replace("w.bin", "v.bin"), notes[0].read_text()[:-9] + '"\n}'):
        notes[0].write_text(damage)
        assert another_process() == first
    assert len(count) == 8
    file.write_bytes(b"b"*1000)
    assert another_process() != first and len(count) == 9


def test_openais_own_files_have_their_activation(tmp_path):
    import torch
    from dho_nb.teachers.clip import _lacks_quickgelu
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path/"RN50.pt")
    torch.save({}, tmp_path/"other.pt")
    assert _lacks_quickgelu("RN50", str(tmp_path/"RN50.pt")) and not _lacks_quickgelu("RN50-quickgelu", str(tmp_path/"RN50.pt"))
    assert not _lacks_quickgelu("RN50", str(tmp_path/"other.pt")) and not _lacks_quickgelu("RN50", "yfcc15m/other.pt")


def test_zeta_auto_is_the_one_that_the_teacher_was_trained_with(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    folder = shutil.copytree(shipped_file("bundled/digits_teacher"), tmp_path/"teacher")
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    weights["logit_scale"] = torch.tensor(math.log(20.0))
    save_file(weights, file)
    config = preset("digits", teacher=str(folder), zeta="auto", epochs=1, views=1)
    assert load_teacher(str(folder)).zeta == pytest.approx(.05)
    runs = {z: distill(replace(config, zeta=z), tmp_path/f"zeta-{z}", "none").result for z in ("auto", .05, .01)}
    assert runs["auto"]["zeta"] == pytest.approx(.05) and runs[.01]["zeta"] == .01
    assert runs["auto"]["teacher_nll"] == pytest.approx(runs[.05]["teacher_nll"], rel=1e-5) != runs[.01]["teacher_nll"]
    live = make_teacher_provider(replace(config, views="live"), mode="none")
    assert live.zeta() == make_teacher_provider(config, mode="none").zeta() == pytest.approx(.05)
    assert preset("paper/fewshot-resnet18").zeta == .01
    for wrong in (0, -1, "many", True, float("nan")):
        with pytest.raises(DhoError, match="zeta"): preset("digits", zeta=wrong)


def digits_folder(place, zeta):
    "The digits' teacher with another logit scale"
    folder = shutil.copytree(shipped_file("bundled/digits_teacher"), place)
    file = next(folder.glob("*.safetensors"))
    save_file({**load_file(file), "logit_scale": torch.tensor(-math.log(zeta))}, file)
    return str(folder)


def test_embeddings_made_elsewhere_have_the_zeta_of_the_named_text_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    spec = digits_folder(tmp_path/"teacher", .05)
    manifest = open_dataset(make_config(dict(dataset="digits"))).manifest
    own = np.random.default_rng(0).normal(size=(len(manifest), 64)).astype(np.float32)
    np.savez(tmp_path/"clip.npz", paths=manifest.table["path"].to_numpy(str), embeddings=own)
    config = preset("digits", embeddings=str(tmp_path/"clip.npz"), teacher=spec, zeta="auto")
    first = make_teacher_provider(config, mode="none")
    assert first.zeta() == pytest.approx(.05) and first.class_embeddings() is not None
    monkeypatch.setattr("dho_nb.runs.teacher_provider.load_teacher", lambda *a, **k: pytest.fail("loaded for a number that is stored"))
    again = make_teacher_provider(config, mode="none")
    assert again.class_embeddings().shape == (10, 64) and again.zeta() == pytest.approx(.05)
    assert make_teacher_provider(replace(config, zeta=.01), mode="none").zeta() == .01


def test_a_teacher_is_evaluated_with_its_own_zeta(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_DEVICE", "cpu"); monkeypatch.setenv("DHO_PROGRESS", "none")
    config = make_config(dict(dataset="digits"))
    sharp, soft = (CheckpointEvaluation(digits_folder(tmp_path/f"z{z}", z), config, "val") for z in (.01, .05))
    assert torch.allclose(sharp.outputs.ce, 5*soft.outputs.ce, atol=1e-3) and sharp.identity != soft.identity


def test_coca_is_scored_on_the_command_line(tiny_clip, tmp_path, monkeypatch, capsys):
    from dho_nb.cli.main import main
    monkeypatch.setenv("DHO_DEVICE", "cpu"); monkeypatch.setenv("DHO_PROGRESS", "none")
    config = dict(model_cfg=open_clip.get_model_config("Tiny-coca"), preprocess_cfg={})
    model = open_clip.create_model("Tiny-coca", load_weights=False)
    (tmp_path/"coca").mkdir()
    (tmp_path/"coca"/"open_clip_config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path/"coca"/"open_clip_model.safetensors")
    assert main(["evaluate", str(tmp_path/"coca"), "--dataset", "digits", "--split", "val"]) in (0, None)
    assert "digits: 200 images" in capsys.readouterr().out
