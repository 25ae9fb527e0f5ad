"Label Studio's and FiftyOne's files: labels come in with every mistake named, and go out with predictions; files that may be anybody's"
import json
import os
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from conftest import OPTIONS, SMALL, fails, picture
from dho_nb.core.errors import DhoError
from dho_nb.data import annotation_files
from dho_nb.data.annotation_files import exported_paths, read_annotations, upload_name, write_annotations
from dho_nb.data.label_files import find_exported_picture, labels_and_predictions, manifest_from_labels, NONE_OF_THESE, PictureFolder

PICTURES = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/my photo (1).PNG", "same/2.png", "same/2.jpg", "größe.png")


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(PICTURES): picture(tmp_path/"photos"/name, seed=i)
    return tmp_path/"photos"


def choices(*names, name="choice", **value):
    "An answer as Label Studio writes it"
    return dict(id="Dx_aB91ISN", type="choices", from_name=name, to_name="image", origin="manual", value=dict(choices=list(names), **value))


def annotation(*results, who=1, **more):
    return dict(id=1001, completed_by=who, result=list(results), was_cancelled=False, ground_truth=False, lead_time=4.2, **more)


def task(number, image, *annotations, **data):
    return dict(id=number, data=dict(image=image, **data), annotations=list(annotations), predictions=[], drafts=[], project=3)


def minimal(number, image, **answers):
    "A task of JSON-MIN, keys in Label Studio's order"
    return dict(image=image, id=number, **answers, annotator=1, annotation_id=7, created_at="2026-01-01", updated_at="2026-01-01", lead_time=4.2)


def labels(photos, *contents, **more):
    "Labels by path of files with these contents, JSON or text of a CSV"
    files = []
    for i, content in enumerate(contents):
        csv = isinstance(content, str)
        files.append(photos.parent/f"{'abc'[i]}.{'csv' if csv else 'json'}")
        files[-1].write_text(content if csv else json.dumps(content), encoding="utf-8")
    made = manifest_from_labels(photos, files, **more)
    table = made.table[made.table["label"] >= 0]
    return {p: made.classes[l] for p, l in zip(table["path"], table["label"])}


def message(photos, *contents, **more):
    with pytest.raises(DhoError) as found: labels(photos, *contents, **more)
    return str(found.value)


DOG = task(9, "photos/dog/0.png", annotation(choices("dog")))


@pytest.mark.parametrize("cell", [
    "cat/0.png", "photos/cat/0.png", "/data/local-files/?d=photos/cat/0.png", "/data/local-files/?d=pets/photos/cat%2F0.png",
    "http://localhost:8080/data/local-files/?d=photos/cat/0.png", r"/data/local-files/?d=photos\cat\0.png", "https://host/photos/cat/0.png?sig=a%2Fb#c",
    "https://host/cat/0.png", "s3://bucket/pets/photos/cat/0.png", "/home/ann/Photos/cat/0.png", r"C:\Users\ann\photos\cat\0.png", "cat/0",
    "{tmp}/photos/cat/0.png", "file://{tmp}/photos/cat/0.png"])
def test_ways_in_which_programs_write_a_path(photos, cell):
    assert labels(photos, [task(1, cell.format(tmp=photos.parent), annotation(choices("cat"))), DOG]) == {"cat/0.png": "cat", "dog/0.png": "dog"}


def test_an_upload_is_found_by_the_name_that_it_got(photos):
    assert upload_name("my photo (1).PNG") == "my_photo_1.PNG" and exported_paths("/data/upload/a1b2c3d4-x.png") == (["x.png"], True)
    picture(photos/"two"/"1.png")
    upload = lambda name, label: task(1, f"/data/upload/3/1a2b3c4d-{name}", annotation(choices(label)))
    assert labels(photos, [upload("my_photo_1.PNG", "dog"), upload("gr%C3%B6%C3%9Fe.png", "cat")]) == {"dog/my photo (1).PNG": "dog", "größe.png": "cat"}
    said = message(photos, [upload("0.png", "cat"), upload("2.gif", "cat"), upload("1.png", "dog")])
    assert "(2 × several pictures, 1 × missing picture)" in said
    assert "task 1, annotator 1: '/data/upload/3/1a2b3c4d-0.png' may be 'cat/0.png' or 'dog/0.png'; give paths with folder and suffix" in said
    assert "'/data/upload/3/1a2b3c4d-2.gif': no such picture" in said


