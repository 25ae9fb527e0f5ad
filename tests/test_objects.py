"Tables, manifests and Hugging Face datasets in place of a file or a folder"
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import fails, OPTIONS, picture
from dho_nb.data.manifests import manifest_from_folder, open_manifest
from dho_nb.data.objects import dataset_from_object
from dho_nb.runs.config import Config
from dho_nb.runs.inputs import resolve
from dho_nb.runs.run import distill


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    for name in ("cache", "runs"): monkeypatch.setenv(f"DHO_{name.upper()}", str(tmp_path/name))


@pytest.fixture
def tree(tmp_path):
    for i, name in enumerate(("cat", "dog")):
        for k in range(4): picture(tmp_path/"tree"/name/f"{k}.png", seed=10*i + k)
    return tmp_path/"tree"


def test_a_folder_its_manifest_and_two_tables_are_one_dataset(tree):
    manifest = manifest_from_folder(tree)
    table = manifest.table.assign(label=np.array(manifest.classes)[manifest.table["label"]])[["path", "label"]]
    absolute = table.assign(path=[tree/p for p in table["path"]])
    given = dict(manifest=(manifest, tree), table=(table, tree), absolute=(absolute, ""), folder=(tree, ""))
    made = {name: Config(dataset=dataset, root=root, **OPTIONS) for name, (dataset, root) in given.items()}
    inputs = {name: resolve(config) for name, config in made.items()}
    assert len({i.data.hash for i in inputs.values()}) == 1 and len({i.data.files for i in inputs.values()}) == 1
    assert len({i.identity for i in inputs.values()}) == 1
    assert all(isinstance(c.dataset, str) for c in made.values())
    assert made["absolute"].root == str(tree)


def test_a_run_on_a_table_is_resumed_by_another_table_of_the_same(tree):
    table = pd.DataFrame(dict(path=[f"{n}/{k}.png" for n in ("cat", "dog") for k in range(4)], label=["cat"]*2 + [None]*2 + ["dog"]*2 + [None]*2))
    run = distill(Config(dataset=table, root=tree, **OPTIONS), mode="none")
    assert run.result["labeled"] == 4 and len(run.manifest) == 8
    assert distill(Config(dataset=table.copy(), root=tree, **OPTIONS), mode="none").folder == run.folder


def test_wrong_tables_are_refused_each_time(tree):
    for _ in range(2):  # nothing wrong stays in the cache
        fails(lambda: Config(dataset=pd.DataFrame(dict(file=["a"])), **OPTIONS), "column path", "['file']")
        fails(lambda: Config(dataset=pd.DataFrame(dict(path=["a.png", "a.png"])), **OPTIONS), "a.png")
        fails(lambda: Config(dataset=7, **OPTIONS), "not int")


def huggingface(datasets, tree):
    names = ["cat", "dog"]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = [dict(image=str(tree/n/f"{k}.png"), label=i if k < 2 else -1) for i, n in enumerate(names) for k in range(4)]
    return datasets.Dataset.from_list(rows, features=features)


def test_a_hugging_face_dataset_goes_into_a_configuration(tree):
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets")
    dataset = huggingface(datasets, tree)
    config = Config(dataset=dataset, **OPTIONS)
    manifest = open_manifest(config.dataset)
    assert manifest.classes == ("cat", "dog") and len(manifest) == 8 and (manifest.table["label"] >= 0).sum() == 4
    assert Config(dataset=dataset, **OPTIONS) == config  # ingested once
    assert not list(Path(os.environ["DHO_CACHE"], "datasets").glob("*-arrow"))
    run = distill(config, mode="none")
    assert run.result["labeled"] == 4
    split = datasets.DatasetDict(train=dataset, test=dataset.select(range(2)))
    made, _ = dataset_from_object(split)
    assert open_manifest(made).table["split"].value_counts().to_dict() == dict(train=8, test=2)
