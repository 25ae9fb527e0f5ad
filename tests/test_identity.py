"A run's identity covers the user's own code: students by name, registered methods, and the modules that they import"
import functools
import importlib
import json
import sys
import textwrap
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from conftest import SMALL, picture
from dho_nb.runs.config import make_config, config_own_sources, preset
from dho_nb.runs.identity import run_identity as identity_of
from dho_nb.sweeps.grid import make_grid
from dho_nb.teachers.pool_heads import POOL_HEADS
from dho_nb.data.manifests import digits_manifest
from dho_nb.losses.methods import METHODS, Method, get_method
from dho_nb.losses.losses import dho_loss, loss_with_target
from dho_nb.runs.presets import PRESETS
from dho_nb.runs.run import Run, distill
from dho_nb.core.errors import DhoError
from dho_nb.core.sources import module_sources, source_hash
from dho_nb.students.dual_head import build_student, load_student
from dho_nb.sweeps.sweep import Sweep, sweep_files_hash, open_sweep, sweep_tasks
from dho_nb.training.trainer import _default_identity, TrainConfig

NET = """
import torch
from netz_parts.layers import width
def make(): return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, width()))
"""


@pytest.fixture
def home(tmp_path, monkeypatch, tree):
    "A folder with an own student in two modules; what tests import from there is forgotten"
    monkeypatch.chdir(tmp_path)
    for name, value in dict(CACHE=tmp_path/"cache", RUNS=tmp_path/"runs", DEVICE="cpu", PROGRESS="none").items():
        monkeypatch.setenv(f"DHO_{name}", str(value))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    write(tmp_path, netz=NET, netz_parts__layers="def width(): return 8\n")
    before = {*sys.modules}
    yield tmp_path
    forget(before)


def forget(before=()):
    "As a new process: own modules are not imported"
    for name in [m for m in sys.modules if m.startswith("netz") and m not in before]: sys.modules.pop(name)


def write(folder, **files):
    for name, text in files.items():
        file = folder/f"{name.replace('__', '/', 1)}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))


def config(home, **more):
    return make_config(dict(dict(dataset=str(home/"tree"), teacher="digits", student="netz:make", student_weights="",
                                 size=16, epochs=1, views=1, flip=0.0), **more))


def own_method(monkeypatch, objective, name="mine", **more):
    monkeypatch.setitem(METHODS, name, Method(name, objective, 2, True, True, "ours", **more))


def test_runs_of_library_code_have_no_sources_and_the_identities_of_before():
    assert all(config_own_sources(asdict(preset(name))) == {} for name in PRESETS)
    assert identity_of(preset("digits"), digits_manifest()) == "22696457ce76"
    assert config_own_sources(dict(dataset="digits", student="dho_nb.deploy.checkpoints:clip_vit")) == {}
    assert {m: config_own_sources(dict(dataset="digits", method=m)) for m in METHODS} == {m: {} for m in METHODS}


def test_a_modules_sources_are_its_own_and_what_it_imports(home):
    write(home, netz_pkg____init__="from . import inner\n", netz_pkg__inner="from .deep import x\nfrom .. import nothing\n",
          netz_pkg__deep="import numpy, os, dho_nb.data.loaders\nx = 1\ndef later():\n    import netz_late\n",
          netz_late="import netz_pkg.deep\n", netz_unused="")
    assert [*module_sources("netz_pkg.inner")] == ["netz_late", "netz_pkg", "netz_pkg.deep", "netz_pkg.inner"]
    assert [*module_sources("netz")] == ["netz", "netz_parts.layers"]  # a folder without __init__.py
    assert module_sources("dho_nb.students.heads") == module_sources("no_such_module") == {}
    assert [*module_sources("timm.models.resnet")] == ["timm.models.resnet"]  # no walk through a whole library
    assert not any(m.startswith("netz") for m in sys.modules)  # nothing was run


@pytest.mark.parametrize("file, text", [("netz", NET.replace("Flatten()", "Flatten(), torch.nn.ReLU()")),
                                        ("netz_parts__layers", "def width(): return 12\n")])
def test_an_edited_student_is_another_run(home, dho, file, text):
    ours = ["distill", "--images", "tree", *SMALL, "--student", "netz:make"]
    code, out, err = dho(*ours)
    assert code == 0, err
    assert len([*home.glob("runs/*/result.json")]) == 1
    write(home, **{file: text})
    code, out, err = dho(*ours)
    assert code == 0, err
    made = [json.loads(p.read_text()) for p in home.glob("runs/*/result.json")]
    assert len({r["identity"] for r in made}) == len(made) == 2
    if "layers" in file: assert len({r["parameters"] for r in made}) == 2


