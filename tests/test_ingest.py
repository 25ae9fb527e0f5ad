"Pools in shards: the same images give the same dataset, whatever they come in, however often it is killed, whoever shares the work"
import io
import json
import multiprocessing
import random
import shutil
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import drawn_seed, fails, OPTIONS
from dho_nb.data import ingest as module
from dho_nb.data import shards
from dho_nb.data.ingest import ingest
from dho_nb.data.manifests import manifest_from_folder, open_manifest, write_digits_images
from dho_nb.data.shards import list_shards, read_shard
from dho_nb.runs.config import Config
from dho_nb.runs.dataset import open_dataset
from dho_nb.runs.run import distill

pa = pytest.importorskip("pyarrow", reason="needs the extra parquet: pip install \"dho_nb[parquet]\"")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Ninety digits in class folders below train and test"
    root = tmp_path_factory.mktemp("photos")
    digits = write_digits_images(root/"digits")
    for name in ("zero", "one", "two"):
        for k, file in enumerate(sorted((digits/name).iterdir())[:30]):
            target = root/"pool"/("train" if k < 20 else "test")/name/file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return root/"pool"


def files(root): return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())

def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))

def as_tar(root, to, count=3, facts=()):
    "Tar shards; with members beside the images"
    to.mkdir(parents=True)
    for k in range(count):
        with tarfile.open(to/f"pool-{k:03d}.tar", "w") as archive:
            for name in files(root)[k::count]:
                add(archive, name, (root/name).read_bytes())
                for suffix, data in dict(facts).items(): add(archive, name.rpartition(".")[0] + suffix, data(name).encode())
    return to

def write_parquet(table, file):
    from pyarrow.parquet import write_table
    write_table(table, file, row_group_size=7)

def huggingface(classes):
    features = dict(image=dict(_type="Image"), label=dict(_type="ClassLabel", names=classes))
    return {b"huggingface": json.dumps(dict(info=dict(features=features))).encode()}

