"What runs left becomes one frame, tables, figures, a record and a page; gaps and broken folders stay visible"
import json
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from dho_nb.reports import figures, results as records, tables as reports
from dho_nb.runs.config import preset
from dho_nb.sweeps.grid import make_grid
from dho_nb.reports.html import html_report
from dho_nb.runs.run import distill
from dho_nb.core.errors import DhoError
from dho_nb.core.files import json_hash, read_json, write_json

RESULTS = ROOT/"nbs"/"paper"/"results"/"eurosat"
CELLS = [(m, n, s) for n in (1, 2) for m in ("ce", "dho") for s in (0, 1)]
MISSING = ("ce", 2, 1)


def name(method, shots, seed): return f"{method}-{shots}shot-{seed}"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "A sweep of eight cells; one was never begun, another watched its gradients"
    place = tmp_path_factory.mktemp("sweeps")/"small"
    for m, n, s in CELLS:
        if (m, n, s) == MISSING: continue
        extra = dict(conflict=True) if (m, n, s) == ("dho", 1, 0) else {}
        distill(preset("digits", epochs=1, validation="few", views=2, method=m, shots=n, fraction=0., seed=s, **extra),
                place/name(m, n, s), "none")
    identity = lambda *c: read_json(place/name(*c)/"run.json")["identity"] if c != MISSING else "0"*12
    cells = [dict(run=name(*c), identity=identity(*c), labels=dict(amount=f"{c[1]}-shot", method=c[0], seed=str(c[2])),
                  parameters={}) for c in CELLS]
    write_json(place/"sweep.json", dict(name="small", axes=["amount", "method", "seed"], cells=cells))
    return place


@pytest.fixture
def sweep(original, tmp_path, monkeypatch):
    "A copy that may be harmed, and an empty cache"
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    return shutil.copytree(original, tmp_path/"small")


def alike(a, b):
    pd.testing.assert_frame_equal(a.drop(columns="right"), b.drop(columns="right"))
    assert all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a["right"], b["right"]))


def files(place): return {p.relative_to(place): (p.stat().st_mtime_ns, p.stat().st_size) for p in place.rglob("*")}


def test_a_frame_says_what_the_results_say_and_leaves_the_folders_alone(sweep):
    before = files(sweep)
    frame = records.load_results(sweep)
    alike(frame, records.load_results(sweep))
    assert files(sweep) == before
    assert frame["run"].tolist() == [name(*c) for c in CELLS if c != MISSING]
    for line in frame.to_dict("records"):
        result = read_json(sweep/line["run"]/"result.json")
        assert {k: line[k]
                for k in ("accuracy", "ece", "steps", "identity", "dataset")} == {k:
                    result[k] for k in ("accuracy", "ece", "steps", "identity", "dataset")}
        assert (line["method"], line["seed"], line["seed_value"],
                line["amount"]) == (result["method"], str(result["seed"]), str(result["seed"]), result["labels"])
        assert np.unpackbits(line["right"])[:line["tested"]].mean() == pytest.approx(result["accuracy"], abs=1e-12)


@pytest.mark.parametrize("parameter, value", [("epochs", 5), ("lr", .25)])
def test_runs_that_were_started_one_by_one_are_seeds_of_a_cell_only_if_the_seed_alone_differs(sweep, tmp_path, parameter,
                                                                                               value):
    (sweep/"sweep.json").unlink()
    assert records.load_results(sweep).attrs["axes"] == []
    for c in CELLS:
        if c == MISSING or c[2] == 0: continue
        note = read_json(sweep/name(*c)/"run.json")
        write_json(sweep/name(*c)/"run.json", {**note, "config": {**note["config"], parameter: value}})
    frame = records.load_results(sweep)
    with pytest.raises(DhoError, match=f"{parameter} varies within a cell"): reports.results_table(frame)
    assert "±" not in str(reports.results_table(frame, ["method", parameter]))
    text = html_report(sweep, tmp_path/"page.html").read_text()
    assert f"<h3>{parameter} {value}</h3>" in text and "±" not in text
    assert set(figures.reliabilities_figure(sweep)) == {f"{parameter} {v}, {n}-shot" for v in (value, frame[parameter][0])
                                                      for n in (1, 2)}


def test_bits_and_validation_figures_are_those_of_the_predictions(sweep):
    for line in records.load_results(sweep).to_dict("records"):
        said = pd.read_csv(sweep/line["run"]/"predictions.csv")
        test = said[said["split"] == "test"].sort_values("path")
        assert np.unpackbits(line["right"])[:line["tested"]].tolist() == (test["label"] == test["prediction"]).tolist()
    from dho_nb.runs.run import Run
    run = Run(preset("digits", epochs=1, validation="few", views=2, method="dho", shots=2, fraction=0., seed=1),
              sweep/"dho-2shot-1", "none")
    run.evaluate()
    val, line = run.part("val"), records.load_results(sweep/"dho-2shot-1").iloc[0]
    from dho_nb.evaluation.interpolation import interpolate
    assert len(val) == line["validated"]
    assert len(val) < (pd.read_csv(run.folder/"predictions.csv")["split"] == "val").sum(), "few, among outputs of all"
    assert line["val_accuracy"] == pytest.approx((interpolate(val, run.alpha,
                                                              run.beta).argmax(1) == val.labels).float().mean().item(),
                                                              abs=1e-6)


