"Several teachers as one: the mean of their probabilities, in every method, from stores and online"
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT
from dho_nb.cli.main import main
from dho_nb.core.errors import DhoError
from dho_nb.core.files import read_json
from dho_nb.data.manifests import manifest_rows
from dho_nb.deploy.export import export
from dho_nb.losses.methods import METHODS
from dho_nb.runs.config import make_config, preset
from dho_nb.runs.cross_fit import cross_fit
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.dry_run import dry_run
from dho_nb.runs.identity import run_identity
from dho_nb.runs.run import distill, Run
from dho_nb.runs.teacher_provider import (fill_run_teacher_store, make_teacher_provider, missing_teacher_embeddings,
                                          verify_run_teacher_store)
from dho_nb.sweeps.grid import make_grid
from dho_nb.sweeps.sweep import Sweep, sweep_stores
from dho_nb.teachers.clip import teacher_logits

SECOND = str(ROOT/"nbs"/"howto"/"second_digits_teacher")
BOTH = ["digits", SECOND]
SHORT = dict(epochs=1, views=2)


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("places")
        for name in ("cache", "runs"): patch.setenv(f"DHO_{name.upper()}", str(place/name))
        patch.setenv("DHO_DEVICE", "cpu"); patch.setenv("DHO_PROGRESS", "none")
        yield place


def scored(split="val", **changes):
    "Negative log-likelihood and logits of the teacher's center crops of a split"
    provider = make_teacher_provider(preset("digits", **{**SHORT, **changes}), mode="none")
    rows = manifest_rows(provider.manifest, split)
    provider.prepare(manifest_rows(provider.manifest, "train"), rows)
    logits = provider.logits(rows, manifest_rows(provider.manifest, "train")[:40], [])
    return F.cross_entropy(logits, torch.from_numpy(provider.manifest.table["label"].to_numpy(copy=True)[rows])).item(), logits


def test_the_mean_is_no_less_likely_on_validation_than_the_better_teacher():
    (first, a), (second, b), (both, mean) = scored(teacher="digits"), scored(teacher=SECOND), scored(teacher=BOTH)
    assert both <= min(first, second) < 1, (first, second, both)
    assert torch.allclose(mean.softmax(1), (a.softmax(1) + b.softmax(1))/2, atol=1e-5)
    assert mean.logsumexp(1).abs().max() < 1e-4, "log-probabilities"


def test_each_teacher_has_its_own_zeta(monkeypatch):
    monkeypatch.setattr("dho_nb.teachers.clip.Teacher.zeta", property(lambda self: .05 if self.name == SECOND else .01))
    config = preset("digits", teacher=BOTH, zeta="auto", views="live", epochs=1)
    provider = make_teacher_provider(config, mode="none")
    rows = manifest_rows(provider.manifest, "val")[:50]
    alone = [teacher_logits(m.center_embeddings(rows), m.class_embeddings(), z) for m, z in zip(provider.members, (.01, .05))]
    wanted = torch.stack([x.softmax(1) for x in alone]).mean(0)
    assert torch.allclose(provider.logits(rows, [], []).softmax(1), wanted, atol=1e-5)
    linear = F.normalize(provider.center_embeddings(rows), dim=1) @ provider.class_embeddings().T/provider.zeta()
    assert torch.allclose(linear, sum(alone)/2, atol=1e-3), "a linear function of the embeddings: the mean of the logits"


def test_stored_and_online_teachers_agree():
    assert torch.allclose(scored(teacher=BOTH)[1], scored(teacher=BOTH, views="live")[1], atol=.1)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].teacher])
def test_every_method_has_one_teacher(tmp_path, method):
    config = preset("digits", teacher=BOTH, method=method, **SHORT)
    result = distill(config, tmp_path/"run", "none").result
    assert result["teacher"] == " + ".join(BOTH) and result["identity"] != distill_identity(replace(config, teacher="digits"))
    if result["teacher_head"] == "zero-shot": assert result["teacher_nll"] == pytest.approx(scored("test", teacher=BOTH)[0], rel=1e-3)
    assert 0 < result["accuracy"] <= 1


def distill_identity(config): return run_identity(config, open_dataset(config).manifest)


def test_identities_name_the_teachers_in_order_and_those_of_one_teacher_stay():
    of = lambda teacher: distill_identity(preset("digits", teacher=teacher))
    assert of(["digits"]) == of("digits") and preset("digits", teacher=["digits"]).teacher == "digits"
    assert len({of("digits"), of(SECOND), of(BOTH), of(BOTH[::-1])}) == 4


