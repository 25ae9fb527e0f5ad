"Odd but legal: what people have on their disks, and what they try"
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, SMALL, picture
from dho_nb.losses.methods import METHODS
from dho_nb.runs.dataset import visible_labels, open_data
from dho_nb.runs.config import make_config
from dho_nb.teachers.import_embeddings import import_embeddings
from dho_nb.evaluation.outputs import HeadOutputs, collect, load_outputs, save_outputs
from dho_nb.runs.cross_fit import Curve, learning_curve, try_teachers
from dho_nb.data.manifests import (Manifest, data_root, from_coop, from_labels, make_digits, open_manifest,
                                   read_manifest, split_off, write_manifest)
from dho_nb.data.label_subsets import labelled_subset
from dho_nb.runs.dry_run import training_time, workload
from dho_nb.runs.run import Run, distill
from dho_nb.core.errors import DhoError
from dho_nb.core.settings import load_settings
from dho_nb.core.files import read_json, write_json
from dho_nb.students.dual_head import build_student, load_student, save_student
from dho_nb.data.loaders import Images
from dho_nb.data.transforms import read_image

OPTIONS = dict(teacher="digits", student="tiny", student_weights="", size=16, epochs=1, flip=0.)


def fails(call, *said):
    with pytest.raises(DhoError) as found: call()
    assert all(s in str(found.value) for s in said), found.value


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_a_turned_picture_is_turned_once_whatever_its_kind(tmp_path, kind):
    turned = Image.Exif()
    turned[0x0112] = 6
    seen = read_image(picture(tmp_path/f"a.{kind}", 1, (100, 40), exif=turned))
    assert seen.size == seen.info["whole"] == (40, 100)


def test_a_picture_whose_exif_is_broken_is_read_all_the_same(tmp_path):
    turned = Image.Exif()
    for kind in ("jpg", "png", "webp"):
        assert read_image(picture(tmp_path/f"junk.{kind}", 1, (100, 40), exif=b"Exif\0\0no tags")).size == (100, 40)
    turned[0x0112], turned[0x010F] = 6, "a maker"
    data = bytearray(picture(tmp_path/"a.jpg", 1, (100, 40), exif=turned).read_bytes())
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(300):
        worse = data.copy()
        for at in rng.integers(20, 90, 2): worse[at] = rng.integers(256)
        (tmp_path/"b.jpg").write_bytes(worse)
        try: sizes.add(read_image(tmp_path/"b.jpg").size)
        except DhoError: sizes.add("named")
    assert {(40, 100), (100, 40)} <= sizes <= {(40, 100), (100, 40), "named"}


def test_sixteen_bits_are_one_scale_for_all_pictures(tmp_path):
    for most in (200, 300): Image.fromarray(np.array([[200, most]], np.uint16)).save(tmp_path/f"{most}.png")
    assert [np.asarray(read_image(tmp_path/f"{most}.png"))[0, 0, 0] for most in (200, 300)] == [1, 1]


def test_classes_whose_folders_are_spelt_in_two_ways_are_one(tmp_path):
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301"), ("train", "dog "), ("test", "dog")):
        picture(tmp_path/split/name/"0.png", 1)
    assert open_manifest(str(tmp_path)).classes == ("caf\u00e9", "dog")


def test_one_picture_by_two_ways_is_one_picture(tmp_path):
    picture(tmp_path/"photos"/"b"/"0.png", 1)
    picture(tmp_path/"photos"/"b"/"1.png", 2)
    os.symlink(tmp_path/"photos"/"b", tmp_path/"photos"/"a")
    (tmp_path/"labels.csv").write_text("path,label,split\nb/0.png,cat,test\nb/1.png,dog,train\n")
    assert from_labels(tmp_path/"photos", tmp_path/"labels.csv").table["path"].tolist() == ["b/0.png", "b/1.png"]
    (tmp_path/"list.csv").write_text("path,label,split\n./b/0.png,cat,test\nb/0.png,cat,train\nb//1.png,dog,train\n")
    fails(lambda: read_manifest(tmp_path/"list.csv"), "b/0.png", "more than once")