def test_a_record_equals_its_sweep_and_outlives_it(sweep, tmp_path):
    frame, asked = records.load_results(sweep), records.expected_results(sweep)
    kept = records.record_results(sweep, tmp_path/"kept")
    alike(records.load_results(kept), frame)
    pd.testing.assert_frame_equal(records.expected_results(kept).drop(columns="reason"), asked.drop(columns="reason"))
    assert {p.name for p in kept.iterdir()} == {"runs.csv", "right.npz", "cells.json", "conflict.csv", "surface.csv"}
    assert not any(str(tmp_path) in p.read_text() for p in kept.iterdir()
                   if p.suffix != ".npz"), "no paths of this machine"
    written = {p.name: p.read_bytes() for p in kept.iterdir()}
    records.record_results(sweep, kept)
    assert written == {p.name: p.read_bytes() for p in kept.iterdir()}, "recording twice changes nothing"
    for run in ("dho-1shot-0", "ce-1shot-1"): shutil.rmtree(sweep/run)
    records.record_results(sweep, kept)
    alike(records.load_results(kept), frame)
    alike(records.load_results(records.record_results(kept, tmp_path/"copy")), frame)
    table, again = (reports.results_table(records.load_results(p), expected=records.expected_results(p))
                    for p in (kept, tmp_path/"copy"))
    assert table.markdown() == again.markdown()


def test_a_record_finds_its_runs_whatever_the_order_of_the_labels(sweep, tmp_path):
    plan = read_json(sweep/"sweep.json")
    plan["cells"][0]["labels"] = dict(reversed(plan["cells"][0]["labels"].items()), also="")
    write_json(sweep/"sweep.json", dict(plan, axes=[*plan["axes"], "also"]))
    assert len(records.load_results(records.record_results(sweep, tmp_path/"kept"))) == len(records.load_results(sweep)) == 7


