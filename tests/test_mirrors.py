"Stores and datasets behind a URL: what is copied and when, versions, damage, and that nothing is written there"
import errno
import http.server
import json
import multiprocessing
import random
import shutil
import threading
from functools import partial

import numpy as np
import pytest

from conftest import drawn_seed, fails
from dho_nb.core import remote
from dho_nb.core.settings import load_settings
from dho_nb.data import chunk_store, mirrors
from dho_nb.data.chunk_store import Chunked, ChunkStore, fill_chunks
from dho_nb.data.ingest import ingest, stream_images
from dho_nb.data.manifests import manifest_root, open_manifest
from dho_nb.data.mirrors import fetch_mirrored, local_place, mirror_note
from dho_nb.runs.config import Config
from dho_nb.runs.run import distill
from dho_nb.runs.teacher_provider import fill_run_teacher_store
from dho_nb.teachers.embedding_store import Store, join_embedding_stores

HEADER = dict(kind="numbers", chunk=4, layout=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(remote, "PAUSE", .001)
    mirrors._mirror.cache_clear()


def numbers(folder, count=150):
    "A store with an array of 0, 1, 2, … in files of 8 chunks of 4 rows"
    store = ChunkStore(folder, HEADER)
    ids = [f"{k:05d}" for k in range(count)]
    store.add(ids, [""]*count, [0]*count, ["n"])
    store.array("n", (2,), "int32")
    missing = lambda: [(c, ["n"]) for c in np.flatnonzero(~store.done("n")).tolist()]
    put = lambda chunk, names, item: store.array("n", (2,), "int32").put(chunk, np.repeat(np.arange(*store.bounds[chunk:chunk + 2])[:, None], 2, 1))
    fill_chunks(store, missing, lambda chunk, names: 0, put, "numbers", mode="none")
    return store

def array(url): return ChunkStore(url, HEADER).array("n", (2,), "int32")

def copied(place): return sorted(p.name for p in place.rglob("*.npy"))

def seen_again(url):
    mirrors._mirror.cache_clear()
    return local_place(url)


def test_a_file_of_an_array_is_copied_when_a_row_of_it_is_read(tmp_path):
    store, url = numbers(tmp_path/"far"), f"file://{tmp_path}/far"
    far = array(url)
    place = local_place(url)
    assert copied(place) == [] and far.done.all() and (place/"images.csv").is_file()
    assert far[[3, 40, 41]].tolist() == [[3, 3], [40, 40], [41, 41]] and copied(place) == ["n-00001.npy", "n.npy"]
    draw = np.random.default_rng(drawn_seed())
    for rows in (draw.integers(0, 150, 60), draw.permutation(150), slice(20, 130), np.array([], int), draw.integers(0, 150, (5, 3))):
        assert np.array_equal(far[rows], store.array("n", (2,), "int32")[rows])
    assert copied(place) == [f"n{e}.npy" for e in ("-00001", "-00002", "-00003", "-00004", "")]


def test_a_mirror_is_only_read(tmp_path):
    numbers(tmp_path/"far")
    before = {p.name: p.read_bytes() for p in (tmp_path/"far").iterdir() if p.is_file()}
    store = ChunkStore(f"file://{tmp_path}/far", HEADER)
    fails(lambda: store.add(["new"], [""], [0], ["n"]), f"file://{tmp_path}/far", "only read")
    fails(lambda: fill_chunks(store, lambda: [(0, ["n"])], None, None, "x"), "only read")
    fill_chunks(store, lambda: [], None, None, "x")
    fails(lambda: ChunkStore(f"file://{tmp_path}/nothing", HEADER), "nothing")
    (tmp_path/"other").mkdir(); (tmp_path/"other"/"a.txt").write_text("")
    fails(lambda: ChunkStore(f"file://{tmp_path}/other", HEADER), "other", "only read")
    assert before == {p.name: p.read_bytes() for p in (tmp_path/"far").iterdir() if p.is_file()}


def test_a_store_that_grew_is_brought_up_to_date_and_what_did_not_change_stays(tmp_path):
    numbers(tmp_path/"far", 64)
    url = f"file://{tmp_path}/far"
    assert array(url)[:][:, 0].tolist() == [*range(64)]
    place = local_place(url)
    kept = (place/"n.npy").stat().st_ino
    numbers(tmp_path/"far", 90)
    assert array(url)[:].shape == (64, 2)  # looked at less than a minute ago
    assert seen_again(url) == place
    assert array(url)[:][:, 0].tolist() == [*range(90)] and (place/"n.npy").stat().st_ino == kept
    (tmp_path/"far"/"n-00001.npy").unlink()
    seen_again(url)
    assert copied(place) == ["n-00002.npy", "n.npy"]


def test_a_copy_that_comes_damaged_is_not_used(tmp_path):
    numbers(tmp_path/"far")
    with open(tmp_path/"far"/"n-00002.npy", "r+b") as f: f.seek(-5, 2); f.write(b"\x77")
    far = array(f"file://{tmp_path}/far")
    assert far[5].tolist() == [5, 5]
    fails(lambda: far[70], "n-00002.npy", "damaged")
    assert copied(local_place(f"file://{tmp_path}/far")) == ["n.npy"]


def test_a_web_server_that_lists_its_folders_is_read_and_each_look_copies_anew(tmp_path):
    pytest.importorskip("aiohttp", reason="needs the extra http: pip install 'dho_nb[http]'")
    numbers(tmp_path/"far")
    handler = type("Handler", (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *rest: None))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert array(f"{url}/far")[[3, 149]].tolist() == [[3, 3], [149, 149]]
        assert copied(place := local_place(f"{url}/far")) == ["n-00004.npy", "n.npy"]
        assert seen_again(f"{url}/far") == place and not copied(place)  # it tells no versions of its files
        assert local_place(f"{url}/far/images.csv").read_bytes() == (tmp_path/"far"/"images.csv").read_bytes()
        fails(lambda: local_place(f"{url}/nothing"), "nothing holds no file")
    finally: server.shutdown()


@pytest.mark.parametrize("cuts", [1, 3, 4])
def test_a_copy_that_breaks_off_is_made_again(tmp_path, monkeypatch, cuts):
    from fsspec.implementations.local import LocalFileSystem
    numbers(tmp_path/"far")
    whole, left = LocalFileSystem.get_file, [0]
    def cut(self, path, to, **rest):
        whole(self, path, to, **rest)
        if str(path).endswith(".npy") and left[0]:
            left[0] -= 1
            if random.Random(cuts + left[0]).random() < .5: raise ConnectionError("cut")
            with open(to, "r+b") as f: f.truncate(100)  # no error, but not all of it
    monkeypatch.setattr(LocalFileSystem, "get_file", cut)
    far = array(f"file://{tmp_path}/far")
    left[0] = cuts
    if cuts < remote.TRIES: assert far[100].tolist() == [100, 100]
    else: fails(lambda: far[100], "n-00003.npy cannot be copied")
    assert not [p for p in load_settings().cache.rglob(".tmp-*")]


def _read_all(url, results):
    mirrors._mirror.cache_clear()
    results.put(int(array(url)[:].sum()))

def test_processes_that_read_at_once_get_the_same(tmp_path):
    store = numbers(tmp_path/"far", 600)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_read_all, args=(f"file://{tmp_path}/far", results)) for _ in range(6)]
    for p in processes: p.start()
    assert {results.get(timeout=60) for p in processes} == {int(store.array("n", (2,), "int32")[:].sum())}
    for p in processes: p.join()


