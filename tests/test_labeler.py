"The labeler by its handlers: clicks, keys, undo, the file after each of them, and what comes next"
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import OPTIONS, fails, picture

pytest.importorskip("ipywidgets", reason="needs ipywidgets: pip install 'dho_nb[lab]'")
from dho_nb.cli.main import main
from dho_nb.data.label_files import NONE_OF_THESE
from dho_nb.runs.config import make_config
from dho_nb.runs.cross_fit import images_to_label
from dho_nb.runs.labeler import folder_teacher_answers, Labeler, typical_order, unlabeled_class_order
from dho_nb.runs.run import distill


@pytest.fixture
def photos(tmp_path):
    for i in range(9): picture(tmp_path/"photos"/f"{i}.png", seed=i)
    return tmp_path/"photos"


@pytest.fixture
def labeler(photos): return Labeler(photos, photos.parent/"l.csv", ["cat", "dog"], count=4)


def lines(photos): return (photos.parent/"l.csv").read_text().splitlines()


def test_every_click_is_in_the_file_at_once(labeler, photos):
    cat, dog = labeler.buttons.children
    assert (cat.description, dog.description) == ("cat (1)", "dog (2)") and not (photos.parent/"l.csv").exists()
    dog.click()
    assert lines(photos) == ["path,label", "0.png,dog"] and labeler.current == "1.png"
    labeler.grid.children[3].children[1].click()
    assert labeler.current == "3.png"
    labeler.buttons.children[0].click()
    assert lines(photos) == ["path,label", "0.png,dog", "3.png,cat"] and labeler.current == "1.png"
    assert "2 of 9 pictures labeled" in labeler.state.value and not list(photos.parent.glob(".tmp*"))


def test_keys_do_what_buttons_do(labeler, photos):
    labeler.keys.value = "12sn"
    assert labeler.labels() == {"0.png": "cat", "1.png": "dog", "3.png": NONE_OF_THESE} and labeler.skipped == {"2.png"}
    assert labeler.batch == ["4.png", "5.png", "6.png", "7.png"], "a full batch gives way to the next, without what was skipped"
    labeler.keys.value = "12snu"
    assert labeler.current == "3.png" and "3.png" not in labeler.labels()
    labeler.keys.value = "12snuu"
    assert labeler.current == "2.png" and not labeler.skipped
    labeler.keys.value = "12snuu9"
    assert labeler.current == "2.png", "a key of no class does nothing"
    labeler.keys.value = "12"
    assert labeler.current == "2.png", "nor does a deletion"
    labeler.keys.value = "2"
    assert labeler.labels()["2.png"] == "dog", "what replaces the text is typed, too"


def test_undo_gives_back_the_label_before(labeler):
    labeler.press("1")
    labeler._select("0.png")
    labeler.press("2")
    assert labeler.labels()["0.png"] == "dog"
    labeler.undo()
    assert labeler.labels()["0.png"] == "cat"
    labeler.undo(), labeler.undo()
    assert labeler.labels() == {}


def test_a_class_can_be_added(labeler):
    labeler.new.value = "cow"
    assert [b.description for b in labeler.buttons.children] == ["cat (1)", "dog (2)", "cow (3)"] and labeler.new.value == ""
    labeler.press("3")
    assert labeler.labels() == {"0.png": "cow"}
    fails(lambda: labeler.label("bird"), "no class yet")
    fails(lambda: labeler.add_class(NONE_OF_THESE), "give the class another name")


@pytest.mark.parametrize("name, kept", [("cafe\u0301", "caf\u00e9"), (" cat ", "cat"), ("a\rb", "a b"), ("a\nb", "a b"), ('"a, b"', '"a, b"'), ("=1+1", "=1+1")])
def test_a_class_is_one_class_however_it_is_typed(photos, name, kept):
    for file in ("given.csv", "added.csv"):
        labeler = Labeler(photos, photos.parent/file, ["dog", name] if file == "given.csv" else ["dog"], guesses=[name]*9)
        if file == "added.csv": labeler.add_class(name)
        labeler.label(name)
        labeler.press(" ")
        labeler.label("dog")
        again = Labeler(photos, photos.parent/file, ["dog", name])
        assert labeler.classes == again.classes == ["dog", kept] and [*again.labels().values()] == [kept, kept, "dog"]


def test_a_file_is_gone_on_with_and_other_peoples_lines_stay(photos):
    file = photos.parent/"l.csv"
    file.write_text("path,label,split,who\nphotos/0.png,cow,test,Ada\n1.png,,,\n")
    made = Labeler(photos, file, ["cat"], count=3)
    assert made.classes == ["cat", "cow"] and made.current == "1.png"
    made.press("1")
    file.write_text(file.read_text() + "8.png,dog,val,Bob\n")  # somebody else writes, too
    made.press("1")
    assert lines(photos) == ["path,label,split,who", "photos/0.png,cow,test,Ada", "1.png,cat,,", "8.png,dog,val,Bob", "2.png,cat,,"]
    file.write_text("path,label\nnowhere.png,cat\n")
    fails(lambda: Labeler(photos, file), "'nowhere.png': no such picture")


