"""Whatever a file holds, a reader reads it or refuses it in words: it calls nothing, writes nowhere else, and does not hang

Files of each kind are made from valid ones by Hypothesis. The suite tries some hundred of each kind, the same ones every
time; `DHO_FUZZ=10000 pytest tests/test_fuzz.py` as many in all, others every time (DHO_FUZZ_SEED=… the same again), and
`python tests/test_fuzz.py 10000` counts what goes wrong, by kind, instead of stopping at the first.
"""
import gzip
import importlib
import importlib.util
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from fsspec.implementations.local import LocalFileSystem
from hypothesis import strategies as st

import hostile
from conftest import ROOT, picture
from dho_nb.data import datasets
from dho_nb.cli.options import _written
from dho_nb.cli.main import main
from dho_nb.runs.config import make_config, preset
from dho_nb.deploy.predictor import Predictor
from dho_nb.deploy.checkpoints import load_checkpoint, load_published_checkpoint, random_checkpoint
from dho_nb.teachers.embedding_store import Store
from dho_nb.teachers.import_embeddings import import_embeddings, read_imported_embeddings
from dho_nb.evaluation.outputs import load_outputs, read_output_predictions
from dho_nb.deploy.model_card import model_card
from dho_nb.sweeps.grid import read_grid
from dho_nb.runs.cross_fit import images_to_label
from dho_nb.data import mirrors
from dho_nb.data.annotation_files import write_annotations
from dho_nb.data.ingest import ingest, stream_images
from dho_nb.data.label_files import labels_and_predictions, manifest_from_labels
from dho_nb.data.loaders import ImageLoader
from dho_nb.data.manifests import manifest_from_coop, manifest_from_folder, open_manifest
from dho_nb.reports.results import result_conflicts, expected_results, load_results, record_results, shared_result_parameters, result_surfaces
from dho_nb.reports.tables import results_table
from dho_nb.runs.labeler import Labeler
from dho_nb.runs.run import Run
from dho_nb.core import remote
from dho_nb.core.errors import DhoError
from dho_nb.core.settings import load_settings
from dho_nb.core.files import read_json, write_json
from dho_nb.students.dual_head import build_student, save_student
from dho_nb.students.weights import load_weights, read_weights
from dho_nb.students.backbones import tiny_cnn
from dho_nb.sweeps.sweep import Sweep, open_sweep, sweep_tasks
from hostile import (BOMBS, NAMES, TEXTS, Calls, Place, archives, broken_zips, csv_files, damaged, documents, each, json_files,
                     json_text, safetensors_bytes, toml_files)

for name in ("pillow_heif", "ipywidgets", "IPython"):
    with suppress(ImportError): importlib.import_module(name)  # readers import them late, which the watch would report
remote.PAUSE = 1e-4
spec = importlib.util.spec_from_file_location("predict_onnx", ROOT/"nbs/experiments/predict_onnx.py")
spec.loader.exec_module(predict_onnx := importlib.util.module_from_spec(spec))
WHOLE = int(os.environ.get("DHO_FUZZ", 0))  # inputs in all; the suite's own number if 0


# ---- valid files to begin with ----

@contextmanager
def world(base):
    "A place with pictures, two finished runs in a sweep, a record of it, a model, a store; the process works beside it"
    place, before, here = Place(base), dict(os.environ), os.getcwd()
    given = dict(DHO_CACHE=place.folder/"cache", DHO_RUNS=place.folder/"runs", HOME=place.base/"home", DHO_PROGRESS="none",
                 DHO_DEVICE="cpu", DHO_DATA=place.folder/"data", HF_HUB_OFFLINE="1", TMPDIR=place.folder/"tmp")
    os.environ.update({k: str(v) for k, v in given.items()})
    os.environ.pop("RANK", None)
    tempfile.tempdir = str(place.folder/"tmp")
    os.chdir(place.base/"cwd")
    try: yield _filled(place)
    finally:
        os.chdir(here)
        os.environ.clear(); os.environ.update(before)
        tempfile.tempdir = None


FOLDERS = "sweep", "record", "store", "begun", "pool"
VALIDATION = dict(dho="few", ce="none")


def _filled(place):
    "The valid files. The same ones in every process: what is drawn from them is the same again"
    folder = place.folder
    for i in range(8): picture(folder/"pets"/("cat", "dog")[i % 2]/f"{i}.png", i, (9, 8))
    place.runs = {m: folder/"sweep"/m for m in ("dho", "ce")}
    for method, out in place.runs.items():
        place.run = Run(preset("digits", epochs=1, views=1, method=method, conflict=method == "dho", validation=VALIDATION[method]), out, "none")
        place.run.prepare(); place.run.train()
        place.run.trainer.seconds = .5
        place.run.finish()
    cells = [dict(run=m, identity=read_json(p/"run.json")["identity"], labels=dict(method=m, seed="0"),
                  parameters=dict(preset("digits", epochs=1, views=1, method=m, validation=VALIDATION[m]).__dict__)) for m, p in place.runs.items()]
    write_json(folder/"sweep"/"sweep.json", dict(
        name="sweep", version="0.1.0", grid="x", axes=["method", "seed"], keep_models=True, cpus=1, retries=2, disk="x",
        holds={"digits": "x"}, cells=cells))
    record_results(folder/"sweep", folder/"record")
    place.student = build_student("tiny", 2, size=16, seed=0)
    save_student(place.student, folder/"model.safetensors", spec="tiny", args={}, classes=["cat", "dog"], alpha=.5, beta=.5,
                 method="dho", run="a-run", version="0.1.0")
    place.published = random_checkpoint(folder/"published.pt", 2).read_bytes()
    place.tensors = {k: v.contiguous() for k, v in place.student.model.state_dict().items()}
    place.facts = _facts(folder/"model.safetensors")
    place.header, place.body = _taken_apart((folder/"model.safetensors").read_bytes())
    place.onnx = _graph()
    place.pets = manifest_from_folder(folder/"pets")
    place.vectors = dict(paths=[*place.pets.table["path"]], embeddings=np.eye(8, 4, dtype=np.float32) + 1,
                         classes=["cat", "dog"], text=np.eye(2, 4, dtype=np.float32))
    np.savez(folder/"e.npz", **place.vectors)
    import_embeddings(place.pets, folder/"pets", folder/"e.npz", folder=folder/"store")
    ingest(str(folder/"pets"), folder/"pool", side=16, mode="none")
    trained = Run(preset("digits", epochs=3, views=1), folder/"begun", "none")
    trained.prepare(); trained.build_trainer().save()
    place.trainer = trained.trainer
    place.saved = {p: p.read_bytes() for d in FOLDERS for p in (folder/d).rglob("*") if p.is_file()}
    place.folders = {p for d in FOLDERS for p in (folder/d).rglob("*") if p.is_dir()}
    return place


