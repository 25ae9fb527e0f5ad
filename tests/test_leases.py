"Pieces of work that processes of several machines share out: clocks that are wrong, deaths, sleep, and two at once"
import json
import multiprocessing
import os
import random
import time

import numpy as np
import pytest

from conftest import drawn_seed
from dho_nb.core.errors import DhoError
from dho_nb.data import chunk_store, leases as module
from dho_nb.data.chunk_store import ChunkStore, fill_chunks
from dho_nb.data.leases import Leases

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch): monkeypatch.setattr(module, "BEAT", .05)


def on_another_machine(work, *args, skew=0.):
    "Begin a process that has another machine's name, and a clock that is wrong"
    def begin():
        clock = time.time
        module.machine_name, time.time = (lambda: "far boot 1"), (lambda: clock() + skew)
        work(*args)
    process = FORK.Process(target=begin)
    process.start()
    return process

def keep(folder, skew):
    "Hold a lease until death; the file's own time is wrong, too"
    leases = Leases(folder)
    assert leases.take("a")
    while True:
        os.utime(folder/"a.lease", (time.time(),)*2)
        time.sleep(.02)

def until(what, seconds=60.):
    "Wait until something holds"
    end = time.perf_counter() + seconds
    while not what():
        assert time.perf_counter() < end, "it never came"
        time.sleep(.01)

@pytest.fixture
def clock(monkeypatch):
    "This process's own clock, which stands still: a list of one number"
    now = [0.]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now

DEATH = .05*module.MISSED


@pytest.mark.parametrize("skew", [-1e9, 0., 30., 1e9])
def test_a_dead_machine_is_followed_and_a_living_one_is_not_whatever_the_clocks_say(tmp_path, clock, skew):
    other = on_another_machine(keep, tmp_path, skew, skew=skew)
    count = lambda: json.loads((tmp_path/"a.lease").read_bytes())["count"]
    try:
        until(lambda: (tmp_path/"a.lease").exists() and (tmp_path/"a.lease").stat().st_size)
        with Leases(tmp_path) as mine:
            assert mine.holder("a") == f"process {other.pid} of far"
            for _ in range(5):  # it lives: the count differs whenever this process looks
                before = count()
                assert not mine.take("a")
                until(lambda: count() != before)
                clock[0] += .9*DEATH
            assert not mine.take("a")
            other.kill(); other.join()
            mine.take("a")
            clock[0] += .9*DEATH
            assert not mine.take("a"), "taken before it was seen to be dead"
            clock[0] += .2*DEATH
            assert mine.take("a")
    finally: other.kill(); other.join()
    assert not [*tmp_path.iterdir()]


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 1e6)
    other = FORK.Process(target=keep, args=(tmp_path, 0.))
    other.start()
    until(lambda: (tmp_path/"a.lease").exists() and (tmp_path/"a.lease").stat().st_size)
    with Leases(tmp_path) as mine:
        assert not mine.take("a")
        other.kill(); other.join()
        assert mine.take("a")


def test_another_process_with_a_dead_one_s_number_is_not_it(tmp_path):
    with Leases(tmp_path) as mine:
        facts = json.loads(mine._text(0))
        (tmp_path/"a.lease").write_text(json.dumps(dict(facts, token="dead", start="1")))
        assert mine.take("a")


def test_who_was_asleep_leaves_the_new_holder_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 1e6)
    with Leases(tmp_path) as asleep, Leases(tmp_path) as new:
        assert asleep.take("a")
        (tmp_path/"a.lease").unlink()
        assert new.take("a")
        before = (tmp_path/"a.lease").read_bytes()
        asleep._renew("a")
        asleep.drop(["a"])
        assert (tmp_path/"a.lease").read_bytes() == before


def test_a_slow_heir_gives_back_what_another_has_just_taken(tmp_path, monkeypatch):
    "Both see the dead one; the first takes over between the other's look and its move"
    with Leases(tmp_path) as first, Leases(tmp_path) as slow:
        (tmp_path/"a.lease").write_text(json.dumps(dict(json.loads(first._text(0)), token="dead", start="1")))
        look = slow._last_words
        def late(file):
            text = look(file)
            assert first.take("a")
            return text
        monkeypatch.setattr(slow, "_last_words", late)
        assert not slow.take("a") and first.token in (tmp_path/"a.lease").read_text()
        assert [p.name for p in tmp_path.iterdir()] == ["a.lease"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"machine": 1}'])
def test_a_file_without_sense_is_followed_after_a_while(tmp_path, clock, text):
    (tmp_path/"a.lease").write_bytes(text)
    with Leases(tmp_path) as mine:
        assert not mine.take("a") and mine.holder("a") == "another process"
        clock[0] += 1.1*DEATH
        assert mine.take("a")


def claim(folder, taken, start):
    with Leases(folder) as leases:
        start.wait()
        for piece in range(200):
            if leases.take(piece): taken.put((piece, os.getpid()))
        start.wait()


