"The paper's fifteen datasets: their counts, the lists that are made, what is fetched, what is found wrong"
import dataclasses
import http.server
import io
import json
import os
import random
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

import dho_nb.data.datasets as datasets
from conftest import ROOT, SHARED, picture
from dho_nb.cli.main import main
from dho_nb.data.datasets import (DATASETS, build_manifest, check_dataset_counts, check_dataset_files, dataset_class_positions, dataset_facts,
                                  get_dataset, manifests_page, _split_counts)
from dho_nb.data.label_subsets import labeled_subset, subset_lists
from dho_nb.data.manifests import open_manifest, read_manifest, write_manifest
from dho_nb.core.errors import DhoError

PAPER = dict(caltech101="4128/1649/2465", oxford_pets="2944/736/3669", stanford_cars="6509/1635/8041",
             flowers102="4093/1633/2463", food101="50500/20200/30300", fgvc_aircraft="3334/3333/3333",
             sun397="15880/3970/19850", dtd="2820/1128/1692", eurosat="13500/5400/8100", ucf101="7639/1898/3783",
             imagenet="1281167/0/50000", imagenet_v2="0/0/10000", imagenet_sketch="0/0/50889", imagenet_r="0/0/30000",
             imagenet_a="0/0/7500")
SHIPPED = [n for n, d in DATASETS.items() if not d.builder]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("DHO_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("DHO_PROGRESS", "none")


def counts(manifest): return "/".join(map(str, _split_counts(manifest)))


def listing(monkeypatch, paths):
    "Let a folder hold these pictures without making them"
    monkeypatch.setattr(datasets, "image_paths", lambda root: sorted(paths))


def test_the_table_is_the_papers():
    assert {n: "/".join(map(str, d.counts)) for n, d in DATASETS.items()} == PAPER


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_list_has_the_papers_counts_and_coops_labels(name):
    manifest, lists = open_manifest(name), subset_lists(name)
    assert counts(manifest) == PAPER[name] and check_dataset_counts(manifest) is manifest
    for shots in (1, 2, 4, 8, 16):
        subset = labeled_subset(manifest, shots=shots, seed=3, by="coop")
        assert subset.name == f"{shots}-shot coop"
        assert (np.bincount(manifest.table["label"].to_numpy()[subset.rows]) == shots).all()
        assert (np.diff(subset.rows) > 0).all()
        assert sorted(manifest.table["path"].iloc[subset.rows]) == sorted(lists[f"coop-{shots}-3"])
    with pytest.raises(DhoError, match="coop-4-3"): labeled_subset(manifest, shots=4, seed=0, by="coop")
    with pytest.raises(DhoError, match="there are none"): labeled_subset(manifest, fraction=.01, by="simclr")


def food101(root, **wrong):
    classes, split, place = dataset_facts("food101")["classes"], {}, 0
    for name, count in zip(("train", "val", "test"), DATASETS["food101"].counts):
        count = wrong.get(name, count)
        split[name] = [[f"c{i % 101}/{place + i}.jpg", i % 101, classes[i % 101].replace(" ", "_")]
                       for i in range(count)]
        place += count
    root.mkdir(exist_ok=True)
    (root/"split_zhou_Food101.json").write_text(json.dumps(split))


def test_food101_is_built_from_coops_file(tmp_path):
    (tmp_path/"food").mkdir()
    with pytest.raises(DhoError, match="split_zhou_Food101.json is missing"): build_manifest("food101", tmp_path/"food")
    food101(tmp_path/"food", val=20199)
    with pytest.raises(DhoError, match="val: 20,199, the paper has 20,200"): build_manifest("food101", tmp_path/"food")
    with pytest.raises(DhoError, match="dho data build food101"): open_manifest("food101")
    food101(tmp_path/"food")
    assert counts(build_manifest("food101", tmp_path/"food")) == counts(open_manifest("food101")) == PAPER["food101"]
    assert open_manifest("food101").classes[2] == "baklava"
    assert open_manifest("food101").table["path"].str.startswith("images/").all()


def test_aircraft_is_built_from_its_own_files(tmp_path):
    classes, place = dataset_facts("fgvc_aircraft")["classes"], 0
    for split, count in zip(("train", "val", "test"), DATASETS["fgvc_aircraft"].counts):
        lines = [f"{place + i:07d} {classes[i % 100]}" for i in range(count)]
        (tmp_path/f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        place += count
    made = build_manifest("fgvc_aircraft", tmp_path)
    assert counts(made) == PAPER["fgvc_aircraft"]
    assert made.table.query("path == 'images/0000101.jpg'")["label"].tolist() == [1]
    (tmp_path/"images_variant_val.txt").write_text((tmp_path/"images_variant_val.txt").read_text()
                                                   .replace(classes[3], "Zeppelin"))
    with pytest.raises(DhoError, match="34 images are of no class"): build_manifest("fgvc_aircraft", tmp_path)


def test_sun397_is_split_as_coop_split_it(tmp_path):
    lists, draw = subset_lists("sun397"), random.Random(1)
    folders = {}
    for path in sorted(set().union(*lists.values())):
        folders.setdefault(os.path.dirname(path).removeprefix("SUN397"), []).append(os.path.basename(path))
    assert len(folders) == 397
    train, test = [], []
    for folder, names in sorted(folders.items()):
        order = list(range(50))
        draw.shuffle(order)
        shuffled = [f"val{i}.jpg" for i in range(10)] + names + [f"more{i}.jpg" for i in range(40 - len(names))]
        train += [f"{folder}/{name}" for _, name in sorted(zip(order, shuffled))]
        test += [f"{folder}/test{i}.jpg" for i in range(50)]
    (tmp_path/"Training_01.txt").write_text("\n".join(train))
    (tmp_path/"Testing_01.txt").write_text("\n".join(test))
    made = build_manifest("sun397", tmp_path)
    assert counts(made) == PAPER["sun397"] and made.table.query("split == 'val'")["path"].str.contains("/val").all()
    assert [made.classes[i]
            for i in made.table.query("path in ('SUN397/a/apse/indoor/test7.jpg', "
                                      "'SUN397/y/youth_hostel/test0.jpg')")["label"]] == ["indoor apse", "youth hostel"]
    assert len(labeled_subset(made, shots=16, seed=1, by="coop")) == 16*397
    (tmp_path/"Training_01.txt").write_text("\n".join(sorted(train)))
    with pytest.raises(DhoError, match="does not lead to CoOp's split"): build_manifest("sun397", tmp_path)


@pytest.fixture(scope="module")
def imagenet_train():
    "Names of the real lists, and made-up ones up to the real number"
    wnids = dataset_facts("imagenet")["wnids"]
    named = set().union(*subset_lists("imagenet").values())
    have = {w: sorted(n for n in names) for w, names in _by_class(named).items()}
    sizes = np.bincount(np.arange(1281167) % 1000)
    return [f"train/{w}/{n}" for w, size in zip(wnids, sizes)
            for n in have[w] + [f"{w}_{10**6 + i}.JPEG" for i in range(size - len(have[w]))]]


def _by_class(names):
    found = {}
    for n in names: found.setdefault(n.split("_")[0], []).append(n)
    return found


def test_imagenet_and_its_published_subsets(tmp_path, monkeypatch, imagenet_train):
    wnids = dataset_facts("imagenet")["wnids"]
    (tmp_path/"in").mkdir()
    listing(monkeypatch, imagenet_train + [f"val/{wnids[i % 1000]}/ILSVRC2012_val_{i:08d}.JPEG"
                                           for i in range(1, 50001)] + ["val/stray/x/y.jpg", "other/z.jpg"])
    made = build_manifest("imagenet", tmp_path/"in")
    assert made.table["id"].str.startswith("images/").all()
    assert made.table["path"].str.startswith(("train/n", "val/n")).all()
    assert counts(made) == PAPER["imagenet"] and made.classes[744] == "projectile" and len(set(made.classes)) == 1000
    size = {("simclr", 1): 12811, ("simclr", 10): 128116, ("reference", 1): 13000, ("reference", 10): 128286}
    for (by, percent), count in size.items():
        subset = labeled_subset(made, fraction=percent/100, by=by)
        assert (len(subset), subset.name) == (count, f"{percent}% {by}")
    labels = made.table["label"].to_numpy()[labeled_subset(made, shots=8, seed=2, by="coop").rows]
    assert (np.bincount(labels) == 8).all()
    with pytest.raises(DhoError, match="no coop list of 16-shot"): labeled_subset(made, shots=16, seed=1, by="coop")
    gone = dataclasses.replace(made,
                               table=made.table[made.table["path"] != "train/n01440764/"
                                                + min(_by_class(subset_lists("imagenet")["coop-1-1"])["n01440764"])])
    with pytest.raises(DhoError, match="1 of the 1000 images of coop-1-1"):
        labeled_subset(gone, shots=1, seed=1, by="coop")


@pytest.mark.parametrize("how", ["kaggle", "devkit"])
def test_imagenets_flat_validation_folder(tmp_path, monkeypatch, how):
    wnids = dataset_facts("imagenet")["wnids"]
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 201)]
    images = tmp_path/("ILSVRC/Data/CLS-LOC" if how == "kaggle" else "images")
    images.mkdir(parents=True)
    monkeypatch.setitem(DATASETS, "imagenet", dataclasses.replace(DATASETS["imagenet"], counts=(1, 0, 200)))
    listing(monkeypatch, [f"train/{wnids[0]}/a.JPEG"] + [f"val/{n}.JPEG" for n in names])
    with pytest.raises(DhoError, match="devkit"): build_manifest("imagenet", tmp_path)
    if how == "kaggle":
        (tmp_path/"LOC_val_solution.csv").write_text("ImageId,PredictionString\n"
                                                     + "".join(f"{n},{wnids[i % 7]} 1 2 3 4\n"
                                                               for i, n in enumerate(names)))
    else:
        from scipy.io import savemat
        data = images/"ILSVRC2012_devkit_t12"/"data"
        data.mkdir(parents=True)
        synsets = np.array([(1000 - i, w) for i, w in enumerate(wnids)], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
        savemat(data/"meta.mat", {"synsets": synsets})
        (data/"ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{1000 - i % 7}\n" for i in range(200)))
    made = build_manifest("imagenet", tmp_path).table.query("split == 'test'").sort_values("path")
    assert made["id"].iloc[0] == f"images/val/{names[0]}.JPEG"
    assert made["path"].iloc[0] == f"{images.relative_to(tmp_path).as_posix()}/val/{names[0]}.JPEG"
    assert made["label"].tolist() == [i % 7 for i in range(200)]


