"""The parts of gpu.py: each yields figures, at real size on a GPU and at toy size on a CPU.

A part is a generator of `row`s. Bounds on correctness hold everywhere, bounds on speed (`on_gpu`) on a GPU alone."""
import copy
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from gpu import HERE, PARTS

SEED = 0


def row(name, value, unit="", least=None, most=None, note=""):
    "A figure; `ok` tells whether it keeps its bounds, None where it has none"
    value = value.item() if hasattr(value, "item") else value
    ok = None if least is None and most is None else bool((least is None or value >= least) and (most is None or value <= most))
    return dict(name=name, value=value, unit=unit, least=least, most=most, ok=ok, note=note)


def holds(name, truth, note=""):
    "A figure that is true or false, and has to be true"
    return dict(name=name, value="yes" if truth else "no", unit="", least=None, most=None, ok=bool(truth), note=note)


def remark(name, note):
    "Something that was not measured, and why"
    return dict(name=name, value="not measured", unit="", least=None, most=None, ok=None, note=note)


class Machine:
    "Where the parts run, at which size, and what they share"
    def __init__(self, device, reference="", folder=""):
        from dho_nb.core.devices import pick_device
        self.device, self.reference, self.folder, self.rates = pick_device(device), reference, Path(folder), {}
        self.real = self.device.type == "cuda"
        if not self.real: torch.set_num_threads(1)  # others may compute here, too
        self.end = 0.0

    def size(self, real, toy): return real if self.real else toy
    def left(self): return self.end - time.monotonic()
    def on_gpu(self, bound): return bound if self.real else None

    def wait(self):
        if self.real: torch.cuda.synchronize()

    def facts(self):
        "The machine in words"
        name = torch.cuda.get_device_name(self.device) if self.real else platform.processor() or platform.machine()
        memory = f", {torch.cuda.get_device_properties(self.device).total_memory/2**30:.0f} GiB" if self.real else ""
        facts = dict(device=f"{self.device.type}: {name}{memory}", cores=os.cpu_count(), threads=torch.get_num_threads(),
                     python=platform.python_version(), torch=torch.__version__, cuda=str(torch.version.cuda))
        return dict(facts, size="real" if self.real else "toy: these figures say that the parts work, not how fast a GPU is")

    @cached_property
    def large_teacher(self):
        "A frozen ViT-H/14 at 378 pixels with random weights; the digits' own at toy size"
        from dho_nb.teachers.clip import load_teacher
        return load_teacher(self.size("ViT-H-14-378-quickgelu/random", "digits"), self.device, precision=self.size("bf16", "fp32"))

    @cached_property
    def photographs(self):
        "A manifest of JPEG files of noise and edges, and their folder"
        from PIL import Image
        from dho_nb.data.manifests import manifest_from_folder
        folder, draw = self.folder/"photographs", np.random.default_rng(SEED)
        for k in range(self.size(512, 24)):
            coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            (folder/f"class{k % 4}").mkdir(parents=True, exist_ok=True)
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder/f"class{k % 4}"/f"{k:04d}.jpg", quality=90)
        return manifest_from_folder(folder, "photographs"), folder


# --- students, batches and trainers

def memory_batches(batches, labeled, unlabeled):
    "Batches that lie in memory, in the place of files"
    from dho_nb.data.loaders import SemiSupervisedBatches
    class MemoryBatches(SemiSupervisedBatches):
        def __init__(self): self.batches, self.epoch_steps, self.boxes = batches, len(batches), None
        def __getitem__(self, step): return self.batches[step % len(self.batches)]
        batch, use, unlabeled_rows = (labeled, unlabeled), (True, True), range(unlabeled*len(batches))
    made = MemoryBatches()
    made.unlabeled = made.unlabeled_rows
    return made


def noise_batch(m, labeled, unlabeled, side, classes=10, dim=16, teacher_side=0, seed=SEED):
    "A batch of random pixels, labels and stored embeddings; in page-locked memory beside a GPU"
    from dho_nb.data.loaders import Batch
    g, count = torch.Generator().manual_seed(seed), labeled + unlabeled
    lock = lambda z: z.pin_memory() if m.real else z
    pixels = lambda s: lock(torch.randint(0, 256, (count, 3, s, s), dtype=torch.uint8, generator=g))
    embeddings = F.normalize(torch.randn(count, dim, generator=g), dim=1).half()
    return Batch(pixels(side), pixels(teacher_side) if teacher_side else None, lock(torch.randint(0, classes, (labeled,), generator=g)),
                 torch.arange(count), torch.zeros(count, dtype=torch.int64), totals=(labeled, unlabeled), embeddings=lock(embeddings))