def test_what_is_no_answer_is_no_label(photos):
    region = choices("dog", x=1, y=2, width=3, height=4)
    tasks = [task(1, "cat/0.png", annotation(choices("cat"))), DOG, task(3, "cat/1.png"), task(4, "gone.png", annotation(choices("dog")) | dict(was_cancelled=True)),
             task(5, "cat/1.png", annotation(choices("dog")) | dict(skipped=True)), task(6, "cat/1.png", annotation()), task(7, "cat/1.png", annotation(region)),
             task(8, "cat/1.png") | dict(predictions=[dict(result=[choices("dog")])], drafts=[dict(result=[choices("dog")])])]
    assert labels(photos, tasks) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    old = [dict(id=1, data=dict(image="cat/0.png"), completions=[dict(result=[choices("cat")])]), DOG]
    assert labels(photos, old) == {"cat/0.png": "cat", "dog/0.png": "dog"}


def test_one_file_for_each_task(photos):
    assert labels(photos, task(1, "cat/0.png", annotation(choices("cat"))), DOG) == {"cat/0.png": "cat", "dog/0.png": "dog"}


def test_json_min(photos):
    assert labels(photos, [minimal(1, "cat/0.png", choice="cat"), minimal(2, "dog/0.png", choice=dict(choices=["dog"])), minimal(3, "cat/1.png")]) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    more = [dict(photographer="Ann", photo="/data/local-files/?d=photos/cat/0.png", split="val", id=1, sort="cat", annotator=2), minimal(2, "dog/0.png", sort="dog")]
    assert labels(photos, more) == {"cat/0.png": "cat", "dog/0.png": "dog"}, "the data comes before id, the answers after it"
    said = message(photos, [minimal(1, "cat/0.png", choice=dict(choices=["cat", "dog"])), minimal(2, "dog/0.png", sort="dog", quality="good")])
    assert "task 1, annotator 1: 'cat', 'dog' are several classes of 'cat/0.png'; keep one" in said
    assert "task 2, annotator 1: 'sort', 'quality' are answers to several questions; keep one" in said


def test_annotators_who_disagree_are_listed_as_lines_of_csvs_are(photos):
    two = task(12, "cat/0.png", annotation(choices("cat"), who=3), annotation(choices("dog"), who=dict(id=4, email="ben@example.org")))
    said = message(photos, [two, DOG], "path,label\ncat/0.png,dog\n")
    assert ("a.json, task 12, annotator 3: 'cat/0.png' has several labels: a.json task 12, annotator 3 says 'cat', "
            "a.json task 12, annotator ben@example.org says 'dog', b.csv line 2 says 'dog'; keep one") in said
    agreed = task(12, "cat/0.png", annotation(choices("cat"), who=3), annotation(choices("cat"), who=4))
    assert labels(photos, [agreed, DOG], "path,label\ncat/0.png,cat\n") == {"cat/0.png": "cat", "dog/0.png": "dog"}


def test_all_mistakes_of_an_export_are_listed_at_once(photos):
    tasks = [task(1, "cat/99.png", annotation(choices("cat"))), task(2, "/etc/passwd", annotation(choices("cat"))), task(3, "../x.png", annotation(choices("cat"))),
             task(4, "files/cat/1.png", annotation(choices("cat"))), task(5, "cat/0.png", annotation(choices("ct"))), task(6, "cat/0.png", annotation(choices("cat", "dog"))),
             task(7, "cat/0.png", annotation(choices("cat"), choices("good", name="quality"))), task(8, "cat/0.png", annotation(choices(7))),
             task(9, "same/2.png", annotation(choices("cat")), split="training"), dict(id=10, data=dict(a="x.png", b="y.png"), annotations=[annotation(choices("cat"))]),
             dict(id=11, data=dict(text="hello"), annotations=[annotation(choices("cat"))]), dict(id=12, data=dict(image="cat/0.png"), annotations=[55]), "no task"]
    lines = message(photos, tasks, classes=["cat", "dog"]).splitlines()
    assert lines[0].startswith("13 problems in the labels (") and len(lines) == 14
    for number, says in enumerate([
            "'cat/99.png': no such picture below", "'/etc/passwd' lies outside of", "'../x.png' lies outside of",
            "'files/cat/1.png': no such picture below {}; 'cat/1.png' is there: call the folder 'files', or give a link of that name",
            "'ct' is an unknown class: did you mean 'cat'? The classes are cat, dog", "'cat', 'dog' are several classes of 'cat/0.png'; keep one",
            "'choice', 'quality' are answers to several questions; keep one", "7 is no class name; write a text", "'training' is no split; write 'train'",
            "'a', 'b' are several pictures; keep one, or call it 'image'", "no value of ['text'] is a picture; call it 'image'",
            "its annotations are damaged. Export the project as JSON again"], 1):
        assert lines[number].startswith(f"  a.json, task {number}") and says.format(photos) in lines[number], lines[number]
    assert lines[13].startswith("  a.json, entry 13: 'no task' is no task; take it out")
    fixed = photos.parent/"files"
    fixed.symlink_to(photos)
    assert labels(fixed, [tasks[3], DOG | dict(data=dict(image="files/dog/0.png"))]) == {"cat/1.png": "cat", "dog/0.png": "dog"}, "the way out that the message names"


