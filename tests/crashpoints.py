"""Kill a command before any of its file operations, run it again, and compare its folder with an undisturbed twin's.

`python tests/crashpoints.py map-begun` tries every point of a scenario, `python tests/crashpoints.py` those of all."""
import builtins
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.chmod": 0, "os.link": 1,
           "os.symlink": 1, "os.utime": 0}  # audit event to which of its arguments is the path
NUMBER = 8  # bytes that a kernel copies at once: no kill comes between them


class Watch:
    "Count what this process changes below a folder; end it by SIGKILL before the change number `fatal`"
    def __init__(self, root, fatal=0): self.root, self.fatal, self.points = os.path.realpath(root), fatal, []

    def within(self, path):
        "The path below the folder, or None"
        if isinstance(path, int): path = os.readlink(f"/proc/self/fd/{path}")
        path = os.path.abspath(os.fsdecode(path))
        return os.path.relpath(path, self.root) if path.startswith(self.root + os.sep) else None

    def point(self, what, path):
        "One more change; True where the next one is the last, so that half of this one can be done"
        if (name := self.within(path)) is None: return False
        self.points.append(f"{what} {name}")
        if len(self.points) == self.fatal: die()
        return len(self.points) + 1 == self.fatal

    def written(self, path, count, write):
        "A write of `count` bytes: a point before it, and one when half is done, unless it is a single number"
        last = self.point("write", path)
        if count <= NUMBER or self.within(path) is None: return write(count)
        if last: write(count//2)
        self.point("half of", path)
        return write(count)


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def install(watch):
    "Have everything that Python code of this process writes reported to `watch`; cannot be undone"
    plain = dict(open=io.open, write=os.write, fsync=os.fsync, sendfile=os.sendfile)

    class Raw(io.FileIO):
        def write(self, data):
            data = memoryview(data).cast("B")
            return watch.written(self.name, len(data), lambda n: io.FileIO.write(self, data[:n]))

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if isinstance(file, int) or not {*mode} & {*"wax+"} or watch.within(os.fspath(file)) is None:
            return plain["open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0: return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        made = kind(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
        return made if "b" in mode else io.TextIOWrapper(made, encoding, errors, newline, buffering == 1)

    def synced(handle):
        watch.point("fsync", handle if isinstance(handle, int) else handle.fileno())
        return plain["fsync"](handle)

    def heard(event, args):
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            watch.point("open", args[0])
        elif event in CHANGES: watch.point(event, args[CHANGES[event]])

    import safetensors.torch
    serialize = safetensors.torch.serialize_file

    def serialized(tensors, filename, metadata=None):  # writes in Rust, unseen
        def write(count):
            serialize(tensors, filename, metadata=metadata)
            if count < 1000: os.truncate(filename, os.path.getsize(filename)//2)
        watch.written(filename, 1000, write)

    builtins.open = io.open = opened
    os.write = lambda fd, data: watch.written(fd, len(data), lambda n: plain["write"](fd, data[:n]))
    os.sendfile = lambda out, into, at, n: watch.written(out, n, lambda k: plain["sendfile"](out, into, at, k))
    os.fsync, safetensors.torch.serialize_file = synced, serialized
    sys.addaudithook(heard)


# ── what is tried

PICTURES, FEWER, MORE = 44, 20, ["--shots", "2", "--teacher", "digits", "--student", "tiny", "--student-weights", "",
                                 "--size", "16", "--flip", "0", "--epochs", "2"]


def tree(folder, count):
    "Pictures of two classes in a folder each, the first `count` of an endless row"
    from PIL import Image
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        noise[:, :, i % 2] //= 4
        file = folder/("cat", "dog")[i % 2]/f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists(): Image.fromarray(noise).save(file)


def dho(*argv):
    from dho_nb.cli.main import main
    code = main([*map(str, argv)])
    assert code == 0, f"dho {argv[0]} ended with {code}"


def map_of(here):
    from dho_nb.data.manifests import content_keys, open_manifest
    from dho_nb.data.image_cache import ImageMap
    manifest = open_manifest(str(here/"tree"))
    return ImageMap(manifest, here/"tree", 16, content_keys(manifest, here/"tree"), here/"out")


def build_map(here): map_of(here).build(mode="none")


def list_map(here):
    made = map_of(here)
    made.add(made.manifest.table["id"], made.content, np.zeros(len(made.manifest), int), ["pixels", "sizes"])


def fill_views(here, views):
    from dho_nb.runs.config import make_config
    from dho_nb.runs.teacher_provider import fill_run_teacher_store
    fill_run_teacher_store(make_config(dict(dataset=str(here/"tree"), shots=2, teacher="digits", student="tiny", student_weights="",
                                size=16, views=views)), here/"out", mode="none")


def distill(here, *more, out="run"): dho("distill", "--images", here/"tree", *MORE, *more, "--out", here/out)


@dataclass(frozen=True)
class Scenario:
    "A command, what stands in the folder before it, and what must be there after it"
    command:object           # (folder): is killed, and run again
    before:object            # (folder): makes what the command finds
    files:tuple              # That are there in the end, and not empty
    flush:float = 0.         # Seconds between the flushes of a store
    helper:object = None     # (folder): runs beside the command, undisturbed
    again:object = None      # (folder): what is run after the command or its kill, where it is not the command


def few(here): tree(here/"tree", FEWER)
def many(here): tree(here/"tree", PICTURES)
def one_view(here): fill_views(here, 1)
def two_views(here): fill_views(here, 2)
def three_views(here): fill_views(here, 3)
def map_there(here): few(here); build_map(here); many(here)
def map_listed(here): few(here); list_map(here)
def map_more(here): many(here); build_map(here)
def store_there(here): few(here); one_view(here); many(here)
def run_all(here): distill(here, "--predict", "all")
def run_there(here): many(here); distill(here)
def tested_there(here): many(here); distill(here, "--test", ".3", "--predict", "test")
def rest(here): distill(here, "--test", ".3", "--predict", "all")
def export(kind): return lambda here: dho("export", here/"run", "--images", here/"tree", kind, "--out", here/"out")
def predict(here): dho("predict", here/"run", here/"tree", "--out", here/"out.csv")
def predict_again(here): (here/"out.csv").exists() or predict(here)  # what is there is whole, and not written again


def mirror(here):
    from dho_nb.data import mirrors
    mirrors._mirror.cache_clear()
    place = mirrors.local_place(f"file://{here}/far")
    mirrors.fetch_mirrored(*(place/name for name in ("a.npy", "b.npy")))


def far_there(here):
    for name in ("header.json", "a.npy", "b.npy", "sub/list.csv"):
        (here/"far"/name).parent.mkdir(parents=True, exist_ok=True)
        (here/"far"/name).write_text(f"the first {name} ")


def far_changed(here):
    far_there(here); mirror(here)
    for name in ("a.npy", "sub/list.csv", "c.csv"): (here/"far"/name).write_text(f"another {name} ")
    (here/"far"/"header.json").unlink()


def labels_there(here):
    few(here)
    (here/"l.csv").write_text("path,label\n" + "".join(f"{c}/{i:03d}.png,{c}\n" for i, c in enumerate(("cat", "dog")*3)))


def click(here):
    from dho_nb.runs.labeler import Labeler
    page = Labeler(here/"tree", here/"l.csv", ["cat", "dog"])
    for path in ("cat/006.png", "dog/007.png"): page._write(path, path[:3])


def convert(here): dho("convert", here/"tree", "--out", here/"out.json", "--format", "label-studio")
def convert_again(here): (here/"out.json").exists() or convert(here)  # likewise


def runs_there(here):
    many(here)
    for seed in (0, 1): distill(here, "--seed", seed, "--conflict", "--epochs", 1, out=f"runs/{seed}")


def record_there(here): runs_there(here); keep("0")(here)


def keep(run):
    def command(here):
        from dho_nb.reports.results import record_results
        record_results(here/"runs"/run, here/"out")
    return command


def step_incomplete(here):
    "A planted fault: half a file counts as a whole one"
    if not (here/"out.txt").exists(): (here/"out.txt").write_text("word "*20)


def forgotten(here):
    "A planted fault: what is half done is not tidied up by the next process"
    (here/f"half-{os.getpid()}").write_text("word "*20)
    (here/f"half-{os.getpid()}").replace(here/"out.txt")


def careless_map(here):
    "A planted fault: the file of the pixels is lengthened before its header says so"
    from dho_nb.data.chunk_store import Chunked
    reserve = Chunked.reserve
    def careless(self):
        for file, length in self.lengths:
            if file.exists(): os.truncate(file, max(length, file.stat().st_size))
        reserve(self)
        with open(self.file, "r+b") as f: f.write(self.head)
    Chunked.reserve = careless
    build_map(here)


STORE = ("out/header.json", "out/images.csv", "out/view000.npy", "out/view000.crc", "out/view001.npy", "out/still.npy")
RUN = ("run/model.safetensors", "run/outputs.safetensors", "run/predictions.csv", "run/result.json", "run/history.csv",
       "run/curves.png", "run/run.json")
MAP = ("out/header.json", "out/images.csv", "out/pixels.npy", "out/pixels.crc", "out/sizes.npy", "out/sizes.crc")
RECORD = ("out/runs.csv", "out/right.npz", "out/cells.json", "out/conflict.csv")
MIRROR = ("far/header.json",)  # its copy lies below a hash of its place
SCENARIOS = {
    "map-begun": Scenario(build_map, many, MAP),
    "map-grown": Scenario(build_map, map_there, MAP),
    "map-grown-after": Scenario(build_map, map_listed, MAP, again=map_more),
    "map-late": Scenario(build_map, map_there, MAP, flush=1e9),
    "map-shared": Scenario(build_map, map_there, MAP, helper=build_map),
    "store-begun": Scenario(two_views, many, STORE),
    "store-grown": Scenario(three_views, store_there, (*STORE, "out/view002.npy", "out/view002.crc")),
    "store-shared": Scenario(two_views, store_there, STORE, helper=two_views),
    "run": Scenario(run_all, many, RUN),
    "predict-rest": Scenario(rest, tested_there, (*RUN, "run/per_class.csv")),
    "predict": Scenario(predict, run_there, ("out.csv",), again=predict_again),
    "convert": Scenario(convert, few, ("out.json", "out.xml"), again=convert_again),
    "mirror-begun": Scenario(mirror, far_there, MIRROR),
    "mirror-changed": Scenario(mirror, far_changed, ("far/c.csv",)),
    "label": Scenario(click, labels_there, ("l.csv",)),
    "record-begun": Scenario(keep("0"), runs_there, RECORD),
    "record-grown": Scenario(keep("1"), record_there, RECORD),
    "export-safetensors": Scenario(export("--safetensors"), run_there,
                                   ("out/model.safetensors", "out/export.json", "out/README.md")),
    "export-onnx": Scenario(export("--onnx"), run_there,
                            ("out/model.onnx", "out/export.json", "out/README.md", "out/predict_onnx.py")),
}
PLANTED = {  # scenario, the point that is followed by the one to kill at, what is said then
    "torn": (Scenario(step_incomplete, many, ("out.txt",)), "write out.txt", "out.txt differs"),
    "forgotten": (Scenario(forgotten, many, ("out.txt",)), "write half-", "is left"),
    "careless map": (Scenario(careless_map, map_there, MAP), "os.truncate out/pixels.crc", "out/pixels.npy differs"),
}
SCENARIOS |= {name: scenario for name, (scenario, *_) in PLANTED.items()}


# ── how it is tried

def perform(name, role, here, fatal=0, points=None):
    "In a process of its own: run a part of a scenario in the folder `here`, to its end or to the fatal point"
    import torch
    from dho_nb.data import chunk_store, image_cache, leases
    from dho_nb.teachers import embedding_store
    torch.set_num_threads(1)
    os.environ.update(DHO_CACHE=str(here/"cache"), DHO_RUNS=str(here/"runs"), DHO_DEVICE="cpu", DHO_PROGRESS="none",
                      DHO_CHECKPOINT_SECONDS="0", DHO_WORKERS="0", HF_HUB_OFFLINE="1")
    os.chdir(here)
    for module in (chunk_store, image_cache, embedding_store):
        for constant, value in dict(CHUNK=8, FLUSH=SCENARIOS[name].flush).items():
            if hasattr(module, constant): setattr(module, constant, value)
    chunk_store.SHARD, leases.BEAT, leases.MISSED = 4, 1e3, 2e-3  # no beat is a point
    watch, said = Watch(here, fatal), io.StringIO()
    install(watch)
    try:
        with redirect_stdout(said), redirect_stderr(said): getattr(SCENARIOS[name], role)(here)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}\n{said.getvalue()}", file=sys.__stderr__, flush=True)
        os._exit(1)
    if points is not None: points.send(watch.points)
    os._exit(0)


TIMES = {"result.json": ("seconds", "teacher_looked"),  # a run that goes on does not ask the teacher again
         "export.json": ("ms", "ms_of_32", "torch_ms", "card", "card_before")}


def timeless(name, data):
    "A file's bytes without the fields that a clock writes"
    if Path(name).name == ".mirror.json": return re.sub(rb'"[0-9a-f]{12}"', b"#", data)  # versions follow from times
    drop = TIMES.get(Path(name).name, ())
    if drop:
        without = lambda v: {k: without(x) for k, x in v.items() if k not in drop} if isinstance(v, dict) else v
        return json.dumps(without(json.loads(data))).encode()
    plain = lambda row: re.sub(rb"\d+\.\d+", b"#", row[0])
    return re.sub(rb"(?m)^\| *model\.onnx.*$", plain, data) if name == "out/README.md" else data


def content(here):
    "Every file below a folder, hidden ones too, and the folders that are empty"
    names = {str(p.relative_to(here)): p for p in here.rglob("*")}
    return {n: b"a folder" if p.is_dir() else timeless(n, p.read_bytes()) for n, p in names.items()
            if not p.is_dir() or not any(p.iterdir())}


LONG = 300  # seconds after which a process hangs
PRELOAD = ["pytest", "open_clip", "trio", "onnx", "onnxscript", "onnxruntime", "matplotlib.pyplot", "numpy.ctypeslib",
           "PIL.JpegImagePlugin", *(f"dho_nb.{m}" for m in "cli.main runs.run runs.dry_run deploy.predictor deploy.export reports.results sweeps.sweep".split())]


class Lab:
    "A folder in which scenarios are tried, one after the other"
    def __init__(self, place):
        self.here, self.place, self.before = Path(place)/"here", Path(place), {}
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOAD)

    def take(self, name):
        "Set a scenario up: what it finds, its points, and what it leaves undisturbed"
        self.name, self.scenario, self.kills = name, SCENARIOS[name], 0
        begin = self.scenario.before
        if begin not in self.before:
            shutil.rmtree(self.here, ignore_errors=True)
            self.here.mkdir()
            assert self.run("before")[0] == 0, f"what {name} finds cannot be made"
            self.before[begin] = self.here.rename(self.place/f"before-{len(self.before)}")
        self.points, self.twin = self.undisturbed()
        return self

    def start(self, role, fatal=0, points=None):
        process = self.processes.Process(target=perform, args=(self.name, role, self.here, fatal, points))
        process.start()
        return process

    def run(self, role, fatal=0, beside=None):
        "The exit code, and the points that were passed; another part of the scenario runs beside it"
        mine, theirs = multiprocessing.Pipe(False)
        process = self.start(role, fatal, theirs)
        theirs.close()
        if beside: self.beside = self.start(beside)
        if not mine.poll(LONG): process.kill(); raise AssertionError(f"{self.name} hangs")
        try: points = mine.recv()
        except EOFError: points = []  # it was killed, or failed
        process.join()
        return process.exitcode, points

    def fresh(self):
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.before[self.scenario.before], self.here)

    def undisturbed(self):
        "The points of the command, and what it leaves"
        self.fresh()
        found = content(self.here)
        code, points = self.run("command")
        if self.scenario.again: code += self.run("again")[0]
        assert code == 0, f"{self.name} fails by itself"
        left = content(self.here)
        empty = [f for f in self.scenario.files if not left.get(f)]
        assert not empty and points and left != found, f"{self.name} leaves nothing in {empty}"
        return points, left

    def differs(self, fatal):
        "Kill before a point, run again: what is otherwise than in the twin's folder"
        self.fresh()
        helper = self.scenario.helper
        code, _ = self.run("command", fatal, "helper" if helper else None)
        self.kills += code == -signal.SIGKILL
        assert code == -signal.SIGKILL or helper and code == 0, f"{self.name} ended with {code} before point {fatal}"
        if helper:
            self.beside.join(LONG)
            assert self.beside.exitcode == 0, "the other process fails, or hangs"
            alone = self.apart(lambda name: name.endswith((".npy", ".crc", ".csv")) and ".tmp-" not in name)
            if alone: return ["after the other one's end: ", *alone]
        code, _ = self.run("again" if self.scenario.again else "command")
        return [f"ends with {code}"]*(code != 0) + self.apart(lambda name: True)

    def apart(self, of):
        "What the folder holds otherwise than the twin's did, in words"
        left, twin = content(self.here), self.twin
        return [f"{n} {'is left' if n not in twin else 'is gone' if n not in left else 'differs'}"
                for n in sorted({*left, *twin}) if of(n) and left.get(n) != twin.get(n)]

    def tried(self, points):
        "What differs, by point"
        found = {k: self.differs(k) for k in points}
        return {f"{k}: {self.points[k - 1]}": d for k, d in found.items() if d}


def main(names):
    step = int(os.environ.get("DHO_CRASH_STEP", 1))
    with tempfile.TemporaryDirectory(prefix="crash-") as place:
        lab = Lab(place)
        for name in names or [n for n in SCENARIOS if n not in PLANTED]:
            began, points = time.time(), lab.take(name).points
            wrong = lab.tried(range(1, len(points) + 1, step))
            print(f"{name}: {len(points)} points, every {step}. tried, {lab.kills} kills, {len(wrong)} differ, "
                  f"{time.time() - began:.0f} s", flush=True)
            for k, d in wrong.items(): print(f"   {k}: {'; '.join(d)}", flush=True)
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
