"Lists of images as people have them: folders, tables, names, paths"
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import OPTIONS, fails, odd_tree, picture
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.config import make_config
from dho_nb.teachers.import_embeddings import import_embeddings
from dho_nb.data.label_files import manifest_from_labels
from dho_nb.data.manifests import Manifest, manifest_from_coop, open_manifest, read_manifest, split_off
from dho_nb.data.label_subsets import labeled_subset
from dho_nb.core.settings import load_settings

MARK = "\ufeff"


def coop(file, **parts):
    file.write_text(json.dumps({s: parts.get(s, []) for s in ("train", "val", "test")}))
    return file


def test_classes_whose_folders_are_spelt_in_two_ways_are_one(tmp_path):
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301"), ("train", "dog "), ("test", "dog")):
        picture(tmp_path/split/name/"0.png", 1)
    assert open_manifest(str(tmp_path)).classes == ("caf\u00e9", "dog")


def test_one_picture_by_two_ways_is_one_picture(tmp_path):
    picture(tmp_path/"photos"/"b"/"0.png", 1)
    picture(tmp_path/"photos"/"b"/"1.png", 2)
    os.symlink(tmp_path/"photos"/"b", tmp_path/"photos"/"a")
    (tmp_path/"labels.csv").write_text("path,label,split\nb/0.png,cat,test\nb/1.png,dog,train\n")
    assert manifest_from_labels(tmp_path/"photos", tmp_path/"labels.csv").table["path"].tolist() == ["b/0.png", "b/1.png"]
    (tmp_path/"list.csv").write_text("path,label,split\n./b/0.png,cat,test\nb/0.png,cat,train\nb//1.png,dog,train\n")
    fails(lambda: read_manifest(tmp_path/"list.csv"), "b/0.png", "more than once")


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


def test_a_folder_that_is_called_like_a_known_dataset(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(tree, tmp_path/"digits")
    assert open_manifest("./digits").classes == ("cat", "dog")
    fails(lambda: open_dataset(make_config(dict(dataset="digits"))), "say ./digits", "--root")
    opened = open_dataset(make_config(dict(dataset="./digits")))
    assert opened.manifest.classes == ("cat", "dog") and opened.root == Path("digits") and opened.keys is not None
    picture(tmp_path/"eurosat"/"a"/"0.png")
    fails(lambda: open_dataset(make_config(dict(dataset="eurosat"))), "say ./eurosat")
    (tmp_path/"labels.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    assert open_dataset(make_config(dict(dataset="digits",
                                      labels="labels.csv"))).keys is not None, "what the files hold counts"


def test_absolute_paths_may_lead_through_a_link(tree, tmp_path):
    (tmp_path/"link").symlink_to(tree)
    (tmp_path/"labels.csv").write_text(f"path,label\n{tmp_path/'link'/'cat'/'0.png'},cat\n{tree/'dog'/'0.png'},dog\n")
    found = open_dataset(make_config(dict(dataset=str(tmp_path/"link"), labels=str(tmp_path/"labels.csv")))).manifest
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
    fails(lambda: manifest_from_coop(tmp_path/"split.json"), "no CoOp split", "train")


def test_a_name_with_dots_stays_whole(tmp_path):
    (tmp_path/"photos.v2.csv").write_text("path,label\na.png,a\nb.png,b\n")
    assert read_manifest(tmp_path/"photos.v2.csv").name == "photos.v2"


def test_a_manifest_without_needed_labels_takes_what_there_is(tree):
    found = open_manifest(str(tree))
    assert labeled_subset(found, 3, needed=False).name == "3-shot"
    cats = replace(found, table=found.table.assign(label=np.where(found.table["label"] == 0, 0, -1)))
    assert (labeled_subset(cats, 3, needed=False).name, len(labeled_subset(cats, 3, needed=False))) == ("all", 12)
    fails(lambda: labeled_subset(cats, 3), "no labeled training image", "['dog']")


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
    from dho_nb.data.datasets import check_dataset_files
    from dho_nb.data.manifests import manifest_from_folder
    (tree/"cat"/"0.png").unlink(); (tree/"cat"/"0.png").symlink_to("nowhere.png")
    found = check_dataset_files(manifest_from_folder(tree), tree)
    assert found[["path", "problem"]].to_numpy().tolist() == [["cat/0.png", "missing"]]


def test_a_table_with_the_line_ends_of_a_mac(tmp_path):
    from dho_nb.data.manifests import read_manifest_table
    (tmp_path/"labels.csv").write_bytes(b"path,label\ra.png,cat\rb.png,dog\r")
    assert read_manifest_table(tmp_path/"labels.csv")["label"].tolist() == ["cat", "dog"]


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