def test_ids_in_a_labels_file_are_the_users_own(tree, tmp_path):
    (tmp_path/"labels.csv").write_text("path,label,id\ncat/0.png,cat,1\ndog/0.png,dog,1\n")
    np.savez(tmp_path/"own.npz", paths=["dog/1.png", "cat/0.png", "dog/0.png"], embeddings=np.eye(3),
             classes=["cat", "dog"], text=np.eye(3)[:2])
    own = import_embeddings(from_labels(tree, tmp_path/"labels.csv"), tree, tmp_path/"own.npz", folder=tmp_path/"store")
    place = own.manifest.table["path"].tolist().index
    assert own([place("cat/0.png"), place("dog/0.png"), place("dog/1.png")],
               [0]*3).tolist() == np.eye(3)[[1, 2, 0]].tolist()


def test_a_test_split_leaves_every_class_one_label():
    table = pd.DataFrame(dict(path=[f"{i}.png" for i in range(30)], label=[*range(10)]*2 + [10]*9 + [11],
                              split="train"))
    many = Manifest("odd", table, [f"c{i}" for i in range(12)])
    for seed in range(20):
        assert set(split_off(many, "test", .2, seed).table.query("split == 'train'")["label"]) == {*range(12)}
    fails(lambda: split_off(many, "test", 25), "each class keeps one")


def test_a_manifest_says_what_is_wrong_with_its_labels():
    for bad in (["cat", "dog"], [0, None]):
        fails(lambda: Manifest("mine", pd.DataFrame(dict(path=["a", "b"], label=bad, split="train")), ["cat", "dog"]),
              "mine", "positions")


def test_a_list_exists_once_its_csv_does(tmp_path, monkeypatch):
    import dho_nb.data.manifests as manifests
    monkeypatch.setattr(manifests, "write_json", lambda *a: 1/0)
    made = Manifest("two", pd.DataFrame(dict(path=["a", "b"], label=[0, 1], split="train")), ["zebra", "ant"])
    with pytest.raises(ZeroDivisionError): manifests.write_manifest(made, tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_an_avif_that_is_broken_in_the_middle_is_a_broken_image(tmp_path):
    file = picture(tmp_path/"a.avif", 1, (64, 48))
    data = bytearray(file.read_bytes())
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(60):
        worse = data.copy()
        for at in rng.integers(20, len(data), 6): worse[at] ^= 0xFF
        file.write_bytes(worse)
        try: read_image(file)
        except DhoError as e: kinds.add("cannot be decoded" in str(e))
    assert kinds == {True}


def test_a_folder_that_is_called_like_a_known_dataset(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(tree, tmp_path/"digits")
    assert open_manifest("./digits").classes == ("cat", "dog")
    fails(lambda: open_data(make_config(dict(dataset="digits"))), "say ./digits", "--root")
    opened = open_data(make_config(dict(dataset="./digits")))
    assert opened.manifest.classes == ("cat", "dog") and opened.root == Path("digits") and opened.keys is not None
    picture(tmp_path/"eurosat"/"a"/"0.png")
    fails(lambda: open_data(make_config(dict(dataset="eurosat"))), "say ./eurosat")
    (tmp_path/"labels.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    assert open_data(make_config(dict(dataset="digits",
                                      labels="labels.csv"))).keys is not None, "what the files hold counts"


def test_absolute_paths_may_lead_through_a_link(tree, tmp_path):
    (tmp_path/"link").symlink_to(tree)
    (tmp_path/"labels.csv").write_text(f"path,label\n{tmp_path/'link'/'cat'/'0.png'},cat\n{tree/'dog'/'0.png'},dog\n")
    found = open_data(make_config(dict(dataset=str(tmp_path/"link"), labels=str(tmp_path/"labels.csv")))).manifest
    assert set(found.table["path"][found.table["label"] >= 0]) == {"cat/0.png", "dog/0.png"}