def test_a_write_that_breaks_off_leaves_the_file_whole(labeler, photos, monkeypatch):
    labeler.press("1")
    before = lines(photos)
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda self, file, **more: (file.write_text("path,la"), 1/0))
    with pytest.raises(ZeroDivisionError): labeler.press("1")
    assert lines(photos) == before and sorted(p.name for p in photos.parent.iterdir()) == ["l.csv", "photos"]


def test_pictures_of_odd_sizes_do_not_come(photos):
    Image.new("RGB", (3, 3)).save(photos/"0.png"), Image.new("RGB", (4000, 5)).save(photos/"1.png")
    made = Labeler(photos, photos.parent/"l.csv", ["cat"], count=20)
    assert made.batch == [f"{i}.png" for i in range(2, 9)]
    for _ in made.batch: made.press("1")
    assert made.current is None and "nothing is left" in made.state.value and made.label("cat") is None


def test_the_first_pictures_stand_for_the_largest_groups(photos):
    x = np.repeat(np.eye(3), [4, 3, 2], axis=0) + np.random.default_rng(0).normal(0, .01, (9, 3))
    group = lambda k: "aaaabbbcc"[int(k)]
    assert [group(k) for k in typical_order(x, 3)] == [*"abc"] and len({*typical_order(x, 99)}) == 9
    assert [group(k) for k in typical_order(x, 2, chosen=[0])] == [*"bc"]
    assert typical_order(x, 2, chosen=[0], allowed=np.arange(9) > 7) == [8] and typical_order(x, 1, allowed=np.zeros(9)) == []
    assert len({*typical_order(np.ones((5, 3)), 4)}) == 4, "pictures that are all the same"
    made = Labeler(photos, photos.parent/"l.csv", ["a", "b", "c"], x, count=3)
    assert {group(p[0]) for p in made.batch} == {*"abc"}
    for p in [*made.batch]: made._select(p); made.label(group(p[0]))
    assert all(made._select(p) or made.guess() == group(p[0]) for p in made.batch), "the nearest labeled picture guesses"
    made.press(" ")
    assert len(made.labels()) == 4
    fails(lambda: Labeler(photos, photos.parent/"l.csv", embeddings=x[:5]), "5 pictures", "has 9")


def test_a_class_without_a_label_comes_early_where_it_is_guessed(photos):
    x = np.repeat(np.eye(2), [8, 1], axis=0) + np.random.default_rng(0).normal(0, .01, (9, 2))
    guesses = ["common"]*7 + ["rare", "common"]
    assert unlabeled_class_order(x, guesses, ["rare", "absent"]) == [7] and unlabeled_class_order(x, guesses, ["absent"]) == []
    (photos.parent/"l.csv").write_text("path,label\n0.png,common\n")
    made = Labeler(photos, photos.parent/"l.csv", ["common", "rare"], x, guesses, count=2)
    assert made.batch == ["7.png", "8.png"] and made.guess() == "rare"


def test_why_a_click_is_not_in_the_file_is_shown(labeler, photos):
    labeler.press("1")
    (photos.parent/"l.csv").write_text("path,label\n<b>.png,cat\n")
    labeler.buttons.children[0].click()
    assert "no such picture" in labeler.problem.value and "&lt;b&gt;" in labeler.problem.value and lines(photos) == ["path,label", "<b>.png,cat"]
    (photos.parent/"l.csv").write_text("path,label\n0.png,cat\n")
    labeler.buttons.children[1].click()
    assert labeler.problem.value == "" and lines(photos)[-1] == "1.png,dog"
    labeler.undo(), labeler.undo()
    assert labeler.labels() == {}, "what was not written is not undone"
    labeler.new.value = NONE_OF_THESE
    assert "another name" in labeler.problem.value


def test_widgets_stay_and_those_of_a_full_batch_are_closed(labeler):
    before, first = labeler.grid.children, labeler.buttons.children[0]
    labeler.press("1")
    assert labeler.grid.children == before and labeler.buttons.children[0] is first
    for _ in range(3): labeler.press("1")
    assert labeler.grid.children[0] is not before[0] and before[0].children[0].comm is None


def test_a_teacher_spreads_and_guesses(photos):
    embeddings, guesses = folder_teacher_answers(photos, ["zero", "nine"], "digits", mode="none")
    assert embeddings.shape[0] == len(guesses) == 9 and {*guesses} <= {"zero", "nine"}
    made = Labeler(photos, photos.parent/"l.csv", ["zero", "nine"], embeddings, guesses)
    assert made.guess() == guesses[int(made.current[0])]
    assert [b.button_style for b in made.buttons.children] == ["primary" if c == made.guess() else "" for c in made.classes]