def share_of(batch, rank, world):
    "A process's part of a batch"
    from dho_nb.data.loaders import batch_share_of_rank
    labeled, at = batch_share_of_rank(*batch.totals, rank, world)
    return batch._replace(student=batch.student[at], labels=batch.labels[labeled], rows=batch.rows[at], views=batch.views[at],
                          embeddings=batch.embeddings[at])


def class_head(classes, dim, device):
    "Class embeddings that mean nothing"
    return F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(1)), dim=1).to(device)


def new_student(spec, method, side, classes=10, dim=16, **options):
    "A student with random weights"
    from dho_nb.losses.methods import get_method
    from dho_nb.runs.config import Config
    from dho_nb.runs.staged_trainer import new_stage_student
    config = Config(dataset="digits", method=method, student=spec, student_weights="", size=side, **options)
    return new_stage_student(config, get_method(method), classes, lambda: class_head(classes, dim, "cpu"))


def new_trainer(student, method, batches, device, classes=10, dim=16, teacher_fn=None, double=False, checkpoint=None, dist_env=None, **recipe):
    "A trainer over batches in memory, its teacher's embeddings stored in them"
    from dho_nb.losses.losses import class_costs
    from dho_nb.losses.methods import get_method
    from dho_nb.teachers.clip import teacher_logits
    from dho_nb.teachers.targets import cached_teacher
    from dho_nb.training.trainer import TrainConfig, Trainer
    method, head = get_method(method), class_head(classes, dim, device)
    labeled, unlabeled = batches[0].totals
    pool = torch.full((labeled + unlabeled, classes), 1/classes, device=device) if "pool" in method.needs else None
    cost = dict(cost=class_costs(head)) if "cost" in method.needs else {}
    if double: student = student._replace(model=student.model.double())
    made = Trainer(student, method, memory_batches(batches, labeled, unlabeled), TrainConfig(**{"epochs": 10**4, **recipe}),
                   teacher_fn or cached_teacher(partial(teacher_logits, head=head), device, pool), device, checkpoint,
                   dist_env=dist_env, **cost)
    if double:
        net = made.forward
        made.forward = lambda images, **options: net(images.double(), **options)
    made.model.train()
    return made


def flat(tensors): return torch.cat([t.detach().double().cpu().flatten() for t in tensors])
def distance(a, b): return ((a - b).norm()/b.norm().clamp_min(1e-12)).item()


def gradients(trainer, batch):
    "The loss on a batch and its gradient as one vector, on the CPU"
    parts = trainer.losses(batch)
    parts["loss"].backward()
    found = flat(p.grad for p in trainer.trainable if p.grad is not None)
    trainer.optimizer.zero_grad(set_to_none=True)
    return parts["loss"].item(), found


@contextmanager
def exact():
    "Full float32 and deterministic kernels within the block"
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    torch.use_deterministic_algorithms(True, warn_only=True)  # what has no such kernel is told in the log
    try: yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
        torch.use_deterministic_algorithms(False)


# --- is it right?

def losses(m):
    "Loss and gradient of every method: this device, channels last, against the CPU, channels first"
    from dho_nb.losses.methods import SHIPPED
    cases = (("float64", "torchvision:resnet18" if m.real else "tiny", m.size(32, 16), True, 1e-3), ("float32", "vit_tiny_patch16_224", 32, False, 2e-3))
    for name, spec, side, double, most in cases:
        batch, found = noise_batch(m, 8, 8, side), {}
        for method in SHIPPED if m.real or double else ("dho", "ce-kd-feature"):
            try: found[method] = both_gradients(m, new_student(spec, method, side), method, batch, double)
            except Exception as e: yield holds(f"{method} in {name}, {spec}", False, f"{type(e).__name__}: {e}"[:300])
        for k, what in enumerate(("loss", "gradient")):
            worst = max(found, key=lambda n: found[n][k])
            yield row(f"{what} in {name}, largest relative difference", found[worst][k], most=most, note=f"{worst}, of {len(found)} methods, {spec}")