def test_files_of_others_nearby_are_passed_over_or_named(tmp_path):
    (tmp_path/"settings.ini").write_bytes(b"no section here\xff\n")
    (tmp_path/"inner").mkdir()
    assert load_settings(tmp_path/"inner", {}) == load_settings("/", {})
    (tmp_path/"settings.ini").write_text("[dho_nb]\ndata = /disk/100%/x\n")
    assert load_settings(tmp_path, {}).data == Path("/disk/100%/x")
    (tmp_path/"settings.ini").write_text("[dho_nb]\ndata\n")
    fails(lambda: load_settings(tmp_path, {}), "settings.ini", "cannot be read")
    (tmp_path/"list.csv").write_text("path,label\na.png,a\n")
    for said in ("[1, 2]", '{"classes": 3}', '{"classes": [1]}'):
        (tmp_path/"list.json").write_text(said)
        fails(lambda: read_manifest(tmp_path/"list.csv"), "list.json", "classes")
    (tmp_path/"split.json").write_text('[{"path": "a.png"}]')
    fails(lambda: from_coop(tmp_path/"split.json"), "no CoOp split", "train")


def test_a_name_with_dots_stays_whole(tmp_path):
    (tmp_path/"photos.v2.csv").write_text("path,label\na.png,a\nb.png,b\n")
    assert read_manifest(tmp_path/"photos.v2.csv").name == "photos.v2"


def test_no_labels_at_all(tree, tmp_path):
    (tmp_path/"none.csv").write_text("path,label\n")
    config = make_config(dict(OPTIONS, dataset=str(tree), labels=str(tmp_path/"none.csv"),
                              classes=["zero", "one"], method="kd"))
    run = distill(config, tmp_path/"run", "none")
    assert (run.inputs.labels.name, run.result["labelled"],
            len(pd.read_csv(tmp_path/"run"/"predictions.csv"))) == ("none", 0, 24)
    manifest = open_data(config).manifest
    fails(lambda: visible_labels(make_config(dict(OPTIONS, dataset=str(tree), labels=str(tmp_path/"none.csv"),
                                                classes=["zero", "one"])), manifest, METHODS["dho"]), "no labelled training image")


def test_more_shots_than_pictures_take_no_negative_time(tree):
    config = make_config(dict(OPTIONS, dataset=str(tree), shots=500))
    assert workload(config)["seen"] >= 0 and training_time(config) > 0


def test_a_student_from_a_folder_can_be_timed(tree):
    folder = Path(sys.modules["dho_nb"].__file__).parent/"bundled"/"digits_teacher"
    if not folder.is_dir(): folder = ROOT/"nbs"/"bundled"/"digits_teacher"
    assert training_time(make_config(dict(OPTIONS, dataset=str(tree),
                                          student=f"open_clip:local-dir:{folder.resolve()}", size=0))) > 0


def test_teachers_are_tried_whatever_the_method(tree):
    found = try_teachers(make_config(dict(OPTIONS, dataset=str(tree), method="ce")), ["digits"])
    assert list(found.index) == ["digits"] and found["images"].iloc[0] == 24


def test_seconds_are_those_of_all_sessions(tree, tmp_path):
    config = make_config(dict(OPTIONS, dataset=str(tree), shots=4, epochs=4, batch_unlabelled=4))
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
    fails(lambda: learning_curve(make_config(dict(OPTIONS, dataset=str(tree))), [50]), "two numbers of labels", "[50]")


def test_a_manifest_without_needed_labels_takes_what_there_is(tree):
    found = open_manifest(str(tree))
    assert labelled_subset(found, 3, needed=False).name == "3-shot"
    cats = replace(found, table=found.table.assign(label=np.where(found.table["label"] == 0, 0, -1)))
    assert (labelled_subset(cats, 3, needed=False).name, len(labelled_subset(cats, 3, needed=False))) == ("all", 12)
    fails(lambda: labelled_subset(cats, 3), "no labelled training image", "['dog']")


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
    images = Images(digits, data_root(digits))
    assert [len(collect(student, images, r, mode="none"))
            for r in ([], [3, 5], pd.Index([3]), np.array([7], np.uint16))] == [0, 2, 1, 1]
    fails(lambda: collect(student, images, digits.table["split"].to_numpy() == "val", mode="none"), "np.flatnonzero")


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
    assert read_json("~/facts.json") == [1] and (make_digits("~/digits")/"one").parent == tmp_path/"digits"


