"The paper's sweeps as files: as many runs as they say, every run a valid configuration, and the paper's rows as the presets have them"
import re

import pandas as pd
import pytest

from conftest import ROOT
from dho_nb.runs.config import make_config
from dho_nb.sweeps.grid import read_grid
from dho_nb.runs.presets import PRESETS
from dho_nb.reports.results import load_results
from dho_nb.core.files import json_hash
from dho_nb.sweeps.sweep import Sweep

PAPER = ROOT/"nbs"/"paper"
FILES = {f.stem: f for f in sorted((PAPER/"grids").glob("*.toml"))}
COUNTS = {"table1": 216, "table2": 9, "table3": 30, "table5": 9, "table6": 12, "table13": 360, "table14": 60,
          "table15": 480, "table17": 18, "table18": 660, "table19": 12, "fewshot-resnet18": 1080,
          "fewshot-mobilenetv2": 1080, "figure3": 60, "eurosat": 310, "digits": 267, "beyond_digits": 245,
          "beyond_eurosat": 245, "beyond_cifar10": 30, "beyond_clip": 72}


def rows_of(table):
    "The presets of a table's rows, without what an axis changes"
    return {name: {k: v for k, v in found.items() if k not in ("dataset", "shots", "fraction")}
            for name, found in PRESETS.items() if name.startswith(f"paper/{table}/")}


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_as_many_runs_as_it_says_each_a_valid_configuration(name):
    grid, words = read_grid(FILES[name]), FILES[name].read_text()
    assert len(grid.cells) == COUNTS[name]
    assert re.search(r"^# ([\d,]+) runs", words, re.M)[1] == f"{COUNTS[name]:,}" and grid.name == name
    made = [make_config(c.parameters) for c in grid.cells]
    assert len({json_hash(c.parameters) for c in grid.cells}) == len(made) and {c.predict for c in made} == {"test"}
    assert {c.seed for c in made} == ({0, 1, 2, 3, 4} if name.startswith("beyond") and name != "beyond_clip" else {0, 1, 2})


def test_every_table_and_curve_of_the_issue_has_a_file():
    assert set(FILES) == set(COUNTS)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("table") or n == "figure3"])
def test_the_runs_are_the_rows_that_the_presets_have(name):
    rows, seen = rows_of(name), set()
    for cell in read_grid(FILES[name]).cells:
        config = make_config(cell.parameters)
        fits = [row for row, wanted in rows.items()
                if make_config(dict(wanted, dataset=config.dataset, shots=config.shots, fraction=config.fraction,
                                                                         seed=config.seed, predict="test")) == config]
        assert fits, cell
        seen.update(fits)
    assert set(rows) == seen, "rows without a run"


@pytest.mark.parametrize("name", ["eurosat", "digits", "beyond_digits", "beyond_eurosat", "beyond_cifar10"])
def test_a_record_holds_runs_of_its_grid(name):
    wanted = pd.DataFrame([{**c.labels, "watched": str(bool(c.parameters.get("conflict", False)))}
                           for c in read_grid(FILES[name]).cells])
    found = pd.read_csv(PAPER/"results"/name/"runs.csv", dtype=str, keep_default_na=False)
    assert len(found) and len(found.merge(wanted,
                                          on=[*wanted])) == len(found), "every line is a run that the grid asks for"
    assert found["identity"].is_unique and not found.duplicated([*wanted]).any()


def test_what_the_record_of_the_digits_holds_is_not_done_again(tmp_path):
    sweep = Sweep(read_grid(FILES["digits"]), tmp_path/"digits")
    recorded = sorted(load_results(PAPER/"results"/"digits")["identity"])
    assert {t.identity for t in sweep.tasks} == {*recorded}, "the record is whole, and of this grid"
    sweep.elsewhere = set(recorded[3:])
    assert len(sweep.todo()) == COUNTS["digits"] - len(sweep.elsewhere) == 3
    assert sweep.states()["state"].value_counts().to_dict() == {"recorded": len(sweep.elsewhere),
                                                                "pending": len(sweep.todo())}