def both_gradients(m, student, method, batch, double):
    "How far loss and gradient lie from those of the CPU"
    with exact():
        loss, gradient = gradients(new_trainer(copy.deepcopy(student), method, [batch], m.device, double=double), batch)
        here = new_trainer(student, method, [batch], "cpu", double=double)
        here.model.to(memory_format=torch.contiguous_format)
        net = here.forward
        here.forward = lambda images, **options: net(images.contiguous(), **options)
        expected, slope = gradients(here, batch)
    return abs(loss - expected)/abs(expected), distance(gradient, slope)


def precisions(m): return ("fp32", "bf16", *(("fp16",) if m.real else ()))


def precision(m):
    "Training in every precision against float32; an overflowing step in fp16; fused AdamW"
    side, spec = m.size(64, 16), m.size("torchvision:resnet18", "tiny")
    batches, ends = [noise_batch(m, 16, 16, side, seed=k) for k in range(2)], {}
    if not m.real: yield remark("fp16", "needs a GPU")
    for kind in precisions(m):
        trainer = new_trainer(new_student(spec, "dho", side), "dho", batches, m.device, precision=kind)
        for step in range(20): trainer.train_step(batches[step % 2])
        begin, ends[kind] = (trainer.history[k]["loss"] for k in (0, -1))
        slack = .1*(begin - ends["fp32"])
        yield row(f"loss after 20 steps in {kind}", ends[kind], least=ends["fp32"] - slack, most=ends["fp32"] + slack, note=f"{begin:.3f} at first")
        if kind == "fp16":
            yield row("scale of GradScaler", trainer.scaler.get_scale(), least=1)
            yield holds("a step that overflows in fp16 changes no weight", skips_overflow(trainer, batches[0]))
    yield row("fused AdamW against plain, relative difference after 10 steps", fused_distance(m, spec, side, batches), most=1e-4)


def skips_overflow(trainer, batch):
    "Take a step with a scale that overflows"
    trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=2.**100)
    before = flat(trainer.trainable)
    trainer.train_step(batch)
    return torch.equal(flat(trainer.trainable), before) and trainer.scaler.get_scale() < 2.**100


def fused_distance(m, spec, side, batches):
    "How far the weights lie apart after the same gradients"
    weights = []
    student = new_student(spec, "dho", side)
    grads = [torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) for k, p in enumerate(student.model.parameters())]
    for fused in (True, False):
        parameters = [p.detach().clone().to(m.device).requires_grad_() for p in student.model.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2, fused=fused)
        for step in range(10):
            for p, g in zip(parameters, grads): p.grad = (g*(step + 1)).to(m.device)
            optimizer.step()
        weights.append(flat(parameters))
    return distance(*weights)


def run(m):
    "A whole run on the embedded digits, on this device and on the CPU: stores, image map, training, evaluation, result"
    from dho_nb.runs.config import preset
    from dho_nb.runs.run import distill
    found = {}
    for device in dict.fromkeys((m.device.type, "cpu")):
        settings = dict(DHO_DEVICE=device, DHO_CACHE=str(m.folder/f"cache-{device}"), DHO_WORKERS=str(m.size(2, 0)))
        began = time.monotonic()
        with mock.patch.dict(os.environ, settings):
            made = distill(preset("digits", epochs=m.size(20, 1), views=m.size(4, 1)), m.folder/f"run-{device}", mode="none")
        found[device] = made.result["accuracy"]
        yield row(f"accuracy on {device}", found[device], note=f"{time.monotonic() - began:.0f} s in all")
    if m.real: yield row("difference of the two accuracies", abs(found["cuda"] - found["cpu"]), most=.08)


