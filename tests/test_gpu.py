"make gpu: every part at toy size on a CPU; a part that fails or hangs is recorded, and the others go on"
import ast
import json
import os
import subprocess
import sys
import time

import pytest

from conftest import ROOT

BENCHMARKS = ROOT/"nbs"/"benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402


def test_every_part_works_at_toy_size(tmp_path):
    done = subprocess.run([sys.executable, BENCHMARKS/"gpu.py", "--device", "cpu", "--out", tmp_path], capture_output=True, text=True,
                          cwd=tmp_path, timeout=500, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    record = json.loads((tmp_path/"record.json").read_text())
    assert {name: p["state"] for name, p in record["parts"].items()} == dict.fromkeys(gpu.PARTS, "done")
    rows = [r for p in record["parts"].values() for r in p["rows"]]
    assert all(p["rows"] for p in record["parts"].values()) and sum(r["ok"] is True for r in rows) > 12
    assert record["machine"]["device"].startswith("cpu") and record["machine"]["size"].startswith("toy")
    table = (tmp_path/"record.md").read_text()
    assert all(r["name"] in table for r in rows) and "missing" in done.stdout.splitlines()[0]
    assert not list(tmp_path.glob("dho-gpu-*")), "the parts' folder stays"


PARTS = """
import json, os, sys, time
tell = lambda **event: print(json.dumps(event), flush=True)
tell(event="machine", facts=dict(device="none"))
for name in json.loads(sys.argv[1])["parts"]:
    tell(event="begin", part=name, seconds=2)
    tell(event="row", row=dict(name=f"first of {name}", value=1.0, unit="", least=None, most=None, ok=name != "wrong" and None, note=""))
    if name == "hangs": time.sleep(60)
    if name == "dies": os._exit(9)
    tell(event="end", state="failed" if name == "raises" else "done", error="ValueError: no | such" if name == "raises" else "")
    if name == "raises": break
"""

def parts_of(tmp_path, monkeypatch, names, seconds=30, text=PARTS):
    (tmp_path/"gpu_parts.py").write_text(text)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    record = gpu.Record(tmp_path/"out")
    gpu.run_parts(names, record, {}, dict(os.environ), seconds)
    return record


def test_what_fails_hangs_or_dies_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    record = parts_of(tmp_path, monkeypatch, ["one", "hangs", "two", "raises", "dies", "three"])
    parts = json.loads((tmp_path/"out"/"record.json").read_text())["parts"]
    assert {n: p["state"] for n, p in parts.items()} == dict(one="done", hangs="out of time", two="done", raises="failed", dies="failed", three="done")
    assert all(len(p["rows"]) == 1 for p in parts.values()), "a figure that was there is gone"
    assert parts["raises"]["error"] == "ValueError: no | such" and "exit code 9" in parts["dies"]["error"]
    table = (tmp_path/"out"/"record.md").read_text()
    assert "no / such" in table and not record.sound


def test_a_bound_that_does_not_hold_is_a_failure(tmp_path, monkeypatch):
    assert parts_of(tmp_path, monkeypatch, ["one"]).sound
    assert not parts_of(tmp_path, monkeypatch, ["one", "wrong"]).sound


def test_the_whole_ends_in_time_and_says_what_was_left_out(tmp_path, monkeypatch):
    began = time.monotonic()
    parts = parts_of(tmp_path, monkeypatch, ["hangs", "one", "hangs", "two"][:2], seconds=6).facts["parts"]
    assert time.monotonic() - began < 9
    assert parts["hangs"]["state"] == "out of time" and parts["one"]["state"] in ("done", "no time left")


def test_parts_that_cannot_begin_are_said(tmp_path, monkeypatch):
    record = parts_of(tmp_path, monkeypatch, ["one", "two"], text="raise SystemExit('no torch')")
    assert {p["state"] for p in record.facts["parts"].values()} == {"failed"}
    assert "no torch" in (tmp_path/"out"/"log.txt").read_text()


def test_missing_packages_come_from_wheels(tmp_path):
    wheels = tmp_path/"wheels"
    source = tmp_path/"source"
    source.mkdir()
    (source/"only_here.py").write_text("value = 3\n")
    (source/"pyproject.toml").write_text('[project]\nname = "only_here"\nversion = "1"\n[tool.setuptools]\npy-modules = ["only_here"]\n')
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", wheels, source], check=True)
    assert gpu.install(wheels, ["only-here", "gone"], tmp_path/"site") == ["gone"]
    code = "import only_here; print(only_here.value)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path/"site")}, capture_output=True, text=True).stdout == "3\n"


def test_parts_are_described_and_the_packages_are_the_projects():
    functions = {n.name: n for n in ast.parse((BENCHMARKS/"gpu_parts.py").read_text()).body if isinstance(n, ast.FunctionDef)}
    assert all(ast.get_docstring(functions[name]) for name in gpu.PARTS)
    declared = (ROOT/"pyproject.toml").read_text()
    assert all(p in declared for p in set(gpu.NEEDED.values()) - {"ftfy", "regex", "wcwidth"})
    assert set(gpu.WHEELS) <= set(gpu.NEEDED.values())


def test_the_page_shows_the_last_record():
    records = sorted((BENCHMARKS/"gpu_records").glob("*.json"))
    cells = json.loads((BENCHMARKS/"gpu.ipynb").read_text())["cells"]
    shown = json.dumps([c["outputs"] for c in cells if c["cell_type"] == "code"])
    if not records: return_shown = "never measured" in shown
    else: return_shown = json.loads(records[-1].read_text())["date"] in shown and "never measured" not in shown
    assert return_shown


@pytest.mark.parametrize("argument", ["losess", "main"])
def test_an_unknown_part_is_refused(tmp_path, argument):
    done = subprocess.run([sys.executable, BENCHMARKS/"gpu.py", argument, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and f"no part {argument}" in done.stderr