def test_a_missing_picture_is_never_taken_for_one_of_another_name_or_folder(photos):
    cells = ("https://host/dog/1.png", "/data/local-files/?d=other/0.png", "cat/7", "CAT/0", "/x/9.png", "dog/0.jpg", "same/2")
    found = [find_exported_picture(PictureFolder(photos), c) for c in cells]
    assert not any(path for path, *_ in found) and not any("dog/0.png" in text for *_, text in found[:2])
    assert "'same/2' may be 'same/2.jpg' or 'same/2.png'" in found[-1][2]


def test_fiftyones_labels(photos):
    exported = dict(classes=["dog", "cat"], labels={"cat/0": 1, "dog/0": dict(label=0, confidence=None, attributes={}), "cat/1": None, "größe": [1], "same/2": dict(label=0, confidence=.8)})
    assert labels(photos, exported) == {"cat/0.png": "cat", "dog/0.png": "dog", "größe.png": "cat"}
    assert labels(photos, dict(classes=None, labels={"cat/0": "cat", f"{photos}/dog/0.png": "dog"})) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    lines = message(photos, dict(classes=["cat", "dog"], labels={"cat/0": 2, "cat/1": True, "x": 0, "same/2": 1, "dog/0": [0, 1], "größe": 1.5})).splitlines()
    assert lines[0].startswith("6 problems") and [l.split(":")[0] for l in lines[1:]] == [f"  a.json, entry {i}" for i in range(1, 7)]
    for line, says in zip(lines[1:], ("'cat/0': 2 is no class: 'classes' has 2 names", "'cat/1': True is no class", "'x': no such picture", "may be 'same/2.jpg'", "several classes", "1.5 is no class")):
        assert says in line, line
    assert "'classes' is 'cat'; write a list of names" in message(photos, dict(classes="cat", labels={"cat/0": 0}))


def test_fiftyones_samples(photos):
    sample = lambda path, label, *tags, **more: dict(filepath=path, tags=list(tags), metadata=None, ground_truth=label and dict(_cls="Classification", label=label), **more)
    guess = dict(prediction=dict(_cls="Classification", label="dog", confidence=.7))
    exported = dict(name="d", info={}, samples=[sample("data/cat/0.png", "cat", "validation"), sample("data/dog/0.png", "dog", **guess), sample("data/cat/1.png", None, **guess)])
    photos.rename(photos.with_name("data"))
    data = photos.with_name("data")
    (data.parent/"s.json").write_text(json.dumps(exported))
    table = manifest_from_labels(data, data.parent/"s.json").table.set_index("path")
    assert table["label"][["cat/0.png", "dog/0.png", "cat/1.png"]].tolist() == [0, 1, -1] and table["split"]["cat/0.png"] == "val"
    for s in exported["samples"]: s["truth"] = s.pop("ground_truth")
    assert "'prediction', 'truth' are classifications; export one, or call it 'ground_truth'" in message(data, exported)
    assert "sample 1: 7 has no filepath" in message(data, dict(samples=[7]))


def test_fiftyones_folders_are_a_dataset(tmp_path):
    from dho_nb.data.manifests import manifest_from_folder
    for name in ("cat/0.png", "dog/0.png", "_unlabeled/2.png", "unlabelled/3.png"): picture(tmp_path/name)
    made = manifest_from_folder(tmp_path)
    assert made.classes == ("cat", "dog") and (made.table["label"] == -1).sum() == 2


