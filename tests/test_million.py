"A pool from shards to predictions at toy size; shards and ingested folders are predicted as a stream, like their files"
import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from conftest import fails, ROOT
from dho_nb.data.ingest import ingest, is_streamed, stream_images
from dho_nb.data.manifests import write_digits_images
from dho_nb.deploy.predictor import Predictor, write_predictions
from dho_nb.students.dual_head import build_student, save_student

BENCHMARKS = ROOT/"nbs"/"benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import million  # noqa: E402


def test_every_stage_works_at_toy_size(tmp_path):
    command = [sys.executable, BENCHMARKS/"million.py", "--sizes", "1000", "2000", "--out", tmp_path/"out", "--folder", tmp_path/"pools"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + (tmp_path/"out"/"log.txt").read_text()[-3000:]
    record = json.loads((tmp_path/"out"/"record.json").read_text())
    assert {*record["stages"]} == {"shards", *million.STAGES}
    for name, sizes in record["stages"].items():
        assert {*sizes} == {"1000", "2000"} and all(f["seconds"] > 0 and 2**26 < f["private"] < million.LIMIT for f in sizes.values()), name
        assert len(record["slopes"][name]) == 1 and name in (tmp_path/"out"/"record.md").read_text()
    assert record["bytes"]["2000"]["shards"] > 2e6 and not (tmp_path/"pools"/"2000").exists()


def test_a_stage_that_fails_is_recorded_and_the_next_ones_go_on(tmp_path, monkeypatch):
    def broken(folder, images): raise ValueError("no such pool")
    monkeypatch.setattr(million, "STAGES", dict(plan=broken, pool=lambda folder, images: "well"))
    monkeypatch.setattr(million, "write_shards", lambda folder, images, classes: folder.mkdir(parents=True))
    for name in ("DHO_CACHE", "DHO_RUNS", "DHO_PROGRESS", "DHO_DEVICE", "DHO_WORKERS"): monkeypatch.setenv(name, os.environ.get(name, ""))
    record = dict(date="", commit="", machine={}, bytes={}, stages=dict(shards={}, plan={}, pool={}), slopes={})
    assert not million.run_size(record, 10, tmp_path/"pool", tmp_path, ["plan", "pool"])
    assert record["stages"]["plan"]["10"]["error"] == "ValueError: no such pool" and record["stages"]["pool"]["10"]["note"] == "well"
    assert "failed" in (tmp_path/"record.md").read_text()


def test_slopes_are_exponents():
    points = {str(n): dict(processor=1e-6*n**2) for n in (1000, 10000, 100000)}
    assert million.slopes(dict(stages=dict(square=points, one={"10": dict(processor=1.0)}, bad={"10": dict(error="x")}))) == dict(square=[2, 2], one=[], bad=[])


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    "Sixty digits as files, as tar shards and ingested, and a student of two heads"
    root = tmp_path_factory.mktemp("pool")
    photos = [*sorted((write_digits_images(root/"digits")/"one").iterdir())[:60]]
    (root/"files").mkdir(), (root/"shards").mkdir()
    for k in range(3):
        with tarfile.open(root/"shards"/f"pool-{k}.tar", "w") as archive:
            for file in photos[k::3]:
                (root/"files"/file.name).write_bytes(file.read_bytes())
                archive.add(file, file.name)
    (root/"labels.csv").write_text(f"path,label\n{photos[0].name},a\n{photos[1].name},b\n")
    ingest(str(root/"shards"), root/"ingested", 8, labels=root/"labels.csv", mode="none")
    save_student(build_student("tiny", 2, 2, "", 16), root/"model.safetensors", spec="tiny", args={}, classes=["a", "b"], alpha=.5, beta=.5)
    return root


def predicted(pool, source):
    records = [*Predictor.from_pretrained(pool/"model.safetensors", "cpu").each(source, batch=7)]
    return {os.path.basename(r.pop("file")): r for r in records}


@pytest.mark.parametrize("source", ["shards", "shards/*.tar", "shards/pool-{0..2}.tar", "ingested"])
def test_streams_are_predicted_like_files(pool, source):
    files, streamed = predicted(pool, pool/"files"), predicted(pool, str(pool/source))
    assert len(files) == 60 and files == streamed


def test_the_command_predicts_shards(pool, tmp_path, capsys):
    from dho_nb.cli.main import main
    assert not main(["predict", str(pool/"model.safetensors"), str(pool/"shards"), str(pool/"files"), "--out", str(tmp_path/"out.csv")])
    assert "120 pictures" in capsys.readouterr().out
    with open(tmp_path/"out.csv") as f: assert len([*csv.DictReader(f)]) == 120


def test_what_is_read_as_a_stream(pool, tmp_path):
    assert not is_streamed(pool/"files") and not is_streamed(tmp_path) and not is_streamed(pool/"files"/"photo.png")
    (tmp_path/"photo.jpg").touch(), (tmp_path/"a.tar").touch()
    assert not is_streamed(tmp_path), "a folder of pictures with an archive beside them"
    assert is_streamed("s3://bucket/pool") and is_streamed(pool/"ingested") and not is_streamed(["a.tar"])


def test_a_broken_image_has_a_problem_and_a_broken_shard_is_named(pool, tmp_path):
    with tarfile.open(tmp_path/"bad.tar", "w") as archive:
        for name, data in {"one.png": next((pool/"files").iterdir()).read_bytes(), "two.png": b"no picture"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = predicted(pool, tmp_path/"bad.tar")
    assert not found["one.png"]["problem"] and "cannot be decoded" in found["two.png"]["problem"]
    cut = (tmp_path/"bad.tar").read_bytes()[:1200]
    (tmp_path/"bad.tar").write_bytes(cut)
    fails(lambda: predicted(pool, tmp_path/"bad.tar"), "bad.tar cannot be read to its end")


def test_streams_take_constant_memory(tmp_path):
    "Twelve megabytes of images, of which a few are in memory at a time"
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    with tarfile.open(tmp_path/"pool.tar", "w") as archive:
        for k in range(1000):
            info = tarfile.TarInfo(f"{k:04d}.png")
            info.size = len(file.getvalue())
            archive.addfile(info, io.BytesIO(file.getvalue()))
    tracemalloc.start()
    count = sum(1 for _ in stream_images(tmp_path/"pool.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1000 and peak < 2e6, f"{peak/1e6:.1f} MB"


def test_predictions_are_written_as_they_come(pool, tmp_path):
    "The whole list is never in memory: a record is written before the last image is read"
    seen = []
    def images():
        for k, image in enumerate(stream_images(pool/"shards")): seen.append(k); yield image
    model = Predictor.from_pretrained(pool/"model.safetensors", "cpu")
    first = next(model.each(images(), batch=7))
    assert first["prediction"] in ("a", "b") and len(seen) <= 21
    assert write_predictions(model.each(str(pool/"shards")), tmp_path/"out.jsonl") == (60, 0)
