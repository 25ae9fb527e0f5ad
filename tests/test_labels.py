"Labels files: every mistake at once, with its line, the cell as typed and what to do; several files"
import pandas as pd
import pytest
from PIL import Image

from conftest import OPTIONS, SMALL, fails, picture
from dho_nb.core.errors import DhoError
from dho_nb.data.label_files import manifest_from_labels, NONE_OF_THESE
from dho_nb.runs.config import Config, make_config
from dho_nb.runs.dataset import open_dataset


@pytest.fixture
def photos(tmp_path):
    "Six pictures, one of them by a name of a camera"
    for i, name in enumerate(("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.PNG", "IMG_0477.png", "day1/IMG_0001.png")):
        picture(tmp_path/"photos"/name, seed=i)
    return tmp_path/"photos"


def message(photos, *texts, **more):
    "What is said about labels files of these texts"
    files = [photos.parent/f"{'abc'[i]}.csv" for i in range(len(texts))]
    for file, text in zip(files, texts): file.write_text(text)
    with pytest.raises(DhoError) as found: manifest_from_labels(photos, files, **more)
    return str(found.value)


def line(said, number, file="a.csv"):
    "What is said about a line"
    found = [l for l in said.splitlines() if l.startswith(f"  {file}, line {number}: ")]
    assert len(found) == 1, said
    return found[0]


def test_every_mistake_is_listed_with_its_line_its_cell_and_what_to_do(photos):
    said = message(photos, "path,label,split\ncat/0.png,cat,train\ncat/99.png,cat,\n/etc/passwd,dog,\nC:\\me\\photos\\dog\\0.png,dog,\n"
                           "cat/0.png,dog,\ndog/0.png,dgo,training\n,cat,\n../b.png,cat,\n", classes=["cat", "dog"])
    assert said.startswith("8 problems in the labels (")
    assert "'cat/99.png': no such picture" in line(said, 3) and "correct the path or delete the line" in line(said, 3)
    assert "'/etc/passwd' lies outside" in line(said, 4) and "give the path below" in line(said, 4)
    assert r"'C:\me\photos\dog\0.png' is a path of a Windows machine; write 'dog/0.png'" in line(said, 5)
    assert "a.csv line 2 says 'cat', a.csv line 6 says 'dog'; keep one" in line(said, 2)
    seventh = [l for l in said.splitlines() if "line 7" in l]
    assert any("'dgo' is an unknown class: did you mean 'dog'? The classes are cat, dog" in l for l in seventh)
    assert any("'training' is no split; write 'train'" in l for l in seventh)
    assert "the cell path is empty" in line(said, 8) and "'../b.png' leaves" in line(said, 9)



@pytest.mark.parametrize("text, said", [("path,label\n", "no picture has a label in"), ("path,label\ncat/0.png,cat\n", "the only class is 'cat' in")])
def test_a_file_with_too_few_labels_is_named(photos, text, said): assert said in message(photos, text) and "a.csv: label pictures" in message(photos, text)


def test_many_mistakes_are_counted_and_the_first_are_shown(photos):
    said = message(photos, "path,label\n" + "".join(f"no/{i}.png,cat\n" for i in range(300)))
    assert "300 problems in the labels (300 × missing picture)" in said and "… and 260 more" in said and len(said.splitlines()) == 42


def test_a_missing_picture_is_never_taken_for_one_of_another_name(photos):
    said = message(photos, "path,label\nIMG_7777.png,cat\ncat/7.png,cat\nday2/IMG_0001.png,cat\n")
    assert "did you mean" not in said and not any(name in said for name in ("IMG_0477", "cat/0", "cat/1", "day1"))


@pytest.mark.parametrize("typed, way", [("DOG/1.png", "this name is written 'dog/1.PNG' there"), ("IMG_0001.png", "this name is written 'day1/IMG_0001.png' there"),
                                        ("img_0477", "this name is written 'IMG_0477.png' there"), ("0.png", "2 pictures have this name, e.g. 'cat/0.png': write the folder, too")])