def test_a_file_without_labels_or_of_another_kind_says_so(photos):
    for content, says in (([task(1, "cat/0.png")], "has no label"), ([], "has no label"), (dict(labels={}), "has no label"), (dict(images=[], annotations=[]), "is no export of labels"),
                          (7, "is no export of labels"), (dict(classes=["a"], labels={"cat/0": dict(label=0, confidence=.5)}), "predictions are none")):
        assert says in message(photos, content) and "a.json" in message(photos, content)
    (photos.parent/"t.json").write_text("{")
    assert "cannot read" in str(pytest.raises(DhoError, manifest_from_labels, photos, photos.parent/"t.json").value)


# ------------------------------------------------------------------------------------------------------------------ out

def table(**more):
    usual = dict(path=["cat/0.png", "dog/my photo (1).PNG", "größe.png", "cat/1.png"], label=["cat", "", "", NONE_OF_THESE], split=["val", "", "", ""],
                 prediction=["dog", "dog", "", ""], probability=[.6, .93, None, None])
    return pd.DataFrame({**usual, **more})


@pytest.mark.parametrize("form", ["label-studio", "fiftyone", "csv"])
def test_labels_that_go_out_come_back(photos, form):
    file = write_annotations(table(), photos.parent/f"out.{'csv' if form == 'csv' else 'json'}", form, prefix="/data/local-files/?d=photos/")[0]
    back = labels_and_predictions(photos, [file]).set_index("path")
    assert back["label"].replace("", None).dropna().to_dict() == {"cat/0.png": "cat", "cat/1.png": NONE_OF_THESE}, "a prediction is no label"
    assert form == "fiftyone" or back["split"]["cat/0.png"] == "val"


def test_label_studio_shows_labels_and_predictions(photos):
    odd = 'a "<b>" & c'
    file, interface = write_annotations(table(prediction=[odd, "dog", "", ""]), photos.parent/"t.json", "label-studio", ["dog", "cat"], "/data/local-files/?d=photos/")
    tasks = json.loads(file.read_text())
    assert [t["data"]["image"] for t in tasks][1] == "/data/local-files/?d=photos/dog/my%20photo%20%281%29.PNG"
    answer = tasks[1]["predictions"][0]
    assert (answer["score"], answer["result"][0]["value"]) == (.93, dict(choices=["dog"])) and "annotations" not in tasks[1] and {*tasks[2]} == {"data"}
    ids = [r["id"] for t in tasks for kind in ("annotations", "predictions") for a in t.get(kind, ()) for r in a["result"]]
    assert len(ids) == len({*ids}) == 4
    shown = ET.fromstring(interface.read_text(encoding="utf-8"))
    assert [c.get("value") for c in shown.iter("Choice")] == ["dog", "cat", odd, NONE_OF_THESE]
    names = {a["result"][0]["from_name"] for t in tasks for a in t.get("predictions", ())}, {shown.find("Choices").get("name")}
    assert names[0] == names[1] and shown.find("Image").get("name") == shown.find("Choices").get("toName") == answer["result"][0]["to_name"]


def test_fiftyone_gets_numbers_and_confidences(photos):
    file, = write_annotations(table(), photos.parent/"f.json", "fiftyone")
    assert json.loads(file.read_text()) == {"classes": ["cat", "dog", NONE_OF_THESE], "labels": {
        "cat/0": 0, "dog/my photo (1)": dict(label=1, confidence=.93), "größe": None, "cat/1": 2}}
    fails(lambda: write_annotations(table(path=["same/2.png", "same/2.jpg", "a", "b"]), file, "fiftyone"), "'same/2.png' and 'same/2.jpg' are one picture there")
    fails(lambda: write_annotations(table(probability=None), file, "fiftyone"), "has no probability")