def resume(m):
    "A run that is stopped and resumed has the same bits as one that is not, in deterministic mode"
    side, spec = m.size(64, 16), m.size("torchvision:resnet18", "tiny")
    batches = [noise_batch(m, 16, 16, side, seed=k) for k in range(3)]
    def state(trainer):
        moments = sorted(trainer.optimizer.state_dict()["state"].items())
        return flat([*trainer.model.state_dict().values(), *(s[k] for _, s in moments for k in sorted(s))])
    def begun(kind, name): return new_trainer(new_student(spec, "dho", side), "dho", batches, m.device, precision=kind, checkpoint=m.folder/name)
    for kind in precisions(m):
        with exact():
            straight, again = begun(kind, f"{kind}-a"), begun(kind, f"{kind}-b")
            for trainer in (straight, again): trainer.train(until=6, mode="none")
            first = begun(kind, f"{kind}-c")
            first.train(until=2, mode="none")
            second = begun(kind, f"{kind}-c")
            at = second.load()
            second.train(until=6, mode="none")
        yield holds(f"twice the same bits in {kind}", torch.equal(state(straight), state(again)))
        yield holds(f"resumed with the same bits in {kind}", at == 2 and torch.equal(state(straight), state(second)))


def distributed(m):
    "Two processes on one batch against one process: gradients, and the statistics of synchronized batch norm"
    side = m.size(64, 16)
    with exact(): expected = pair_state(pair_trainer(m, side), pair_batch(m, side))
    for backend in ("gloo", "nccl") if m.real else ("gloo",):
        try: found = torch.load(two_processes(m, backend, side), weights_only=True)
        except Exception as e:
            if backend == "gloo" or torch.cuda.device_count() > 1: yield holds(f"two processes by {backend}", False, str(e)[:300])
            else: yield remark("NCCL with two processes on one GPU", f"it refuses: {str(e)[:200]}")
            continue
        for what, here, there in zip(("gradient", "batch norm's running statistics"), found, expected):
            yield row(f"{what} of two processes by {backend}, relative difference", distance(here, there), most=m.size(1e-4, 1e-3))
    if not m.real: yield remark("NCCL", "needs a GPU")


def pair_batch(m, side): return noise_batch(m, 8, 8, side)

def pair_trainer(m, side, dist_env=None):
    "A trainer of a student with batch norm; in float64 on a GPU"
    student = new_student(m.size("torchvision:resnet18", "tiny"), "dho", side)
    return new_trainer(student, "dho", [pair_batch(m, side)], m.device, dist_env=dist_env, double=m.real)

def pair_state(trainer, whole):
    "The gradient of a step and the running statistics after it, as vectors"
    env = trainer.dist_env
    trainer._gradients([share_of(whole, env.rank, env.world)], whole.totals)
    statistics = [v for k, v in trainer.model.state_dict().items() if "running" in k]
    return [flat(p.grad for p in trainer.trainable), flat(statistics)]