@pytest.mark.parametrize("name", ["imagenet_v2", "imagenet_sketch", "imagenet_r", "imagenet_a"])
def test_shifted_sets_are_test_only_and_find_their_columns(tmp_path, monkeypatch, name):
    info, wnids = DATASETS[name], dataset_facts(name)["wnids"]
    folders = [str(i) for i in range(1000)] if name == "imagenet_v2" else wnids
    listing(monkeypatch, [f"{folders[i % len(folders)]}/{i}.jpg" for i in range(info.counts[2])]
            + ["elsewhere/x.jpg", "loose.jpg"])
    made = build_manifest(name, tmp_path)
    assert counts(made) == counts(open_manifest(name)) == PAPER[name] and set(made.table["split"]) == {"test"}
    columns = dataset_class_positions(made, dataset_facts("imagenet")["classes"])
    assert [dataset_facts("imagenet")["wnids"][c] for c in columns] == wnids and columns.dtype == np.int64
    with pytest.raises(DhoError, match="of its"): dataset_class_positions(made, dataset_facts("imagenet")["classes"][::2])


class Server:
    "A loopback server of a few files; with `cut` it sends only that many bytes"
    def __init__(self, files):
        self.files, self.cut, self.asked = files, 0, []
        outer = self
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self): self.answer(False)
            def do_GET(self): self.answer(True)
            def answer(self, body):
                data = next((d for n, d in outer.files.items() if self.path.endswith(n)), None)
                self.send_response(404 if data is None else 200)
                for k, v in {"Content-Length": len(data or b""), "ETag": '"abc"', "X-Repo-Commit": "f"*40,
                             "Accept-Ranges": "none"}.items():
                    self.send_header(k, str(v))
                self.end_headers()
                if not body or data is None: return
                outer.asked.append(self.path)
                self.wfile.write(data[:outer.cut] if outer.cut else data)
            def log_message(self, *args): pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve():
    made = []
    def start(**files):
        made.append(Server(files["files"]))
        return made[-1]
    yield start
    for m in made: m.server.shutdown(); m.server.server_close()