def test_another_spelling_of_the_same_name_is_pointed_out(photos, typed, way):
    assert way in line(message(photos, f"path,label\n{typed},cat\n"), 2)


@pytest.mark.parametrize("cell", ["photos/cat/0.png", "./cat/0.png", r"cat\0.png", r"photos\cat\0.png", "{tmp}/photos/cat/0.png", "{name}/photos/cat/0.png"])
def test_ways_to_write_a_path_that_are_accepted(photos, cell):
    (photos.parent/"l.csv").write_text(f"path,label\n{cell.format(tmp=photos.parent, name=photos.parent.name)},cat\ndog/0.png,dog\n")
    table = manifest_from_labels(photos, photos.parent/"l.csv").table.set_index("path")
    assert table["label"]["cat/0.png"] == 0 and len(table) == 6


def test_a_prefix_counts_only_where_it_names_the_root(photos):
    picture(photos/"photos"/"cat"/"0.png", seed=99)
    (photos.parent/"l.csv").write_text("path,label\nphotos/cat/0.png,cat\ndog/0.png,dog\n")
    table = manifest_from_labels(photos, photos.parent/"l.csv").table.set_index("path")
    assert table["label"]["photos/cat/0.png"] == 0 and table["label"]["cat/0.png"] == -1, "what is there by this very path counts first"
    assert "'pictures/cat/0.png': no such picture" in message(photos, "path,label\npictures/cat/0.png,cat\n")


def test_several_files_are_merged(photos):
    a, b = photos.parent/"a.csv", photos.parent/"b.csv"
    a.write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\ncat/0.png,cat\n")
    b.write_text("path;label;split\ncat/0.png;cat;\ncat/1.png;cat;val\ndog/0.png;;\nphotos/dog/1.PNG;dog;train\n")
    table = manifest_from_labels(photos, [a, b]).table.set_index("path")
    assert table["label"].to_dict() == {"cat/0.png": 0, "dog/0.png": 1, "cat/1.png": 0, "dog/1.PNG": 1, "IMG_0477.png": -1, "day1/IMG_0001.png": -1}
    assert table["split"]["cat/1.png"] == "val" and (table["split"] == "train").sum() == 5


def test_contradictions_of_several_files_are_listed_with_their_lines(photos):
    said = message(photos, "path,label,split\ncat/0.png,cat,train\ndog/0.png,dog,\n", "path,label,split\ndog/0.png,cat,\nphotos/cat/0.png,cat,val\n")
    assert "'dog/0.png' has several labels: a.csv line 3 says 'dog', b.csv line 2 says 'cat'; keep one" in said
    assert "'cat/0.png' has several splits: a.csv line 2 says 'train', b.csv line 3 says 'val'; keep one" in said


def test_mistakes_of_several_files_are_listed_together(photos):
    said = message(photos, "path,label\nx.png,cat\n", "file,what\n1,2\n", "path,label\ny.png,cat\n")
    assert said.startswith("3 problems") and "'x.png'" in line(said, 2) and "'y.png'" in line(said, 2, "c.csv") and "b.csv" in said


def test_pictures_of_something_else_are_left_out(photos):
    (photos.parent/"l.csv").write_text(f"path,label\ncat/0.png,cat\ndog/0.png,dog\ncat/1.png,{NONE_OF_THESE}\n")
    made = manifest_from_labels(photos, photos.parent/"l.csv")
    assert made.classes == ("cat", "dog") and "cat/1.png" not in set(made.table["path"]) and len(made) == 5
    kept = manifest_from_labels(photos, photos.parent/"l.csv", classes=["cat", "dog", NONE_OF_THESE])
    assert len(kept) == 6 and kept.table.set_index("path")["label"]["cat/1.png"] == 2, "a class of that name is a class"


