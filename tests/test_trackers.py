"Trackers: one unbroken curve per run, offline, and never the end of a run"
import importlib.machinery
import json
import os
import random
import subprocess
import sys
import time
import types
import warnings

import pandas as pd
import pytest

from conftest import ROOT, drawn_seed, fails
from dho_nb.runs.config import preset
from dho_nb.runs.inputs import resolve
from dho_nb.runs.run import Run, distill
from dho_nb.runs.trackers import check_trackers, RunTrackers, TrackedRun

CHANGES = dict(validation="few", shots=4, views=2)


def start(folder, *report, epochs=40, processes=1, **env):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]*(processes > 1)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "dho_nb.cli.main", "distill", "--preset", "digits", "--epochs", str(epochs), "--validation", "few",
         "--shots", "4", "--views", "2", "--out", str(folder), *(["--report-to", *report] if report else [])], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "DHO_PROGRESS": "none", "DHO_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "DHO_CHECKPOINT_SECONDS": "0.2", **env})


def scalars(folder):
    "Tag to list of (step, value) of a folder of event files, as TensorBoard reads them"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder), size_guidance=dict(scalars=0, images=0)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events.Tags()["images"]


def same_curve(folder, points, name="loss"):
    history = pd.read_csv(folder/"history.csv")
    assert [step for step, _ in points] == history["step"].tolist()
    assert [value for _, value in points] == pytest.approx(history[name].tolist(), rel=1e-6)