def _facts(file):
    from safetensors import safe_open
    with safe_open(file, "pt") as f: return json.loads(f.metadata()["dho_nb"])


def _taken_apart(data):
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + size]), data[8 + size:]


def _graph():
    "A small graph: pixels in, the probabilities of two classes out, three times"
    from onnx import TensorProto, helper
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 2]) for n in ("both", "ce", "kd")]
    nodes = [helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
             helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
             helper.make_node("Slice", ["mean", "zero", "two", "one"], ["cut"]),
             *(helper.make_node("Softmax", ["cut"], [n]) for n in ("both", "ce", "kd"))]
    ints = lambda name, values: helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [None, 16, 16, 3])], ends,
                              [ints("axes", [1, 2]), ints("zero", [0]), ints("two", [2]), ints("one", [1])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@contextmanager
def changed(place, name, data):
    "A file of the place is another one for a while; what readers made is taken away again"
    place.file(name, data)
    try: yield
    finally:
        top = place.folder/Path(name).parts[0]
        for p in sorted(top.rglob("*"), reverse=True):
            if p.is_dir() and not p.is_symlink():
                if p not in place.folders: shutil.rmtree(p)
            elif p not in place.saved: p.unlink()
        for p, held in place.saved.items():
            if top in p.parents and (not p.exists() or p.read_bytes() != held):
                p.parent.mkdir(parents=True, exist_ok=True); p.write_bytes(held)
        for left in (place.folder/"work", place.folder/"tmp"):
            shutil.rmtree(left); left.mkdir()
        for left in ("reports", "mirrors"): shutil.rmtree(place.folder/"cache"/left, ignore_errors=True)


PIXELS = np.zeros((9, 9, 3), np.uint8)
said = lambda *argv: redirected(lambda: main([*map(str, argv)]))


def redirected(call):
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        return call()


# ---- readers, each with the inputs that it gets: a strategy of a place, and what is done with a file ----

TARGETS = {}


def target(share, make):
    "A reader; `share` of all inputs, and a strategy made from the valid files"
    def kept(read): TARGETS[read.__name__] = SimpleNamespace(share=share, make=make, read=read); return read
    return kept


def _models(place):
    facts = place.facts
    own = [dict(facts, spec=s, args=a) for s, a in (
        ("subprocess:getoutput", {"cmd": "touch x"}), ("os:system", {"command": "touch x"}), ("canary:call", {}), ("builtins:eval", {}),
        ("timm:test_resnet", {"checkpoint_path": "../../x"}), ("timm:test_vit", {}), ("open_clip:RN50", {"cache_dir": "/nowhere"}),
        ("torchvision:squeezenet1_1", {"weights": "DEFAULT"}), ("tiny", {"widths": [4, 4]}), ("open_clip:local-dir:..", {}))]
    return documents(facts, facts, facts, dict(facts, heads=1, method="ce"), *own).map(json_text)


@target(12, _models)
def model(place, text):
    "Metadata of a .safetensors: loaded, asked, described"
    header = dict(place.header, __metadata__={"dho_nb": text})
    file = place.file("work/model.safetensors", safetensors_bytes(header, place.body))
    each(lambda: load_checkpoint(file), lambda: Predictor.from_pretrained(file).predict(PIXELS), lambda: unharmed(model_card(file)))


@target(10, lambda place: st.tuples(documents(place.header).map(lambda h: json_text(h).encode()).flatmap(damaged), st.sampled_from((True, False))))
def tensors(place, given):
    "The header of a .safetensors: a student's, and weights"
    file = place.file("work/w.safetensors", safetensors_bytes(given[0], place.body[:None if given[1] else -8]))
    each(lambda: load_checkpoint(file), lambda: load_weights(tiny_cnn(), file), lambda: read_imported_embeddings(file), lambda: load_outputs(file))


def onnx_file(place, text):
    "A model with this text as its metadata"
    made = type(place.onnx)()
    made.CopyFrom(place.onnx)
    entry = made.metadata_props.add()
    entry.key, entry.value = "dho_nb", text.decode("utf-8", "replace")
    return place.file("work/model.onnx", made.SerializeToString())


@target(8, lambda place: documents(place.facts, place.facts, dict(place.facts, heads=1)).map(json_text).map(str.encode).flatmap(damaged))
def onnx(place, text):
    "Metadata of an ONNX file: opened and asked"
    file = onnx_file(place, text)
    each(lambda: Predictor.from_pretrained(file).predict(PIXELS), lambda: [*Predictor.from_pretrained(file).each(PIXELS, probabilities=True)])


@target(4, lambda place: st.binary(max_size=80) | damaged(place.onnx.SerializeToString()) | damaged(place.published))
def graph(place, data):
    "Bytes that are called a model"
    each(*(lambda s=s: Predictor.from_pretrained(place.file(f"work/m{s}", data)) for s in (".onnx", ".safetensors", ".pt", ".pt2")))


def _checkpoints(place):
    held = dict(epoch=1, alpha=.5, beta=.5, acc=50.)
    def packed(data):
        made = io.BytesIO()
        tensors = {f"module.{k}": torch.zeros(s) for k, s in (("backbone.conv1.weight", (64, 3, 4, 4)), ("ce_head.weight", (2, 32)))}
        torch.save(dict(data, model_state_dict=tensors) if isinstance(data, dict) else data, made)
        return made.getvalue()
    return st.tuples(st.one_of(documents(held).map(packed).flatmap(damaged), damaged(place.published), st.sampled_from(BOMBS),
                               st.sampled_from((Calls(os.system, "touch x"), [1], "x", {"state_dict": {1: 2}},
                                                {"a": Calls(eval, "1")}, {"a": {"b": torch.zeros(2)}})).map(packed)),
                     st.sampled_from((".pt", ".pth", ".bin", ".ckpt", ".npz", ".safetensors")))


@target(10, _checkpoints)
def weights(place, given):
    "Files of weights of the formats that people have"
    file = place.file(f"work/w{given[1]}", given[0])
    each(lambda: read_weights(file), lambda: load_weights(tiny_cnn(), file), lambda: load_published_checkpoint(file))


def readers(*folders):
    "Everything that reads a folder of runs"
    def tables(folder):
        frame = load_results(folder)
        table = results_table(frame, average=("seed",) if "seed" in frame else ())
        table.markdown(), table.latex(), table.csv(), str(table), unharmed(table._repr_html_())
    return [lambda f=f, read=read: read(f) for f in folders
            for read in (load_results, expected_results, shared_result_parameters, result_conflicts, result_surfaces, tables, tables)]


def some(data, calls, most=2):
    "A few of the readers, which ones follows from the input: all of them take their turn"
    number = zlib.crc32(data)
    each(*(calls[(number + i*len(calls)//most) % len(calls)] for i in range(most)))


def unharmed(text):
    "What comes from a file is not markup"
    if "<script>" in text: raise AssertionError("a file's <script> is on a page")
    return text


def page(place):
    "The page of a sweep"
    file = place.folder/"work"/"page.html"
    said("report", place.folder/"sweep", "--out", file)
    if file.exists(): unharmed(file.read_text(encoding="utf-8"))


def again(place, method):
    "A run that would go on in its folder"
    config = preset("digits", epochs=1, views=1, method=method, conflict=method == "dho", validation=VALIDATION[method])
    Run(config, place.runs[method], "none").release()


def all_readers(place, method, data):
    "What is asked of a sweep and of one of its runs"
    sweep, run = place.folder/"sweep", place.runs[method]
    if zlib.crc32(data) % 40 == 0: return page(place)  # figures take time
    some(data, [*readers(sweep, run), lambda: record_results(sweep, place.folder/"work"/"record"), lambda: make_config(_written(run/"run.json")),
                lambda: again(place, method), lambda: unharmed(model_card(run)), lambda: said("status", sweep),
                lambda: open_sweep(sweep).todo(), lambda: open_sweep(sweep, go_on=True),
                lambda: Sweep(read_grid(place.file("work/sweep.toml", GRID)), sweep), lambda: images_to_label(run, 3)])


@target(8, lambda place: st.tuples(st.sampled_from(("dho", "ce")), json_files(*(read_json(p/"run.json") for p in place.runs.values()))))
def run_json(place, given):
    "What a run says about itself"
    with changed(place, f"sweep/{given[0]}/run.json", given[1]): all_readers(place, *given)


@target(8, lambda place: st.tuples(st.sampled_from(("dho", "ce")), json_files(*(read_json(p/"result.json") for p in place.runs.values()))))
def result_json(place, given):
    "What a run found"
    with changed(place, f"sweep/{given[0]}/result.json", given[1]): all_readers(place, *given)


@target(5, lambda place: st.tuples(st.sampled_from(("failed.json", ".heartbeat.json")), json_files(
    dict(attempts=1, reason="ValueError: x", host="h", when="2026-01-01"), dict(host="h", pid=1, began=1e9, time=4e9))))
def signs(place, given):
    "What a run says while it lasts, and when it fails"
    with changed(place, f"sweep/ce/{given[0]}", given[1]):
        (place.runs["ce"]/"result.json").unlink()
        each(lambda: open_sweep(place.folder/"sweep").states())
        all_readers(place, "ce", given[1])


@target(8, lambda place: json_files(read_json(place.folder/"sweep"/"sweep.json")))
def sweep_json(place, data):
    "What a sweep means"
    with changed(place, "sweep/sweep.json", data): all_readers(place, "ce", data)


GRID = 'base = {preset = "digits", epochs = 1, views = 1}\naxes = {method = ["dho", "ce"], seed = [0]}\n'


def _tables(place):
    names = ("sweep/dho/predictions.csv", "sweep/dho/history.csv", "sweep/dho/conflict.csv", "sweep/dho/per_class.csv", "record/runs.csv",
             "record/conflict.csv", "record/surface.csv", "store/images.csv")
    rows = {n: [l.split(",") for l in (place.folder/n).read_text().splitlines()][:60] for n in names}
    return st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), csv_files(rows[n])))


@target(6, _tables)
def tables(place, given):
    "Tables of runs, records and stores"
    name, data = given
    with changed(place, name, data):
        top = place.folder/name.split("/")[0]
        if top.name == "store": each(lambda: Store(top), lambda: import_embeddings(place.pets, place.folder/"pets", place.folder/"e.npz", folder=top)); return
        if top.name == "record": return some(data, [*readers(top), lambda: record_results(place.folder/"sweep", top)])
        each(lambda: read_output_predictions(place.runs["dho"]))
        all_readers(place, "dho", data)


@target(6, lambda place: json_files(read_json(place.folder/"record"/"cells.json")))
def cells_json(place, data):
    "What a record says about its sweeps"
    with changed(place, "record/cells.json", data):
        some(data, [*readers(place.folder/"record"), lambda: record_results(place.folder/"sweep", place.folder/"record")])


def _arrays(place):
    names = ("record/right.npz", "sweep/dho/outputs.safetensors", "store/classes.safetensors", "store/still.npy", "store/still.crc",
             "sweep/dho/model.safetensors")
    whole = {n: (place.folder/n).read_bytes() for n in names}
    def made(n):
        if n.endswith(".safetensors"):
            header, body = _taken_apart(whole[n])
            return st.one_of(damaged(whole[n]), documents(header).map(lambda h: safetensors_bytes(h, body)))
        if n.endswith(".npz"): return damaged(whole[n]) | _zipped(dict(np.load(io.BytesIO(whole[n]))))
        return damaged(whole[n])
    return st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), made(n)))