def archive(paths, mode="w:gz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:
        for path in paths:
            about = tarfile.TarInfo(path)
            about.size = 1
            tar.addfile(about, io.BytesIO(b"x"))
    return packed.getvalue()


def test_dtd_comes_through_torchvision_whole_or_not_at_all(tmp_path, monkeypatch, serve):
    import hashlib
    import torchvision
    paths = open_manifest("dtd").table["path"].tolist()
    data = archive([f"dtd/{p}" for p in paths] + [f"dtd/labels/{s}1.txt" for s in ("train", "val", "test")])
    server = serve(files={"dtd-r1.0.1.tar.gz": data})
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{server.url}/dtd-r1.0.1.tar.gz")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", hashlib.md5(data).hexdigest())
    monkeypatch.setattr(torchvision.datasets.DTD, "__init__", _only_download(torchvision.datasets.DTD))
    root, server.cut = tmp_path/"data"/"dtd", 1000
    with pytest.raises(DhoError, match="the same command goes on"): get_dataset("dtd")
    assert not root.exists()
    server.cut = 0
    half = tmp_path/"data"/".dho-get-dtd"/"files"/"dtd"/"dtd"/"images"/"banded"
    half.mkdir(parents=True)
    (half/"half.jpg").write_bytes(b"x")                                  # an extraction that was killed
    assert get_dataset("dtd") == root
    asked = len(server.asked)
    assert sorted(p.relative_to(root).as_posix() for p in (root/"images").rglob("*.jpg")) == sorted(paths)
    assert [p.name for p in root.parent.iterdir()] == ["dtd"]
    assert get_dataset("dtd") == root                                   # there and whole: left alone
    (root/paths[0]).unlink()
    with pytest.raises(DhoError, match="1 missing of 5,640 pictures"): get_dataset("dtd")
    assert len(server.asked) == asked