def as_table(root, names, classes):
    "A table as Hugging Face's datasets writes it"
    images = pa.array([dict(bytes=(root/n).read_bytes(), path=n) for n in names], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    labels = pa.array([classes.index(n.split("/")[1]) for n in names], pa.int64())
    return pa.table(dict(image=images, label=labels)).replace_schema_metadata(huggingface(classes))

def as_parquet(root, to, classes=("one", "two", "zero")):
    "Parquet files in the layout of a dataset's repository: data/train-00000-of-00002.parquet"
    (to/"data").mkdir(parents=True)
    (to/"README.md").write_text("a card")
    for split, parts in (("train", 2), ("test", 1)):
        names = [n for n in files(root) if n.startswith(split)]
        for k in range(parts): write_parquet(as_table(root, names[k::parts], [*classes]), to/"data"/f"{split}-{k:05d}-of-{parts:05d}.parquet")
    return to

def as_arrow(root, to, classes=("one", "two", "zero")):
    "A folder as `DatasetDict.save_to_disk` leaves it"
    for split in ("train", "test"):
        (to/split).mkdir(parents=True)
        table = as_table(root, [n for n in files(root) if n.startswith(split)], [*classes])
        with pa.ipc.new_stream(str(to/split/"data-00000-of-00001.arrow"), table.schema) as out: out.write_table(table)
        (to/split/"state.json").write_text("{}"); (to/split/"dataset_info.json").write_text("{}")
    (to/"dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return to

def as_zip(root, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(to, "w") as archive:
        for name in reversed(files(root)): archive.write(root/name, name)
        archive.writestr("__MACOSX/train/zero/._0.png", b"none")
    return to

FORMS = {"folder": lambda root, to: root, "tar": as_tar, "zip": lambda root, to: as_zip(root, to.with_suffix(".zip")), "parquet": as_parquet, "arrow": as_arrow}

def content(folder):
    "All bytes that a run reads"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("ingested.json", ".lock")}


def test_every_form_gives_the_same_dataset_stores_and_run(photos, tmp_path, monkeypatch):
    found = {}
    for form, make in FORMS.items():
        place = tmp_path/form
        monkeypatch.setenv("DHO_CACHE", str(place/"cache"))
        ingest(str(make(photos, place/"source")), place/"pool", side=8, mode="none")
        run = distill(Config(dataset=str(place/"pool"), shots=2, views=2, **OPTIONS), place/"run", "none")
        store, = (place/"cache"/"stores").iterdir()
        found[form] = dict(data=content(place/"pool"), store=content(store), model=(place/"run"/"model.safetensors").read_bytes(),
                           accuracy=run.result["accuracy"], identity=run.identity.partition("-")[0])
        assert not (place/"cache"/"maps").exists(), "the images were decoded again"
    first = found.pop("folder")
    assert {"images/pixels.npy", "pool.csv.gz", "pool.json"} <= set(first["data"]) and len(first["store"]) > 4
    for form, other in found.items():
        for what in first: assert other[what] == first[what], (form, what)


def test_an_ingested_folder_is_the_folder_with_fewer_pixels(photos, tmp_path):
    made, files_ = ingest(str(photos), tmp_path/"pool", side=8, mode="none"), manifest_from_folder(photos)
    key = lambda m: m.table.sort_values("id").reset_index(drop=True)
    assert made.classes == files_.classes and key(made).equals(key(files_))
    data = open_dataset(Config(dataset=str(tmp_path/"pool")))
    assert len(data.keys) == 90 and len(data.skipped) == 0 and not (data.keys == "unreadable").any()
    other = ingest(str(photos), tmp_path/"large", side=9, mode="none")
    assert not set(open_dataset(Config(dataset=str(tmp_path/"large"))).keys) & set(data.keys), "a teacher would see other pixels under the same key"
    assert len(other) == 90


def test_labels_beside_the_images_count_before_folders(photos, tmp_path):
    numbered = as_tar(photos, tmp_path/"numbers", facts={".cls": lambda n: str(("zero", "one", "two").index(n.split("/")[1]))})
    made = ingest(str(numbered/"*.tar"), tmp_path/"a", side=8, classes=["nil", "uno", "dos"], mode="none")
    assert made.classes == ("nil", "uno", "dos") and set(made.table.loc[made.table["path"].str.contains("/one/"), "label"]) == {1}
    assert ingest(str(numbered), tmp_path/"b", side=8, mode="none").classes == ("0", "1", "2")
    named = as_tar(photos, tmp_path/"names", facts={".json": lambda n: json.dumps(dict(label="x" + n.split("/")[1], caption="?"))})
    assert ingest(str(named), tmp_path/"c", side=8, mode="none").classes == ("xone", "xtwo", "xzero")


def test_few_labels_come_from_a_csv_by_id_or_key(photos, tmp_path):
    names = [n for n in files(photos) if n.startswith("train")]
    (tmp_path/"few.csv").write_text(f"path,label\n{names[0]},cat\n{names[1].rpartition('.')[0]},dog\n")
    made = ingest(str(as_tar(photos, tmp_path/"tar")), tmp_path/"pool", side=8, labels=tmp_path/"few.csv", mode="none")
    rows = made.table.set_index("id")["label"]
    assert made.classes == ("cat", "dog") and rows[names[0]] == 0 and rows[names[1]] == 1 and (rows >= 0).sum() == 2
    (tmp_path/"later.csv").write_text(f"path,label\n{names[2]},a\n{names[3]},b\n")
    later = open_dataset(Config(dataset=str(tmp_path/"pool"), labels=str(tmp_path/"later.csv")))
    assert later.manifest.classes == ("a", "b") and len(later.manifest) == 90
    for line, said in ((f"{names[0]},cat\n{names[0]},dog", "labeled twice"), ("train/zero/0.pgn,cat", "line 2")):
        (tmp_path/"wrong.csv").write_text(f"path,label\n{line}\n")
        fails(lambda: ingest(str(tmp_path/"tar"), tmp_path/"wrong", side=8, labels=tmp_path/"wrong.csv", mode="none"), said)
    assert len(ingest(str(tmp_path/"tar"), tmp_path/"wrong", side=8, labels=tmp_path/"few.csv", mode="none")) == 90, "a corrected CSV goes on"


def test_what_cannot_be_decoded_is_listed_or_left_out(photos, tmp_path):
    shutil.copytree(photos, tmp_path/"photos")
    (tmp_path/"photos"/"train"/"zero"/"bad.png").write_bytes(b"no image")
    (tmp_path/"photos"/"train"/"zero"/"empty.png").write_bytes(b"")
    source = str(as_tar(tmp_path/"photos", tmp_path/"tar"))
    fails(lambda: ingest(source, tmp_path/"pool", side=8, mode="none"), "2 image(s)", "train/zero/bad.png", "empty", "skip_broken")
    assert not (tmp_path/"pool"/"ingested.json").exists()
    assert len(ingest(source, tmp_path/"pool", side=8, skip_broken=True, mode="none")) == 90
    assert json.loads((tmp_path/"pool"/"ingested.json").read_text())["broken"] == 2


def test_ids_of_several_images_are_refused_or_told_apart(photos, tmp_path):
    for k in range(2): as_tar(photos, tmp_path/"tar"/str(k), 1)
    fails(lambda: ingest(str(tmp_path/"tar"), tmp_path/"pool", side=8, mode="none"), "90 id(s) of several images", "--prefixes")
    made = ingest(str(tmp_path/"tar"), tmp_path/"other", side=8, prefixes=True, mode="none")
    assert len(made) == 180 and made.table["id"].str.match(r"[01]/pool-000.tar/").all()


def test_rows_of_a_table_whose_paths_repeat_are_told_apart(photos, tmp_path):
    names = files(photos)[:4]
    table = as_table(photos, names, ["one", "two", "zero"])
    same = pa.array([dict(bytes=(photos/n).read_bytes(), path="0.png") for n in names], table.schema.field("image").type)
    write_parquet(table.set_column(0, table.schema.field("image"), same), tmp_path/"train.parquet")
    fails(lambda: ingest(str(tmp_path/"train.parquet"), tmp_path/"pool", side=8, mode="none"), "1 id(s) of several images", "--prefixes")
    made = ingest(str(tmp_path/"train.parquet"), tmp_path/"other", side=8, prefixes=True, mode="none")
    assert made.table["id"].tolist() == [f"train.parquet/{k:08d}-0.png" for k in range(4)] and made.classes == ("one", "two", "zero")


def test_names_that_leave_the_folder_are_refused(photos, tmp_path):
    data = (photos/files(photos)[0]).read_bytes()
    with tarfile.open(tmp_path/"a.tar", "w") as archive: add(archive, "../../evil/0.png", data)
    fails(lambda: ingest(str(tmp_path/"a.tar"), tmp_path/"pool", side=8, mode="none"), "holds no image")
    pd.DataFrame(dict(path=["../../evil/0.png", "/evil/1.png"], image=[data]*2, label=["cat", "dog"])).to_parquet(tmp_path/"a.parquet")
    fails(lambda: ingest(str(tmp_path/"a.parquet"), tmp_path/"other", side=8, mode="none"), "leaves the data root")
    assert not [p for p in tmp_path.rglob("*.png")] and not (tmp_path.parent/"evil").exists()


def test_a_cut_shard_is_an_error_and_a_mended_one_goes_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    source = as_tar(photos, tmp_path/"tar")
    whole = (source/"pool-001.tar").read_bytes()
    (source/"pool-001.tar").write_bytes(whole[:len(whole)//2 + 100])
    fails(lambda: ingest(str(source), tmp_path/"pool", side=8, mode="none"), "pool-001.tar cannot be read to its end")
    (source/"pool-001.tar").write_bytes(whole)
    ingest(str(source), tmp_path/"pool", side=8, mode="none")
    ingest(str(photos), tmp_path/"straight"/"pool", side=8, mode="none")
    assert content(tmp_path/"pool") == content(tmp_path/"straight"/"pool")


def test_a_reader_that_breaks_off_begins_again(photos, tmp_path, monkeypatch):
    broken, opened = [], shards._opened
    @contextmanager
    def breaking(url):
        with opened(url) as f:
            data = f.read()
            if url not in broken: broken.append(url); yield Ending(data[:len(data)//2])
            else: yield io.BytesIO(data)
    class Ending(io.BytesIO):
        def read(self, size=-1):
            if not (found := super().read(size)): raise ConnectionResetError("cut")
            return found
    monkeypatch.setattr(shards, "_opened", breaking)
    ingest(str(as_tar(photos, tmp_path/"tar")), tmp_path/"pool", side=8, mode="none")
    ingest(str(photos), tmp_path/"straight"/"pool", side=8, mode="none")
    assert len(broken) == 3 and content(tmp_path/"pool") == content(tmp_path/"straight"/"pool")


def test_a_connection_that_breaks_is_opened_again(photos, tmp_path):
    "A server on this machine that sends half of every file first"
    pytest.importorskip("aiohttp", reason="fsspec reads http by aiohttp: pip install aiohttp")
    cut = set()
    class Cutting(SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=tmp_path/"tar")
        def log_message(self, *args): pass
        def copyfile(self, source, out):
            if self.path in cut: return super().copyfile(source, out)
            cut.add(self.path)
            out.write(source.read()[:2000])
            self.close_connection = True
    as_tar(photos, tmp_path/"tar")
    with ThreadingHTTPServer(("127.0.0.1", 0), Cutting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ingest(f"http://127.0.0.1:{server.server_port}/pool-{{000..002}}.tar", tmp_path/"pool", side=8, mode="none")
        server.shutdown()
    ingest(str(photos), tmp_path/"straight"/"pool", side=8, mode="none")
    assert len(cut) == 3 and content(tmp_path/"pool") == content(tmp_path/"straight"/"pool")


def begin(source, folder, workers=0):
    "An ingest in a process of its own, without the seconds that imports take"
    process = multiprocessing.get_context("fork").Process(target=ingest, args=(str(source), folder, 24), kwargs=dict(workers=workers, mode="none"))
    process.start()
    return process

@pytest.fixture(scope="module")
def many(photos, tmp_path_factory):
    "Thirty shards, and what they give without a kill"
    root = tmp_path_factory.mktemp("many")
    as_tar(photos, root/"tar", 30)
    ingest(str(root/"tar"), root/"straight"/"pool", side=24, mode="none")
    return root


def test_killed_at_random_moments_it_gives_the_same_bytes(many, tmp_path):
    draw, kills, began = random.Random(drawn_seed()), 0, time.monotonic()
    begin(many/"tar", tmp_path/"timed"/"pool", 2).join()
    whole = time.monotonic() - began
    while kills < 10 and time.monotonic() - began < 200:
        process = begin(many/"tar", tmp_path/"pool", 2)
        process.join(draw.uniform(.02, .9)*whole)
        kills += process.exitcode is None
        process.kill(); process.join()
        if process.exitcode == 0: shutil.rmtree(tmp_path/"pool")  # done before it could be killed: once more
    process = begin(many/"tar", tmp_path/"pool", 2)
    process.join()
    assert process.exitcode == 0
    assert kills == 10 and content(tmp_path/"pool") == content(many/"straight"/"pool")
    assert not (tmp_path/"pool"/"parts").exists()


def test_a_kill_between_any_two_writes_gives_the_same_bytes(many, tmp_path, monkeypatch):
    "A copy of the folder is gone on with at every moment a file has just appeared"
    moments, original = [], module.atomic_path
    import dho_nb.core.files as core
    @contextmanager
    def watched(path):
        with original(path) as temporary: yield temporary
        if len(moments) < 60 and (tmp_path/"pool") in path.parents: moments.append(shutil.copytree(tmp_path/"pool", tmp_path/f"at{len(moments)}"/"pool", ignore=shutil.ignore_patterns(".tmp-*", "*.lease")))
    for m in [m for n, m in sys.modules.items() if n.startswith("dho_nb") and getattr(m, "atomic_path", None) is original]: monkeypatch.setattr(m, "atomic_path", watched)
    assert core.atomic_path is watched
    ingest(str(many/"tar"), tmp_path/"pool", side=24, mode="none")
    monkeypatch.undo()
    assert len(moments) > 33
    for moment in [*moments[:3], *moments[-6:]]:
        ingest(str(many/"tar"), moment, side=24, mode="none")
        assert content(moment) == content(many/"straight"/"pool"), moment


def test_three_processes_share_the_work(many, tmp_path):
    three = [begin(many/"tar", tmp_path/"pool") for _ in range(3)]
    for p in three: p.join()
    assert [p.exitcode for p in three] == [0]*3
    assert content(tmp_path/"pool") == content(many/"straight"/"pool")


def test_another_request_for_the_same_folder_is_refused(photos, tmp_path):
    ingest(str(photos), tmp_path/"pool", side=8, mode="none")
    fails(lambda: ingest(str(photos), tmp_path/"pool", side=9, mode="none"), "another side")
    fails(lambda: ingest(str(photos), photos, side=8, mode="none"), "holds other files")
    assert open_manifest(str(tmp_path/"pool")).name == "pool"


def test_odd_tables_are_told(tmp_path):
    pd.DataFrame(dict(a=[1])).to_parquet(tmp_path/"a.parquet")
    fails(lambda: ingest(str(tmp_path/"a.parquet"), tmp_path/"pool"), "no column of images", "'a'")
    pd.DataFrame(dict(image=["x/0.png"], label=["cat"])).to_parquet(tmp_path/"b.parquet")
    fails(lambda: ingest(str(tmp_path/"b.parquet"), tmp_path/"other"), "row 0", "no bytes")
    data = io.BytesIO(); Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(data, "PNG")
    pd.DataFrame(dict(jpg=[data.getvalue()]*2, label=[None, 1])).to_parquet(tmp_path/"c.parquet")
    assert [(i.id, i.label) for s in list_shards(str(tmp_path/"c.parquet")) for i in read_shard(s)] == [("000000-c.parquet/00000000", ""), ("000000-c.parquet/00000001", "1.0")]


def test_the_command_says_what_it_made(photos, dho, tmp_path):
    code, out, _ = dho("data", "ingest", photos, "pool", "--side", "8", DHO_CACHE=str(tmp_path/"cache"))
    assert code == 0 and "pool: 90 images at 8 px, 3 classes" in out and "--dataset pool" in out
    code, out, _ = dho("check", "--dataset", "pool", "--shots", "2", "--teacher", "digits", "--student", "tiny", "--student-weights", "", "--size", "8", DHO_CACHE=str(tmp_path/"cache"))
    assert code == 0 and "90 images" in out, out


@pytest.mark.parametrize("text", [b"", b'{"machine": "far boot 1", "pid": 1, "start": "1", "token": "x", "count": "000000000007"}'])
def test_what_a_dead_machine_had_is_taken_over(many, tmp_path, monkeypatch, text):
    "A lease that names no process of this machine can only be watched"
    from dho_nb.data import leases
    monkeypatch.setattr(leases, "BEAT", .05)
    write = module._write_part
    def leave(shard, folder, side):
        "The other machine dies while this one decodes its first shard"
        if not [*(folder/"parts").glob("*.csv")]:
            for k in (5, 29): (folder/"parts"/"leases"/f"{k:06d}-pool-{k:03d}.tar.lease").write_bytes(text)
        write(shard, folder, side)
    monkeypatch.setattr(module, "_write_part", leave)
    ingest(str(many/"tar"), tmp_path/"pool", side=24, mode="none")
    assert content(tmp_path/"pool") == content(many/"straight"/"pool")