def test_a_killed_and_resumed_run_is_one_unbroken_curve(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    rng, folder, kills = random.Random(drawn_seed()), tmp_path/"sweep"/"run", 0
    for kills in range(5):
        process = start(folder, "tensorboard", "csv")
        if kills == 4: break
        until = time.time() + 120
        while not (folder/"trackers"/"metrics.csv").exists() and process.poll() is None and time.time() < until: time.sleep(.02)
        time.sleep(rng.uniform(0, .5) + (kills > 0)*rng.uniform(2, 5))  # first at the beginning, later after imports
        if process.poll() is not None: break
        process.kill()
        process.wait()
    assert process.wait(300) == 0, process.stdout.read()
    files = [*(folder/"trackers"/"tensorboard").iterdir()]
    assert kills > 0 and len(files) > 1
    curves, pictures = scalars(folder/"trackers"/"tensorboard")
    same_curve(folder, curves["train/loss"])
    same_curve(folder, curves["train/lr"], "lr")
    assert pictures == ["surface"] and len(curves["validation/ce_head_accuracy"]) == len(curves["validation/kd_head_accuracy"]) == 20
    assert curves["result/accuracy"][0][1] == pytest.approx(json.loads((folder/"result.json").read_text())["accuracy"])
    table = pd.read_csv(folder/"trackers"/"metrics.csv")
    same_curve(folder, [*zip(table["step"], table["train/loss"])])


def test_what_a_checkpoint_does_not_cover_is_void_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    run = TrackedRun(tmp_path/"trackers", "one", "sweep", {})
    rows = lambda epochs, loss: [dict(step=10*k, loss=loss) for k in epochs]
    for covered, epochs, loss in ((0, range(1, 6), 1.), (30, range(1, 5), 2.), (40, range(1, 7), 3.)):
        RunTrackers(["tensorboard"], run).log(rows(epochs, loss), covered=covered)
        time.sleep(1.1)  # event files are ordered by the second
    assert scalars(tmp_path/"trackers"/"tensorboard")[0]["train/loss"] == [(10, 1.), (20, 1.), (30, 1.), (40, 2.), (50, 3.), (60, 3.)]


def test_trackers_change_neither_identity_nor_numbers(tmp_path):
    one, other = preset("digits", **CHANGES, epochs=2), preset("digits", **CHANGES, epochs=2, report_to=["csv"])
    assert resolve(one).identity == resolve(other).identity
    plain, tracked = distill(one, tmp_path/"plain", "none"), distill(other, tmp_path/"tracked", "none")
    pd.testing.assert_frame_equal(plain.history, tracked.history, rtol=0, atol=0)
    assert plain.result["accuracy"] == tracked.result["accuracy"]
    assert Run(one, tmp_path/"tracked", "none").done and not (tmp_path/"plain"/"trackers").exists()


@pytest.mark.parametrize("method", ["kd-then-ssl", "sho-tuned"])
def test_stages_follow_each_other(tmp_path, method):
    config = preset("digits", method=method, epochs=2, report_to=["csv"], views=2)
    run = distill(config, tmp_path/"run", "none")
    table = pd.read_csv(tmp_path/"run"/"trackers"/"metrics.csv")
    stages, steps = len(run.inputs.stages), run.inputs.sizes.epoch_steps
    assert table["step"].tolist() == [steps*k for k in range(1, 1 + sum(s.recipe.epochs for s in run.inputs.stages))]
    losses = [c for c in table if c.endswith("train/loss")]
    assert len(losses) == (stages if method == "sho-tuned" else 1) and (table[losses].notna().sum(axis=1) == 1).all()


def test_one_of_several_processes_logs(tmp_path):
    process = start(tmp_path/"run", "csv", epochs=2, processes=2)
    assert process.wait(300) == 0, process.stdout.read()
    table = pd.read_csv(tmp_path/"run"/"trackers"/"metrics.csv")
    same_curve(tmp_path/"run", [*zip(table["step"], table["train/loss"])])


def test_each_run_of_a_sweep_is_one_run_of_its_tracker(tmp_path, dho):
    pytest.importorskip("trackio", reason="needs the extra trackio")
    (tmp_path/"two.toml").write_text('[base]\npreset = "digits"\nepochs = 2\nviews = 2\nreport_to = ["csv", "trackio"]\n[axes]\nseed = [0, 1]\n')
    code, _, err = dho("sweep", tmp_path/"two.toml", "--jobs", "1", TRACKIO_DIR=str(tmp_path/"trackio"))
    assert code == 0, err
    runs = sorted(p.name for p in (tmp_path/"runs"/"two").glob("seed*"))
    ask = ("from trackio.sqlite_storage import SQLiteStorage as s; import json; "
           "print(json.dumps({r: [x['step'] for x in s.get_logs('two', r)] for r in s.get_runs('two')}))")
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env={**os.environ, "TRACKIO_DIR": str(tmp_path/"trackio")})
    logged = json.loads(done.stdout.splitlines()[-1])
    assert len(runs) == 2 and sorted(logged) == runs
    for name, steps in logged.items():
        history = pd.read_csv(tmp_path/"runs"/"two"/name/"history.csv")["step"].tolist()
        assert sorted({*steps}) == history and steps.count(history[0]) == 1


def test_trackio_keeps_each_runs_numbers_below_its_folder_and_calls_nobody(tmp_path):
    pytest.importorskip("trackio", reason="needs the extra trackio")
    script = ("import json, socket, sys; from pathlib import Path\n"
              "from dho_nb.runs.trackers import RunTrackers, TrackedRun\n"
              "called = []\n"
              "def refuse(*a, **k): called.append(a[0]); raise OSError('no network')\n"
              "socket.getaddrinfo = refuse\n"
              "history = [dict(step=10*k, loss=1/k) for k in range(1, 7)]\n"
              "for name, upto in (('a', 3), ('b', 2), ('a', 6)):\n"
              "    trackers = RunTrackers(['trackio'], TrackedRun(Path(sys.argv[1])/name/'trackers', name, 'group', dict(lr=.1)))\n"
              "    trackers.log(history[:upto], covered=20); trackers.close()\n"
              "from trackio.sqlite_storage import SQLiteStorage as s\n"
              "print(json.dumps([called, [x['step'] for x in s.get_logs('group', 'a')], s.get_runs('group')]))")
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRACKIO_")}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True,
                          env={**env, "HF_TOKEN": "hf_" + "a"*34, "HF_HOME": str(tmp_path/"hf")})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [10, 20, 30, 40, 50, 60], ["a"]]
    assert (tmp_path/"b"/"trackers"/"trackio"/"group.db").exists() and not (tmp_path/"hf"/"trackio").exists()


