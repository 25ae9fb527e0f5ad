"What a user can get wrong, and what the command says then"
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import SMALL, picture
from dho_nb.cli.main import _verbs, main, make_parser
from dho_nb.cli.options import Configured, STAGES, VERBS
from dho_nb.core.errors import DhoError
from dho_nb.core.parameters import declared_parameters
from dho_nb.runs.config import Config, config_from_notebook, make_config, preset
from dho_nb.sweeps.grid import make_grid
from dho_nb.sweeps.sweep import sweep_tasks
from dho_nb.training.trainer import TrainConfig


def fails(dho, tmp_path, *argv, says):
    code, out, err = dho("distill", *argv)
    assert code == 2, out + err
    assert "Traceback" not in err and all(s in err for s in ([says] if isinstance(says, str) else says)), err
    assert not list((tmp_path/"runs").rglob("run.json")), "a refused run leaves no folder"


@pytest.mark.parametrize("argv, says", [
    (["cache/store"], ["unexpected argument 'cache/store'"]),
    (["--epoch", "3"], ["unknown option '--epoch'", "--epochs"]),
    (["--method", "dhoo"], ["unknown method 'dhoo'", "did you mean 'dho'"]),
    (["--student", "resnet81"], ["unknown student 'resnet81'", "did you mean 'resnet18'"]),
    (["--teacher", "ViT-B-61/openai"], ["unknown teacher", "ViT-B-16"]),
    (["--teacher", "ViT-B-16/openia"], ["no such tag", "did you mean 'openai'"]),
    (["--teacher", "ViT-B-16"], ["needs weights", "openai"]),
    (["--student-weights", "none.safetensors"], ["none.safetensors do not exist"]),
    (["--fraction", "0.001", "--shots", "0"], ["a class would get no label", "shots=1"]),
    (["--alpha", "2"], ["alpha=2.0", "between 0 and 1"]),
    (["--shots", "2", "--fraction", "0.1"], ["not both"]),
    (["--validation", "full"], ["needs a labeled val split"]),
    (["--templates", "a photo"], ["exactly one {}"]),
], ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_mistakes_are_named(dho, tree, tmp_path, argv, says):
    fails(dho, tmp_path, "--images", tree, *SMALL, *argv, says=says)


def test_a_training_that_will_take_hours_says_so_before_it_begins(dho, tree):
    code, out, err = dho("check", "--images", tree, *SMALL)
    assert code == 0 and "training time: about" in out and "would take" not in out, err
    code, out, err = dho("check", "--images", tree, *SMALL, "--epochs", "100000000")
    assert code == 0 and " h on this machine; --epochs " in out and "instead of 100000000 would take" in out, err


def test_pictures_that_are_there_twice_are_told(dho, tree, tmp_path):
    shutil.copy(tree/"cat"/"0.png", tree/"dog"/"a copy.png")
    pictures = sorted(tree.rglob("*.png"))
    table = pd.DataFrame(dict(path=[p.relative_to(tree).as_posix() for p in pictures],
                              label=[p.parent.name for p in pictures], split="train"))
    table.to_csv(tmp_path/"labels.csv", index=False)
    code, out, err = dho("check", "--images", tree, "--labels", tmp_path/"labels.csv", *SMALL)
    assert code == 0 and "the same file under two labels: 1, e.g. cat/0.png and dog/a copy.png" in out, out + err
    assert "scored, and the same file" not in out
    table.loc[table["path"] == "dog/a copy.png", ["label", "split"]] = "cat", "test"
    table.to_csv(tmp_path/"labels.csv", index=False)
    code, out, err = dho("check", "--images", tree, "--labels", tmp_path/"labels.csv", *SMALL)
    assert code == 0 and "the same file as a training image: 1 images, e.g. cat/0.png and dog/a copy.png" in out, out
    assert "under two labels" not in out


def test_wrong_types_are_named(dho, tree):
    code, _, err = dho("distill", "--images", tree, "--epochs", "many")
    assert code == 2 and "--epochs" in err and "invalid int value" in err


def test_a_teacher_that_cannot_be_downloaded(dho, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(dho, tmp_path, "--images", tree, *SMALL, "--teacher", "RN50/openai",
          says=["cannot be loaded", "no internet", "huggingface.co/timm/resnet50_clip.openai", "give that folder as teacher"])


def test_broken_images_are_listed_and_can_be_left_out(dho, tree, tmp_path):
    whole = (tree/"cat"/"0.png").read_bytes()
    (tree/"cat"/"half.png").write_bytes(whole[:len(whole)//2])
    (tree/"dog"/"letter.jpg").write_text("Dear Sir or Madam")
    (tree/"dog"/"empty.jpg").touch()
    fails(dho, tmp_path, "--images", tree, *SMALL, says=["3 image(s)", "cat/half.png", "dog/letter.jpg: it is no image",
                                                         "dog/empty.jpg: the file is empty", "--skip-broken"])
    code, out, err = dho("distill", "--images", tree, *SMALL, "--skip-broken", "--out", tmp_path/"out")
    assert code == 0, err
    assert sorted(pd.read_csv(tmp_path/"out"/"skipped.csv")["path"]) == ["cat/half.png", "dog/empty.jpg",
                                                                         "dog/letter.jpg"]
    assert len(pd.read_csv(tmp_path/"out"/"predictions.csv")) == 24


def test_broken_images_left_out_twice(dho, tree, tmp_path):
    (tree/"cat"/"half.png").write_bytes(b"")
    command = ["distill", "--images", tree, *SMALL, "--skip-broken", "--out", tmp_path/"out"]
    assert dho(*command)[0] == 0
    stamp = (tmp_path/"out"/"result.json").stat().st_mtime_ns
    assert dho(*command)[0] == 0 and (tmp_path/"out"/"result.json").stat().st_mtime_ns == stamp


def test_broken_images_of_a_csv_dataset(dho, tree, tmp_path):
    lines = [f"{p.relative_to(tree)},{p.parent.name}" for p in sorted(tree.rglob("*.png"))]
    (tmp_path/"pets.csv").write_text("\n".join(["path,label", *lines]))
    (tree/"cat"/"0.png").write_bytes(b"")
    fails(dho, tmp_path, "--dataset", tmp_path/"pets.csv", "--root", tree, *SMALL,
          says=["cat/0.png: the file is empty", "--skip-broken"])
    assert dho("distill", "--dataset", tmp_path/"pets.csv", "--root", tree, *SMALL, "--skip-broken")[0] == 0


def test_a_folder_beside_the_splits(dho, tree, tmp_path):
    for split in ("train", "val", "test"):
        picture(tmp_path/"sets"/split/"cat"/"a.png"), picture(tmp_path/"sets"/split/"dog"/"b.png")
    picture(tmp_path/"sets"/"originals"/"x.png")
    fails(dho, tmp_path, "--images", tmp_path/"sets", *SMALL, says=["['test', 'train', 'val']", "['originals']"])


def test_classes_are_renamed_by_name(dho, tree, tmp_path):
    fails(dho, tmp_path, "--images", tree, *SMALL, "--classes", "hound", "kitten", says=["old=new"])
    code, _, err = dho("distill", "--images", tree, *SMALL, "--classes", "dog=a 5$ & 10$ hound", "--out",
                       tmp_path/"out")
    assert code == 0, err
    assert set(pd.read_csv(tmp_path/"out"/"predictions.csv")["label"]) == {"cat", "a 5$ & 10$ hound"}


def test_other_pictures_or_weights_under_the_same_names_are_another_run(tree, tmp_path, monkeypatch):
    import torch
    from dho_nb.runs.config import make_config
    from dho_nb.runs.run import Run
    from dho_nb.students.backbones import tiny_cnn
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))
    weights = tmp_path/"w.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny_cnn().state_dict().items()}}, weights)
    run = lambda: Run(make_config(dict(dataset=str(tree), teacher="digits", student="tiny",
                                       student_weights=str(weights), size=16, epochs=1)), mode="none")
    first = run()
    picture(tree/"cat"/"0.png", seed=999)
    second = run()
    torch.save(tiny_cnn().state_dict(), weights)
    assert len({first.identity, second.identity, run().identity}) == 3


@pytest.mark.parametrize("content, says", [([1, 2], "w.pth hold a list"), (None, "w.pth: the file is empty")],
                         ids=["list", "empty"])
def test_weights_that_are_none(dho, tree, tmp_path, content, says):
    import torch
    torch.save(content, tmp_path/"w.pth") if content else (tmp_path/"w.pth").touch()
    fails(dho, tmp_path, "--images", tree, *SMALL, "--student-weights", tmp_path/"w.pth", says=says)


def test_a_folder_that_cannot_be_made(dho, tree, tmp_path):
    (tmp_path/"file").touch()
    code, _, err = dho("distill", "--images", tree, *SMALL, "--out", tmp_path/"file"/"run")
    assert code == 2 and "cannot be made" in err and "Traceback" not in err


@pytest.mark.parametrize("content, says", [
    ("path,label\ncat/0.png,cat\ncat/0.png,dog\ndog/0.png,dog\n", ["line 2 says 'cat'", "line 3 says 'dog'"]),
    ("path,label\ncat/0.png,cat\n../secret.png,dog\n", ["line 3", "'../secret.png' leaves"]),
    ("path,label\ncat/0.png,cat\n/etc/passwd,dog\n", ["line 3", "lies outside"]),
    ("path,label\ncat/0.png,cat\ncat/99.png,cat\n", ["line 3", "'cat/99.png': no such picture"]),
    ("path,label\ncat/0.png,cat\ndog/0.png,\n", ["at least two classes"]),
    ("file,what\ncat/0.png,cat\n", ["line 1", "path,label"]),
    ("", ["line 1"]),
    ("path,label,Label\ncat/0.png,cat,cat\n", ["line 1", "column names must differ"]),
    ("path,label\n\ncat/0.png,cat\n\ncat/99.png,dog\n", ["line 5", "no such picture"]),
    ('path,label\n"cat/0.png,cat\n', ["cannot read"]),
    ("path,label,split\ncat/0.png,cat,train\ndog/0.png,dog,training\n", ["'training' is no split", "write 'train'"]),
], ids=["twice", "leaves", "absolute", "missing", "one-class", "header", "empty", "columns", "blank", "quote", "split"])
def test_label_files(dho, tree, tmp_path, content, says):
    (tmp_path/"labels.csv").write_text(content)
    picture(tmp_path/"secret.png")
    fails(dho, tmp_path, "--images", tree, "--labels", tmp_path/"labels.csv", *SMALL, says=says)


def test_a_label_file_that_is_not_text(dho, tree, tmp_path):
    (tmp_path/"labels.csv").write_bytes("path,label\ncat/0.png,Kätzchen\n".encode("latin-1"))
    fails(dho, tmp_path, "--images", tree, "--labels", tmp_path/"labels.csv", *SMALL, says=["not UTF-8"])


def test_a_class_without_an_image(dho, tree, tmp_path):
    (tree/"bird").mkdir()
    fails(dho, tmp_path, "--images", tree, *SMALL, says=["class folder(s) ['bird']"])


def test_a_class_without_a_label(dho, tree, tmp_path):
    (tmp_path/"labels.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    fails(dho, tmp_path, "--images", tree, "--labels", tmp_path/"labels.csv", "--classes", "cat", "dog", "bird", *SMALL,
          says=["no labeled training image for class(es) ['bird']"])
    (tmp_path/"labels.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dgo\n")
    fails(dho, tmp_path, "--images", tree, "--labels", tmp_path/"labels.csv", "--classes", "cat", "dog", *SMALL,
          says=["line 3", "did you mean 'dog'"])


def test_a_folder_in_use_is_left_alone(dho, tree, tmp_path):
    out = tmp_path/"out"
    assert dho("distill", "--images", tree, *SMALL, "--shots", "2", "--out", out)[0] == 0
    before = {p: p.read_bytes() for p in out.iterdir()}
    code, _, err = dho("distill", "--images", tree, *SMALL, "--shots", "3", "--out", out)
    assert code == 2 and "shots was 2, now 3" in err
    (tree/"cat"/"11.png").unlink()
    code, _, err = dho("distill", "--images", tree, *SMALL, "--shots", "2", "--out", out)
    assert code == 2 and "the images or labels changed" in err
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_a_folder_with_the_things_real_folders_have(dho, tmp_path):
    photos = tmp_path/"My Photos"
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    picture(photos/"a b.JPG")
    picture(photos/"grün/ü.png", 1)
    picture(photos/"grey.png", 2, mode="L")
    picture(photos/"palette.gif", 3, mode="P")
    picture(photos/"print.jpg", 4, mode="CMYK")
    picture(photos/"alpha.png", 5, mode="RGBA")
    picture(photos/"bits.png", 6, mode="1")
    picture(photos/"x.webp", 7)
    picture(photos/"x.tif", 8)
    picture(photos/"x.bmp", 9)
    picture(photos/"one.png", 10, size=(1, 1))
    picture(photos/"wide.png", 11, size=(400, 3))
    Image.fromarray(ramp.astype(np.uint16)*257).save(photos/"deep.png")
    Image.fromarray(ramp.astype(np.uint16)*257).save(photos/"deep.tif")
    Image.fromarray(ramp.astype(np.float32)/255).save(photos/"float.tif")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ramp).save(photos/"turned.jpg", exif=turned)
    (photos/"Thumbs.db").write_bytes(b"\0"), (photos/".DS_Store").write_bytes(b"\0"), (photos/"notes.txt").write_text("hello")
    picture(photos/".thumbnails/t.png"), picture(photos/"__MACOSX/t.png")
    (photos/"again").symlink_to(photos)
    (tmp_path/"labels.csv").write_text("﻿Path;Label\r\na b.JPG;Kater Mikesch\r\ngrün\\ü.png;dog, big\r\n",
                                       encoding="utf-8")
    code, out, err = dho("distill", "--images", photos, "--labels", tmp_path/"labels.csv", *SMALL, "--out",
                         tmp_path/"out")
    assert code == 0, err
    said = pd.read_csv(tmp_path/"out"/"predictions.csv", keep_default_na=False)
    assert len(said) == 16 and set(said["prediction"]) <= {"Kater Mikesch", "dog, big"}
    assert {"confidence", "ce_prediction", "ce_confidence", "kd_prediction", "kd_confidence"} <= set(said)
    assert "nothing is known about the accuracy" in out


def test_help_reads_like_a_manual(dho):
    assert dho()[0] == 0 and "distill" in dho()[1]
    for verb in ("distill", "check", "demo", "estimate", "suggest", "predict", "export", "push", "list"):
        code, out, _ = dho(verb, "--help")
        assert code == 0 and ("example" in out or verb == "demo"), verb
    assert "λ, weight of the labels' loss (0 or more; default:" in dho("distill", "--help")[1]


def test_the_first_help_lists_every_verb_in_the_order_of_work(dho):
    code, out, _ = dho("--help")
    stages = [line[:-1] for line in out.splitlines() if re.fullmatch(r"[a-z]+:", line)]
    assert code == 0 and stages == [*STAGES, "options"]
    assert re.findall(r"^  (\w+)  +[A-Z]", out, re.M) == [v.name for s in STAGES for v in _verbs() if v.stage == s and " " not in v.name]
    assert {v.stage for v in VERBS.values()} == {*STAGES}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_help_with_its_range_and_default(verb):
    parser = make_parser()
    for word in verb.split(): parser = next(a for a in parser._actions if a.choices and word in a.choices).choices[word]
    parser.complete()
    declared = {p.name: p for c in (VERBS[verb].options, *([Config] if issubclass(VERBS[verb].options, Configured) else [])) for p in declared_parameters(c)}
    actions = {a.dest: a for a in parser._actions if a.dest not in ("help", "==SUPPRESS==") and not isinstance(a.choices, dict)}
    assert actions.keys() == declared.keys()
    for name, p in declared.items():
        text = actions[name].help
        assert text and text[0] == text[0].strip() and len(text) > 10, name
        if p.limits: assert str(p.limits) in text, name
        if type(p.default) in (int, float): assert f"default: {p.default:g}" in text, name
        elif type(p.default) is str and p.default: assert f"default: {p.default}" in text, name


@pytest.mark.parametrize("argv, says", [
    (["distil"], "unknown verb 'distil': did you mean 'distill'?"),
    (["store", "fil"], "unknown verb 'fil': did you mean 'fill'?"),
    (["list", "method"], "unknown kind 'method': did you mean 'methods'?"),
    (["demo", "--seeds", "0"], "seeds=0 must be 1 or more"),
    (["distill", "--preset", "digits", "--processes", "0"], "processes=0 must be 1 or more"),
    (["table", "here", "--form", "txt"], "unknown form 'txt': did you mean 'text'?"),
    (["predict", "model"], "required: IMAGES; dho predict --help"),
    (["check", "--images", "fotos"], "unknown dataset 'fotos': Known: "),
    (["check", "--images", "eurosta"], "unknown dataset 'eurosta': did you mean 'eurosat'?"),
    (["check"], "name a dataset, a folder of images, a CSV or a CoOp split (--images)"),
    (["check", "tests"], "pictures are given by --images tests; "),
    (["check", "--images", "tests", "--out", "run"], "this verb has no option --out; it belongs to dho "),
    (["check", "--images", "tests", "--model", "resnet18"], "option --model is called --student here"),
])
def test_mistakes_in_a_command_are_one_sentence(argv, says, capsys):
    assert make_parser() and main(argv) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1 and told.startswith("dho: "), told


@pytest.mark.parametrize("make", [
    lambda **given: Config(**given), lambda **given: make_config(given), lambda dataset, **given: preset("digits", **given),
    lambda **given: config_from_notebook(dict(given, out="", In=[])), lambda dataset, **given: TrainConfig(**given),
    lambda **given: sweep_tasks(make_grid("one", given, dict(seed=[0]))), lambda **given: dataclasses.replace(Config(dataset="digits"), **given),
], ids=["Config", "make_config", "preset", "notebook", "TrainConfig", "grid", "replace"])
def test_parameters_are_checked_alike_wherever_they_are_written(make):
    for given, says in ((dict(epoch=5), "unknown parameter 'epoch': did you mean 'epochs'"), (dict(epochs=0), "epochs=0 must be 1 or more"),
                        (dict(epochs="5"), "epochs must be of type int, not str"), (dict(lr=float("inf")), "lr must be a finite number"),
                        (dict(schedule="cosin"), "unknown schedule 'cosin': did you mean 'cosine'")):
        with pytest.raises(DhoError, match=re.escape(says)): make(dataset="digits", **given)


@pytest.mark.parametrize("labels, says", [([("a.png", "cat")], "a table of path and label goes in as dataset"),
                                          (pd.DataFrame(dict(path=[*"abc"]*20)), "labels must be of type list, not DataFrame (path")])
def test_a_table_in_place_of_labels_files_is_told_where_it_goes(labels, says):
    with pytest.raises(DhoError, match=re.escape(says)) as found: Config(dataset="photos", labels=labels)
    assert len(str(found.value)) < 200


def test_a_configuration_shows_what_differs_first_and_escapes_it():
    shown = Config(dataset="<b>photos</b>", epochs=5)._repr_html_()
    assert "<b>photos" not in shown and "&lt;b&gt;photos" in shown
    changed, _, defaults = shown.partition("<details>")
    assert re.findall(r"<th>(\w+)</th>", changed)[-2:] == ["dataset", "epochs"] and "<th>lr</th>" in defaults
    assert len(re.findall(r"<tr><th>\w+</th>", shown)) == len(declared_parameters(Config))


def test_from_python_in_under_ten_lines(tree, tmp_path):
    from dho_nb.runs.config import make_config
    from dho_nb.runs.run import distill
    run = distill(make_config(dict(dataset=str(tree), shots=2, test=0.25, teacher="digits", student="tiny",
                                   student_weights="", size=16, epochs=1, flip=0.0)), tmp_path/"out")
    assert run.result["tested"] == 6 and run.result["accuracy"] == run.evaluate()["accuracy"].iloc[-1]
    assert (tmp_path/"out"/"model.safetensors").exists()


@pytest.fixture
def model(tmp_path):
    "A student that knows nothing"
    from dho_nb.students.dual_head import build_student, save_student
    save_student(build_student("tiny", 3, size=16), tmp_path/"model.safetensors", spec="tiny",
                 classes=["ash", "birch", "oak"], alpha=.3, beta=.5)
    return tmp_path/"model.safetensors"


def test_predictions_of_files_folders_and_patterns(dho, tree, model, tmp_path):
    code, out, err = dho("predict", model, tree/"cat", f"{tree}/dog/1*.png", tree/"dog"/"0.png", "--top", "2",
                         "--probabilities", "--out", tmp_path/"said.csv")
    assert code == 0 and "16 pictures" in out, err
    said = pd.read_csv(tmp_path/"said.csv")
    assert len(said) == 16 and set(said["prediction"]) <= {"ash", "birch", "oak"}
    assert set(said["decided"]) <= {"both", "ce", "kd", "combination"}
    np.testing.assert_allclose(said[["p(ash)", "p(birch)", "p(oak)"]].sum(axis=1), 1, atol=1e-5)
    assert all(len(json.loads(top)) == 2 for top in said["top"])
    code, out, err = dho("predict", model, tree, "--out", tmp_path/"said.jsonl")
    lines = [json.loads(line) for line in (tmp_path/"said.jsonl").read_text().splitlines()]
    assert code == 0 and len(lines) == 24 and len(lines[0]["top"]) == 3
    same = {r["file"]: r["prediction"] for r in lines}
    assert all(same[f] == p for f, p in zip(said["file"], said["prediction"]))


def test_predictions_on_the_screen_say_what_cannot_be_read(dho, tree, model):
    (tree/"cat"/"words.png").write_text("no picture")
    code, out, err = dho("predict", model, tree/"cat", "--format", "jsonl")
    assert code == 1 and "1 of 13 pictures could not be read" in err and "Traceback" not in err
    said = [json.loads(line) for line in out.splitlines()]
    assert [r["file"].endswith("words.png") for r in said if r["problem"]] == [True] and len(said) == 13


def test_mistakes_about_a_model_in_use_are_named(tree, model, tmp_path, capsys):
    from dho_nb.cli.main import main
    (tmp_path/"there.csv").write_text("mine")
    for argv, says in ((["predict", tmp_path/"gone.safetensors", tree], "does not exist"),
                       (["predict", model, tmp_path/"no*.png"], "no picture matches"),
                       (["predict", model, tree, "--out", tmp_path/"said.json"], "did you mean 'jsonl'"),
                       (["predict", model, tree, "--out", tmp_path/"there.csv"], "there already"),
                       (["predict", model, tree, "--top", "0"], "top=0 must be 1 or more"),
                       (["predict", tree, tree], "holds no model"), (["predict", model, tree, "--tops", "1"], "mean '--top'"),
                       (["export", model], "give them with images"),
                       (["export", model, "--safetensors", "--int8", "--images", tree], "int8 is made from ONNX"),
                       (["export", tmp_path/"gone.onnx", "--images", tree], "does not exist"),
                       (["push", tmp_path, "me/forest"], "holds no export")):
        assert main([str(a) for a in argv]) == 2 and says in (told := capsys.readouterr().err), (argv, told)
    assert (tmp_path/"there.csv").read_text() == "mine" and not (tmp_path/"said.json").exists()


def test_the_accuracy_to_expect_and_what_to_label_next(dho, tree, tmp_path):
    lines = ["path,label", *(f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(4))]
    (tmp_path/"labels.csv").write_text("\n".join(lines))
    options = ["--images", tree, "--labels", tmp_path/"labels.csv", *SMALL, "--epochs", "1", "--views", "1"]
    code, out, err = dho("estimate", *options, "--folds", "2", "--curve", "1", "--out", tmp_path/"fit")
    assert code == 0 and all(s in out
                             for s in ("teacher_errs_to", "low", "fold 2", "α = 0.5, β = 0.5: ", "chosen on these images: ", "if the error goes on falling")), out + err
    assert len(list((tmp_path/"fit").glob("*/result.json"))) == 4
    code, out, err = dho("suggest", tmp_path/"fit"/"1-of-2")
    assert code == 2 and "no unlabeled image" in err
    assert dho("distill", *options, "--out", tmp_path/"run")[0] == 0
    code, out, err = dho("suggest", tmp_path/"run", "--count", "6", "--out", tmp_path/"next.csv")
    found = pd.read_csv(tmp_path/"next.csv")
    assert code == 0 and len(found) == 6 and list(found)[:2] == ["path",
                                                                 "label"] and not set(found["path"]) & {line.split(",")[0] for line in lines}, err
    assert dho("suggest", tmp_path/"run", "--out", tmp_path/"next.csv")[0] == 2, "nothing is overwritten"


def test_a_model_is_exported_as_all_kinds_and_asked_again(dho, tree, model, tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    code, out, err = dho("export", model, "--onnx", "--torch-export", "--safetensors", "--int8", "--images", tree,
                         "--calibrate", tree/"cat", "--out", "out", "--license", "apache-2.0")
    assert code == 0 and out.count("largest_difference") == 3 and "model-int8.onnx" in out, err
    made = json.loads((tmp_path/"out"/"export.json").read_text())
    assert set(made["files"]) == {"model.onnx", "model-int8.onnx", "model.pt2", "model.safetensors"}
    assert made["license"] == "apache-2.0"
    assert all(f["largest_difference"] < 1e-4 and f["checked"] == 24 for n, f in made["files"]
               .items() if "int8" not in n)
    assert "license: apache-2.0" in (tmp_path/"out"/"README.md").read_text()
    (_, ours, _), (_, theirs, _) = dho("predict", model, tree), dho("predict", tmp_path/"out"/"model.onnx", tree)
    a, b = (pd.read_csv(io.StringIO(text)) for text in (ours, theirs))
    assert a["prediction"].equals(b["prediction"]) and np.abs(a["probability"] - b["probability"]).max() < 1e-4
