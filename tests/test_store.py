"Embeddings and pictures that are made once: killed, shared, split, brought along, and never computed twice"
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps

from conftest import OPTIONS, ROOT, drawn_seed, picture
from dho_nb.runs.identity import run_identity
from dho_nb.runs.config import Config, make_config, preset
from dho_nb.teachers.embedding_store import Lookup, match_class_embeddings, open_embedding_store
from dho_nb.runs.teacher_provider import fill_run_teacher_store, make_teacher_provider
from dho_nb.data.manifests import Manifest, manifest_root, open_manifest, manifest_rows
from dho_nb.data.label_subsets import labeled_subset
from dho_nb.data.chunk_store import Chunked, ChunkStore
from dho_nb.data.image_cache import ImageMap
from dho_nb.data.leases import Leases
from dho_nb.losses.methods import get_method
from dho_nb.runs.run import distill
from dho_nb.core.errors import DhoError
from dho_nb.students.dual_head import build_student
from dho_nb.teachers.clip import load_teacher, teacher_logits, zero_shot_head
from dho_nb.training.trainer import TrainConfig, Trainer
from dho_nb.teachers.targets import online_teacher, cached_teacher
from dho_nb.data.loaders import ImageLoader, SemiSupervisedBatches
from dho_nb.data.transforms import ViewSpec

FILL = [sys.executable, "-m", "dho_nb.cli.main", "store", "fill", "--preset", "digits"]
BUILD = [sys.executable, "-c", """
import sys
from pathlib import Path
from dho_nb.data.manifests import manifest_root, open_manifest
from dho_nb.data.chunk_store import Chunked, ChunkStore
from dho_nb.data.image_cache import ImageMap
digits = open_manifest("digits")
print("ready", flush=True)
ImageMap(digits, manifest_root(digits), 64, folder=sys.argv[1]).build(mode="none")
"""]
KILLED = """
import os, runpy, signal, sys, threading, time
from dho_nb.data import chunk_store as maps
puts, delay, maps.FLUSH = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
written, put = [], maps.Chunked.put
def die(): time.sleep(delay); os.kill(os.getpid(), signal.SIGKILL)
def counted(self, chunk, values):
    put(self, chunk, values)
    written.append(chunk)
    if len(written) == puts: threading.Thread(target=die).start()
maps.Chunked.put = counted
if sys.argv[4] == "-c": code = sys.argv[5]; sys.argv = ["-c", *sys.argv[6:]]; exec(code, {"__name__": "__main__"})
else: module = sys.argv[5]; sys.argv = [module, *sys.argv[6:]]; runpy.run_module(module, run_name="__main__")
"""


def start(command):
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True,
                            env={**os.environ, "DHO_PROGRESS": "none", "DHO_DEVICE": "cpu", "OMP_NUM_THREADS": "1"})


def finish(command):
    process = start(command)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def kill_often(command, puts, kills=10):
    "Run something that fills chunks, each time killed at a random moment after a few of them; how often that came before the end"
    rng, survived = random.Random(drawn_seed()), 0
    for _ in range(kills):
        process = start([sys.executable, "-c", KILLED, rng.randint(1, puts), rng.uniform(0, .02),
                         rng.choice([0, .05, 2]), *command[1:]])
        said = process.communicate(timeout=300)[0]
        survived += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), said
    return survived


def test_a_store_that_is_killed_ten_times_is_the_same_store(tmp_path):
    one, other = tmp_path/"one", tmp_path/"other"
    fill = lambda folder: [*FILL, "--views", 24, "--store", folder]
    finish(fill(one))
    assert kill_often(fill(other), 40) >= 8, "the kills came too late to mean anything"
    finish(fill(other))
    assert content(one).keys() == content(other).keys()
    assert [n for n, b in content(one).items() if b != content(other)[n]] == []
    finish([sys.executable, "-m", "dho_nb.cli.main", "store", "verify", "--preset", "digits", "--views", 24, "--store",
            other, "--sample", 8])