def test_killed_at_random_moments_a_mirror_is_whole_after_the_next_look(tmp_path):
    store, url, draw = numbers(tmp_path/"far", 400), f"file://{tmp_path}/far", random.Random(drawn_seed())
    fork, whole = multiprocessing.get_context("fork"), store.array("n", (2,), "int32")[:]
    for _ in range(8):
        process = fork.Process(target=_read_all, args=(url, fork.Queue()))
        process.start()
        process.join(draw.uniform(0, .15))
        process.kill()
        process.join()
    place = seen_again(url)
    assert np.array_equal(array(url)[:], whole) and not [*place.rglob(".tmp-*")]


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem
    numbers(tmp_path/"far")
    true = LocalFileSystem.find
    bad = lambda name: lambda self, path, **rest: {**true(self, path, **rest), f"{path}/{name}": dict(size=3, mtime=1.)}
    for name in ("a/../../up.csv", "a\\b.csv", "x\n.csv"):
        monkeypatch.setattr(LocalFileSystem, "find", bad(name))
        if "/.." in name: assert not (seen_again(f"file://{tmp_path}/far").parent/"up.csv").exists()
        else: fails(lambda: seen_again(f"file://{tmp_path}/far"), "does not lie below")


def test_a_note_in_any_other_folder_is_not_read(tmp_path):
    numbers(tmp_path/"far")
    place = tmp_path/"given"
    place.mkdir()
    (place/".mirror.json").write_text(json.dumps(dict(url=f"file://{tmp_path}/far", files={"n.npy": ["1", 10]})))
    assert not mirror_note(place) and not fetch_mirrored(place/"n.npy") and not (place/"n.npy").exists()


