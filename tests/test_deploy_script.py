"predict_onnx.py, the script beside an exported model: as a module, on the command line, and on models that may be anybody's"
import importlib.util
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, picture
from test_pictures import grey, RAMP
from dho_nb.core.errors import DhoError
from dho_nb.deploy.predictor import Predictor, load_pixels
from dho_nb.data.transforms import Preprocess
from dho_nb.evaluation.rejection import coverage_curve
from dho_nb.students.dual_head import build_student, save_student

pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
from dho_nb.deploy.export import export

SCRIPT = ROOT/"nbs"/"experiments"/"predict_onnx.py"
CLASSES = ["cat", "dog", "cow", "a very long name", "größer"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("predict_onnx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Eleven pictures, and two files that are none among them"
    folder = tmp_path_factory.mktemp("photos")
    files = [str(picture(folder/f"{i}.png", i, (20 + 3*i, 40))) for i in range(11)]
    (folder/"words.png").write_text("no picture")
    return [*files[:4], str(folder/"words.png"), *files[4:], str(folder/"gone.png")]


def exported(folder, files, heads=2):
    "A random student as ONNX whose thresholds lie among the certainties of the files"
    student = build_student("tiny", len(CLASSES), heads, size=16)
    torch.manual_seed(1)
    for head in filter(None, (student.model.ce_head, student.model.kd_head)): torch.nn.init.normal_(head.weight, std=.5)
    about = dict(spec="tiny", classes=CLASSES, alpha=.3, beta=.5)
    save_student(student, folder/"s.safetensors", **about)
    predictor = Predictor.from_pretrained(folder/"s.safetensors", "cpu")
    scores = predictor._scores(predictor.answer(np.stack([load_pixels(f, predictor.preprocess) for f in files])))
    save_student(student, folder/"s.safetensors", **about, coverage=coverage_curve(scores.repeat(9), torch.ones(9*len(files)).bool(), "of a test"))
    export(folder/"s.safetensors", folder/"out", images=files)
    return folder/"out"/"model.onnx"


@pytest.fixture(scope="module", params=[1, 2], ids=["one head", "two heads"])
def model(request, files, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("model"), [f for f in files if not f.endswith(("words.png", "gone.png"))], request.param)


@pytest.fixture(scope="module")
def changed(files, tmp_path_factory):
    "Returns a function that writes an exported model with something else in it"
    import onnx
    folder = tmp_path_factory.mktemp("changed")
    file = exported(folder, files[:3])
    def change(metadata=None, graph=None):
        made = onnx.load(file)
        if graph: graph(made.graph)
        entry = next(p for p in made.metadata_props if p.key == "dho_nb")
        if metadata: entry.value = metadata(json.loads(entry.value))
        onnx.save(made, folder/"changed.onnx")
        return folder/"changed.onnx"
    return change


def run(script, *arguments):
    "Exit code, lines on stdout and on stderr of the script's command line"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = script.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
            if isinstance(code, str): print(code, file=err); code = 1
    return code, out.getvalue().splitlines(), err.getvalue().splitlines()


@pytest.mark.parametrize("unknown", [None, .7])
def test_rows_are_those_of_dho_predict_whatever_the_batch(script, model, files, unknown):
    theirs = Predictor.from_pretrained(model).predict(files, top=3, unknown=unknown, mode="none")
    for batch in (1, 4, 100):
        ours = pd.DataFrame(script.load(model).predict(files, batch, 3, unknown))
        assert ours.columns.tolist() == [c for c in theirs.columns if c in ours.columns] and len(ours.columns) == 5 + (unknown is not None)
        for column in {*ours.columns} - {"probability", "top", "problem"}: assert ours[column].tolist() == theirs[column].tolist(), column
        assert np.allclose(ours["probability"].astype(float), theirs["probability"].astype(float), atol=2e-6, equal_nan=True)
        assert [t and list(t) for t in ours["top"]] == [t and list(t) for t in theirs["top"]]
        assert [p != "" for p in ours["problem"]] == [p != "" for p in theirs["problem"]] and ours["problem"].ne("").sum() == 2
        assert unknown is None or ours["unknown"].dropna().nunique() == 2, "some of both"


def test_the_photos_of_a_batch_are_one_call(script, model, files):
    opened, sizes = script.load(model), []
    session, opened.session = opened.session, type("Counting", (), dict(run=lambda self, names, feed: (sizes.append(len(feed["pixels"])), session.run(names, feed))[1]))()
    assert len(list(opened.predict(files, batch=5))) == 13 and sizes == [4, 5, 2]  # the broken ones are left out
    assert len(list(opened.predict(files[0], batch=5))) == 1 and sizes[3:] == [1]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_for_a_fixed_number_of_photos_works(script, changed, files, batch):
    def fix(graph):
        for value in (*graph.input, *graph.output): value.type.tensor_type.shape.dim[0].dim_value = batch
    free, fixed = (list(script.load(changed(graph=g)).predict(files, batch=3)) for g in (None, fix))
    assert [r["prediction"] for r in fixed] == [r["prediction"] for r in free] and sum(r["prediction"] is not None for r in fixed) == 11
    assert script.load(changed(graph=fix)).fixed_batch == batch


def test_lines_are_the_columns_of_dho_predict(script, model, files, tmp_path):
    from dho_nb.cli.main import main
    assert main(["predict", str(model), *files, "--top", "3", "--unknown", "0.7", "--out", str(tmp_path/"p.csv")]) == 1
    theirs = pd.read_csv(tmp_path/"p.csv", dtype=str, keep_default_na=False).query("problem == ''")
    code, lines, errors = run(script, model, *files, "--top", "3", "--unknown", "0.7")
    rows = [line.split("\t") for line in lines]
    assert code == 1 and [e.split(" cannot be read: ")[0] for e in errors] == [files[4], files[-1]]
    assert [[r[0], r[1], r[3]] for r in rows] == theirs[["file", "prediction", "unknown"]].to_numpy().tolist()
    assert np.allclose([float(r[2]) for r in rows], theirs["probability"].astype(float), atol=2e-6)
    assert [list(json.loads(r[4])) for r in rows] == [list(json.loads(t)) for t in theirs["top"]] and all(len(json.loads(r[4])) == 3 for r in rows)
    plain = run(script, model, *files[:4])
    assert plain[0] == 0 and not plain[2] and all(re.fullmatch(r"[^\t]+\t[^\t]+\t[01]\.\d{6}", line) for line in plain[1])


def test_the_help_reads_well_and_options_stand_anywhere(script, model, files):
    code, lines, _ = run(script, "--help")
    text = " ".join(" ".join(lines).split())
    assert code == 0 and all(t in text for t in ("--top K", "--batch N", "--unknown SHARE", "separated by tabs", "the exit code is 1"))
    assert run(script, "--top", "2", model, files[0], "--batch", "1", *files[1:4]) == run(script, model, *files[:4], "--top", "2")
    for wrong in (["--batch", "0"], ["--top", "0"], ["--unknown", "0.2"], ["--unknown", "nan"]):
        code, lines, errors = run(script, model, files[0], *wrong)
        assert code == 1 and not lines and len(errors) == 1 and ("1 or more" in errors[0] or "give 0.5 to" in errors[0])


def test_the_module_does_nothing_when_it_is_imported_and_needs_three_packages(model, files):
    code = ("import sys; before = set(sys.modules); [sys.modules.__setitem__(n, None) for n in ('dho_nb', 'torch', 'pandas', 'pillow_heif')]\n"
            "sys.path.insert(0, sys.argv.pop(1)); import onnxruntime; onnxruntime.InferenceSession, kept = None, onnxruntime.InferenceSession\n"
            "import predict_onnx; onnxruntime.InferenceSession = kept\n"
            "print([r['prediction'] for r in predict_onnx.load(sys.argv[1]).predict(sys.argv[2:])])")
    done = subprocess.run([sys.executable, "-c", code, SCRIPT.parent, model, *files[:3]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("'") == 6, done.stderr


def without(name): return lambda about: json.dumps({k: v for k, v in about.items() if k != name})
def having(**entries): return lambda about: json.dumps({**about, **entries})
def preparing(**entries): return lambda about: json.dumps({**about, "preprocess": {**about["preprocess"], **entries}})


CURVE = dict(images=9, rows=[[.5, .1, 1, 1]])

@pytest.mark.parametrize("metadata, said", [
    (lambda about: "{", "is damaged"), (lambda about: "[]", "no valid preprocess"), (lambda about: "[" * 10**5, "nested too deeply"),
    (lambda about: "7", "no valid preprocess"), (lambda about: '{"preprocess": 1' + "0"*5000 + "}", "is damaged"),
    *((without(n), f"no valid {n}") for n in ("preprocess", "classes")), (having(preprocess=[]), "no valid preprocess"),
    *((having(classes=v), "no valid classes") for v in ([], "cat", [1, 2], {}, None)),
    *((preparing(size=v), "no valid size") for v in (0, -1, 16., "16", True, 2**20, None)),
    *((preparing(interpolation=v), "no valid interpolation") for v in ("BOX", "open", [], None)),
    *((preparing(resize_mode=v), "no valid resize_mode") for v in ("crop", [], 1)),
    *((preparing(fill=v), "no valid fill") for v in (256, "red", [0, 0], [1, 2, 300], 1.5)),
    *((having(alpha=v), "no valid alpha") for v in (2, "1", float("nan"), [])),
    *((having(coverage=v), "no valid coverage") for v in ("all", [], {}, dict(CURVE, rows=3), dict(CURVE, images="9"), dict(CURVE, rows=[[.5, .1, 1]]),
                                                         dict(CURVE, rows=[[.5, float("nan"), 1, 1]]), dict(CURVE, rows=[[.5, "a", 1, 1]]))),
    (having(classes=["cat", "dog"]), "names 2 classes, and its graph has others"), (preparing(size=17), "cannot classify photos")])
def test_metadata_that_is_not_valid_ends_in_one_message(script, changed, files, metadata, said):
    code, lines, errors = run(script, changed(metadata), files[0], "--top", "2")
    assert code == 1 and not lines and len(errors) == 1 and said in errors[0] and len(errors[0]) < 400, errors


def test_other_files_end_in_one_message(script, changed, files, tmp_path):
    import onnx
    (tmp_path/"words.onnx").write_text("no graph")
    bare = onnx.load(changed())
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path/"bare.onnx")
    def renamed(graph):
        for node in graph.node: node.input[:] = ["x" if i == "pixels" else i for i in node.input]
        graph.input[0].name = "x"
    for file, said in ((tmp_path/"words.onnx", "cannot be read by onnxruntime"), (tmp_path/"gone.onnx", "cannot be read by onnxruntime"),
                       (tmp_path/"bare.onnx", "was not exported by dho_nb"), (renamed, "cannot classify photos"),
                       (lambda graph: graph.output.pop(), "its graph has others")):
        code, lines, errors = run(script, changed(graph=file) if callable(file) else file, files[0])
        assert code == 1 and not lines and len(errors) == 1 and said in errors[0], errors
    code, _, errors = run(script, changed(having(coverage=None)), files[0], "--unknown", "0.9")
    assert code == 1 and "nothing was held out" in errors[0]


def test_names_do_not_control_a_terminal_or_break_the_table(script, changed, files, tmp_path):
    odd = ["a\tb", "\x1b[2J", "line\nbreak", "\u202eleft", "größer"]
    file = picture(tmp_path/"tab\tname.png")
    code, lines, _ = run(script, changed(having(classes=odd)), *files[:4], file, "--top", "5")
    assert code == 0 and len(lines) == 5 and all(line.count("\t") == 3 for line in lines) and r"tab\tname" in lines[-1]
    assert not re.search(r"[\x00-\x08\x0a-\x1f\u202e]", "".join(lines)) and set(json.loads(lines[0].split("\t")[3])) == {*odd}
    assert {r["prediction"] for r in script.load(changed(having(classes=odd))).predict(files[:4])} <= {*odd}, "a program gets the names as they are"


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_every_mode_prepares_pictures_as_the_library_does(script, changed, tmp_path, mode):
    for fill in (0, 90, [10, 20, 250]):
        model, preprocess = script.load(changed(preparing(resize_mode=mode, fill=fill))), Preprocess(16, resize_mode=mode, fill=tuple(fill) if isinstance(fill, list) else fill)
        for i, size in enumerate(((40, 30), (9, 200), (200, 7), (33, 33))):
            file = picture(tmp_path/f"{i}.jpg", i, size)
            assert np.abs(model.pixels(file).astype(int) - load_pixels(file, preprocess)).max() <= (mode == "longest")


def test_a_picture_whose_exif_cannot_be_read_is_read(script, changed, tmp_path):
    file = tmp_path/"odd.png"
    Image.open(picture(tmp_path/"a.png")).save(file, exif=b"Exif\0\0" + b"no header of a TIFF")
    np.testing.assert_array_equal(script.load(changed()).pixels(file), load_pixels(file, Preprocess(16)))


def test_a_border_of_three_values_is_one_that_the_library_opens(script, changed, files):
    file, color = changed(preparing(resize_mode="longest", fill=[10, 20, 250])), (10, 20, 250)
    assert Predictor.from_pretrained(file, "cpu").preprocess.fill == color
    made = build_student("tiny", len(CLASSES), 2, size=16)
    made = made._replace(preprocess=Preprocess(16, resize_mode="longest", fill=color))
    save_student(made, file.with_name("color.safetensors"), spec="tiny", classes=CLASSES, alpha=.3, beta=.5)
    assert Predictor.from_pretrained(file.with_name("color.safetensors"), "cpu").preprocess.fill == color
    for fill in ([1, 2], [1, 2, 256], [1, 2, True], [1., 2, 3], -1):
        with pytest.raises(DhoError, match="no valid preprocess"): Predictor.from_pretrained(changed(preparing(fill=fill)), "cpu")


def packed(file, values):
    "A grey TIFF of 12 bits, two values in three bytes"
    import struct
    a, b = values.reshape(-1, 2).astype(int).T
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 12*9 + 4), (277, 1), (278, height), (279, len(data))]
    file.write_bytes(b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + bytes(4) + data)
    return file


WIDE = (RAMP.astype(int)*16 + RAMP//256).astype(np.uint16)  # the ramp on 16 bits
DEEP = dict(sixteen_tif=lambda f: grey(f, WIDE), sixteen_png=lambda f: grey(f, WIDE), twelve_tif=lambda f: packed(f, RAMP),
            declared_tif=lambda f: grey(f, RAMP, {281: 4095}), declared_png=lambda f: grey(f, RAMP, sbit=12), scaled_png=lambda f: grey(f, RAMP//64*1024, sbit=6),
            dark_tif=lambda f: grey(f, RAMP), beyond_tif=lambda f: grey(f, WIDE, {281: 4095}), float_tif=lambda f: grey(f, (RAMP/4095).astype(np.float32)),
            wide_float_tif=lambda f: grey(f, RAMP.astype(np.float32) - 9), whole_tif=lambda f: grey(f, RAMP.astype(np.int32)*99), small_tif=lambda f: grey(f, RAMP.astype(np.int32)//16),
            holes_tif=lambda f: grey(f, np.where(RAMP % 7, RAMP/4095, np.nan).astype(np.float32)))

@pytest.mark.parametrize("name", DEEP)
def test_pictures_of_many_bits_are_read_as_the_library_reads_them(script, tmp_path, name):
    from dho_nb.data.transforms import read_image
    file = DEEP[name](tmp_path/f"a.{name.rpartition('_')[2]}")
    with Image.open(file) as opened: assert opened.mode[0] in "IF"
    ours, theirs = np.asarray(script.read_photo(file)[0]), np.asarray(read_image(file))
    np.testing.assert_array_equal(ours, theirs)
    assert name == "dark_tif" or ours.max() > 250, "the full scale is used"
    if name.startswith(("twelve", "declared")): np.testing.assert_array_equal(ours[..., 0], np.uint8(RAMP/4095*255 + .5))
    if name.startswith("sixteen"): np.testing.assert_array_equal(ours[..., 0], np.uint8(WIDE/65535*255 + .5))
