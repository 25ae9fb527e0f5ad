"""Run every GPU check and benchmark: python nbs/benchmarks/gpu.py (make gpu); without a GPU the same parts at toy size.

The parts (gpu_parts.py) run in a process of their own. One that fails or takes too long is recorded with its message, and the next
one begins in a fresh process. Every figure is written to OUT/record.json at once; OUT/record.md is the table of them."""
import argparse
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHEELS = ("open_clip_torch", "ftfy", "wcwidth", "fastcore", "fastprogress", "timm")  # what images with torch, pandas, … lack; 5 MB
NEEDED = dict(torch="torch", torchvision="torchvision", open_clip="open_clip_torch", ftfy="ftfy", regex="regex", wcwidth="wcwidth",
              timm="timm", huggingface_hub="huggingface_hub", accelerate="accelerate", safetensors="safetensors", pandas="pandas",
              numpy="numpy", PIL="pillow", sklearn="scikit-learn", matplotlib="matplotlib", fastcore="fastcore",
              fastprogress="fastprogress", filelock="filelock", fsspec="fsspec", psutil="psutil")  # module: package
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
PARTS = dict(  # in order of worth: seconds that a part may take
    losses=45, precision=40, run=60, resume=45, distributed=60, presets=75,  # is it right?
    stored=40, share=40, live=60, pixels=45,  # is it fast?
    fill=60, pool=90, grid=20,  # does it reach ImageNet?
    published=60, compiled=120)  # against the published code, and how much torch.compile adds
STARTING = 150  # seconds that a process of parts may take to begin


def collect(folder, packages, python="3.12"):
    "Download wheels into a folder, for x86-64 Linux; their own requirements are not among them. Returns pip's exit code"
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    return subprocess.call([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", python,
                            "--implementation", "cp", *platforms, "-c", ROOT/"constraints.txt", "-d", folder, *packages])


def missing_packages():
    "Return the packages that are needed and not installed"
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def install(folder, packages, target):
    "Install packages from wheels in a folder beside the installed ones; return those that have no wheel there"
    wheels = {w.name.split("-")[0].lower(): w for w in sorted(Path(folder).glob("*.whl"))}
    found = [wheels[name] for p in packages if (name := p.replace("-", "_").lower()) in wheels]
    if found:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir",
                        "--upgrade", "--target", target, *found], check=True)
    return [p for p in packages if p.replace("-", "_").lower() not in wheels]


class Record:
    "The figures of one go, on disk as soon as they are known"
    def __init__(self, folder):
        self.folder, self.began = Path(folder), time.monotonic()
        self.facts = dict(kind="gpu", date=time.strftime("%Y-%m-%d", time.gmtime()), commit=commit(), missing=[], machine={}, parts={})
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self):
        self.facts["seconds"] = round(time.monotonic() - self.began, 1)
        for name, text in (("record.json", json.dumps(self.facts, indent=1)), ("record.md", table(self.facts))):
            temporary = self.folder/f".tmp-{name}"
            temporary.write_text(text + "\n")
            temporary.replace(self.folder/name)

    def begin(self, part): self.facts["parts"][part] = dict(state="running", seconds=0.0, error="", rows=[])

    def row(self, part, row):
        self.facts["parts"][part]["rows"].append(row)
        self.write()
        print(f"  {part}: {row['name']}: {shown(row)}{'  FAILS' if row['ok'] is False else ''}", flush=True)

    def end(self, part, state, seconds=0.0, error=""):
        self.facts["parts"].setdefault(part, dict(rows=[])).update(state=state, seconds=round(seconds, 1), error=error)
        self.write()
        if state != "done": print(f"  {part}: {state}{error and ': ' + error}", flush=True)

    @property
    def sound(self):
        "Whether every part was measured and every bound kept"
        parts = self.facts["parts"].values()
        return all(p["state"] in ("done", "no time left") for p in parts) and all(r["ok"] is not False for p in parts for r in p["rows"])


def commit():
    "Return the commit of this copy of the repository, or an empty text outside of git"
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def shown(row):
    "A row's value with its unit, bound and note"
    value = row["value"]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    bound = "".join(f", {word} {row[key]:g}" for key, word in (("least", "at least"), ("most", "at most")) if row.get(key) is not None)
    return f"{text}{row['unit'] and ' ' + row['unit']}{bound}{row['note'] and ' (' + row['note'] + ')'}"


