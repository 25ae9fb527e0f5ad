"Several processes that train one student: the same batches, the same losses, every test image once, and a number of processes that may change"
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
from safetensors import safe_open

from conftest import ROOT

STEPS = """
import json, sys
import torch
from dho_nb.runs.config import preset
from dho_nb.runs.run import Run
torch.set_num_threads(1)
for k, changes in enumerate(json.loads(sys.argv[2])):
    run = Run(preset("digits", epochs=2, lr=1e-4, **changes), f"{sys.argv[1]}/{k}", "none")
    trainer, losses = run.build_trainer(), []
    trainer.model.train()
    for step in range(4):
        trainer.train_step(trainer.streams[trainer.step])
        cosines = trainer.conflict[step] if trainer.conflict is not None else []
        size = torch.stack([kept["exp_avg"].norm() for kept in trainer.optimizer.state.values()]).norm()  # of the gradients: Adam's steps hide it
        losses.append([v.item() for v in [*trainer._epoch_sums().values(), *cosines, size]])
    if run.machine.dist_env.is_main: print(json.dumps(losses))
"""
CHANGES = [{}, dict(method="ce-kd-feature"), dict(accumulate=2), dict(method="dkd-dho", batch_labeled=1),
           dict(views="live"), dict(method="pcgrad", accumulate=2, conflict=True),
           dict(precision="bf16", unlabeled=False)]
CLOSE = [1e-4]*5 + [2e-2, 5e-2]  # cosines of float32 gradients through batch norm are good to two digits, bf16 likewise


def together(count, *command, wait=240, **more):
    start = ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count] if count > 1
             else [sys.executable])
    return subprocess.Popen(list(map(str, [*start, *command])), cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "DHO_PROGRESS": "none", "DHO_DEVICE": "cpu",
                                 "OMP_NUM_THREADS": "1", **more})


def finished(process, wait=240):
    out, err = process.communicate(timeout=wait)
    assert process.returncode == 0, err[-3000:]
    return out


def test_several_processes_and_one_have_the_same_losses(tmp_path):
    script = tmp_path/"steps.py"
    script.write_text(STEPS)
    steps = lambda n, changes: [pd.DataFrame(json.loads(line)) for line in
                                finished(together(n, script, tmp_path/f"run{n}", json.dumps(changes))).strip()
                                .splitlines() if line.startswith("[[")]
    one, two, three = steps(1, CHANGES), steps(2, CHANGES), steps(3, CHANGES[:1])
    assert len(one) == len(two) == len(CHANGES) and len(one[0]) == 4 and len(three) == 1
    for a, b, close in zip(one + one[:1], two + three, CLOSE + CLOSE[:1]):
        pd.testing.assert_frame_equal(a.iloc[:, :-1], b.iloc[:, :-1], rtol=close)
        pd.testing.assert_series_equal(a.iloc[:, -1], b.iloc[:, -1], rtol=.05)


def begun(folder, process):
    "Wait until a run is at work"
    until = time.time() + 120
    while not (folder/"checkpoint.safetensors").exists() and process.poll() is None and time.time() < until:
        time.sleep(.05)
    assert process.poll() is None, process.communicate()


def stands(folder):
    with safe_open(folder/"checkpoint.safetensors", "pt") as f: return json.loads(f.metadata()["state"])["step"]


def test_another_number_of_processes_goes_on_and_counts_every_image_once(tmp_path):
    run = [*"-m dho_nb.cli.main distill --preset digits --epochs 16 --lr 1e-4 --out".split(), tmp_path/"run"]
    process = together(2, *run, DHO_CHECKPOINT_SECONDS="0.2")
    begun(tmp_path/"run", process)
    time.sleep(2)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family: one.kill()
    process.communicate()
    before = stands(tmp_path/"run")
    out = finished(together(3, *run))
    result = json.loads((tmp_path/"run"/"result.json").read_text())
    assert out.count("teacher, zero-shot: ") == out.count("left in") == 1, "one process speaks"
    assert 0 < before < result["steps"] == 272 and result["machine"]["processes"] == 3 and result["tested"] == 500
    said = pd.read_csv(tmp_path/"run"/"predictions.csv")
    assert len(said) == said["path"].nunique() == 1797
    finished(together(1, *run[:-1], tmp_path/"alone"))
    alone, helped = (pd.read_csv(tmp_path/name/"history.csv") for name in ("alone", "run"))
    pd.testing.assert_frame_equal(alone.drop(columns="lr"), helped.drop(columns="lr"), rtol=.02)


def test_ctrl_c_in_a_terminal_leaves_a_checkpoint(tmp_path):
    run = [*"-m dho_nb.cli.main distill --preset digits --epochs 4000 --processes 2 --out".split(), tmp_path/"run"]
    process = together(1, *run, DHO_CHECKPOINT_SECONDS="1000", DHO_PROGRESS="lines")
    said = []
    for line in process.stdout:
        said.append(line)
        if "step " in line and "loss" in line: break
    assert not (tmp_path/"run"/"checkpoint.safetensors").exists()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped after step" in err, (process.returncode, out[-500:], err[-500:])
    assert stands(tmp_path/"run") > 0 and not (tmp_path/"run"/"result.json").exists()


def test_nobody_keeps_a_folder_after_the_launcher_was_killed(tmp_path):
    run = [*"-m dho_nb.cli.main distill --preset digits --epochs 4000 --processes 2 --out".split(), tmp_path/"run"]
    process = together(1, *run, DHO_CHECKPOINT_SECONDS="0.2")
    begun(tmp_path/"run", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3, "the launcher's own process, and two that train"
    process.kill()
    process.communicate()
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_too_many_processes_are_told_so(tmp_path, dho):
    code, out, err = dho("distill", "--preset", "digits", "--batch-unlabeled", "2", "--method", "kd", "--out", "run",
                         "--processes", "3", OMP_NUM_THREADS="1")
    assert code == 2 and "cannot be shared by 3 processes" in out + err


ALONE = """
import sys
from dho_nb.core.distributed import current_dist_env
from dho_nb.core.errors import DhoError
try: team = current_dist_env(); print(team.rank, team.world)
except DhoError as e: print(e)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_waited_for_with_a_limit(rank):
    said = finished(together(1, "-c", ALONE, RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=f"2954{rank}", DHO_WAIT_SECONDS="2"), 100)
    assert "MASTER_ADDR=127.0.0.1" in said and "DHO_WAIT_SECONDS" in said and "unset RANK" in said


@pytest.mark.parametrize("env", [dict(RANK="1", WORLD_SIZE="2"), dict(RANK="one", WORLD_SIZE="auto", MASTER_ADDR="x", MASTER_PORT="1"),
                                 dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="x", MASTER_PORT="1")])
def test_variables_that_no_launcher_set_make_no_group(env):
    assert finished(together(1, "-c", ALONE, **env), 100).split() == ["0", "1"]
