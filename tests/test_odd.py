"Odd but legal: what people have on their disks, and what they try"
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from conftest import OPTIONS, ROOT, SMALL, fails, odd_tree
from dho_nb.losses.methods import METHODS
from dho_nb.runs.dataset import visible_dataset_labels, open_dataset
from dho_nb.runs.config import make_config
from dho_nb.teachers.import_embeddings import import_embeddings
from dho_nb.evaluation.outputs import HeadOutputs, collect_head_outputs, load_outputs, save_outputs
from dho_nb.runs.cross_fit import Curve, cross_fit_learning_curve, cross_fit_teachers
from dho_nb.data.label_files import manifest_from_labels
from dho_nb.data.manifests import manifest_root, write_digits_images, open_manifest, read_manifest, write_manifest
from dho_nb.runs.dry_run import estimate_training_time, estimate_workload
from dho_nb.runs.run import Run, distill
from dho_nb.core.settings import load_settings
from dho_nb.core.files import read_json, write_json
from dho_nb.students.dual_head import build_student, load_student, save_student
from dho_nb.data.loaders import ImageLoader



def test_ids_in_a_labels_file_are_the_users_own(tree, tmp_path):
    (tmp_path/"labels.csv").write_text("path,label,id\ncat/0.png,cat,1\ndog/0.png,dog,1\n")
    np.savez(tmp_path/"own.npz", paths=["dog/1.png", "cat/0.png", "dog/0.png"], embeddings=np.eye(3),
             classes=["cat", "dog"], text=np.eye(3)[:2])
    own = import_embeddings(manifest_from_labels(tree, tmp_path/"labels.csv"), tree, tmp_path/"own.npz", folder=tmp_path/"store")
    place = own.manifest.table["path"].tolist().index
    assert own([place("cat/0.png"), place("dog/0.png"), place("dog/1.png")],
               [0]*3).tolist() == np.eye(3)[[1, 2, 0]].tolist()


def test_no_labels_at_all(tree, tmp_path):
    (tmp_path/"none.csv").write_text("path,label\n")
    config = make_config(dict(OPTIONS, dataset=str(tree), labels=str(tmp_path/"none.csv"),
                              classes=["zero", "one"], method="kd"))
    run = distill(config, tmp_path/"run", "none")
    assert (run.inputs.labels.name, run.result["labeled"],
            len(pd.read_csv(tmp_path/"run"/"predictions.csv"))) == ("none", 0, 24)
    manifest = open_dataset(config).manifest
    fails(lambda: visible_dataset_labels(make_config(dict(OPTIONS, dataset=str(tree), labels=str(tmp_path/"none.csv"),
                                                classes=["zero", "one"])), manifest, METHODS["dho"]), "no labeled training image")


def test_more_shots_than_pictures_take_no_negative_time(tree):
    config = make_config(dict(OPTIONS, dataset=str(tree), shots=500))
    assert estimate_workload(config)["seen"] >= 0 and estimate_training_time(config) > 0


def test_a_student_from_a_folder_can_be_timed(tree):
    folder = Path(sys.modules["dho_nb"].__file__).parent/"bundled"/"digits_teacher"
    if not folder.is_dir(): folder = ROOT/"nbs"/"bundled"/"digits_teacher"
    assert estimate_training_time(make_config(dict(OPTIONS, dataset=str(tree),
                                          student=f"open_clip:local-dir:{folder.resolve()}", size=0))) > 0


def test_teachers_are_tried_whatever_the_method(tree):
    found = cross_fit_teachers(make_config(dict(OPTIONS, dataset=str(tree), method="ce")), ["digits"])
    assert list(found.index) == ["digits"] and found["images"].iloc[0] == 24


def test_seconds_are_those_of_all_sessions(tree, tmp_path):
    config = make_config(dict(OPTIONS, dataset=str(tree), shots=4, epochs=4, batch_unlabeled=4))
    first = Run(config, tmp_path/"run", "none")
    first.build_trainer().train(until=first.trainer.steps - 1, mode="none")
    assert 0 < first.trainer.seconds < 1000
    first.trainer.seconds += 1000  # a session that is seen in a rounded sum
    first.trainer.save()
    first.release()
    run = distill(config, tmp_path/"run", "none")
    assert 1000 < run.result["seconds"] < 2000


def test_names_that_are_no_utf8_are_predicted_too(dho, tree, tmp_path):
    assert dho("distill", "--images", tree, *SMALL, "--out", tmp_path/"run")[0] == 0
    (tmp_path/"odd").mkdir()
    odd = os.fsencode(tmp_path/"odd")+b"/caf\xe9.png"
    with open(odd, "wb") as f: f.write((tree/"cat"/"0.png").read_bytes())
    code, _, err = dho("predict", tmp_path/"run", tmp_path/"odd", "--out", tmp_path/"said.csv")
    assert code == 0 and pd.read_csv(tmp_path/"said.csv")["file"].iloc[0].endswith("caf\\udce9.png"), err