def test_two_that_record_at_once_lose_nothing(sweep, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    parts = [shutil.copytree(sweep/run, tmp_path/run/run).parent for run in ("ce-1shot-0", "dho-1shot-1", "ce-2shot-0")]
    with ThreadPoolExecutor(3) as pool: list(pool.map(lambda p: records.record_results(p, tmp_path/"kept"), parts))
    assert len(records.load_results(tmp_path/"kept")) == 3


def test_one_axis_is_enough_for_every_form(sweep, tmp_path):
    plan = read_json(sweep/"sweep.json")
    for name_, axis, keep in (("methods", "method", ("ce-1shot-0", "dho-1shot-1")),
                              ("seeds", "seed", ("ce-1shot-0", "ce-1shot-1"))):
        other = tmp_path/name_
        for run in keep: shutil.copytree(sweep/run, other/run)
        cells = [dict(c, labels={axis: c["labels"][axis]}) for c in plan["cells"] if c["run"] in keep]
        more = [dict(cells[0], run="not-there", identity="1"*12, labels={axis: "x"})]
        write_json(other/"sweep.json", dict(plan, name=name_, axes=[axis], cells=cells + more))
        frame, asked = records.load_results(other), records.expected_results(other)
        assert html_report(other, other/"page.html").exists()
        assert len(records.load_results(records.record_results(other, tmp_path/f"{name_}-kept"))) == 2
        assert "0/1" in reports.results_table(frame, axis,
                                              expected=asked).markdown(), "what is asked for and missing is visible"


def test_differences_are_of_accuracies_and_choices_of_validation_figures(sweep):
    frame = records.load_results(sweep)
    with pytest.raises(DhoError, match="against compares accuracies"):
        reports.results_table(frame, value="ece", against="dho")
    with pytest.raises(DhoError, match="test images choose nothing"):
        reports.add_best_variant(frame, "best", ["ce", "dho"], by="accuracy")


def test_the_same_run_in_two_folders_counts_once(sweep, tmp_path):
    other = shutil.copytree(sweep/"dho-1shot-0", tmp_path/"elsewhere"/"copy").parent
    kept = records.record_results(sweep, tmp_path/"kept")
    for places in ((sweep, other), (sweep, sweep/"dho-1shot-0"), (kept, sweep)): assert len(records.load_results(*places)) == 7
    assert len(records.load_results(other, sweep)) == 7


def test_unfinished_broken_and_foreign_folders_are_named(sweep, tmp_path):
    (sweep/"ce-1shot-0"/"result.json").unlink()
    write_json(sweep/"ce-1shot-0"/"failed.json", dict(attempts=3, reason="no memory"))
    (sweep/"ce-1shot-1"/"result.json").write_text('{"accuracy": 0.')
    (sweep/"dho-1shot-0"/"outputs.safetensors").write_bytes(b"half a fi")
    (sweep/"dho-1shot-1"/"outputs.safetensors").unlink()
    shutil.copytree(sweep/"dho-2shot-0", sweep/"stray")
    (sweep/"notes").mkdir()
    with pytest.warns(UserWarning, match="ce-1shot-1: broken"): frame = records.load_results(sweep)
    skipped = frame.attrs["skipped"]
    assert skipped["ce-1shot-0"] == "failed: no memory" and skipped["ce-2shot-1"] == "not begun"
    assert skipped["stray"].startswith("not among")
    assert skipped["ce-1shot-1"].startswith("broken") and "cannot be read" in skipped["dho-1shot-0"]
    assert "is not there" in skipped["dho-1shot-1"]
    assert frame["run"].tolist() == ["dho-1shot-0", "dho-1shot-1", "ce-2shot-0", "dho-2shot-0", "dho-2shot-1"]
    assert frame["right"].isna().tolist() == [True, True, False, False, False] and frame["accuracy"].notna().all()
    asked = records.expected_results(sweep).set_index("run")[["state", "reason"]]
    assert asked.loc["ce-1shot-0"].tolist() == ["missing", "failed: no memory"]
    for place, words in ((tmp_path/"nowhere", "does not exist"), (sweep/"notes", "holds no runs"),
                         (sweep/"ce-1shot-0", "failed: no memory")):
        with pytest.raises(DhoError, match=words): records.load_results(place)


def test_a_sweep_without_any_result_is_a_table_of_dashes(sweep):
    for run in sweep.iterdir():
        if run.is_dir(): shutil.rmtree(run)
    frame = records.load_results(sweep)
    assert len(frame) == 0 and len(records.expected_results(sweep)) == 8
    shown = reports.results_table(frame, columns="amount", expected=records.expected_results(sweep)).markdown()
    assert shown.count("– (0/2)") == 4
    with pytest.raises(DhoError, match="one at least"): html_report(sweep, sweep/"page.html")


def test_missing_cells_are_visible_in_every_form(sweep, tmp_path):
    frame, asked = records.load_results(sweep), records.expected_results(sweep)
    table = reports.results_table(frame, expected=asked)
    assert "(1/2)" in table.markdown() and "(1/2)" in table.latex() and "(1/2)" in table.html()
    alone = reports.results_table(frame[frame["run"] != "ce-2shot-0"], expected=asked)
    assert alone.runs.loc["ce", "2-shot"] == 0 and "– (0/2)" in alone.markdown() and "-- (0/2)" in alone.latex()
    less = asked[~((asked["method"] == "ce") & (asked["amount"] == "2-shot"))]
    assert "(0/" not in reports.results_table(frame[frame["run"] != "ce-2shot-0"],
                                              expected=less).markdown(), "what nobody asks for is not missing"
    table.csv(tmp_path/"t.csv")
    read = pd.read_csv(tmp_path/"t.csv").set_index(["method", "amount"])
    assert read.loc[("ce", "2-shot"), ["runs", "wanted"]].tolist() == [1, 2]
    of = frame[(frame["method"] == "dho") & (frame["amount"] == "1-shot")]["accuracy"]
    assert read.loc[("dho", "1-shot"), ["mean", "std"]].tolist() == pytest.approx([of.mean(), of.std(ddof=1)])


def slowly(a, b, draws, rng):
    "The paired bootstrap, image by image"
    seeds, n = sorted(a), len(next(iter(a.values())))
    found = []
    for _ in range(draws):
        images = rng.integers(n, size=n)
        found.append(np.mean([a[s][images].mean() - b[s][images].mean() for s in rng.choice(seeds, len(seeds))]))
    return np.mean([a[s].mean() - b[s].mean() for s in seeds]), *np.quantile(found, (.025, .975))


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_interval_is_that_of_drawing_one_by_one(seeds):
    rng = np.random.default_rng(seeds)
    a = {s: rng.random(600) < .6 + .05*s for s in range(seeds)}
    b = {s: np.where(rng.random(600) < .3, rng.random(600) < .5, a[s]) for s in a}
    mine, theirs = reports.paired_bootstrap_table(a, b, 4000), slowly(a, b, 4000, rng)
    assert mine[0] == pytest.approx(theirs[0], abs=1e-12) and mine[1:] == pytest.approx(theirs[1:], abs=5e-3)
    assert np.ptp(theirs[1:]) > .03, "an interval that could be missed"
    assert reports.paired_bootstrap_table(b, a, 4000)[0] == -mine[0] and reports.paired_bootstrap_table(a, a)[1:] == (0, 0)


def test_gains_follow_the_bits(sweep):
    frame = records.load_results(sweep)
    found = reports.method_gains(frame).set_index("amount")
    bits = lambda m: {l["seed"]: np.unpackbits(l["right"])[:l["tested"]].astype(bool)
                      for l in frame[frame["amount"] == "1-shot"].to_dict("records") if l["method"] == m}
    by_hand = slowly(bits("dho"), bits("ce"), 3000, np.random.default_rng(0))
    assert found.loc["1-shot", ["gain", "low", "high"]].tolist() == pytest.approx(by_hand, abs=.012)
    assert found["seeds"].to_dict() == {"1-shot": 2, "2-shot": 1}


def made_up(accuracies, seeds=3, n=900, **labels):
    "Runs of made-up methods, whose mistakes are nested so that they pair well"
    hard = np.random.default_rng(0).permutation((np.arange(n) + .5)/n)
    rows = [dict(run=f"{m}-{s}", method=m, labels="4-shot", seed=str(s), accuracy=(r := hard < a + .001*s).mean(),
                 tested=n, test="t", right=np.packbits(r), **labels)
            for m, a in accuracies.items() for s in range(seeds)]
    return pd.DataFrame(rows)


def test_only_what_the_bootstrap_supports_is_bold():
    sure = reports.results_table(made_up(dict(good=.8, fair=.6)))
    assert "**80." in sure.markdown() and r"\textbf{80." in sure.latex() and "<b>80." in sure.html()
    assert "*60" not in sure.markdown()
    tie = reports.results_table(made_up(dict(good=.8, same=.8, bad=.5)))
    assert tie.markdown().count("*80.") == 2 and "**" not in tie.markdown()
    assert "*" not in reports.results_table(made_up(dict(good=.8, fair=.6),
                                                    seeds=1)).markdown(), "one seed supports nothing"


def test_mixed_test_images_are_refused():
    frame = made_up(dict(dho=.8, ce=.6))
    frame.loc[frame["method"] == "ce", "test"] = "other"
    for ask in (reports.method_gains, reports.results_table):
        with pytest.raises(DhoError, match="dho-0 and ce-0 were tested on different images"): ask(frame)
    with pytest.raises(DhoError, match="different images"): reports.paired_bootstrap_table({0: np.ones(5)}, {0: np.ones(4)})


def test_what_varies_within_a_cell_is_refused_or_averaged():
    frame = pd.concat([made_up(dict(dho=.8, ce=.6), dataset="one"), made_up(dict(dho=.7, ce=.72), dataset="two")],
                      ignore_index=True)
    with pytest.raises(DhoError, match="dataset varies within a cell"): reports.results_table(frame)
    table = reports.results_table(frame, average="dataset")
    by_hand = frame.groupby(["method", "seed"])["accuracy"].mean().groupby("method").agg(["mean", "std"])
    assert table.frame["4-shot"].to_dict() == pytest.approx(by_hand["mean"].to_dict())
    assert table.std["4-shot"].to_dict() == pytest.approx(by_hand["std"].to_dict())
    incomplete = reports.results_table(frame.drop(index=frame.index[-1]), average="dataset")
    assert incomplete.runs.loc["ce", "4-shot"] == 2 and "(2/3)" in incomplete.markdown()
    gain = reports.method_gains(frame, average="dataset").iloc[0]
    assert gain["gain"] == pytest.approx(by_hand.loc["dho", "mean"] - by_hand.loc["ce", "mean"])
    assert gain["low"] < gain["gain"] < gain["high"]
    with pytest.raises(DhoError, match="two runs are both .*dho-0 and dho-0"):
        reports.results_table(pd.concat([made_up(dict(dho=.8)), made_up(dict(dho=.7))]))


def test_a_watched_twin_counts_once():
    frame = made_up(dict(dho=.8, ce=.6)).assign(watched=False)
    twin = frame[frame["run"] == "dho-0"].assign(watched=True, run="twin", accuracy=.1)
    table = reports.results_table(pd.concat([twin, frame], ignore_index=True))
    assert table.runs.loc["dho", "4-shot"] == 3 and table.frame.loc["dho", "4-shot"] > .75


def test_the_best_variant_is_chosen_on_validation_images_only():
    frame = made_up({"sho": .6, "sho-0.2": .7}).assign(val_accuracy=[.5, .9, .5, .6, .6, .6])
    chosen = reports.add_best_variant(frame, "sho-best", ["sho", "sho-0.2"])
    assert chosen[chosen["method"] == "sho-best"]["run"].tolist() == ["sho-0.2-0", "sho-1", "sho-0.2-2"]
    fewer = reports.add_best_variant(frame.drop(index=0), "sho-best", ["sho", "sho-0.2"])
    assert (fewer["method"] == "sho-best").sum() == 2, "where a variant is missing there is no choice"


class Page(HTMLParser):
    "Collects what a page refers to, and checks that its elements are closed"
    VOID = {"meta", "img", "br", "link", "hr", "input"}
    def __init__(self,
                 text): super().__init__(); self.open, self.links, self.ids = [], [], []; self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID: self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        self.ids += [v for k, v in attrs if k == "id"]
    def handle_endtag(self, tag): assert self.open.pop() == tag


def test_a_page_is_whole_and_refers_to_nothing_outside_it(sweep, tmp_path):
    text = html_report(sweep, tmp_path/"page.html", "A <small> sweep").read_text()
    page = Page(text)
    assert page.open == [] and "A &lt;small&gt; sweep" in text and "<script" not in text
    assert "url(" not in text and "@import" not in text
    assert all(l.startswith("data:image/svg+xml;base64,") or l[0] == "#" and l[1:] in page.ids for l in page.links)
    assert len(page.links) > 8
    assert "7 of 8 runs are there" in text and "ce-2shot-1" in text and "not begun" in text and "(1/2)" in text
    assert Page(html_report([records.record_results(sweep, tmp_path/"kept")], tmp_path/"kept.html").read_text()).open == []


def test_a_page_is_made_again_and_nobody_elses_is_replaced(sweep, tmp_path, dho):
    for _ in range(2): assert dho("report", sweep, "--out", tmp_path/"page.html")[0] == 0
    for verb, option, file in (("report", "--out", "mine.html"), ("table", "--runs", "mine.csv"),
                               ("report", "--title", "small/report.html")):
        (tmp_path/file).write_text("my own, about dho_nb")
        code, out, err = dho(verb, sweep, option, tmp_path/file)
        assert code == 2 and "is there already" in err and (tmp_path/file).read_text() == "my own, about dho_nb"


def test_a_home_is_found_before_it_is_looked_at(sweep, tmp_path, dho):
    (tmp_path/"mine.html").write_text("my own")
    code, out, err = dho("report", sweep, "--out=~/mine.html", HOME=str(tmp_path), USERPROFILE=str(tmp_path))
    assert code == 2 and "mine.html is there already" in err and (tmp_path/"mine.html").read_text() == "my own"
    code, out, err = dho("table", sweep, "--runs=~/runs.csv", HOME=str(tmp_path), USERPROFILE=str(tmp_path),
                         PYTHONIOENCODING="ascii")
    assert code == 0 and (tmp_path/"runs.csv").exists() and not (tmp_path/"~").exists()


def relabeled(sweep, rename, axes=("method", "shots", "seed")):
    "The sweep, as one whose runs have other labels"
    plan = read_json(sweep/"sweep.json")
    write_json(sweep/"sweep.json",
               dict(plan, axes=list(axes), cells=[dict(c, labels=rename(c["labels"])) for c in plan["cells"]]))
    return sweep


def test_a_method_without_labels_that_stands_at_every_amount_keeps_the_pages_tables(sweep, tmp_path):
    relabeled(sweep, lambda l: dict(method=l["method"], shots=l["amount"][0], seed=l["seed"]))
    for run in [p for p in sweep.iterdir() if p.name.startswith("ce")]:
        for file, keys in (("result.json", ()), ("run.json", ("config",))):
            found = held = read_json(run/file)
            for k in keys: held = held[k]
            held["method"] = "kd"
            write_json(run/file, found)
    relabeled(sweep, lambda l: {**l, "method": l["method"].replace("ce", "kd")})
    text = html_report(sweep, tmp_path/"page.html").read_text()
    frame = records.load_results(sweep)
    assert reports.label_free_table_methods(frame) == {"kd"} and len(reports.repeat_label_free_rows(frame)) == len(frame)
    assert "bad" not in [w for w in text.split('"')] and text.count("<th>kd</th>") == 1 and "(1/2)" in text


def test_a_page_without_test_images_says_so_and_has_no_empty_parts(sweep, tmp_path, dho):
    frame = records.load_results(sweep)
    for run in [p for p in sweep.iterdir() if p.is_dir()]:
        result = read_json(run/"result.json")
        write_json(run/"result.json", {k: None if "accuracy" in k or k.startswith("agreement") else v
                                       for k, v in dict(result, tested=0).items()})
        said = pd.read_csv(run/"predictions.csv")
        said.assign(split=said["split"].replace("test", "")).to_csv(run/"predictions.csv", index=False)
    text = html_report(sweep, tmp_path/"page.html").read_text()
    assert f'<section id="accuracy"><h2>Accuracy</h2><p>{escape(reports.UNTESTED)}</p></section>' in text
    assert "<div class=\"many\"></div>" not in text
    assert 'class="bad"' not in text and len(frame) == 7
    assert reports.UNTESTED in dho("table", sweep)[1]


def test_figures_are_written_in_three_forms_and_are_repeatable(sweep, tmp_path):
    frame = records.load_results(sweep)
    for folder in ("a", "b"): written = figures.save_figure(figures.shots_figure(frame), tmp_path/folder, "shots")
    assert [p.suffix for p in written] == [".pdf", ".svg", ".png"]
    for p in written: assert p.read_bytes() == (tmp_path/"a"/p.name).read_bytes()
    assert len(figures.reliabilities_figure(sweep)) == len(figures.surfaces_figure(sweep)) == 2
    assert figures.agreements_figure(frame) and figures.conflicts_figure(sweep)
    with pytest.raises(DhoError, match="conflict=True"): figures.conflicts_figure(sweep/"ce-1shot-0")


def test_the_committed_results_are_a_record(tmp_path):
    frame = records.load_results(RESULTS)
    right = [np.unpackbits(b)[:n].mean() for b, n in zip(frame["right"], frame["tested"])]
    assert len(frame) >= 39 and frame["identity"].is_unique and np.allclose(right, frame["accuracy"], atol=1e-6)
    assert {"student", "method", "labels", "seed"} <= set(frame.attrs["axes"])
    assert (reports.method_gains(reports.repeat_label_free_rows(frame)).set_index("method").loc["ce", "low"] > 0).any()
    assert Page(html_report(RESULTS, tmp_path/"page.html").read_text()).open == []


def test_the_modules_open_without_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, dho_nb.reports.html; print('torch' in sys.modules)"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_labels_come_from_a_function_where_no_sweep_has_them(sweep):
    (sweep/"sweep.json").unlink()
    frame = records.load_results(sweep, labels=lambda c: dict(student="small one", method=c["method"].upper(),
                                                      seed=c["seed"]) if c["shots"] == 1 else None)
    assert set(frame["method"]) == {"CE", "DHO"} and set(frame["student"]) == {"small one"}
    assert set(frame["student_value"]) == {"tiny"} and set(frame["seed"]) == {"0", "1"}
    assert frame.attrs["axes"] == ["student", "method", "seed"]
    assert frame.attrs["skipped"]["dho-2shot-0"] == "left out by labels"
    assert json.dumps(sorted(frame["labels"].unique())) == '["1-shot"]'


def test_two_sweeps_by_one_name_do_not_share_a_record(tmp_path):
    for kind, named in (("one", "digits"), ("two", "paper/imagenet-fewshot-resnet18")):
        (tmp_path/kind).mkdir()
        cell = dict(run=kind, identity=kind, labels=dict(seed="0"), parameters=dict(preset=named))
        (tmp_path/kind/"sweep.json").write_text(json.dumps(dict(name="grid", axes=["seed"], cells=[cell])))
    records.record_results(tmp_path/"one", tmp_path/"kept")
    with pytest.raises(DhoError, match="another sweep called grid"): records.record_results(tmp_path/"two", tmp_path/"kept")
    assert list(read_json(tmp_path/"kept"/"cells.json")["grid"]["cells"][0]["labels"]) == ["seed"]


@pytest.mark.parametrize("file, held",
                         [("runs.csv", b""), ("runs.csv", b"identity;run\n1;2\n"), ("right.npz", b"PK cut")])
def test_a_record_that_was_damaged_is_named(tmp_path, file, held):
    (tmp_path/"runs.csv").write_text("identity,run,sweep\n1,a,b\n")
    (tmp_path/file).write_bytes(held)
    with pytest.raises(DhoError, match=f"{file}.*bring it back"): records.load_results(tmp_path)


def test_a_run_as_a_page_compares_classes_that_are_called_by_numbers(tmp_path):
    (tmp_path/"predictions.csv").write_text("path,split,label,prediction,ce_prediction,kd_prediction\n"
                                            "a.png,test,007,007,007,08\nb.png,test,08,08,08,08\nc.png,train,,08,08,08\n")
    cells = read_json(ROOT/"nbs"/"experiments"/"distill.ipynb")["cells"]
    known = dict(pd=pd, run=SimpleNamespace(folder=tmp_path))
    exec(next(text for c in cells if "apart =" in (text := "".join(c["source"]))), known)
    assert known["apart"]["path"].tolist() == ["a.png"], "only one head is right about it"


def variant(source, place, cells, axes, name=None):
    "A sweep whose runs are copies of one, told other things: (labels, configuration, result) of each"
    listed = []
    for i, (labels, config, result) in enumerate(cells):
        folder = shutil.copytree(source, place/f"run{i}")
        note, found, identity = read_json(folder/"run.json"), read_json(folder/"result.json"), f"{place.name}{i}"
        write_json(folder/"run.json", {**note, "identity": identity, "config": {**note["config"], **config}})
        write_json(folder/"result.json", {**found, "identity": identity, "seed": int(labels["seed"]), **result})
        listed.append(dict(run=folder.name, identity=identity, labels=labels, parameters={}))
    write_json(place/"sweep.json", dict(name=name or place.name, axes=axes, cells=listed))
    return place


def test_what_differs_between_sweeps_is_seen_in_records_too(sweep, tmp_path):
    one = lambda lr, seeds: [(dict(method="dho", seed=str(s)), dict(lr=lr, seed=s), {}) for s in seeds]
    a = variant(sweep/name("dho", 1, 1), tmp_path/"a", one(.1, (0, 1)), ["method", "seed"])
    b = variant(sweep/name("dho", 1, 1), tmp_path/"b", one(.9, (2, 3)), ["method", "seed"])
    kept = records.record_results(a, tmp_path/"kept")
    for places in ((a, b), (kept, b), (kept, records.record_results(b, tmp_path/"other"))):
        with pytest.raises(DhoError, match="lr varies within a cell"): reports.results_table(records.load_results(*places))
    records.record_results(b, kept)
    frame = records.load_results(kept)
    assert frame["lr"].tolist() == ["0.1", "0.1", "0.9", "0.9"] and frame.attrs["axes"] == ["method", "seed", "lr"]
    again = records.load_results(records.record_results(kept, tmp_path/"again"))
    assert again["lr"].tolist() == frame["lr"].tolist()
    assert html_report([kept, b], tmp_path/"page.html").exists() and len(records.result_surfaces(kept)) > 0


def test_sweeps_of_different_axes_have_one_meaning_of_each(sweep, tmp_path):
    source = sweep/name("dho", 2, 0)
    plain = variant(source, tmp_path/"plain", [(dict(method="dho", seed=str(s)), dict(seed=s, validation="none", alpha=.5,
                                               beta=1.), dict(alpha=.5, beta=1.)) for s in (0, 1)], ["method", "seed"])
    alpha = variant(source, tmp_path/"alpha", [(dict(alpha=a, beta="1", seed=str(s)), dict(seed=s, validation="none",
                                               alpha=float(a), beta=1.), dict(alpha=float(a), beta=1.))
                                               for a in ("0.2", "0.5") for s in (2, 3)], ["alpha", "beta", "seed"])
    frame, asked = records.load_results(plain, alpha), records.expected_results(plain, alpha)
    assert frame["alpha"].tolist() == ["0.5", "0.5", "0.2", "0.2", "0.5", "0.5"]
    assert set(frame["beta"]) == {"1"} and frame["alpha_value"].tolist() == [.5, .5, .2, .2, .5, .5]
    assert set(frame["method"]) == {"dho"} and set(frame["labels"]) == {"2-shot"}
    table = reports.results_table(frame, "alpha", "method", expected=asked)
    assert table.runs["dho"].to_dict() == {"0.2": 2, "0.5": 4} and "–" not in str(table).splitlines()[-2]
    with pytest.raises(DhoError, match="alpha is an axis"): reports.results_table(frame, "method", value="alpha")
    text = html_report([plain, alpha], tmp_path/"page.html").read_text()
    assert text.count("<th>alpha</th>") == 1 and len(figures.reliabilities_figure(plain, alpha)) == 2
    kept = [records.record_results(p, tmp_path/f"kept {p.name}") for p in (plain, alpha)]
    assert html_report(kept, tmp_path/"kept.html").exists()
    assert records.load_results(*kept)["alpha"].tolist() == frame["alpha"].tolist()


def test_labels_of_a_function_are_recorded(sweep, tmp_path):
    ours = lambda c: dict(method="ours" if c["method"] == "dho" else c["method"], kind="small")
    frame = records.load_results(sweep, labels=ours)
    kept = records.load_results(records.record_results(sweep, tmp_path/"kept", ours))
    assert len(kept) == len(frame) == 7 and set(kept["method"]) == {"ours", "ce"} and "kind" in kept.attrs["axes"]
    assert len(figures.reliabilities_figure(sweep, labels=ours)) == 2, "the method is known by its own name"
    gathered = records.load_results(sweep, labels=lambda c: dict(shots="some"))
    assert set(gathered["shots"]) == {"some"} and len(gathered) == 7
    with pytest.raises(DhoError, match="cannot be called run"): records.load_results(sweep, labels=lambda c: dict(run="mine"))


@pytest.mark.parametrize("config, result, said", [
    (dict(embeddings="{}"), {}, "embeddings varies"), (dict(lr=.5), {}, "lr varies"), (dict(alpha=.1), {}, ""),
    (dict(validation="none"), {}, "validation varies")])
def test_what_is_idle_is_no_difference(sweep, tmp_path, config, result, said):
    cells = [(dict(method="dho", seed=str(s)), {k: v.format(s) if v == "{}" else v for k, v in config.items()} if s else {},
              result) for s in (0, 1)]
    frame = records.load_results(variant(sweep/name("dho", 1, 1), tmp_path/"v", cells, ["method", "seed"]))
    if not said: assert str(reports.results_table(frame)); return
    with pytest.raises(DhoError, match=said): reports.results_table(frame)


def test_other_images_are_other_runs(sweep, tmp_path):
    place = variant(sweep/name("ce", 1, 1), tmp_path/"v", [(dict(seed=str(s)), dict(teacher=f"t{s}"), {}) for s in (0, 1)],
                    ["seed"])
    assert str(reports.results_table(records.load_results(place))), "labels alone ask no teacher"
    note = read_json(place/"run1"/"run.json")
    write_json(place/"run1"/"run.json", {**note, "manifest": "another"})
    with pytest.raises(DhoError, match="images varies within a cell"): reports.results_table(records.load_results(place))


def test_a_card_of_a_run_whose_table_is_gone_or_was_saved_otherwise(sweep):
    from dho_nb.deploy.model_card import model_card
    run = sweep/name("dho", 2, 0)
    whole = model_card(run)
    said = pd.read_csv(run/"predictions.csv")
    said.to_csv(run/"predictions.csv", sep=";", index=False)
    with pytest.raises(DhoError, match="saved it with other separators; delete it"): model_card(run)
    (run/"predictions.csv").unlink()
    assert "| KD head |" in whole and "| KD head |" not in model_card(run)


def test_outputs_of_before_are_read(sweep):
    from safetensors.torch import load_file, save_file
    from dho_nb.evaluation.outputs import load_outputs
    file = sweep/name("dho", 2, 0)/"outputs.safetensors"
    (now, ids), tensors = load_outputs(file), load_file(file)
    said = {k: bytes(tensors.pop(k).numpy()).decode() for k in ("ids", "paths") if k in tensors}
    save_file(tensors, file, said)
    then, same = load_outputs(file)
    assert same == ids and then.ce.equal(now.ce)
    save_file(tensors, file)
    with pytest.raises(DhoError, match="holds no head outputs"): load_outputs(file)


def test_a_run_whose_outputs_are_damaged_does_not_keep_the_others_from_a_record(sweep, tmp_path):
    file = sweep/name("dho", 2, 0)/"outputs.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="its outputs cannot be read"): kept = records.record_results(sweep, tmp_path/"kept")
    assert len(records.load_results(kept)) == 7 and set(records.result_surfaces(kept)["amount"]) == {"1-shot"}


def forged(original, place, axes):
    "A sweep over some axes whose runs are copies of two"
    grid = make_grid("forged", dict(preset="digits", epochs=1, validation="few", views=2, shots=1, fraction=0.), axes)
    cells = [dict(run=f"{c.name}-{json_hash(c.parameters, 8)}", identity=json_hash(c.parameters), labels=c.labels,
                  parameters=c.parameters) for c in grid.cells]
    for c in cells:
        own = shutil.copytree(original/name(c["parameters"].get("method", "dho"), 1, 1), place/c["run"])
        note, result = read_json(own/"run.json"), read_json(own/"result.json")
        write_json(own/"run.json", dict(note, identity=c["identity"], config={**note["config"], **c["parameters"]}))
        write_json(own/"result.json", dict(result, identity=c["identity"], **{k: v for k, v in c["parameters"].items()
                                                                              if k in result and k != "labels"}))
    write_json(place/"sweep.json", dict(name="forged", axes=grid.axes, cells=cells))
    return place


two = [dict(name="a", lr=.1), dict(name="b", lr=.2)]
AXES = {"nothing": {}, "one value": dict(lr=[.001]), "one axis": dict(lr=[.001, .01]),
        "datasets and seeds": dict(dataset=["digits", "eurosat"], seed=[0, 1]),
        "two of one value": dict(lr=[.01], epochs=[1]),
        "two": dict(lr=[.01, .1], epochs=[1, 2], seed=[0, 1]), "a figure's name": dict(alpha=[.1, .5]),
        "labels": dict(labels=[dict(name="few", shots=1), dict(name="more", shots=2)]),
        "truth values": dict(include_labeled=[True, False], method=["ce", "dho"]),
        "dicts": dict(student_args=[dict(widths=[8, 8]), dict(widths=[16, 8])]),
        "lists": dict(classes=[["0=zero"], ["1=one"]]), "steps": dict(steps=two), "nothing as a label":
        dict(variant=[dict(name="", lr=.1), dict(name="None", lr=.2), dict(name="nan", lr=.3)]),
        "long names": dict(variant=[dict(name="京"*90 + "<b>|$x$", lr=.1), dict(name="京"*90 + "\\", lr=.2)])}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_whatever_the_axes_are_there_is_a_page_and_a_record(original, tmp_path, monkeypatch, axes):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    place = forged(original, tmp_path/"forged", axes)
    count = len(read_json(place/"sweep.json")["cells"])
    for source in (place, records.record_results(place, tmp_path/"kept")):
        text = html_report(source, tmp_path/"page.html").read_text(encoding="utf-8")
        assert Page(text).open == [] and f"{count} of {count} runs are there" in text
        assert 'class="bad"' not in text or len(axes) > 2, "one figure cannot show two axes beside methods and labels"
        frame, by = records.load_results(source), [a for a in axes if a != "seed"] or ["method"]
        table = reports.results_table(frame, by, (), expected=records.expected_results(source), teacher=True)
        assert len(frame) == count and all(getattr(table, f)() for f in ("markdown", "latex", "csv", "html", "__repr__"))
        figures.method_bars_figure(frame.assign(cell=frame[by].agg("".join, axis=1)), "cell") if len(by) < 2 else None


def test_all_runs_failed(original, tmp_path):
    place = forged(original, tmp_path/"forged", dict(lr=[.001, .01]))
    for run in place.glob("*/result.json"):
        run.unlink()
        write_json(run.parent/"failed.json", dict(attempts=3, reason="no memory"))
    with pytest.raises(DhoError, match="one at least"): html_report(place, tmp_path/"page.html")
    assert "– (0/1)" in reports.results_table(records.load_results(place), "lr", (), expected=records.expected_results(place)).markdown()


@pytest.mark.parametrize("axis", ["tested", "validated", "nll", "α", "gain", "seeds", "_recipe", "agreement_both_right", ""])
def test_columns_that_tables_compute_with_are_no_axes(axis):
    with pytest.raises(DhoError, match="cannot be called"): make_grid("x", dict(preset="digits"), {axis: two})