def test_the_folder_of_a_run_with_other_source_is_refused_by_name(home, dho):
    ours = ["distill", "--images", "tree", *SMALL, "--student", "netz:make", "--out", "runs/one"]
    assert dho(*ours)[0] == 0
    assert [*json.loads((home/"runs/one/run.json").read_text())["sources"]] == ["netz", "netz_parts.layers"]
    write(home, netz_parts__layers="def width(): return 12\n")
    code, out, err = dho(*ours)
    assert code == 2 and "the source of netz_parts.layers changed" in err


def test_an_interrupted_run_does_not_go_on_with_edited_code(home):
    run = Run(config(home), "runs/one")
    run.build_trainer().save()
    run.release()
    forget()
    write(home, netz=NET.replace("Flatten()", "Flatten(), torch.nn.ReLU()"))
    with pytest.raises(DhoError, match="the source of netz changed"): Run(config(home), "runs/one")


def test_a_module_that_was_edited_after_its_import_is_refused(home):
    one = distill(config(home))
    write(home, netz=NET.replace("Flatten()", "Flatten(), torch.nn.ReLU()"))
    with pytest.raises(DhoError, match="module netz was edited after this process had imported it"): Run(config(home))
    importlib.reload(sys.modules["netz"])
    two = distill(config(home))
    assert one.identity != two.identity and one.folder != two.folder


def test_a_model_whose_source_was_edited_is_loaded_with_a_warning(home):
    run = distill(config(home))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_student(run.folder/"model.safetensors", trust_remote_code=True)
    forget()
    write(home, netz=NET.replace("width()))", "width()), torch.nn.ReLU())"))
    with pytest.warns(UserWarning, match="the source of student netz:make was edited"):
        load_student(run.folder/"model.safetensors", trust_remote_code=True)
    forget()
    write(home, netz_parts__layers="def width(): return 12\n")
    with (pytest.warns(UserWarning, match="netz:make was edited"),
          pytest.raises(DhoError, match="was the source of netz:make edited since")):
        load_student(run.folder/"model.safetensors", trust_remote_code=True)


def test_an_edited_method_is_another_run(home, monkeypatch):
    found = []
    for factor in (1.0, 2.0, 1.0):
        def mine(ce, kd, teacher, labels, *rest, **more):
            made = dho_loss(ce, kd, teacher, labels, *rest, **more)
            return dict(made, loss=factor*made["loss"])
        own_method(monkeypatch, mine)
        found.append(distill(config(home, method="mine", student="tiny")))
    assert found[0].identity == found[2].identity != found[1].identity
    assert found[0].folder == found[2].folder != found[1].folder
    assert [*json.loads((found[0].folder/"run.json").read_text())["sources"]] == ["method mine"]


def test_methods_from_a_module_follow_its_file(home, monkeypatch):
    write(home, netz_loss="from netz_parts.terms import term\ndef mine(ce, kd, *rest, **more): return term(ce)\n",
          netz_parts__terms="def term(x): return x\n")
    seen = []
    for text in ("def term(x): return x\n", "def term(x): return 2*x\n"):
        forget()
        write(home, netz_parts__terms=text)
        own_method(monkeypatch, importlib.import_module("netz_loss").mine)
        seen.append(identity_of(preset("digits", method="mine"), digits_manifest()))
    assert seen[0] != seen[1]


def test_what_a_method_is_made_of_counts(monkeypatch):
    def identity(): return identity_of(preset("digits", method="mine"), digits_manifest())
    def other(s, t, tau, total, target, sharp=1.0): return sharp*(s - t).sum()
    kinds = [dict(objective=dho_loss), dict(objective=dho_loss, recipe="another"), dict(objective=dho_loss, answers="ce"),
             dict(objective=functools.partial(dho_loss, distil=other)),
             dict(objective=functools.partial(dho_loss, distil=functools.partial(other, sharp=2.0))),
             dict(objective=loss_with_target(other)), dict(objective=loss_with_target(lambda s, t, tau, total, target: (s - t).sum()))]
    found = []
    for kind in kinds:
        own_method(monkeypatch, **kind)
        found += [identity()]
        assert identity() == found[-1]
    assert len({*found}) == len(kinds)


def test_a_librarys_method_replaced_under_its_name_counts(monkeypatch):
    before = identity_of(preset("digits"), digits_manifest())
    monkeypatch.setitem(METHODS, "dho", replace(METHODS["dho"], answers="ce"))
    assert identity_of(preset("digits"), digits_manifest()) != before


def test_the_first_stage_of_a_method_counts(monkeypatch):
    found = []
    for sign in (1, -1):
        own_method(monkeypatch, lambda *a, sign=sign, **k: dict(loss=sign), name="first")
        own_method(monkeypatch, METHODS["kd-then-ssl"].objective, first="first")
        found.append(identity_of(preset("digits", method="mine"), digits_manifest()))
    assert found[0] != found[1]