def two_processes(m, backend, side):
    "Run this file twice as a group; return the file that the first process leaves"
    out, meet = m.folder/f"pair-{backend}.pt", m.folder/f"meet-{backend}"
    command = [sys.executable, HERE/"gpu_parts.py", "pair", backend, str(m.device.type), str(side), str(meet), str(out)]
    both = [subprocess.Popen([*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    try: errors = [p.communicate(timeout=min(40, max(m.left() - 3, 1)))[1] for p in both]
    finally:
        for p in both: p.kill()
    if any(p.returncode for p in both): raise RuntimeError(reason(errors[0]) or reason(errors[1]) or "a process ended early")
    return out


def reason(stderr):
    "The line of a traceback that says what went wrong"
    lines = [line for line in stderr.splitlines() if "Error" in line or "Duplicate GPU" in line]
    return next((line for line in lines if "Duplicate GPU" in line), lines[-1] if lines else "")


def pair(backend, kind, side, meet, out, rank):
    "One of two processes of `distributed`"
    from dho_nb.core.distributed import DistEnv
    rank, side = int(rank), int(side)
    m = Machine(f"cuda:{rank % torch.cuda.device_count()}" if kind == "cuda" else "cpu")
    if m.real: torch.cuda.set_device(m.device)
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=2)
    env = DistEnv()
    env.rank, env.world, env.device, env.aside = rank, 2, m.device, dist.new_group(backend="gloo")
    with exact(): found = pair_state(pair_trainer(m, side, env), pair_batch(m, side))
    if rank == 0: torch.save(found, out)
    dist.barrier(env.aside)
    dist.destroy_process_group()


def presets(m):
    "A step of every preset that differs in memory, at its real size: peak memory and speed"
    from dho_nb.data.datasets import DATASETS
    from dho_nb.losses.methods import get_method
    from dho_nb.runs.config import Config
    from dho_nb.runs.dry_run import dry_run_teacher_shape
    from dho_nb.runs.presets import PRESETS
    seen = set()
    for name, parameters in PRESETS.items():
        c, method = Config(**parameters), get_method(parameters.get("method", "dho"))
        key = (c.student, c.size, c.batch_labeled, c.batch_unlabeled, c.accumulate, c.ce_head, c.kd_head, c.frozen, method.heads, method.needs, c.unlabeled)
        if key in seen or not m.real and c.student != "tiny": continue
        seen.add(key)
        if m.left() < 6: yield remark(name, "no time left"); continue
        classes, dim = DATASETS[c.dataset].classes if c.dataset in DATASETS else 10, dry_run_teacher_shape(c.teacher)[0]
        try: yield preset_step(m, name, c, method.name, classes, dim)
        except torch.OutOfMemoryError as e: yield holds(name, False, f"out of memory: {str(e).splitlines()[0][:120]}")
        if m.real: torch.cuda.empty_cache()


def preset_step(m, name, c, method, classes, dim):
    "Peak memory and images per second of a preset's step"
    options = dict(ce_head=c.ce_head, kd_head=c.kd_head, frozen=c.frozen)
    student = new_student(c.student.replace("/openai", "/random"), method, c.size, classes, dim, **options)
    side = student.preprocess.size
    batch = noise_batch(m, c.batch_labeled, c.batch_unlabeled*c.unlabeled, side, classes, dim)
    if m.real: torch.cuda.reset_peak_memory_stats()
    trainer = new_trainer(student, method, [batch], m.device, classes, dim, accumulate=c.accumulate, precision="auto")
    trainer.train_step(batch)
    m.wait(); began = time.perf_counter()
    trainer.train_step(batch)
    m.wait(); speed = len(batch.rows)/(time.perf_counter() - began)
    about = f"{speed:,.0f} images/s; {c.student.removeprefix('torchvision:')} at {side} px, {len(batch.rows)} images in {c.accumulate} piece(s), {method}"
    return row(name, torch.cuda.max_memory_allocated()/2**30 if m.real else "a step", "GiB" if m.real else "", note=about)


# --- is it fast?

def rate(m, trainer, batch, seconds):
    "Images per second of training steps"
    for _ in range(m.size(3, 1)): trainer.train_step(batch)
    m.wait(); began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or steps < 3:
        trainer.train_step(batch); steps += 1
        if steps % m.size(5, 1) == 0: m.wait()
    m.wait()
    return len(batch.rows)*steps/(time.perf_counter() - began)


def ratios(m, pairs, seconds, turns=5):
    "Rates of two trainers in turns, and the median of their ratios"
    found = [[rate(m, *pair, seconds) for pair in pairs] for _ in range(turns)]
    return [median(r) for r in zip(*found)], median(a/b for a, b in found)


def stored(m):
    "Training with a stored teacher against training on labels alone, the same number of images"
    for spec, side in m.size([("resnet50", 224), ("vit_base_patch16_224", 224)], [("tiny", 16)]):
        half, classes, dim = m.size(128, 16), m.size(1000, 10), m.size(1024, 16)
        both, labels = noise_batch(m, half, half, side, classes, dim), noise_batch(m, 2*half, 0, side, classes, dim)
        pairs = [(new_trainer(new_student(spec, method, side, classes, dim), method, [b], m.device, classes, dim, precision=m.size("bf16", "fp32")), b)
                 for method, b in (("dho", both), ("ce", labels))]
        (with_teacher, alone), ratio = ratios(m, pairs, m.size(1.0, .15))
        yield row(f"{spec}: stored teacher against labels alone", ratio, least=m.on_gpu(.95), note=f"{with_teacher:,.0f} and {alone:,.0f} images/s")


def live(m):
    "A stored teacher against a live one, the same student on the same images"
    from dho_nb.teachers.clip import teacher_logits
    from dho_nb.teachers.targets import online_teacher
    teacher, spec, side, half = m.large_teacher, m.size("vit_base_patch16_224", "tiny"), m.size(224, 16), m.size(64, 8)
    classes, size = m.size(1000, 10), teacher.preprocess.size
    dim = teacher.encode_images(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=m.device)).shape[1]
    batch, head = noise_batch(m, half, half, side, classes, dim, size), class_head(classes, dim, m.device)
    make = lambda fn: new_trainer(new_student(spec, "dho", side, classes, dim), "dho", [batch], m.device, classes, dim, fn, precision=m.size("bf16", "fp32"))
    pairs = [(make(None), batch), (make(online_teacher(teacher, partial(teacher_logits, head=head))), batch)]
    (from_store, online), ratio = ratios(m, pairs, m.size(1.0, .15), 3)
    yield row(f"{teacher.name} to {spec}: stored against live", ratio, "times", least=m.on_gpu(1), note=f"{from_store:,.0f} and {online:,.0f} images/s at {2*half} a step")


def matmul_rate(m, seconds):
    "Floating-point operations per second of a large matrix product, in bf16 on a GPU"
    side, dtype = m.size(8192, 512), m.size(torch.bfloat16, torch.float32)
    a, b = (torch.randn(side, side, device=m.device, dtype=dtype) for _ in range(2))
    for _ in range(3): a @ b
    m.wait(); began, times = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10): a @ b
        m.wait(); times += 10
    return 2*side**3*times/(time.perf_counter() - began)


