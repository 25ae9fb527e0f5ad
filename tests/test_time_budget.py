"A run that ends in a given time: what is chosen, that it is kept, and what the command says"
import re

import pytest

from conftest import picture, SMALL
from dho_nb.core.errors import DhoError
from dho_nb.runs import time_budget
from dho_nb.runs.config import preset
from dho_nb.runs.time_budget import _epochs_in_time, fit_to_time, RunSeconds

FEW = [*SMALL[:SMALL.index("--epochs")], *SMALL[SMALL.index("--epochs") + 2:]]  # without --epochs


def made_up(epoch=2.0, teacher=10.0):
    return RunSeconds(decode=3.0, views=tuple(teacher*n for n in range(9)), epoch=epoch, score=4.0)


@pytest.fixture
def tree(tmp_path):
    for name in ("cat", "dog"):
        for i in range(4): picture(tmp_path/"tree"/name/f"{i}.png", seed=i + 9*(name == "dog"))
    return tmp_path/"tree"


@pytest.fixture
def measured(monkeypatch):
    "No trial: the same seconds whatever the machine does"
    sides = []

    def measure(inputs, machine, provider, teacher):
        sides.append(inputs.config.size)
        return made_up(epoch=(inputs.config.size/32)**2)

    monkeypatch.setattr(time_budget, "measure_run", measure)
    return sides


@pytest.mark.parametrize("seconds", [40, 100, 600, 3600])
def test_a_choice_ends_in_time_and_uses_it(seconds):
    choice = _epochs_in_time(made_up(), preset("digits"), (), seconds)
    assert made_up().total(choice["epochs"], choice["views"]) <= seconds
    later = made_up().total(choice["epochs"] + 1, choice["views"])
    assert later > seconds or choice["epochs"] in (200, choice["views"])  # another epoch does not fit, or may not be
    assert made_up().views[choice["views"]] <= .4*seconds or choice["views"] == 1


def test_what_was_given_stays():
    assert _epochs_in_time(made_up(), preset("digits", views=5), ("views",), 600)["views"] == 5
    fixed = preset("digits", epochs=50)
    assert _epochs_in_time(made_up(), fixed, ("epochs",), 600)["epochs"] == 50
    assert _epochs_in_time(made_up(), fixed, ("epochs",), 60)["epochs"] == 0


def test_the_choice_is_kept_and_the_largest_side_with_enough_epochs_is_taken(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    timed = fit_to_time(preset("digits"), 300, mode="none")
    assert measured == [timed.config.size] == [32] and 30 <= timed.config.epochs <= 200
    assert fit_to_time(preset("digits"), "5min", mode="none") == timed and len(measured) == 1  # asked once
    assert fit_to_time(preset("digits", size=64), 300, ("size",), "none").config.size == 64
    with pytest.raises(DhoError, match="the time is too short: one epoch at 32 px takes about 1 s"):
        fit_to_time(preset("digits"), 5, mode="none")


def test_within_on_the_command_line(dho, tree, tmp_path):
    there = ["distill", "--images", tree, *FEW, "--out", tmp_path/"run"]
    code, out, err = dho(*there, "--within", "5min")
    assert code == 0 and "measuring how many epochs fit into 5min …" in out, out + err
    epochs = int(re.search(r"training time +(\d+) epochs at 16 px", out)[1])
    assert len((tmp_path/"run"/"history.csv").read_text().splitlines()) == epochs + 1
    code, out, err = dho(*there, "--within", "5min")  # the choice is kept, so this is the same run, which is finished
    assert code == 0 and "training time" not in out, out + err
    code, _, err = dho(*there, "--epochs", "2", "--within", "1min")
    assert code == 2 and "give --within or --epochs, not both" in err
    code, _, err = dho(*there, "--within", "soon")
    assert code == 2 and "'soon' is no length of time" in err


def test_on_a_cpu_nobody_waits_for_200_epochs(dho, tree):
    code, out, err = dho("check", "--images", tree, *FEW)
    assert code == 0 and "epochs fit into 30min (as no --epochs and no --within is given)" in out, out + err