def _only_download(cls):
    "torchvision's constructor up to the download: the made-up archive's labels are not read"
    def init(self, root, download):
        self.root = str(root)
        self._base_folder = Path(root)/"dtd"
        self._data_folder = self._base_folder/"dtd"
        if download: self._download()
    return init


def fewer(monkeypatch, name, count, **more):
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], counts=(0, 0, count), **more))


def test_imagenet_a_comes_from_its_address(tmp_path, monkeypatch, serve):
    wnids = dataset_facts("imagenet_a")["wnids"]
    server = serve(files={"imagenet-a.tar": archive([f"imagenet-a/{wnids[i % 200]}/{i}.jpg" for i in range(400)], "w"),
                          "imagenet-r.tar": archive(["imagenet-r/n01443537/0.jpg"], "w")})
    fewer(monkeypatch, "imagenet_a", 400, download=("url", f"{server.url}/imagenet-a.tar"))
    fewer(monkeypatch, "imagenet_r", 30000, download=("url", f"{server.url}/imagenet-r.tar"))
    server.cut = 4000
    with pytest.raises(DhoError, match="4,000 of .* bytes came"): get_dataset("imagenet_a")
    server.cut = 0
    root = get_dataset("imagenet_a")
    assert root == tmp_path/"data"/"imagenet-adversarial" and _split_counts(open_manifest("imagenet_a")) == (0, 0, 400)
    with pytest.raises(DhoError, match="fetched but is not whole: .*test: 1, the paper has 30,000"):
        get_dataset("imagenet_r")
    assert not (tmp_path/"data"/"imagenet-rendition").exists()


@pytest.mark.parametrize("name, inside, folder",
                         [("imagenet_v2", "imagenetv2-matched-frequency-format-val", "imagenetv2"),
                                                  ("imagenet_sketch", "sketch", "imagenet-sketch")])
def test_two_shifted_sets_come_from_the_hub(monkeypatch, capsys, serve, tmp_path, name, inside, folder):
    import huggingface_hub.constants
    _, repo, file, *_ = DATASETS[name].download
    wnids = dataset_facts(name)["wnids"]
    paths = [f"{inside}/{i % 1000 if name == 'imagenet_v2' else wnids[i]}/{i}.jpeg" for i in range(300)]
    server = serve(files={f"/datasets/{repo}/resolve/main/{file}": archive(paths) if file.endswith(".gz")
                          else zipped(paths)})
    fewer(monkeypatch, name, 300)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert main(["data", "get", name]) == 0, capsys.readouterr().err
    assert (tmp_path/"data"/folder/DATASETS[name].prefix).is_dir() and not (tmp_path/"data"/f".dho-get-{name}").exists()
    assert main(["data", "check", name]) == 0
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    assert [line.split()[5] for line in capsys.readouterr().out.splitlines()
            if line.startswith(name + " ")] == ["built"]


def zipped(paths):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for p in paths: made.writestr(p, b"x")
    return packed.getvalue()