def test_the_command_line_takes_several_files_and_a_device(dho, photos, tmp_path):
    (tmp_path/"a.csv").write_text("path,label\ncat/0.png,cat\n")
    (tmp_path/"b.csv").write_text("path,label\ndog/0.png,dog\n")
    code, out, err = dho("check", "--images", photos, "--labels", "a.csv", "b.csv", *SMALL, "--device", "cpu")
    assert code == 0 and "cat 1, dog 1" in out, out + err
    code, _, err = dho("check", "--images", photos, "--labels", "a.csv", "b.csv", *SMALL, "--device", "cuda:77")
    assert code == 2 and "device 'cuda:77' is not usable here" in err
    for flag, says in (("--batch-size", "option --batch-size is called --batch-labeled and --batch-unlabeled here"),
                       ("--learning-rate", "option --learning-rate is called --lr here"), ("--epoch", "did you mean '--epochs'?")):
        code, _, err = dho("check", "--images", photos, flag, "7")
        assert code == 2 and says in err, err
    assert "did you mean" not in dho("check", "--images", photos, "--dropout", "7")[2]


def test_a_device_given_to_a_command_ends_with_it(monkeypatch, capsys):
    import os
    from dho_nb.cli.main import main
    monkeypatch.setenv("DHO_DEVICE", "auto")
    assert main(["check", "--preset", "digits", "--device", "cpu"]) == 0 and os.environ["DHO_DEVICE"] == "auto"
    monkeypatch.delenv("DHO_DEVICE")
    assert main(["check", "--preset", "digits", "--device", "cpu"]) == 0 and "DHO_DEVICE" not in os.environ


def test_names_of_other_programs_are_named_in_python_too():
    fails(lambda: Config(dataset="digits", batch_size=3), "'batch_size' is called batch_labeled and batch_unlabeled here")