def specs(m): return m.size([("vit_base_patch16_224", 224), ("resnet50", 224)], [("tiny", 16)])


def student_rate(m, spec, side, compiled=False):
    "Images per second of a student's training steps, operations per image, and seconds of the first step; measured once"
    if (spec, compiled) not in m.rates:
        from torch.utils.flop_counter import FlopCounterMode
        half, classes, work = m.size(128, 16), m.size(1000, 10), None
        batch = noise_batch(m, half, half, side, classes)
        trainer = new_trainer(new_student(spec, "dho", side, classes), "dho", [batch], m.device, classes, precision=m.size("bf16", "fp32"), compile=compiled)
        began = time.monotonic()
        trainer.train_step(batch); m.wait()
        first = time.monotonic() - began
        speed = rate(m, trainer, batch, m.size(2.0, .3))
        if not compiled:
            with FlopCounterMode(display=False) as counter: trainer.train_step(batch)
            work = counter.get_total_flops()/len(batch.rows)
        m.rates[spec, compiled] = speed, work, first
    return m.rates[spec, compiled]


def share(m):
    "The share of the matrix product's rate that training steps reach"
    peak = matmul_rate(m, m.size(1.0, .2))
    yield row("matrix product", peak/1e12, "TFLOP/s", note=m.size("bf16, 8192", "float32, 512"))
    for spec, side in specs(m):
        speed, work, _ = student_rate(m, spec, side)
        yield row(f"{spec}: share of the matrix product's rate", speed*work/peak, least=m.on_gpu(.5), note=f"{speed:,.0f} images/s")


def compiled(m):
    "The same with torch.compile"
    from dho_nb.core.errors import DhoError
    peak = matmul_rate(m, m.size(1.0, .2))
    for spec, side in specs(m):
        plain, work, _ = student_rate(m, spec, side)
        if m.left() < m.size(45, 20): yield remark(f"{spec}, compiled", "no time left"); continue
        try: speed, _, first = student_rate(m, spec, side, True)
        except DhoError as e:
            yield holds(f"{spec}, compiled", False, str(e)) if m.real else remark(f"{spec}, compiled", str(e))
            continue
        yield row(f"{spec}, compiled: share of the matrix product's rate", speed*work/peak, least=m.on_gpu(.5),
                  note=f"{speed:,.0f} images/s, {speed/plain:.2f} times the plain step's; the first step took {first:.0f} s")