def test_an_own_pool_head_counts(monkeypatch):
    found = []
    for k in (1, 2):
        monkeypatch.setitem(POOL_HEADS, "mine", lambda pool, *rest, k=k: k*pool)
        found.append([identity_of(preset("digits", method=m, pool_head=h), digits_manifest())
                      for m, h in (("dho-plus", "mine"), ("dho-plus", "auto"), ("dho", "mine"))])
    assert [a == b for a, b in zip(*found)] == [False, True, True]


class Loss:
    def __init__(self, weight): self.weight = weight
    def __call__(self, x): return self.weight*x


def typed(text, **names):
    "A function as from a terminal: of no file"
    space = dict(__name__="__main__", **names)
    exec(text, space)
    return space["f"]


@pytest.mark.parametrize("one, other", [
    (lambda x: x + 1, lambda x: x + 2),
    (Loss(1.0), Loss(2.0)),
    (Loss(torch.ones(2)), Loss(torch.zeros(2))),
    (Loss(1.0).__call__, Loss(2.0).__call__),
    (functools.lru_cache(typed("def f(x): return x")), functools.lru_cache(typed("def f(x): return -x"))),
    (np.vectorize(typed("def f(x): return x")), np.vectorize(typed("def f(x): return -x"))),
    (typed("def f(x): return g(x)", g=typed("def f(x): return x")), typed("def f(x): return g(x)", g=typed("def f(x): return -x"))),
    (typed("def f(x): return w*x", w=1.0), typed("def f(x): return w*x", w=2.0)),
    (typed("def f(x, w=1.0): return w*x"), typed("def f(x, w=2.0): return w*x")),
    (typed("class f:\n  def g(self): return 1"), typed("class f:\n  def g(self): return 2")),
    (typed("class f:\n  @property\n  def g(self): return 1"), typed("class f:\n  @property\n  def g(self): return 2")),
    (typed("class f:\n  @staticmethod\n  def g(): return 1"), typed("class f:\n  @staticmethod\n  def g(): return 2")),
    (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
], ids=range(13))
def test_what_differs_has_another_hash_and_what_is_the_same_has_not(one, other):
    assert source_hash(one) == source_hash(one) != source_hash(other) == source_hash(other)


def test_cells_of_a_notebook_have_a_text_and_decorators_count():
    import linecache
    def cell(name, text):
        linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
        space = dict(__name__="__main__", functools=functools)
        exec(compile(text, name, "exec"), space)
        return space["f"]
    text = ("def twice(g):\n    @functools.wraps(g)\n    def inner(*a): return 2*g(*a)\n    return inner\n\n"
            "@twice\ndef f(x):\n    return x\n")
    one, other = cell("<cell 1>", text), cell("<cell 2>", text.replace("2*g", "3*g"))
    moved = cell("<cell 3>", f"# moved\n\n{text}")
    assert source_hash(one) == source_hash(moved) != source_hash(other)


def test_a_hash_is_the_same_in_every_process(home, dho):
    import subprocess
    text = ("import sys; sys.path.insert(0, '.')\nimport torch, functools, netz\nfrom dho_nb.core.sources import source_hash\n"
            "class A(torch.nn.Module):\n  def forward(self, x): return {1, 2, 3}, {'a': x}, torch.relu(x)\n"
            "print(source_hash([A, functools.partial(netz.make, frozenset('abc'), k=[1, A]), lambda x: x in {'p', 'q', 'r'}]))")
    found = {subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=home,
                            env={**__import__("os").environ, "PYTHONHASHSEED": str(s)}).stdout for s in range(3)}
    assert len(found) == 1 and len(found.pop()) == 17


def test_names_that_a_function_does_not_use_do_not_count():
    both = [typed("def f(x): return x.loss", loss=value) for value in (1.0, 2.0)]
    assert source_hash(both[0]) == source_hash(both[1])


def test_a_sweep_notices_edited_code(home):
    grid = make_grid("own", dict(dataset=str(home/"tree"), teacher="digits", student="netz:make", student_weights="",
                                 size=16, epochs=1, views=1), dict(seed=[0, 1]))
    before, tasks = sweep_files_hash(grid), sweep_tasks(grid)[0]
    assert sweep_files_hash(grid) == before
    sweep = Sweep(grid).begin()
    assert Sweep(grid)._kept()
    write(home, netz_parts__layers="def width(): return 12\n")
    assert sweep_files_hash(grid) != before
    assert {t.identity for t in tasks}.isdisjoint(t.identity for t in sweep_tasks(grid)[0])
    (sweep.folder/tasks[0].run).mkdir()
    with pytest.raises(DhoError, match="own code of a student or method"): open_sweep(sweep.folder, go_on=True, trust_remote_code=True)