@st.composite
def _zipped(draw, arrays):
    "An .npz with other arrays under its names"
    arrays = dict(arrays)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*arrays, "x", "../x"]))
        arrays[name] = draw(st.sampled_from((
            np.zeros(0), np.zeros((2, 3)), np.full((8, 4), np.nan, np.float32), np.array("x"), np.array(["a", "b"]), np.array([b"\xff", b"a"]),
            np.arange(5), np.array([2**62]), np.array([-1, 3]), np.array([None, 1], object), np.array([Calls(os.system, "touch x")], object),
            np.zeros(3, "M8[s]"), np.zeros(3, complex), np.zeros(2, [("a", int)]), np.zeros((8, 0), np.float32), np.ones((8, 4, 1)))))
        if draw(st.booleans()) and len(arrays) > 1: arrays.pop(draw(st.sampled_from([*arrays])))
    held = io.BytesIO()
    np.savez(held, **arrays)
    return draw(damaged(held.getvalue()))


@target(6, _arrays)
def arrays(place, given):
    "Arrays of runs, records and stores"
    name, data = given
    with changed(place, name, data):
        top = place.folder/name.split("/")[0]
        if top.name == "store":
            each(lambda: Store(top).class_embeddings(), lambda: Store(top).filled(), lambda: Store(top).head(["cat", "dog"], ["{}"], None),
                 lambda: import_embeddings(place.pets, place.folder/"pets", place.folder/"e.npz", folder=top)([0, 1], [0, 0]))
            return
        if top.name == "record": return some(data, [*readers(top), lambda: record_results(place.folder/"sweep", top)])
        each(lambda: load_outputs(place.runs["dho"]/"outputs.safetensors"), lambda: read_output_predictions(place.runs["dho"]))
        all_readers(place, "dho", data)