def test_options_reach_what_they_are_for(dho, tree, tmp_path):
    np.savez(tmp_path/"emb.npz", paths=[str(p.relative_to(tree)) for p in sorted(tree.rglob("*.png"))],
             embeddings=np.random.default_rng(0).normal(size=(24, 8)))
    np.savez(tmp_path/"texts.npz", classes=["cat", "dog"], text=np.random.default_rng(1).normal(size=(2, 8)))
    code, out, err = dho("store", "import", tmp_path/"emb.npz", "--images", tree, "--texts", tmp_path/"texts.npz",
                         "--out", tmp_path/"store")
    assert code == 0 and "24 of 24" in out and "class embeddings: right about" in out, out + err
    (tmp_path/"g.toml").write_text('[base]\npreset = "digits"\nepochs = 1\n[axes]\nseed = [0, 1]\n')
    assert dho("sweep", tmp_path/"g.toml", "--out", f"file://{tmp_path/'far'}", "--slurm", tmp_path/"far.sh",
               "--cpus", 3)[0] == 0
    script = (tmp_path/"far.sh").read_text()
    assert f"--out file://{tmp_path/'far'}" in script and "--cpus-per-task=3" in script and "--cpus 3" in script
    code, _, err = dho("sweep", tmp_path/"g.toml", "--slurm", tmp_path/"near.sh")
    assert code == 0 and f"sweep {tmp_path/'g.toml'} --out" in (tmp_path/"near.sh").read_text(), err
    code, _, err = dho("sweep", "g", "--slurm", tmp_path/"named.sh")
    assert code == 0 and f"sweep {(tmp_path/'runs'/'g').resolve()} --only" in (tmp_path/"named.sh").read_text(), err
    code, _, err = dho("sweep", "g", "--out", tmp_path/"else")
    assert code == 2 and "a folder of its own" in err


def test_a_curve_without_a_mistake_has_a_continuation():
    right = np.ones((2, 10), bool)
    assert Curve(np.array([10., 20.]), right).expect([40])["accuracy"].notna().all()


def test_a_curve_wants_two_sizes(tree):
    fails(lambda: cross_fit_learning_curve(make_config(dict(OPTIONS, dataset=str(tree))), [50]), "two numbers of labels", "[50]")


def test_a_run_goes_on_when_its_images_were_moved(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))
    first = distill(make_config(dict(OPTIONS, dataset=str(tree), shots=1, method="ce")), mode="none")
    os.rename(tree, tmp_path/"renamed")
    again = Run(make_config(dict(OPTIONS, dataset=str(tmp_path/"renamed"), shots=1, method="ce")), mode="none")
    assert again.folder == first.folder and again.done and again.name != first.folder.name


def test_a_run_is_not_put_where_nobody_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(lambda: Run(make_config(dict(dataset="digits")), "s3://bucket/run"), "a folder of this machine", "dho sweep")
    assert not any(tmp_path.iterdir())


def test_rows_are_positions_and_there_may_be_none():
    student, digits = build_student("tiny", 10, size=16, args=dict(widths=(4, 4))), open_manifest("digits")
    images = ImageLoader(digits, manifest_root(digits))
    assert [len(collect_head_outputs(student, images, r, mode="none"))
            for r in ([], [3, 5], pd.Index([3]), np.array([7], np.uint16))] == [0, 2, 1, 1]
    fails(lambda: collect_head_outputs(student, images, digits.table["split"].to_numpy() == "val", mode="none"), "np.flatnonzero")


def test_what_is_written_below_home_is_read_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    digits, said = open_manifest("digits"), torch.zeros(2, 10)
    save_outputs(HeadOutputs(said, said, torch.zeros(2, dtype=torch.int64), torch.arange(2)),
                 "~/outputs.safetensors", digits)
    assert load_outputs("~/outputs.safetensors")[1] == digits.table["id"][:2].tolist()
    save_student(build_student("tiny", 10), "~/student.safetensors", spec="tiny")
    assert load_student("~/student.safetensors")[0].preprocess.size == 32
    fails(lambda: load_outputs("~/student.safetensors"), "holds no head outputs")
    fails(lambda: load_outputs(tmp_path/"none.safetensors"), "holds no head outputs")
    write_manifest(digits, "~/lists")
    assert len(read_manifest("~/lists/digits.csv")) == 1797
    write_json("~/facts.json", [1])
    assert read_json("~/facts.json") == [1] and (write_digits_images("~/digits")/"one").parent == tmp_path/"digits"


def test_check_distill_and_predict_say_what_is_passed_over(dho, tmp_path):
    root = odd_tree(tmp_path/"odd")
    code, out, err = dho("check", "--images", root, *SMALL)
    assert code == 0 and "passed over: 13 files skipped" in out, out + err
    code, out, err = dho("distill", "--images", root, *SMALL, "--out", "run")
    assert code == 0 and out.count("13 files skipped") == 1, out + err
    for asked in (root, root/"[cd]*"/"*"):
        code, out, err = dho("predict", "run", asked)
        assert code == 0 and "files skipped" in err and len(out.splitlines()) == 5, out + err


def test_settings_in_another_encoding_are_not_passed_over(tmp_path):
    (tmp_path/"settings.ini").write_bytes("[dho_nb]\nthreads = 3\n".encode("utf-16"))
    fails(lambda: load_settings(tmp_path, {}), "settings.ini", "UTF-16", "save it as 'UTF-8'")
