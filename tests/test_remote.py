"Sweeps whose runs are worked on by several machines: no two clocks are compared, and a URL is as good as a folder"
import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from conftest import ROOT, picture, set_everywhere
from dho_nb.core.settings import load_settings
from dho_nb.reports import results
from dho_nb.sweeps import executors, state
from dho_nb.cli.main import main
from dho_nb.sweeps.executors import Scheduler, run_sweep
from dho_nb.sweeps.grid import make_grid
from dho_nb.reports.html import html_report
from dho_nb.core.files import json_hash, read_json, write_json
from dho_nb.sweeps.state import Busy, sweep_run_state
from dho_nb.sweeps.worker import Worker, run_notebook_in_worker, run_worker_process
from dho_nb.sweeps.sweep import Sweep, open_sweep
from dho_nb.core.remote import open_remote
from dho_nb.sweeps.remote import local_copy_of_remote, mirror_remote, pull_remote, push_remote

DAY = 86400


@pytest.fixture
def clock(monkeypatch):
    "Time as the sweeps' module sees it, to be moved by hand"
    held = SimpleNamespace(time=time.time, now=0., strftime=time.strftime, sleep=lambda s: setattr(held, "now", held.now + s))
    held.monotonic = lambda: held.now
    set_everywhere(monkeypatch, "sweeps", time=held, _SEEN={})
    return held


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))


def quick(monkeypatch): set_everywhere(monkeypatch, "sweeps", BEAT=.2, SLACK=.3, CLAIM=.1)


@pytest.mark.parametrize("skew", [0, 90, -90, DAY, -DAY])
def test_another_machine_is_at_work_while_its_heartbeat_changes_whatever_its_clock_says(tmp_path, clock, skew):
    write_json(tmp_path/"run.json", {})
    beat = lambda n: write_json(tmp_path/".heartbeat.json", dict(host="other", pid=1, token="x", count=n,
                                                                 began=time.time() + skew, time=time.time() + skew))
    for n in range(20):
        beat(n)
        assert sweep_run_state(tmp_path)["state"] == "running"
        clock.now += state.BEAT
    beat(20)
    clock.time = lambda: time.time() - DAY  # set back during work
    assert sweep_run_state(tmp_path)["state"] == "running"
    clock.now += 3*state.BEAT
    assert sweep_run_state(tmp_path)["state"] == "running"
    clock.now += state.BEAT
    assert sweep_run_state(tmp_path)["state"] == "interrupted"


def test_a_process_of_this_machine_is_asked_for_by_its_number_and_start(tmp_path):
    write_json(tmp_path/"run.json", {})
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    beat = state._new_beat(other.pid)
    write_json(tmp_path/".heartbeat.json", beat)
    assert sweep_run_state(tmp_path)["state"] == "running"
    write_json(tmp_path/".heartbeat.json", dict(beat, start="1"))
    assert sweep_run_state(tmp_path)["state"] == "interrupted", "the number is another process's now"
    write_json(tmp_path/".heartbeat.json", beat)
    other.kill()
    until = time.time() + 10
    while sweep_run_state(tmp_path)["state"] == "running" and time.time() < until: time.sleep(.01)
    assert sweep_run_state(tmp_path)["state"] == "interrupted", "also before its parent has taken note"
    other.wait()


def test_a_container_of_the_same_name_does_not_have_its_run_taken(tmp_path, monkeypatch):
    quick(monkeypatch)
    config, place = make_grid("g", dict(preset="digits")).cells[0].parameters, tmp_path/"run"
    from dho_nb.runs.config import make_config
    beat, over = dict(state._new_beat(999999), machine="the same name, other process numbers", token="theirs"), threading.Event()
    write_json(place/".heartbeat.json", beat)
    def live():
        count = 0
        while not over.wait(.1): write_json(place/".heartbeat.json", dict(beat, count=(count := count + 1)))
    thread = threading.Thread(target=live); thread.start()
    try:
        for patient in (False, True):
            with pytest.raises(Busy, match="is working on run"): run_notebook_in_worker(make_config(config), place, patient=patient)
    finally: over.set(); thread.join()
    set_everywhere(monkeypatch, "sweeps", _execute=lambda *a: write_json(place/"result.json", {}))
    assert run_notebook_in_worker(make_config(config), place) == {}, "its heartbeat did not change any more"


def test_who_was_asleep_while_another_took_over_stops(tmp_path, monkeypatch):
    set_everywhere(monkeypatch, "sweeps", BEAT=.2)
    def start(command, env, log):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        threading.Timer(1, lambda: write_json(tmp_path/".heartbeat.json", dict(host="other", token="theirs"))).start()
        return process
    began = time.monotonic()
    with pytest.raises(Busy, match="other has taken .* over"): run_worker_process(["-c", ""], tmp_path, Worker(start=start))
    assert time.monotonic() - began < 40 and read_json(tmp_path/".heartbeat.json")["token"] == "theirs"