def test_ids_and_labels_out_of_a_data_frame(tmp_path):
    table = pd.DataFrame(dict(id=[10, 9, 8], path=[Path("a.png"), Path("b.png"), Path("c.png")], label=[0., 1., 1.],
                              split="train"), index=[5, 5, 7])
    made = Manifest("mine", table, ("cat", "dog"))
    np.savez(tmp_path/"own.npz", paths=["c.png", "10", "b.png"], embeddings=np.eye(3), classes=["cat", "dog"],
             text=np.eye(3)[:2])
    assert made.table["id"].tolist() == ["10", "9", "8"] and made.table["label"].tolist() == [0, 1, 1]
    assert import_embeddings(made, tmp_path, tmp_path/"own.npz",
                             folder=tmp_path/"store")([0, 1, 2], [0]*3).tolist() == np.eye(3)[[1, 2, 0]].tolist()
    fails(lambda: Manifest("mine", table.assign(label=[0.5, 1, 1]), ("cat", "dog")), "a fraction")


def test_a_link_that_leads_nowhere_is_missing(tree):
    from dho_nb.data.datasets import check_files
    from dho_nb.data.manifests import from_folder
    (tree/"cat"/"0.png").unlink(); (tree/"cat"/"0.png").symlink_to("nowhere.png")
    found = check_files(from_folder(tree), tree)
    assert found[["path", "problem"]].to_numpy().tolist() == [["cat/0.png", "missing"]]


def test_a_table_with_the_line_ends_of_a_mac(tmp_path):
    from dho_nb.data.manifests import read_table
    (tmp_path/"labels.csv").write_bytes(b"path,label\ra.png,cat\rb.png,dog\r")
    assert read_table(tmp_path/"labels.csv")["label"].tolist() == ["cat", "dog"]


def test_a_class_that_stands_twice_among_the_embeddings():
    from dho_nb.teachers.embedding_store import match_classes
    assert match_classes(["crane", "cat"], ["cat", "crane", "dog", "dog"], 4) == [1, 0]
    with pytest.raises(DhoError, match="'crane' stands 2 times"): match_classes(["crane"], ["crane", "dog", "crane"], 3)


def test_a_card_of_a_published_checkpoint_and_a_teacher_with_other_prompts(tmp_path, monkeypatch):
    from dho_nb.runs.config import make_config
    from dho_nb.deploy.evaluate import Evaluation
    from dho_nb.deploy.checkpoints import random_published
    from dho_nb.deploy.model_card import model_card
    assert "two heads" in model_card(random_published(tmp_path/"x.pt", 10))
    asked = [Evaluation("digits", make_config(dict(dataset="digits", **t))) for t in ({}, dict(templates=["a blob {}"]))]
    assert asked[0].identity != asked[1].identity


def test_openais_own_files_have_their_activation(tmp_path):
    import torch
    from dho_nb.teachers.clip import _lacks_quickgelu
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path/"RN50.pt")
    torch.save({}, tmp_path/"other.pt")
    assert _lacks_quickgelu("RN50", str(tmp_path/"RN50.pt")) and not _lacks_quickgelu("RN50-quickgelu", str(tmp_path/"RN50.pt"))
    assert not _lacks_quickgelu("RN50", str(tmp_path/"other.pt")) and not _lacks_quickgelu("RN50", "yfcc15m/other.pt")


def odd_tree(root):
    "Four pictures by their names, and files that are none by theirs"
    for name in ("cat", "dog"):
        for i in range(2): picture(root/name/f"{i}.png", seed=i + 9*(name == "dog"))
    for i, name in enumerate(("cat/a.jpe", "cat/b", "dog/c.JPG_large")): picture(root/"new.jpg", seed=50 + i).rename(root/name)
    for name in ("cat/._0.png", "cat/.hidden.png", "dog/Thumbs.db", "notes.txt"): (root/name).write_text("none")
    for name in ("lost+found", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "@eaDir", "__MACOSX"):
        picture(root/name/"old.png", seed=70)
    return root


def test_what_is_not_taken_is_counted_by_reason(tmp_path):
    from dho_nb.data.manifests import skipped_files, describe_skipped
    root = odd_tree(tmp_path/"odd")
    assert open_manifest(str(root)).classes == ("cat", "dog")
    found = skipped_files(root)
    assert found["reason"].value_counts().to_dict() == {
        "of the system": 6, ".jpe": 1, "without a suffix": 1, ".jpg_large": 1, ".txt": 1, "AppleDouble": 1, "hidden": 2}
    text = describe_skipped(root)
    assert text.startswith("13 files skipped") and "Content shows 3 photographs" in text
    files = sum(len(names) for _, _, names in os.walk(root))
    assert len(found) + len(open_manifest(str(root))) == files
    assert describe_skipped(tmp_path/"odd"/"@eaDir") == ""