def test_the_loop_on_the_command_line(dho, photos, tmp_path):
    (photos/"same"/"2.jpg").unlink()
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    code, out, err = dho("distill", "--images", photos, "--labels", "l.csv", *SMALL, "--out", "run")
    assert code == 0, out + err
    assert dho("suggest", "run", "--count", "2", "--out", "next.csv")[0] == 0
    code, out, err = dho("convert", "photos", "--labels", "l.csv", "--predictions", "next.csv", "--out", "t.json", "--format", "label-studio")
    assert code == 0 and "t.json: 4 pictures, 2 with a label, 2 with a prediction\nt.xml: " in out, err
    assert dho("convert", "photos", "--predictions", "run/predictions.csv", "--out", "f.json", "--format", "fiftyone")[1].startswith("f.json: ")
    tasks = json.loads((tmp_path/"t.json").read_text())
    for t in tasks[2:]: t["annotations"] = [annotation(t["predictions"][0]["result"][0])]  # somebody submits the predictions
    (tmp_path/"back.json").write_text(json.dumps(tasks))
    code, out, err = dho("check", "--images", photos, "--labels", "back.json", "l.csv", *SMALL)
    assert code == 0 and "4" in out, err
    assert len(manifest_from_labels(photos, tmp_path/"back.json").table.query("label >= 0")) == 4
    for words, says in ((["--out", "t.json", "--format", "fiftyone"], "t.json is there already"), (["--out", "u.json"], "say --format label-studio or --format fiftyone"),
                        (["--out", "u.csv", "--format", "fiftyone"], "a file in the format fiftyone ends in .json"), (["--out", "u.json", "--format", "coco"], "coco")):
        code, _, err = dho("convert", "photos", *words)
        assert code == 2 and says in err and not (tmp_path/"u.json").exists(), err
    code, _, err = dho("label", "photos", "--labels", "back.json", "--no-browser")
    assert code == 2 and ("convert this file with dho convert" in err or "pip install" in err), err


