"""Run the whole way from shards to predictions at several sizes: python nbs/benchmarks/million.py (make million).

Each stage is a process of its own. Its seconds, its peak memory and the pool's size go into OUT/record.json as soon as it ends;
OUT/record.md is the table of them. The pool is synthetic: 16 JPEG pictures of 64 pixels are encoded for every class, and each image of
the pool is one of them with its own number in a comment, so that all files differ. It is deleted afterwards, unless --keep is given."""
import argparse
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SIDE, SEEN, WIDTH, BASES, PER_SHARD = 64, 32, 64, 16, 10_000  # pixels of a picture; of the teacher's; embedding; pictures per class; images per shard
SIZES, CLASSES, LIMIT = (10_000, 100_000, 1_000_000), 1000, 4*2**30  # bytes that no stage may take

# --- the pool

def prototypes(count):
    "Colors of a coarse picture for each class [count, 4, 4, 3], uint8"
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def encoded(colors, draw):
    "A picture of a class as JPEG"
    from PIL import Image
    noisy = np.clip(colors + draw.normal(0, 24, colors.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    return file.getvalue()


def numbered(jpeg, number):
    "The same picture with a comment that holds a number"
    text = b"%012d" % number
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


def write_shards(folder, images, classes):
    "Write a pool as tar shards, and labels.csv for 4 images of each class and every twentieth image as test"
    colors, draw, labels = prototypes(classes), np.random.default_rng(1), []
    bases = [encoded(colors[k//BASES], draw) for k in range(BASES*classes)]
    picks = draw.integers(0, len(bases), images)
    folder.mkdir(parents=True)
    for start in range(0, images, PER_SHARD):
        with tarfile.open(folder/f"pool-{start//PER_SHARD:05d}.tar", "w") as archive:
            for k in range(start, min(start + PER_SHARD, images)):
                if k < 4*classes: picks[k] = k % classes*BASES + picks[k] % BASES  # the first ones are the labeled ones
                data, info = numbered(bases[picks[k]], k), tarfile.TarInfo(f"{k:09d}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                if k < 4*classes or k % 20 == 19: labels.append(f"{info.name},class {picks[k]//BASES:04d},{'train' if k < 4*classes else 'test'}\n")
    (folder.parent/"labels.csv").write_text("path,label,split\n" + "".join(labels))

# --- teacher and student

class Teacher:
    "Encode the 16 coarse colors of a picture by a fixed random matrix, and a class name by those of its prototype"
    preprocess, zeta = dict(size=SEEN, mean=(.5, .5, .5), std=(.5, .5, .5)), .03

    def __init__(self):
        import torch
        self.matrix = torch.from_numpy(np.random.default_rng(2).normal(size=(48, WIDTH)).astype(np.float32))
        self.colors = torch.from_numpy(prototypes(CLASSES)).permute(0, 3, 1, 2).float()/127.5 - 1

    def encode_images(self, images):
        import torch.nn.functional as F
        return F.adaptive_avg_pool2d(images, 4).flatten(1) @ self.matrix

    def encode_texts(self, texts):
        numbers = [int("".join(c for c in text if c.isdigit())) for text in texts]
        return self.encode_images(self.colors[numbers])


def student():
    "A network of two convolutions"
    from torch import nn
    from dho_nb.data.transforms import Preprocess
    net = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 128, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    net.preprocess = Preprocess(SEEN)
    return net

# --- the stages: each takes the folder of a size, and returns what it did, in words

def config_of(folder, **more):
    "The configuration of all stages"
    from dho_nb.runs.config import Config
    return Config(**dict(dict(dataset=str(folder/"pool"), method="dho", teacher="million:Teacher", student="million:student", student_weights="",
                              views=1, epochs=1, batch_unlabeled=256, predict="test"), **more))


def ingest(folder, images):
    "Read the shards once into decoded pictures and a manifest"
    from dho_nb.data.ingest import ingest
    manifest = ingest(str(folder/"shards"), folder/"pool", SIDE, labels=folder/"labels.csv", mode="none")
    assert len(manifest) == images
    return f"{len(list((folder/'shards').iterdir()))} shards"


def plan(folder, images):
    "Plan a sweep of 24 runs over the pool"
    from dho_nb.sweeps.grid import make_grid
    from dho_nb.sweeps.sweep import Sweep
    base = {k: v for k, v in vars(config_of(folder)).items() if k in ("dataset", "teacher", "student", "student_weights", "views", "epochs")}
    axes = dict(method=["dho", "kd", "ce"], shots=[1, 4], seed=[0, 1, 2, 3])
    return f"{len(Sweep(make_grid('million', base, axes, trust_remote_code=True), folder/'sweep').begin().tasks)} runs"


def store(folder, images):
    "Encode one view of every training image and the center of every test image by the teacher"
    from dho_nb.runs.teacher_provider import fill_run_teacher_store
    count = fill_run_teacher_store(config_of(folder), mode="none").num_encoded
    assert count == images
    return f"{count} embeddings of {WIDTH}"


def pool(folder, images):
    "Find each image's neighbors, and fit the combined pool head on all embeddings"
    from dho_nb.runs.inputs import resolve
    from dho_nb.runs.teacher_provider import new_teacher_provider
    inputs = resolve(config_of(folder, method="dho-plus"))
    provider = new_teacher_provider(inputs.config, inputs.data, inputs.teacher, mode="none").open()
    logits = provider.pool_logits(inputs.data.train, inputs.labels.rows)
    assert len(logits) == len(inputs.data.train)
    return f"{logits.shape[1]} classes"


def train(folder, images, steps=200):
    "Train the student for 200 steps, and write it"
    from dho_nb.runs.run import Run
    from dho_nb.students.dual_head import save_student
    run = Run(config_of(folder), folder/"run", "none")
    trainer = run.build_trainer()
    trainer.train(until=min(steps, trainer.steps), mode="none")
    save_student(run.load_student(), folder/"model.safetensors", spec="million:student", classes=list(run.manifest.classes), alpha=.5, beta=.5)
    return f"{trainer.step} of the {trainer.steps} steps of an epoch"


def evaluate(folder, images):
    "Score the test images"
    from dho_nb.runs.run import Run
    run = Run(config_of(folder), folder/"run", "none")
    table = run.evaluate()
    return f"{len(run.inputs.test)} images, accuracy {table['accuracy'].max():.2f}"


def predicted(folder, source, images):
    from dho_nb.deploy.predictor import Predictor, write_predictions
    model = Predictor.from_pretrained(folder/"model.safetensors", "cpu", trust_remote_code=True)
    out = folder/f"{source.name}.csv"
    count, bad = write_predictions(model.each(str(source), top=1), out)
    assert (count, bad) == (images, 0)
    size = out.stat().st_size
    out.unlink()
    return f"{size/1e6:.0f} MB of CSV"


def predict(folder, images):
    "Predict every image of the ingested pool"
    return predicted(folder, folder/"pool", images)


def stream(folder, images):
    "Predict every image of the shards, which are read and decoded once more"
    return predicted(folder, folder/"shards", images)


STAGES = dict(ingest=ingest, plan=plan, store=store, pool=pool, train=train, evaluate=evaluate, predict=predict, stream=stream)

# --- processes, the record

def measured(stage, folder, images, log):
    "Run a stage in a forked process; return its seconds and bytes, or its error"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            began, used = time.monotonic(), time.process_time()
            facts = dict(note=stage(folder, images))
            os.write(write, json.dumps(dict(facts, seconds=time.monotonic() - began, processor=time.process_time() - used)).encode())
            code = 0
        except BaseException as e:
            traceback.print_exc()
            os.write(write, json.dumps(dict(error=f"{type(e).__name__}: {e}"[:2000])).encode())
        finally: sys.stderr.flush(); os._exit(code)
    os.close(write)
    peak = 0
    while True:
        peak = max(peak, private_bytes(child))
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done: break
        time.sleep(.02)
    with os.fdopen(read) as told: facts = json.loads(told.read() or json.dumps(dict(error=f"ended with status {status}")))
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in dict(facts, private=peak, resident=usage.ru_maxrss*1024).items()}


def private_bytes(process):
    "Memory that a process takes by itself: without pages of files, which the system can drop at any time"
    try: lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError: return 0
    return sum(int(line.split()[1])*1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def slopes(record):
    "Return stage to the exponents of growth of its processor seconds, from each size to the next"
    found = {}
    for name, sizes in record["stages"].items():
        points = sorted((int(n), f["processor"]) for n, f in sizes.items() if "processor" in f)
        found[name] = [round(math.log(max(b, 1e-3)/max(a, 1e-3))/math.log(m/n), 3) for (n, a), (m, b) in zip(points, points[1:])]
    return found


def table(record):
    "Return a record as Markdown: seconds (of the processor) and private memory by stage and size, and the last exponent"
    sizes = sorted({int(n) for s in record["stages"].values() for n in s})
    shown = lambda f: f"{f['seconds']:,.1f} s ({f['processor']:,.1f}), {f['private']/2**30:.2f} GiB" if "seconds" in f else "failed" if f else ""
    lines = [f"{record['date']}, commit {record['commit'] or 'unknown'}; {'; '.join(f'{k} {v}' for k, v in record['machine'].items())}", "",
             "| stage | " + " | ".join(f"{n:,} images" for n in sizes) + " | exponent |", "|---|" + "---|"*(len(sizes) + 1)]
    for name, held in record["stages"].items():
        grows = record["slopes"].get(name, [])
        lines.append(f"| {name} | " + " | ".join(shown(held.get(str(n), {})) for n in sizes) + f" | {grows[-1] if grows else ''} |")
    return "\n".join(lines)


def write(record, out):
    "Write record and table, each whole or not at all"
    record["slopes"] = slopes(record)
    for name, text in (("record.json", json.dumps(record, indent=1)), ("record.md", table(record))):
        (out/f".tmp-{name}").write_text(text + "\n")
        (out/f".tmp-{name}").replace(out/name)


def commit():
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def begin():
    "Import what the stages need, once for all of them; return a new record"
    import torch
    import open_clip, timm, IPython, matplotlib.pyplot  # noqa: F401
    import dho_nb.data.ingest, dho_nb.deploy.predictor, dho_nb.runs.run, dho_nb.sweeps.sweep  # noqa: F401
    machine = dict(processor=platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__)
    return dict(kind="million", date=time.strftime("%Y-%m-%d", time.gmtime()), commit=commit(), machine=machine, side=SIDE, width=WIDTH,
                bytes={}, stages={name: {} for name in ("shards", *STAGES)}, slopes={})


def run_size(record, images, folder, out, wanted):
    "Run the stages at one size; return whether all of them ended well"
    classes, sound = min(CLASSES, images//10), True
    os.environ.update(DHO_CACHE=str(folder/"cache"), DHO_RUNS=str(folder/"runs"), DHO_PROGRESS="none", DHO_DEVICE="cpu", DHO_WORKERS="0")
    todo = dict(shards=lambda folder, images: write_shards(folder/"shards", images, classes)) if not (folder/"shards").exists() else {}
    with open(out/"log.txt", "a") as log:
        for name, stage in {**todo, **{k: STAGES[k] for k in wanted}}.items():
            facts = record["stages"][name][str(images)] = measured(stage, folder, images, log)
            record["bytes"][str(images)] = {p.name: sum(f.stat().st_blocks*512 for f in p.rglob("*") if f.is_file()) for p in folder.iterdir() if p.is_dir()}
            write(record, out)
            print(f"{images:,} {name}: " + (facts.get("error") or f"{facts['seconds']:.1f} s, {facts['private']/2**30:.2f} GiB, {facts['note']}"), flush=True)
            sound &= "error" not in facts
            if "error" in facts and name in ("shards", "ingest", "store", "train"): return False
    return sound


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="images")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", default="runs/million", help="folder of record.json, record.md and log.txt; a record there is continued")
    parser.add_argument("--folder", default="", help="folder of the pools; a temporary one if not given. A million images need 32 GB")
    parser.add_argument("--keep", action="store_true", help="leave the pools")
    args = parser.parse_args()
    out, sound = Path(args.out), True
    out.mkdir(parents=True, exist_ok=True)
    record = begin()
    if (out/"record.json").exists(): record = {**record, **{k: v for k, v in json.loads((out/"record.json").read_text()).items() if k in ("stages", "bytes")}}
    place = Path(args.folder or tempfile.mkdtemp(prefix="dho-million-")).resolve()
    for images in args.sizes:
        try: sound &= run_size(record, images, place/str(images), out, args.stages)
        finally:
            if not args.keep: shutil.rmtree(place/str(images), ignore_errors=True)
    if not args.keep and not args.folder: shutil.rmtree(place, ignore_errors=True)
    print("\n" + table(record))
    return 0 if sound else 1


if __name__ == "__main__": sys.exit(main())