def test_split_folders_may_hold_folders_of_the_system(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"): picture(tmp_path/"t"/split/name/"1.png", seed=len(split + name))
    picture(tmp_path/"t"/"train"/"@eaDir"/"1.png"), picture(tmp_path/"t"/"lost+found"/"1.png")
    made = open_manifest(str(tmp_path/"t"))
    assert made.classes == ("cat", "dog") and len(made) == 4


def test_a_class_without_pictures_says_what_its_files_are(tmp_path):
    root = odd_tree(tmp_path/"odd")
    for f in (root/"dog").glob("*.png"): f.rename(f.with_suffix(".jpe"))
    fails(lambda: open_manifest(str(root)), "['dog']", "3 .jpe", "photographs among them")


def test_check_distill_and_predict_say_what_is_passed_over(dho, tmp_path):
    root = odd_tree(tmp_path/"odd")
    code, out, err = dho("check", "--images", root, *SMALL)
    assert code == 0 and "passed over: 13 files skipped" in out, out + err
    code, out, err = dho("distill", "--images", root, *SMALL, "--out", "run")
    assert code == 0 and out.count("13 files skipped") == 1, out + err
    for asked in (root, root/"[cd]*"/"*"):
        code, out, err = dho("predict", "run", asked)
        assert code == 0 and "files skipped" in err and len(out.splitlines()) == 5, out + err


def test_pictures_that_a_list_does_not_name_are_counted(tree, tmp_path):
    from dho_nb.runs.config import data_notes
    (tmp_path/"list.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    config = make_config(dict(OPTIONS, dataset=str(tmp_path/"list.csv"), root=str(tree)))
    data = open_data(config)
    assert data_notes(config, data.manifest, data.root, data.skipped) == {"passed over": f"22 pictures below {tree} not in the list, e.g. cat/1.png"}


def test_class_names_that_are_codes_are_named(tree, tmp_path):
    from dho_nb.runs.config import data_notes
    for old, new in (("cat", "n02123045"), ("dog", "0012")): (tree/old).rename(tree/new)
    notes = lambda **more: data_notes(c := make_config(dict(OPTIONS, dataset=str(tree), **more)), (d := open_data(c)).manifest, d.root)
    assert "2 of 2 class names are codes" in (said := notes()["class names"])
    assert "n02123045 is 'tabby cat'" in said and "--classes 0012=NAME 'n02123045=tabby cat'" in said
    assert notes(classes=["n02123045=tabby", "0012=dog"]) == notes(method="ce") == {}
    (tmp_path/"l.csv").write_text("path,label\n0012/0.png,class_0\nn02123045/0.png,class_1\n")
    assert "write words into the column label" in notes(labels=str(tmp_path/"l.csv"))["class names"]


def coop(file, **parts):
    file.write_text(json.dumps({s: parts.get(s, []) for s in ("train", "val", "test")}))
    return file


@pytest.mark.parametrize("val, said", [
    ([["b.png", 1, "cat"]], ["class 'cat'", "0 in train", "1 in val"]),
    ([["b.png", 0, "dog"]], ["label 0", "'cat' in train", "'dog' in val"]),
    ([["b.png", 1, "dog"], ["c.png", 1, "cow"]], ["label 1", "'dog' in val", "'cow' in val"]),
    ([["b.png", "1", "dog"]], ["whole number"]), ([["b.png", 1.5, "dog"]], ["whole number"]),
    ([["b.png", 1, ""]], ["class name"]), ([["b.png", 1, None]], ["class name"]), ([[3, 1, "dog"]], ["path"]),
    ([["a.png", 1, "dog"]], ["more than once"])])
def test_a_coop_split_whose_parts_disagree_is_refused(tmp_path, val, said):
    file = coop(tmp_path/"split_zhou_X.json", train=[["a.png", 0, "cat"]], val=val, test=[["d.png", 1, "dog"]])
    fails(lambda: from_coop(file), *said)


def test_names_of_a_coop_split_may_be_spelt_in_two_ways(tmp_path):
    file = coop(tmp_path/"split_zhou_X.json", train=[["a.png", 0, "caf\u00e9"], ["b.png", 1, "bar"]], val=[["c.png", 0, "cafe\u0301 "]])
    assert from_coop(file).classes == ("caf\u00e9", "bar")


def test_class_lists_may_be_spelt_in_two_ways(tree, tmp_path):
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,caf\u00e9\ndog/0.png,bar\n")
    assert from_labels(tree, tmp_path/"l.csv", classes=["cafe\u0301", "bar"]).classes == ("caf\u00e9", "bar")
    (tmp_path/"l.json").write_text(json.dumps(dict(classes=["bar", "cafe\u0301"])))
    assert read_manifest(tmp_path/"l.csv").classes == ("bar", "caf\u00e9")
    config = dict(OPTIONS, dataset=str(tmp_path/"l.csv"), root=str(tree))
    assert open_data(make_config(dict(config, classes=["cafe\u0301=pub"]))).manifest.classes == ("bar", "pub")
    fails(lambda: open_data(make_config(dict(config, classes=["bar=a", "bar=b"]))), "'bar' is renamed twice")
    fails(lambda: open_data(make_config(dict(config, classes=["bar=a", "caf\u00e9=a"]))), "must differ")


MARK = "\ufeff"


def test_a_byte_order_mark_is_read_over(tree, tmp_path, monkeypatch):
    from dho_nb.sweeps.grid import read_grid
    (tmp_path/"g.toml").write_text(MARK + "[base]\npreset = 'digits'\n[axes]\nseed = [0, 1]\n", encoding="utf-8")
    assert len(read_grid(tmp_path/"g.toml").cells) == 2
    (tmp_path/"settings.ini").write_text(MARK + "[dho_nb]\nthreads = 3\n", encoding="utf-8")
    assert load_settings(tmp_path, {}).threads == 3
    (tmp_path/"l.csv").write_text(MARK + "path,label\ncat/0.png,cat\ndog/0.png,dog\n", encoding="utf-8")
    assert from_labels(tree, tmp_path/"l.csv").classes == read_manifest(tmp_path/"l.csv").classes == ("cat", "dog")
    (tmp_path/"l.json").write_text(MARK + json.dumps(dict(classes=["dog", "cat"])), encoding="utf-8")
    assert read_manifest(tmp_path/"l.csv").classes == ("dog", "cat")
    split = coop(tmp_path/"split_zhou_X.json", train=[["a", 0, "x"], ["b", 1, "y"]])
    split.write_text(MARK + split.read_text(), encoding="utf-8")
    assert from_coop(split).classes == ("x", "y")


def test_settings_in_another_encoding_are_not_passed_over(tmp_path):
    (tmp_path/"settings.ini").write_bytes("[dho_nb]\nthreads = 3\n".encode("utf-16"))
    fails(lambda: load_settings(tmp_path, {}), "settings.ini", "UTF-16", "save it as 'UTF-8'")


RAMP = np.linspace(0, 4095, 64*64).reshape(64, 64).astype(np.uint16)


def grey(file, values, tags=None, sbit=0):
    "A grey picture of 16 bits, with TIFF tags or an sBIT chunk"
    made = Image.fromarray(values)
    if file.suffix == ".tif": made.save(file, tiffinfo=tags or {})
    else:
        from PIL.PngImagePlugin import PngInfo
        chunks = PngInfo()
        if sbit: chunks.add(b"sBIT", bytes([sbit]))
        made.save(file, pnginfo=chunks)
    return file


def test_twelve_bits_in_sixteen_are_scaled_where_the_file_says_so(tmp_path):
    from dho_nb.deploy.predictor import load_pixels
    from dho_nb.data.transforms import Preprocess
    files = dict(said=grey(tmp_path/"said.tif", RAMP, {281: 4095}), unsaid=grey(tmp_path/"unsaid.tif", RAMP),
                 statistic=grey(tmp_path/"statistic.tif", RAMP, {281: 4000}),
                 wrong=grey(tmp_path/"wrong.tif", RAMP*8, {281: 4095}), whole=grey(tmp_path/"whole.tif", RAMP*16, {281: 65535}),
                 sbit=grey(tmp_path/"sbit.png", RAMP, sbit=12), scaled=grey(tmp_path/"scaled.png", RAMP*16, sbit=12),
                 dark=grey(tmp_path/"dark.png", RAMP//64*16, sbit=12), full=grey(tmp_path/"full.png", RAMP, sbit=16))
    top = {name: int(np.max(read_image(file))) for name, file in files.items()}
    assert top == dict(said=255, unsaid=16, statistic=16, wrong=127, whole=255, sbit=255, scaled=255, dark=4, full=16)
    preprocess = Preprocess(32)
    for file in files.values():
        with Image.open(file) as opened: assert (load_pixels(file, preprocess) == load_pixels(opened, preprocess)).all(), file


def test_pictures_of_twelve_bits_that_nothing_tells_of_are_named(tmp_path):
    from dho_nb.runs.config import data_notes
    for name in ("cat", "dog"):
        (tmp_path/"t"/name).mkdir(parents=True)
        for i in range(3): grey(tmp_path/"t"/name/f"{i}.tif", RAMP//(i + 1)//(1 + (name == "dog")), {281: 4095} if i == 2 else {})
    Image.fromarray(RAMP*16).save(tmp_path/"t"/"cat"/"stack.tif", save_all=True, append_images=[Image.fromarray(RAMP)])
    picture(tmp_path/"t"/"dog"/"8bit.png")
    config = make_config(dict(OPTIONS, dataset=str(tmp_path/"t")))
    data = open_data(config)
    notes = data_notes(config, data.manifest, data.root)
    assert notes["nearly black"].startswith("4 of 7 pictures of 16 bits") and "MaxSampleValue" in notes["nearly black"]
    assert notes["several pages"].startswith("1 of 8 pictures looked at hold several pages, e.g. cat/stack.tif")


def bands(file, count, bits=8, head="<"):
    "A small TIFF of any number of bands, written by hand"
    import struct
    data = bytes(4*4*count*bits//8)
    tags = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0),
            (277, 3, 1, count), (278, 4, 1, 4), (279, 4, 1, len(data))]
    at = 8 + 2 + 12*len(tags) + 4
    tags = [(t, k, n, at if t == 273 else v) for t, k, n, v in tags]
    pack = lambda form, *v: struct.pack(head + form, *v)
    entry = lambda t, k, n, v: pack("HHI", t, k, n) + (pack("HH", v, 0) if k == 3 else pack("I", v))
    file.write_bytes((b"II" if head == "<" else b"MM") + pack("HI", 42, 8) + pack("H", len(tags))
                     + b"".join(entry(*t) for t in tags) + pack("I", 0) + data)
    return file


@pytest.mark.parametrize("head", "<>")
@pytest.mark.parametrize("count, bits, said", [(5, 8, "5 bands of 8 bits"), (13, 16, "13 bands of 16 bits"),
                                               (2, 32, "2 bands of 32 bits"), (3, 64, "3 bands of 64 bits")])
def test_a_tiff_of_many_bands_is_called_so(tmp_path, count, bits, said, head):
    fails(lambda: read_image(bands(tmp_path/"a.tif", count, bits, head)), f"a TIFF of {said} is not read",
          "gdal_translate -b 1" if count != 3 else "save it so")


def test_what_begins_like_a_tiff_and_is_none_is_no_image(tmp_path):
    for i, rest in enumerate((b"", b"\xff"*60, bytes(60))):
        (tmp_path/f"{i}.tif").write_bytes(b"II*\0" + rest)
        fails(lambda i=i: read_image(tmp_path/f"{i}.tif"), "cannot be decoded")


def test_a_cosine_head_has_no_bias():
    from dho_nb.students.heads import CosineHead, ReferenceHead
    with pytest.raises(TypeError, match="bias"): CosineHead(4, 2, bias=True)
    head, reference = CosineHead(4, 2), ReferenceHead(4, 2)
    assert head.bias is None and reference.bias.shape == (2,)
    with torch.no_grad(): reference.bias.fill_(1.0)
    x = torch.randn(3, 4)
    before = reference(x)
    with torch.no_grad(): reference.bias.fill_(2.0)
    assert torch.allclose(reference(x) - before, torch.full((3, 2), 1/reference.zeta))
