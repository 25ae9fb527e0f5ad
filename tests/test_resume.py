"A run that was stopped, however rudely, ends with the same bits as one that was not"
import json
import os
import random
import signal
import subprocess
import sys
import time

import jupyter_client
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from conftest import ROOT, drawn_seed

COMMAND = [sys.executable, "-m", "dho_nb.cli.main", "distill", "--preset", "digits"]


def start(folder, epochs=8, **env):
    return subprocess.Popen([*COMMAND, "--epochs", str(epochs), "--out", str(folder)], cwd=ROOT, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "DHO_PROGRESS": "none", "DHO_DEVICE": "cpu", "OMP_NUM_THREADS": "1",
                                 "DHO_CHECKPOINT_SECONDS": "0.2", **env})


def same_run(a, b):
    one, other = load_file(a/"model.safetensors"), load_file(b/"model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    kept, again = load_file(a/"outputs.safetensors"), load_file(b/"outputs.safetensors")
    assert kept.keys() == again.keys() and all(torch.equal(kept[k], again[k]) for k in kept)
    pd.testing.assert_frame_equal(pd.read_csv(a/"history.csv"), pd.read_csv(b/"history.csv"), rtol=0, atol=0)
    assert (a/"predictions.csv").read_bytes() == (b/"predictions.csv").read_bytes()
    timeless = lambda f: {k: v for k, v in json.loads((f/"result.json").read_text())
                          .items() if k not in ("seconds", "teacher_looked")}
    assert timeless(a) == timeless(b)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")/"run"
    process = start(folder)
    assert process.wait(300) == 0, process.stdout.read()
    return folder


def wait_for(file, process, seconds=120):
    until = time.time() + seconds
    while not file.exists() and process.poll() is None and time.time() < until: time.sleep(.02)
    assert file.exists(), process.stdout.read() if process.poll() is not None else "nothing after two minutes"


def test_killed_at_random_moments(unbroken, tmp_path):
    rng, kills = random.Random(drawn_seed()), 0
    for attempt in range(40):
        process = start(tmp_path/"run")
        if kills >= 6: break
        wait_for(tmp_path/"run"/"run.json", process)
        time.sleep(rng.uniform(0, 2.5))
        if process.poll() is not None: break
        process.kill()
        process.wait()
        kills += 1
        assert not (tmp_path/"run"/"result.json").exists() or json.loads((tmp_path/"run"/"result.json").read_text())
    assert process.wait(300) == 0, process.stdout.read()
    assert kills > 0
    same_run(unbroken, tmp_path/"run")


@pytest.mark.parametrize("number, workers", [(signal.SIGINT, "2"), (signal.SIGTERM, "0"), (signal.SIGTERM, "2")])
def test_the_process_group_is_asked_to_stop_in_mid_epoch(unbroken, tmp_path, number, workers):
    process = start(tmp_path/"run", DHO_WORKERS=workers)
    wait_for(tmp_path/"run"/"checkpoint.safetensors", process)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "goes on from" in said and not (tmp_path/"run"/"result.json").exists()
    with safe_open(tmp_path/"run"/"checkpoint.safetensors", "pt") as kept: state = json.loads(kept.metadata()["state"])
    assert f"stopped after step {state['step']} of {state['steps']}" in said
    again = start(tmp_path/"run")
    assert again.wait(300) == 0, again.stdout.read()
    same_run(unbroken, tmp_path/"run")


def test_the_stop_button_of_a_notebook(tmp_path):
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", cwd=str(ROOT),
                                                              env={**os.environ, "DHO_DEVICE": "cpu",
                                                                   "OMP_NUM_THREADS": "1"})
    try:
        shown = []
        ask = lambda source: client.execute_interactive(source, timeout=180,
                                                        output_hook=lambda m: shown.append(m))["content"]
        assert ask(f"from dho_nb.runs.config import *; from dho_nb.runs.dataset import *; from dho_nb.runs.identity import *; from dho_nb.runs.run import *; run = Run(preset('digits', epochs=300), "
                   f"r'{tmp_path/'run'}')")["status"] == "ok", shown[-1]
        sent = client.execute("run.train()")
        time.sleep(6)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        while reply["parent_header"].get("msg_id") != sent: reply = client.get_shell_msg(timeout=60)
        assert reply["content"]["status"] == "error" and reply["content"]["ename"] == "TrainingStopped", reply["content"]
        assert (tmp_path/"run"/"checkpoint.safetensors").exists()
        # What reaches a kernel just after an error is not run
        while (status := ask("assert 0 < run.trainer.step < run.trainer.steps")["status"]) == "aborted": time.sleep(.2)
        assert status == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_two_processes_do_not_share_a_folder(tmp_path):
    first = start(tmp_path/"run", epochs=1000)
    wait_for(tmp_path/"run"/"checkpoint.safetensors", first)
    second = start(tmp_path/"run", epochs=1000)
    said = second.communicate(timeout=120)[0]
    first.kill()
    assert second.returncode == 2 and "another process is working in" in said


PROCESS = """
import os, sys
from dho_nb.runs.config import preset
from dho_nb.runs.run import Run
run = Run(preset("digits", epochs=2, method=sys.argv[2], views=int(sys.argv[3]) or "live"), sys.argv[1], "none")
if sys.argv[4] == "prepared": run.prepare(); os.kill(os.getpid(), 9)
if sys.argv[4] == "trained": run.build_trainer().train(run.trainer.steps//2, "none"); os.kill(os.getpid(), 9)
run.train(); run.finish()
"""


@pytest.mark.parametrize("method, views", [("dho", 0), ("sho-tuned", 2)])
def test_a_teachers_images_are_counted_over_all_processes(tmp_path, method, views):
    counts = []
    for name, kills in (("straight", []), ("stopped", ["prepared", "trained"])):
        for kill in [*kills, ""]:
            done = subprocess.run([sys.executable, "-c", PROCESS, str(tmp_path/name), method, str(views), kill], cwd=ROOT,
                                  env={**os.environ, "DHO_CACHE": str(tmp_path/f"cache-{name}"), "DHO_DEVICE": "cpu"})
            assert done.returncode == (-9 if kill else 0)
        counts.append(json.loads((tmp_path/name/"result.json").read_text())["teacher_looked"])
        assert not (tmp_path/name/".begun.json").exists()
    assert counts[0] == counts[1] > 2000
