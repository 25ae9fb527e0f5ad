"Killed between any two file operations and run again, a command leaves what it leaves undisturbed"
import os
import random
import time

import pandas as pd
import pytest

from crashpoints import PLANTED, SCENARIOS, Lab
from dho_nb.runs.config import make_config
from dho_nb.runs.run import Run, distill

pytestmark = pytest.mark.skipif("not os.path.isdir('/proc/self/fd')", reason="points are counted on Linux")
SAMPLE = {"run": 2, "store-begun": 2, "store-grown": 2, "store-shared": 3, "export-onnx": 1, "export-safetensors": 3,
          "predict-rest": 3, "record-begun": 4, "record-grown": 4, "predict": 3,
          "mirror-begun": 2, "mirror-changed": 2, "label": 2}  # points; 6 of any other


@pytest.fixture(scope="module")
def lab(tmp_path_factory): return Lab(tmp_path_factory.mktemp("lab"))


def some(name, points):
    "A few points, drawn by the seed that DHO_CRASHPOINTS holds, or by the clock; all points for DHO_CRASHPOINTS=all"
    if os.environ.get("DHO_CRASHPOINTS") == "all": return range(1, len(points) + 1)
    seed = int(os.environ.get("DHO_CRASHPOINTS", 0)) or time.time_ns() % 10**6
    print(f"DHO_CRASHPOINTS={seed}")
    last = len(points)//(4 if SCENARIOS[name].helper else 1)  # where two share the work, neither gets through all points
    return sorted(random.Random(seed).sample(range(1, last + 1), min(last, SAMPLE.get(name, 6))))


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n not in PLANTED])
def test_a_killed_command_ends_as_its_undisturbed_twin(lab, name):
    if name == "export-onnx": [pytest.importorskip(m) for m in ("onnx", "onnxscript", "onnxruntime")]
    lab.take(name)
    tried = some(name, lab.points)
    assert lab.tried(tried) == {}
    assert lab.kills == len(tried) if not lab.scenario.helper else lab.kills > 0


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(lab, name):
    lab.take(name)
    _, before, said = PLANTED[name]
    fatal = 1 + next(k for k, what in enumerate(lab.points, 1) if what.startswith(before))
    found = lab.tried([fatal])
    assert said in " ".join(found[f"{fatal}: {lab.points[fatal - 1]}"])


@pytest.mark.parametrize("place", ["pixels.npy", "sizes.npy"])
def test_a_map_killed_while_it_grows_has_the_header_of_its_length(lab, place):
    lab.take("map-grown")
    grown = next(k for k, what in enumerate(lab.points, 1) if what == f"os.truncate out/{place}")
    assert lab.tried(range(grown - 1, grown + 3)) == {}


@pytest.mark.parametrize("name", ["map-grown", "store-grown"])
def test_locks_of_a_process_that_was_killed_while_it_removed_them_go(lab, name):
    lab.take(name)
    last = [k for k, what in enumerate(lab.points, 1) if what.startswith("os.remove out/.claims/")]
    assert lab.tried(last[:1] + last[-1:]) == {} and ".claims" not in " ".join(lab.twin)


def test_a_run_that_was_begun_with_all_and_finished_with_test_can_still_predict_all(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    asked = dict(dataset=str(tree), shots=2, teacher="digits", student="tiny", student_weights="", size=16, epochs=1,
                 test=.3)
    begun = Run(make_config(dict(asked, predict="all")), tmp_path/"run", "none")  # killed here: run.json is all there is
    begun.release()
    lines = lambda how: len(pd.read_csv(distill(make_config(dict(asked, predict=how)), tmp_path/"run",
                                                "none").folder/"predictions.csv"))
    assert 0 < lines("test") < len(begun.manifest) == lines("all")
