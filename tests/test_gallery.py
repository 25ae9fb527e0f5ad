"What a run gets wrong, as pictures: the gallery, the map, the command and the report"
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dho_nb.cli.main import main
from dho_nb.core.errors import DhoError
from dho_nb.runs.config import preset
from dho_nb.runs.cross_fit import cross_fit
from dho_nb.runs.gallery import plot_confusion, plot_map, plot_thumbnails, suspicious_labels
from dho_nb.runs.run import distill


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("DHO_DEVICE", "cpu"), monkeypatch.setenv("DHO_PROGRESS", "none")


def test_the_command_draws_and_the_report_shows(tmp_path, capsys):
    run = distill(preset("digits", epochs=1, views=2), tmp_path/"run", "none")
    assert main(["gallery", str(run.folder), "--map", "60"]) in (0, None)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("gallery-confusion.png") and said[1].endswith("gallery-mistakes.png") and said[-1].endswith("map.png")
    for file in said:
        with Image.open(file) as picture: assert np.asarray(picture.convert("L")).std() > 5, f"{file} is empty"
    assert main(["report", str(run.folder), "--out", str(tmp_path/"r.html")]) in (0, None)
    page = (tmp_path/"r.html").read_text()
    assert page.count('alt="gallery-') == len(said) - 1 and page.count('alt="map"') == 1 and "Mistakes and maps" in page
    assert main(["gallery", str(tmp_path)]) == 2 and "holds no finished run" in capsys.readouterr().err


def test_a_cross_fit_is_judged_where_all_labels_trained_and_another_is_refused(tmp_path, dho):
    config = preset("digits", shots=3, fraction=0., epochs=1, views=2, predict="test")
    run, fit = distill(config, tmp_path/"run", "none"), cross_fit(config, 2, tmp_path/"fit", mode="none")
    table, which = run._judged(fit)
    assert len(table) == 30 and which == "cross-fitted images" and (table["label"] != "").all()
    assert (table["prediction"] == table["label"]).mean() == fit.table.loc["student", "accuracy"]
    assert (table["teacher_prediction"] == table["label"]).mean() == fit.table.loc["teacher", "accuracy"]
    assert "confusion" in run.gallery(fit)
    (tmp_path/"run"/"gallery-confusion.png").unlink()
    code, out, err = dho("gallery", tmp_path/"run", "--estimate", tmp_path/"fit", "--map", 0)
    assert not code and "gallery-confusion.png" in out and (tmp_path/"run"/"gallery-confusion.png").exists(), err
    with pytest.raises(DhoError, match="predict='all'"): run.map(50)
    fit.manifest.table.loc[0, "id"] = "another"
    with pytest.raises(DhoError, match="cross-fit is of other images"): run.gallery(fit)


def test_a_student_without_a_teacher_has_no_neighbors_and_one_head_no_disagreement(tmp_path):
    run = distill(preset("digits", method="ce", epochs=1), tmp_path/"ce", "none")
    figures = run.gallery()
    assert {*figures} == {"confusion", "mistakes"} and not [*run.folder.glob("gallery-pairs*")]
    titles = [axis.get_title() for axis in figures["mistakes"].axes]
    assert titles[0].count("\n") == 0 and "→" in titles[0]
    with pytest.raises(DhoError, match="needs a teacher's embeddings"): run.map(50)
    single = distill(preset("digits", method="sho", epochs=1, views=2), tmp_path/"sho", "none")
    assert len(single.map(60).axes) == 2


def test_labels_of_small_classes_are_judged_by_as_many_neighbors_as_the_class_has():
    where = {"many": [1, 0, 0], "few": [0, 1, .6], "other": [0, .6, 1]}
    names, counts = [*where], (20, 3, 20)
    labels = np.repeat(np.arange(3), counts)
    x = np.array([where[names[c]] for c in labels]) + .02*np.random.default_rng(0).normal(size=(43, 3))
    assert not len(suspicious_labels(x, labels)), "three images of a class are not outvoted by ten others"
    wrong = labels.copy()
    wrong[5] = 1
    assert suspicious_labels(x, wrong)["position"].tolist() == [5]
    single = np.append(labels, 3)
    assert not len(suspicious_labels(np.append(x, [[0, 0, 1.]], axis=0), single)), "the only image of a class has no neighbors of its own"


def test_names_that_look_like_mathematics_are_drawn_as_they_are(tmp_path):
    name, places, zeros = "$\\frac{$", np.eye(4, 2), np.arange(4) % 2
    table = pd.DataFrame(dict(path="a.png", label=[name, "b"], prediction=["b", name], confidence=.5))
    for k, draw in enumerate((lambda: plot_confusion(table, [name, "b"], title=name), lambda: plot_thumbnails(tmp_path, ["a.png"], [name], title=name),
                              lambda: plot_map(places, zeros, zeros, None, [name, "b"], name))):
        draw().savefig(tmp_path/f"{k}.png")