def test_pictures_that_a_list_does_not_name_are_counted(tree, tmp_path):
    from dho_nb.runs.config import config_data_warnings
    (tmp_path/"list.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    config = make_config(dict(OPTIONS, dataset=str(tmp_path/"list.csv"), root=str(tree)))
    data = open_dataset(config)
    assert config_data_warnings(config, data.manifest, data.root, data.skipped) == {"passed over": f"22 pictures below {tree} not in the list, e.g. cat/1.png"}


def test_class_names_that_are_codes_are_named(tree, tmp_path):
    from dho_nb.runs.config import config_data_warnings
    for old, new in (("cat", "n02123045"), ("dog", "0012")): (tree/old).rename(tree/new)
    notes = lambda **more: config_data_warnings(c := make_config(dict(OPTIONS, dataset=str(tree), **more)), (d := open_dataset(c)).manifest, d.root)
    assert "2 of 2 class names are codes" in (said := notes()["class names"])
    assert "n02123045 is 'tabby cat'" in said and "--classes 0012=NAME 'n02123045=tabby cat'" in said
    assert notes(classes=["n02123045=tabby", "0012=dog"]) == notes(method="ce") == {}
    (tmp_path/"l.csv").write_text("path,label\n0012/0.png,class_0\nn02123045/0.png,class_1\n")
    assert "give words: --classes class_0=NAME class_1=NAME" in notes(labels=str(tmp_path/"l.csv"))["class names"]


@pytest.mark.parametrize("val, said", [
    ([["b.png", 1, "cat"]], ["class 'cat'", "0 in train", "1 in val"]),
    ([["b.png", 0, "dog"]], ["label 0", "'cat' in train", "'dog' in val"]),
    ([["b.png", 1, "dog"], ["c.png", 1, "cow"]], ["label 1", "'dog' in val", "'cow' in val"]),
    ([["b.png", "1", "dog"]], ["whole number"]), ([["b.png", 1.5, "dog"]], ["whole number"]),
    ([["b.png", 1, ""]], ["class name"]), ([["b.png", 1, None]], ["class name"]), ([[3, 1, "dog"]], ["path"]),
    ([["a.png", 1, "dog"]], ["more than once"])])
def test_a_coop_split_whose_parts_disagree_is_refused(tmp_path, val, said):
    file = coop(tmp_path/"split_zhou_X.json", train=[["a.png", 0, "cat"]], val=val, test=[["d.png", 1, "dog"]])
    fails(lambda: manifest_from_coop(file), *said)


def test_names_of_a_coop_split_may_be_spelt_in_two_ways(tmp_path):
    file = coop(tmp_path/"split_zhou_X.json", train=[["a.png", 0, "caf\u00e9"], ["b.png", 1, "bar"]], val=[["c.png", 0, "cafe\u0301 "]])
    assert manifest_from_coop(file).classes == ("caf\u00e9", "bar")


def test_class_lists_may_be_spelt_in_two_ways(tree, tmp_path):
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,caf\u00e9\ndog/0.png,bar\n")
    assert manifest_from_labels(tree, tmp_path/"l.csv", classes=["cafe\u0301", "bar"]).classes == ("caf\u00e9", "bar")
    (tmp_path/"l.json").write_text(json.dumps(dict(classes=["bar", "cafe\u0301"])))
    assert read_manifest(tmp_path/"l.csv").classes == ("bar", "caf\u00e9")
    config = dict(OPTIONS, dataset=str(tmp_path/"l.csv"), root=str(tree))
    assert open_dataset(make_config(dict(config, classes=["cafe\u0301=pub"]))).manifest.classes == ("bar", "pub")
    fails(lambda: open_dataset(make_config(dict(config, classes=["bar=a", "bar=b"]))), "'bar' is renamed twice")
    fails(lambda: open_dataset(make_config(dict(config, classes=["bar=a", "caf\u00e9=a"]))), "must differ")


def test_a_byte_order_mark_is_read_over(tree, tmp_path, monkeypatch):
    from dho_nb.sweeps.grid import read_grid
    (tmp_path/"g.toml").write_text(MARK + "[base]\npreset = 'digits'\n[axes]\nseed = [0, 1]\n", encoding="utf-8")
    assert len(read_grid(tmp_path/"g.toml").cells) == 2
    (tmp_path/"settings.ini").write_text(MARK + "[dho_nb]\nthreads = 3\n", encoding="utf-8")
    assert load_settings(tmp_path, {}).threads == 3
    (tmp_path/"l.csv").write_text(MARK + "path,label\ncat/0.png,cat\ndog/0.png,dog\n", encoding="utf-8")
    assert manifest_from_labels(tree, tmp_path/"l.csv").classes == read_manifest(tmp_path/"l.csv").classes == ("cat", "dog")
    (tmp_path/"l.json").write_text(MARK + json.dumps(dict(classes=["dog", "cat"])), encoding="utf-8")
    assert read_manifest(tmp_path/"l.csv").classes == ("dog", "cat")
    split = coop(tmp_path/"split_zhou_X.json", train=[["a", 0, "x"], ["b", 1, "y"]])
    split.write_text(MARK + split.read_text(), encoding="utf-8")
    assert manifest_from_coop(split).classes == ("x", "y")