def pixels(m):
    "Pixels for the student: cropped on the device from the image map, and JPEG files decoded there"
    from dho_nb.data.image_cache import ImageMap
    from dho_nb.data.transforms import Preprocess
    from torchvision.io import decode_jpeg, ImageReadMode
    (manifest, folder), need = m.photographs, max(student_rate(m, *student)[0] for student in specs(m))
    began, side = time.perf_counter(), m.size(320, 64)
    images = ImageMap(manifest, folder, side, folder=m.folder/"map").build(m.size(8, 0), "none")
    yield row("decoded into the map by the CPU", len(manifest)/(time.perf_counter() - began), "images/s", note="JPEG of 500 x 375, begin of the processes included")
    preprocess = Preprocess(m.size(224, 32))
    draw = np.random.default_rng(SEED)
    def cropped(count):
        rows = torch.from_numpy(draw.integers(0, len(manifest), count))
        low = torch.from_numpy(draw.uniform(0, .3, (count, 2)))
        batch = SimpleNamespace(rows=rows, boxes=torch.cat([low, low + .7], 1), mirror=torch.zeros(count, dtype=torch.bool), student=images.batch_pixels(rows.numpy()))
        return images.crop(batch, preprocess, m.device)
    for where in ("from the disk", *(("from the GPU's memory",) if images.to_device(m.device) else ())):
        speed = repeat(m, lambda: cropped(256), 256)
        least = m.on_gpu(need) if where != "from the disk" else None
        yield row(f"cropped on the device, {where}", speed, "images/s", least=least, note=f"a student needs {need:,.0f}")
    files = [torch.from_numpy(np.fromfile(folder/p, np.uint8)) for p in manifest.table["path"][:m.size(256, 16)]]
    decode = (lambda: decode_jpeg(files, ImageReadMode.RGB, device="cuda")) if m.real else lambda: [decode_jpeg(f, ImageReadMode.RGB) for f in files]
    yield row("JPEG decoded by " + m.size("nvJPEG", "the CPU, torchvision"), repeat(m, decode, len(files)), "images/s", note=f"a student needs {need:,.0f}")


def repeat(m, work, count, seconds=1.5):
    "Images per second of some work, repeated"
    work(); m.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < m.size(seconds, .2): work(); m.wait(); done += count
    return done/(time.perf_counter() - began)