@target(6, lambda place: json_files(read_json(place.folder/"store"/"header.json")))
def store_json(place, data):
    "What a store says about itself"
    with changed(place, "store/header.json", data):
        folder = place.folder/"store"
        config = lambda: make_config(dict(dataset=str(place.folder/"pets"), embeddings=str(folder), student="tiny", student_weights="", shots=1))
        each(lambda: Store(folder), lambda: (lambda s: (s.preprocess, s.spec if not s.single else 0, s.filled()))(Store(folder)),
             lambda: import_embeddings(place.pets, place.folder/"pets", place.folder/"e.npz", folder=folder)([0], [0]),
             lambda: Run(config(), place.folder/"work"/"run", "none").release())


@target(9, lambda place: csv_files([["path", "label", "split"], *([f"{c}/{i}.png", c, s] for i, c, s in (
    (0, "cat", "train"), (1, "dog", ""), (2, "cat", "val"), (3, "dog", "test")))], [["path", "label"], ["0.png", "cat"], ["cat/2.png", ""]]))
def labels(place, data):
    "A table of labels, and a list of images"
    file = place.file("work/labels.csv", data)
    file.with_suffix(".json").unlink(missing_ok=True)
    each(lambda: manifest_from_labels(place.folder/"pets", file), lambda: open_manifest(str(file)), lambda: manifest_from_labels(place.folder/"pets", file, classes=["dog", "cat"]),
         lambda: Run(make_config(dict(dataset=str(place.folder/"pets"), labels=str(file), teacher="digits", student="tiny", student_weights="")),
                     place.folder/"work"/"run", "none").release())


def _task(number, image, label, **data):
    "A task of Label Studio"
    result = dict(id="a", type="choices", from_name="choice", to_name="image", value=dict(choices=[label]))
    return dict(id=number, data=dict(image=image, **data), annotations=[dict(id=1, completed_by=2, was_cancelled=False, result=[result])], predictions=[])


@target(6, lambda place: json_files(
    [_task(1, "/data/local-files/?d=pets/cat/0.png", "cat"), _task(2, "http://h/data/upload/1/1a2b3c4d-1.png", "dog", split="val")],
    [dict(image="cat/0.png", id=1, choice="cat", annotator=1, annotation_id=1), dict(image="dog/1.png", id=2, choice=dict(choices=["dog"]), annotator=1)],
    dict(classes=["cat", "dog"], labels={"cat/0": 0, "dog/1": dict(label=1, confidence=None), "cat/2": [0], "dog/3": None}),
    dict(samples=[dict(filepath=f"pets/{c}/{i}.png", tags=["train"], ground_truth=dict(_cls="Classification", label=c)) for c, i in (("cat", 0), ("dog", 1))])))
def annotations(place, data):
    "An export of Label Studio or FiftyOne"
    file = place.file("work/labels.json", data)
    each(lambda: manifest_from_labels(place.folder/"pets", file), lambda: manifest_from_labels(place.folder/"pets", file, classes=["dog", "cat"]))


@target(6, lambda place: json_files(dict(classes=["cat", "dog"], templates=["a {}."]), dict(classes=["cat", "dog"])))
def facts_json(place, data):
    "Class names and prompts beside a list of images"
    file = place.file("work/pets.csv", "path,label,split\ncat/0.png,cat,train\ndog/1.png,dog,test\n")
    place.file("work/pets.json", data)
    each(lambda: open_manifest(str(file)),
         lambda: Run(make_config(dict(dataset=str(file), root=str(place.folder/"pets"), teacher="digits", student="tiny", student_weights="")),
                     place.folder/"work"/"run", "none").release())
    file.with_suffix(".json").unlink()


@target(9, lambda place: json_files({s: [[f"cat/{s}.png", 0, "cat"], [f"dog/{s}.png", 1, "dog"]] for s in ("train", "val", "test")}))
def coop(place, data):
    "A CoOp split"
    file = place.file("work/split_zhou_Pets.json", data)
    each(lambda: manifest_from_coop(file), lambda: open_manifest(str(file)))


@target(8, lambda place: toml_files(
    dict(name="g", base=dict(preset="digits", epochs=1), axes=dict(seed=[0, 1], method=["ce", "dho"]), exclude=[dict(seed=0, method="ce")], jobs=1),
    dict(base=dict(preset="digits"), axes=dict(labels=[dict(shots=1), dict(fraction=.01)]), also=[dict(base=dict(epochs=2), axes=dict(seed=[3]))]),
    dict(base=dict(dataset="../in/pets", teacher="digits", student="tiny", student_weights="", test=2), axes=dict(shots=[1]), retries=1, cpus=1)))
def grid(place, data):
    "A grid, and the runs that it means"
    file = place.file("work/grid.toml", data)
    each(lambda: sweep_tasks(read_grid(file)), lambda: Sweep(read_grid(file), place.folder/"work"/"sweep").states(), lambda: open_sweep(file))


@target(10, lambda place: json_files(*(read_json(p/"run.json")["config"] for p in place.runs.values()), dict(preset="digits", seed=1)))
def config_json(place, data):
    "Parameters in a file: dho distill --config"
    file = place.file("work/config.json", data)
    each(lambda: make_config(_written(file)), lambda: Run(make_config(_written(file)), place.folder/"work"/"run", "none").release())