def test_coops_split_file_is_taken_only_as_published(tmp_path, monkeypatch, serve):
    import hashlib
    server = serve(files={"split_zhou_Food101.json": b"{}"})
    monkeypatch.setattr(datasets, "SPLITS_AT", server.url)
    with pytest.raises(DhoError, match="not the file that was published"):
        datasets._fetch_split(DATASETS["food101"], tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]
    monkeypatch.setitem(datasets.SPLIT_BLOBS, "split_zhou_Food101.json", hashlib.sha1(b"blob 2\0{}").hexdigest())
    datasets._fetch_split(DATASETS["food101"], tmp_path)
    assert (tmp_path/"split_zhou_Food101.json").read_bytes() == b"{}"


def test_what_is_fetched_by_hand_is_told(tmp_path):
    by_hand = [d for d in DATASETS.values() if not d.download]
    assert [d.name for d in by_hand] == ["stanford_cars", "ucf101", "imagenet"]
    for d in by_hand:
        with pytest.raises(DhoError) as said: get_dataset(d.name)
        assert d.source in str(said.value) and str(tmp_path/"data"/d.folder) in str(said.value)
        assert "{" not in str(said.value).replace("${f%.tar}", "")


def test_a_copy_is_compared_with_its_list(dho, capsys, tmp_path):
    manifest = open_manifest("dtd")
    few = dataclasses.replace(manifest, name="mine", table=manifest.table.groupby("label").head(1).iloc[:12])
    file, root = write_manifest(few, tmp_path), tmp_path/"mine"
    for i, p in enumerate(few.table["path"]): picture(root/p, i)
    assert main(["data", "check", str(file), "--root", str(root), "--decode"]) == 0
    broken = few.table["path"].tolist()
    (root/broken[0]).unlink()
    (root/broken[1]).write_bytes(b"")
    (root/broken[2]).write_bytes((root/broken[2]).read_bytes()[:200])
    picture(root/"images"/"extra.jpg")
    code, out, _ = dho("data", "check", file, "--root", root)
    assert code == 1 and "missing" in out and "empty" in out and "broken" not in out
    assert "1 picture that the list does not name" in out
    found = check_dataset_files(read_manifest(file), root, decode=True).set_index("path")["problem"]
    assert found.to_dict() == {broken[0]: "missing", broken[1]: "empty", broken[2]: "broken",
                               "images/extra.jpg": "extra"}


@pytest.mark.skipif(not (SHARED/"eurosat.tar").exists(),
                    reason="needs ../shared/data/eurosat.tar (EuroSAT in the CoOp layout)")
def test_the_real_eurosat(capsys, tmp_path):
    with tarfile.open(SHARED/"eurosat.tar") as tar:
        tar.extractall(tmp_path/"data", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    said = lambda *argv: (main(list(argv)), capsys.readouterr().out)
    code, out = said("data", "check", "eurosat", "--decode")
    assert code == 0 and "looked at sizes, contents, pictures" in out and out.strip().endswith("whole"), out
    assert said("data", "get", "eurosat")[0] == 0
    asked = "--dataset eurosat --shots 4 --labels-by coop --seed 1 --teacher digits --student tiny --student-weights="
    code, out = said("check", *asked.split())
    assert code == 0 and "labels for training: 40 (4-shot coop)" in out
    file = tmp_path/"data"/"eurosat"/"2750"/"River"/"River_7.jpg"
    file.write_bytes(file.read_bytes()[:-40] + b"\0"*40)
    code, out = said("data", "check", "eurosat")
    assert code == 1 and "other content        1  e.g. 2750/River/River_7.jpg" in out


@pytest.mark.skipif(not (SHARED/"coop_splits.tar.xz").exists(), reason="needs ../shared/data (the published lists)")
def test_the_lists_are_what_the_published_archives_say(tmp_path):
    import gzip
    from make_manifests import make
    make(SHARED, tmp_path/"again")
    plain = lambda f: gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes()
    names = lambda base: sorted(p.relative_to(base).as_posix() for p in base.rglob("*")
                                if p.is_file() and p.name != "README.md")
    assert names(tmp_path/"again") == names(ROOT/"data_manifests")
    assert [n for n in names(tmp_path/"again") if plain(tmp_path/"again"/n) != plain(ROOT/"data_manifests"/n)] == []


def test_the_page_is_made_and_the_lists_are_small():
    assert (ROOT/"data_manifests"/"README.md").read_text(encoding="utf-8") == manifests_page(ROOT/"data_manifests")
    assert sum(f.stat().st_size for f in (ROOT/"data_manifests").rglob("*") if f.is_file()) < 6_000_000