def test_pictures_of_odd_sizes_are_named_and_not_suggested(dho, photos, tmp_path):
    Image.new("RGB", (3, 3)).save(photos/"dot.png"), Image.new("RGB", (4000, 5)).save(photos/"line.png"), Image.new("RGB", (90, 30)).save(photos/"wide.png")
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    data = open_dataset(make_config(dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"))))
    assert data.odd[["path", "problem"]].to_numpy().tolist() == [["dot.png", "3 × 3 pixels"], ["line.png", "4000 × 5 pixels"]]
    code, out, err = dho("check", "--images", photos, "--labels", "l.csv", *SMALL)
    assert code == 0 and "odd sizes: 2 pictures too small or too narrow to show anything: dot.png (3 × 3 pixels), line.png (4000 × 5 pixels)" in out, out + err
    code, out, err = dho("distill", "--images", photos, "--labels", "l.csv", *SMALL, "--out", "run")
    assert code == 0 and (tmp_path/"run"/"odd.csv").exists(), err
    code, out, err = dho("suggest", "run", "--count", "50", "--out", "next.csv")
    suggested = set(pd.read_csv(tmp_path/"next.csv")["path"])
    assert code == 0 and "wide.png" in suggested and not suggested & {"dot.png", "line.png"}, err


def test_classes_are_renamed_alike_with_folders_and_with_labels(photos):
    (photos.parent/"l.csv").write_text("path,label\ncat/0.png,46\ndog/0.png,7\n")
    opened = lambda **more: open_dataset(make_config(dict(OPTIONS, dataset=str(photos), labels=str(photos.parent/"l.csv"), **more))).manifest
    assert opened(classes=["46=wallflower"]).classes == ("wallflower", "7")
    assert opened(classes=["7", "46", "46=wallflower"]).classes == ("7", "wallflower"), "all classes, and a new name for one"
    (photos/"IMG_0477.png").unlink(), (photos/"day1"/"IMG_0001.png").unlink(), (photos/"day1").rmdir()
    folders = lambda **more: open_dataset(make_config(dict(OPTIONS, dataset=str(photos), **more))).manifest
    assert folders(classes=["cat=a tabby"]).classes == ("a tabby", "dog")
    for of in (lambda **more: opened(classes=["46=wallflower"], **more), lambda **more: folders(classes=["cat=wallflower"], **more)):
        kept = of(rename="prompts")
        assert "wallflower" not in kept.classes and "wallflower" in kept.prompted and of().prompted == of().classes


def test_a_model_may_keep_the_codes_as_its_answers(photos, tmp_path):
    from dho_nb.data.manifests import read_manifest, write_manifest
    from dho_nb.runs.inputs import resolve
    from dho_nb.runs.run import distill
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,46\ndog/0.png,7\n")
    config = make_config(dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"), classes=["46=nine", "7=zero"], rename="prompts"))
    run = distill(config, tmp_path/"run", "none")
    assert set(pd.read_csv(tmp_path/"run"/"predictions.csv", dtype=str)["prediction"]) <= {"46", "7"}
    words = distill(make_config(dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"), classes=["46=nine", "7=zero"])), tmp_path/"words", "none")
    codes = distill(make_config(dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"))), tmp_path/"codes", "none")
    heads = [r.open_teacher().class_embeddings() for r in (run, words, codes)]
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])
    assert len({r.identity for r in (run, words, codes)}) == 3
    assert read_manifest(write_manifest(run.manifest, tmp_path/"list")).prompted == run.manifest.prompted == ("nine", "zero")


def test_codes_stay_the_answers_where_own_embeddings_know_the_words(photos, tmp_path):
    import numpy as np
    from dho_nb.runs.inputs import resolve
    from dho_nb.runs.teacher_provider import TeacherProvider
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,46\ndog/0.png,7\n")
    paths, text = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*")), np.eye(2, 4, dtype=np.float32)
    np.savez(tmp_path/"v.npz", paths=paths, embeddings=np.ones((len(paths), 4), np.float32), classes=["wallflower", "petunia"], text=text)
    named = dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"), embeddings=str(tmp_path/"v.npz"), classes=["46=petunia", "7=wallflower"])
    for rename, classes in (("all", ("petunia", "wallflower")), ("prompts", ("46", "7"))):
        config = make_config(dict(named, rename=rename, views=1))
        inputs = resolve(config)
        provider = TeacherProvider(config, inputs.data, inputs.teacher, mode="none").open()
        assert inputs.data.manifest.classes == classes and np.allclose(provider.class_embeddings().cpu(), text[::-1])


def test_prompts_that_nobody_reads_are_not_shown(photos, tmp_path):
    import numpy as np
    from dho_nb.runs.inputs import resolve
    from dho_nb.runs.teacher_check import score_teacher, teacher_check_lines
    from dho_nb.runs.teacher_provider import TeacherProvider
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    paths = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*"))
    np.savez(tmp_path/"v.npz", paths=paths, embeddings=np.ones((len(paths), 4), np.float32), classes=["cat", "dog"], text=np.eye(2, 4, dtype=np.float32))
    for own, shown in ((dict(embeddings=str(tmp_path/"v.npz"), views=1), "not read: the file of embeddings"), ({}, "a drawing of a cat")):
        config = make_config(dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"), templates=["a drawing of a {}"], **own))
        inputs = resolve(config)
        provider = TeacherProvider(config, inputs.data, inputs.teacher, mode="none").open()
        assert shown in teacher_check_lines(score_teacher(provider, inputs.labels.rows))["prompts"]


def test_the_weakest_classes_of_a_teacher_come_first():
    import numpy as np
    import pandas as pd
    from dho_nb.data.manifests import Manifest
    from dho_nb.runs.teacher_check import TeacherCheck, teacher_check_lines
    labels, names = np.repeat([0, 1, 2], [4, 8, 4]), ("apple", "birch", "cedar")
    answers = np.array([0, 0, 0, 1] + [1]*2 + [2]*6 + [2]*4)  # 3 of 4, 2 of 8, 4 of 4
    table = pd.DataFrame(dict(path=[f"{i}.png" for i in range(16)], label=labels, split="train"))
    lines = teacher_check_lines(TeacherCheck(answers, labels, Manifest("trees", table, names)), enough=4, most=2)
    assert lines["weakest classes"] == "birch 2 of 8 (most often taken for cedar), apple 3 of 4"


def test_a_list_option_that_is_given_twice_is_one_list():
    import argparse, dataclasses
    from dho_nb.cli.main import VERBS
    from dho_nb.cli.options import add_options
    from dho_nb.core.parameters import declared_parameters
    defaults = [p.default for v in VERBS.values() for p in declared_parameters(v.options) if p.kind is list]
    assert all(d is dataclasses.MISSING or not d for d in defaults), "a default would stay in the list"
    for verb, given in (("check", "--labels a.csv b.csv --labels c.csv"), ("evaluate", "digits --dataset x --labels a.csv b.csv --labels c.csv")):
        parser = argparse.ArgumentParser()
        add_options(parser, VERBS[verb].options)
        for _ in range(2): assert parser.parse_args(given.split()).labels == ["a.csv", "b.csv", "c.csv"]
        if verb == "check": assert parser.parse_args("--teacher A --teacher B".split()).teacher == ["B"], "one teacher or several: the last choice counts"


def test_labeled_pictures_that_are_left_out_are_named(photos, tmp_path, dho):
    (photos/"cat"/"broken.png").write_bytes(b"a text"), (photos/"broken.png").write_bytes(b"")
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,cat\ncat/broken.png,cat\ndog/0.png,dog\n")
    code, out, err = dho("check", "--images", photos, "--labels", "l.csv", "--skip-broken", *SMALL)
    assert code == 0 and "images left out: 2, 1 of them labeled, e.g. cat/broken.png" in out, out + err


def test_check_and_distill_say_what_the_teacher_is_worth(dho, photos, tmp_path):
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,46\ndog/0.png,7\n")
    for verb in ("check", "distill"):
        code, out, err = dho(verb, "--images", photos, "--labels", "l.csv", *SMALL)
        assert code == 0 and "labeled images right, chance 1" in out and "a photo of a 46.; a photo of a 7." in out, out + err
        assert "not clearly better than guessing among 2 classes" in out and "2 of 2 class names are codes" in out
        assert "--classes 46=NAME 7=NAME" in out.replace("7=NAME 46=NAME", "46=NAME 7=NAME")


def test_a_good_teacher_is_not_warned_about_and_prompts_can_be_tried(dho, tmp_path):
    code, out, _ = dho("check", "--preset", "digits", "--shots", "8")
    assert code == 0 and "warning" not in out and "of 80 (95 %: " in out and "chance 8" in out and "weakest classes" in out
    code, out, err = dho("evaluate", "digits", "--dataset", "digits", "--templates", "{}")
    assert code == 0 and "500 images" in out, err
    other = dho("evaluate", "digits", "--dataset", "digits")[1]
    assert out != other, "other prompts, other answers"


def test_a_student_has_no_prompts(dho, tmp_path):
    code, _, err = dho("distill", "--preset", "digits", "--epochs", "1", "--out", "run")
    code, _, err = dho("evaluate", "run", "--dataset", "digits", "--templates", "{}")
    assert code == 2 and "--templates are a teacher's prompts" in err


def test_embeddings_without_class_embeddings_say_what_is_missing(photos, tmp_path):
    import numpy as np
    from dho_nb.runs.inputs import resolve
    from dho_nb.runs.teacher_provider import TeacherProvider
    (tmp_path/"l.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    paths = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*"))
    np.savez(tmp_path/"v.npz", paths=paths, embeddings=np.ones((len(paths), 4), np.float32))
    (tmp_path/"half.safetensors").write_bytes(b"no weights")
    config = make_config(dict(OPTIONS, dataset=str(photos), labels=str(tmp_path/"l.csv"), embeddings=str(tmp_path/"v.npz"), views=1,
                              teacher=f"ViT-B-16/{tmp_path/'half.safetensors'}"))
    def head():
        inputs = resolve(config)
        return TeacherProvider(config, inputs.data, inputs.teacher, mode="none").open().class_embeddings()
    fails(head, "v.npz holds no class embeddings: give them by --texts", "half.safetensors")