def test_a_run_from_urls_is_the_run_from_folders_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_RUNS", str(tmp_path/"runs"))
    monkeypatch.setenv("DHO_PROGRESS", "none")
    ingest(str(manifest_root(open_manifest("digits"))), tmp_path/"pool", side=32, mode="none")
    options = dict(student="tiny", student_weights="", teacher="digits", shots=4, epochs=2, views=2)
    config = lambda place, **more: Config(dataset=f"{place}/pool", **options, **more)
    fill_run_teacher_store(config(tmp_path), tmp_path/"store")
    runs = [distill(config(place, embeddings=f"{place}/store"), folder=tmp_path/name)
            for place, name in ((tmp_path, "a"), (f"file://{tmp_path}", "b"))]
    assert runs[0].identity == runs[1].identity
    for file in ("model.safetensors", "outputs.safetensors"):
        assert (tmp_path/"a"/file).read_bytes() == (tmp_path/"b"/file).read_bytes()
    assert json.loads((tmp_path/"b"/"run.json").read_text())["config"]["embeddings"] == f"file://{tmp_path}/store"
    pictures = lambda place: [(i.id, np.asarray(i.decode(0)).tobytes()) for i in stream_images(place)]
    assert pictures(f"file://{tmp_path}/pool") == pictures(tmp_path/"pool")
    joined = join_embedding_stores([f"file://{tmp_path}/store"], tmp_path/"joined")
    assert np.array_equal(joined.view(1)[:], Store(tmp_path/"store").view(1)[:])
    fails(lambda: distill(Config(dataset=f"file://{tmp_path}/store", **options)), "holds no ingested dataset")


def test_a_damaged_copy_never_stands_where_a_reader_finds_it(tmp_path, monkeypatch):
    numbers(tmp_path/"far")
    with open(tmp_path/"far"/"n-00002.npy", "r+b") as f: f.seek(-5, 2); f.write(b"\x77")
    far, place, seen = array(f"file://{tmp_path}/far"), local_place(f"file://{tmp_path}/far"), []
    whole = Chunked.corrupt_chunks
    monkeypatch.setattr(Chunked, "corrupt_chunks", lambda self, *file: seen.append(copied(place)) or whole(self, *file))
    fails(lambda: far[70], "n-00002.npy", "damaged")
    assert seen == [[]] or all("n-00002.npy" not in names for names in seen)
    assert not [p for p in place.rglob(".tmp-*")]


def test_a_store_that_was_made_anew_in_another_order_is_not_read_by_the_list_before(tmp_path):
    _, url = numbers(tmp_path/"far", 64), f"file://{tmp_path}/far"
    far = array(url)
    shutil.rmtree(tmp_path/"far")
    other = ChunkStore(tmp_path/"far", HEADER)
    other.add([f"{k:05d}" for k in range(63, -1, -1)], ["x"]*64, [0]*64, ["n"])
    for chunk in range(16): other.array("n", (2,), "int32").put(chunk, np.full((4, 2), 7))
    other.array("n", (2,), "int32").flush()
    seen_again(url)  # as another process does it
    fails(lambda: far[3], "made anew", "start again")
    assert array(url)[3].tolist() == [7, 7]