@target(10, lambda place: archives())
def archive(place, data):
    "An archive of a dataset"
    stage = place.folder/"data"/".dho-get-imagenet_r"
    shutil.rmtree(stage, ignore_errors=True)
    place.file("data/.dho-get-imagenet_r/files/imagenet-r.tar", data)
    place.file("data/.dho-get-imagenet_r/files/a.zip", data)
    place.file("data/.dho-get-imagenet_r/files/a.tar.gz", data)
    info = datasets.paper_dataset("imagenet_r")
    for name in ("a.zip", "a.tar.gz"):
        try: datasets._url(stage, info, f"https://nowhere/{name}")
        except DhoError: pass
        except Exception: pass  # named by get_dataset
    each(lambda: datasets.get_dataset("imagenet_r"))
    real = os.path.realpath
    if any(p.is_symlink() and not real(p).startswith(real(stage)) for p in stage.rglob("*")): raise AssertionError("a link leads out of the folder of an archive")


def _vectors(place):
    def parquet(kind):
        held = io.BytesIO()
        frame = pd.DataFrame(dict(paths=place.vectors["paths"], embeddings=[*place.vectors["embeddings"]]))
        {"plain": lambda f: f, "none": lambda f: f.assign(embeddings=None), "ragged": lambda f: f.assign(embeddings=[[1.]*(i % 3) for i in range(len(f))]),
         "text": lambda f: f.assign(embeddings="x"), "dates": lambda f: f.assign(paths=pd.Timestamp(0)), "twice": lambda f: pd.concat([f, f]),
         "wide": lambda f: pd.DataFrame(np.eye(3)).rename(columns=str), "empty": lambda f: f.iloc[:0]}[kind](frame).to_parquet(held)
        return held.getvalue()
    npy = io.BytesIO(); np.save(npy, place.vectors["embeddings"])
    kinds = ("plain", "none", "ragged", "text", "dates", "twice", "wide", "empty")
    return st.one_of(
        st.tuples(st.just(".npz"), _zipped(place.vectors), st.just(b"")),
        st.tuples(st.just(".parquet"), st.sampled_from(kinds).map(parquet).flatmap(damaged), st.just(b"")),
        st.tuples(st.just(".npy"), damaged(npy.getvalue()), damaged("\n".join(place.vectors["paths"]).encode())),
        st.tuples(st.just(".safetensors"), documents(
            {"__metadata__": {"paths": json.dumps(place.vectors["paths"])}, "embeddings": dict(dtype="F32", shape=[8, 4], data_offsets=[0, 128])},
            {"__metadata__": {"paths": '["a", 1, null]', "classes": "[" * 30}, "embeddings": dict(dtype="F32", shape=[8, 4], data_offsets=[0, 128])})
            .map(lambda h: safetensors_bytes(h, place.vectors["embeddings"].tobytes())), st.just(b"")))


@target(8, _vectors)
def embeddings(place, given):
    "Embeddings that were made elsewhere"
    kind, data, beside = given
    file = place.file(f"work/v{kind}", data)
    if kind == ".npy": place.file("work/v.txt", beside)
    shutil.rmtree(place.folder/"work"/"store", ignore_errors=True)
    each(lambda: read_imported_embeddings(file),
         lambda: import_embeddings(place.pets, place.folder/"pets", file, folder=place.folder/"work"/"store"))
    shutil.rmtree(place.folder/"work"/"store", ignore_errors=True)
    each(lambda: import_embeddings(place.pets, place.folder/"pets", place.folder/"e.npz", file, folder=place.folder/"work"/"store"))


INI = "[dho_nb]\ndata = data\ncache = ~/.cache/dho_nb\nruns = runs\ndevice = cpu\nworkers = 0\nthreads = 0\nprogress = none\ncheckpoint_seconds = 30\n"


@st.composite
def ini_files(draw):
    lines = INI.splitlines()
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = draw(st.sampled_from((lines[at].partition("=")[0] + "= " + draw(st.sampled_from(TEXTS)), draw(st.sampled_from(TEXTS)),
                                          lines[at] + " %(home)s ${HOME}", "[dho_nb]", "[other]", lines[at].replace("=", ""), " " + lines[at])))
    return draw(damaged("\n".join(lines).encode("utf-8", "surrogatepass")))


@target(8, lambda place: ini_files())
def ini(place, data):
    "settings.ini"
    file = place.file("work/ini/settings.ini", data)
    each(lambda: load_settings(file.parent, {}))
    file.unlink()


def _states(place):
    header, body = _taken_apart((place.folder/"begun"/"checkpoint.safetensors").read_bytes())
    state = json.loads(header["__metadata__"]["state"])
    state["notes"]["process"] = "x"  # another one each time
    header["__metadata__"]["state"] = json.dumps(state)
    return st.one_of(documents(state).map(json_text).map(lambda t: safetensors_bytes(dict(header, __metadata__={"state": t}), body)),
                     documents(header).map(lambda h: safetensors_bytes(h, body)), damaged(safetensors_bytes(header, body)))


@target(9, _states)
def checkpoint(place, data):
    "Where training goes on from"
    from dho_nb.sweeps.remote import _step
    with changed(place, "begun/checkpoint.safetensors", data):
        each(lambda: place.trainer.load(), lambda: _step(place.folder/"begun"/"checkpoint.safetensors"))


@target(8, lambda place: st.tuples(st.sampled_from(("estimate.json", "export.json", "evaluation.json")), json_files(
    dict(folds=2, labeled=10, table=dict(student=dict(accuracy=.5, low=.4, high=.6, nll=1.)), config=read_json(place.runs["dho"]/"run.json")["config"], labels="x"),
    dict(model="x", source="m", license="", estimate=None, files={"model.onnx": dict(megabytes=1, ms=1.)}, card="x", card_before=None))))
def notes(place, given):
    "What an estimate and an export left"
    from dho_nb.deploy.export import _write_note
    name, data = given
    with changed(place, f"sweep/dho/{name}", data):
        folder, file = place.runs["dho"], place.runs["dho"]/"model.safetensors"
        facts = dict(place.facts)
        if name == "estimate.json": each(lambda: unharmed(model_card(folder, estimate=folder)))
        if name == "export.json": each(lambda: _write_note(folder, file, facts, {}, "", None))