def test_no_piece_has_two_living_holders(tmp_path):
    taken, start = FORK.Queue(), FORK.Barrier(4)
    four = [FORK.Process(target=claim, args=(tmp_path, taken, start)) for _ in range(4)]
    for p in four: p.start()
    found = [taken.get(timeout=60)[0] for _ in range(200)]
    for p in four: p.join()
    assert sorted(found) == [*range(200)] and taken.empty() and not [*tmp_path.iterdir()]


# ── a store, filled by leases

ROWS, WIDTH = 700, 5

def fill(folder, seconds=0.):
    "Fill an array of a store, slowly"
    store = ChunkStore(folder, dict(kind="example", chunk=4))
    store.add([f"{i:04d}" for i in range(ROWS)], [""]*ROWS, [0]*ROWS)
    array = store.array("v", (WIDTH,), "float32")
    missing = lambda: [(int(c), ["v"]) for c in np.flatnonzero(~array.done)]
    def put(chunk, names, values):
        time.sleep(seconds)
        array.put(chunk, values)
    rows = lambda chunk, names: np.random.default_rng(chunk).random((store.bounds[chunk + 1] - store.bounds[chunk], WIDTH))
    fill_chunks(store, missing, rows, put, "filling", mode="none")

def content(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}

@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")/"store"
    fill(folder)
    assert len([*folder.glob("v*.npy")]) == -(-ROWS//4//chunk_store.SHARD) == 22
    return content(folder)


def test_three_processes_fill_what_one_fills(alone, tmp_path):
    three = [FORK.Process(target=fill, args=(tmp_path/"store", .001)) for _ in range(3)]
    for p in three: p.start()
    for p in three: p.join()
    assert [p.exitcode for p in three] == [0]*3 and content(tmp_path/"store") == alone


@pytest.mark.parametrize("far", [False, True])
def test_killed_at_random_moments_and_finished_by_another(alone, tmp_path, monkeypatch, far):
    "Also by processes of other machines, whose deaths can only be waited for"
    draw, kills = random.Random(drawn_seed()), 0
    monkeypatch.setattr(chunk_store, "FLUSH", .01)
    begin = lambda: (on_another_machine(fill, tmp_path/"store", .01, skew=draw.uniform(-1e6, 1e6)) if far
                     else FORK.Process(target=fill, args=(tmp_path/"store", .01)))  # 1.75 s in all: longer than three attempts
    for _ in range(10):
        process = begin()
        if not far: process.start()
        process.join(draw.uniform(.05, .3))
        kills += process.exitcode is None
        process.kill(); process.join()
    fill(tmp_path/"store")
    assert kills >= 3, "the kills came too late to mean anything"
    assert {n: b for n, b in content(tmp_path/"store").items() if not n.startswith(".claims")} == alone


def test_a_damaged_file_is_found_and_made_again_alone(alone, tmp_path):
    fill(tmp_path/"store")
    file = tmp_path/"store"/"v-00007.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    array = ChunkStore(tmp_path/"store", {}).array("v", (WIDTH,), "float32")
    assert array.corrupt_chunks().tolist() == [7*chunk_store.SHARD + 7]
    array.forget(array.corrupt_chunks())
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path/"store").glob("v*.npy")}
    fill(tmp_path/"store")
    changed = [p.name for p in (tmp_path/"store").glob("v*.npy") if p.stat().st_mtime_ns != times[p.name]]
    assert changed == [file.name] and content(tmp_path/"store") == alone


def test_rows_of_many_files_are_those_of_one(tmp_path):
    "In any order, repeated, as a slice or a number, and where a file was cut short"
    draw = np.random.default_rng(drawn_seed())
    bounds = np.concatenate([[0], np.cumsum(draw.integers(1, 9, 50))])
    one, many = (chunk_store.ShardedArray(tmp_path/name, (3, 2), "float16", bounds, shard) for name, shard in (("a.npy", 99), ("b.npy", 7)))
    values = draw.random((bounds[-1], 3, 2)).astype("float16")
    for array in (one, many):
        array.reserve()
        for chunk in range(50): array.put(chunk, values[bounds[chunk]:bounds[chunk + 1]])
        array.flush()
        for rows in (draw.integers(0, bounds[-1], 300), draw.permutation(bounds[-1]), np.arange(bounds[-1]), slice(3, 40), [], 5,
                     draw.integers(0, bounds[-1], (4, 5))):
            np.testing.assert_array_equal(array[rows], values[np.asarray(rows, int) if not isinstance(rows, slice) else rows])
    assert len(many.parts) == 8 and np.load(tmp_path/"a.npy").shape == values.shape
    os.truncate(many.parts[2].file, 200)
    with pytest.raises(DhoError, match="b-00002.npy ends early"): many[np.arange(bounds[-1])]