def test_a_missing_package_is_an_error_before_a_folder_is_made(tmp_path, monkeypatch):
    import importlib.util
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else there(name, *a))
    fails(lambda: check_trackers(["wandb"]), "wandb is not installed", "pip install 'dho_nb[wandb]'")
    fails(lambda: Run(preset("digits", epochs=1, report_to=["wandb"]), tmp_path/"run", "none"), "pip install 'dho_nb[wandb]'")
    assert not (tmp_path/"run").exists()


def test_a_tracker_that_cannot_write_is_a_warning(tmp_path):
    config = preset("digits", **CHANGES, epochs=1, report_to=["csv"])
    run = Run(config, tmp_path/"run", "none")
    (tmp_path/"run"/"trackers").write_text("no folder")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        run.train()
        run.finish()
    assert run.done and sum("the tracker csv failed" in str(w.message) for w in shown) == 1


def stub(monkeypatch, name, **parts):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(parts)
    monkeypatch.setitem(sys.modules, name, module)


HISTORY = [dict(step=10*k, loss=1/k, lr=.1) for k in range(1, 7)]


def sessions(folder, name):
    "A run that is killed after three epochs with a checkpoint after two, and resumed"
    run = TrackedRun(folder/"trackers", "one", "sweep", dict(lr=.1, classes=["a"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunTrackers([name], run).log(HISTORY[:3])
        resumed = RunTrackers([name], run)
        resumed.log(HISTORY[:2], covered=20)
        resumed.log(HISTORY)
        for _ in range(2): resumed.finish(60, dict(accuracy=.5), {})


def test_wandb_is_offline_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    opened, logged = [], []

    class Tracked:
        def log(self, values, step): logged.append((step, values))
        def finish(self): pass

    stub(monkeypatch, "wandb", init=lambda **k: opened.append(k) or Tracked(), Image=None, Settings=dict)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"): monkeypatch.delenv(name, raising=False)
    sessions(tmp_path, "wandb")
    assert [step for step, _ in logged] == [10, 20, 30, 40, 50, 60, 60] and logged[-1][1] == {"result/accuracy": .5}
    assert {k["id"] for k in opened} == {opened[0]["id"]} and all(k["resume"] == "allow" and k["group"] == "sweep" for k in opened)
    assert {k["mode"] for k in opened} == {"offline"} and {k["dir"] for k in opened} == {str(tmp_path/"trackers")}
    monkeypatch.setenv("WANDB_MODE", "online")
    sessions(tmp_path/"other", "wandb")
    assert opened[-1]["mode"] == "online" and opened[-1]["id"] != opened[0]["id"]


def test_mlflow_writes_below_the_run_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    logged, opened = [], []

    class Client:
        def __init__(self, tracking_uri): opened.append(tracking_uri)
        def get_experiment_by_name(self, name): return None
        def create_experiment(self, name, artifact_location): opened.append(artifact_location); return name
        def create_run(self, experiment, run_name): return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment}/{run_name}"))
        def get_run(self, id): return types.SimpleNamespace(data=types.SimpleNamespace(metrics={k for _, k, _ in logged}))
        def get_metric_history(self, id, key): return [types.SimpleNamespace(step=s) for s, k, _ in logged if k == key]
        def log_metric(self, id, key, value, step): logged.append((step, key, value))
        def log_param(self, id, key, value): assert isinstance(value, (float, str))
        def set_terminated(self, id): pass

    stub(monkeypatch, "mlflow", MlflowClient=Client)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sessions(tmp_path, "mlflow")
    assert [s for s, k, _ in logged if k == "train/loss"] == [10, 20, 30, 40, 50, 60]
    assert logged[-1] == (60, "result/accuracy", .5)
    assert opened[:2] == [f"sqlite:///{tmp_path}/trackers/mlflow.db", (tmp_path/"trackers"/"mlflow").as_uri()]
    logged.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    sessions(tmp_path/"other", "mlflow")
    assert opened[-1] == "http://tracking.example"