@pytest.mark.parametrize("change", ["gone", "empty", "damaged", "other types", "of another version", "outside"])
def test_without_its_note_a_mirror_is_copied_anew(tmp_path, change):
    numbers(tmp_path/"far")
    url = f"file://{tmp_path}/far"
    array(url)[:]
    note, kept = local_place(url)/".mirror.json", tmp_path/"cache"/"kept.csv"
    kept.write_text("")
    (local_place(url)/"images.csv").write_text("stale"); (local_place(url)/"n.npy").write_bytes(b"stale"); (local_place(url)/"more.npy").write_bytes(b"")
    files = json.loads(note.read_text())["files"]
    other = {"empty": "", "damaged": "{", "other types": json.dumps(dict(url=url, files={k: 5 for k in files})),
             "of another version": json.dumps(dict(url=url, files={k: ["x", v[1]] for k, v in files.items()})),
             "outside": json.dumps(dict(url=url, files={"../../../kept.csv": ["x", 1], str(kept): ["x", 1]}))}
    if change == "gone": note.unlink()
    else: note.write_text(other[change])
    place = seen_again(url)
    assert (place/"images.csv").read_bytes() == (tmp_path/"far"/"images.csv").read_bytes() and not (place/"more.npy").exists() and kept.exists()
    assert array(url)[:][:, 0].tolist() == [*range(150)] and json.loads(note.read_text())["files"] == files


def test_a_full_disk_and_a_cache_of_others_are_named(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem
    numbers(tmp_path/"far")
    url, tries = f"file://{tmp_path}/far", []
    def full(self, path, to, **rest): tries.append(path); raise OSError(errno.ENOSPC, "No space left on device", to)
    with monkeypatch.context() as m:
        m.setattr(LocalFileSystem, "get_file", full)
        fails(lambda: local_place(url), "is full", "DHO_CACHE")
        assert len({*tries}) == len(tries)  # it is not tried again
    local_place(url)
    before = {p: p.stat().st_mtime_ns for p in local_place(url).rglob("*")}
    def refused(path, *rest): raise PermissionError(errno.EACCES, "Permission denied", str(path))
    with monkeypatch.context() as m:
        m.setattr(mirrors, "write_json", refused)
        seen_again(url)  # nothing to write: a mirror in a cache that is only read is read
        assert before == {p: p.stat().st_mtime_ns for p in local_place(url).rglob("*")}
        numbers(tmp_path/"far", 200)
        fails(lambda: seen_again(url), "belongs to", "DHO_CACHE")


@pytest.mark.parametrize("url", ["memory://", "file://", "memory:///", "file:///tmp/..", "s3://../x", "memory://a/../b"])
def test_an_address_without_a_name_is_refused(url): fails(lambda: local_place(url), "names no file or folder")


def test_a_bucket_with_a_file_and_a_folder_of_one_name(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem
    numbers(tmp_path/"far")
    (tmp_path/"far"/"a").mkdir(); (tmp_path/"far"/"a"/"b.csv").write_text("b")
    true = LocalFileSystem.find
    monkeypatch.setattr(LocalFileSystem, "find", lambda self, path, **rest: {f"{path}/a": dict(size=0, mtime=1.), **true(self, path, **rest)})
    assert (local_place(f"file://{tmp_path}/far")/"a"/"b.csv").read_text() == "b"


def test_a_reader_goes_on_while_another_process_copies_everything_anew(tmp_path, monkeypatch):
    _, url = numbers(tmp_path/"far"), f"file://{tmp_path}/far"
    monkeypatch.setattr(mirrors, "remote_file_version", lambda facts: "")  # as behind a web server that tells none
    far, read, times = array(url), chunk_store._gather, []
    def late(*given):
        if len(times) < 1: times.append(seen_again(url))
        return read(*given)
    monkeypatch.setattr(chunk_store, "_gather", late)
    assert far[[3, 149]].tolist() == [[3, 3], [149, 149]] and times