WORKER = """
import socket, sys, time
name, skew, url, seconds = sys.argv[1], float(sys.argv[2]), sys.argv[3], float(sys.argv[4])
now = time.time
time.time, socket.gethostname = lambda: now() + skew, lambda: name
from dho_nb.sweeps import remote, state
state.BEAT, state.SLACK, remote.CLAIM, remote.CARRY = .3, .3, .3, 1.
for name in ("BEAT", "SLACK"): setattr(remote, name, .3)
until = time.monotonic() + seconds
while time.monotonic() < until:
    try:
        with remote.mirror_remote(url, False) as (here, lost):
            print("took", flush=True)
            (here/f"by-{name}").write_text("work")
            while not lost.wait(.05) and time.monotonic() < until: pass
        print("kept", flush=True)
    except state.Busy: print("busy", flush=True); time.sleep(.2)
"""


def machine(tmp_path, name, skew, url, seconds=60):
    "A process that takes a run as a machine of some name with a clock of its own would"
    return subprocess.Popen([sys.executable, "-c", WORKER, name, str(skew), url, str(seconds)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, env={**os.environ, "DHO_CACHE": str(tmp_path/f"cache-{name}")})


def test_two_machines_with_clocks_apart_do_not_take_a_run_from_each_other(tmp_path):
    place = tmp_path/"bucket"/"run"
    write_json(place/".heartbeat.json", dict(host="third", pid=1, token="stopped", began=time.time(), time=time.time()))
    both = [machine(tmp_path, n, skew, f"file://{place}", 14) for n, skew in (("behind", -90), ("ahead", 90))]
    said = [p.communicate(timeout=120)[0].split() for p in both]
    held = [[after for before, after in zip(s, s[1:]) if before == "took"] for s in said]
    assert 1 <= len(sum(held, [])) <= 2, "the second one at most when the first one's time is over"
    assert {*sum(held, [])} == {"kept"}, said
    assert not (place/".heartbeat.json").exists()


def test_a_machine_that_is_gone_is_followed_by_another(tmp_path):
    url = f"file://{tmp_path}/bucket/run"
    first = machine(tmp_path, "first", DAY, url)
    assert first.stdout.readline() == "took\n"
    second = machine(tmp_path, "second", 0, url)
    assert second.stdout.readline() == "busy\n"
    first.kill(); first.wait()
    for line in second.stdout:
        if line == "took\n": break
    assert line == "took\n"
    second.kill(); second.wait()
    third = machine(tmp_path, "second", 0, url)  # on the machine of the second
    assert third.stdout.readline() == "took\n", "at once"
    third.kill(); third.wait()
    assert read_json(tmp_path/"bucket"/"run"/".heartbeat.json")["generation"] == 3


def test_who_lost_a_claim_carries_nothing_more(tmp_path, monkeypatch):
    quick(monkeypatch)
    far = tmp_path/"bucket"/"run"
    with pytest.raises(Busy, match="other has taken"), mirror_remote(f"file://{far}") as (here, lost):
        (here/"mine.txt").write_text("mine")
        held = read_json(far/".heartbeat.json")
        stale = dict(held, token="theirs", host="other", generation=held["generation"] - 1)
        write_json(far/".heartbeat.json", stale)
        assert not lost.wait(1), "a claim of before that comes late"
        write_json(far/".heartbeat.json", dict(stale, generation=held["generation"] + 1))
        assert lost.wait(5)
    assert [p.name for p in far.iterdir()] == [".heartbeat.json"] and read_json(far/".heartbeat.json")["token"] == "theirs"


def test_runs_that_wait_come_back_although_the_clock_was_set_back(tmp_path, monkeypatch):
    board = Scheduler(Sweep(make_grid("two", dict(preset="digits"), dict(seed=[0, 1])), tmp_path/"sweep"), "none")
    task = board.take("here")
    board.take("there")
    board.put(task, dict(kind="busy", text=""))
    later = time.monotonic() + 6
    monkeypatch.setattr(executors, "time", SimpleNamespace(time=lambda: time.time() - DAY, monotonic=lambda: later))
    assert board.take("here") == task


def place_of(kind, tmp_path): return f"memory://{tmp_path.name}" if kind == "memory" else f"file://{tmp_path}/bucket"


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_changed_file_of_equal_size_is_brought_and_an_unchanged_one_is_not(tmp_path, monkeypatch, kind):
    fs, root = open_remote(url := place_of(kind, tmp_path))
    fs.makedirs(root, exist_ok=True)
    here = tmp_path/"here"
    write = lambda name, data: fs.pipe_file(f"{root}/{name}", data)
    write("outputs.safetensors", b"one"), write("log.txt", b"aaa"), write("result.json", b'{"a": 1}')
    pull_remote(url, here)
    brought, get = [], fs.get_file
    monkeypatch.setattr(type(fs), "get_file", lambda self, far, *a, **k: (brought.append(far.rsplit("/")[-1]), get(far, *a, **k)))
    pull_remote(url, here)
    assert brought == []
    time.sleep(.02)
    write("outputs.safetensors", b"two")
    same = pull_remote(url, here)
    assert brought == ["outputs.safetensors"] and (here/"outputs.safetensors").read_bytes() == b"two" and len(same) == 3
    (here/"log.txt").write_bytes(b"bbb")
    pull_remote(url, here)
    assert (here/"log.txt").read_bytes() == b"aaa", "changed here"
    (here/"more.txt").write_bytes(b"more")
    push_remote(here, url, same)
    brought.clear()
    pull_remote(url, here)
    assert brought == [], "what was carried there is not brought back"


def test_a_file_system_that_tells_nothing_but_sizes_is_read_again(tmp_path, monkeypatch):
    fs, root = open_remote(url := place_of("memory", tmp_path))
    monkeypatch.setattr(type(fs), "find", lambda self, path, **k: {f"{root}/log.txt": dict(name="log.txt", size=3, type="file")})
    monkeypatch.setattr(type(fs), "exists", lambda self, path: True)
    for text in (b"one", b"two"):
        fs.pipe_file(f"{root}/log.txt", text)
        pull_remote(url, tmp_path/"here")
        assert (tmp_path/"here"/"log.txt").read_bytes() == text


def test_a_result_here_is_not_replaced_by_half_of_it_there(tmp_path, monkeypatch):
    quick(monkeypatch)
    far, url = tmp_path/"bucket"/"run", f"file://{tmp_path}/bucket/run"
    here = load_settings().cache/"remote"/json_hash(url)
    for place, text in ((here, "the whole model"), (far, "the who")):
        place.mkdir(parents=True)
        (place/"model.safetensors").write_text(text)
    write_json(here/"result.json", {})
    with mirror_remote(url): pass
    assert (far/"model.safetensors").read_text() == "the whole model" and (far/"result.json").exists()


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    "A sweep of one run at a URL"
    place = tmp_path_factory.mktemp("far")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DHO_CACHE", str(place/"cache"))
        set_everywhere(patched, "sweeps", CLAIM=.1)
        grid = make_grid("away", dict(preset="digits", epochs=1, method="ce"), dict(seed=[0]))
        assert list(run_sweep(grid, f"file://{place}/bucket/away", jobs=1, mode="none")["state"]) == ["done"]
    return f"file://{place}/bucket/away"


def test_every_verb_that_reads_a_sweep_takes_its_url(far, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_sweep(far).tasks[0].run
    photo = picture(tmp_path/"photo.png")
    for command, words in ((["status", far], "1 runs: 1 done"), (["logs", f"{far}/{run}"], "Executing Cell"),
                           (["table", far], "method"), (["report", far], "report.html: open it"),
                           (["predict", f"{far}/{run}", str(photo)], "prediction"),
                           (["predict", f"{far}/{run}/model.safetensors", str(photo)], "prediction"),
                           (["sweep", far], "all 1 runs of away are done")):
        assert main(command) == 0, capsys.readouterr().err
        assert words in capsys.readouterr().out, command
    assert (tmp_path/"report.html").exists()
    kept = results.record_results(far, tmp_path/"kept")
    assert list(results.load_results(far)["run"]) == list(results.load_results(kept)["run"]) == [run] == list(results.expected_results(far)["run"])
    assert html_report(f"{far}/{run}", tmp_path/"one.html").exists()
    assert not any(":" in p.name for p in tmp_path.iterdir())


def test_a_sweep_in_memory_is_read_likewise(far, tmp_path, capsys):
    there, (fs, root) = local_copy_of_remote(far, ()), open_remote(url := place_of("memory", tmp_path))
    push_remote(there, url, {})
    assert main(["status", url]) == 0 and "1 done" in capsys.readouterr().out
    fs.rm_file(f"{root}/{open_sweep(far).tasks[0].run}/result.json")
    fs.pipe_file(f"{root}/{open_sweep(far).tasks[0].run}/.heartbeat.json", json.dumps(dict(host="other", token="x")).encode())
    assert main(["status", f"{url}-2"]) == 2 and "holds no sweep" in capsys.readouterr().err


@pytest.mark.parametrize("place, said", [("s4://b/x", "did you mean 's3'"), ("s3://b/x", "pip install 'dho_nb[s3]'"),
                                         ("gs://b/x", "pip install gcsfs"), ("file:///no/where", "holds no sweep")])
def test_a_url_that_cannot_be_reached_says_why(place, said, capsys, monkeypatch):
    if "pip" in said: monkeypatch.setitem(sys.modules, said.split()[-1], None)
    assert main(["status", place]) == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report", "runs", "--out", "s3://b/p.html"], ["distill", "--preset", "digits", "--out", "s3://b/r"],
                                     ["predict", "m", "p", "--out", "s3://b/o.csv"], ["export", "m", "--out", "s3://b/e"],
                                     ["sweep", "g.toml", "--record", "s3://b/kept"], ["demo", "--out", "s3://b/d"]])
def test_nothing_is_written_to_a_folder_called_like_a_url(tmp_path, command, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2 and "a place on this machine, not s3://b/" in capsys.readouterr().err
    assert not list(tmp_path.glob("s3*"))