def test_a_sweep_notices_what_is_read_beside_the_files_that_it_names(home, monkeypatch):
    monkeypatch.setenv("DHO_DATA", str(home/"data"))
    for name in ("c.csv", "c.json", "e.npy", "e.txt", "open_clip_config.json", "w.pt", "part.txt", "data/c/1.png"):
        (home/name).parent.mkdir(parents=True, exist_ok=True)
        (home/name).write_text("one")
    grid = make_grid("own", dict(dataset="c.csv", embeddings="e.npy", teacher="ViT-B-16/w.pt", student_args=dict(a=["part.txt"])),
                     dict(seed=[0]))
    for name in ("c.csv", "c.json", "e.npy", "e.txt", "open_clip_config.json", "w.pt", "part.txt", "data/c/1.png"):
        before = sweep_files_hash(grid)
        assert before == sweep_files_hash(grid)
        (home/name).write_text("three")
        assert sweep_files_hash(grid) != before, name


def test_grids_of_library_code_have_the_plan_of_before():
    grid = make_grid("ours", dict(preset="digits"), dict(seed=[0, 1]))
    assert sweep_files_hash(grid) == sweep_files_hash(grid)
    assert not any(config_own_sources(c.parameters) for c in grid.cells)


def test_a_file_that_an_argument_of_the_student_names_counts(home):
    given = config(home, student="tiny", student_args=dict(widths=[8, 8, 8, 8], more=["parts.txt"]))
    found = []
    for text in ("1", "2"):
        (home/"parts.txt").write_text(text)
        found.append(identity_of(given, digits_manifest()))
    assert found[0] != found[1]


@pytest.mark.parametrize("what", ["weights", "embeddings", "texts", "labels", "image", "class list"])
def test_files_that_are_changed_in_place_are_another_run(home, what):
    images = sorted(p.relative_to(home/"tree").as_posix() for p in (home/"tree").rglob("*.png"))
    draw = np.random.default_rng(0)
    def bring(seed):
        draw = np.random.default_rng(seed if what == "embeddings" else 0)
        np.savez(home/"e.npz", paths=images, embeddings=draw.normal(size=(len(images), 8)))
        draw = np.random.default_rng(seed if what == "texts" else 0)
        np.savez(home/"t.npz", classes=["cat", "dog"], text=draw.normal(size=(2, 8)))
        made = build_student("tiny", 2, seed=seed if what == "weights" else 0).model.backbone
        torch.save(made.state_dict(), home/"w.pt")
        names = ["cat", "dog"] if what != "labels" or not seed else ["dog", "cat"]
        (home/"l.csv").write_text("path,label\n" + "".join(f"{p},{names[i % 2]}\n" for i, p in enumerate(images[:8])))
        if what == "image": picture(home/"tree"/images[0], seed=99 + seed)
        (home/"c.csv").write_text("path,label\n" + "".join(f"{p},{i % 2}\n" for i, p in enumerate(images)))
        (home/"c.json").write_text(json.dumps(dict(classes=["cat", "dog" if what != "class list" or not seed else "wolf"])))
    del draw
    asked = dict(embeddings="e.npz", texts="t.npz", student="tiny", student_weights="w.pt", labels="l.csv")
    if what == "class list": asked.update(dataset="c.csv", root=str(home/"tree"), labels="", embeddings="", texts="")
    found = []
    for seed in (0, 1):
        bring(seed)
        run = Run(config(home, **asked))
        run.release()
        found.append(run.identity)
    assert found[0] != found[1]


class Net(torch.nn.Module):
    def forward(self, x): return x.mean((2, 3))


def test_a_trainers_own_name_tells_of_own_code():
    mine = replace(get_method("dho"), objective=lambda *a, **k: dict(loss=0))
    recipe, ours = TrainConfig(), build_student("tiny", 2).model
    own = build_student(Net(), 2).model
    assert _default_identity(get_method("dho"), recipe, ours) == "dho()"
    assert len({_default_identity(m, recipe, n) for m in (mine, get_method("dho")) for n in (own, ours)}) == 4


def test_the_recipe_of_a_method_is_part_of_the_identity(monkeypatch):
    "A constant that a shipped method sets is in no source that is hashed"
    import dho_nb.losses.methods as methods
    config, digits = preset("digits", method="dho-plus"), digits_manifest()
    before, others = identity_of(config, digits), identity_of(preset("digits"), digits)
    changed = replace(METHODS["dho-plus"], recipe="targets of 0.9 and more")
    for registry in (methods.METHODS, methods.SHIPPED): monkeypatch.setitem(registry, "dho-plus", changed)
    assert identity_of(config, digits) != before
    assert identity_of(preset("digits"), digits) == others