@pytest.mark.parametrize("views", [2, "live"])
def test_a_run_with_two_teachers_goes_on_where_it_stopped(tmp_path, views):
    config = preset("digits", teacher=BOTH, epochs=2, views=views)
    whole = distill(config, tmp_path/"whole", "none").result
    run = Run(config, tmp_path/"parts", "none")
    run.prepare()
    trainer = run.build_trainer()
    trainer.train(until=5)
    trainer.save(); run.release()
    again = distill(config, tmp_path/"parts", "none").result
    timeless = lambda r: {k: v for k, v in r.items() if k not in ("seconds", "teacher_looked")}
    assert timeless(again) == timeless(whole)


def test_stores_are_filled_checked_and_counted_for_each_teacher(capsys):
    config = preset("digits", teacher=BOTH, views=3, epochs=3, crop=.6)
    missing, count = missing_teacher_embeddings(config)
    assert missing == count == 2*missing_teacher_embeddings(replace(config, teacher="digits"))[1]
    assert main(["store", "fill", "--preset", "digits", "--teacher", *BOTH, "--views", "3", "--epochs", "3", "--crop", ".6"]) in (0, None)
    shown = capsys.readouterr().out
    assert f"{count} embeddings computed" in shown and shown.count("store ") == 2 and missing_teacher_embeddings(config)[0] == 0
    assert fill_run_teacher_store(config, repair=True, mode="none").num_encoded == 0
    assert len(verify_run_teacher_store(config, sample=3)) == 6 and (verify_run_teacher_store(config, sample=3)["cosine"] > .999).all()
    with pytest.raises(DhoError, match="folder of one teacher's store"): fill_run_teacher_store(config, "elsewhere", mode="none")


def test_the_command_line_takes_several_names(tmp_path, capsys):
    words = ["--preset", "digits", "--epochs", "1", "--views", "2", "--teacher", *BOTH]
    assert main(["check", *words]) in (0, None)
    assert main(["check", *words[:-1], "ViT-B-16/opena"]) == 2 and "did you mean 'openai'" in capsys.readouterr().err
    assert main(["distill", *words, "--out", str(tmp_path/"run")]) in (0, None)
    assert "digits, 1 stored views of 1097 images" in (said := capsys.readouterr().out) and f"{SECOND}, 1 stored views" in said
    assert read_json(tmp_path/"run"/"run.json")["config"]["teacher"] == BOTH
    assert "digits + " in str(dry_run(preset("digits", teacher=BOTH))["teacher"])
    export(tmp_path/"run", tmp_path/"model", "safetensors")
    card = (tmp_path/"model"/"README.md").read_text()
    assert card.count("teacher's weights") == 2 and "digits + second_digits_teacher" in card


def test_a_sweep_compares_two_teachers_with_one(tmp_path):
    grid = make_grid("teachers", dict(preset="digits", **SHORT), dict(teacher=["digits", BOTH]))
    assert [c.labels["teacher"] for c in grid.cells] == ["digits", " + ".join(BOTH)]
    sweep = Sweep(grid, tmp_path/"sweep")
    assert [c.teacher for c in sweep_stores(sweep.tasks)] == BOTH, "each store once"


def test_cross_fitting_has_both(tmp_path):
    fit = cross_fit(preset("digits", teacher=BOTH, fraction=0., shots=4, **SHORT), 2, tmp_path/"fit", mode="none")
    assert len(fit.table) and fit.teacher is not None


@pytest.mark.parametrize("teacher", [[], ["digits", "digits"], ["digits", 3], [["digits", SECOND]]])
def test_what_is_no_list_of_names_is_refused(teacher):
    with pytest.raises(DhoError, match="neither a name nor a list"): preset("digits", teacher=teacher)


@pytest.mark.parametrize("second", ["hf-hub:some/model", "transformers:some/model", "package.module:name"])
def test_a_file_that_lists_code_or_a_repository_takes_the_word(second, tmp_path, capsys):
    (tmp_path/"run.json").write_text(json.dumps(dict(dataset="digits", teacher=["digits", second])))
    assert main(["check", "--config", str(tmp_path/"run.json")]) == 2 and "--trust-remote-code" in capsys.readouterr().err


def test_embeddings_from_elsewhere_are_one_teachers(tmp_path):
    with pytest.raises(DhoError, match="embeddings are those of one teacher"):
        make_config(dict(dataset="digits", teacher=BOTH, embeddings=str(tmp_path/"clip.npz")))
