"The paper's numbers are filed under labels that the grids have, and a page shows what a user's own sweep found"
import pytest

from conftest import ROOT
from dho_nb.sweeps.grid import read_grid
from dho_nb.reports.paper_numbers import beside_paper_numbers, our_paper_numbers, read_paper_numbers
from dho_nb.reports.tables import results_table
from dho_nb.runs.run import distill
from dho_nb.runs.config import make_config
from dho_nb.core.files import read_json, write_json
from dho_nb.reports.results import deduplicate_results, result_axes

GRIDS = ROOT/"nbs"/"paper"/"grids"


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table5", "table6", "table13", "table14", "table15",
                                  "table18", "table19"])
def test_the_papers_rows_are_labels_of_the_grid(name):
    paper, cells = read_paper_numbers(name), read_grid(GRIDS/f"{name}.toml").cells
    rows, own = set(paper["ours"]) - {""}, paper[paper["ours"] != ""]
    assert rows == {c.labels["method"] for c in cells}
    if name in ("table1", "table13", "table14", "table15", "table18"):
        assert set(own["column"]) == {c.labels["labels"] for c in cells}
    if name in ("table1", "table3"): assert set(own["part"]) <= {c.labels["student"] for c in cells}
    assert own["value"].astype(float).between(0, 100).all()


def test_the_mean_of_the_shifted_sets_is_the_printed_one():
    wide = read_paper_numbers("table2").pivot(index="row", columns="column", values="value").astype(float).dropna()
    assert ((wide.drop(columns="mean of all five").mean(axis=1) - wide["mean of all five"]).abs() < .11).all()
    assert len(wide) == 13


def test_a_sweep_below_the_users_runs_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_RUNS", str(tmp_path))
    wanted = [c for c in read_grid(GRIDS/"table14.toml").cells if c.labels["labels"] == "1-shot"
              and c.labels["seed"] == "0"][:2]
    cells = []
    for cell in wanted:  # the digits take ImageNet's place: only labels tell what a run is
        folder = tmp_path/"table14"/cell.name
        distill(make_config(dict(dataset="digits", teacher="digits", student="tiny", student_weights="", size=16,
                                 epochs=1, views=1, shots=1, method=cell.labels["method"])), folder, "none")
        cells.append(dict(run=cell.name, identity=read_json(folder/"run.json")["identity"], labels=cell.labels,
                          parameters=cell.parameters))
    write_json(tmp_path/"table14"/"sweep.json", dict(name="table14", axes=["seed", "labels", "method"], cells=cells))
    found = our_paper_numbers("table14")
    assert (len(found.runs), len(found.asked)) == (2, 60) and "2 of 60 runs" in found._repr_markdown_()
    assert "table14.toml" in repr(found)
    shown = beside_paper_numbers(read_paper_numbers("table14"), results_table(found.runs, columns="labels", expected=found.asked))
    assert shown.loc[("DKD", "ours"), "1-shot"].endswith("(1/3)") and shown.loc[("WKD", "ours"), "1-shot"] == "–"
    assert shown.loc[("DKD", "paper")].tolist() == ["8.9", "15.0", "20.6", "28.2", "34.9"]


def test_the_gains_in_the_faq_are_those_of_the_records():
    table = (ROOT/"nbs"/"howto"/"faq.md").read_text(encoding="utf-8").split("| labels per class |")[1].split("\n\n")[0]
    told = {int(row[0]): [float(v) for v in row[1:]] for line in table.splitlines()[2:] if (row := line.strip("| ").split(" | "))}
    for column, (name, student) in ((0, ("digits", "tiny")), (2, ("eurosat", "mobilenetv2"))):
        runs = our_paper_numbers(name).runs.query("student == @student")
        runs = deduplicate_results(runs, result_axes(runs))
        mean = 100*runs.astype({"labels": str}).groupby(["labels", "method"])["accuracy"].mean()
        for shots, gains in told.items():
            own = mean[f"{shots}-shot", "dho"]
            assert abs(own - mean[f"{shots}-shot", "ce"] - gains[column]) < .051 and abs(own - mean["none", "kd"] - gains[column + 1]) < .051, (name, shots)
    assert len(told) == 5