def test_after_a_run_those_come_first_of_which_it_is_least_sure(photos, tmp_path):
    file = tmp_path/"l.csv"
    file.write_text("path,label\n0.png,zero\n1.png,nine\n")
    run = distill(make_config(dict(OPTIONS, dataset=str(photos), labels=str(file))), tmp_path/"run", "none")
    said = images_to_label(run, None)
    assert len(said) == 7 and said["margin"].is_monotonic_increasing and not {"0.png", "1.png"} & {*said["path"]}
    answers = pd.read_csv(run.folder/"predictions.csv").set_index("path")["confidence"]
    assert np.allclose(said["margin"], 2*answers[said["path"]].to_numpy() - 1, atol=2e-4), "with two classes"
    picture(photos/"new.png", seed=99)
    made = Labeler(photos, file, run=run.folder, count=7)
    assert made.batch == said["path"].tolist() and made.guess() == said["prediction"][0]
    for _ in range(7): made.press("1")
    assert made.batch == ["new.png"], "a picture that the run has not seen comes last"
    fails(lambda: images_to_label(tmp_path), "no finished run")


@pytest.mark.parametrize("source", ["teacher", "embeddings", "run"])
def test_dho_label_gives_the_page_its_order_and_guesses(source, photos, tmp_path, monkeypatch, capsys):
    "The command up to the server; the page's code runs here"
    pytest.importorskip("voila", reason="needs Voilà: pip install 'dho_nb[label]'")
    file, shown = tmp_path/"l.csv", []
    def serve(page, port, browser):
        monkeypatch.chdir(page.parent)
        exec("".join(json.loads(page.read_text())["cells"][0]["source"]).replace("Labeler(**", "made = Labeler(**"), place := {})
        shown.append((place["made"], port, browser))
    monkeypatch.setattr("dho_nb.cli.label._serve", serve)
    embeddings, guesses = folder_teacher_answers(photos, ["zero", "nine"], "digits", mode="none")
    if source == "teacher": options = ["--teacher", "digits"]
    elif source == "embeddings":
        vectors = np.array([embeddings[guesses.index(c)] if c in guesses else -embeddings.mean(0) for c in ("zero", "nine")])
        np.savez(tmp_path/"v.npz", paths=[f"{i}.png" for i in range(9)], embeddings=embeddings, classes=["zero", "nine"], text=vectors)
        options = ["--embeddings", str(tmp_path/"v.npz")]
    else:
        file.write_text("path,label\n0.png,zero\n1.png,nine\n")
        run = distill(make_config(dict(OPTIONS, dataset=str(photos), labels=str(file))), tmp_path/"run", "none")
        options = ["--run", str(run.folder)]
    assert main(["label", str(photos), "--labels", str(file), "--classes", "zero", "nine", "--count", "4", "--no-browser", *options]) == 0
    (made, port, browser), = shown
    assert port > 0 and not browser and len(made.batch) == 4 and made.guess() in ("zero", "nine")
    if source == "run": assert made.batch == images_to_label(run, None)["path"].tolist()[:4]
    else: assert np.allclose(made.embeddings, embeddings, atol=1e-3)
    assert f"{2*(source == 'run')} of 9 pictures labeled" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["names", "teacher", "embeddings"])
def test_pictures_that_cannot_be_decoded_do_not_come(photos, source):
    whole = (photos/"4.png").read_bytes()
    for name, data in (("0.png", whole[:len(whole)//2]), ("2.png", b""), ("8.png", b"a text")): (photos/name).write_bytes(data)
    sound, answers = [f"{i}.png" for i in (1, 3, 4, 5, 6, 7)], {}
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.savez(photos.parent/"v.npz", paths=sound, embeddings=vectors, classes=["cat", "dog"], text=np.eye(2, 4, dtype=np.float32))
    if source != "names":
        given = dict(embeddings=photos.parent/"v.npz") if source == "embeddings" else dict(teacher="digits")
        embeddings, guesses = folder_teacher_answers(photos, ["cat", "dog"], mode="none", **given)
        assert [i for i in range(9) if not guesses[i]] == [0, 2, 8] and len(embeddings) == 9
        answers = dict(embeddings=embeddings, guesses=guesses)
    labeler, seen = Labeler(photos, photos.parent/"l.csv", ["cat", "dog"], count=4, **answers), []
    while labeler.current: seen.append(labeler.current); labeler.label("cat")
    assert sorted(seen) == sound and "3 cannot be read" in labeler.state.value
    if source == "embeddings":
        np.savez(photos.parent/"v.npz", paths=sound[1:], embeddings=vectors[1:], classes=["cat", "dog"], text=np.eye(2, 4, dtype=np.float32))
        fails(lambda: folder_teacher_answers(photos, ["cat", "dog"], mode="none", **given), "no embedding of 1 of 9 pictures, e.g. 1.png")
