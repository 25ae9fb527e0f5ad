"Training by torch.compile: the same losses, plain names in every file, and a run may go on without it"
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from conftest import ROOT, fails
from dho_nb.runs.config import preset
from dho_nb.runs.inputs import resolve
from dho_nb.runs.run import distill


def compiler_works():
    "Empty if a function can be compiled here, else the reason"
    code = "import torch; print(torch.compile(lambda x: x.sin() + 1)(torch.zeros(8)).sum().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return "" if done.returncode == 0 else (done.stderr.splitlines() or ["no reason"])[-1]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if reason := compiler_works(): pytest.skip(f"torch.compile does not work here: {reason}")


LOSSES = """
import json, sys
import torch
from dho_nb.runs.config import preset
from dho_nb.runs.run import Run
torch.set_num_threads(1)
for k, changes in enumerate(json.loads(sys.argv[2])):
    losses = []
    for compiled in (False, True):
        run = Run(preset("digits", epochs=2, lr=1e-4, views=2, compile=compiled, **changes), f"{sys.argv[1]}/{k}{compiled}", "none")
        trainer = run.build_trainer()
        trainer.model.train()
        for step in range(4): trainer.train_step(trainer.streams[trainer.step])
        losses.append([v.item() for v in trainer._epoch_sums().values()])
        assert not any("_orig_mod" in name for name in trainer.model.state_dict())
    if run.machine.dist_env.is_main: print(json.dumps(losses))
"""


@pytest.mark.parametrize("processes, changes", [
    (1, [dict(), dict(student="net:make", size=16, student_weights=""), dict(method="pcgrad")]), (2, [dict(accumulate=2)])])
def test_the_losses_are_the_same(tmp_path, processes, changes):
    (tmp_path/"losses.py").write_text(LOSSES)
    (tmp_path/"net.py").write_text("from torch.nn import *\n"
                                   "def make(): return Sequential(AdaptiveAvgPool2d(4), Flatten(), Linear(48, 16), Dropout(.3), ReLU())\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]*(processes > 1)
    done = subprocess.run([sys.executable, *launcher, str(tmp_path/"losses.py"), str(tmp_path/"runs"), json.dumps(changes)], cwd=ROOT,
                          capture_output=True, text=True, timeout=1200, env={**os.environ, "DHO_DEVICE": "cpu", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(found) == len(changes)
    for plain, compiled in found: assert compiled == pytest.approx(plain, rel=2e-3)


def names(file):
    with safe_open(file, "pt") as f: return {*f.keys()}


def trainer(folder, compiled):
    "A trainer of digits, with an identity that does not depend on compile"
    from dho_nb.runs.run import Run
    from dho_nb.training.trainer import Trainer, TrainConfig
    run = Run(preset("digits", epochs=2, views=2), folder/"run", "none")
    stages = run.open_training()
    built = stages.build()
    made = Trainer(stages.student, built.method, built.streams, TrainConfig(epochs=2, lr=1e-4, compile=compiled), built.teacher_fn,
                   checkpoint=folder/"checkpoint.safetensors", identity="one run")
    run.release()
    return made


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_goes_on_with_and_without(tmp_path, first):
    straight = trainer(tmp_path, False)
    straight.checkpoint = None
    straight.train(mode="none")
    begun = trainer(tmp_path, first)
    begun.train(until=straight.steps//2, mode="none")
    assert not any("_orig_mod" in name for name in names(tmp_path/"checkpoint.safetensors"))
    resumed = trainer(tmp_path, not first)
    assert resumed.load() == straight.steps//2
    resumed.train(mode="none")
    assert [h["loss"] for h in resumed.history] == pytest.approx([h["loss"] for h in straight.history], rel=2e-3)


def test_a_compiled_run_leaves_plain_weights_and_is_another_run(tmp_path):
    plain, compiled = (preset("digits", epochs=1, views=2, compile=c) for c in (False, True))
    run = distill(compiled, tmp_path/"compiled", "none")
    assert not any("_orig_mod" in name for name in names(tmp_path/"compiled"/"model.safetensors"))
    assert run.load_student().model.state_dict().keys() == distill(plain, tmp_path/"plain", "none").load_student().model.state_dict().keys()
    assert resolve(plain).identity != resolve(compiled).identity
    fails(lambda: distill(plain, tmp_path/"compiled", "none"), "compile was True, now False")


def test_where_nothing_can_be_compiled_the_error_says_what_to_leave_out(tmp_path, monkeypatch):
    made = trainer(tmp_path, True)
    def broken(*args, **more): raise torch._dynamo.exc.BackendCompilerFailed(lambda: 0, RuntimeError("no C++ compiler"), None)
    monkeypatch.setattr(made, "forward", broken)
    fails(lambda: made.train(mode="none"), "torch.compile does not work here", "leave compile out")