# ---- what lies behind a URL, what goes to other programs, and what a person labels ----

def far(folder, read, change=lambda note: None):
    "What reads a folder through its mirror, which is looked at anew"
    mirrors._mirror.cache_clear()
    url = f"file://{folder}"
    each(lambda: change(mirrors.local_place(url)/mirrors.NOTE))
    mirrors._mirror.cache_clear()
    each(*(lambda call=call: call(url) for call in read))


def _store_files(place):
    names = ("header.json", "images.csv", "still.npy", "still.crc", "view000.npy", "view000.crc", "classes.safetensors")
    whole = {n: p.read_bytes() for n in names if (p := place.folder/"store"/n).exists()}
    other = {"header.json": json_files(json.loads(whole["header.json"])),
             "images.csv": csv_files([l.split(",") for l in whole["images.csv"].decode().splitlines()])}
    return st.sampled_from([*whole]).flatmap(lambda n: st.tuples(st.just(n), other.get(n, damaged(whole[n]))))


@target(6, _store_files)
def far_store(place, given):
    "A store behind a URL"
    name, data = given
    config = lambda url: make_config(dict(dataset=str(place.folder/"pets"), embeddings=url, student="tiny", student_weights="", shots=1))
    with changed(place, f"store/{name}", data):
        far(place.folder/"store", [lambda url: Store(url).filled(), lambda url: Store(url).view(-1)[:], lambda url: Store(url).class_embeddings(),
                                   lambda url: Run(config(url), place.folder/"work"/"run", "none").release()])


@target(6, lambda place: json_files(dict(url=f"file://{place.folder}/store", files={"header.json": ["x", 3], "images.csv": ["x", 3], "still.npy": ["x", 3]}),
                                    dict(url="file:///etc", files={"../../../../cwd/x": ["x", 1], "passwd": ["x", 1]})))
def mirror_note(place, data):
    "What a mirror notes of its files"
    with changed(place, "store/.other", b""):
        far(place.folder/"store", [lambda url: Store(url).view(-1)[:]], lambda note: note.write_bytes(data))


@target(6, lambda place: st.dictionaries(st.sampled_from(TEXTS) | st.sampled_from(NAMES) | st.text(max_size=6), documents(dict(size=3, mtime=1.), dict(size=0)), max_size=4))
def far_names(place, given):
    "What a far folder says of its files"
    true = LocalFileSystem.find
    def find(self, path, *rest, **more):
        return {**true(self, path, *rest, **more), **{f"{path}/{n}": facts if isinstance(facts, dict) else {} for n, facts in given.items()}}
    LocalFileSystem.find = find
    try:
        with changed(place, "store/.other", b""): far(place.folder/"store", [lambda url: Store(url).view(-1)[:]])
    finally: LocalFileSystem.find = true


def _pool_files(place):
    names = ("ingested.json", "pool.json", "images/header.json", "images/images.csv", "images/pixels.npy", "images/sizes.npy", "images/sizes.crc", "pool.csv.gz")
    whole = {n: (place.folder/"pool"/n).read_bytes() for n in names}
    rows = [l.split(",") for l in gzip.decompress(whole["pool.csv.gz"]).decode().splitlines()]
    def other(name):
        if name.endswith(".json"): return json_files(json.loads(whole[name]))
        if name.endswith(".gz"): return csv_files(rows).map(partial(gzip.compress, mtime=0)).flatmap(damaged)
        if name.endswith(".npy"): return damaged(whole[name]) | st.sampled_from(ARRAYS)
        return damaged(whole[name])
    return st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), other(n)))


def _npy(values, **header):
    "A .npy file whose header says what is not so"
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, dict(dict(descr=values.dtype.str, fortran_order=False, shape=values.shape), **header))
    return held.getvalue() + values.tobytes()


ARRAYS = [_npy(np.zeros((8, 3, 16, 16), np.uint8), **h) for h in (dict(shape=(10**12, 3, 16, 16)), dict(descr="|O"), dict(descr="<f8"), dict(fortran_order=True), dict(shape=(0,)),
                                                                  dict(shape=()), dict(shape=(8, 3, 10**9, 16)), dict(descr=[("a", "<f4")]), dict(descr="|S5"))]


@target(6, _pool_files)
def pool(place, given):
    "A folder of ingested pictures, here and behind a URL"
    name, data = given
    def pictures(folder):
        manifest = open_manifest(str(folder))
        return [ImageLoader(manifest, folder)[i] for i in (0, len(manifest) - 1)]
    with changed(place, f"pool/{name}", data):
        folder = place.folder/"pool"
        each(lambda: pictures(folder), lambda: [*stream_images(folder)])
        far(folder, [lambda url: open_manifest(url), lambda url: [i.decode(0) for i in stream_images(url)]])


@target(6, lambda place: csv_files([["file", "prediction", "confidence"], ["cat/0.png", "cat", "0.5"], ["dog/1.png", "dog", "1"]],
                                   [["path", "prediction", "probability"], ["cat/0.png", "cat", ""]]))
def predictions(place, data):
    "Predictions that go to Label Studio or FiftyOne"
    file = place.file("work/p.csv", data)
    for form, ending in (("label-studio", "json"), ("fiftyone", "json"), ("csv", "csv")):
        out = place.folder/"work"/f"out.{ending}"
        each(lambda: write_annotations(labels_and_predictions(place.folder/"pets", (), file), out, form),
             lambda: labels_and_predictions(place.folder/"pets", [out]) if out.exists() else None)
        out.unlink(missing_ok=True)


@target(4, lambda place: csv_files([["path", "label"], ["cat/0.png", "cat"], ["dog/1.png", "dog"]], [["path", "label", "split", "note"], ["cat/0.png", "cat", "val", "x"]]))
def labeler(place, data):
    "A CSV that the labeling page goes on with: what it writes can be read, and the other lines stay"
    file = place.file("work/l.csv", data)
    def click():
        page = Labeler(place.folder/"pets", file, ["cat", TEXTS[zlib.crc32(data) % len(TEXTS)].encode("utf-8", "replace").decode()], count=1)
        before, path, name = page.labels(), page.current, page.classes[-1]
        page.label(name)
        if path and page.labels() != dict(before, **{path: name}): raise AssertionError("another label than that of the click has changed")
        page.undo()
        if {k: v for k, v in page.labels().items() if v} != {k: v for k, v in before.items() if v}: raise AssertionError("undo left something else")
    each(click)