def test_mistakes_in_predictions_are_listed_at_once(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    file = photos.parent/"p.csv"
    file.write_text("file,prediction,probability,problem\nphotos/cat/0.png,dog,1.5,\nphotos/x.png,dog,.5,\nphotos/dog/0.png,dog,high,\nphotos/cat/1.png,,,cannot be read\n")
    fails(lambda: labels_and_predictions(photos, (), file), "3 problems", "p.csv, line 2: '1.5' is no number from 0 to 1", "line 3: 'photos/x.png': no such picture", "line 4: 'high' is no number")
    file.write_text("path,label\ncat/0.png,cat\n")
    fails(lambda: labels_and_predictions(photos, (), file), "no columns path and prediction")
    fails(lambda: labels_and_predictions(photos, (), photos.parent/"gone.csv"), "cannot read")
    file.write_text("path,prediction,confidence\ncat/0.png,07,0.5\n")
    assert labels_and_predictions(photos, (), file).to_dict("records") == [dict(path="cat/0.png", label="", split="", prediction="07", probability=.5)]


# --------------------------------------------------------------------------------------------------- files that may be anybody's

@pytest.mark.parametrize("path", ["../out.png", "a/../../out.png", "/etc/passwd", "..\\out.png", "/data/local-files/?d=../out.png", "/data/local-files/?d=%2e%2e/out.png",
                                  "/data/upload/1/1a2b3c4d-..%2Fout.png", "file:///etc/passwd", "https://h/../out.png", "photos/../../out.png", "\0", "http://[", "?" * 10**5, "/data/local-files/?d="])
def test_no_path_leads_outside(photos, path):
    picture(photos.parent/"out.png")
    said = message(photos, [task(1, path, annotation(choices("x"))), DOG])
    assert len(said.splitlines()) == 2 and "task 1" in said
    assert "entry 1" in message(photos, dict(labels={path: "x", "dog/0": "dog"}))


def test_a_hostile_file_ends_in_one_message(photos, monkeypatch):
    file = photos.parent/"h.json"
    for text in ("[" * 10**5, '{"labels": ' * 10**4, "[1" + "0"*10**5 + "]", '["\\ud800"]', "", "\0", '{"classes": ["a"], "labels": {"cat/0": %s0%s}}' % ("[" * 900, "]" * 900),
                 '{"classes": ["a"], "labels": {"cat/0": %s0%s}}' % ('{"label": ' * 900, "}" * 900),
                 json.dumps([dict(id=1, data=dict(image="cat/0.png"), annotations=dict(a=1))]), json.dumps(dict(labels={"cat/0": "a"}, classes=[1])),
                 json.dumps([dict(id=10**300, data=dict(image=dict(a=1)), annotations=[annotation(dict(type="choices", value=dict(choices=5)))])])):
        file.write_text(text)
        assert "Traceback" not in str(pytest.raises(DhoError, manifest_from_labels, photos, file).value), text[:40]
    os.truncate(file, annotation_files.MOST_BYTES + 1)  # a hole, which takes no room on the disk
    assert "at most 256 MB are read" in str(pytest.raises(DhoError, read_annotations, file).value)
    file.unlink()
    assert "cannot read" in str(pytest.raises(DhoError, read_annotations, file).value)


def test_names_in_a_message_do_not_control_a_terminal(photos):
    who = dict(email="a\x1b[2J\nb")
    said = message(photos, [task(1, "cat/0.png", annotation(choices("a\x1b[2J"), who=who), annotation(choices("b\nc"), who="\u202e")), DOG])
    assert "\x1b" not in said and "\u202e" not in said and len(said.splitlines()) == 2, said


def test_long_values_make_no_long_message(photos):
    path = "/data/local-files/?" * 10**4 + "x.png"
    assert len(message(photos, [task(10**300, path, annotation(choices("cat"), choices(name="quality"), who=10**300)), DOG])) < 1000


def test_odd_tags_and_targets_are_named_and_nothing_is_dropped_unsaid(photos):
    truth = lambda label: dict(_cls="Classification", label=label)
    for tags in (5, dict(a=1), [[]], "val", None):
        sound = dict(samples=[dict(filepath="cat/0.png", tags=tags, ground_truth=truth("cat")), dict(filepath="dog/0.png", ground_truth=truth("dog"))])
        assert labels(photos, sound) == {"cat/0.png": "cat", "dog/0.png": "dog"}
    several = dict(_cls="Classifications", classifications=[truth("dog")])
    said = message(photos, dict(samples=[dict(filepath="cat/0.png", ground_truth=truth("cat")), dict(filepath="dog/0.png", ground_truth=several)]))
    assert "sample 2" in said and "is no classification" in said


@pytest.mark.parametrize("text", ['{"labels": {"cat/0": "a", "cat/0": "b", "dog/0": "c"}}', '{"labels": {"cat/0": "a"}, "labels": {"dog/0": "b"}}',
                                  '[{"id": 1, "data": {"image": "cat/0.png", "image": "dog/0.png"}}]'])
def test_a_key_that_is_there_twice_hides_no_label(photos, text):
    (photos.parent/"twice.json").write_text(text)
    assert "is there twice" in str(pytest.raises(DhoError, manifest_from_labels, photos, photos.parent/"twice.json").value)


def test_a_percent_sign_in_a_name_is_no_other_name(photos):
    for name in ("a b", "a%20b"): picture(photos/f"{name}.png")
    for cell, found in (("a%20b.png", "a%20b.png"), ("a b.png", "a b.png"), ("s3://bucket/photos/a%20b.png", "a%20b.png"), ("a%20b", "a%20b.png"),
                        ("/data/local-files/?d=photos/a%20b.png", "a b.png"), ("/data/local-files/?d=photos/a%2520b.png", "a%20b.png"),
                        ("https://host/photos/a%20b.png", "a b.png"), ("file:///x/photos/a%20b.png", "a b.png")):
        assert find_exported_picture(PictureFolder(photos), cell)[0] == found, cell
    (photos/"a%20b.png").unlink()
    assert find_exported_picture(PictureFolder(photos), "a%20b.png")[0] == "a b.png"


def test_every_cell_of_a_message_is_short(photos):
    long = "x"*10**5
    assert len(message(photos, dict(labels={"cat/0": long, "dog/0": "dog"}), classes=["cat", "dog"])) < 1000
    assert len(message(photos, [task(1, "cat/0.png", annotation(choices("cat")), split=long), DOG])) < 1000
    assert len(message(photos, dict(labels={"cat/0": long}), dict(labels={"cat/0": "y"*10**5}))) < 2000


def test_only_the_interface_of_a_call_that_was_killed_is_replaced(photos, capsys):
    from dho_nb.cli.main import main
    convert = lambda: main(["convert", str(photos), "--out", str(photos.parent/"t.json"), "--format", "label-studio"])
    assert convert() == 0
    (photos.parent/"t.json").unlink()  # as after a kill between both files
    assert convert() == 0
    (photos.parent/"t.json").unlink(); (photos.parent/"t.xml").write_text("<View/>")
    assert convert() == 2 and "t.xml is there already" in capsys.readouterr().err
    assert (photos.parent/"t.xml").read_text() == "<View/>" and not (photos.parent/"t.json").exists()
