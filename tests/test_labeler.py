"The labeler by its handlers: clicks, keys, undo, the file after each of them, and what comes next"
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import OPTIONS, fails, picture

pytest.importorskip("ipywidgets", reason="needs ipywidgets: pip install 'dho_nb[lab]'")
from dho_nb.data.label_files import NONE_OF_THESE
from dho_nb.runs.config import make_config
from dho_nb.runs.labeler import folder_teacher_answers, Labeler, spread_order
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
    labeler.keys.value = "u"
    assert labeler.current == "3.png" and "3.png" not in labeler.labels() and labeler.keys.value == ""
    labeler.keys.value = "u"
    assert labeler.current == "2.png" and not labeler.skipped
    labeler.keys.value = "9"
    assert labeler.current == "2.png", "a key of no class does nothing"


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


def test_the_first_pictures_are_spread_over_the_pool(photos):
    x = np.repeat(np.eye(3), 3, axis=0) + np.random.default_rng(0).normal(0, .01, (9, 3))
    assert {k//3 for k in spread_order(x, 3)} == {0, 1, 2} and len({*spread_order(x, 99)}) == 9
    made = Labeler(photos, photos.parent/"l.csv", ["a", "b", "c"], x, count=3)
    assert {int(p[0])//3 for p in made.batch} == {0, 1, 2}
    for p in [*made.batch]: made._select(p); made.label("abc"[int(p[0])//3])
    assert all(made._select(p) or made.guess() == "abc"[int(p[0])//3] for p in made.batch), "the nearest labeled picture guesses"
    made.press(" ")
    assert len(made.labels()) == 4
    fails(lambda: Labeler(photos, photos.parent/"l.csv", embeddings=x[:5]), "5 pictures", "has 9")


def test_a_teacher_spreads_and_guesses(photos):
    embeddings, guesses = folder_teacher_answers(photos, ["zero", "nine"], "digits", mode="none")
    assert embeddings.shape[0] == len(guesses) == 9 and {*guesses} <= {"zero", "nine"}
    made = Labeler(photos, photos.parent/"l.csv", ["zero", "nine"], embeddings, guesses)
    assert made.guess() == guesses[int(made.current[0])]
    assert [b.button_style for b in made.buttons.children] == ["primary" if c == made.guess() else "" for c in made.classes]


def test_after_a_run_those_come_on_which_its_heads_disagree(photos, tmp_path):
    file = tmp_path/"l.csv"
    file.write_text("path,label\n0.png,zero\n1.png,nine\n")
    run = distill(make_config(dict(OPTIONS, dataset=str(photos), labels=str(file))), tmp_path/"run", "none")
    from dho_nb.runs.cross_fit import images_to_label
    wanted = images_to_label(run, 3)
    made = Labeler(photos, file, run=run, count=3)
    assert made.batch == wanted["path"].tolist() and made.guess() == wanted["prediction"][0]
