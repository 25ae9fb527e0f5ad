"A sweep that is killed, starved and started again ends with the results of one that was left in peace"
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, drawn_seed, set_everywhere
from dho_nb.sweeps.executors import run_sweep, slurm_script
from dho_nb.reports.results import load_results
from dho_nb.sweeps.grid import make_grid, read_grid
from dho_nb.core.errors import DhoError
from dho_nb.core.files import read_json
from dho_nb.sweeps.worker import Worker, run_notebook_in_worker
from dho_nb.sweeps.sweep import Sweep, open_sweep
from dho_nb.sweeps.state import Ended, sweep_run_state
from test_resume import same_run

RUNS = int(os.environ.get("DHO_SWEEP_RUNS", 8))  # of each sweep; the figures of the benchmark were made with 100
GRID = f"""
jobs = 2
cpus = 1
retries = 9

[base]
preset = "digits"
epochs = 1
student_args = {{widths = [8, 8, 16, 16]}}

[axes]
seed = {list(range(RUNS//4))}
method = ["ce", "dho"]
amount = [{{shots = 1}}, {{fraction = 0.02}}]
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    file = tmp_path_factory.mktemp("grid")/"many.toml"
    file.write_text(GRID)
    return file


@pytest.fixture(scope="module")
def undisturbed(grid, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")/"sweep"
    assert (run_sweep(read_grid(grid), folder, mode="none")["state"] == "done").all()
    return folder


def start(grid, folder, *more, **env):
    return subprocess.Popen([sys.executable, "-m", "dho_nb.cli.main", "sweep", str(grid), "--out", str(folder), *more],
                            cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "DHO_PROGRESS": "lines", "DHO_DEVICE": "cpu",
                                 "DHO_CHECKPOINT_SECONDS": "0.1", **env})


def family(process):
    try: return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error: return []


def same_sweep(one, other):
    names = [c["run"] for c in read_json(one/"sweep.json")["cells"]]
    assert names == [c["run"] for c in read_json(other/"sweep.json")["cells"]] and len(names) == RUNS
    assert sorted(p.parent.name
                  for p in other.glob("*/result.json")) == sorted(names), "each result once, and no others"
    for name in names:
        same_run(one/name, other/name)
        assert (other/name/"notebook.ipynb").exists() and not (other/name/"failed.json").exists()
        assert not list((other/name).glob(".tmp*"))


def kernels(process): return [p for p in family(process) if p.name() == "dho-kernel"]


def kill_one(rng, process, kind):
    "Kill one of the sweep's processes of this kind, as soon as there is one; False: the sweep came to its end before"
    while process.poll() is None:
        among = kernels(process)
        with contextlib.suppress(psutil.Error, IndexError):
            rng.choice(among if kind == "kernel" else [p for p in family(process) if p not in among]).kill()
            return True
        time.sleep(.05)
    return False


def test_killed_at_random_moments(grid, undisturbed, tmp_path):
    rng, folder, wanted = random.Random(drawn_seed()), tmp_path/"sweep", 5 if RUNS >= 100 else 2
    kills, launches, done = {"sweep": 0, "worker": 0, "kernel": 0}, 0, 0
    longest = min(10, RUNS/4)  # eight runs are soon done
    while min(kills.values()) < wanted and done < RUNS:
        process, launches, patient = start(grid, folder), launches + 1, rng.random() < .8
        while patient and process.poll() is None and not kernels(process): time.sleep(.1)
        time.sleep(rng.uniform(0, longest))
        for kind in rng.sample(["worker", "kernel"], 2):
            kills[kind] += kill_one(rng, process, kind)
            time.sleep(rng.uniform(0, longest/3))
        kills["sweep"] += process.poll() is None
        process.kill()
        process.wait()
        done = len(list(folder.glob("*/result.json")))
    assert min(kills.values()) >= 1, kills
    last = start(grid, folder)
    said = last.communicate(timeout=600 + 20*RUNS)[0]
    assert last.returncode == 0, said
    same_sweep(undisturbed, folder)
    print(f"killed: {kills} in {launches} launches, {done} runs done when left in peace")


def test_asked_to_stop_and_started_again(grid, undisturbed, tmp_path):
    process = start(grid, tmp_path/"sweep")
    until = time.time() + 120
    while not list((tmp_path/"sweep").glob("*/result.json")) and time.time() < until: time.sleep(.1)
    others = family(process)
    assert kernels(process)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 130 and "the same command goes on from where it was" in said, said
    assert not psutil.wait_procs(others, timeout=5)[1], "nobody goes on working"
    assert not list((tmp_path/"sweep").glob("*/failed.json")), "to be stopped is no failure"
    again = start(grid, tmp_path/"sweep")
    assert again.wait(600 + 20*RUNS) == 0, again.stdout.read()
    same_sweep(undisturbed, tmp_path/"sweep")


def test_two_sweeps_share_the_work(grid, undisturbed, tmp_path):
    both = [start(grid, tmp_path/"sweep", "--jobs", "1") for _ in range(2)]
    said = [p.communicate(timeout=600 + 20*RUNS)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    same_sweep(undisturbed, tmp_path/"sweep")


def test_a_run_by_itself_is_the_same(undisturbed, tmp_path):
    task = open_sweep(undisturbed).tasks[-1]
    run_notebook_in_worker(task.config, tmp_path/"run", Worker(threads=1))
    same_run(undisturbed/task.run, tmp_path/"run")


def test_a_finished_sweep_is_left_alone(grid, undisturbed):
    stamps = lambda: {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    before, process = stamps(), start(grid, undisturbed)
    assert f"all {RUNS} runs of many are done" in process.communicate(timeout=60)[0]
    assert undisturbed/"sweep.json" in before and stamps() == before


def test_what_a_record_holds_is_not_done_again(grid, tmp_path, dho):
    small = tmp_path/"small.toml"
    small.write_text(GRID.replace(f"seed = {list(range(RUNS//4))}", "seed = [0]").replace('["ce", "dho"]', '["ce"]'))
    said = [start(small, tmp_path/f"sweep{i}", "--only", str(i), "--record", str(tmp_path/"record"))
            .communicate(timeout=300)[0] for i in (0, 1)]
    assert len(load_results(tmp_path/"record")) == 2, said  # what the second did not look at stays in the record
    code, out, err = dho("sweep", small, "--out", tmp_path/"other", "--record", tmp_path/"record")
    assert code == 0 and "all 2 runs" in out and not list((tmp_path/"other").glob("*/result.json")), out + err


@pytest.fixture
def small_disk(tmp_path):
    "A file system of a few megabytes"
    place = tmp_path/"disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={64 + 2*RUNS}m", "tmpfs", str(place)],
                      capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)])


def test_starved_of_disk(grid, undisturbed, small_disk):
    ballast = small_disk/"ballast"
    process = start(grid, small_disk/"sweep")
    until = time.time() + 120
    while not list((small_disk/"sweep").glob("*/result.json")) and time.time() < until: time.sleep(.05)
    with open(ballast, "wb") as f:
        try:
            while f.write(b"\0"*65536): f.flush()
        except OSError: pass
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2 and "the disk is full" in said, said
    done = {p: p.read_bytes() for p in (small_disk/"sweep").glob("*/result.json")}
    ballast.unlink()
    again = start(grid, small_disk/"sweep")
    assert again.wait(600 + 20*RUNS) == 0, again.stdout.read()
    assert done and all(p.read_bytes() == held for p, held in done.items())
    same_sweep(undisturbed, small_disk/"sweep")


@pytest.mark.parametrize("change, said", [
    ('epoch = 1', "did you mean 'epochs'"), ('method = "dhoo"', "did you mean 'dho'"),
    ('lr = "fast"', "lr must be of type float"), ('student = "resnet81"', "did you mean 'resnet18'")])
def test_mistakes_are_refused_before_anything_starts(tmp_path, dho, change, said):
    (tmp_path/"bad.toml").write_text(f'[base]\npreset = "digits"\n{change}\n[axes]\nseed = [0, 1]\n')
    code, out, err = dho("sweep", tmp_path/"bad.toml")
    assert code == 2 and said in err and not (tmp_path/"runs"/"bad").exists()


def test_a_dataset_that_changed_is_refused_by_name(tmp_path, tree):
    grid = make_grid("own", dict(dataset=str(tree), test=.25, shots=2, teacher="digits", student="tiny",
                                 student_weights="", size=16, epochs=1), dict(seed=[0]))
    assert list(run_sweep(grid, tmp_path/"sweep", mode="none")["state"]) == ["done"]
    (tree/"cat"/"0.png").rename(tree/"dog"/"moved.png")
    with pytest.raises(DhoError, match=f"the images or labels of {tree} changed"): Sweep(grid, tmp_path/"sweep")
    (tree/"dog"/"moved.png").rename(tree/"cat"/"0.png")
    assert list(Sweep(grid, tmp_path/"sweep").states()["state"]) == ["done"]


def test_a_slurm_job_does_its_run(grid, tmp_path):
    sweep = Sweep(read_grid(grid), tmp_path/"sweep").begin()
    (tmp_path/"array.sh").write_text(slurm_script(grid, sweep))
    done = subprocess.run(["bash", str(tmp_path/"array.sh")],
                          env={**os.environ, "SLURM_ARRAY_TASK_ID": "1", "DHO_DEVICE": "cpu"}, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [sweep_run_state(sweep.place(t))["state"] for t in sweep.tasks][:3] == ["pending", "done", "pending"]
    assert "--array=0,2-" in slurm_script(grid, sweep)


def test_a_job_of_an_array_says_how_its_own_run_ended(tmp_path, dho):
    (tmp_path/"g.toml").write_text(GRID.replace('method = ["ce", "dho"]', 'method = ["ce"]'))
    sweep = Sweep(read_grid(tmp_path/"g.toml"), tmp_path/"sp ace/100%a").begin()
    sweep.place(sweep.tasks[0]).mkdir(parents=True)
    (sweep.place(sweep.tasks[0])/"failed.json").write_text(json.dumps(dict(attempts=99, reason="no memory")))
    code, out, err = dho("sweep", tmp_path/"g.toml", "--out", sweep.folder, "--only", "1")
    assert code == 0 and "no memory" in out, err
    script = slurm_script(tmp_path/"g.toml", sweep, record=tmp_path/"kept")
    assert "--ntasks=1" in script and f"--output='{tmp_path}/sp ace/100%%a/slurm-%A_%a.out'" in script
    assert f"--record {tmp_path}/kept" in script
    (tmp_path/"mine.sh").write_text("my own")
    code, out, err = dho("sweep", tmp_path/"g.toml", "--out", sweep.folder, "--slurm", tmp_path/"mine.sh")
    assert code == 2 and "is there already" in err and (tmp_path/"mine.sh").read_text() == "my own"


def test_a_result_that_cannot_be_brought_does_not_stop_the_others(tmp_path):
    from dho_nb.sweeps.executors import Scheduler
    board = Scheduler(Sweep(make_grid("two", dict(preset="digits"), dict(seed=[0, 1])), tmp_path/"sweep"), "none")
    def gone(task): raise OSError("no route")
    board.sweep.bring = gone
    task = board.take("here")
    board.put(task, dict(kind="done", text="", accuracy=.5, seconds=1.))
    assert not board.running and board.counts["done"] == 0 and task in board.pending
    for _ in range(20):
        if task in board.pending:
            board.pending.remove(task); board.put(task, dict(kind="lost", text="away"))
    assert board.counts["failed"] == 1, "a run that is lost again and again is not begun for ever"


def test_images_without_an_embedding_are_left_out_of_plan_and_run_alike(tree, tmp_path):
    from dho_nb.runs.config import make_config
    from dho_nb.runs.run import Run
    from dho_nb.sweeps.sweep import sweep_tasks
    paths = sorted(f"{p.parent.name}/{p.name}" for p in tree.rglob("*.png"))[2:]
    np.savez(tmp_path/"own.npz", paths=paths, embeddings=np.eye(len(paths), 8) + .1, classes=["cat", "dog"],
             text=np.eye(2, 8))
    base = dict(dataset=str(tree), embeddings=str(tmp_path/"own.npz"), student="tiny", student_weights="", size=16,
                skip_broken=True)
    (task,), _ = sweep_tasks(make_grid("own", base))
    run = Run(make_config(base), tmp_path/"run", "none")
    assert task.identity == run.identity and run.manifest.table["path"].tolist() == paths


def test_a_far_sweep_brings_the_newer_checkpoint_and_its_plan(tmp_path, monkeypatch):
    from dho_nb.sweeps.remote import pull_remote
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    far = f"memory://{tmp_path.name}"
    sweep = Sweep(make_grid("far", dict(preset="digits"), dict(seed=[0])), far).begin()
    from dho_nb.core.remote import open_remote
    fs, root = open_remote(far)
    fs.rm_file(f"{root}/sweep.json")
    Sweep(sweep.grid, far).begin()
    assert fs.exists(f"{root}/sweep.json")
    fs.pipe_file(f"{root}/run/checkpoint.safetensors", b"step 900")
    (tmp_path/"checkpoint.safetensors").write_bytes(b"step 100")
    pull_remote(f"{far}/run", tmp_path, skip=())
    assert (tmp_path/"checkpoint.safetensors").read_bytes() == b"step 900"


def test_weights_of_a_teacher_that_were_replaced_are_seen(tmp_path, monkeypatch):
    from dho_nb.sweeps.sweep import sweep_files_hash
    monkeypatch.chdir(tmp_path)
    grid = make_grid("mine", dict(preset="digits", teacher="ViT-B-16/mine.safetensors"))
    (tmp_path/"mine.safetensors").write_bytes(b"one")
    before = sweep_files_hash(grid)
    (tmp_path/"mine.safetensors").write_bytes(b"another")
    assert sweep_files_hash(grid) != before


def test_a_sweep_by_its_folder_is_checked_as_by_its_file(tmp_path, monkeypatch):
    import dho_nb
    sweep = Sweep(make_grid("old", dict(preset="digits"), dict(seed=[0])), tmp_path/"old").begin()
    sweep.place(sweep.tasks[0]).mkdir()
    assert open_sweep(tmp_path/"old", go_on=True).tasks[0].identity == sweep.tasks[0].identity
    monkeypatch.setattr(dho_nb, "__version__", "9.9.9")
    with pytest.raises(DhoError, match="9.9.9 now"): open_sweep(tmp_path/"old", go_on=True)


def test_a_result_that_never_arrived_is_carried_by_the_next_call(tmp_path, monkeypatch):
    from dho_nb.sweeps import remote
    from dho_nb.sweeps.sweep import sweep_tasks
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    far, carry, sent = f"file://{tmp_path}/bucket/run", remote.push_remote, []
    config = make_grid("far", dict(preset="digits", epochs=1, method="ce"), dict(seed=[0])).cells[0]
    task = sweep_tasks(make_grid("far", config.parameters))[0][0]
    set_everywhere(monkeypatch, "sweeps", CLAIM=.1, CARRY=1e6)
    def broken(local, url, known):
        if (local/"result.json").exists() and not sent:
            (tmp_path/"bucket"/"run"/"log.txt").write_text("half way")  # carried while it was at work
            sent.append(1); raise OSError("the network is unreachable")
        carry(local, url, known)
    set_everywhere(monkeypatch, "sweeps", push_remote=broken)
    with pytest.raises(OSError): run_notebook_in_worker(task.config, far, Worker(threads=1))
    assert {p.name for p in (tmp_path/"bucket"/"run").iterdir()} == {".heartbeat.json", "log.txt"}
    found = run_notebook_in_worker(task.config, far, Worker(threads=1))
    assert read_json(tmp_path/"bucket"/"run"/"result.json") == found
    assert not (tmp_path/"bucket"/"run"/".heartbeat.json").exists()
    assert (tmp_path/"bucket"/"run"/"log.txt").read_text() != "half way", "what is here is newer"


def test_a_far_run_that_another_machine_has_begun_is_left_to_it(tmp_path, monkeypatch):
    from dho_nb.sweeps.remote import mirror_remote
    from dho_nb.sweeps.state import Busy
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    place = tmp_path/"bucket"/"run"
    place.mkdir(parents=True)
    (place/".heartbeat.json").write_text(json.dumps(dict(host="another", pid=1, began=time.time(), time=time.time())))
    with pytest.raises(Busy, match="another is working on .*run"), mirror_remote(f"file://{place}", False):
        raise AssertionError
    assert sorted(p.name for p in place.iterdir()) == [".heartbeat.json"]
    assert "another" in (place/".heartbeat.json").read_text()


def test_a_newer_checkpoint_here_is_not_replaced_by_an_older_one(tmp_path):
    from safetensors.torch import save_file
    from dho_nb.sweeps.remote import pull_remote
    made = lambda place, step: save_file(dict(x=torch.ones(step)), place/"checkpoint.safetensors",
                                         dict(state=json.dumps(dict(step=step))))
    (tmp_path/"far").mkdir(), (tmp_path/"near").mkdir()
    made(tmp_path/"far", 1), made(tmp_path/"near", 9)
    assert pull_remote(f"file://{tmp_path}/far", tmp_path/"near", skip=()) == {}
    assert len(load_file(tmp_path/"near"/"checkpoint.safetensors")["x"]) == 9
    made(tmp_path/"far", 10)
    assert len(pull_remote(f"file://{tmp_path}/far", tmp_path/"near", skip=())) == 1
    assert len(load_file(tmp_path/"near"/"checkpoint.safetensors")["x"]) == 10


def test_data_that_are_edited_while_a_sweep_works_are_not_mixed_in(tree, tmp_path):
    (tmp_path/"labels.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    base = dict(dataset=str(tree), labels=str(tmp_path/"labels.csv"), teacher="digits", student="tiny",
                student_weights="", size=16, epochs=1)
    sweep = Sweep(make_grid("own", base, dict(seed=[0])), tmp_path/"sweep").begin()
    (tmp_path/"labels.csv").write_text("path,label\ncat/0.png,dog\ndog/0.png,cat\n")
    found = run_sweep(sweep, mode="none")
    assert list(found["state"]) == ["failed"] or found["state"][0] == "interrupted"
    place = sweep.place(sweep.tasks[0])
    assert not (place/"result.json").exists() and len(list(place.glob("result-*.json"))) == 1
    with pytest.raises(DhoError, match="were changed while the sweep was at work"):
        run_notebook_in_worker(sweep.tasks[0].config, place, identity=sweep.tasks[0].identity)


def test_an_axis_more_keeps_what_is_done(tmp_path):
    base = dict(preset="digits", epochs=1, method="ce")
    first = Sweep(make_grid("one", base, dict(lr=[.003])), tmp_path/"sweep").begin()
    run_notebook_in_worker(first.tasks[0].config, first.place(first.tasks[0]), Worker(threads=1))
    more = Sweep(make_grid("one", base, dict(lr=[.003], seed=[0, 1])), tmp_path/"sweep")
    assert list(more.states()["state"]) == ["done", "pending"]
    assert more.tasks[0].run == first.tasks[0].run != more.tasks[1].run


def test_another_sweep_does_not_take_over_a_folder(tree, tmp_path):
    first = Sweep(make_grid("one", dict(preset="digits"), dict(seed=[0])), tmp_path/"sweep").begin()
    first.place(first.tasks[0]).mkdir()
    Sweep(make_grid("one", dict(preset="digits", epochs=3), dict(seed=[0])), tmp_path/"sweep")
    for other in (make_grid("two", dict(preset="digits", epochs=3)),
                  make_grid("one", dict(dataset=str(tree), teacher="digits", student="tiny", size=16))):
        with pytest.raises(DhoError, match="holds the sweep one, which has no run in common"):
            Sweep(other, tmp_path/"sweep")


def test_every_set_up_goes_through_papermill_as_it_is(tmp_path):
    import yaml
    from dataclasses import asdict
    from dho_nb.sweeps.state import Failed
    from dho_nb.runs.config import preset
    from dho_nb.runs.presets import PRESETS
    seen = {}
    def instead(command, folder, slot, more):
        seen.update(yaml.safe_load((folder/".papermill"/"parameters.yaml").read_text()))
        return 1, "Error: enough"
    for name in PRESETS:
        place = tmp_path/name.replace("/", "-")
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Failed):
            set_everywhere(patched, "sweeps", run_worker_process=instead)
            run_notebook_in_worker(preset(name), place)
        assert seen == json.loads(json.dumps(dict(asdict(preset(name)), out=str(place)))), name


def test_two_axes_cannot_both_say_how_many_labels():
    with pytest.raises(DhoError, match="shots and fraction both say"):
        make_grid("x", dict(preset="digits"), dict(shots=[1, 2], fraction=[.01, .1]))


def test_status_and_logs(grid, undisturbed, tmp_path, dho):
    code, out, err = dho("status", undisturbed)
    assert code == 0 and f"{RUNS} runs: {RUNS} done" in out
    name = open_sweep(undisturbed).tasks[0].run
    code, out, err = dho("logs", undisturbed/name)
    assert code == 0 and "Executing Cell" in out
    code, out, err = dho("status", "nothing")
    assert code == 2 and "no grid or sweep nothing" in err


def test_one_broken_plan_does_not_hide_the_other_sweeps(tmp_path, dho):
    Sweep(make_grid("good", dict(preset="digits"), dict(seed=[0])), tmp_path/"runs"/"good").begin()
    (tmp_path/"runs"/"bad").mkdir()
    (tmp_path/"runs"/"bad"/"sweep.json").write_text("{")
    code, out, err = dho("status")
    assert code == 0 and "runs/bad: cannot read" in out and "1 runs: 1 pending" in out, out + err
    code, out, err = dho("status", "bad")
    assert code == 2 and "cannot read" in err


def test_two_nodes_of_a_cluster_and_one_is_lost(grid, undisturbed, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'dho_nb[ray]'")
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
    other = cluster.add_node(num_cpus=1)
    try:
        process = start(grid, tmp_path/"sweep", "--executor", "ray", "--address", cluster.address)
        until = time.time() + 180
        while len(list((tmp_path/"sweep").glob("*/result.json"))) < 2 and time.time() < until: time.sleep(.2)
        cluster.remove_node(other, allow_graceful=False)
        said = process.communicate(timeout=600 + 20*RUNS)[0]
        assert process.returncode == 0, said
    finally: cluster.shutdown()
    same_sweep(undisturbed, tmp_path/"sweep")


@pytest.mark.parametrize("letter", ["a", "é", "京"])
def test_long_values_of_an_axis_make_names_that_a_file_system_takes(tmp_path, letter):
    from dho_nb.core.files import write_json
    axes = dict(variant=[dict(name=letter*300 + end, lr=lr) for end, lr in (("1", .01), ("2", .02))])
    sweep = Sweep(make_grid("long", dict(preset="digits"), axes), tmp_path/"sweep").begin()
    assert len({t.run for t in sweep.tasks}) == 2 and max(len(os.fsencode(t.run)) for t in sweep.tasks) < 140
    for t in sweep.tasks: sweep.place(t).mkdir()
    assert list(sweep.states()["state"]) == ["pending", "pending"]
    file = tmp_path/(letter*(240//len(letter.encode())) + ".json")
    write_json(file, {})
    left = subprocess.Popen([sys.executable, "-c", "import os, sys; from dho_nb.core.files import atomic_path\n"
                             "with atomic_path(sys.argv[1]) as t: t.touch(); os.kill(os.getpid(), 9)", str(file)], cwd=ROOT)
    assert left.wait() == -9 and len(list(tmp_path.glob(".tmp-*"))) == 1
    write_json(file, {})
    assert not list(tmp_path.glob(".tmp-*")), "what a killed writer left goes"
    with pytest.raises(DhoError, match="at most 150 bytes"): make_grid(letter*300, dict(preset="digits"))


def test_a_folder_of_images_with_a_long_name(tmp_path, tree, monkeypatch):
    from dho_nb.runs.config import make_config
    from dho_nb.runs.run import Run
    for name in ("RUNS", "CACHE"): monkeypatch.setenv(f"DHO_{name}", str(tmp_path/name))
    far = tree.rename(tmp_path/("папка"*25))
    run = Run(make_config(dict(dataset=str(far), teacher="digits", student="tiny", student_weights="", size=16, shots=2,
                               test=.25)), mode="none")
    assert len(os.fsencode(run.folder.name)) < 200
    assert run.prepare()["teacher"], "the store has a name, too"


def test_planning_for_one_run_looks_at_its_data_alone(tmp_path, tree, dho, monkeypatch):
    from dho_nb.runs import inputs
    other = shutil.copytree(tree, tmp_path/"other")
    grid = make_grid("g", dict(teacher="digits", student="tiny", student_weights="", size=16, epochs=1, shots=2, test=.25),
                     dict(dataset=[str(tree), str(other)], seed=[0, 1]))
    opened, tried, open_dataset = [], [], inputs.open_dataset
    set_everywhere(monkeypatch, open_dataset=lambda c: (opened.append(c.dataset), open_dataset(c))[1], _store_line=lambda c: c.dataset)
    monkeypatch.setattr("dho_nb.runs.dry_run.dry_run_student", lambda c, *a: (tried.append(c.seed), (.1, 10))[1])
    part = Sweep(grid, tmp_path/"sweep", [3])
    said = part.estimate(1, [3])
    assert opened == [str(other)] and len(tried) == 1 and said["store 1"] == str(other) and "store 2" not in said
    assert [bool(t.identity) for t in part.tasks] == [False, False, False, True] and not (tmp_path/"sweep").exists()
    late = Sweep(grid, tmp_path/"sweep", [0])
    part.begin()
    assert part.begin().place(part.tasks[3]).name.endswith(part.tasks[3].identity[:8])
    late.begin()
    cells = read_json(tmp_path/"sweep"/"sweep.json")["cells"]
    assert [bool(c["identity"]) for c in cells] == [True, False, False, True], "nothing that was found out is forgotten"
    assert [bool(t.identity) for t in Sweep(grid, tmp_path/"sweep", [1]).tasks] == [True, True, False, True]
    whole = Sweep(grid, tmp_path/"sweep").begin()
    assert [t.identity for t in whole.tasks][3] == part.tasks[3].identity and all(t.identity for t in whole.tasks)
    opened.clear()
    assert [t.run for t in Sweep(grid, tmp_path/"sweep", [1]).tasks] == [t.run for t in whole.tasks] and not opened
    with pytest.raises(DhoError, match="run .*-fast: parameter lr must be"):
        tasks = dict(dataset=[str(tree)], lr=[.1, "fast"])
        Sweep(make_grid("bad", dict(teacher="digits", student="tiny"), tasks), tmp_path/"bad", [0])


def test_a_slurm_array_keeps_below_what_the_cluster_takes(tmp_path, monkeypatch):
    from dho_nb.sweeps import executors
    from dho_nb.cli.sweep import _positions
    sweep = Sweep(make_grid("many", dict(preset="digits"), dict(seed=list(range(23)))), tmp_path/"sweep").begin()
    script = slurm_script(tmp_path/"sweep", sweep, most=10)
    assert "--array=0-7%8" in script and "MaxArraySize is 10: a job does up to 3 of the 23 runs" in script
    (tmp_path/"array.sh").write_text(re.sub("^exec .*--only", "echo", script, flags=re.M).replace("--jobs 1", ""))
    said = [subprocess.run(["bash", tmp_path/"array.sh"], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(i)},
                           capture_output=True, text=True).stdout.strip() for i in range(8)]
    assert sum([_positions(text) for text in said], []) == list(range(23)), said
    assert "--array=0-22%8" in slurm_script(tmp_path/"sweep", sweep, most=23) and "--array=0-22%8" in slurm_script(
        tmp_path/"sweep", sweep), "Slurm's own 1,001"
    for t in sweep.tasks[:20]:
        sweep.place(t).mkdir(); (sweep.place(t)/"result.json").write_text("{}")
    assert "--array=0-2%8" in (late := slurm_script(tmp_path/"sweep", sweep, most=20)) and "RUNS=(20 21 22)" in late
    tool = tmp_path/"bin"/"scontrol"
    tool.parent.mkdir()
    tool.write_text("#!/bin/bash\necho 'MaxArraySize            = 21'\n"); tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert executors.max_array_size() == 21 and "RUNS=(20 21 22)" in slurm_script(tmp_path/"sweep", sweep)


@pytest.mark.parametrize("text, found", [("3", [3]), ("0-2,7", [0, 1, 2, 7]), ("", None), ("-1", None), ("3-1", None),
                                         ("0-99999999999", None), ("x", None), ("1,", None)])
def test_positions_are_written_as_ranges(text, found):
    import argparse
    from dho_nb.cli.sweep import _positions
    if found: assert _positions(text) == found
    else: pytest.raises(argparse.ArgumentTypeError, _positions, text)


def test_what_a_run_does_not_have_yet_says_what_makes_it(tmp_path):
    from dho_nb.runs.config import preset
    from dho_nb.runs.run import Run
    run = Run(preset("digits", epochs=1, method="ce"), tmp_path/"run", "none")
    for ask, way in ((lambda: run.part("test"), "call evaluate"), (run.figures, "call evaluate"), (lambda: run.alpha, "call evaluate"),
                     (lambda: run.outputs, "call evaluate"), (lambda: run.result, "call train"), (run.finish, "call train")):
        with pytest.raises(DhoError, match=way): ask()
    assert not hasattr(run, "outputs") and not hasattr(run, "nothing")
    with pytest.raises(AttributeError, match="nothing"): run.nothing
    run.train(); run.evaluate()
    assert len(run.part("test")) and run.figures()


def test_every_end_of_an_attempt_is_in_the_log(tmp_path):
    from dho_nb.sweeps.state import sweep_run_attempts
    from dho_nb.sweeps.worker import run_worker_process
    outcomes = lambda: [attempt["outcome"] for attempt in sweep_run_attempts(tmp_path)]
    code, said = run_worker_process(["-c", "print('── a line of its own')"], tmp_path)
    assert (code, said) == (0, "── a line of its own\n") and outcomes() == ["done"]
    assert run_worker_process(["-c", "1/0"], tmp_path)[0] == 1 and outcomes()[-1] == "failed"
    with pytest.raises(Ended): run_worker_process(["-c", "import time; time.sleep(60)"], tmp_path, Worker(stop=lambda: True))
    assert outcomes()[-1] == "stopped"
    with open(tmp_path/"log.txt", "a") as log: log.write("── 2026-01-01 00:00:00 on a machine that went down\n")
    os.utime(tmp_path/"log.txt", (2e9, 2e9))
    assert outcomes()[-1] == "killed"
    run_worker_process(["-c", "pass"], tmp_path)
    attempts = sweep_run_attempts(tmp_path)
    assert outcomes() == ["done", "failed", "stopped", "killed", "done"] and attempts[3]["ended"].timestamp() == 2e9
    (tmp_path/"log.txt").unlink()
    assert outcomes() == []
