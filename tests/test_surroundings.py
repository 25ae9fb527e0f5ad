"What a container, a notebook, a scheduler or a shared folder does to a run: none of it may end one, empty its output, or have it wait for ever"
import errno
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, picture

from dho_nb.data import chunk_store, loaders, manifests
from dho_nb.cli.main import main
from dho_nb.runs.config import preset
from dho_nb.teachers.embedding_store import Store, join_embedding_stores
from dho_nb.runs.run import Run
from dho_nb.core.errors import DhoError
from dho_nb.core.files import file_lock, hold_file_lock, write_json
from dho_nb.core.settings import load_settings
from dho_nb.training.trainer import TrainingStopped
from dho_nb.data.leases import Leases
from dho_nb.data.loaders import batch_loader

POD = dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder with settings of its own"
    monkeypatch.chdir(tmp_path)
    for name, value in dict(CACHE=tmp_path/"cache", RUNS=tmp_path/"runs", DEVICE="cpu", PROGRESS="none").items():
        monkeypatch.setenv(f"DHO_{name}", str(value))
    return tmp_path


# Groups

@pytest.mark.parametrize("env", [dict(RANK="1"), dict(RANK="1", WORLD_SIZE="1"), dict(RANK="1", WORLD_SIZE="2"), POD,
                                 dict(RANK="one", WORLD_SIZE="auto"), dict(SLURM_PROCID="1", SLURM_NTASKS="2"),
                                 dict(OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2"), dict(PMI_RANK="1", PMI_SIZE="2")])
def test_verbs_that_do_not_train_print_whatever_the_rank(here, monkeypatch, capsys, env):
    for name, value in env.items(): monkeypatch.setenv(name, value)
    assert main(["list", "methods"]) == 0
    assert capsys.readouterr().out.count("\n") > 10
    assert {k: os.environ[k] for k in env} == env, "given back"


def test_check_and_predict_meet_nobody(tmp_path, dho):
    assert dho("distill", "--preset", "digits", "--shots", "1", "--epochs", "1", "--out", "run", RANK="1", WORLD_SIZE="2")[0] == 0
    code, out, err = dho("check", "--preset", "digits", "--shots", "1", **POD)
    assert code == 0 and "images" in out, err[-500:]
    one = next((tmp_path/"cache"/"digits"/"one").iterdir(), None) if (tmp_path/"cache").exists() else None
    code, out, err = dho("predict", "run", one or picture(tmp_path/"a.png"), **POD)
    assert code == 0 and out.count("\n") == 2, (out, err[-500:])


# Waiting

def big(k): return torch.full((3, 4, 4), k, dtype=torch.uint8), torch.tensor([k])


class Numbered:
    "Batches with tensors, by number"
    def __len__(self): return 6
    def __getitem__(self, k): return big(k)


def same(found):
    found = list(found)
    return len(found) == 6 and all(torch.equal(a, b) for k, batch in enumerate(found) for a, b in zip(batch, big(k), strict=True))


def test_batches_go_by_pipes_where_shared_memory_is_small(here, monkeypatch):
    monkeypatch.setattr(loaders, "_shared_memory", lambda: 100)
    with pytest.warns(UserWarning, match="/dev/shm"): found = list(batch_loader(Numbered(), workers=2))
    assert same(found)
    monkeypatch.setenv("DHO_WORKERS", "2")
    with pytest.raises(DhoError, match="/dev/shm.*--shm-size.*DHO_WORKERS=0"): list(batch_loader(Numbered(), workers=2, strict=True))
    with pytest.warns(UserWarning): assert same(batch_loader(Numbered(), workers=2)), "an evaluation goes on"


def test_a_batch_that_shared_memory_refuses_is_sent_again(here, monkeypatch):
    def full(*_): raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(batch_loader(Numbered(), workers=2))
    assert same(found)


class Ends(Numbered):
    def __getitem__(self, k): os.kill(os.getpid(), signal.SIGKILL)


class Sleeps(Numbered):
    def __getitem__(self, k): time.sleep(60)


def test_a_worker_that_is_killed_or_silent_is_said(here, monkeypatch):
    with pytest.raises(MemoryError, match="an image worker was killed.*DHO_WORKERS"): list(batch_loader(Ends(), workers=1))
    monkeypatch.setenv("DHO_WAIT_SECONDS", "1")
    with pytest.raises(TimeoutError, match="DHO_WAIT_SECONDS"): list(batch_loader(Sleeps(), workers=1))


def test_a_stop_while_waiting_for_a_batch_leaves_a_checkpoint(here, monkeypatch):
    run = Run(preset("digits", epochs=2, shots=1), here/"run")

    def stuck(streams, steps, *_, **__):
        yield from (streams[k] for k in steps[:3])
        threading.Timer(.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(30)
    monkeypatch.setattr("dho_nb.training.trainer.batch_loader", stuck)
    began = time.monotonic()
    with pytest.raises(TrainingStopped, match="after step 3"): run.train()
    assert time.monotonic() - began < 25 and (here/"run"/"checkpoint.safetensors").exists()
    run.release()


def test_waiting_for_a_lock_names_its_holder_and_ends(here, monkeypatch, capsys):
    monkeypatch.setenv("DHO_WAIT_SECONDS", "1")
    holds = f"from filelock import FileLock; import time; l = FileLock({str(here/'.lock')!r}); l.acquire(); print(1, flush=True); time.sleep(90)"
    other = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        with pytest.raises(DhoError, match="has held .*DHO_WAIT_SECONDS"):
            with hold_file_lock(file_lock(here/".lock"), "works on a store", .1): pass
        said = capsys.readouterr().err
        assert "waiting for" in said and (f"process {other.pid}" in said or "another process" in said)
    finally: other.kill(); other.wait()


def test_waiting_for_another_fill_ends_where_nothing_comes_of_it(here, monkeypatch, capsys):
    monkeypatch.setattr("dho_nb.data.chunk_store.time.sleep", lambda _: None)
    waiting, leases = chunk_store._WaitForOthers(SimpleNamespace(folder=here/"store", shard=8), "lines"), Leases(here/"store"/".claims")
    wait = lambda pieces: waiting(pieces, leases)
    left = [(0, ["still"]), (1, ["still"])]
    for _ in range(3): wait(left)
    assert capsys.readouterr().out.count("waiting for another process that fills store") == 1
    waiting.since -= 31*load_settings().wait_seconds
    with pytest.raises(DhoError, match="finished nothing for 60 min"): wait(left)
    wait(left[1:])  # something came of it


# Filesystems

@pytest.mark.parametrize("refused", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_or_a_mode_that_cannot_be_set_is_no_reason_to_stop(here, monkeypatch, refused):
    def fsync(_): raise OSError(refused, os.strerror(refused))
    def chmod(*_, **__): raise PermissionError(errno.EPERM, "chmod")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "chmod", chmod)
    write_json("a.json", {})
    assert json.loads(Path("a.json").read_text()) == {}


@pytest.mark.parametrize("broken", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_a_disk_did_not_take_is_an_error(here, monkeypatch, broken):
    own = os.fsync

    def fsync(handle):
        if not stat.S_ISDIR(os.fstat(handle).st_mode): raise OSError(broken, os.strerror(broken))
        return own(handle)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError): write_json("a.json", {})
    assert not list(here.iterdir())


@pytest.mark.parametrize("refused", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_flock_is_unknown_the_file_itself_is_the_lock(here, monkeypatch, refused):
    import fcntl

    import filelock

    def flock(*_): raise OSError(refused, os.strerror(refused))
    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(here/".lock", timeout=0):
        with pytest.raises(filelock.Timeout): file_lock(here/".lock", timeout=0).acquire()
    with file_lock(here/".lock", timeout=0): pass


def test_without_a_home_folder_the_cache_is_named_or_lends_one(here, monkeypatch):
    def nobody(*_): raise KeyError("no such user")
    monkeypatch.delenv("HOME")
    for ask in ("getpwuid", "getpwnam"): monkeypatch.setattr(pwd, ask, nobody)
    assert main(["list", "methods"]) == 0 and os.environ["HOME"] == str(here/"cache"/"home")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("DHO_CACHE")
    with pytest.raises(DhoError, match="DHO_CACHE"): load_settings()
    assert main(["data", "list"]) == 2


def test_a_tilde_that_nobody_knows_is_a_sentence(here, capsys):
    assert main(["predict", "~nobodyknows/run", "a.png"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_systems_leave_beside_files_is_passed_over(here, tree):
    assert main(["store", "fill", "--images", str(tree), "--teacher", "digits", "--views", "1", "--epochs", "1", "--store", "store"]) == 0
    before = Store("store").filled()
    for name in ("._still.npy", "._images.csv", "view000 (conflicted copy).npy", "still.sync-conflict-20261129-1.npy", "Thumbs.db",
                 ".DS_Store", "._head-0.safetensors"): Path("store", name).write_bytes(b"\0\5\26\7")
    assert Store("store").filled() == before and join_embedding_stores(["store"], "joined").filled() == before
    assert not [p for p in Path("joined").iterdir() if p.name.startswith("._")]


def test_a_second_copy_of_a_list_is_not_another_list(here):
    folder = here/"cache"/"manifests"
    folder.mkdir(parents=True)
    for name in ("pets.csv", "pets.sync-conflict-20261129.csv", "pets.csv.bak", "pets.csv~", "._pets.csv"): (folder/name).touch()
    assert manifests.manifest_files()["pets"].name == "pets.csv"


@pytest.mark.skipif(not shutil.which("setpriv") or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root and setpriv")
def test_a_cache_that_another_user_filled_is_read_and_named(here, tree, dho):
    "The process keeps its files' owner (root) and loses root's right to write everywhere"
    run = ["distill", "--images", tree, "--shots", "2", *SMALL]
    assert dho(*run, "--out", "a", DHO_CACHE=str(here/"cache"))[0] == 0
    for path in (here/"cache", *(here/"cache").rglob("*")): os.chown(path, 65534, 65534)

    def other(*more):
        return subprocess.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "dho_nb.cli.main", *map(str, [*run, *more])],
                              cwd=here, capture_output=True, text=True, env=dict(os.environ, DHO_CACHE=str(here/"cache")))
    assert (done := other("--out", "b")).returncode == 0, done.stderr[-500:]
    done = other("--out", "c", "--epochs", "3")  # a third view of every image
    assert done.returncode == 2 and "DHO_CACHE" in done.stderr and "belongs to user" in done.stderr, done.stderr[-500:]
    assert "goes on from there" not in done.stderr and "Traceback" not in done.stderr


# Notebooks and figures

def test_a_run_as_a_notebook_is_this_python_and_needs_no_screen(here):
    (here/"random.py").write_text("print('my own script'); raise SystemExit(3)")
    (here/"netz.py").write_text("from torch import nn\n\ndef make(): return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())")
    kernel = here/"jupyter"/"kernels"/"python3"/"kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(dict(argv=["/bin/false"], display_name="Other", language="python")))
    startup = here/"ipython"/"profile_default"/"startup"/"00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("import os; os._exit(7)")
    call = "distill --preset digits --shots 1 --epochs 1 --student netz:make --notebook --out run".split()
    env = dict(MPLBACKEND="nonsense", JUPYTER_PATH=str(here/"jupyter"), IPYTHONDIR=str(here/"ipython"), JUPYTER_RUNTIME_DIR="/proc/none",
               PYTHONSTARTUP=str(startup), TMPDIR="/not/there", RANK="1", WORLD_SIZE="2")
    done = subprocess.run([sys.executable, "-P", "-m", "dho_nb.cli.main", *call], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-1000:])
    cells = json.loads((here/"run"/"notebook.ipynb").read_text())["cells"]
    assert any("image/png" in o.get("data", ()) for c in cells for o in c.get("outputs", ())), "figures are shown"
    assert (here/"run"/"curves.png").exists()


@pytest.mark.parametrize("backend", ["nonsense", "TkAgg", "module://not_there.backend"])
def test_figures_are_files_whatever_the_backend(here, backend):
    draws = "import sys; from dho_nb.training.trainer import plot_training_history; plot_training_history([dict(epoch=1, step=1, lr=1, loss=2.)]).savefig('a.png')"
    done = subprocess.run([sys.executable, "-c", draws], env=dict(os.environ, MPLBACKEND=backend), capture_output=True, text=True)
    assert done.returncode == 0 and Path("a.png").stat().st_size > 1000, done.stderr[-500:]


def test_a_figure_that_cannot_be_drawn_is_a_warning(here, monkeypatch):
    run = Run(preset("digits", epochs=1, shots=1), here/"run")
    run.train()

    def broken(*_, **__): raise ValueError("no font")
    monkeypatch.setattr("dho_nb.runs.result.plot_alpha_beta_grid", broken)
    with pytest.warns(UserWarning, match="could not be drawn .*no font"): run.finish()
    assert run.done and not any(run.folder.glob(".tmp*"))


# Memory

@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of the address space")
def test_pictures_too_large_for_the_memory_are_a_sentence(here):
    import resource
    done = subprocess.run([sys.executable, "-m", "dho_nb.cli.main", *"distill --preset digits --shots 1 --epochs 1 --size 3000 --out run".split()],
                          capture_output=True, text=True, timeout=300,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6*2**30, 6*2**30)))
    assert done.returncode == 2 and "memory ran out" in done.stderr and "accumulate" in done.stderr, done.stderr[-800:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name, value", [("THREADS", "-1"), ("THREADS", "many"), ("WORKERS", "-7"), ("CHECKPOINT_SECONDS", "nan"),
                                         ("WAIT_SECONDS", "0")])
def test_settings_out_of_range_are_sentences(here, monkeypatch, capsys, name, value):
    monkeypatch.setenv(f"DHO_{name}", value)
    assert main(["data", "list"]) == 2
    assert name.lower() in capsys.readouterr().err