def test_an_image_map_that_is_killed_ten_times_is_the_same_map(tmp_path):
    one, other = tmp_path/"one", tmp_path/"other"
    finish([*BUILD, one])
    assert kill_often([*BUILD, other], 2) >= 3, "the kills came too late to mean anything"
    finish([*BUILD, other])
    assert content(one) == content(other)


def test_two_fillers_share_the_work(tmp_path):
    alone, shared = tmp_path/"alone", tmp_path/"shared"
    finish([*FILL, "--views", 16, "--store", alone])
    both = [start([*FILL, "--views", 16, "--store", shared]) for _ in range(2)]
    said = [p.communicate(timeout=300)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert content(alone) == content(shared)
    computed = [int(s.split(" embeddings computed")[0].split()[-1]) for s in said]
    assert 16*1097 + 700 <= sum(computed) < 1.1*(16*1097 + 700) and min(computed) > 0, computed


def test_parts_are_joined(dho, tmp_path):
    dho("store", "fill", "--preset", "digits", "--views", "2", "--store", "whole")
    for k in (1, 2, 3):
        assert dho("store", "fill", "--preset", "digits", "--views", "2", "--store", f"part{k}", "--part",
                   f"{k}/3")[0] == 0
    code, said, _ = dho("store", "join", "part3", "part1", "part2", "--out", "joined")
    assert code == 0 and "view001" in said
    assert content(tmp_path/"joined") == content(tmp_path/"whole")
    assert sum(p.stat().st_nlink > 1 for p in (tmp_path/"joined").glob("*.npy")) >= 4, "full files were copied"
    code, _, said = dho("store", "verify", "--preset", "digits", "--views", "2", "--store", "part1", "--crop", "0.3")
    assert code == 2 and "views.scale is [0.5, 1.0], asked for [0.3, 1.0]" in said
    assert dho("store", "fill", "--preset", "digits", "--part", "4/3")[0] == 2
    assert "view000" in dho("store", "show", "joined")[1]
    assert "did you mean '--sample'" in dho("store", "verify", "--preset", "digits", "--smple", "3")[2]


@pytest.fixture
def asked(monkeypatch):
    "Counts how often a teacher is loaded, and how many images it looks at"
    import dho_nb.runs.teacher_provider
    teachers = []
    def load(*args, **kwargs):
        teachers.append(load_teacher(*args, **kwargs))
        return teachers[-1]
    monkeypatch.setattr(dho_nb.runs.teacher_provider, "load_teacher", load)
    return teachers


def test_a_second_run_asks_the_teacher_nothing(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    first = distill(preset("digits", epochs=2), tmp_path/"first")
    assert first.result["teacher_looked"] == 2*1097 + 500 and len(asked) == 1
    assert first.open_teacher().teacher is None, "what is stored needs no teacher in memory"
    others = [dict(seed=1), dict(fraction=0., shots=4), dict(method="kd"), dict(method="sho", zeta=.02), dict(size=24),
              dict(teacher_head="tip-adapter-f"), dict(epochs=1)]
    for i, change in enumerate(others):
        assert distill(preset("digits", **{"epochs": 2, **change}),
                       tmp_path/f"other{i}").result["teacher_looked"] == 0, change
    assert len(asked) == 1, "the teacher was not even loaded again"
    more = distill(preset("digits", epochs=3), tmp_path/"more")
    assert more.result["teacher_looked"] == 1097, "a store grows by the views that are missing"
    other_prompts = distill(preset("digits", epochs=2, templates=["the figure {}"]), tmp_path/"prompts")
    assert other_prompts.result["teacher_looked"] == 0


def test_stored_and_live_teacher_give_the_same_losses(tmp_path):
    digits, spec = open_manifest("digits"), ViewSpec(flip=0.)
    root, teacher = manifest_root(digits), load_teacher("digits")
    lookup = Lookup(open_embedding_store("digits", "digits", spec, lambda: teacher, tmp_path/"store"), digits)
    lookup.embed(manifest_rows(digits, "train"), range(2), root, lambda: teacher, mode="none")
    labeled = labeled_subset(digits, shots=2).rows
    answer = partial(teacher_logits, head=zero_shot_head(teacher, digits.classes, digits.templates))
    student, images = build_student("tiny", 10, 2, size=16), ImageLoader(digits, root, 64)
    def trainer(preprocess, store, teacher_fn):
        streams = SemiSupervisedBatches(images, labeled, np.setdiff1d(manifest_rows(digits, "train"), labeled), student.preprocess, preprocess,
                          spec, cycle=2, lookup=store)
        return Trainer(student, get_method("dho"), streams, TrainConfig(epochs=4, lr=3e-3), teacher_fn)
    online, replayed = trainer(teacher.preprocess, None, online_teacher(teacher, answer)), trainer(None, lookup, cached_teacher(answer))
    for step in range(online.steps):
        one, other = (t.losses(t.streams[step]) for t in (online, replayed))
        for name in one: assert one[name].item() == pytest.approx(other[name].item(), rel=5e-3, abs=1e-4), (step, name)
        online.train_step(online.streams[step])
    assert online.history[-1]["loss"] < .3*online.history[0]["loss"], "it learnt, so the losses that agreed were of many sizes"
    assert one["loss"].item() != other["loss"].item(), "half precision leaves a trace, or this compared a thing with itself"


def embeddings_file(folder, config, **texts):
    "What somebody would bring who ran the digits' teacher elsewhere"
    teacher, provider = load_teacher("digits"), make_teacher_provider(replace(config, views="live"), mode="none")
    manifest = provider.manifest
    np.savez(folder/"clip.npz", paths=[f"/somewhere/else/{p}" for p in manifest.table["path"]],
             embeddings=3*provider.center_embeddings(np.arange(len(manifest))).numpy(), classes=list(manifest.classes),
             text=zero_shot_head(teacher, manifest.classes, manifest.templates).numpy())
    return folder/"clip.npz"


def test_own_embeddings_need_no_teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    file = embeddings_file(tmp_path, preset("digits"))
    monkeypatch.setattr("dho_nb.runs.teacher_provider.load_teacher", lambda *a, **k: pytest.fail("the teacher was asked for"))
    config = preset("digits", epochs=8, embeddings=str(file), teacher="ViT-B-16/openai")
    run = distill(config, tmp_path/"run")
    assert run.result["teacher_accuracy"] == pytest.approx(.78, abs=.005) and run.result["accuracy"] > .6
    file.rename(tmp_path/"moved.npz")
    assert distill(replace(config, embeddings=str(tmp_path/"moved.npz")),
                   tmp_path/"run").result["accuracy"] == run.result["accuracy"], "where it lies does not matter"
    few = distill(replace(config, embeddings=str(tmp_path/"moved.npz"), teacher_head="tip-adapter-f", epochs=1),
                  tmp_path/"few")
    assert few.result["teacher_accuracy"] is not None


def test_own_embeddings_that_do_not_match_are_listed(dho, tree, tmp_path):
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(12)]
    text = dict(classes=["Dog", "Cat"], text=np.eye(8)[:2])
    np.savez(tmp_path/"some.npz", paths=names[:20] + ["cat/99.png"],
             embeddings=np.random.default_rng(0).normal(size=(21, 8)), **text)
    code, said, _ = dho("store", "import", "some.npz", "--images", tree)
    assert code == 0 and "20 of 24 images have an embedding" in said
    assert "cat/99.png embedding without an image" in said and "dog/9.png" in said
    options = ["--images", tree, "--shots", "2", "--embeddings", "some.npz", "--student", "tiny", "--student-weights",
               "", "--size", "16", "--epochs", "1"]
    code, _, said = dho("distill", *options)
    assert code == 2 and "4 image(s)" in said and "it has no embedding" in said
    code, said, _ = dho("distill", *options, "--skip-broken", "--out", "run")
    assert code == 0 and len(pd.read_csv(tmp_path/"run"/"skipped.csv")) == 4
    code, _, said = dho("distill", *options[:-2], "--views", "live")
    assert code == 2 and "leave one of them out" in said
    code, _, said = dho("distill", *options[:4], "--embeddings", "gone.npz")
    assert code == 2 and "gone.npz" in said


def test_a_picture_that_changed_is_looked_at_again(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    config = make_config(dict(dataset=str(tree), shots=2, teacher="digits", student="tiny", student_weights="",
                              size=16, views=2))
    assert fill_run_teacher_store(config, mode="none").num_encoded == 2*24
    picture(tree/"cat"/"3.png", seed=999)
    assert fill_run_teacher_store(config, mode="none").num_encoded == 2, "it, and nothing else"
    picture(tree/"cat"/"new.png", seed=1000)
    again = fill_run_teacher_store(config, mode="none")
    assert again.num_encoded == 2 and len(again.lookup.rows) == 25
    assert fill_run_teacher_store(config, mode="none").num_encoded == 0
    again.lookup.verify(tree, again.load(), sample=50)


def test_mixed_sizes_and_shapes_are_cut_alike_from_files_and_map(tmp_path):
    for i, (w, h) in enumerate([(300, 200), (90, 160), (64, 64), (500, 100)]*3):  # noise looks alike wherever it is cut
        right, down = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
        (file := tmp_path/"t"/"ab"[i % 2]/f"{i}.jpg").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([right, down, 255 - right], -1).astype(np.uint8)).save(file, quality=95)
    manifest = open_manifest(str(tmp_path/"t"))
    student = build_student("tiny", 2, size=32).preprocess
    smooth = lambda x: torch.nn.functional.avg_pool2d(x.float(), 8)
    pixels = ImageMap(manifest, tmp_path/"t", 384, np.array([f"k{i}" for i in range(12)]),
                      tmp_path/"map").build(mode="none")
    from_files, from_map = (SemiSupervisedBatches(ImageLoader(manifest, tmp_path/"t"), np.arange(4), np.arange(4, 12), student, pixels=p)
                            for p in (None, pixels))
    for step in (0, 3):
        a, b = from_files[step], from_map[step]
        assert torch.equal(a.rows, b.rows) and torch.equal(a.views, b.views)
        apart = (smooth(from_files.student_pixels(a)) - smooth(from_map.student_pixels(b))).abs().mean((1, 2, 3))
        assert apart.max() < 4, "the same places, resampled twice"


def test_nothing_is_read_from_a_pickle(dho, tree, tmp_path):
    np.savez(tmp_path/"evil.npz", paths=np.array(["a", {"b": 1}], dtype=object), embeddings=np.eye(2))
    code, _, said = dho("store", "import", "evil.npz", "--images", tree)
    assert code == 2 and "Python objects" in said
    (tmp_path/"notes").mkdir(); (tmp_path/"notes"/"thesis.txt").write_text("mine")
    code, _, said = dho("store", "fill", "--preset", "digits", "--store", "notes")
    assert code == 2 and "holds other files" in said and (tmp_path/"notes"/"thesis.txt").read_text() == "mine"
    assert json.loads((tmp_path/"notes"/"thesis.txt").with_name("header.json")
                      .read_text() if (tmp_path/"notes"/"header.json").exists() else "null") is None


def test_a_file_that_was_cut_short_is_made_anew(tmp_path):
    digits = open_manifest("digits")
    build = lambda: ImageMap(digits, manifest_root(digits), 8, folder=tmp_path/"map").build(mode="none")
    before = build().fetch(np.arange(len(digits)))
    whole = (tmp_path/"map"/"pixels.npy").stat().st_size
    os.truncate(tmp_path/"map"/"pixels.npy", whole//2)
    assert torch.equal(build().fetch(np.arange(len(digits))), before)
    fill = lambda: fill_run_teacher_store(preset("digits", views=2), tmp_path/"store", mode="none")
    fill()
    os.truncate(tmp_path/"store"/"view001.npy", 40_000)
    again = fill()
    assert 0 < again.num_encoded < 1097
    again.lookup.verify(again.root, again.load(), sample=20)


def test_what_verify_cannot_pass(tmp_path):
    filled = fill_run_teacher_store(preset("digits", views=1, epochs=1), tmp_path/"store", mode="none")
    view, verify = filled.lookup.store.view(0), partial(filled.lookup.verify, filled.root, filled.load())
    assert len(verify(sample=100)) == 100
    whole = view[np.arange(64)]
    for wrong in (np.roll(whole, 1, axis=0), np.full_like(whole, np.nan)):  # their checksums are right
        view.put(0, wrong), view.flush()
        with pytest.raises(DhoError, match="does not agree with digits: .* of 100 embeddings"): verify(sample=100)
    view.put(0, whole), view.flush()
    with open(view.parts[0].file, "r+b") as f: f.seek(len(view.parts[0].head)); f.write(b"\xff")
    with pytest.raises(DhoError, match="1 chunk.s. of view000 are damaged"): verify(sample=1)
    with pytest.raises(DhoError, match="1 embedding or more"): verify(sample=0)


def test_growing_that_was_killed_half_way_is_done_again(tmp_path, monkeypatch):
    small, large = (Chunked(tmp_path/"a.npy", (2,), "f4", bounds) for bounds in ([0, 4], [0, 4, 8]))
    small.reserve(); small.put(0, np.ones((4, 2))); small.flush()
    assert small.roomy and not large.roomy
    cut = os.truncate
    def killed(file, length): cut(file, length); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(os, "truncate", lambda f, n: killed(f, n) if str(f).endswith(".npy") else cut(f, n))
        with pytest.raises(KeyboardInterrupt): large.reserve()
    assert large.roomy
    large.put(1, np.full((4, 2), 2.)); large.flush()
    assert large[np.array([3, 7])].tolist() == [[1, 1], [2, 2]]


def test_unnamed_class_embeddings_of_numbered_classes_are_in_their_order():
    many = Manifest("n", pd.DataFrame(dict(path=[str(i) for i in range(12)], label=range(12), split="train")),
                    sorted(map(str, range(12))))
    assert [many.classes[k] for k in range(3)] == ["0", "1", "10"]
    assert match_class_embeddings(many.classes, None, 12)[:3] == [0, 1, 10]


def test_an_older_process_does_not_shrink_an_array(tmp_path):
    older, newer = (ChunkStore(tmp_path/"s", dict(kind="example", chunk=4)) for _ in range(2))
    older.add([f"{i}" for i in range(8)], [""]*8, [0]*8)
    newer.add([f"{i}" for i in range(16)], [""]*16, [0]*16)
    newer.array("v", (2,), "float16").put(3, np.ones((4, 2)))
    newer.array("v", (2,), "float16").flush()
    older.array("v", (2,), "float16").reserve()  # as where the array grew between its look and its turn
    assert np.load(tmp_path/"s"/"v.npy").shape == (16, 2) and newer.array("v", (2,), "float16")[15].tolist() == [1, 1]


def test_names_beside_a_npy_and_the_text_encoder_count(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    with np.load(embeddings_file(tmp_path, preset("digits"))) as held:
        rows, names = held["embeddings"], held["paths"].tolist()
    np.save(tmp_path/"e.npy", rows)
    config = preset("digits", epochs=1, embeddings=str(tmp_path/"e.npy"))
    (tmp_path/"e.txt").write_text("\n".join(names[::-1]))
    wrong = distill(config, tmp_path/"wrong")
    (tmp_path/"e.txt").write_text("\n".join(names))
    right = distill(config, tmp_path/"right")
    assert wrong.result["teacher_accuracy"] < .3 < .7 < right.result["teacher_accuracy"]
    assert run_identity(replace(config, teacher="RN50/random"),
                    right.manifest) != run_identity(config, right.manifest), "whose words they are counts"


def test_a_known_dataset_in_another_place_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    usual, other = distill(preset("digits", epochs=1), tmp_path/"usual"), tmp_path/"inverted"
    for path in usual.manifest.table["path"]:
        (other/path).parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(usual.root/path)).save(other/path)
    there = distill(preset("digits", epochs=1, root=str(other)), tmp_path/"there")
    assert there.result["teacher_looked"] > 0
    assert there.result["teacher_accuracy"] < usual.result["teacher_accuracy"] - .2


def test_a_class_that_stands_twice_among_the_embeddings():
    from dho_nb.teachers.embedding_store import match_class_embeddings
    assert match_class_embeddings(["crane", "cat"], ["cat", "crane", "dog", "dog"], 4) == [1, 0]
    with pytest.raises(DhoError, match="'crane' stands 2 times"): match_class_embeddings(["crane"], ["crane", "dog", "crane"], 3)


def test_a_renamed_folder_keeps_its_embeddings(tmp_path, monkeypatch):
    for name in ("cache", "runs"): monkeypatch.setenv(f"DHO_{name.upper()}", str(tmp_path/name))
    for i, name in enumerate(("cat", "dog")):
        for k in range(4): picture(tmp_path/"photos"/name/f"{k}.png", seed=10*i + k)
        picture(tmp_path/"others"/name/"0.png", seed=90 + i)
    encoded = lambda place: fill_run_teacher_store(Config(dataset=tmp_path/place, views=1, **OPTIONS), mode="none").num_encoded
    stores = lambda: sorted(p.name.split("-")[0] for p in (tmp_path/"cache"/"stores").iterdir())
    assert encoded("photos") == 8
    (tmp_path/"photos").rename(tmp_path/"renamed")
    (tmp_path/"elsewhere").mkdir()
    assert encoded("renamed") == 0 and stores() == ["photos"]
    (tmp_path/"renamed").rename(tmp_path/"elsewhere"/"photos")
    assert encoded("elsewhere/photos") == 0 and stores() == ["photos"]
    for k in range(3): picture(tmp_path/"elsewhere"/"photos"/"cat"/f"new{k}.png", seed=50 + k)
    (tmp_path/"elsewhere"/"photos").rename(tmp_path/"more")
    assert encoded("more") > 0 and stores() == ["photos"]  # most of them are known
    assert encoded("others") == 2 and stores() == ["others", "photos"]  # none of them is


def test_two_nodes_of_a_cluster_fill_a_store_and_one_is_lost(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'dho_nb[ray]'")
    from ray.cluster_utils import Cluster
    finish([*FILL, "--views", 24, "--store", tmp_path/"alone"])
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
    other = cluster.add_node(num_cpus=1)
    try:
        process = start([*FILL, "--views", 24, "--store", tmp_path/"shared", "--executor", "ray", "--address", cluster.address])
        leases, until, busy = Leases(tmp_path/"shared"/".claims"), time.time() + 240, set()
        while len(busy) < 2 and process.poll() is None and time.time() < until:
            busy = {leases.holder(p.stem) for p in leases.folder.glob("*.lease")} - {"another process"}
            time.sleep(.01)
        assert len(busy) == 2, "one node did everything"
        cluster.remove_node(other, allow_graceful=False)
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said
    finally: cluster.shutdown()
    whole = content(tmp_path/"alone")
    assert {n: b for n, b in content(tmp_path/"shared").items()} == whole, said