@target(6, lambda place: documents(*(dict(place.facts, heads=2, coverage=c) for c in (None, dict(source="x", images=9, right=8, rows=[[.5, .4, 5, 5], [.51, .3, 6, 5]]))))
        .map(json_text).map(str.encode).flatmap(damaged))
def script(place, text):
    "Metadata of an ONNX file, read by predict_onnx.py"
    file = onnx_file(place, text)
    def read():
        try: return [*predict_onnx.load(file).predict([place.folder/"pets"/"cat"/"0.png"], unknown=.5)]
        except ValueError as e: raise DhoError(str(e)) from None
    each(read, lambda: Predictor.from_pretrained(file).predict(PIXELS, unknown=.5))


# ---- the tests ----

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with world(tmp_path_factory.mktemp("fuzz")) as made: yield made


# Inputs that went wrong once: by target
DEEPER = "["*20000 + "]"*20000
FACTS = dict(spec="tiny", args={}, classes=["cat", "dog"], alpha=.5, beta=.5, heads=2, ce_head="linear", kd_head="linear", project=0, zeta=.01,
             frozen=False, preprocess=dict(size=16, mean=[.5]*3, std=[.5]*3, interpolation="bicubic"))
ONCE = dict(
    model=['{"spec": "subprocess:getoutput", "args": {"cmd": "touch x"}}', "9"*5000, DEEPER, '"\\u0085"', '{"spec": 1}', "[]", "{}",
           *(json_text(dict(FACTS, **wrong)) for wrong in (dict(project=.5), dict(project=1e-320), dict(heads=2.), dict(method=[])))],
    onnx=[b"257", b"{}", DEEPER.encode(), b'{"heads": "two"}', b'{"classes": "U"}', b'"1979-05-2\x17"', json_text(dict(FACTS, heads=2.)).encode()],
    run_json=[("ce", b'""'), ("dho", b"{}"), ("ce", DEEPER.encode()), ("dho", b'{"identity": "x", "config": {"student_weights": {}}}')],
    result_json=[("ce", b'"1979"'), ("dho", b'{"method": 0}'), ("ce", b'{"seed": "x"}'), ("dho", b'{"dataset": {"a": 1}}')],
    signs=[(".heartbeat.json", b'{"attempts": 1}'), (".heartbeat.json", b'{"host": {}, "pid": 1, "began": 0, "time": {}}'), ("failed.json", b'"x"'),
           ("failed.json", b'{"attempts": "x"}'), (".heartbeat.json", b'{"host": "h", "pid": 1e400, "began": 0, "time": 4e9}')],
    sweep_json=[b'"x"', b'{"name": "x", "cells": [null]}', b'{"name": "x", "axes": [1], "cells": []}', b'{"cells": [{"run": "../x"}]}'],
    tables=[("record/surface.csv", b"identity;x\n"), ("record/conflict.csv", b"P\xe6"), ("sweep/dho/predictions.csv", b"a;b\n"),
            ("store/images.csv", b"id\tkey\tchunk\n"), ("store/images.csv", b"id,key,chunk\na,,x\n"), ("record/runs.csv", b"identity\nx\n"),
            ("store/images.csv", b"id,key,chunk\n" + b"".join(b"cat/%d.png,,0\n" % (i % 4) for i in range(10)))],
    cells_json=[b'"x"', b'{"a": "b"}', b'{"a": {"name": "a", "axes": [], "cells": [], "recipes": "x", "settings": {}}}'],
    arrays=[*(("record/right.npz", data) for data in broken_zips("identity.npy")), ("record/right.npz", b"PK"),
            ("store/classes.safetensors", b"\2\0\0\0\0\0\0\0{}"), ("sweep/dho/outputs.safetensors", b"x")],
    store_json=[b"255", b"{}", b'{"kind": "embeddings", "views": 1, "layout": "1", "dim": -1, "teacher": ""}',
                b'{"kind": "embeddings", "views": {"a": 1}, "layout": 2, "dim": 4, "teacher": "x"}'],
    annotations=[json_text(dict(samples=[dict(filepath="cat/0.png", tags=5, ground_truth=dict(_cls="Classification", label="cat"))])).encode(), DEEPER.encode(),
                 b'{"labels": {"cat/0": "a", "cat/0": "b"}}', b'{"labels": {"../../cwd/x": "a", "~/x": "b", "x\\u0000": "c"}, "classes": null}'],
    labels=[b' path","label"\n"cat/0.png","cat"\n', b"path,label,split\n" + b"x"*5000 + b",cat,train\ncat/2.png,cat,val\n"], facts_json=[DEEPER.encode()], coop=[b'{"train": [["a", {}, "b"]], "val": [], "test": []}', b'{"train": null, "val": [], "test": []}'],
    weights=[(data, ".pt") for data in broken_zips("a/data.pkl")],
    embeddings=[*((".npz", data, b"") for data in broken_zips("paths.npy")),
                (".safetensors", safetensors_bytes({"__metadata__": {"paths": "["*20000}}), b"")],
    grid=[b"exclude = [1]\naxes = {seed = [0]}", b'base = {preset = ["x"]}', b"a = " + b"9"*5000, b"a = " + b"["*5000,
          b"also = [1]", b'base = {preset = "digits", student_args = {a = 1979-05-27}}', b'axes = {labels = [{fraction = "x"}]}'],
    checkpoint=[safetensors_bytes({"__metadata__": {"state": s}}) for s in ("[]", "{}", DEEPER, "9"*5000)],
    notes=[("estimate.json", b"{}"), ("estimate.json", json_text(dict(folds=2, labeled=10, table={}, config=dict(preset="digits", method=["x"]))).encode()), ("estimate.json", b'{"config": {}, "folds": 2, "labeled": 1, "table": {"a": {}}}'), ("export.json", b'{"files": {"a": 1}}')])

# What the suite tries of each target, where not all 10,000 are asked for
SOME = {name: 3*t.share for name, t in TARGETS.items()}


