"A run and its parts: inputs are resolved once, looking at a run computes nothing, and Jupyter shows it"
from dataclasses import replace

import pytest

from conftest import set_everywhere
from dho_nb.core.errors import DhoError
from dho_nb.runs import inputs as module
from dho_nb.runs.config import make_config, preset
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.dry_run import dry_run
from dho_nb.runs.inputs import resolve
from dho_nb.runs.run import Run, distill


def test_a_run_opens_its_images_and_draws_its_labels_once(tmp_path, monkeypatch):
    calls = []
    count = lambda f: lambda *a, **k: (calls.append(f.__name__), f(*a, **k))[1]
    set_everywhere(monkeypatch, "runs", **{f.__name__: count(f) for f in (open_dataset, module.visible_dataset_labels, module.dataset_validation_rows)})
    distill(preset("digits", epochs=1, views=1), tmp_path/"run", "none")
    assert sorted(calls) == ["dataset_validation_rows", "open_dataset", "visible_dataset_labels"]


@pytest.mark.parametrize("change, reason", [(dict(warmup_steps=5000), "leaves nothing of the run's"),
                                            (dict(method="kd", unlabeled=False), "nothing to train on")])
def test_runs_and_dry_runs_refuse_the_same(tmp_path, change, reason):
    config = preset("digits", epochs=1, **change)
    for ask in (resolve, dry_run, lambda c: Run(c, tmp_path/"run", "none")):
        with pytest.raises(DhoError, match=reason): ask(config)
    assert not (tmp_path/"run").exists()


def test_configurations_resolved_together_share_images_and_labels():
    cache, config = {}, preset("digits", validation="few")
    one, other = resolve(config, cache), resolve(replace(config, lr=1e-2), cache)
    assert one.data is other.data and one.labels is other.labels and one.identity != other.identity
    alone = resolve(config)
    assert alone.identity == one.identity and (alone.labels.rows == one.labels.rows).all() and alone.name == one.name


def test_looking_at_a_run_computes_nothing(tmp_path, monkeypatch):
    config = preset("digits", epochs=1, views=1)
    distill(config, tmp_path/"run", "none")
    run = Run(config, tmp_path/"run", "none")
    fail = lambda *a, **k: pytest.fail("something was loaded or computed")
    set_everywhere(monkeypatch, "runs", TeacherProvider=fail, load_student=fail, StagedTrainer=fail, collect_head_outputs=fail)
    for name in dir(run):
        try: getattr(run, name)
        except DhoError as e: assert "call " in str(e), name
    assert run._repr_html_()


def test_jupyter_shows_a_run_with_what_differs_and_escapes_it(tmp_path, tree):
    config = make_config(dict(dataset=str(tree.rename(tmp_path/"cats<b>dogs")), teacher="digits", student="tiny", student_weights="",
                              size=16, epochs=1, shots=2, test=.25, method="ce"))
    run = Run(config, tmp_path/"run", "none")
    shown = run._repr_html_()
    assert "not trained" in shown and "cats&lt;b&gt;dogs" in shown and "<b>" not in shown
    assert "<th>shots</th><td>2</td>" in shown and "<th>lr</th>" not in shown and "accuracy" not in shown
    run.train()
    assert "step 1 of 1" in run._repr_html_()
    accuracy = run.finish()["accuracy"]
    assert "finished" in run._repr_html_() and f"<th>accuracy</th><td>{accuracy:.4f}</td>" in run._repr_html_()


def test_what_a_new_run_lacks_names_the_call_that_makes_it(tmp_path):
    run = Run(preset("digits", epochs=1, method="ce"), tmp_path/"run", "none")
    for ask in (lambda: run.trainer, lambda: run.history):
        with pytest.raises(DhoError, match="call train"): ask()
    assert run.build_trainer() is run.trainer and not len(run.history)


def test_images_come_in_the_order_in_which_committed_results_had_them(tmp_path):
    batch = Run(preset("digits"), tmp_path/"run", "none").build_trainer().streams[0]
    assert (batch.rows[:3].tolist(), batch.rows[-3:].tolist()) == ([547, 1008, 1199], [868, 872, 1114])
    assert len(batch.labels) == 10
