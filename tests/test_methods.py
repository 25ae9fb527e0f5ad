"Every method as a run: looked at too early, stopped between its stages, opened again"
import json
import shutil

import pytest
import torch
from safetensors import safe_open

from dho_nb.runs.config import make_config, preset
from dho_nb.losses.methods import METHODS
from dho_nb.runs.run import Run, distill
from dho_nb.core.errors import DhoError
from dho_nb.students.dual_head import load_student
from dho_nb.training.trainer import Trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "Runs that nothing came between, made when asked for"
    made, folder = {}, tmp_path_factory.mktemp("straight")
    def run(method): return made.setdefault(method,
                                            distill(preset("digits", method=method, epochs=4), folder/method, "none"))
    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_tells_the_same_again(straight, method):
    run = straight(method)
    student, facts = load_student(run.folder/"model.safetensors")
    again = Run(run.config, run.folder, "none")
    assert again.done and again.evaluate().equals(run.evaluate()) and facts["method"] == method
    assert again.evaluate()["accuracy"].iloc[-1] == run.result["accuracy"] > .3
    assert all(torch.equal(a, b.cpu())
               for a, b in zip(student.model.state_dict().values(), run.load_student().model.state_dict().values()))


@pytest.mark.parametrize("method", ["sho", "sho-tuned", "kd-then-ssl", "kd-feature"])
def test_a_look_before_the_end_changes_nothing(straight, tmp_path, method):
    run = Run(preset("digits", method=method, epochs=4), tmp_path/"run", "none")
    early = run.evaluate()["accuracy"].iloc[-1]
    run.train()
    assert run.finish()["accuracy"] == straight(method).result["accuracy"] != early


@pytest.mark.parametrize("method, stops", [("sho-tuned", (20, 10, None, 5)), ("kd-then-ssl", (30, 7))])
def test_stopped_between_and_within_stages(straight, tmp_path, method, stops):
    for until in stops:
        run = Run(preset("digits", method=method, epochs=4), tmp_path/"run", "none")
        trainer = run.build_trainer()
        trainer.train(until=None if until is None else trainer.step + until, mode="none")
        run.release()
    run = distill(preset("digits", method=method, epochs=4), tmp_path/"run", "none")
    same = {k: v for k, v in straight(method).result.items() if k not in ("seconds", "teacher_looked")}
    assert {k: v for k, v in run.result.items() if k in same} == same
    assert run.history.equals(straight(method).history)


@pytest.mark.parametrize("method, name, at",
                         [("dho", "_gradients", 3), ("dho", "_close_epoch", 3), ("sho-tuned", "_close_epoch", 3),
                          ("kd-then-ssl", "_gradients", 40), ("kd-then-ssl", "load", 2)])
def test_a_step_that_breaks_off_is_gone_back_on(straight, tmp_path, monkeypatch, method, name, at):
    run = Run(preset("digits", method=method, epochs=4), tmp_path/"run", "none")
    whole, calls = getattr(Trainer, name), []
    def broken(trainer, *args):
        calls.append(whole(trainer, *args))
        if len(calls) == at: raise RuntimeError("out of memory")
    monkeypatch.setattr(Trainer, name, broken)
    with pytest.raises(RuntimeError): run.train()
    with pytest.raises(DhoError, match="call train.. first"): run.finish()
    run.train()
    result = run.finish()
    same = {k: v for k, v in straight(method).result.items() if k not in ("seconds", "teacher_looked")}
    assert {k: v for k, v in result.items() if k in same} == same and run.history.equals(straight(method).history)


@pytest.mark.parametrize("method", ["dho", "sho-tuned", "kd-then-ssl"])
def test_a_loss_that_is_no_number_finishes_nothing(tmp_path, monkeypatch, method):
    run, sound = Run(preset("digits", method=method, epochs=2), tmp_path/"run", "none"), Trainer.losses
    astray = lambda t, *args: {k: v*(torch.nan if t.step == t.steps - 1 else 1) for k, v in sound(t, *args).items()}
    monkeypatch.setattr(Trainer, "losses", astray)
    for _ in range(2):
        with pytest.raises(DhoError, match="the loss became nan"): run.train()
        with pytest.raises(DhoError, match="broke off at step"): run.finish()
    assert not (tmp_path/"run"/"result.json").exists()
    with pytest.raises(DhoError, match="the loss became nan"): distill(run.config, run.folder, "none")


def test_seconds_are_those_of_every_lambda(straight, tmp_path):
    run = Run(preset("digits", method="sho-tuned", epochs=1), tmp_path/"run", "none")
    run.train()
    def seconds(file):
        with safe_open(file, "pt") as f: return json.loads(f.metadata()["state"])["seconds"]
    assert run.training.seconds == pytest.approx(sum(seconds(run.files.checkpoint(stage)) for stage in run.inputs.stages))


def test_a_folder_that_is_removed_meanwhile_stays_a_runs_own(tmp_path):
    config = preset("digits", epochs=1)
    run = Run(config, tmp_path/"run", "none")
    shutil.rmtree(run.folder)
    run.train()
    assert not Run(config, run.folder, "none").done
    shutil.rmtree(run.folder)
    run.finish()
    assert Run(config, run.folder, "none").done


def test_what_is_called_like_a_checkpoint_may_be_somebodys(tmp_path):
    run = Run(preset("digits", epochs=1), tmp_path/"run", "none")
    (run.folder/"checkpoint_mine.safetensors").write_text("mine")
    run.train()
    run.finish()
    assert [p.name for p in run.folder.glob("checkpoint*")] == ["checkpoint_mine.safetensors"]


def test_what_cannot_be_is_said_beforehand(tmp_path):
    for change, said in ((dict(method="kd", conflict=True), "not both in one step"),
                         (dict(method="kd", unlabeled=False), "nothing to train on.*give unlabeled=True"),
                         (dict(method="kd-then-ssl", unlabeled=False), "nothing to train on"),
                         (dict(warmup_steps=5000), "leaves nothing of the run's"),
                         (dict(method="kd-feature", student_args=dict(widths=[8, 8, 8, 64]), frozen=True),
                          "nothing to train")):
        with pytest.raises(DhoError, match=said): distill(preset("digits", epochs=2, **change), tmp_path/"run", "none")
        assert said == "nothing to train" or not (tmp_path/"run").exists()


def test_shots_take_the_place_of_a_fraction():
    assert (preset("digits", shots=2).fraction, preset("paper/fewshot-resnet18", fraction=.1).shots) == (0., 0)
    with pytest.raises(DhoError, match="not both"): make_config(dict(dataset="digits", shots=2, fraction=.1))