def table(record):
    "Return a record as Markdown"
    machine, lines = record["machine"], []
    lines += [f"{record['date']}, commit {record['commit'] or 'unknown'}, {record.get('seconds', 0):.0f} s in all", ""]
    lines += [f"**Missing here: {', '.join(record['missing'])}**", ""]*bool(record["missing"])
    lines += ["| machine | |", "|---|---|", *(f"| {k} | {v} |" for k, v in machine.items()), ""]
    lines += ["| part | figure | value | holds |", "|---|---|---|---|"]
    for name, part in record["parts"].items():
        for row in part["rows"]:
            value = shown({**row, "note": row["note"].replace("|", "/")})
            lines.append(f"| {name} | {row['name']} | {value} | {({True: 'yes', False: '**no**', None: ''})[row['ok']]} |")
        if part["state"] != "done":
            error = part["error"].replace("|", "/").splitlines()
            lines.append(f"| {name} | {part['state']} | {error[-1][:300] if error else ''} | {'**no**' if part['state'] != 'no time left' else ''} |")
    return "\n".join(lines)


class Worker:
    "A process that runs parts, one after the other, and tells of each figure"
    def __init__(self, names, options, env, log):
        self.process = subprocess.Popen([sys.executable, HERE/"gpu_parts.py", json.dumps(dict(options, parts=names))], cwd=ROOT, env=env,
                                        stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        self.events = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout: self.events.put(json.loads(line))
        self.events.put(dict(event="gone", code=self.process.wait()))

    def next(self, seconds):
        "The next event, or None where none comes in time"
        try: return self.events.get(timeout=max(seconds, 0))
        except queue.Empty: return None

    def kill(self):
        try: os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        self.process.wait()


def run_parts(names, record, options, env, seconds):
    "Run parts in turn within some seconds; a part that fails or is late ends its process"
    end, left = record.began + seconds, list(names)
    with open(record.folder/"log.txt", "w") as log:
        while left and time.monotonic() < end - 5:
            worker = Worker(left, options, env, log)
            try: before, left = left, run_process(worker, left, record, end)
            finally: worker.kill()
            if len(left) == len(before): record.end(left.pop(0), "failed", error=f"its process did not begin: see {record.folder}/log.txt")
    for name in left: record.end(name, "no time left")


def run_process(worker, left, record, end):
    "Follow one process; return the parts that it leaves to another"
    limit, current, began = min(end, time.monotonic() + STARTING), None, 0.0
    while True:
        event = worker.next(limit - time.monotonic())
        now = time.monotonic()
        if event is None or event["event"] == "gone":
            if current is None: return left
            message = f"took longer than {now - began:.0f} s" if event is None else f"its process ended with exit code {event['code']}"
            record.end(current, "out of time" if event is None else "failed", now - began, message)
            return left[1:]
        if event["event"] == "machine":
            record.facts["machine"] = event["facts"]
            if not record.facts["parts"]: print("; ".join(f"{k} {v}" for k, v in event["facts"].items()), flush=True)
        if event["event"] == "begin":
            current, began, limit = event["part"], now, min(end, now + event["seconds"])
            record.begin(current)
        if event["event"] == "row": record.row(current, event["row"])
        if event["event"] == "end":
            record.end(current, event["state"], now - began, event["error"])
            left, current, limit = left[1:], None, min(end, now + 30)
            if not left or event["state"] == "failed": return left  # an error on a GPU may have spoilt its context


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="parts to run; all if none is named")
    parser.add_argument("--out", default="runs/gpu", help="folder of record.json, record.md and log.txt")
    parser.add_argument("--seconds", type=float, default=470, help="for everything")
    parser.add_argument("--device", default="auto", help="as in settings.ini; cpu runs everything at toy size")
    parser.add_argument("--wheels", default=str(ROOT/"wheels"), help="folder of wheels for packages that are missing")
    parser.add_argument("--reference", default="", help="checkout of github.com/erjui/DHO, to compare the step with")
    parser.add_argument("--collect", metavar="FOLDER", help="download wheels for a machine without internet, and end")
    parser.add_argument("--packages", nargs="+", default=WHEELS, help="for --collect")
    args = parser.parse_args()
    if args.collect: return collect(args.collect, args.packages)
    record, env = Record(args.out), dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8", DHO_PROGRESS="none", TOKENIZERS_PARALLELISM="false")
    lacks, site = missing_packages(), record.folder.resolve()/"site"
    if lacks and Path(args.wheels).is_dir(): lacks = install(args.wheels, lacks, site)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(site)*site.is_dir(), env.get("PYTHONPATH", "")]))
    record.facts["missing"] = lacks
    print(f"missing: {', '.join(lacks)}; collect wheels where there is internet: make wheels PACKAGES=\"{' '.join(lacks)}\", and bring "
          "the folder wheels" if lacks else "no package is missing", flush=True)
    unknown = [p for p in args.parts if p not in PARTS]
    if unknown: parser.error(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="dho-gpu-", ignore_cleanup_errors=True) as folder:
        run_parts(args.parts or [*PARTS], record, dict(device=args.device, reference=args.reference, folder=folder), env, args.seconds)
    record.write()
    print("\n" + table(record.facts))
    return 0 if record.sound else 1


if __name__ == "__main__": sys.exit(main())