def count(name):
    return -(-WHOLE*TARGETS[name].share//sum(t.share for t in TARGETS.values())) if WHOLE else SOME[name]


def tried(place, name, check, most, number=None):
    "Call `check` with so many inputs of a target, after those that went wrong once"
    run = given(TARGETS[name].make(place))(check)
    for once in ONCE.get(name, ()): run = example(once)(run)
    if number is not None: run = seed(number)(run)
    settings(max_examples=most, derandomize=number is None, database=None, deadline=None, report_multiple_bugs=False,
             suppress_health_check=list(HealthCheck))(run)()


def chosen():
    "The seed that was asked for, or any"
    return int(os.environ.get("DHO_FUZZ_SEED", random.randrange(2**32)))


def outcomes(name, done):
    "How many inputs a reader had, and how often it read and refused"
    told = ", ".join(f"{n} {k}" for k, n in sorted(hostile.OUTCOMES.items()))
    hostile.OUTCOMES.clear()
    return f"{name}: {done} inputs ({told})"


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_is_read_or_refused_in_words(place, name):
    number, done = chosen() if WHOLE else None, [0]
    print(f"DHO_FUZZ_SEED={number}")
    def check(given):
        done[0] += 1
        assert place.verdict(TARGETS[name].read, given) == []
    try: tried(place, name, check, count(name), number)
    finally: print(outcomes(name, done[0]))


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_seed_gives_the_same_inputs(place, name, monkeypatch):
    def drawn():
        found = []
        tried(place, name, lambda given: found.append(zlib.crc32(repr(given).encode())), 50, 5)
        return found
    first, now = drawn(), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e6)
    assert drawn() == first


def test_what_is_drawn_is_the_drawers_own():
    valid = {"a": {"b": [1]}}
    before = repr((valid, hostile.NESTS))
    def emptied(drawn):
        if isinstance(drawn, (dict, list)):
            for part in drawn.values() if isinstance(drawn, dict) else drawn: emptied(part)
            drawn.clear()
    settings(max_examples=400, derandomize=True, database=None, deadline=None)(given(documents(valid))(emptied))()
    assert repr((valid, hostile.NESTS)) == before


@pytest.mark.parametrize("tested", ["", "x", "inf", "-1", "9000"])
def test_a_record_whose_files_do_not_agree_is_refused(place, tested):
    table = pd.read_csv(place.folder/"record"/"runs.csv", dtype=str, keep_default_na=False).assign(tested=tested)
    with changed(place, "record/runs.csv", table.to_csv(index=False)), pytest.raises(DhoError, match="do not agree"):
        load_results(place.folder/"record")


@pytest.mark.parametrize("file, column", [("sweep/dho/conflict.csv", "head cosine"), ("record/conflict.csv", "step"), ("record/surface.csv", "nll")])
def test_a_table_whose_figures_are_no_numbers_is_refused(place, file, column):
    table = pd.read_csv(place.folder/file, dtype=str, keep_default_na=False)
    read, name = result_conflicts if "conflict" in file else result_surfaces, place.folder/file.split("/")[0]
    for wrong in (table.assign(**{column: ["k", *table[column][1:]]}), table.drop(columns=column)):
        with changed(place, file, wrong.to_csv(index=False)), pytest.raises(DhoError, match=f"no column '{column}' of numbers"): read(name)
    with changed(place, file, table.assign(**{column: ["", *table[column][1:]]}).to_csv(index=False)): assert read(name)[column].isna().sum() == 1


@pytest.mark.parametrize("harm, said", [
    (lambda p: os.system("true"), "os.system"), (lambda p: subprocess.run(["true"]), "subprocess.Popen"),
    (lambda p: os.posix_spawn("/bin/true", ["true"], {}), "os.posix_spawn"), (lambda p: eval("1 + 1"), "exec by"),
    (lambda p: __import__("this"), "import 'this'"), (lambda p: __import__("canary_of_nobody"), "import 'canary_of_nobody'"),
    (lambda p: __import__("socket").create_connection(("127.0.0.1", 9), 1), "socket.connect"),
    (lambda p: __import__("pickle").loads(BOMBS[1]), "pickle.find_class"), (lambda p: open("x", "w").close(), "write 'x'"),
    (lambda p: os.mkdir(p.base/"y"), "os.mkdir"), (lambda p: (p.base/"home"/"kept").rename(p.folder/"kept"), "os.rename"),
    (lambda p: os.symlink("/", p.base/"home"/"link"), "os.symlink"), (lambda p: {}["x"], "KeyError in outside of the library"),
    (lambda p: [None for _ in iter(int, 1)], "Hang"), (lambda p: bytearray(2**40), "MemoryError")])
def test_the_watch_sees_what_is_forbidden(tmp_path, monkeypatch, capsys, harm, said):
    monkeypatch.setattr(hostile, "SECONDS", (.3, 5))
    place = Place(tmp_path)
    monkeypatch.chdir(tmp_path/"cwd")
    assert any(said in kind for kind in place.verdict(lambda p, given: harm(p), None))


def test_the_watch_lets_a_reader_read_refuse_and_write_where_it_may(tmp_path):
    def reads(place, given):
        place.file("a/b", b"x").rename(place.folder/"a"/"c")
        __import__("timm.models.vgg")
        raise DhoError("no")
    assert Place(tmp_path).verdict(reads, None) == []


def survey(most, *names):
    "Count what goes wrong, by target and kind, with an example of each"
    with tempfile.TemporaryDirectory() as base, world(base) as place:
        names = names or tuple(TARGETS)
        total = sum(TARGETS[n].share for n in names)
        for name in names:
            found, examples, done = Counter(), {}, [0]
            def check(given):
                done[0] += 1
                for kind in place.verdict(TARGETS[name].read, given):
                    key = kind.split(" (")[0] if " in " in kind and kind[0].isupper() else kind[:40]
                    found[key] += 1; examples.setdefault(key, (kind, given))
            number = chosen()
            tried(place, name, check, -(-most*TARGETS[name].share//total), number)
            print(f"{outcomes(name, done[0])}, DHO_FUZZ_SEED={number}: {sum(found.values())} violations of {len(found)} kinds", flush=True)
            for key, number in found.most_common():
                kind, given = examples[key]
                shown = repr(given)
                print(f"  {number:5} {kind}\n        {shown if len(shown) < 400 else shown[:200] + ' … ' + shown[-200:]}", flush=True)


if __name__ == "__main__": survey(int(sys.argv[1]), *sys.argv[2:])