def published(m):
    "Our step against the published code's at the same work: the notebook online_step, given its checkout"
    if not m.reference: yield remark("our step against the published code's", "no checkout given: --reference FOLDER of github.com/erjui/DHO"); return
    out = m.folder/"online_step.json"
    values = dict(reference=m.reference, device=m.device.type, repeats=3, out=str(out), **({} if m.real else dict(size=32, batch=4, steps=1)))
    cells = json.loads((HERE/"online_step.ipynb").read_text(encoding="utf-8"))["cells"]
    space = {"__name__": "online_step"}
    for cell in (c for c in cells if c["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), "online_step.ipynb", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []): space.update(values)
    for kind, found in json.loads(out.read_text())["found"].items():
        yield row(f"our step against the published code's, {kind}", found["ratio"], "times", least=m.on_gpu(1), note=f"{found['ours']} and {found['theirs']} images/s")


# --- does it reach ImageNet?

IMAGENET = 1_281_167

def fill(m):
    "Filling a store with the large teacher's embeddings"
    from dho_nb.data.transforms import ViewSpec
    from dho_nb.teachers.embedding_store import Lookup, open_embedding_store
    teacher, best, (manifest, folder) = m.large_teacher, 0, m.photographs
    side = teacher.preprocess.size
    for size in m.size((64, 128, 256), (16,)):
        noise = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, device=m.device)
        speed = repeat(m, lambda: teacher.encode_images(noise), size)
        best = max(best, speed)
        yield row(f"{teacher.name}, {size} images at a time", speed, "images/s")
    yield row("ImageNet's training images, one view", IMAGENET/best/3600, "hours", note="the encoder alone")
    views = ViewSpec(SEED)
    store = open_embedding_store("photographs", teacher.name, views, lambda: teacher, m.folder/"store", teacher.precision)
    lookup, began = Lookup(store, manifest), time.perf_counter()
    count = lookup.embed(np.arange(len(manifest)), range(2), folder, lambda: teacher, m.size(12, 0), "none")
    speed = count/(time.perf_counter() - began)
    yield row("a store filled from JPEG files", speed, "images/s", note=f"{count} embeddings, {speed/best:.0%} of the encoder's rate; the processes' begin included")


def pool(m):
    "The pool heads on as many embeddings as ImageNet has: seconds and memory"
    from dho_nb.teachers.pool_heads import combined_head, linear_head, neighbors
    vars(m).pop("large_teacher", None)  # its memory is not the heads'
    classes, dim, took = m.size(1000, 20), m.size(1024, 32), {}
    for count in m.size((160_000, 1_280_000), (500, 2000)):
        expected = 66*took.get("search", 0) + 8*took.get("heads", 0)
        if expected > m.left(): yield remark(f"{count:,} embeddings", f"about {expected:.0f} s, and {m.left():.0f} s are left"); return
        if m.real: torch.cuda.reset_peak_memory_stats()
        embeddings, labels, text = clusters(m, count, classes, dim)
        labeled = torch.arange(0, count, 100, device=m.device)
        began = time.perf_counter()
        near = neighbors(embeddings)
        m.wait(); took["search"] = time.perf_counter() - began
        yield row(f"nearest neighbors of {count:,} embeddings", took["search"], "s", note=f"{dim} numbers each")
        began = time.perf_counter()
        probe = linear_head(embeddings[labeled], labels[labeled], text)
        logits = combined_head(embeddings, probe, labeled, labels[labeled], near)
        m.wait(); took["heads"] = time.perf_counter() - began
        right = (logits.argmax(1) == labels).float().mean().item()
        memory = f"; {torch.cuda.max_memory_allocated()/2**30:.1f} GiB at most" if m.real else ""
        yield row(f"pool heads of {count:,} embeddings, {classes} classes", took["heads"], "s", note=f"accuracy {right:.3f}{memory}")
        zero_shot = (embeddings[::16].float() @ text.T).argmax(1) == labels[::16]
        yield row("accuracy beyond zero-shot", right - zero_shot.float().mean().item(), least=-.01)


def clusters(m, count, classes, dim):
    "Embeddings around class centers that class names tell only roughly"
    g = torch.Generator(device=m.device).manual_seed(SEED)
    draw = lambda *shape: torch.randn(*shape, generator=g, device=m.device)
    centers, labels = F.normalize(draw(classes, dim), dim=1), torch.randint(0, classes, (count,), generator=g, device=m.device)
    noise = m.size(2.5, 1.5)
    embeddings = torch.empty(count, dim, device=m.device, dtype=torch.float16 if m.real else torch.float32)
    for part in torch.arange(count, device=m.device).split(65536):
        embeddings[part] = F.normalize(centers[labels[part]] + noise*draw(len(part), dim)/dim**.5, dim=1).to(embeddings.dtype)
    return embeddings, labels, F.normalize(centers + noise*draw(classes, dim)/dim**.5, dim=1)


def grid(m):
    "The α/β grid of as many images and classes as ImageNet's validation set has"
    from dho_nb.evaluation.interpolation import alpha_beta_grid
    from dho_nb.evaluation.outputs import HeadOutputs
    count, classes, g = m.size(50_000, 2000), m.size(1000, 100), torch.Generator().manual_seed(SEED)
    labels = torch.randint(classes, (count,), generator=g)
    logits = [torch.randn(count, classes, generator=g) + 5*F.one_hot(labels, classes) for _ in range(2)]
    began = time.perf_counter()
    found = alpha_beta_grid(HeadOutputs(*logits, labels, torch.arange(count)))
    yield row(f"{found.accuracy.size} pairs of α and β on {count:,} x {classes}", time.perf_counter() - began, "s", note=f"on the CPU, {torch.get_num_threads()} threads")


# --- the process that gpu.py starts

def main(options):
    "Run parts in turn; tell of each event as a line of JSON"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    def tell(**event): out.write(json.dumps(event) + "\n"); out.flush()
    m = Machine(options["device"], options["reference"], options["folder"])
    tell(event="machine", facts=m.facts())
    for name in options["parts"]:
        m.end, state, error = time.monotonic() + PARTS[name], "done", ""
        tell(event="begin", part=name, seconds=PARTS[name])
        try:
            for found in globals()[name](m): tell(event="row", row=found)
        except Exception as e:
            traceback.print_exc()
            state, error = "failed", f"{type(e).__name__}: {e}"
        if m.real: torch.cuda.empty_cache()
        tell(event="end", state=state, error=error)
        if state == "failed": break


if __name__ == "__main__":
    if sys.argv[1] == "pair": pair(*sys.argv[2:])
    else: main(json.loads(sys.argv[1]))
